"""What activation papers share: accuracy counts, weight noise is relative and leaves the model alone."""

import copy

import pytest
import torch
from torch import nn

from workingpapers.data import Split
from workingpapers.papers.activations._common import accuracy, noise_drop, photograph


class Sign(nn.Module):
    """Says class 1 where weight * x + bias > 0."""

    def __init__(self, weight: float, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = self.weight * x + self.bias
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def signs(count: int = 1001) -> Split:
    x = torch.linspace(-1, 1, count)[:, None]
    return Split(x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long(), 2, "signs")


def test_accuracy_counts_right_answers_in_eval_mode() -> None:
    assert accuracy(Sign(2.0), signs()) == 1.0
    assert accuracy(Sign(-2.0), signs(1000)) == 0.0
    assert accuracy(Sign(1.0, 0.5), signs(1000)) == pytest.approx(0.75, abs=2e-3)
    dropped = nn.Sequential(nn.Dropout(0.9), Sign(1.0)).train()
    assert accuracy(dropped, signs()) == 1.0
    assert dropped.training


def test_noise_is_relative_to_each_weight() -> None:
    model = Sign(1.0, 0.0)
    before = copy.deepcopy(model.state_dict())
    assert noise_drop(model, signs(), sigmas=(0.0,)) == 0.0
    # weight 1 + sigma z turns negative with probability Phi(-1 / sigma); the zero bias stays zero
    assert noise_drop(model, signs(101), sigmas=(1.0,), draws=1500) == pytest.approx(
        0.1587 * 100 / 101, abs=0.03
    )
    assert noise_drop(model, signs(101), sigmas=(0.1,), draws=50) == 0.0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_noise_follows_the_seed() -> None:
    drops = [noise_drop(Sign(1.0, 0.4), signs(), sigmas=(0.5,), seed=seed) for seed in (3, 3, 4)]
    assert drops[0] == drops[1] != drops[2]


def test_photograph_is_an_image() -> None:
    picture = photograph()
    assert picture.shape == (1, 3, 427, 640)
    assert picture.min() == 0
    assert picture.max() == 1
    assert 0.3 < picture.mean() < 0.7
