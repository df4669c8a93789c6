"""Slices of the loss: filters as long as the model's, exact quadratics, scaling of layers, an untouched model."""

import copy

import pytest
import torch
from torch import nn

from workingpapers.engines.landscapes import filter_direction, loss_grid
from workingpapers.errors import UnknownName, WorkingPapersError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_filters_are_as_long_as_the_models_and_biases_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 2), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 4))
    found = filter_direction(model, generator())
    assert sorted(found) == ["0.weight", "3.weight"]
    for name, direction in found.items():
        weight = model.get_parameter(name)
        assert torch.allclose(direction.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1), rtol=1e-5)
    cosine = torch.cosine_similarity(found["3.weight"].flatten(), model[3].weight.flatten(), dim=0)
    assert abs(float(cosine.detach())) < 0.5


def test_filters_may_lie_along_other_dimensions() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(2, 3, 4, 5))
    found = filter_direction(model, generator(), {"weight": (1, 2)})["weight"]
    assert torch.allclose(found.square().sum((1, 2)), model.weight.square().sum((1, 2)), rtol=1e-4)
    with pytest.raises(UnknownName, match="nearest name is 'weight'"):
        filter_direction(model, generator(), {"weigth": (1,)})


def test_a_quadratic_is_the_quadratic() -> None:
    model = nn.Linear(4, 3, bias=False).double()
    u, v = (filter_direction(model, generator(seed)) for seed in (1, 2))
    w, steps = model.weight.detach(), [-1.0, 0.5, 2.0]
    found = loss_grid(model, lambda m: m.weight.square().sum(), [u, v], steps)
    wanted = [[float((w + a * u["weight"] + b * v["weight"]).square().sum()) for b in steps] for a in steps]
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12)
    line = loss_grid(model, lambda m: m.weight.square().sum(), [u], [0.0, 0.5])
    assert line.shape == (2,)
    assert float(line[0]) == pytest.approx(float(w.square().sum()))


def test_scaling_layers_against_one_another_leaves_the_slice() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    nn.init.zeros_(model[0].bias)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(7.0)
        other[2].weight.div_(7.0)
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 3
    one, two = (
        loss_grid(
            m,
            lambda moved: nn.functional.cross_entropy(moved(x), y),
            [filter_direction(m, generator(seed)) for seed in (1, 2)],
            [-1.0, -0.3, 0.4],
        )
        for m in (model, other)
    )
    assert torch.allclose(one, two, rtol=1e-10)


def test_the_model_is_evaluated_and_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(8, 4)
    direction = filter_direction(model, generator())
    found = loss_grid(model, lambda m: m(x).square().mean(), [direction], [0.0, 1.0])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert float(found[0]) == pytest.approx(float(model.eval()(x).square().mean().detach()))


def test_shared_weights_move_once() -> None:
    shared = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(shared, shared)
    direction = filter_direction(model, generator())
    assert list(direction) == ["0.weight"]
    x = torch.randn(5, 3)
    w = shared.weight.detach() + 2 * direction["0.weight"]
    found = loss_grid(model, lambda m: m(x).sum(), [direction], [2.0])
    assert float(found[0]) == pytest.approx(float((x @ w.T @ w.T).sum()), rel=1e-4, abs=1e-4)


def test_empty_slices_are_refused() -> None:
    with pytest.raises(WorkingPapersError, match="at least one direction and one step; got 0 and 1"):
        loss_grid(nn.Linear(2, 2), lambda m: m.weight.sum(), [], [0.0])
