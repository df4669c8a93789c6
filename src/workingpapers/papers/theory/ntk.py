"""The neural tangent kernel: how gradient descent moves the function that a network computes.

    Theta(x, x') = <df(x)/dw, df(x')/dw>,      df/dt = -lr Theta (f - y)

In the NTK parametrisation, z = s_w / sqrt(n) W x + s_b b with all weights N(0, 1), the kernel of a wide network is
the limit  Theta_1 = S_1,  Theta_(l+1) = Theta_l dS_(l+1) + S_(l+1)  (`engines.limits`) and stays there while it
trains, so that each principal component of the kernel is learned at a rate of its own, lr times its eigenvalue.

Paper: "Neural Tangent Kernel: Convergence and Generalization in Neural Networks" (2018), Sections 3 to 5.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.engines.limits import Activation, dense_limit, empirical_ntk, linearise, sketched_ntk
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most, below, between
from workingpapers.papers.theory._kernel_regression import NTKRegression, fitted_rate
from workingpapers.tasks import Budget, initialise


class NTKLinear(nn.Module):
    """A linear layer (..., in) -> (..., out) in the NTK parametrisation, sigma_w / sqrt(in) W x + sigma_b b."""

    def __init__(
        self, in_features: int, out_features: int, sigma_w: float = 1.0, sigma_b: float = 0.1
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.randn(out_features))
        self.scale, self.sigma_b = sigma_w / math.sqrt(in_features), sigma_b

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs."""
        return F.linear(x, self.scale * self.weight, self.sigma_b * self.bias)


class NTKMLP(nn.Sequential):
    """A perceptron (B, ...) -> (B, sizes[-1]) of `NTKLinear` layers with an activation between them."""

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Callable[[], nn.Module] = nn.ReLU,
        sigma_w: float = 2**0.5,
        sigma_b: float = 0.0,
    ) -> None:
        if len(sizes) < 2:
            raise WorkingPapersError(f"an NTKMLP has at least two sizes; got {list(sizes)}")
        layers: list[nn.Module] = [nn.Flatten()]
        for i, (n, m) in enumerate(pairwise(sizes)):
            layers += [activation()] * (i > 0) + [NTKLinear(n, m, sigma_w, sigma_b)]
        super().__init__(*layers)


def analytic_ntk(
    x: Tensor,
    other: Tensor | None = None,
    depth: int = 3,
    phi: Activation = "relu",
    sigma_w: float = 2**0.5,
    sigma_b: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return NNGP and NTK (N1, N2) of an infinitely wide `NTKMLP` with `depth` layers; see `dense_limit`."""
    found = dense_limit(x, other, phi, depth, sigma_w, sigma_b)
    return found.nngp, found.ntk


def targets_of(y: Tensor) -> Tensor:
    """Return centred one-hot rows (N, classes) for labels, and floating targets as (N, outputs)."""
    if y.is_floating_point():
        return y.double().reshape(len(y), -1)
    rows = F.one_hot(y.long()).double()
    return rows - 1 / rows.shape[1]


def alignment(kernel: Tensor, targets: Tensor) -> float:
    """Return the cosine of the kernel (n, n) and Y Y', both centred, for targets (n, outputs)."""
    k, t = kernel.double(), targets.double()
    k = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
    t = t - t.mean(0)
    other = t @ t.T
    return float((k * other).sum() / (k.norm() * other.norm()).clamp(min=1e-300))


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x, y = torch.randn(20, 4, generator=generator), torch.arange(20) % 3
    return model, x + y[:, None], y


@paper("ntk", example=_example, invariances={"training mode": lambda model, *rest: (model.train(), *rest)})
def ntk(model: nn.Module, x: Tensor, y: Tensor, sketch: int | None = None, seed: int = 0) -> Finding:
    """Say what a model's tangent kernel at its present weights makes of data: what it learns fast, and what slowly.

    Args:
        model: any module of outputs (n, ...).
        x, y: inputs (n, ...), and labels (n,) or floating targets; some hundred at most.
        sketch: directions of a random sketch of the kernel for large models; exact by default.
        seed: decides the sketch.

    The kernel is the mean over outputs, float64.  The numbers: `trace` per example and `top` eigenvalue over n;
    `stable_lr`, 2 n / top, for squares averaged over examples; `effective_rank`, trace^2 / |Theta|^2; `condition`
    of the largest to the median eigenvalue; `alignment` with the targets; `label_share` of the targets in the top
    ten components; `slowdown`, how many times longer than the top one the component takes in which the median of
    the targets' square lies.  `details` has the kernel, its eigenvalues and the targets' square along each.
    """
    if len(x) != len(y) or len(x) < 2:
        raise WorkingPapersError(
            f"a kernel takes two or more inputs with their targets; got {len(x)} and {len(y)}"
        )
    if sketch is None:
        kernel = empirical_ntk(model, x, dtype=torch.float64)
    else:
        kernel = sketched_ntk(model, x, directions=sketch, seed=seed).double()
    targets = targets_of(y)
    fit = NTKRegression(kernel, targets)
    values = fit.values.clamp(min=0)
    if not values.any():
        raise WorkingPapersError("the tangent kernel is zero here: no output depends on the parameters")
    energy = fit.modes([0.0])[0].square().sum(1)
    share = energy / energy.sum().clamp(min=1e-300)
    middle = int((share.cumsum(0) >= 0.5).nonzero()[0])
    floor = 1e-12 * values[0]
    numbers = {
        "trace": float(values.mean()),
        "top": float(values[0]) / len(x),
        "stable_lr": 2 * len(x) / float(values[0]),
        "effective_rank": float(values.sum().square() / values.square().sum()),
        "condition": float(values[0] / values.median().clamp(min=float(floor))),
        "alignment": alignment(kernel, targets),
        "label_share": float(share[:10].sum()),
        "slowdown": float(values[0] / values[middle].clamp(min=float(floor))),
    }
    return Finding(
        numbers,
        f"The top ten components of the tangent kernel hold {numbers['label_share']:.0%} of the targets, and half "
        f"of them is learned {numbers['slowdown']:.3g} times more slowly than the first component.",
        lambda: _draw(values, share),
        {"kernel": kernel, "eigenvalues": values, "shares": share},
    )


def _draw(values: Tensor, share: Tensor) -> Any:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7, 3), layout="constrained")
    place = range(1, len(values) + 1)
    left.plot(place, values.clamp(min=1e-12 * float(values[0])), ".-")
    left.set(xscale="log", yscale="log", xlabel="component", ylabel="eigenvalue of the tangent kernel")
    right.plot(place, share.cumsum(0))
    right.set(xscale="log", xlabel="components", ylabel="share of the targets in them", ylim=(0, 1.02))
    return figure


def _unit_digits(count: int, test: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return training inputs (count, 64) and new ones of norm 1, and targets 1 for one class, -1 for the others."""
    split = images("digits", train=count, test=test, seed=seed, normalise=False)
    x, new = (F.normalize(t.flatten(1)) for t in (split.x_train, split.x_test))
    return x, new, 2 * (split.y_train == seed % 10).float() - 1


def descend(model: nn.Module, x: Tensor, y: Tensor, lr: float, steps: int) -> Tensor:
    """Train `model` in place by gradient descent on 1/2 sum (f - y)^2; return the outputs before each step."""
    parameters, found = list(model.parameters()), []
    for _ in range(steps):
        output = model(x)[:, 0]
        gradients = torch.autograd.grad((output - y).square().sum() / 2, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(g, alpha=lr)
        found.append(output.detach())
    return torch.stack(found)


@claim(
    "ntk",
    "As width grows the tangent kernel tends to an explicit deterministic limit at initialisation and stays put "
    "during training.",
    seeds=5,
    holds=all_of(
        at_most(0.0, of="rises", by="every"),
        between(-0.7, -0.3, of="slope"),
        below(0.3, of="change_ratio"),
    ),
    calibrated="the rate of descent is 0.1 over the limit's top eigenvalue, as in the other claim; at 1 over it "
    "(seed 1000, change ratio 0.36) a step takes the top component all the way, which is no gradient flow",
)
def constant_kernel(budget: Budget, seed: int) -> Evidence:
    """40 unit-norm digits, three layers of width 64, 256, 1024: distance to the limit, and change in 200 steps."""
    x, _, y = _unit_digits(40, 10, seed)
    _, limit = analytic_ntk(x)
    lr = 0.1 / float(torch.linalg.eigvalsh(limit)[-1])
    widths, draws = (64, 256, 1024), budget.pick(quick=(8, 4, 2), full=(20, 20, 10))
    errors, changes = [], []
    for width, count in zip(widths, draws, strict=True):
        error = change = 0.0
        for draw in range(count):
            model = initialise(lambda w=width: NTKMLP([64, w, w, 1]), 1000 * seed + draw)  # type: ignore[misc]
            before = empirical_ntk(model, x, chunk=8).double()
            descend(model, x, y, lr, 200)
            after = empirical_ntk(model, x, chunk=8).double()
            error += float((before - limit).norm() / limit.norm()) / count
            change += float((after - before).norm() / before.norm()) / count
        errors.append(error)
        changes.append(change)
    slope = math.log(errors[-1] / errors[0]) / math.log(widths[-1] / widths[0])
    rises = sum(b >= a for figures in (errors, changes) for a, b in pairwise(figures))
    return Evidence(
        rises=rises,
        slope=slope,
        change_ratio=changes[-1] / changes[0],
        error_wide=errors[-1],
        change_wide=changes[-1],
    )


@claim(
    "ntk",
    "For least squares the infinitely wide network obeys a linear differential equation and learns the leading "
    "kernel principal components first, which motivates early stopping.",
    seeds=5,
    holds=all_of(
        below(0.1, of="error"), at_most(0.15, of="rate_error"), at_least(1.0, of="in_order", by="every")
    ),
)
def linear_dynamics(budget: Budget, seed: int) -> Evidence:
    """60 digits: predictions after 10, 100, 1000 steps against the equation; rates of the top five components."""
    x, new, y = _unit_digits(60, 100, seed)
    width = budget.pick(quick=1024, full=2048)
    model = initialise(lambda: NTKMLP([64, width, width, 1]), seed)
    kernel, cross = empirical_ntk(model, x, chunk=8), empirical_ntk(model, new, x, chunk=8)
    with torch.no_grad():
        start, first = model(new)[:, 0].double(), model(x)[:, 0]
    fit = NTKRegression(kernel, y, first)
    lr = 0.1 / float(fit.values[0])
    outputs, errors, done = [], [], 0
    for time in (10, 100, 1000):
        outputs.append(descend(model, x, y, lr, time - done))
        done = time
        with torch.no_grad():
            found = model(new)[:, 0].double()
        wanted = fit.predict(cross, time, lr, start)
        errors.append(float((found - wanted).norm() / wanted.norm()))
    residual = (y - torch.cat(outputs)).double() @ fit.vectors[:, :5]  # (steps, 5)
    shown = [k for k in range(5) if float(residual[0, k].abs()) > 0.02 * float(residual[0].norm())]
    rates = {k: fitted_rate(residual[:, k].abs()) for k in shown}
    off = [abs(rate / (lr * float(fit.values[k])) - 1) for k, rate in rates.items()]
    ordered = list(rates.values())
    return Evidence(
        error=max(errors),
        rate_error=max(off),
        in_order=float(ordered == sorted(ordered, reverse=True)),
        components=len(shown),
    )


__all__ = ["NTKMLP", "NTKLinear", "NTKRegression", "analytic_ntk", "linearise", "ntk"]
