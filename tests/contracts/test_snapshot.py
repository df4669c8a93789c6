"""A snapshot sees whatever can be done to a model or to data, and nothing where nothing was done."""

import copy
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn

from workingpapers.contracts._snapshot import changes, snapshot


def arguments() -> tuple[nn.Module, dict[str, Tensor], numpy.ndarray, int]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    return model, {"x": torch.tensor([1.0, torch.nan])}, numpy.array([0.0, numpy.nan]), 3


def backward(model: nn.Module) -> None:
    model(torch.ones(2, 3)).sum().backward()


TOUCHES: dict[str, Callable[[nn.Module, dict[str, Tensor], numpy.ndarray], object]] = {
    "the value of argument 0.0.weight": lambda model, data, array: model[0].weight.data.add_(1),
    "the value of argument 0.1.running_mean": lambda model, data, array: model[1].running_mean.add_(1),
    "the mode (training or evaluation) of argument 0.2": lambda model, data, array: model[2].eval(),
    "the hooks of argument 0.2": lambda model, data, array: model[2].register_forward_hook(lambda *_: None),
    "the gradient of argument 0.0.bias": lambda model, data, array: backward(model.eval()),
    "requires_grad of argument 0.0.bias": lambda model, data, array: model[0].bias.requires_grad_(False),
    "the class of argument 0.2": lambda model, data, array: model.__setitem__(2, nn.GELU()),
    "the identity of argument 0.2": lambda model, data, array: model.__setitem__(2, nn.ReLU()),
    "the identity of argument 0.0.bias": lambda model, data, array: setattr(
        model[0], "bias", copy.deepcopy(model[0].bias)
    ),
    "the overridden methods of argument 0.2": lambda model, data, array: setattr(
        model[2], "forward", torch.sin
    ),
    "the attributes of argument 0.1": lambda model, data, array: setattr(model[1], "eps", 1.0),
    "the value of argument 0.0.extra": lambda model, data, array: model[0].register_buffer(
        "extra", torch.ones(1)
    ),
    "the value of argument 1": lambda model, data, array: data["x"].mul_(2),
    "argument 2": lambda model, data, array: array.fill(2),
}


@pytest.mark.parametrize("what", TOUCHES)
def test_a_touch_is_seen_by_its_name(what: str) -> None:
    given = arguments()
    before = snapshot(given)
    TOUCHES[what](*given[:3])
    assert what in changes(before, snapshot(given))


def test_looking_on_changes_nothing() -> None:
    given = arguments()
    before = snapshot(given)
    with torch.no_grad():
        given[0].eval()(torch.ones(2, 3))
    given[0].train()
    assert changes(before, snapshot(given)) == []


def test_a_copy_looks_the_same_and_is_another() -> None:
    model = arguments()[0]
    twin = copy.deepcopy(model)
    assert changes(snapshot(model, identity=False), snapshot(twin, identity=False)) == []
    assert changes(snapshot(model), snapshot(twin)) != []
