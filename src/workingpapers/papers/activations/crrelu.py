"""CRReLU: ReLU with a learned, Gaussian-damped bump, and the entropy calculus that it came from.

    crrelu(x) = max(0, x) + eps * x * exp(-x^2 / 2),  eps learned from 0.01

An invertible activation f with inverse y turns inputs of density p into outputs of entropy
H[y] = -int p(y) y' log(p(y) y') dx.  Among maps onto a fixed interval the distribution function of p has the
largest entropy (the worst activation); along eta = -(p'(y) y' + p(y) y'' / y') the entropy of y + eps eta falls
by eps int eta^2 dx.  On the positive half of ReLU eta = x exp(-x^2/2) / sqrt(2 pi); eps absorbs sign and scale.

Paper: "A Method on Searching Better Activation Functions" (2024), Sections 3 and 4.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import images, text
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most, between
from workingpapers.kernels import pointwise
from workingpapers.kernels.pointwise import per_channel
from workingpapers.tasks import Budget, LanguageModelling, char_gpt, fit, initialise, vit

Function = Callable[[Tensor], Tensor]

START = 0.01  # of eps


@pointwise
def crrelu(x: Tensor, eps: float | Tensor = START) -> Tensor:
    """Return max(0, x) + eps x exp(-x^2 / 2) of `x` (any shape, floating)."""
    return x.relu() + eps * (x * torch.exp(-0.5 * x * x))


@paper("crrelu", smooth=False, zero_at_zero=True, variants=[{"trainable": False}, {"channels": 7}])
class CRReLU(nn.Module):
    """Apply `crrelu` to a tensor of any shape.

    Args:
        eps: where the size of the bump starts; 0.01 in the paper.
        trainable: learn eps, as the paper does.
        channels: learn one eps for each of so many channels (the second dimension of inputs).
    """

    def __init__(self, eps: float = START, trainable: bool = True, channels: int | None = None) -> None:
        super().__init__()
        if not math.isfinite(eps):
            raise WorkingPapersError(f"CRReLU starts from a finite eps; got {eps}")
        if channels is not None and not trainable:
            raise WorkingPapersError(f"a fixed eps is the same in all channels; got channels={channels}")
        self.start, self.channels = float(eps), channels
        full = torch.full((channels,) if channels else (), self.start)
        self.eps: Tensor | float = nn.Parameter(full) if trainable else self.start

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return crrelu(x, per_channel(self.eps, x) if isinstance(self.eps, Tensor) else self.eps)

    def extra_repr(self) -> str:
        """Name where eps starts and, where they differ from the defaults, the other options."""
        channels = f", channels={self.channels}" if self.channels is not None else ""
        return f"eps={self.start:g}{channels}" + ("" if isinstance(self.eps, Tensor) else ", trainable=False")


def normal(mean: float | Tensor = 0.0, std: float | Tensor = 1.0) -> Function:
    """Return the density of the normal distribution as a function of a tensor."""
    return lambda t: torch.exp(-0.5 * ((t - mean) / std).square()) / (std * math.sqrt(2 * math.pi))


def slope(function: Function, t: Tensor) -> Tensor:
    """Return the derivative of an elementwise `function` at each element of `t`, itself differentiable."""
    found: Tensor = torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]
    return found


def worst_activation(density: Function, grid: Tensor) -> Tensor:
    """Return the map onto [0, 1] of the largest output entropy on an ascending `grid` (N,): p's distribution
    function, summed up by trapezoids and scaled so that the grid's ends go to 0 and 1 (WAFBC, Section 3.2).
    """
    total = torch.cumulative_trapezoid(density(grid), grid)
    return F.pad(total / total[-1], (1, 0))


def correction(activation: Function, density: Function, t: Tensor) -> Tensor:
    """Return eta at the outputs x = activation(t): -(p'(t) / f'(t) - p(t) f''(t) / f'(t)^2) (Section 3.3).

    It is what to add to the inverse, times eps, for less entropy; 0 where f is flat and has no inverse.
    """
    first = slope(activation, t)
    second = slope(partial(slope, activation), t)
    invertible = first != 0
    safe = torch.where(invertible, first, torch.ones_like(first))
    return torch.where(invertible, (density(t) * second / safe - slope(density, t)) / safe, 0.0)


def entropy(activation: Function, density: Function, grid: Tensor) -> float:
    """Return the differential entropy (nats) of the outputs of an increasing `activation`, by quadrature.

    It is -int p log(p / f') dt over the ascending `grid` (N,), which has to cover where p is.
    """
    return _entropy(density(grid), slope(activation, grid), grid)


def corrected_entropy(activation: Function, density: Function, grid: Tensor, eps: float) -> float:
    """Return the entropy of the outputs once eps * `correction` was added to the inverse of `activation`."""

    def moved(t: Tensor) -> Tensor:
        return t + eps * correction(activation, density, t)

    stretch = slope(moved, grid)
    if not bool((stretch > 0).all()):
        raise WorkingPapersError(f"a step of eps={eps:g} folds the inverse over itself; take a smaller one")
    return _entropy(density(moved(grid)) * stretch, slope(activation, grid), grid)


def first_variation(activation: Function, density: Function, grid: Tensor) -> float:
    """Return int eta^2 dx, by which times eps the entropy falls to first order."""
    eta = correction(activation, density, grid)
    return float(torch.trapezoid(eta.square() * slope(activation, grid), grid))


def _entropy(mass: Tensor, steepness: Tensor, grid: Tensor) -> float:
    """Return -int mass log(mass / steepness) dt, where 0 log 0 is 0."""
    there = mass > 0
    log = torch.where(there, mass, 1.0).log() - torch.where(there, steepness, 1.0).log()
    return float(-torch.trapezoid(torch.where(there, mass * log, 0.0), grid))


def sample_entropy(samples: Tensor, neighbour: int = 3) -> float:
    """Estimate the differential entropy (nats) of `samples` (N,) by distances to the nearest neighbours.

    Kozachenko and Leonenko's estimator: psi(N) - psi(k) + mean log(2 distance to the k-th neighbour).
    """
    if samples.ndim != 1 or not 1 <= neighbour < len(samples):
        raise WorkingPapersError(
            f"the estimate takes a row of more than {neighbour} samples; got shape {tuple(samples.shape)}"
        )
    x = samples.double().sort().values
    low, high = (
        F.pad(x, sides, value=end) for sides, end in (((neighbour, 0), -math.inf), ((0, neighbour), math.inf))
    )
    reach = [  # of each window of k + 1 samples in a row around x
        torch.maximum(x - low[i : i + len(x)], high[i : i + len(x)] - x) for i in range(neighbour + 1)
    ]
    digamma = torch.digamma(torch.tensor([len(x), neighbour], dtype=torch.float64))
    return float(digamma[0] - digamma[1] + (2 * torch.stack(reach).amin(0)).log().mean())


class Corrected(nn.Module):
    """An elementwise activation moved along its entropy correction: f(t) + eps (p'(t) - p(t) f''(t) / f'(t)).

    This is the inverse of y + eps eta to first order in eps, p being normal.

    Args:
        activation: the elementwise function f; where it is flat it stays as it is.
        eps: start of the learned size of the step.
        online: follow the inputs' mean and deviation in training, as batch normalisation does; else N(0, 1).
        momentum: weight of the newest batch in the running mean and variance.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self, activation: Function, eps: float = START, online: bool = False, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.activation, self.online, self.momentum = activation, online, momentum
        self.eps = nn.Parameter(torch.tensor(float(eps)))
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("variance", torch.tensor(1.0))

    def forward(self, t: Tensor) -> Tensor:
        """Return the activation of `t`, same shape."""
        if self.online and self.training:
            with torch.no_grad():
                self.mean.lerp_(t.mean().to(self.mean.dtype), self.momentum)
                self.variance.lerp_(t.var(correction=0).to(self.mean.dtype), self.momentum)
        density = normal(self.mean, self.variance.sqrt())
        step = correction(self.activation, density, t) * slope(self.activation, t)
        return self.activation(t) - self.eps * step


FACTORIES: tuple[Callable[[], nn.Module], ...] = (
    CRReLU,
    nn.ReLU,
    nn.GELU,
    nn.ELU,
    nn.PReLU,
    nn.SiLU,
    nn.Mish,
)
ARMS = dict(zip(("crrelu", "relu", "gelu", "elu", "prelu", "silu", "mish"), FACTORIES, strict=True))


def moved_share(*models: nn.Module) -> float:
    """Return the share of CRReLU layers of the `models` whose eps is at least 0.005 away from its start."""
    moved = [
        float((m.eps.detach() - m.start).abs().mean()) >= 0.005
        for model in models
        for m in model.modules()
        if isinstance(m, CRReLU) and isinstance(m.eps, Tensor)
    ]
    return sum(moved) / len(moved)


@claim(
    "crrelu",
    "The corrected ReLU beats other variants of ReLU in vision transformers and GELU in fine-tuning a language "
    "model.",
    seeds=5,
    holds=all_of(
        at_least(-0.002, of="accuracy_over_relu"),
        at_most(0.005, of="loss_over_relu"),
        at_most(4, of="better_rank"),
        at_least(0.5, of="moved"),
    ),
)
def transformers(budget: Budget, seed: int) -> Evidence:
    """Accuracy of a vision transformer on Fashion-MNIST, loss of a character GPT, each with seven activations.

    `better_rank` is the better of the two places among the seven; `moved` the share of layers whose eps moved.
    The language model is trained from scratch, Adam at one rate for all.
    """
    train, size = budget.pick(quick=2000, full=6000), budget.pick(quick=16, full=28)
    split = images("fashion_mnist", train=train, test=2000, size=size, seed=seed)
    corpus, depth = text("tinyshakespeare"), budget.pick(quick=2, full=4)
    steps, dim = budget.pick(quick=120, full=500), budget.pick(quick=64, full=128)
    accuracy, loss, trained = {}, {}, []
    for name, activation in ARMS.items():
        sight = initialise(
            partial(vit, 1, split.x_train.shape[-1], 4, 10, depth=depth, activation=activation), seed
        )
        epochs = budget.pick(quick=2, full=6)
        accuracy[name] = fit(sight, split, epochs=epochs, every=10**6, seed=seed).metrics["accuracy"]
        tongue = initialise(partial(char_gpt, len(corpus.vocabulary), dim=dim, activation=activation), seed)
        problem = LanguageModelling(corpus, budget.pick(quick=32, full=64))
        run = fit(tongue, problem, steps=steps, batch=16, lr=3e-3, seed=seed, every=steps)
        loss[name] = run.metrics["loss"]
        trained += [sight, tongue] if name == "crrelu" else []
    ranks = (
        1 + sum(accuracy[name] > accuracy["crrelu"] for name in ARMS),
        1 + sum(loss[name] < loss["crrelu"] for name in ARMS),
    )
    return Evidence(
        accuracy_over_relu=accuracy["crrelu"] - accuracy["relu"],
        loss_over_relu=loss["crrelu"] - loss["relu"],
        loss_over_gelu=loss["crrelu"] - loss["gelu"],
        better_rank=min(ranks),
        moved=moved_share(*trained),
    )


@claim(
    "crrelu",
    "Information entropy singles out a worst activation under boundary conditions, and a Taylor-type correction "
    "term moves any activation away from it.",
    seeds=5,
    holds=all_of(
        at_least(-1e-3, of="margin", by="every"),
        at_most(0.02, of="sample_error", by="every"),
        between(0.8, 1.2, of="tanh_drop", by="every"),
        between(0.8, 1.2, of="softplus_drop", by="every"),
    ),
)
def worst_and_better(budget: Budget, seed: int) -> Evidence:
    """Entropies of maps onto [0, 1] under N(0, 1), and the drop after a step of 0.02 over its prediction.

    `margin` is the distribution function's entropy less the largest of the others; `sample_error` the largest
    distance of an estimate from 200,000 samples to the quadrature.
    """

    def cdf(t: Tensor) -> Tensor:
        tail: Tensor = torch.special.erfc(-t * 0.5**0.5)  # torch's ndtr is 0 below -8
        return tail / 2

    maps: dict[str, Function] = {
        "cdf": cdf,
        "tanh": lambda t: (torch.tanh(t) + 1) / 2,
        "sigmoid": torch.sigmoid,
        "root": lambda t: cdf(t).sqrt(),
        "square": lambda t: cdf(t).square(),
    }
    grid, p, eps = torch.linspace(-9, 9, 60_001, dtype=torch.float64), normal(), 0.02
    found = {name: entropy(f, p, grid) for name, f in maps.items()}
    count = budget.pick(quick=200_000, full=2_000_000)
    z = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    errors = [abs(sample_entropy(f(z)) - found[name]) for name, f in maps.items()]
    drops = [
        (entropy(f, p, grid) - corrected_entropy(f, p, grid, eps)) / (eps * first_variation(f, p, grid))
        for f in (torch.tanh, F.softplus)
    ]
    margin = found.pop("cdf") - max(found.values())
    return Evidence(margin=margin, sample_error=max(errors), tanh_drop=drops[0], softplus_drop=drops[1])
