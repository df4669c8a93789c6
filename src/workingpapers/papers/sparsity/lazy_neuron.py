"""The lazy neuron phenomenon: after training hardly any unit of a transformer's MLPs fires for a token.

    a = relu(W x),   sparsity = share of entries of a above 0;      Top-k: a = topk(relu(W x), k)

About half of the units fire at initialisation, a few percent after training, fewer in wider networks, and on random
labels too.  Keeping only the k largest entries enforces it.

Paper: "The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers" (2022), Sections 2 to 4.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images, text
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, Finding, above, all_of, at_least, at_most, below, between
from workingpapers.papers.sparsity._firing import (
    KeepLargest,
    calibration_error,
    keeping_largest,
    noisy_labels,
    nonzero_shares,
)
from workingpapers.papers.sparsity._small_decoders import decoder
from workingpapers.surgery.choose import Modules
from workingpapers.tasks import Budget, Classification, LanguageModelling, fit, initialise, mlp, vit
from workingpapers.tasks.training import Training, points

DATA = ("true", "random labels", "random inputs", "infinite")


def _tokens(batch: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch, 3, 12, generator=generator)


@paper("lazy_neuron", part="topk", kind="layer", arguments=(12, 32), options={"k": 8}, example=_tokens)
class TopKMLP(nn.Module):
    """A two-layer perceptron of which each token keeps its k largest hidden activations: (..., dim) -> (..., dim).

    Args:
        dim: width in and out.
        hidden: width of the hidden layer.
        k: how many entries stay; `hidden` and more is the dense perceptron, 0 leaves only the output bias.
        activation: factory of the activation.
    """

    def __init__(
        self, dim: int, hidden: int, k: int = 128, activation: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.expand, self.activation = nn.Linear(dim, hidden), activation()
        self.keep, self.contract = KeepLargest(k), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the perceptron gives."""
        out: Tensor = self.contract(self.keep(self.activation(self.expand(x))))
        return out


def _transform_example(generator: torch.Generator) -> tuple[nn.Module, Tensor, int]:
    return mlp([6, 16, 3]), torch.randn(5, 6, generator=generator), 4


@paper("lazy_neuron", part="topk_mlp", kind="transform", example=_transform_example, preserves=None)
def topk_mlp(model: nn.Module, k: int = 128, modules: Modules | None = None) -> nn.Module:
    """Return a copy of a model in which activation modules keep only the k largest entries of each token.

    Args:
        model: any model whose activations are modules; those with k units or fewer stay as they are.
        k: how many entries of the last dimension stay.
        modules: which modules, as `surgery.choose` takes them; by default all known activations.

    Raises:
        WorkingPapersError: where there is none.
    """
    return keeping_largest(model, k, modules)


class _Infinite(Classification):
    """Fresh inputs with labels that depend on nothing, for every batch."""

    def batches(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Give an epoch of fresh batches."""
        shape = self.split.x_train.shape[1:]
        for _ in range(self.steps_per_epoch(batch)):
            x = torch.randn((batch, *shape), generator=generator)
            yield x, torch.randint(self.split.num_classes, (batch,), generator=generator)

    def to(self, device: torch.device) -> Self:
        """Return itself: what it gives is on the CPU."""
        return self


def ablated(split: Split, data: str, seed: int = 0) -> Split | Classification:
    """Return data whose labels or inputs mean nothing: one of `DATA`."""
    if data not in DATA:
        raise unknown("sort of data", data, DATA)
    generator = torch.Generator().manual_seed(seed)
    if data == "random labels":
        drawn = torch.randint(split.num_classes, split.y_train.shape, generator=generator)
        return replace(split, y_train=drawn)
    if data == "random inputs":
        return replace(split, x_train=torch.randn(split.x_train.shape, generator=generator))
    return _Infinite(split, None) if data == "infinite" else split


def _samples(problem: Split | LanguageModelling, count: int) -> tuple[Tensor, Tensor]:
    """Return some training and some test inputs."""
    if isinstance(problem, Split):
        return problem.x_train[:count], problem.x_test[:count]
    if not isinstance(problem, LanguageModelling):
        raise WorkingPapersError(
            f"the study takes a Split of classes or a LanguageModelling problem; got {type(problem).__name__}"
        )
    windows = [
        s[: len(s) // problem.context * problem.context] for s in (problem.text.train, problem.text.test)
    ]
    train, test = (w.view(-1, problem.context)[: max(count // problem.context, 2)] for w in windows)
    return train, test


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    y = torch.arange(60) % 3
    x = torch.randn(60, 4, generator=generator) + y[:, None]
    return partial(mlp, [4, 12, 8, 3]), Split(x, y, x, y, 3, "example"), 20, 2


@paper("lazy_neuron", example=_example)
def lazy_neuron(
    build: Callable[[], nn.Module],
    problem: Split | LanguageModelling,
    steps: int = 1000,
    checks: int = 5,
    data: str = "true",
    threshold: float = 0.0,
    lr: float = 1e-3,
    seed: int = 0,
) -> Finding:
    """Train a fresh model and follow the share of non-zeros of its hidden activations.

    Args:
        build: a factory; try several widths and depths.
        problem: classes, or language modelling.
        steps: of Adam with batches of 64 (of 16 windows for language).
        checks: how often to look, beside the start.
        data: "true", or for a Split "random labels", "random inputs" (Gaussian) or "infinite" (always fresh).
        threshold: above which an entry counts; 0 is for ReLU.
        seed: of initialisation and data.

    The numbers: `start` and `end`, means over layers on training inputs; `end_test`; the same by layer; `loss` on
    the test part.  `details["curve"]` has (step, {layer: share}).
    """
    inputs, others = _samples(problem, 512)
    model = initialise(build, seed)
    trained: Any = ablated(problem, data, seed) if isinstance(problem, Split) else problem
    inputs = trained.x_train[:512] if isinstance(trained, Split) else inputs
    curve = [(0, nonzero_shares(model, inputs, threshold))]
    size = 64 if isinstance(problem, Split) else 16
    how = Training(steps=steps, lr=lr, batch=size, seed=seed, every=max(1, steps // checks))
    for point in points(model, trained, how):
        curve.append((int(point["step"]), nonzero_shares(model, inputs, threshold)))
    first, last = curve[0][1], curve[-1][1]
    test = nonzero_shares(model, others, threshold)
    numbers = {"start": _mean(first), "end": _mean(last), "end_test": _mean(test), "loss": point["loss"]}
    numbers |= {f"start {name}": v for name, v in first.items()} | {
        f"end {name}": v for name, v in last.items()
    }
    return Finding(
        numbers,
        f"{numbers['start']:.1%} of the hidden activations are not zero at the start, {numbers['end']:.1%} after "
        f"{curve[-1][0]} steps.",
        partial(_draw, curve),
        {"curve": curve, "model": model},
    )


def _mean(shares: dict[str, float]) -> float:
    return sum(shares.values()) / len(shares)


def _draw(curve: list[tuple[int, dict[str, float]]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for name in curve[0][1]:
        axis.plot([step for step, _ in curve], [shares[name] for _, shares in curve], "o-", label=name)
    axis.set(xlabel="step", ylabel="share of non-zeros", ylim=(0, None), title="Hidden activations that fire")
    axis.legend(fontsize=7)
    return figure


@claim(
    "lazy_neuron",
    "Trained transformers have very sparse MLP activations, sparser when larger, across tasks, data (even random "
    "labels) and layers.",
    figure="3.0% nonzero for T5-Base, 6.3% for ViT-B16",
    seeds=5,
    holds=all_of(
        between(0.45, 0.55, of="start"),
        below(0.35, of="end"),
        above(0.0, of="narrow_over_wide"),
        at_least(0.1, of="mlp_fall_true"),
        at_least(0.1, of="mlp_fall_random"),
    ),
)
def emerges(budget: Budget, seed: int) -> Evidence:
    """Share of non-zeros of ReLU decoders on tinyshakespeare, narrow and four times as wide; its fall on MNIST.

    The falls of an MLP are judged, those of a ViT (`fall_true`, `fall_random`) told beside them.
    """
    dim, depth, context, steps = budget.pick(quick=(48, 2, 32, 400), full=(96, 3, 64, 800))
    problem = LanguageModelling(text("tinyshakespeare"), context, 5000)
    vocab = len(problem.text.vocabulary)
    runs = []
    for width in (4 * dim, 16 * dim):
        build = partial(decoder, vocab, context, dim, depth, width)
        runs.append(lazy_neuron(build, problem, steps, 1, lr=3e-3, seed=seed).numbers)
    split = images("mnist", train=budget.pick(quick=2000, full=20_000), test=500, seed=seed)
    steps = budget.pick(quick=500, full=5000)
    builds: dict[str, Callable[[], nn.Module]] = {
        "": partial(vit, 1, 28, 7, 10, 64, 2, 4, nn.ReLU),
        "mlp_": partial(mlp, [784, budget.pick(quick=256, full=1024), 10]),
    }
    falls = {}
    for data in ("true", "random labels"):
        for name, model in builds.items():
            found = lazy_neuron(model, split, steps, 1, data, seed=seed).numbers
            falls[f"{name}fall_{data.split()[0]}"] = found["start"] - found["end"]
    return Evidence(
        start=(runs[0]["start"] + runs[1]["start"]) / 2,
        end=(runs[0]["end"] + runs[1]["end"]) / 2,
        narrow_over_wide=runs[0]["end"] - runs[1]["end"],
        wide=runs[1]["end"],
        **falls,
    )


def noisy_vit(split: Split, k: int | None, epochs: int, seed: int) -> tuple[float, float]:
    """Train a small ViT of MLP width 256 on 40 % noisy labels; return clean test accuracy and calibration error."""
    labels = noisy_labels(split.y_train, 0.4, split.num_classes, torch.Generator().manual_seed(seed))

    def activation() -> nn.Module:
        return nn.ReLU() if k is None else nn.Sequential(nn.ReLU(), KeepLargest(k))

    model = initialise(partial(vit, 1, 28, 7, 10, 64, 2, 4, activation), seed)
    found = fit(model, replace(split, y_train=labels), epochs=epochs, every=10**6, seed=seed)
    with torch.no_grad():
        chances = torch.cat([model(x).softmax(1) for x in split.x_test.split(500)])
    return found.metrics["accuracy"], calibration_error(chances, split.y_test)


@claim(
    "lazy_neuron",
    "Forcing still sparser activation by a small Top-k gives robustness to label noise and input corruption, and "
    "better calibration.",
    seeds=5,
    holds=all_of(at_least(-0.01, of="accuracy_gain"), at_most(0.95, of="calibration_ratio")),
)
def small_k(budget: Budget, seed: int) -> Evidence:
    """ViT on Fashion-MNIST with 40 % noisy labels: k = width / 16 against dense, clean accuracy and calibration."""
    train, test = budget.pick(quick=(2500, 1000), full=(5000, 2000))
    split = images("fashion_mnist", train=train, test=test, seed=seed)
    dense, kept = (noisy_vit(split, k, 8, seed) for k in (None, 16))
    return Evidence(
        accuracy_gain=kept[0] - dense[0], calibration_ratio=kept[1] / dense[1], calibration=dense[1]
    )
