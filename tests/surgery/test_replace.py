"""Modules are replaced in a copy, shared ones once, and the copy says so."""

import pytest
import torch
from torch import nn

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery import changes, replace_modules


class Twice(nn.Module):
    """A model whose one ReLU stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.body = nn.Sequential(nn.Linear(3, 3), self.act, nn.Linear(3, 3), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.body(x))


def test_a_shared_module_is_replaced_once_and_stays_shared() -> None:
    model = Twice().eval()
    found = replace_modules(model, nn.ReLU, lambda old: nn.ELU())
    assert isinstance(found.act, nn.ELU)
    assert found.body[1] is found.act
    assert not found.act.training
    assert changes(found) == ["act is ELU now, in place of ReLU."]


def test_the_model_itself_stays_as_it_is() -> None:
    model = Twice()
    found = replace_modules(model, ["body.0"], lambda old: nn.Linear(3, 3).double())
    assert isinstance(model.act, nn.ReLU)
    assert found.body[0].weight.dtype == torch.float64
    assert model.body[0].weight.dtype == torch.float32
    assert changes(model) == []


def test_none_keeps_a_module() -> None:
    found = replace_modules(
        Twice(), (nn.ReLU, nn.Tanh), lambda old: nn.ELU() if isinstance(old, nn.Tanh) else None
    )
    assert isinstance(found.act, nn.ReLU)
    assert isinstance(found.body[3], nn.ELU)


def test_the_model_as_a_whole_can_be_replaced() -> None:
    assert isinstance(replace_modules(nn.ReLU(), nn.ReLU, lambda old: nn.Tanh()), nn.Tanh)


def test_nothing_to_replace_is_an_error() -> None:
    with pytest.raises(WorkingPapersError, match="Twice has no module of the chosen sort"):
        replace_modules(Twice(), nn.GELU, lambda old: nn.ReLU())
