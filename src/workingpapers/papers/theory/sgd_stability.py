"""What stability asks of the minima that SGD reaches: a small trace of the Hessian, not just a small top value.

    linearly stable for SGD with batches of one  =>  tr(H) <= 2 / eta;      for GD  <=>  lambda_max(H) <= 2 / eta

for L = 1/(2n) sum (f - y)^2 where all examples are fitted, so that H = (1/n) sum g_i g_i', g_i = grad f(x_i).
The trace is a norm of the network: 4 sum_j (u_j^2 + v_j^2) mean x_j^2 >= 4 sum_j |w_j| mean x_j^2 for the diagonal
linear net w = u u - v v, and about sum_j |x|^2 a_j^2 + |w_j|^2 for a two-layer ReLU one.

Paper: "The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent" (2023), arXiv 2305.17490.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.engines.spectra import Rates, SecondMoments, extremes, hessian, jacobians, trace
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most, below
from workingpapers.papers.theory._shallow import (
    Array,
    Diagonal,
    Shallow,
    TwoLayer,
    descend,
    top_eigenvalues,
    train_loss,
)
from workingpapers.tasks import Budget

FITTED = 1e-6  # loss below which a run counts as interpolating


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1/(2n) sum |f - y|^2 for outputs and targets of one shape (n, ...)."""
    if outputs.shape != targets.shape:
        raise WorkingPapersError(
            f"squares compare outputs {tuple(outputs.shape)} with targets of their shape; "
            f"got {tuple(targets.shape)}"
        )
    return (outputs - targets).square().sum() / (2 * len(outputs))


class DiagonalNet(nn.Module):
    """The linear network <u u - v v, x> whose weights start at `scale`: (B, dim) -> (B, 1)."""

    def __init__(self, dim: int, scale: float = 0.6) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.full((dim,), scale))
        self.v = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (B, 1)."""
        return x @ (self.u.square() - self.v.square())[:, None]


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
        noise = torch.randn(12, 2, generator=generator, dtype=torch.float64)
        return net, x, net(x) + 0.1 * noise, 0.02, 2


def _reordered(net: nn.Module, x: Tensor, y: Tensor, *rest: Any) -> tuple[Any, ...]:
    return net, x.flip(0), y.flip(0), *rest


@paper("sgd_stability", kind="study", example=_example, invariances={"order of examples": _reordered})
def stability_report(
    model: nn.Module, x: Tensor, y: Tensor, lr: float = 0.01, batch: int = 1, products: int = 2000
) -> Finding:
    """Say whether the point where `model` is now is stable for SGD on squares, and from which rate on it is not.

    Args:
        model: any module of outputs (n, ...); with more than about 100 examples give a part of them.
        x, y: inputs (n, ...) and targets of the outputs' shape.
        lr: learning rate of plain SGD.
        batch: examples a step, drawn without replacement.
        products: Hessian products at most for the trace; smaller models than that are traced exactly.

    The numbers: `loss`; `trace`, its standard error and `top` eigenvalue of the Hessian; `frobenius` norm and trace
    `gauss_newton` of (1/n) sum J_i' J_i, which is the Hessian where all examples are fitted; `radius`, the growth
    of second moments a step at `lr` (stable up to 1); `critical_lr`, where it is 1; the bounds `sufficient_lr`,
    `moment_lr`, `trace_lr` and `gd_lr` (see `engines.spectra.Rates`); `trace_over_limit`, trace lr / 2.
    """
    if lr <= 0:
        raise WorkingPapersError(f"a learning rate is above 0; got {lr}")
    curvature = hessian(model, half_squares, [(x, y)], dtype=torch.float64)
    total, top = trace(curvature, most=products), extremes(curvature, 1, tolerance=1e-5)
    moments = SecondMoments(jacobians(model, x), batch)
    rates, radius = moments.rates(), moments.radius(lr)
    with torch.no_grad():
        loss = float(half_squares(*_evaluated(model, x, y)))
    numbers = {
        "loss": loss,
        "trace": total.value,
        "trace_error": total.error,
        "top": float(top.top[0]),
        "gauss_newton": float(moments.values.sum()),
        "frobenius": float(moments.values.norm()),
        "radius": radius,
        "critical_lr": rates.exact,
        "sufficient_lr": rates.sufficient,
        "moment_lr": rates.moment,
        "trace_lr": rates.trace,
        "gd_lr": rates.gradient_descent,
        "trace_over_limit": total.value * lr / 2,
    }
    word = "stable" if radius <= 1 else "unstable"
    return Finding(
        numbers,
        f"At a rate of {lr:g} with batches of {batch} this point is {word}, its limit is {rates.exact:.3g}, and "
        f"that of gradient descent {rates.gradient_descent:.3g}.",
        lambda: _draw(rates, lr),
        {"rates": rates, "eigenvalues": moments.values},
    )


def _draw(rates: Rates, lr: float) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 2.6), layout="constrained")
    words = ["every step shrinks", "SGD, exact", "bound by moments", "bound by the trace", "gradient descent"]
    values = [rates.sufficient, rates.exact, rates.moment, rates.trace, rates.gradient_descent]
    axes.barh(words[::-1], values[::-1], color="C0")
    axes.axvline(lr, color="C3", label="rate in use")
    axes.set(xscale="log", xlabel="largest stable learning rate")
    axes.legend()
    return figure


def _evaluated(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    from workingpapers.surgery.collect import collect

    return collect(model, x, [""])[""], y


@dataclass(frozen=True)
class Run:
    """Where one run ended: its rate, the loss, trace and top eigenvalue there, and the error on new data."""

    lr: float
    loss: float
    trace: float
    top: float
    error: float

    @property
    def fitted(self) -> bool:
        """Whether all examples are fitted."""
        return self.loss < FITTED


def sweep(
    net: Shallow, x: Array, y: Array, test: tuple[Array, Array], start: Array, rates: Sequence[float], steps: int,
    batch: int | None = None, seed: int = 0,
) -> list[Run]:  # fmt: skip
    """Train `net` from `start` (P,) at each rate, by SGD with `batch` or by gradient descent, and measure the ends.

    `test` are new inputs and their true outputs; the error is the mean square there.  Sizes are NaN for runs that
    overflowed.
    """
    theta = descend(net, x, y, start, rates, steps, batch, seed)
    losses = train_loss(net, theta, x, y)
    found = []
    for i, lr in enumerate(rates):
        own = theta[i : i + 1]
        if not (np.isfinite(own).all() and np.isfinite(losses[i])):
            found.append(Run(lr, *[float("nan")] * 4))
            continue
        gradients = net.gradients(own, x)
        error = float(np.square(net.outputs(own, test[0]) - test[1]).mean())
        size = float(np.square(gradients).sum(2).mean())
        found.append(Run(lr, float(losses[i]), size, float(top_eigenvalues(net, own, x)[0]), error))
    return found


def diagonal_runs(budget: Budget, seed: int) -> tuple[list[Run], list[Run]]:
    """Return SGD's and GD's runs of a diagonal net (40 inputs, 20 examples, two relevant inputs), started at 0.6.

    The new inputs are the unit vectors times sqrt(40), so that the error is |w - w*|^2.
    """
    generator = np.random.default_rng(seed)
    x, w = generator.standard_normal((20, 40)), np.zeros(40)
    w[:2] = 1.0, -1.0
    test = np.eye(40) * np.sqrt(40)
    how = (x, x @ w, (test, test @ w), np.full(80, 0.6), (0.002, 0.005, 0.01, 0.02))
    steps = budget.pick(quick=20_000, full=200_000)
    return sweep(Diagonal(), *how, steps, 1, seed), sweep(Diagonal(), *how, steps)


def relu_runs(budget: Budget, seed: int) -> tuple[list[Run], list[Run]]:
    """Return SGD's and GD's runs of a ReLU net of 40 neurons on a teacher of 2, 10 inputs, 20 examples."""
    generator = np.random.default_rng(seed + 10_000)
    net, teacher = TwoLayer(40), TwoLayer(2)
    x, new = generator.standard_normal((20, 10)), generator.standard_normal((500, 10))
    true = np.concatenate([[1.0, -1.0], generator.standard_normal(20) / np.sqrt(10)])[None]
    start = np.concatenate(
        [generator.standard_normal(40) / np.sqrt(40), generator.standard_normal(400) / np.sqrt(10)]
    )
    # rates around the one at which the start itself stops being stable
    rates = [factor / float(net.trace(start[None], x)[0]) for factor in (0.5, 1.0, 2.0, 3.0)]
    how = (x, teacher.outputs(true, x)[0], (new, teacher.outputs(true, new)[0]), start, rates)
    steps = budget.pick(quick=20_000, full=200_000)
    return sweep(net, *how, steps, 1, seed), sweep(net, *how, budget.pick(quick=4000, full=40_000))


def _over_limit(runs: Sequence[Run], what: str) -> float:
    """Return the largest of eta / 2 times trace or top eigenvalue over the runs that fitted all examples."""
    return max((getattr(run, what) * run.lr / 2 for run in runs if run.fitted), default=float("nan"))


@claim(
    "sgd_stability",
    "SGD's stable minima have a bounded Hessian trace, whereas gradient descent bounds only the largest "
    "eigenvalue.",
    figure="trace at most 2/eta",
    seeds=5,
    holds=all_of(
        at_most(1.05, of="sgd_trace", by="every"),
        at_most(1.05, of="top", by="every"),
        at_least(1.1, of="gd_trace"),
        at_most(1.05, of="relu_sgd_trace", by="every"),
        at_most(1.05, of="relu_top", by="every"),
    ),
)
def trace_is_bounded(budget: Budget, seed: int) -> Evidence:
    """Trace and top eigenvalue over their limit 2/eta: a diagonal net, and a ReLU net on a teacher."""
    sgd, gd = diagonal_runs(budget, seed)
    relu_sgd, relu_gd = relu_runs(budget, seed)
    return Evidence(
        sgd_trace=_over_limit(sgd, "trace"),
        top=_over_limit([*sgd, *gd], "top"),
        gd_trace=_over_limit(gd[-1:], "trace"),
        relu_sgd_trace=_over_limit(relu_sgd, "trace"),
        relu_top=_over_limit([*relu_sgd, *relu_gd], "top"),
        relu_gd_trace=_over_limit(relu_gd, "trace"),
        fitted=sum(run.fitted for run in (*sgd, *gd, *relu_sgd, *relu_gd)),
    )


@claim(
    "sgd_stability",
    "Larger learning rates strengthen the regularisation, so SGD finds solutions that generalise better.",
    seeds=5,
    holds=all_of(
        at_most(0.7, of="sgd_trace"),
        at_most(0.7, of="sgd_error"),
        below(0.15, of="gd_trace_change"),
        below(0.15, of="gd_error_change"),
    ),
)
def larger_rates_regularise(budget: Budget, seed: int) -> Evidence:
    """Diagonal net: trace and error at the largest rate that fitted, over those at the smallest; SGD and GD."""
    ratios = []
    for runs in diagonal_runs(budget, seed):
        fitted = [run for run in runs if run.fitted]
        first, last = (fitted[0], fitted[-1]) if len(fitted) > 1 else (Run(*[float("nan")] * 5),) * 2
        ratios.append((last.trace / first.trace, last.error / first.error))
    (sgd_trace, sgd_error), (gd_trace, gd_error) = ratios
    return Evidence(
        sgd_trace=sgd_trace,
        sgd_error=sgd_error,
        gd_trace_change=abs(gd_trace - 1),
        gd_error_change=abs(gd_error - 1),
    )
