"""Early alignment: from tiny weights neurons of a ReLU network turn to the data before the loss moves.

    d/dt (w / |w|) = sign(v) (I - w w' / |w|^2) sum over active i of y_i x_i,     T_align = O(log n / sqrt mu)

where mu is how well the data are separated: y_i y_j cos(x_i, x_j) >= mu for all pairs.  Each neuron ends on for all
points of one class and off for the other's, or off for all; then the loss falls like 1 / t and the first layer has
two directions.

Paper: "Early Neuron Alignment in Two-layer ReLU Networks with Small Initialization" (2023), arXiv 2307.12851,
Section 3.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.engines.ranks import stable_rank
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most, between
from workingpapers.papers.theory._two_layer import (
    Flow,
    alignment_times,
    flow,
    phases,
    separated,
    separated_part,
    separation,
    signs,
    start,
)
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, mlp


def class_cosines(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return cosines (hidden, 2) of weights (hidden, dim) to the sums of the points of classes 1 and -1."""
    y = signs(y)
    sums = torch.stack([x[y == s].double().sum(0) for s in (1, -1)])
    return F.normalize(w.double(), dim=1) @ F.normalize(sums, dim=1).T


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    x, y = separated(10, 0.5, generator)
    return x, y, 6, 1e-3, "exponential", 1.0


def _turned(x: Tensor, y: Tensor, *rest: Any) -> tuple[Any, ...]:
    """Give the points in another order."""
    order = torch.arange(len(x)).flip(0)
    return x[order], y[order], *rest


@paper("early_alignment", example=_example, invariances={"order of the points": _turned})
def early_alignment(
    x: Tensor,
    y: Tensor,
    hidden: int = 50,
    scale: float = 1e-6,
    loss: str = "exponential",
    until: float = 1e-3,
    step: float = 0.05,
    tolerance: float = 0.0,
    seed: int = 0,
) -> Finding:
    """Train a two-layer ReLU network from tiny balanced weights by gradient flow and watch its neurons.

    Args:
        x, y: points (n, ...) and labels (n,) of two values.
        hidden: neurons.
        scale: of the first weights, Gaussian; the second layer's are +-|w|.
        loss: "exponential" or "logistic", added up over the points.
        until: loss at which to end.
        step: of the flow, as for `_two_layer.flow`.
        tolerance: share of points that an aligned neuron may treat otherwise, for data that are not separated.
        seed: decides the first weights.

    The numbers: `separation`, the data's mu; `aligned` and `dead`, shares of neurons at a loss 5 % below the first;
    `loss_when_aligned`, over the loss at the start, and `alignment_time` of the first moment from which all are
    aligned or dead (-1 where they never are); `decay`, the slope of log loss over log time in the last tenfold
    fall; `stable_rank` of the first layer, `imbalance` of |w|^2 - v^2 and `sign_changes` of v.  `details["flow"]`
    has the course.
    """
    flat = x.detach().double().flatten(1)
    w, v = start(hidden, flat.shape[1], scale, torch.Generator().manual_seed(seed))
    found = flow(flat, y, w, v, loss, until, step, tolerance=tolerance)
    when, moment = found.when_loss_fell(0.05), found.alignment_time()
    ended = math.isfinite(moment)
    numbers = {
        "separation": separation(flat, y),
        "aligned": float(found.aligned[when]),
        "dead": float(found.dead[when]),
        "alignment_time": moment if ended else -1.0,
        "loss_when_aligned": float(np.interp(moment, found.time, found.loss) / found.loss[0])
        if ended
        else -1.0,
        "decay": found.decay(),
        "stable_rank": stable_rank(found.w),
        "imbalance": found.imbalance,
        "sign_changes": float(found.sign_changes),
        "loss": float(found.loss[-1]),
    }
    return Finding(
        numbers,
        f"When the loss has fallen by 5% {numbers['aligned'] + numbers['dead']:.0%} of the neurons are aligned or "
        f"dead, and at the end the first layer has a stable rank of {numbers['stable_rank']:.2f}.",
        lambda: _draw(found, flat, y),
        {"flow": found},
    )


def _draw(found: Flow, x: Tensor, y: Tensor) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    times = [t for t, _, _ in found.kept[1:]]
    if times:
        course = torch.stack([class_cosines(w, x, y) for _, w, _ in found.kept[1:]]).clamp(-1, 1).arccos()
        own = torch.where(found.v > 0, course[..., 0], course[..., 1]).rad2deg()
        axes[0].plot(times, own.numpy(), lw=0.5)
        axes[0].set_xscale("log")
    axes[0].set(xlabel="time", ylabel="angle to own class, degrees")
    axes[1].loglog(found.time[1:], found.loss[1:])
    axes[1].set(xlabel="time", ylabel="loss")
    return figure


def _report_example(generator: torch.Generator) -> tuple[Any, ...]:
    model = mlp([5, 8, 1])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model, torch.randn(30, 5, generator=generator), torch.arange(30) % 2


def _rescaled(model: Any, *rest: Any) -> tuple[Any, ...]:
    """Double the first layer and the second, which keeps the directions and shares."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    return model, *rest


def _in_training(model: nn.Module, *rest: Any) -> tuple[Any, ...]:
    return model.train(), *rest


@paper(
    "early_alignment",
    part="report",
    kind="analysis",
    example=_report_example,
    invariances={"training mode": _in_training, "scale of both layers": _rescaled},
)
def alignment_report(model: nn.Module, x: Tensor, y: Tensor) -> Finding:
    """Measure in a two-layer network, in any state of training, how its neurons are aligned with two classes.

    Args:
        model: one with two nn.Linear that run, ReLU between them, and one output, or two for two classes.
        x, y: inputs (n, ...) and labels (n,) of two values.

    The numbers: shares of neurons `aligned` (on for all points of the class that they speak for and off for the
    others), `dead`, and `neither`; `cosine`, the mean cosine of living neurons to the sum of the points of their
    class; `stable_rank` of the first layer; `imbalance`, the mean of ||w|^2 - v^2| over their mean sum.
    """
    ran = collect(model, x, nn.Linear, keep=lambda module, z: z.reshape(len(z), -1))
    parts: dict[str, Any] = dict(model.named_modules())
    if len(ran) != 2 or parts[list(ran)[1]].out_features > 2:
        raise WorkingPapersError(
            f"alignment is read from two linear layers, the second of one output or two; {type(model).__name__} "
            f"runs {len(ran)}"
            + (f" with {parts[list(ran)[-1]].out_features} outputs" if len(ran) == 2 else "")
        )
    first, second = (parts[name] for name in ran)
    rows = second.weight.detach().double()
    v = rows[0] if len(rows) == 1 else rows[1] - rows[0]
    w, label = first.weight.detach().double(), signs(y)
    aligned, dead = phases(next(iter(ran.values())), label, v)
    seen = collect(model, x, [next(iter(ran))], side="input")
    cosine = class_cosines(w, next(iter(seen.values())).flatten(1), y)
    own, living = torch.where(v > 0, cosine[:, 0], cosine[:, 1]), ~dead
    balance = (w.square().sum(1) - v.square()).abs().mean() / (w.square().sum(1) + v.square()).mean()
    numbers = {
        "aligned": float((aligned & living).double().mean()),
        "dead": float(dead.double().mean()),
        "neither": float((~aligned & living).double().mean()),
        "cosine": float(own[living].mean()) if bool(living.any()) else 0.0,
        "stable_rank": stable_rank(w),
        "imbalance": float(balance),
    }
    return Finding(
        numbers,
        f"{numbers['aligned']:.0%} of the neurons are aligned with the class that they speak for and "
        f"{numbers['dead']:.0%} are dead.",
        None,
        {"cosines": cosine, "aligned": aligned, "dead": dead},
    )


def zeros_and_ones(each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `each` MNIST images of 0 and of 1, (2 each, 784), less their mean image, of mean norm 1, and +-1."""
    data = images("mnist", train=10 * each, test=10, seed=seed, normalise=False)
    chosen = data.y_train < 2
    x = data.x_train[chosen].double().flatten(1)
    x = x - x.mean(0)
    return x / x.norm(dim=1).mean(), 1.0 - 2.0 * data.y_train[chosen].double()


SEPARATED = (
    "MNIST images are left out until all pairs are separated by 0.05, and 200 and more of 400 are left: centred "
    "images as a whole have cosines down to -0.6 within a class, where the theorem assumes more than 0.  This was "
    "tried out on seed 4242."
)


@claim(
    "early_alignment",
    "Neurons align with positive or negative data early in training, within a bounded time.",
    seeds=3,
    holds=all_of(
        at_least(0.95, of="mnist_aligned", by="every"),
        at_least(0.95, of="synthetic_aligned", by="every"),
        at_most(1, of="largest_ratio", by="every"),
        at_most(0.1, of="power_of_n", by="every"),
        at_most(1, of="small_mu_over_large", by="every"),
    ),
    calibrated=f"After seed 1000: {SEPARATED}  The ratio of the time to log(n) / sqrt(mu) was to grow with no "
    "power of 1 / mu over 0.1 to 0.8, and grew with 0.5; n = 8 and 20 on seeds 5000 to 5002 down to mu = 0.0001 "
    "showed it to fall again below, so 0.001 is compared with 0.1.  Seed 4242 then gave 1.24, where at most 1 is "
    "asked, and the rule was left as it was.",
)
def alignment_before_the_loss_moves(budget: Budget, seed: int) -> Evidence:
    """MNIST 0 and 1, and separated data: neurons aligned or dead when the loss has fallen by 5 %.

    The time is a bound: `largest_ratio` is the largest of its ratios to log(n) / sqrt(mu), n from 20 to 320 and mu
    from 0.001 to 0.8; `power_of_n` the power to which they grow with n, by least squares; `small_mu_over_large`
    the ratio at mu = 0.001 over that at 0.1, geometric means.  `all_images_aligned` is of all MNIST images, of
    which a neuron may treat 5 % otherwise.
    """
    x, y = zeros_and_ones(200, seed)
    whole = early_alignment(x, y, until=0.9 * len(x), tolerance=0.05, seed=seed).numbers
    part = separated_part(x, y, 0.05)
    mnist = early_alignment(x[part], y[part], until=0.9 * int(part.sum()), seed=seed).numbers
    x, y = separated(80, 0.4, torch.Generator().manual_seed(seed))
    synthetic = early_alignment(x, y, until=0.9 * len(x), seed=seed).numbers
    counts, mus = (
        budget.pick(quick=(20, 40, 80, 160, 320), full=(20, 40, 80, 160, 320, 640)),
        (1e-3, 0.1, 0.4, 0.8),
    )
    ratio = alignment_times(counts, mus, seed) * np.sqrt(mus) / np.log(counts)[:, None]
    finite = bool(np.isfinite(ratio).all())  # else the figures are nan, which complies with no rule
    logs = np.log(np.where(finite, ratio, np.nan)).mean(0), np.log(np.where(finite, ratio, np.nan)).mean(1)
    return Evidence(
        mnist_aligned=mnist["aligned"] + mnist["dead"],
        synthetic_aligned=synthetic["aligned"] + synthetic["dead"],
        largest_ratio=ratio.max(),
        power_of_n=np.polyfit(np.log(counts), logs[1], 1)[0] if finite else math.nan,
        small_mu_over_large=math.exp(logs[0][0] - logs[0][1]),
        all_images_aligned=whole["aligned"] + whole["dead"],
        mnist_images=int(part.sum()),
    )


@claim(
    "early_alignment",
    "Once aligned, training drives the loss to zero and leaves first-layer weights of nearly low rank.",
    figure="loss O(1/t)",
    seeds=3,
    holds=all_of(
        *[between(-1.25, -0.75, of=f"{name}_decay", by="every") for name in ("mnist", "synthetic")],
        *[at_most(2.2, of=f"{name}_rank", by="every") for name in ("mnist", "synthetic")],
        *[at_most(1e-3, of=f"{name}_loss", by="every") for name in ("mnist", "synthetic")],
    ),
    calibrated=f"After seed 1000, where all images together stayed at a loss of 3: {SEPARATED}",
)
def loss_falls_and_rank_is_low(budget: Budget, seed: int) -> Evidence:
    """The same networks trained to a loss of 1e-3: power of the time in the last tenfold fall, and stable rank."""
    figures: dict[str, float] = {}
    x, y = zeros_and_ones(200, seed)
    part = separated_part(x, y, 0.05)
    data = {"mnist": (x[part], y[part]), "synthetic": separated(80, 0.4, torch.Generator().manual_seed(seed))}
    for name, (points, labels) in data.items():
        found = early_alignment(points, labels, step=budget.pick(quick=0.1, full=0.02), seed=seed).numbers
        for figure, number in (("decay", "decay"), ("rank", "stable_rank"), ("loss", "loss")):
            figures[f"{name}_{figure}"] = found[number]
    return Evidence(**figures)
