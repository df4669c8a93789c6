"""Passes are timed forward and backward, each function in its turn, warm."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from workingpapers.papers.activations import _timing
from workingpapers.papers.activations._timing import pass_seconds


def test_medians_of_turns_without_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    taken = iter([100.0, 200.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0])  # rounds of (one, other)

    def timed(run: Callable[[], object], number: int) -> float:
        run()
        return next(taken)

    def one(x: Tensor) -> Tensor:
        calls.append("one")
        return 2 * x

    def other(x: Tensor) -> Tensor:
        calls.append("other")
        return 3 * x

    monkeypatch.setattr(_timing.timeit, "timeit", timed)
    assert pass_seconds({"one": one, "other": other}, 10, repeats=3) == {"one": 3.0, "other": 4.0}
    assert calls == ["one", "other"] * 4


def test_the_backward_pass_is_part_of_it() -> None:
    seen: list[Tensor] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            seen.append(grad)
            return grad

    pass_seconds({"watched": Watched.apply}, 7, repeats=2)
    assert len(seen) == 3
    assert torch.equal(seen[0], torch.ones(7))
