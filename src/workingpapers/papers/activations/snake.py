"""Snake: a linear activation with a periodic part, so that networks learn and continue periodic functions.

    snake(x; a) = x + sin^2(a x) / a = x + (1 - cos(2 a x)) / (2 a)

Its derivative, 1 + sin(2 a x), lies in [0, 2]; a sets the frequency, and the limit for a -> 0 is x.
Variance under a standard normal input, by which weights are scaled: 1 + (1 - exp(-4 a^2))^2 / (8 a^2).

Paper: "Neural Networks Fail to Learn Periodic Functions and How to Fix It" (2020), Sections 3 to 5.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most, below
from workingpapers.kernels import pointwise
from workingpapers.papers.activations._init import fans, placed_layers
from workingpapers.tasks import Budget, cnn, fit, initialise, mlp

Factory = Callable[[], nn.Module]


@pointwise
def snake(x: Tensor, a: float | Tensor = 1.0) -> Tensor:
    """Return x + sin^2(a x) / a, written as x + a x^2 sinc^2(a x), which needs no division and holds at a = 0."""
    return x + a * (x * torch.sinc(a * x / math.pi)).square()


@paper("snake", smooth=True, monotone=True, zero_at_zero=True, lipschitz=2.0)
class Snake(nn.Module):
    """Apply `snake` to a tensor of any shape.

    Args:
        a: frequency, at least 0; 1 for ordinary tasks, 5 to 50 where the data are known to be periodic.
        trainable: learn a as exp of a parameter, which keeps it positive.
        channels: with `trainable`, learn one a for each of so many channels (the second dimension of inputs).
    """

    def __init__(self, a: float = 1.0, trainable: bool = False, channels: int | None = None) -> None:
        super().__init__()
        if not (a > 0 or (a == 0 and not trainable)) or math.isinf(a):
            raise WorkingPapersError(f"Snake takes a frequency a > 0 (or 0 where it stays fixed); got {a}")
        if channels is not None and not trainable:
            raise WorkingPapersError(f"a fixed a is the same in all channels; got channels={channels}")
        self.trainable, self.channels = trainable, channels
        if trainable:
            self.log_a = nn.Parameter(torch.full((channels,) if channels else (), math.log(a)))
        self._fixed = float(a)

    @property
    def a(self) -> Tensor | float:
        """The frequency: a number, or where it is learned a tensor of shape () or (channels,)."""
        return self.log_a.exp() if self.trainable else self._fixed

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        a = self.a
        if isinstance(a, Tensor) and a.ndim:
            a = a.view(-1, *[1] * (x.ndim - 2))
        return snake(x, a)

    def extra_repr(self) -> str:
        """Name the options that differ from the defaults, and a."""
        channels = f", channels={self.channels}" if self.channels is not None else ""
        return f"a={self._fixed:g}" + (f", trainable=True{channels}" if self.trainable else "")


@paper("snake", part="x_plus_sin", smooth=True, monotone=True, odd=True, lipschitz=2.0)
class XPlusSin(nn.Module):
    """Apply x + sin x, a Snake of a = 1/2 moved along its diagonal: snake(x + pi / 2; 1/2) - 1 - pi / 2."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return x + torch.sin(x)


@paper("snake", part="x_plus_cos", smooth=True, monotone=True, zero_at_zero=False, lipschitz=2.0)
class XPlusCos(nn.Module):
    """Apply x + cos x, a Snake of a = 1/2 moved along its diagonal: snake(x + pi; 1/2) - 1 - pi."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return x + torch.cos(x)


@paper("snake", part="sin", smooth=True, odd=True, bounded=(-1.0, 1.0), lipschitz=1.0)
class Sine(nn.Module):
    """Apply sin x, the periodic activation without a linear part."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return torch.sin(x)


def snake_moments(a: float) -> tuple[float, float]:
    """Return mean and variance of snake(z; a) for standard normal z (Section 5, Proposition 1)."""
    if a == 0:
        return 0.0, 1.0
    return -math.expm1(-2 * a * a) / (2 * a), 1 + math.expm1(-4 * a * a) ** 2 / (8 * a * a)


def snake_gain(a: float) -> float:
    """Return 1 over the root of snake's second moment, by which the weights behind it keep the variance."""
    mean, variance = snake_moments(a)
    return 1 / math.sqrt(mean * mean + variance)


def _example(generator: torch.Generator) -> tuple[nn.Module]:
    activations = [Snake(), Snake(5.0), Snake(0.5, trainable=True, channels=400)]
    widths = [nn.Linear(400, 400) for _ in range(4)]
    return (
        nn.Sequential(widths[0], *(m for pair in zip(activations, widths[1:], strict=True) for m in pair)),
    )


def _promise(model: nn.Module) -> dict[str, tuple[float, float, float]]:
    x = torch.randn(500, 400, generator=torch.Generator().manual_seed(12345))
    found = {}
    with torch.no_grad():
        for name, module in model.named_children():
            x = module(x)
            if isinstance(module, nn.Linear):
                found[f"variance before activation {name}"] = (float(x.square().mean()), 0.8, 1.25)
    return found


@paper("snake", part="init", kind="initializer", example=_example, promise=_promise)
def snake_init_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw the weights of `model` in place so that what enters every Snake has variance 1; return the model.

    Each linear or convolution layer gets N(0, 1 / (fan_in v)), v the second moment of the Snake that feeds it
    (1 where none does: inputs are taken to be standardised), and zero biases.  `generator`: torch's global one
    by default.  Section 5, with the second moment in place of the variance: outputs have a mean, too.
    """
    for placed in placed_layers(model, lambda m: isinstance(m, Snake)):
        moment = 1.0
        if isinstance(placed.before, Snake):
            a = torch.as_tensor(placed.before.a).detach().reshape(-1).tolist()
            moment = sum(snake_gain(value) ** -2 for value in a) / len(a)
        for name, parameter in placed.layer.named_parameters(recurse=False):
            std = (fans(placed.layer)[0] * moment) ** -0.5 if name == "weight" else 0.0
            with torch.no_grad():
                parameter.normal_(0, std, generator=generator)
    return model


def along_ray(model: nn.Module, direction: Tensor, distances: Tensor) -> dict[str, float]:
    """Measure how `model` behaves at the given `distances` (N) from the origin along `direction` (D).

    `from_constant` and `from_affine`: the largest distance of an output from its mean there, and from the line
    through its first and last value.  Far out a ReLU network is affine and a tanh network constant, whatever
    its weights (Section 2, Theorems 1 and 2).
    """
    with torch.no_grad():
        y: Tensor = model(distances[:, None] * direction).flatten(1)
    part = ((distances - distances[0]) / (distances[-1] - distances[0]))[:, None]
    line = y[:1] + part * (y[-1:] - y[:1])
    return {"from_constant": float((y - y.mean(0)).abs().max()), "from_affine": float((y - line).abs().max())}


def extrapolation_bench(
    build: Factory, x: Tensor, y: Tensor, cut: float, *, steps: int = 3000, lr: float = 1e-3, seed: int = 0
) -> dict[str, float]:
    """Fit a model from `build` to the points with x < `cut` by Adam, on all of them at once.

    x, y: (N, 1).  Returns the root-mean-square errors `inside` (the points fitted) and `outside` (the others),
    in the units of y.
    """
    left = x[:, 0] < cut
    if not 0 < int(left.sum()) < len(x):
        raise WorkingPapersError(f"the cut {cut:g} leaves no points on one side of it")
    mean, std = float(y[left].mean()), float(y[left].std())
    z = (y - mean) / std
    split = Split(x[left], z[left], x[~left], z[~left], 0, "series", mean, std)
    model = initialise(build, seed)
    trained = fit(model, split, steps=steps, lr=lr, batch=len(x), seed=seed, every=steps)
    with torch.no_grad():
        inside = (model(split.x_train) - split.y_train).square().mean().sqrt()
    return {"inside": float(inside) * std, "outside": trained.metrics["rmse"]}


def carbon_dioxide() -> tuple[Tensor, Tensor]:
    """Return years (N, 1) and monthly means of CO2 at Mauna Loa in ppm (N, 1), March 1958 to December 2001."""
    try:
        from statsmodels.datasets import co2
    except ImportError:
        raise WorkingPapersError(
            "this claim is measured on a series of statsmodels: pip install 'workingpapers[series]'"
        ) from None
    monthly = co2.load_pandas().data["co2"].resample("MS").mean().interpolate()
    years = [date.year + (date.month - 0.5) / 12 for date in monthly.index]
    return torch.tensor(years)[:, None], torch.tensor(monthly.to_list())[:, None]


@claim(
    "snake",
    "Standard activations such as ReLU, tanh and sigmoid provably cannot extrapolate simple periodic functions; "
    "the proposed unit can.",
    seeds=5,
    holds=all_of(
        at_most(0.3, of="snake", by="median"),
        *(at_least(0.5, of=name, by="median") for name in ("relu", "tanh", "swish")),
    ),
)
def sine_beyond_its_range(budget: Budget, seed: int) -> Evidence:
    """Error on sin x in [10, 20] after a fit to 512 noisy points in [-10, 10]; guessing 0 errs by 0.7."""
    generator = torch.Generator().manual_seed(seed)
    inside = 20 * torch.rand(512, 1, generator=generator) - 10
    outside = torch.linspace(10, 20, 501)[:, None]
    noisy = inside.sin() + 0.1 * torch.randn(512, 1, generator=generator)
    x, y = torch.cat([inside, outside]), torch.cat([noisy, outside.sin()])
    activations: dict[str, Factory] = {
        "snake": partial(Snake, trainable=True),
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "swish": nn.SiLU,
    }
    steps = budget.pick(quick=3000, full=20000)
    return Evidence(
        **{
            name: extrapolation_bench(partial(mlp, [1, 64, 64, 1], a), x, y, 10.0, steps=steps, seed=seed)[
                "outside"
            ]
            for name, a in activations.items()
        }
    )


@claim(
    "snake",
    "It works on real series prediction.",
    seeds=5,
    holds=all_of(at_most(0.5, of="over_relu"), below(3.0, of="snake")),
)
def carbon_dioxide_to_come(budget: Budget, seed: int) -> Evidence:
    """Error in ppm on CO2 from 1986 to 2001 after a fit to 1958 to 1985; a = 50 on time in decades.

    A first layer of PyTorch's default weights, in [-1, 1], reaches the yearly cycle (2 a w = 2 pi 10) from a = 32.
    """
    years, ppm = carbon_dioxide()
    activations: dict[str, Factory] = {"snake": partial(Snake, 50.0), "relu": nn.ReLU, "tanh": nn.Tanh}
    errors = {
        name: extrapolation_bench(
            partial(mlp, [1, 64, 64, 1], activation),
            (years - 1972) / 10,
            ppm,
            1.4,
            steps=budget.pick(quick=3000, full=30000),
            seed=seed,
        )["outside"]
        for name, activation in activations.items()
    }
    fitted, to_come = ppm[years < 1986], ppm[years >= 1986]
    naive = fitted[-12:].repeat(len(to_come) // 12)  # the last year again and again
    errors["seasonal_naive"] = float((naive - to_come).square().mean().sqrt())
    return Evidence(over_relu=errors["snake"] / errors["relu"], **errors)


@claim(
    "snake",
    "It keeps the easy optimisation of ReLU-type activations.",
    seeds=5,
    holds=all_of(at_least(-0.015, of="accuracy_over_relu"), at_least(0.90, of="accuracy")),
)
def ordinary_classification(budget: Budget, seed: int) -> Evidence:
    """Accuracy of a small CNN on MNIST, Snake of a = 1 against ReLU."""
    split = images(
        "mnist",
        train=budget.pick(quick=4000, full=60000),
        test=budget.pick(quick=2000, full=10000),
        seed=seed,
    )
    accuracy = {
        name: fit(
            initialise(partial(cnn, 1, 10, activation=activation), seed), split, epochs=3, seed=seed
        ).metrics["accuracy"]
        for name, activation in (("snake", Snake), ("relu", nn.ReLU))
    }
    return Evidence(accuracy=accuracy["snake"], accuracy_over_relu=accuracy["snake"] - accuracy["relu"])
