"""The effective theory of deep networks: which initialisation is critical, and what depth over width does.

    K_(l+1) = C_b + C_W g(K_l),  g(K) = E phi(z)^2;     critical: K* = C_b + C_W g(K*),  chi_par = chi_perp = 1
    cov(z_i^2, z_j^2) = V / n,   V_(l+1) = chi_par^2 V_l n_l / n_(l-1) + C_W^2 (E phi^4 - (E phi^2)^2)

At criticality signals neither explode nor vanish, and what is left of the randomness of weights grows as depth over
width: a network is near its infinite-width limit where L / n is small, and one of many kinds where it is 1.

Book: "The Principles of Deep Learning Theory" (2021), Chapters 3 to 5, 9, Appendix A.  The optimal ratio of
depth to width is a rule of thumb, its constants from memory.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.engines.limits import (
    Activation,
    Criticality,
    criticality,
    layer_criticality,
    susceptibilities,
    variance_flow,
)
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, above, all_of, below, between
from workingpapers.papers.theory._effective_theory import (
    draw_layers,
    four_point,
    power_of_layer,
    scaled_mlp,
    squares_covariance,
)
from workingpapers.tasks import Budget, fit, initialise, mlp

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def growth(activation: Activation, depth: int = 400) -> float:
    """Return nu, the growth of cov(z_i^2, z_j^2) / K^2 in units of depth over width at criticality: 5 for ReLU.

    In closed form for scale-invariant activations; else the slope of the recursion from depth / 2 to `depth`.
    """
    found = _critical(activation)
    start = 1.0 if math.isnan(found.fixed_point) or not found.fixed_point else found.fixed_point
    steps = 2 if found.kind == "scale-invariant" else depth
    flow = four_point(activation, [1] * steps, found.weight_var, found.bias_var, start)
    return (flow[steps] - flow[steps // 2]) / (steps - steps // 2)


def optimal_ratio(activation: Activation, n_out: int = 1) -> float:
    """Return the book's rule of thumb for the best depth over width, 4 / (20 + 3 n_out) / nu."""
    return 4 / (20 + 3 * n_out) / growth(activation)


def depth_to_width(model: nn.Module) -> float:
    """Return the sum over hidden layers of one over their width (channels): L / n where all are alike."""
    layers = [m for m in model.modules() if isinstance(m, WEIGHTED)]
    if not layers:
        raise WorkingPapersError(f"{type(model).__name__} has no linear or convolution layer")
    return float(sum(1 / len(m.weight) for m in layers[:-1]))


def residual_init(activation: Activation, skip: float) -> tuple[float, float]:
    """Return the critical C_W and C_b of z_(l+1) = skip z_l + b + W phi(z_l): 1 - skip^2 times the plain ones."""
    if not 0 <= skip < 1:
        raise WorkingPapersError(f"a skip weight is in [0, 1); got {skip}")
    found = _critical(activation)
    return (1 - skip**2) * found.weight_var, (1 - skip**2) * found.bias_var


def _critical(activation: Activation) -> Criticality:
    found = criticality(activation)
    if found.kind == "none":
        raise WorkingPapersError(
            "this activation has no critical initialisation: its signals always grow or fade"
        )
    return found


@paper(
    "pdlt",
    example=lambda generator: ("tanh", 20, 100),
)
def pdlt(
    activation: Activation, depth: int = 20, width: int = 100, start: float = 1.0, n_out: int = 1
) -> Finding:
    """Tell how to initialise networks of an activation, and what is left of randomness at a depth and a width.

    Args:
        activation: a module, a function of tensors, or one of the names of `engines.limits.scalars.NAMED`.
        depth, width: of the network in question.
        start: K_1, the variance of the first pre-activations.
        n_out: outputs, for the optimal ratio.

    The numbers: `weight_var` (C_W, variance of weights times fan-in) and `bias_var` (C_b); `last_variance`, K at
    the depth; `chi_par` and `chi_perp` there; `fluctuation`, cov(z_i^2, z_j^2) / K^2 there to leading order;
    `growth` nu; `depth_over_width`; `optimal_depth` for the width by the rule of thumb.

    Raises:
        WorkingPapersError: where the activation has no critical initialisation.
    """
    if depth < 1 or width < 1 or not start > 0:
        raise WorkingPapersError(
            f"depth and width are at least 1, K_1 above 0; got {depth}, {width}, {start}"
        )
    found = _critical(activation)
    how = (found.weight_var, found.bias_var, start)
    flow = variance_flow(activation, depth, *how)
    along, across = susceptibilities(activation, flow[-1], found.weight_var)
    spread = four_point(activation, [width] * (depth - 1), *how)
    nu = growth(activation)
    numbers = {
        "weight_var": found.weight_var,
        "bias_var": found.bias_var,
        "last_variance": flow[-1],
        "chi_par": along,
        "chi_perp": across,
        "fluctuation": spread[-1],
        "growth": nu,
        "depth_over_width": depth / width,
        "optimal_depth": 4 / (20 + 3 * n_out) / nu * width,
    }
    return Finding(
        numbers,
        f"Critical ({found.kind}) at C_W = {found.weight_var:.4g} and C_b = {found.bias_var:.4g}, where the "
        f"variance of layer {depth} is {flow[-1]:.3g} and differs by {math.sqrt(spread[-1]):.0%} between networks.",
        lambda: _draw(flow, spread),
        {"criticality": found, "variances": flow, "fluctuations": spread},
    )


def _draw(flow: list[float], spread: list[float]) -> Any:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7, 3), layout="constrained")
    layers = range(1, len(flow) + 1)
    left.plot(layers, flow, ".-")
    left.set(xlabel="layer", ylabel="variance of pre-activations", yscale="log")
    right.plot(layers, spread, ".-")
    right.set(xlabel="layer", ylabel="relative variance between networks")
    return figure


def _model_example(generator: torch.Generator) -> tuple[Any, ...]:
    model = mlp([6, 20, 20, 3])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return model, torch.randn(50, 6, generator=generator)


@paper("pdlt", part="model", kind="analysis", example=_model_example)
def model_criticality(model: nn.Module, x: Tensor) -> Finding:
    """Say how far from critical a model's own layers are, on inputs `x` (N, ...).

    The numbers: the product over layers of chi_perp (`gradients`, the factor on squared gradients from the last
    layer to the first) and of chi_par (`signals`), both over layers that no normalisation resets; `worst`, the
    chi_perp furthest from 1 on a log scale; `depth_over_width`.  `details["layers"]` has all of them
    (see `layer_criticality`).
    """
    layers = layer_criticality(model, x)
    free = [layer for layer in layers if not layer.normalised]
    tiny = 1e-30
    logs = [math.log(max(layer.chi_perp, tiny)) for layer in free]
    along = [math.log(max(abs(layer.chi_par), tiny)) for layer in free]
    worst = max(layers, key=lambda layer: abs(math.log(max(layer.chi_perp, tiny))))
    numbers = {
        "gradients": math.exp(min(sum(logs), 700.0)),
        "signals": math.exp(min(sum(along), 700.0)),
        "worst": worst.chi_perp,
        "depth_over_width": depth_to_width(model),
    }
    return Finding(
        numbers,
        f"Squared gradients change by a factor of {numbers['gradients']:.3g} over {len(free)} layers, and layer "
        f"{worst.name!r} is furthest from critical with {worst.chi_perp:.3g}.",
        details={"layers": layers},
    )


def _init_example(generator: torch.Generator) -> tuple[Any, ...]:
    return (mlp([64, *[200] * 8], activation=nn.GELU),)


def _promise(model: nn.Module) -> dict[str, tuple[float, float, float]]:
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    weights = [float(m.weight.detach().square().mean()) * m.in_features for m in layers]
    biases = torch.cat([m.bias.detach() for m in layers])
    return {
        "weight variance times fan-in": (sum(weights) / len(weights), 1.9, 2.07),
        "bias variance": (float(biases.square().mean()), 0.14, 0.21),
    }


@paper("pdlt", part="init", kind="initializer", example=_init_example, promise=_promise)
def critical_init_(
    model: nn.Module,
    activation: Activation | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Draw all linear and convolution layers of `model` critically for its activation, in place; return the model.

    Weights are N(0, C_W / fan-in), biases N(0, C_b).  The activation is the model's own by default.

    Raises:
        WorkingPapersError: where the model has none, or several, and none is given, or none is critical.
    """
    from workingpapers.surgery.activations import module_named

    if activation is None:
        own = {module_named(m, n): m for n, m in model.named_modules() if module_named(m, n) is not None}
        if len(own) != 1:
            raise WorkingPapersError(
                f"give the activation: the model has {len(own)} kinds of activation modules"
            )
        activation = next(iter(own.values()))
    found = _critical(activation)
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, WEIGHTED)):
            layer.weight.normal_(
                0, math.sqrt(found.weight_var / layer.weight[0].numel()), generator=generator
            )
            if layer.bias is not None:
                layer.bias.normal_(0, math.sqrt(found.bias_var), generator=generator)
    return model


@claim(
    "pdlt",
    "Tuning initialisation to criticality solves exploding and vanishing gradients, with activations falling into "
    "a few universality classes.",
    seeds=5,
    holds=all_of(
        between(0.5, 2.0, of="relu_critical"),
        below(1e-4, of="relu_low", by="every"),
        above(1e3, of="relu_high", by="every"),
        between(-1.3, -0.7, of="tanh_power"),
        below(0.0, of="critical_minus_low"),
        below(0.0, of="critical_minus_high"),
    ),
)
def critical_signals(budget: Budget, seed: int) -> Evidence:
    """Depth 50, width 200: size of layer 50 over layer 5 in 30 draws; training loss of ReLU nets on digits."""
    figures = {}
    for name in ("relu", "tanh", "gelu"):
        found = criticality(name)
        for word, factor in (("critical", 1.0), ("low", 0.7), ("high", 1.3)):
            layers = draw_layers(name, [200] * 50, 30, factor * found.weight_var, found.bias_var, 1.0, seed)
            sizes = [float(z.square().mean()) for z in layers]
            figures[f"{name}_{word}"] = sizes[49] / sizes[4]
            if (name, word) == ("tanh", "critical"):
                figures["tanh_power"] = power_of_layer(sizes, 5)
    split = images("digits", train=budget.pick(quick=500, full=1400), test=100, seed=seed)
    losses = {}
    for word, factor in (("critical", 1.0), ("low", 0.7), ("high", 1.3)):
        runs = []
        for lr in budget.pick(quick=(1e-3, 1e-2), full=(1e-4, 1e-3, 1e-2, 1e-1)):
            model = initialise(lambda f=factor: scaled_mlp(nn.ReLU, 50, 200, 2 * f), seed)  # type: ignore[misc]
            done = fit(model, split, steps=200, lr=lr, optimizer="sgd", batch=32, seed=seed, every=40)
            last = done.curve[-1]["train_loss"]
            runs.append(last if math.isfinite(last) else 10.0)  # a run that diverged has no loss
        losses[word] = min(runs)
    return Evidence(
        **figures,
        critical_loss=losses["critical"],
        critical_minus_low=losses["critical"] - losses["low"],
        critical_minus_high=losses["critical"] - losses["high"],
    )


@claim(
    "pdlt",
    "Departures of network outputs from Gaussian behaviour are controlled by the ratio of depth to width.",
    seeds=5,
    holds=all_of(between(4.0, 6.0, of="slope"), below(0.2, of="apart")),
)
def depth_over_width(budget: Budget, seed: int) -> Evidence:
    """Critical ReLU nets of width 50, 100, 200: cov(z_i^2, z_j^2) / K^2 against (l - 1) / n below 0.1."""
    draws = budget.pick(quick=4000, full=40_000)
    points, curves = [], []
    for n in (50, 100, 200):
        layers = draw_layers("relu", [n] * 20, draws, 2.0, seed=3 * seed + n)
        found = [squares_covariance(z) for z in layers]
        points += [((i) / n, v) for i, v in enumerate(found) if 0 < i / n < 0.1]
        curves.append([found[round(r * n)] for r in (0.04, 0.06, 0.08)])
    r, y = torch.tensor(points, dtype=torch.float64).T
    # the slope at small r: leading order is linear, the next order is fitted beside it
    slope, bend = torch.linalg.lstsq(torch.stack([r, r * r], 1), y).solution.tolist()
    apart = max(max(values) / min(values) - 1 for values in zip(*curves, strict=True))
    return Evidence(slope=slope, bend=bend, apart=apart)
