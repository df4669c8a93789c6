"""Neural codes: which rectifiers are on for an example, read as a binary code of that example.

    code(x) = 1[z_1(x) > 0, ..., z_m(x) > 0],   redundancy = (N - number of distinct codes) / N

All inputs with one code lie in one linear region of the network.  Where nearly every code is the code of one
example alone, and examples of one class have codes near each other, the network acts as a hash encoder.

Paper: "Neural networks behave as hash encoders: An empirical study" (2021), arXiv 2101.05490.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, above, all_of, at_least, at_most, below
from workingpapers.experiments.evidence import Finding
from workingpapers.papers.geometry import _codes
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, fit, initialise, mlp

Bits = NDArray[np.uint8]
RECTIFIERS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU)


def thresholds(module: nn.Module) -> tuple[float, ...]:
    """Return where the slope of a piecewise linear module changes, () for one that is none or unknown.

    Known are ReLU, LeakyReLU, PReLU, RReLU (0), Hardtanh and ReLU6 (both ends), and any module with an attribute
    `threshold`, a number, such as nn.Threshold.
    """
    if isinstance(module, RECTIFIERS):
        return (0.0,)
    if isinstance(module, nn.Hardtanh):
        return (float(module.min_val), float(module.max_val))
    declared = getattr(module, "threshold", None)
    return (float(declared),) if isinstance(declared, int | float) else ()


@dataclass(frozen=True)
class Codes:
    """Binary codes of N examples, eight bits a byte: `packed` (N, ceil(width / 8)) uint8, and the width."""

    packed: Bits
    width: int

    @property
    def bits(self) -> Bits:
        """The codes as zeros and ones (N, width)."""
        return np.unpackbits(self.packed, axis=1, count=self.width)


def neural_codes(model: nn.Module, x: Tensor, layers: str = "all", pool: bool = False) -> Codes:
    """Return the on-off pattern of the model's rectifiers for the inputs `x` (N, ...).

    Args:
        layers: "all", or "last" for the rectifiers that run last.
        pool: one bit per channel of a convolution, whether any place is on; else one per channel and place.

    Raises:
        WorkingPapersError: where the model has no piecewise linear activation module.
    """
    if layers not in ("all", "last"):
        raise unknown("choice of layers", layers, ("all", "last"))

    def on(module: nn.Module, z: Tensor) -> Tensor:
        highest = z.flatten(2).amax(2) if pool and z.ndim > 2 else z
        return torch.stack([highest > t for t in thresholds(module)], -1).flatten(1)

    if not any(thresholds(m) for m in model.modules()):
        raise WorkingPapersError(
            f"{type(model).__name__} has no rectifier as a module (ReLU, LeakyReLU, PReLU, Hardtanh, or one "
            "with a number `threshold`), so it has no neural code"
        )
    found = collect(model, x, lambda name, module: bool(thresholds(module)), side="input", keep=on)
    chosen = list(found.values())[-1 if layers == "last" else 0 :]
    bits = torch.cat(chosen, 1).cpu().numpy()
    return Codes(np.packbits(bits, axis=1), bits.shape[1])


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = mlp([2, 12, 6, 3])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.randn(90, 2, generator=generator)
    y = torch.arange(90) % 3
    return model, x[:60] + y[:60, None], y[:60], x[60:] + y[60:, None], y[60:]


def _rescaled(model: nn.Sequential, *rest: Any) -> tuple[Any, ...]:
    """Double the weights into the first hidden layer and halve those out of it."""
    state = {**model.state_dict(), "3.weight": model.state_dict()["3.weight"] / 2}
    model.load_state_dict(state | {name: 2 * state[name] for name in ("1.weight", "1.bias")})
    return model, *rest


def _in_training(model: nn.Module, x: Tensor, y: Tensor, *rest: Tensor) -> tuple[Any, ...]:
    return model.train(), x, y, *rest


@paper(
    "neural_hash",
    example=_example,
    invariances={"positive rescaling of units": _rescaled, "training mode": _in_training},
)
def neural_hash(
    model: nn.Module,
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    layers: str = "all",
    pool: bool = False,
    seed: int = 0,
) -> Finding:
    """Read the model's activation pattern as a code of each example: is it unique, and does it classify?

    Args:
        model: a classifier (N, ...) -> (N, classes) with rectifier modules.
        x_train, y_train, x_test, y_test: inputs and labels (N,).
        layers: "all" or "last" rectifiers.
        pool: one bit per channel of a convolution instead of one per place.
        seed: decides the start of k-means.

    The numbers: `redundancy_train` and `redundancy_test`; `collisions`, the share of test examples whose code
    is that of a training example of another class; `hamming_within` and `hamming_between` classes, in shares
    of the bits; test accuracies of `kmeans`, `knn1`, `knn5`, `logistic` on codes and of the `network`.
    `details["mean_codes"]` (classes, width) has the share of each class in which a bit is on.
    """
    codes, test = (neural_codes(model, x, layers, pool) for x in (x_train, x_test))
    y, y_other = y_train.cpu().numpy(), y_test.cpu().numpy()
    within, between = _codes.hamming(codes.bits, y)
    output = collect(model, x_test, [""])[""]
    numbers = {
        "redundancy_train": _codes.redundancy(codes.packed),
        "redundancy_test": _codes.redundancy(test.packed),
        "collisions": _codes.collisions(codes.packed, y, test.packed, y_other),
        "hamming_within": within,
        "hamming_between": between,
        **_codes.categorise(codes.bits, y, test.bits, y_other, seed),
        "network": float((output.argmax(1).cpu().numpy() == y_other).mean()),
        "width": float(codes.width),
    }
    means = np.stack([codes.bits[y == label].mean(0) for label in np.unique(y)])
    return Finding(
        numbers,
        f"{1 - numbers['redundancy_train']:.1%} of the training examples add a new code, and the nearest codes "
        f"classify {numbers['knn5']:.1%} of the test examples right, the network {numbers['network']:.1%}.",
        lambda: _codes.draw_means(means),
        {"mean_codes": means},
    )


def _phase_example(generator: torch.Generator) -> tuple[Any, ...]:
    _, x, y, x_test, y_test = _example(generator)
    return lambda width: mlp([2, width, 3]), Split(x, y, x_test, y_test, 3, "example"), (1, 40), (0, 2), (60,)


@paper("neural_hash", part="phase", kind="analysis", example=_phase_example)
def activation_hash_phase(
    build: Callable[[int], nn.Module],
    split: Split,
    widths: Sequence[int],
    epochs: Sequence[int],
    sizes: Sequence[int],
    label_noise: float = 0.0,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> Finding:
    """Chart redundancy and accuracy on codes over model size, training time and sample size.

    Args:
        build: width -> classifier, with dropout or batch normalisation as it likes.
        split: data; the first `sizes` examples of its training part are used.
        widths, epochs, sizes: the grid; 0 epochs leaves the network as initialised.
        label_noise: share of training labels replaced by random ones.
        weight_decay: of Adam, which trains every network.
        seed: decides initialisation, order and noise.

    `details["cells"]` has for each (width, epochs, size) the numbers of `neural_hash` and the regime.
    """
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.rand(len(split.y_train), generator=generator) < label_noise
    drawn = torch.randint(split.num_classes, split.y_train.shape, generator=generator)
    labels = torch.where(noisy, drawn, split.y_train)
    cells: dict[tuple[int, int, int], dict[str, Any]] = {}
    for width in widths:
        for count in epochs:
            for size in sizes:
                part = replace(split, x_train=split.x_train[:size], y_train=labels[:size])
                model = initialise(partial(build, width), seed)
                if count:
                    fit(model, part, epochs=count, weight_decay=weight_decay, seed=seed)
                found = neural_hash(
                    model, part.x_train, part.y_train, part.x_test, part.y_test, seed=seed
                ).numbers
                name = _codes.regime(found["redundancy_train"], found["logistic"], found["network"])
                cells[width, count, size] = {**found, "regime": name}
    numbers = {
        f"{what} at {'/'.join(map(str, place))}": float(cell[what])
        for place, cell in cells.items()
        for what in ("redundancy_train", "logistic")
    }
    reached = [place for place, cell in cells.items() if cell["regime"] == "sufficiently"]
    return Finding(
        numbers,
        f"{len(reached)} of {len(cells)} networks (width/epochs/examples) are sufficiently expressive.",
        lambda: _codes.draw_phase(widths, epochs, sizes, cells),
        {"cells": cells},
    )


def _mnist(budget: Budget, seed: int) -> Split:
    train, test = budget.pick(quick=(6000, 2000), full=(60000, 10000))
    return images("mnist", train=train, test=test, seed=seed)


@claim(
    "neural_hash",
    "Nearly every training example has a linear region to itself, and K-Means, K-NN or logistic regression on the "
    "activation codes classify fairly well.",
    seeds=5,
    holds=all_of(
        at_most(0.01, of="redundancy_train", by="every"),
        at_most(0.01, of="redundancy_test", by="every"),
        at_least(0.9, of="knn5"),
        at_least(0.9, of="logistic"),
        at_most(0.06, of="knn5_gap"),
        at_most(0.06, of="logistic_gap"),
    ),
)
def unique_and_classifying(budget: Budget, seed: int) -> Evidence:
    """Codes of both hidden layers of an MLP 784-100-100-10 on MNIST after 10 epochs."""
    split = _mnist(budget, seed)
    model = initialise(lambda: mlp([784, 100, 100, 10]), seed)
    fit(model, split, epochs=10, seed=seed)
    found = neural_hash(model, split.x_train, split.y_train, split.x_test, split.y_test, seed=seed).numbers
    names = ("redundancy_train", "redundancy_test", "kmeans", "knn5", "logistic", "network")
    gaps = {f"{name}_gap": found["network"] - found[name] for name in ("knn5", "logistic")}
    return Evidence(**{name: found[name] for name in names}, **gaps)


@claim(
    "neural_hash",
    "Model size, training time and sample size dominate these properties and split models into under-, critically- "
    "and sufficiently-expressive regimes.",
    seeds=5,
    holds=all_of(
        at_most(-0.9, of="spearman", by="every"),
        above(0.9, of="redundancy_narrow", by="every"),
        below(0.02, of="redundancy_wide", by="every"),
        at_least(0.03, of="gain_by_training"),
    ),
)
def regimes(budget: Budget, seed: int) -> Evidence:
    """MNIST, one hidden layer: redundancy over widths 3 to 300; accuracy on codes over 0 to 10 epochs at 100."""
    from scipy.stats import spearmanr

    split, widths = _mnist(budget, seed), (3, 10, 30, 100, 300)

    def chart(widths: Sequence[int], epochs: Sequence[int]) -> dict[Any, Any]:
        size = len(split.x_train)
        found = activation_hash_phase(lambda w: mlp([784, w, 10]), split, widths, epochs, (size,), seed=seed)
        return {place[:2]: cell for place, cell in found.details["cells"].items()}

    cells = {**chart(widths, (10,)), **chart((100,), (0, 1, 3))}
    redundancy = [cells[w, 10]["redundancy_train"] for w in widths]
    return Evidence(
        spearman=float(spearmanr(widths, redundancy).statistic),
        redundancy_narrow=redundancy[0],
        redundancy_wide=redundancy[-1],
        gain_by_training=cells[100, 10]["logistic"] - cells[100, 0]["logistic"],
        regimes=len({cell["regime"] for cell in cells.values()}),
    )
