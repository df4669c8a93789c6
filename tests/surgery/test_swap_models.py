"""Swapping on real models: every call of the activation is reached, nothing else changes, undo is exact."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from tests.surgery.real_models import MODELS, built, run
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workingpapers import make, swap, undo
from workingpapers.surgery import changes
from workingpapers.surgery.activations import call_named

TORCH = {"relu": torch.relu, "silu": torch.nn.functional.silu, "hardswish": torch.nn.functional.hardswish}


class Counting(nn.Module):
    """A new activation that counts its runs."""

    runs: ClassVar[Counter[str]] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        Counting.runs["all"] += 1
        return torch.exp(-x * x)


class Calls(TorchFunctionMode):
    """Counts torch's own calls of activations, by an independent way: all that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str | None] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[call_named(func, args, kwargs)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _fresh_count() -> Iterator[None]:
    Counting.runs.clear()
    yield
    Counting.runs.clear()


@pytest.mark.parametrize("name", MODELS)
def test_every_call_of_the_activation_is_reached_and_undo_is_exact(name: str) -> None:
    _, inputs, old, places, calls = MODELS[name]
    model, x = built(name), inputs()
    before = run(model, x)
    kinds = [type(m) for m in model.modules()]
    assert len(swap(model, old, Counting, dry_run=True)) == places
    assert [type(m) for m in model.modules()] == kinds

    swapped = swap(model, old, Counting)
    with Calls() as seen:
        after = run(swapped, x)
    assert Counting.runs["all"] == calls
    assert old not in seen.seen
    assert not torch.equal(after, before)
    assert len(changes(swapped)) == places
    assert torch.equal(run(model, x), before)

    undone = undo(swapped)
    assert undone is swapped
    assert torch.equal(run(undone, x), before)
    assert [type(m) for m in undone.modules()] == kinds
    assert changes(undone) == []
    assert list(undone.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", [n for n in MODELS if MODELS[n][2] in TORCH])
def test_swapping_an_activation_for_itself_changes_no_bit(name: str) -> None:
    _, inputs, old, *_ = MODELS[name]
    model, x = built(name), inputs()
    assert torch.equal(run(swap(model, old, TORCH[old]), x), run(model, x))


def test_resnet_with_golu_is_the_one_built_with_golu() -> None:
    model, x = built("resnet18"), torch.randn(2, 3, 32, 32)
    by_hand = built("resnet18")
    for module in list(by_hand.modules()):
        if hasattr(module, "relu"):
            module.relu = make("golu", beta=2.0)
    assert torch.equal(run(swap(model, "relu", "golu", beta=2.0), x), run(by_hand, x))


@pytest.mark.parametrize(
    ("name", "widths", "last"),
    [
        ("resnet18", {64, 128, 256, 512}, False),
        ("convnext", {160, 320, 640, 1280}, False),
        ("convnext, linear", {16, 32}, True),
        ("bert", {24}, True),
        ("gpt2", {64}, True),
        ("t5", {24}, True),
    ],
)
def test_parameters_by_channel_fit_each_place(name: str, widths: set[int], last: bool) -> None:
    _, inputs, old, places, _ = MODELS[name]
    model, x = built(name), inputs()
    swapped = swap(model, old, "prelu_he_init", channels="auto", inputs=x, init=0.5)
    new = {n: p for n, p in swapped.named_parameters() if n not in dict(model.named_parameters())}
    assert len(new) == places
    assert {p.numel() for p in new.values()} == widths
    assert torch.allclose(run(swapped, x), run(swap(model, old, nn.LeakyReLU(0.5)), x), atol=1e-5)
    for (
        parameter
    ) in new.values():  # one slope a channel, and the right dimension: 0 for half of them is a ReLU
        parameter.data[::2] = 0
    half = swap(model, old, _half_leaky_last if last else _half_leaky_second)
    assert torch.allclose(run(swapped, x), run(half, x), atol=1e-5)


def _half_leaky_last(x: Tensor) -> Tensor:
    slope = torch.tensor([0.0, 0.5]).repeat(x.shape[-1] // 2)
    return torch.where(x > 0, x, slope * x)


def _half_leaky_second(x: Tensor) -> Tensor:
    return _half_leaky_last(x.movedim(1, -1)).movedim(-1, 1)


def test_swapped_models_train() -> None:
    model = swap(built("mobilenet_v3"), "hardswish", "snake", trainable=True).train()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    learned = [p for n, p in model.named_parameters() if n.endswith("log_a")]
    assert len(learned) == 19
    assert all(p.grad is not None and p.grad.isfinite() for p in learned)
