"""Mish: an input gated by the hyperbolic tangent of its softplus.

    mish(x) = x * tanh(log(1 + exp(x)))

Smooth, unbounded above, bounded below by -0.30884 (at x = -1.19243), with a small dip left of zero.  Its
derivative is a preconditioned Swish plus the gate: mish'(x) = sech^2(softplus x) * swish(x) + mish(x) / x.

Paper: "Mish: A Self Regularized Non-Monotonic Activation Function" (2019), Sections 2 and 3.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.kernels import pointwise
from workingpapers.papers.activations._common import cifar, trained_cnn
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, fit, initialise, mlp

Factory = Callable[[], nn.Module]


@pointwise
def mish(x: Tensor) -> Tensor:
    """Return x * tanh(softplus(x)) with one exponential, that of -|x|, so that the slope keeps its digits.

    tanh(log(1 + e)) = n / (n + 2) for n = e * (e + 2) and e = exp(x); for e = exp(-x) it is
    (1 + 2e) / (1 + 2e + 2e^2).
    """
    right = x > 0
    e = torch.exp(torch.where(right, -x, x))
    n = torch.where(right, 1 + 2 * e, e * (e + 2))
    return x * (n / (n + torch.where(right, 2 * e * e, 2)))


@pointwise
def preconditioner(x: Tensor) -> Tensor:
    """Return Delta(x) = sech^2(softplus(x)), in (0, 1), by which Swish enters Mish's derivative (Section 2)."""
    e = torch.exp(x.clamp(max=20))
    n = e * (e + 2)
    return 4 * (n + 1) / (n + 2).square()


@pointwise
def mish_derivative(x: Tensor) -> Tensor:
    """Return mish'(x) = Delta(x) * swish(x) + mish(x) / x, the last being the gate tanh(softplus(x))."""
    e = torch.exp(x.clamp(max=20))
    n = e * (e + 2)
    return preconditioner(x) * x * torch.sigmoid(x) + n / (n + 2)


@pointwise
def hard_mish(x: Tensor) -> Tensor:
    """Return x / 2 * min(2, max(0, x + 2)), an approximation of Mish without exponentials."""
    return x / 2 * (x + 2).clamp(0, 2)


@paper("mish", smooth=True, monotone=False, zero_at_zero=True)
class Mish(nn.Module):
    """Apply `mish` to a tensor of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return mish(x)


@paper("mish", part="hard", smooth=False, monotone=False, zero_at_zero=True)
class HardMish(nn.Module):
    """Apply `hard_mish` to a tensor of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return hard_mish(x)


def output_landscape(
    activation: Factory,
    *,
    layers: int = 5,
    width: int = 32,
    points: int = 128,
    extent: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """Return a random network's output on a grid (points, points) over the square [-extent, extent]^2.

    The network has `layers` linear layers with weights of variance 2 / fan-in, the same for every activation.
    """
    model = initialise(lambda: mlp([2, *[width] * (layers - 1), 1], activation), seed)
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-extent, extent, points)
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.ndim == 2):
            weight.normal_(0, (2 / weight.shape[1]) ** 0.5, generator=generator)
        grid = torch.cartesian_prod(axis, axis)
        outputs: Tensor = model(grid)
    return outputs.view(points, points)


def roughness(landscape: Tensor) -> dict[str, float]:
    """Measure a landscape (N, N) by how its gradient changes from one grid point to the next.

    `total_variation`: the mean total variation of the slope along a grid line; `sharpest`: the largest
    single change.  Both are relative to the root-mean-square slope, so that steepness alone does not count.
    """
    slopes = [landscape.diff(dim=d) for d in (0, 1)]
    size = torch.cat([s.flatten() for s in slopes]).square().mean().sqrt()
    turns = [s.diff(dim=d).abs() / size for d, s in enumerate(slopes)]
    variation = torch.cat([t.sum(dim=d).flatten() for d, t in enumerate(turns)])
    return {"total_variation": float(variation.mean()), "sharpest": max(float(t.max()) for t in turns)}


def loss_landscape(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    points: int = 11,
    radius: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Return `loss(model)` on a grid (points, points) of weights around the model's own, which are put back.

    The two directions are random; each filter of a direction has the norm of the model's filter, and biases
    and normalisation stay, as in the filter-normalised plots of the paper (Section 3).
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [p for p in model.parameters() if p.ndim > 1]
    own = [p.detach().clone() for p in weights]
    one, other = ([_like(p, generator) for p in own] for _ in range(2))
    steps = torch.linspace(-radius, radius, points).tolist()
    found = torch.empty(points, points)
    with torch.no_grad():
        for i, a in enumerate(steps):
            for j, b in enumerate(steps):
                for p, start, u, v in zip(weights, own, one, other, strict=True):
                    p.copy_(start + a * u + b * v)
                found[i, j] = loss(model)
        for p, start in zip(weights, own, strict=True):
            p.copy_(start)
    return found


def _like(weight: Tensor, generator: torch.Generator) -> Tensor:
    direction = torch.randn(weight.shape, generator=generator).to(weight)
    norms = [t.flatten(1).norm(dim=1).view(-1, *[1] * (t.ndim - 1)) for t in (weight, direction)]
    scaled: Tensor = direction * (norms[0] / norms[1])
    return scaled


def sparsity(
    model: nn.Module,
    x: Tensor,
    kinds: type[nn.Module] | tuple[type[nn.Module], ...] = Mish,
    threshold: float = 1e-3,
) -> dict[str, float]:
    """Return by module the share of outputs within `threshold` of zero, for modules of the given `kinds`."""
    return {n: float((y.abs() <= threshold).double().mean()) for n, y in collect(model, x, kinds).items()}


def deep_net(activation: Factory, depth: int, features: int = 784, width: int = 100) -> nn.Sequential:
    """Build the fully connected network of the paper's depth test: `depth` layers, BatchNorm, dropout of 25 %."""
    if depth < 2:
        raise WorkingPapersError(f"a deep net has at least 2 layers; got {depth}")
    return mlp([features, *[width] * (depth - 1), 10], activation, norm=nn.BatchNorm1d, dropout=0.25)


def deep_net_accuracy(
    activation: Factory,
    split: Split,
    *,
    depth: int = 15,
    lr: float = 3e-3,
    epochs: int = 5,
    noise: float = 0.0,
    init: Callable[[nn.Module], object] | None = None,
    seed: int = 0,
) -> float:
    """Train `deep_net` by Adam and return its test accuracy, for the paper's three tests (Section 3).

    Depth: vary `depth`.  Noise: Gaussian of the deviation `noise` is added to all inputs.  Initialisation:
    `init` is called on the fresh network.
    """
    generator = torch.Generator().manual_seed(seed)
    if noise:
        x_train, x_test = (
            x + noise * torch.randn(x.shape, generator=generator) for x in (split.x_train, split.x_test)
        )
        split = replace(split, x_train=x_train, x_test=x_test)
    model = initialise(lambda: deep_net(activation, depth, split.x_train[0].numel()), seed)
    if init is not None:
        init(model)
    return fit(model, split, epochs=epochs, lr=lr, seed=seed).metrics["accuracy"]


@claim(
    "mish",
    "It outperforms widely used activations on standard benchmarks.",
    seeds=5,
    holds=all_of(
        at_least(-0.01, of="accuracy_over_relu"),
        at_least(-0.02, of="accuracy_over_swish"),
        at_least(0.80, of="accuracy"),
        at_most(0.01, of="drop_over_relu"),
    ),
)
def deep_dense_nets(budget: Budget, seed: int) -> Evidence:
    """Fully connected nets of 15 and 20 layers on MNIST; each activation has the better of two learning rates."""
    split = images(
        "mnist",
        train=budget.pick(quick=5000, full=60000),
        test=budget.pick(quick=2000, full=10000),
        seed=seed,
    )
    epochs = budget.pick(quick=5, full=20)
    best = {
        (name, depth): max(
            deep_net_accuracy(activation, split, depth=depth, lr=lr, epochs=epochs, seed=seed)
            for lr in (3e-3, 1e-2)
        )
        for name, activation in {"mish": Mish, "relu": nn.ReLU, "swish": nn.SiLU}.items()
        for depth in (15, 20)
    }
    drop = {name: best[name, 15] - best[name, 20] for name in ("mish", "relu")}
    return Evidence(
        accuracy=best["mish", 20],
        accuracy_over_relu=best["mish", 20] - best["relu", 20],
        accuracy_over_swish=best["mish", 20] - best["swish", 20],
        drop_over_relu=drop["mish"] - drop["relu"],
    )


@claim(
    "mish",
    "Results hold over many combinations of architectures, and its first derivative may act as a regulariser "
    "that eases optimisation.",
    seeds=5,
    holds=all_of(at_least(-0.015, of="accuracy_over_relu"), at_least(0.38, of="accuracy")),
)
def convolutional_nets(budget: Budget, seed: int) -> Evidence:
    """Residual CNN on CIFAR-10 against ReLU; also how sharply random landscapes turn, which no rule judges."""
    split, epochs = cifar(budget, seed), budget.pick(quick=5, full=30)
    accuracy = {
        name: trained_cnn(activation, split, epochs=epochs, seed=seed)[1].metrics["accuracy"]
        for name, activation in {"mish": Mish, "relu": nn.ReLU}.items()
    }
    sharpest = {
        name: roughness(output_landscape(activation, seed=seed))["sharpest"]
        for name, activation in {"mish": Mish, "relu": nn.ReLU}.items()
    }
    return Evidence(
        accuracy=accuracy["mish"],
        accuracy_over_relu=accuracy["mish"] - accuracy["relu"],
        sharpness_over_relu=sharpest["mish"] / sharpest["relu"],
    )
