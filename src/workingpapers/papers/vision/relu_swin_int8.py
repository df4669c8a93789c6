"""ReLU in place of GELU in a Swin transformer, so that its perceptrons can run in int8 alone.

    relu(requantise(acc)) = requantise(relu(acc)): relu commutes with positive scales, GELU does not
    loss = alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) cross-entropy

GELUs are replaced one after the other, each time with some training by distillation from the network as it
was, and the result is quantised.  The rounding, the sums and the scales are simulated exactly (`_int8.py`).

Paper: "Faster Inference of Integer SWIN Transformer by Removing the GELU Activation" (2024); the order of
replacement, the temperature and the length of training are ours.
"""

import copy
import statistics
import timeit
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import unknown
from workingpapers.experiments import Evidence, all_of, at_least
from workingpapers.papers.vision._distillation import distillation_loss
from workingpapers.papers.vision._int8 import QuantMLP, quantise_model
from workingpapers.papers.vision._swin import Swin
from workingpapers.surgery import replace_modules
from workingpapers.tasks import Budget, fit, initialise


def gelus(model: nn.Module, order: str = "front") -> list[str]:
    """Return the names of the GELU modules, from the "front" (as they are registered) or from the "back"."""
    if order not in ("front", "back"):
        raise unknown("order", order, ("front", "back"))
    names = [name for name, module in model.named_modules() if _is_gelu(module)]
    return names if order == "front" else names[::-1]


def _is_gelu(module: nn.Module) -> bool:
    return isinstance(module, nn.GELU) or type(module).__name__ in ("GELUActivation", "NewGELUActivation")


def _small_net(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    net = initialise(lambda: Swin(1, 3, 8, (2, 1), (2, 2), window=2), 0)
    return net, torch.randn(2, 1, 8, 8, generator=generator)


@paper("relu_swin_int8", example=_small_net, preserves=None)
def replace_gelu(model: nn.Module, names: list[str] | None = None) -> nn.Module:
    """Return a copy of `model` with ReLU for every GELU module, or for those called `names`.

    A GELU that is called as a function cannot be seen and stays.
    """
    either = lambda _, module: _is_gelu(module) or isinstance(module, nn.ReLU)  # noqa: E731
    chosen: Any = either if names is None else names
    return replace_modules(model, chosen, lambda old: nn.ReLU() if _is_gelu(old) else None)


class _Taught(nn.Module):
    """A student that in training gives the teacher's logits beside its own, (B, 2 K)."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, x: Tensor) -> Tensor:
        own: Tensor = self.student(x)
        if not self.training:
            return own
        with torch.no_grad():
            taught = self.teacher.eval()(x)
        return torch.cat([own, taught], 1)


def distil(
    teacher: nn.Module,
    split: Split,
    stages: list[list[str]],
    epochs: int = 1,
    alpha: float = 0.5,
    temperature: float = 2.0,
    lr: float = 1e-3,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of `teacher` with ReLU for the GELUs named in `stages`, trained after each stage.

    Args:
        teacher: trained; it stays as it is.
        split: what to train on.
        stages: names of GELUs to replace at a time, such as [[n] for n in gelus(teacher)].
        epochs: after each stage.
        alpha, temperature: of the distillation loss.
        lr, seed: of Adam, and of the order of the data.
    """
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    student = copy.deepcopy(teacher)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape[1] == split.num_classes:
            return F.cross_entropy(outputs, targets)
        own, taught = outputs.chunk(2, 1)
        return distillation_loss(own, targets, taught, "soft", alpha, temperature)

    for i, names in enumerate(stages):
        student = replace_gelu(student, names)
        fit(_Taught(student, frozen), split, epochs=epochs, lr=lr, loss=loss, seed=seed + i)
    return student


@paper(
    "relu_swin_int8", part="quantise", kind="transform", example=lambda g: (*_small_net(g), _small_net(g)[1])
)
def quantise(model: nn.Module, x: Tensor, percentile: float = 100.0) -> nn.Module:
    """Return a copy of `model` for inference whose linear layers are in int8, with scales from the inputs `x`.

    A perceptron (linear, activation, linear) stays in integers throughout where its activation is a ReLU.
    `percentile` below 100 clips the largest values of each batch when scales are chosen.
    """
    return quantise_model(model, x, percentile)


def fashion(budget: Budget, seed: int) -> Split:
    """Return Fashion-MNIST pooled to 14x14 and padded to 16x16, or padded to 32x32 at the full budget."""
    train, test, size = budget.pick(quick=(1100, 1000, 14), full=(20000, 5000, 28))
    split = images("fashion_mnist", train=train, test=test, size=size, seed=seed)
    pad = budget.pick(quick=1, full=2)
    low = float(split.x_train.min())
    padded = [F.pad(x, [pad] * 4, value=low) for x in (split.x_train, split.x_test)]
    return replace(split, x_train=padded[0], x_test=padded[1])


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the share of test images that `model` classifies right."""
    guesses = [model.eval()(x).argmax(1) for x in split.x_test.split(500)]
    return float((torch.cat(guesses) == split.y_test).float().mean())


def time_ratio(gelu: QuantMLP, relu: QuantMLP, tokens: int, seed: int) -> float:
    """Return the time of the element-wise stage with GELU over that with ReLU, on the same float32 sums.

    The medians of 20 runs, taking turns: dequantise, GELU, quantise against the fused requantise and relu.
    """
    generator = torch.Generator().manual_seed(seed)
    acc = (3000 * torch.randn(tokens, len(gelu.first.unit), generator=generator)).round()
    with torch.no_grad():
        runs: list[Callable[[], Tensor]] = [partial(mlp.hidden, acc) for mlp in (gelu, relu)]
        rounds = [[timeit.timeit(run, number=1) for run in runs] for _ in range(21)][1:]
    slow, fast = (float(statistics.median(times)) for times in zip(*rounds, strict=True))
    return slow / fast


@claim(
    "relu_swin_int8",
    "An integer-quantised Swin with ReLU in place of GELU runs noticeably faster on a desktop GPU at almost no "
    "loss of ImageNet accuracy.",
    figure="at least 11% lower latency on an RTX 4090; accuracy drop under 0.5%",
    holds=all_of(
        at_least(-0.01, of="over_int8_gelu"),
        at_least(0.05, of="lost_by_swap_alone"),
        at_least(-0.003, of="over_at_once"),
        at_least(2.0, of="time_ratio", by="every"),
    ),
)
def faster_without_loss(budget: Budget, seed: int) -> Evidence:
    """int8 accuracy on Fashion-MNIST of a small Swin, GELUs replaced one by one, over that with GELU.

    `lost_by_swap_alone` is what replacing without training costs in float, `over_at_once` the gain over
    replacing all at once with as much distillation; `time_ratio` that of the perceptrons' element-wise stages
    on this CPU.
    """
    split = fashion(budget, seed)
    teacher = initialise(lambda: Swin(1, 10), seed)
    fit(teacher, split, epochs=budget.pick(quick=6, full=30), lr=2e-3, seed=seed)
    names, epochs = gelus(teacher), budget.pick(quick=1, full=5)
    iterative = distil(teacher, split, [[name] for name in names], epochs, seed=seed)
    at_once = distil(teacher, split, [names], epochs * len(names), seed=seed)
    models = {"gelu": teacher, "swapped": replace_gelu(teacher), "iterative": iterative, "at_once": at_once}
    found = {name: accuracy(model, split) for name, model in models.items()}
    integer = {name: quantise(model, split.x_train[:500]) for name, model in models.items()}
    int8 = {name: accuracy(model, split) for name, model in integer.items()}
    slow, fast = (
        next(m for m in integer[n].modules() if isinstance(m, QuantMLP)) for n in ("gelu", "iterative")
    )
    return Evidence(
        over_int8_gelu=int8["iterative"] - int8["gelu"],
        lost_by_swap_alone=found["gelu"] - found["swapped"],
        over_at_once=int8["iterative"] - int8["at_once"],
        time_ratio=time_ratio(slow, fast, tokens=4096, seed=seed),
        accuracy=found["gelu"],
        lost_by_int8=found["gelu"] - int8["gelu"],
    )
