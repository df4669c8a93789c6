"""SmeLU: two lines joined by a parabola, so that the gradient is continuous and retrained models agree more.

    smelu(x)  = 0 for x <= -beta,  (x + beta)^2 / (4 beta) for |x| <= beta,  x for x >= beta
    gsmelu(x) = t + g_- (x + alpha)                            left of -alpha,
                the same + (g_+ - g_-)(x + alpha)^2 / (2 (alpha + beta))       up to beta,
                t + (g_- + g_+)(alpha + beta) / 2 + g_+ (x - beta)             right of beta

Both are instances of RESCU: any middle function between two lines that meet it in value and slope.  SmeLU is
ReLU convolved with a box of half width beta; for beta -> 0 the two differ by at most beta / 4.

Paper: "Smooth activations and reproducibility in deep networks" (2020), generalised form: equation 11.  The
prediction difference is the mean L1 distance between the probabilities of two retrained models; the relative
one divides it here by the mean probability of the true class.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, above, all_of, at_least, at_most
from workingpapers.kernels import per_channel, pointwise
from workingpapers.papers.activations._agreement import disagreement
from workingpapers.papers.activations._fashion import Factory, plain_sgd
from workingpapers.papers.activations._timing import pass_seconds
from workingpapers.tasks import Budget, fit, initialise, mlp

Function = Callable[[Tensor], Tensor]
BASELINES: dict[str, Factory] = {"relu": nn.ReLU, "swish": nn.SiLU, "gelu": nn.GELU}


@pointwise
def smelu(x: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """Return SmeLU of `x` (any shape, floating) with a parabola on [-beta, beta]; `beta` > 0 broadcasts."""
    inside = x.abs() < beta
    raised = torch.where(inside, x, 0) + beta  # the branch not taken must not overflow
    return torch.where(inside, raised * raised * (0.25 / beta), torch.relu(x))


@pointwise
def gsmelu(
    x: Tensor,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 1.0,
    negative_slope: float | Tensor = 0.0,
    positive_slope: float | Tensor = 1.0,
    t: float | Tensor = 0.0,
) -> Tensor:
    """Return generalised SmeLU: lines of the two slopes, a parabola on [-alpha, beta], value `t` at -alpha."""
    bend = 0.5 * (positive_slope - negative_slope)
    width = alpha + beta
    raised = torch.where((x > -alpha) & (x < beta), x, -alpha) + alpha
    left = (t + negative_slope * alpha) + negative_slope * x + (bend / width) * raised * raised
    start = t + 0.5 * (
        negative_slope * width + positive_slope * (alpha - beta)
    )  # where the right line meets 0
    return torch.where(x < beta, left, start + positive_slope * x)


@paper("smelu", smooth=True, monotone=True, lipschitz=1.0, zero_at_zero=False, variants=[{"trainable": True}])
class SmeLU(nn.Module):
    """Apply `smelu` to a tensor of any shape, or (B, channels, ...) where there is a beta for each channel.

    Args:
        beta: half the width of the parabola, positive; the paper tunes it between about 0.1 and 2.
        trainable: learn beta as softplus of a parameter, starting from this value; the paper keeps it fixed.
        channels: give each channel (dimension 1) a beta of its own; only with `trainable`.
    """

    def __init__(self, beta: float = 1.0, trainable: bool = False, channels: int | None = None) -> None:
        super().__init__()
        _check_width("beta", beta)
        if channels is not None and not trainable:
            raise WorkingPapersError(f"a fixed beta is the same in all channels; got channels={channels}")
        self.trainable, self.channels, self._fixed = trainable, channels, float(beta)
        if trainable:
            start = beta + math.log(-math.expm1(-beta))  # softplus of this is beta
            self.raw = nn.Parameter(torch.full(() if channels is None else (channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return smelu(x, per_channel(F.softplus(self.raw), x) if self.trainable else self._fixed)

    def extra_repr(self) -> str:
        """Name beta, and the options that differ from the defaults."""
        channels = f", channels={self.channels}" if self.channels is not None else ""
        return f"beta={self._fixed:g}" + (f", trainable=True{channels}" if self.trainable else "")


@paper(
    "smelu",
    part="generalized",
    kind="activation",
    smooth=True,
    variants=[{"alpha": 0.3, "beta": 0.6, "negative_slope": 0.1, "positive_slope": 0.9, "t": -0.03}],
)
class GSmeLU(nn.Module):
    """Apply `gsmelu` to a tensor of any shape; with the defaults it is SmeLU of beta 1.

    Args:
        alpha, beta: the parabola lies on [-alpha, beta]; their sum is positive.
        negative_slope, positive_slope: slopes of the two lines.
        t: value at -alpha; `t = -negative_slope * alpha` lets the left line point at the origin.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        negative_slope: float = 0.0,
        positive_slope: float = 1.0,
        t: float = 0.0,
    ) -> None:
        super().__init__()
        _check_width("alpha + beta", alpha + beta)
        self.alpha, self.beta, self.t = float(alpha), float(beta), float(t)
        self.negative_slope, self.positive_slope = float(negative_slope), float(positive_slope)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return gsmelu(x, self.alpha, self.beta, self.negative_slope, self.positive_slope, self.t)

    def extra_repr(self) -> str:
        """Name the five numbers."""
        names = ("alpha", "beta", "negative_slope", "positive_slope", "t")
        return ", ".join(f"{name}={getattr(self, name):g}" for name in names)


@paper(
    "smelu",
    part="rescu",
    kind="activation",
    smooth=True,
    options={"middle": torch.sin},
    variants=[{"middle": torch.exp, "alpha": 2.0, "slopes": (0.0, 1.0), "t": 0.0}],
)
class RESCU(nn.Module):
    """Continue a smooth `middle` function beyond [-alpha, beta] by lines that meet it in value and slope.

    Args:
        middle: function of a tensor, elementwise and differentiable on [-alpha, beta].
        alpha, beta: the interval; their sum is positive.
        slopes: slopes (left, right) of the lines; `middle` is then scaled and sheared, a h(x) + b x, to have
            them at the two ends.  By default the lines take the slopes that `middle` has there.
        t: value at -alpha, to which all is shifted; by default it is that of the middle.

    Raises:
        WorkingPapersError: where `middle` has the same slope at both ends, and two different ones are asked for.
    """

    def __init__(
        self,
        middle: Function,
        alpha: float = 1.0,
        beta: float = 1.0,
        slopes: tuple[float, float] | None = None,
        t: float | None = None,
    ) -> None:
        super().__init__()
        _check_width("alpha + beta", alpha + beta)
        self.middle, self.alpha, self.beta = middle, float(alpha), float(beta)
        ends = torch.tensor([-self.alpha, self.beta], dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            values = middle(ends)
            own = torch.autograd.grad(values.sum(), ends)[0].tolist()
        self.slopes = tuple(own) if slopes is None else (float(slopes[0]), float(slopes[1]))
        self.scale, self.shear = _bent(own, self.slopes)
        low, high = (
            self.scale * v + self.shear * e for v, e in zip(values.tolist(), ends.tolist(), strict=True)
        )
        self.shift = 0.0 if t is None else float(t) - low
        self.ends = low + self.shift, high + self.shift

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        inside = (x > -self.alpha) & (x < self.beta)
        u = torch.where(inside, x, 0.5 * (self.beta - self.alpha))
        curve = self.scale * self.middle(u) + self.shear * u + self.shift
        left = (self.ends[0] + self.slopes[0] * self.alpha) + self.slopes[0] * x
        right = (self.ends[1] - self.slopes[1] * self.beta) + self.slopes[1] * x
        return torch.where(inside, curve, torch.where(x < self.beta, left, right))

    def extra_repr(self) -> str:
        """Name the middle, the interval, and slope and value at its two ends."""
        name = getattr(self.middle, "__name__", type(self.middle).__name__)
        ends = (f"{slope:g} at {value:g}" for slope, value in zip(self.slopes, self.ends, strict=True))
        return f"{name} on [{-self.alpha:g}, {self.beta:g}], slopes " + " and ".join(ends)


def _bent(own: list[float], wanted: tuple[float, ...]) -> tuple[float, float]:
    """Return (a, b) by which a h + b x has the `wanted` slopes where h has its `own`."""
    if tuple(own) == wanted:
        return 1.0, 0.0
    if math.isclose(*own, abs_tol=1e-12):
        raise WorkingPapersError(
            f"a middle of slope {own[0]:g} at both ends cannot be bent to slopes {wanted[0]:g} and {wanted[1]:g}"
        )
    scale = (wanted[1] - wanted[0]) / (own[1] - own[0])
    return scale, wanted[0] - scale * own[0]


def _check_width(name: str, width: float) -> None:
    if not 0 < width < math.inf:
        raise WorkingPapersError(f"{name} is positive; got {width}")


def _example(generator: torch.Generator) -> tuple[Factory, Split]:
    x = torch.randn(60, 4, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    return lambda: mlp([4, 8, 2], SmeLU), Split(x[:40], y[:40], x[40:], y[40:], 2, "corners")


@paper("smelu", part="reproducibility", kind="analysis", example=_example)
def reproducibility(
    build: Factory, split: Split, repeats: int = 8, seed: int = 0, **training: Any
) -> Finding:
    """Train a model `repeats` times from other weights in another order, and say how much the models disagree.

    `build` gives a fresh classifier; `training` goes to `workingpapers.tasks.fit` (default: 3 epochs).  The
    numbers are those of `disagreement` on the test part.
    """
    probabilities = []
    for own in range(seed * repeats, (seed + 1) * repeats):
        model = initialise(build, own)
        fit(model, split, seed=own, **({"epochs": 3} | training))
        with torch.no_grad():
            probabilities.append(model(split.x_test).softmax(-1))
    numbers = disagreement(torch.stack(probabilities), split.y_test)
    return Finding(
        numbers,
        f"Two of {repeats} retrained models predict another class for {numbers['churn']:.1%} of the examples, "
        f"and their probabilities differ by {numbers['pd']:.3g} in L1 norm.",
    )


@claim(
    "smelu",
    "Smooth activations let two identically trained models agree more at similar accuracy; ReLU is itself a source "
    "of irreproducibility, which returns as the smooth zone shrinks.",
    seeds=5,
    holds=all_of(
        at_most(0.92, of="pd_over_relu"),
        above(1.0, of="narrow_over_wide"),
        at_least(-0.01, of="accuracy_over_relu"),
        at_least(0.80, of="accuracy"),
    ),
)
def agreement(budget: Budget, seed: int) -> Evidence:
    """Retrained perceptrons on Fashion-MNIST: SmeLU of half width 0.25, 1 and 2 against ReLU, Swish and GELU.

    `pd_over_relu` and the accuracies are those of the SmeLU of least disagreement; `narrow_over_wide` is the
    disagreement at half width 0.25 over that at 2.
    """
    train, test = budget.pick(quick=(5000, 2000), full=(10000, 10000))
    split = images("fashion_mnist", train=train, test=test, seed=seed)
    widths: dict[str, Factory] = {f"smelu {beta}": partial(SmeLU, beta) for beta in (0.25, 1.0, 2.0)}
    found = {
        name: reproducibility(
            partial(mlp, [784, 256, 128, 10], activation),
            split,
            repeats=budget.pick(quick=3, full=8),
            seed=seed,
            epochs=6,
            every=10**6,
            lr=0.1,
            optimizer=plain_sgd,
        ).numbers
        for name, activation in {**BASELINES, **widths}.items()
    }
    best, relu = min((found[name] for name in widths), key=lambda numbers: numbers["pd"]), found["relu"]
    return Evidence(
        pd_over_relu=best["pd"] / relu["pd"],
        swish_over_relu=found["swish"]["pd"] / relu["pd"],
        gelu_over_relu=found["gelu"]["pd"] / relu["pd"],
        narrow_over_wide=found["smelu 0.25"]["pd"] / found["smelu 2.0"]["pd"],
        accuracy_over_relu=best["accuracy"] - relu["accuracy"],
        accuracy=best["accuracy"],
    )


@claim(
    "smelu",
    "The function keeps a simple piecewise-quadratic form, monotone and ReLU-like, so it costs little to "
    "implement.",
    seeds=5,
    holds=at_most(1.0, of="time_over_gelu"),
)
def speed(budget: Budget, seed: int) -> Evidence:
    """Time of forward and backward passes over four million floats, over that of GELU and of Swish."""
    functions: dict[str, Function] = {"smelu": smelu, "gelu": F.gelu, "swish": F.silu}
    seconds = pass_seconds(functions, budget.pick(quick=2**22, full=2**24), seed=seed)
    return Evidence(**{f"time_over_{name}": seconds["smelu"] / seconds[name] for name in ("gelu", "swish")})
