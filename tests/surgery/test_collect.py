"""Collecting by hooks: the values that the model itself computes, and a model left as it was."""

import pytest
import torch
from torch import nn

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.surgery.collect import collect


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4, 2))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.pair = nn.LSTM(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.act(x) - 1)


def test_it_gives_what_the_modules_compute() -> None:
    model, x = network(), torch.randn(7, 3)
    found = collect(model, x, batch=3)
    z = model[0](x)
    assert list(found) == ["0", "1", "2", "3"]
    torch.testing.assert_close(found["0"], z)  # not overwritten by the rectifier in place behind it
    torch.testing.assert_close(found["1"], z.relu())
    torch.testing.assert_close(found["2"], z.relu())  # evaluation mode: nothing is dropped
    torch.testing.assert_close(found["3"], model[3](z.relu()))
    inputs = collect(model, x, nn.ReLU, side="input", keep=lambda m, t: t > 0)
    assert torch.equal(inputs["1"], z > 0)


def test_the_ways_to_choose_agree() -> None:
    model, x = network(), torch.randn(5, 3)
    chosen = [nn.Linear, (nn.Linear, nn.Conv2d), ["0", "3"], lambda name, m: isinstance(m, nn.Linear)]
    wanted = collect(model, x, chosen[0])
    assert list(wanted) == ["0", "3"]
    for way in chosen[1:]:
        found = collect(model, x, way)
        assert list(found) == list(wanted)
        assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_further_runs_get_names_of_their_own() -> None:
    x = torch.tensor([[0.5, 3.0], [-1.0, 1.5]])
    found = collect(Twice(), x, nn.ReLU, batch=1)
    assert found["act"].tolist() == [[0.5, 3.0], [0.0, 1.5]]
    assert found["act#2"].tolist() == [[0.0, 2.0], [0.0, 0.5]]


def test_the_model_is_left_as_it_was() -> None:
    model = network()
    model.train()
    model[2].eval()
    collect(model, torch.randn(2, 3))
    with pytest.raises(RuntimeError):
        collect(model, torch.randn(2, 5))
    assert [m.training for m in model.modules()] == [True, True, True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_root_is_a_module_too() -> None:
    model, x = network().eval(), torch.randn(4, 3)
    assert torch.equal(collect(model, x, [""])[""], model(x))


def test_bad_input_is_named() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(UnknownName, match="module of the model"):
        collect(network(), x, ["9"])
    with pytest.raises(WorkingPapersError, match="no module of the chosen sort"):
        collect(network(), x, nn.Conv2d)
    with pytest.raises(WorkingPapersError, match="none of the chosen modules ran"):
        collect(Twice(), torch.randn(2, 2), nn.LSTM)
    with pytest.raises(UnknownName, match="side"):
        collect(network(), x, side="otput")
    lstm = nn.Sequential(nn.LSTM(3, 2))
    with pytest.raises(WorkingPapersError, match="is a tuple, and only tensors"):
        collect(lstm, x)
