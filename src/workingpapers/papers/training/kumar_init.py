"""Kumar's initialisation: the weights' scale from the value and the slope of the activation at zero.

    v^2 = 1 / (N g'(0)^2 (1 + g(0)^2))         weights ~ Normal(0, v^2), biases 0, N inputs of each unit
    v^2 = 2 / N                                for ReLU, which has no slope at 0

Near zero g(y) = g(0) + g'(0) y, so units of variance 1 and mean g(0) give N v^2 (1 + g(0)^2) before the next
activation and g'(0)^2 times that behind it: v makes this 1.  ReLU halves the second moment instead; for it
and all that satisfies g(c y) = c g(y), c > 0, the rule is v^2 = 1 / (N E[g(z)^2]), z standard normal.

Paper: "On weight initialization in deep neural networks" (2017), Sections 2 and 3.
"""

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, between
from workingpapers.papers.training._behind import activations_behind
from workingpapers.papers.training._deep import LAYERS, TRANSPOSED, redraw_
from workingpapers.tasks import Budget, fit, initialise, mlp

Activation = Callable[[Tensor], Tensor]
Init = Callable[[nn.Module], nn.Module]


def _at(activation: Activation, y: float) -> float:
    return float(activation(torch.full((1, 1), y, dtype=torch.float64)).detach())


def _prepared(activation: Activation) -> Activation:
    """Return the activation as a float64 function of one number that leaves its input alone."""
    double = activation
    if isinstance(activation, nn.Module):
        double = copy.deepcopy(activation).double().eval()

    def apply(y: Tensor) -> Tensor:
        out = double(y.clone())
        if out.shape != y.shape:
            raise WorkingPapersError(f"{_name(activation)} is no function of single numbers")
        return out

    return apply


def _name(activation: Activation) -> str:
    return getattr(activation, "__name__", type(activation).__name__)


def value_and_slope(activation: Activation) -> tuple[float, float]:
    """Return g(0) and g'(0) of an elementwise activation, the slope by automatic differentiation in float64.

    Raises:
        WorkingPapersError: where the slopes from the left and from the right differ, or the activation is no
            function of single numbers.
    """
    g = _prepared(activation)
    zero = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    out = g(zero)
    slope = float(torch.autograd.grad(out.sum(), zero)[0]) if out.requires_grad else 0.0
    value, step = float(out.detach()), 1e-6
    left, right = (value - _at(g, -step)) / step, (_at(g, step) - value) / step
    if not max(abs(left - slope), abs(right - slope)) <= 1e-3 * max(1.0, abs(slope)):
        raise WorkingPapersError(
            f"{_name(activation)} has no slope at 0, where it rises by {left:.3g} from the left and by {right:.3g} "
            "to the right"
        )
    return value, slope


def homogeneous_gain(activation: Activation) -> float | None:
    """Return E[g(z)^2], z standard normal, of an activation with g(c y) = c g(y) for c > 0; None for others."""
    g = _prepared(activation)
    for y in (-1.0, 1.0):
        one = _at(g, y)
        if any(abs(_at(g, c * y) - c * one) > 1e-9 * c * max(1.0, abs(one)) for c in (1e-4, 0.3, 7.0, 1e4)):
            return None
    return (_at(g, 1.0) ** 2 + _at(g, -1.0) ** 2) / 2


def kumar_std(activation: Activation, fan_in: float) -> float:
    """Return the standard deviation of the weights before `activation`, of units with `fan_in` inputs.

    `activation` is an elementwise function or module.

    Raises:
        WorkingPapersError: where the activation has neither a slope at 0 nor is positively homogeneous, where
            that slope is 0, or `fan_in` is not positive.
    """
    if not fan_in > 0:
        raise WorkingPapersError(f"a unit has a positive number of inputs; got fan_in={fan_in}")
    gain = homogeneous_gain(activation)
    if gain is None:
        value, slope = value_and_slope(activation)
        gain = slope**2 * (1 + value**2)
    if gain < 1e-12:
        raise WorkingPapersError(
            f"{_name(activation)} is flat at 0, so no scale of the weights keeps a signal"
        )
    return 1 / math.sqrt(fan_in * gain)


def fan_in_of(layer: nn.Module) -> float:
    """Return how many inputs a unit of a linear or (transposed) convolution layer has."""
    any_layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d = layer  # type: ignore[assignment]
    if isinstance(layer, TRANSPOSED):  # a unit sees each input channel through kernel / stride of the taps
        taps = math.prod(k / s for k, s in zip(layer.kernel_size, layer.stride, strict=True))
        return float(layer.in_channels // layer.groups) * float(taps)
    return float(any_layer.weight[0].numel())


def _example(generator: torch.Generator) -> tuple[nn.Module]:
    layers = [nn.Conv2d(8, 32, 3), nn.ReLU(), nn.ConvTranspose2d(32, 32, 4, 2), nn.Sigmoid(), nn.Flatten()]
    return (nn.Sequential(*layers, nn.Linear(800, 400), nn.Softplus(), nn.Linear(400, 200)),)


def _promise(model: nn.Module) -> dict[str, tuple[float, float, float]]:
    gains = {"0": 0.5, "2": 0.078125, "5": (1 + math.log(2) ** 2) / 4, "7": 1.0}
    found = {}
    for name, gain in gains.items():
        layer = model.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        ratio = float(layer.weight.detach().square().mean()) * fan_in_of(layer) * gain
        found[f"variance of the weights of {name} over the rule's"] = (ratio, 0.9, 1.1)
    return found


@paper("kumar_init", example=_example, promise=_promise)
def kumar_init_(
    model: nn.Module, activation: Activation | None = None, generator: torch.Generator | None = None
) -> nn.Module:
    """Draw the weights of every linear and convolution layer of `model` in place, set biases to 0; return it.

    Args:
        model: any model; inputs are meant to have mean 0 and variance 1.
        activation: the one behind all layers, as in the paper; by default that behind each layer is found by
            `torch.fx`, and a layer without one, such as the last, counts as linear: v^2 = 1 / N.
        generator: for the weights; torch's global one by default.

    Raises:
        WorkingPapersError: as `kumar_std`, and where `torch.fx` cannot trace the model.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    found = activations_behind(model) if activation is None else dict.fromkeys(layers, activation)
    stds = {name: kumar_std(found.get(name, nn.Identity()), fan_in_of(m)) for name, m in layers.items()}
    for name, layer in layers.items():  # after all are known to have a scale
        nn.init.normal_(layer.weight, std=stds[name], generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model


SCALES: dict[str, Callable[[Activation], float]] = {
    "xavier": lambda g: 1.0,
    "he": lambda g: 2.0,
    "kumar": lambda g: kumar_std(g, 1) ** 2,
    "second_moment": lambda g: 1 / gaussian_second_moment(g),
}


def gaussian_second_moment(activation: Activation, variance: float = 1.0) -> float:
    """Return E[g(y)^2] for centred normal y of the given variance, by quadrature on 12 deviations in float64."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / (2 * math.pi) ** 0.5
    g = _prepared(activation)
    with torch.no_grad():
        return float(torch.trapezoid(g(variance**0.5 * z) ** 2 * density, z))


def predicted_variances(
    activation: Activation, scale: float, depth: int, variance: float = 1.0
) -> list[float]:
    """Return the first-order variance before each of `depth` activations, for N v^2 = `scale`.

    q_1 = scale * variance, then q <- scale (g'(0)^2 q + g(0)^2); for homogeneous g, q <- scale E[g(z)^2] q.
    """
    gain = homogeneous_gain(activation)
    value, slope2 = 0.0, gain or 0.0
    if gain is None:
        value, slope = value_and_slope(activation)
        slope2 = slope**2
    found = [scale * variance]
    while len(found) < depth:
        found.append(scale * (slope2 * found[-1] + value**2))
    return found


@torch.no_grad()
def measured_variances(
    activation: Activation,
    scale: float,
    depth: int,
    *,
    width: int = 1000,
    variance: float = 1.0,
    seed: int = 0,
) -> list[float]:
    """Return the variance before each activation of one random net on 200 normal inputs, for N v^2 = `scale`."""
    generator = torch.Generator().manual_seed(seed)
    x, found = variance**0.5 * torch.randn(200, width, generator=generator), []
    for _ in range(depth):
        y = x @ torch.randn(width, width, generator=generator) * (scale / width) ** 0.5
        found.append(float(y.square().mean()))
        x = activation(y)
    return found


@paper("kumar_init", part="recursion", kind="analysis", example=lambda g: (nn.Sigmoid(), 5, 100))
def variance_recursion(activation: Activation, depth: int = 10, width: int = 1000, seed: int = 0) -> Finding:
    """Return the last layer's variance over the first's, measured and to first order, under four scales.

    The scales N v^2 are Xavier's 1, He's 2, Kumar's, and 1 / E[g(z)^2], which ignores the slope.
    """
    numbers = {}
    for name, scale_of in SCALES.items():
        scale = scale_of(activation)
        measured = measured_variances(activation, scale, depth, width=width, seed=seed)
        predicted = predicted_variances(activation, scale, depth)
        numbers[f"{name} measured"] = measured[-1] / measured[0]
        numbers[f"{name} first order"] = predicted[-1] / predicted[0]
    best = min(SCALES, key=lambda name: abs(math.log(max(numbers[f"{name} measured"], 1e-300))))
    return Finding(
        numbers,
        f"Over {depth} layers of {_name(activation)} the variance changes least under the scale {best}.",
    )


# activation, depth, epochs; with less training no logistic net has left chance yet
NETS: dict[str, tuple[type[nn.Module], int, int]] = {
    "logistic": (nn.Sigmoid, 10, 15),
    "tanh": (nn.Tanh, 10, 3),
    "relu": (nn.ReLU, 20, 3),
}


@claim(
    "kumar_init",
    "A general weight scale for activations differentiable at zero, and a separate one for ReLU, keep signals "
    "healthy, while Xavier suits ReLU poorly.",
    seeds=5,
    holds=all_of(at_least(0.3, of="logistic"), at_least(0.1, of="relu"), between(-0.02, 0.02, of="tanh")),
)
def deep_nets_train(budget: Budget, seed: int) -> Evidence:
    """Accuracy on MNIST over Xavier's of nets of width 100, 10 layers deep (20 for ReLU), by SGD with momentum.

    Each takes the better of the rates 0.1 and 0.01.
    """
    train, test = budget.pick(quick=(5000, 2000), full=(50000, 10000))
    split = images("mnist", train=train, test=test, seed=seed)
    found: dict[str, float] = {}
    xavier = partial(redraw_, draw=nn.init.xavier_normal_)

    def accuracy(init_: Init, activation: type[nn.Module], depth: int, epochs: int, lr: float) -> float:
        model = initialise(lambda: init_(mlp([784, *[100] * depth, 10], activation)), seed)
        trained = fit(model, split, epochs=epochs, lr=lr, optimizer="sgd", seed=seed, every=10**6)
        return 0.1 if trained.diverged else trained.metrics["accuracy"]

    for name, net in NETS.items():
        best = [max(accuracy(init_, *net, lr=lr) for lr in (0.1, 0.01)) for init_ in (kumar_init_, xavier)]
        found |= {name: best[0] - best[1], f"{name}_accuracy": best[0]}
    return Evidence(**found)


@claim(
    "kumar_init",
    "Non-linearity, through the behaviour of the activation at zero, decides the proper scale.",
    seeds=5,
    holds=all_of(
        between(1 / 3, 3, of="logistic", by="every"),
        between(1 / 3, 3, of="tanh_near_zero", by="every"),
        between(0.7, 1.3, of="relu_xavier_times_512", by="every"),
    ),
)
def variance_is_kept(budget: Budget, seed: int) -> Evidence:
    """Variance before the tenth activation over that before the first, in random nets on normal inputs.

    Inputs have variance 1; for tanh also 0.01, where the expansion at zero holds: at variance 1 its cubic term
    costs every net about 1 / (2 depth).  Xavier's scale with ReLU has to lose a half in each of nine layers.
    """
    width = budget.pick(quick=1000, full=4000)

    def ratio(activation: Activation, scale: float, variance: float = 1.0) -> float:
        found = measured_variances(activation, scale, 10, width=width, variance=variance, seed=seed)
        return found[-1] / found[0]

    logistic, tanh = (kumar_std(g, 1) ** 2 for g in (torch.sigmoid, torch.tanh))
    return Evidence(
        logistic=ratio(torch.sigmoid, logistic),
        tanh_near_zero=ratio(torch.tanh, tanh, 0.01),
        tanh=ratio(torch.tanh, tanh),
        relu_xavier_times_512=ratio(torch.relu, 1.0) * 512,
    )
