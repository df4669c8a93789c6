"""The information plane, measured so that the estimate follows the range of the activity.

    I(X;T) = H(T),   I(T;Y) = H(T) - sum_c p_c H(T | Y = c),   compression = (I_max - I_final) / I_max over epochs

H(T) is the entropy of activations cut into bins, whose edges are quantiles of the different values that the layer
takes (EBAB), or a kernel bound whose noise grows with the largest activation (aKDE).  Bins or noise that stay the
same while the activity grows see information come and go where only the scale has changed.

Paper: "Adaptive Estimators Show Information Compression in Deep Neural Networks" (2019), Sections 2 to 4; the bins
are those of the authors' code.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, above, all_of, any_of, at_least, at_most
from workingpapers.papers.theory._information import compression, information
from workingpapers.papers.theory._small_ensembles import (
    Ensemble,
    adam_on_weights,
    member_accuracies,
    member_losses,
    side_by_side,
)
from workingpapers.surgery.choose import Modules
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, mlp
from workingpapers.tasks.randomness import stream
from workingpapers.tasks.training import Training, points

PASSIVE = (nn.Flatten, nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


class CentredSoftplus(nn.Softplus):
    """Softplus less log 2, so that 0 goes to 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to a tensor of any shape."""
        return super().forward(x) - float(np.log(2))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "swish": nn.SiLU, "softplus": nn.Softplus,
    "centred_softplus": CentredSoftplus,
}  # fmt: skip
UNBOUNDED = ("relu", "elu", "swish", "softplus")


def activations_of(name: str, module: nn.Module) -> bool:
    """Tell whether a module acts on values alone: no parts, no parameters, and none of the passive ones."""
    return not [*module.children(), *module.parameters()] and not isinstance(module, PASSIVE)


def twelve_bits(seed: int) -> Split:
    """Return all 4,096 patterns of 12 bits, 80 % to train, labelled by a random form of degree 2.

    Inputs are +-1; the label is whether x'Ax exceeds its median, A Gaussian by `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 * (torch.arange(4096)[:, None] >> torch.arange(12) & 1) - 1
    form = torch.randn(12, 12, generator=generator).triu(1)
    value = (x @ form * x).sum(1)
    y = (value > value.median()).long()
    train, test = torch.randperm(4096, generator=generator).tensor_split([3277])
    return Split(x[train], y[train], x[test], y[test], 2, "twelve bits")


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    models = [mlp([3, 6, 4, 2], nn.Tanh) for _ in range(2)]
    with torch.no_grad():
        for p in (p for m in models for p in m.parameters()):
            p.copy_(torch.randn(p.shape, generator=generator))
    return models, torch.randn(60, 3, generator=generator), torch.arange(60) % 2


def _in_training(models: list[nn.Module], *rest: Any) -> tuple[Any, ...]:
    return [m.train() for m in models], *rest


def _permuted(models: list[Any], *rest: Any) -> tuple[Any, ...]:
    """Exchange the units of the first hidden layer."""
    with torch.no_grad():
        for m in models:
            m[1].weight.copy_(m[1].weight.flip(0))
            m[1].bias.copy_(m[1].bias.flip(0))
            m[3].weight.copy_(m[3].weight.flip(1))
    return models, *rest


@paper(
    "adaptive_mi",
    example=_example,
    invariances={"training mode": _in_training, "order of the units": _permuted},
)
def adaptive_mi(
    model: nn.Module | Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    layers: Modules | None = None,
    method: str = "ebab",
    bins: int = 30,
    noise: float = 1e-3,
) -> Finding:
    """Measure how much layers tell of the inputs and of the labels, and how far training has compressed them.

    Args:
        model: any model, or several of one kind, the checkpoints of a training in order.
        x, y: inputs (n, ...), each counted as likely as the others and different, and labels (n,).
        layers: modules whose outputs are measured; by default those that act on values alone, such as ReLU.
        method, bins, noise: as for `_information.information`: "ebab", "akde", or "binning" (in [-1, 1]) and "kde".

    The numbers, in bits, of the last checkpoint: `i_xt NAME` and `i_ty NAME`; with several checkpoints also
    `compression NAME`, (I_max - I_final) / I_max of I(X;T).  None can exceed log2 n.  `details["plane"]` has by
    layer the course (checkpoints, 2) of both.
    """
    checkpoints = [model] if isinstance(model, nn.Module) else list(model)
    if not checkpoints:
        raise WorkingPapersError("the information plane needs at least one model; got an empty list")
    plane: dict[str, list[tuple[float, float]]] = {}
    for checkpoint in checkpoints:
        found = collect(checkpoint, x, activations_of if layers is None else layers)
        for name, t in found.items():
            plane.setdefault(name, []).append(information(t, y, method, bins, noise))
    numbers: dict[str, float] = {}
    for name, course in plane.items():
        numbers[f"i_xt {name}"], numbers[f"i_ty {name}"] = course[-1]
        if len(checkpoints) > 1:
            numbers[f"compression {name}"] = compression([i_xt for i_xt, _ in course])
    last = list(plane)[-1]
    return Finding(
        numbers,
        f"The last layer measured, {last or 'the model'}, tells {numbers[f'i_xt {last}']:.2f} of "
        f"{np.log2(len(x)):.2f} bits of the input and {numbers[f'i_ty {last}']:.2f} bits of the label.",
        lambda: _draw(plane),
        {"plane": {name: np.array(course) for name, course in plane.items()}},
    )


def _draw(plane: dict[str, list[tuple[float, float]]]) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for name, course in plane.items():
        i_xt, i_ty = np.array(course).T
        axes[0].plot(i_xt, i_ty, "-", alpha=0.5)
        axes[0].scatter(i_xt[-1:], i_ty[-1:], label=name or "output")
        axes[1].plot(i_xt, "o-", label=name or "output")
    axes[0].set(xlabel="I(X;T), bits", ylabel="I(T;Y), bits")
    axes[1].set(xlabel="checkpoint", ylabel="I(X;T), bits")
    axes[0].legend(title="layer")
    return figure


def trained_together(
    activation: str,
    split: Split,
    count: int,
    epochs: int,
    seed: int,
    decay: float = 0.0,
    depth: int | None = None,
    checkpoints: int = 20,
) -> dict[str, Any]:
    """Train `count` networks 12-10-7-5-4-3-2 from different starts and measure hidden layers by EBAB on the way.

    Adam at 1e-3 in batches of 512, with the penalty decay / 2 |W|^2; `checkpoints` and the start.  `depth` limits
    the measurement to the last so many hidden layers.  Returns `i_xt` (checkpoints, layers, count) on all inputs,
    and by network `gap`, test less training loss, and test `accuracy`.
    """
    model = Ensemble((12, 10, 7, 5, 4, 3, 2), ACTIVATIONS[activation], count, stream(seed, activation))
    x, y = torch.cat([split.x_train, split.x_test]), torch.cat([split.y_train, split.y_test])

    @torch.no_grad()
    def measure() -> list[list[float]]:
        hidden = model.hidden(x)[:-1]
        return [[information(t, y)[0] for t in layer] for layer in hidden[-(depth or len(hidden)) :]]

    course, steps = [measure()], epochs * (len(split.x_train) // 512)
    how = Training(
        steps=steps,
        optimizer=adam_on_weights(decay),
        batch=512,
        seed=seed,
        every=max(steps // checkpoints, 1),
    )
    course += [measure() for _ in points(model, side_by_side(split), how)]
    with torch.no_grad():
        train, test = model(split.x_train), model(split.x_test)
    gap = member_losses(test, split.y_test) - member_losses(train, split.y_train)
    return {
        "i_xt": np.array(course),
        "gap": gap.numpy(),
        "accuracy": member_accuracies(test, split.y_test).numpy(),
    }


def scores(i_xt: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the compression (layers, count) of courses (checkpoints, layers, count) of I(X;T)."""
    return np.array([[compression(list(course)) for course in layer.T] for layer in i_xt.transpose(1, 0, 2)])


@claim(
    "adaptive_mi",
    "Compression of hidden layers does not need a saturating activation: measured adaptively, it appears for "
    "unbounded ones too, to a degree that varies with activation and initialisation.",
    seeds=5,
    holds=all_of(
        any_of(*[all_of(above(0.02, of=a), above(0.02, of=b)) for a, b in combinations(UNBOUNDED, 2)]),
        above(0.01, of="spread"),
    ),
)
def compression_without_saturation(budget: Budget, seed: int) -> Evidence:
    """Compression in the last three hidden layers of networks on 12 bits, several starts for each activation.

    Each activation's figure is the mean over starts in the layer where that is largest; `spread` the mean over
    the unbounded ones of the standard deviation over starts in that layer.
    """
    count, epochs = budget.pick(quick=(6, 400), full=(40, 3000))
    split, figures, spreads = twelve_bits(seed), {}, []
    for name in ("tanh", *UNBOUNDED):
        found = scores(trained_together(name, split, count, epochs, seed, depth=3)["i_xt"])
        layer = int(found.mean(1).argmax())
        figures[name] = float(found[layer].mean())
        if name in UNBOUNDED:
            spreads.append(float(found[layer].std(ddof=1)))
    return Evidence(**figures, spread=float(np.mean(spreads)))


@claim(
    "adaptive_mi",
    "Penalising weights by L2 makes compression markedly stronger and prevents overfitting, and only last-layer "
    "compression goes with better generalisation.",
    seeds=5,
    holds=all_of(
        *[at_least(0.3, of=f"{name}_less_bits") for name in ("relu", "tanh")],
        *[at_most(0, of=f"{name}_gap_change") for name in ("relu", "tanh")],
        above(0, of="last_correlation"),
        above(0, of="last_over_others"),
    ),
)
def penalty_compresses(budget: Budget, seed: int) -> Evidence:
    """ReLU and tanh with a penalty of 5e-3 against none: bits of I(X;T) over hidden layers, and the loss gap.

    `last_correlation` is Spearman's, over starts without a penalty, of the compression of the last hidden layer and
    test accuracy, the mean of both activations; `last_over_others` that less the mean of the other layers'.
    """
    from scipy.stats import spearmanr

    count, epochs = budget.pick(quick=(10, 300), full=(50, 3000))
    split, figures, correlations = twelve_bits(seed), {}, []
    for name in ("relu", "tanh"):
        plain = trained_together(name, split, count, epochs, seed)
        penalised = trained_together(name, split, count, epochs, seed, 5e-3, checkpoints=1)
        figures[f"{name}_less_bits"] = float(plain["i_xt"][-1].mean() - penalised["i_xt"][-1].mean())
        figures[f"{name}_gap_change"] = float(penalised["gap"].mean() - plain["gap"].mean())
        rows = scores(plain["i_xt"])
        varied = [spearmanr(row, plain["accuracy"]).statistic if row.std() > 0 else 0.0 for row in rows]
        correlations.append(varied)
    mean = np.mean(correlations, axis=0)
    return Evidence(**figures, last_correlation=mean[-1], last_over_others=mean[-1] - mean[:-1].mean())
