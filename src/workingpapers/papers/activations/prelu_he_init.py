"""PReLU, a rectifier that learns its negative slope, and the initialisation that rectifiers need.

    prelu(x) = x for x > 0, a x otherwise             a is learned, starting from 0.25
    Var[w] = 2 / ((1 + a^2) fan)                      keeps the variance from layer to layer

A layer with n inputs of zero mean weights gives Var[y_l] = n Var[w] E[x_l^2], and a rectifier halves what it
is fed: E[x_l^2] = (1 + a^2) / 2 Var[y_(l-1)].  Setting the product to 1 gives the rule (Section 2.2).

Paper: "Delving Deep into Rectifiers: Surpassing Human-Level Performance on ImageNet Classification" (2015).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, above, all_of, at_least, at_most, below
from workingpapers.kernels import pointwise
from workingpapers.papers.activations._common import cifar
from workingpapers.papers.activations._init import LAYERS, fans, placed_layers
from workingpapers.tasks import Budget, Result, fit, initialise

MODES = ("fan_in", "fan_out")
DISTRIBUTIONS = ("normal", "uniform")


@pointwise
def prelu(x: Tensor, a: float | Tensor = 0.25) -> Tensor:
    """Return x where it is positive, and a x elsewhere; `a` broadcasts against `x`."""
    return torch.where(x > 0, x, a * x)


@paper("prelu_he_init", positively_homogeneous=True, zero_at_zero=True, smooth=False)
class PReLU(nn.Module):
    """Apply `prelu` with learned slopes; arguments, semantics and state_dict are those of torch.nn.PReLU.

    Args:
        num_parameters: 1 for one slope shared by all channels, or the number of channels (the second dimension
            of inputs) for one slope each.
        init: the slopes at first; 0.25 in the paper.  They are not constrained afterwards.
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        super().__init__()
        if num_parameters < 1:
            raise WorkingPapersError(f"PReLU has at least one slope; got num_parameters={num_parameters}")
        self.num_parameters, self.init = num_parameters, init
        self.weight = nn.Parameter(torch.full((num_parameters,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        if self.num_parameters == 1:
            return prelu(x, self.weight.view(()))
        if x.ndim < 2 or x.shape[1] != self.num_parameters:
            raise WorkingPapersError(
                f"PReLU has a slope for each of {self.num_parameters} channels; got an input of {tuple(x.shape)}"
            )
        return prelu(x, self.weight.view(-1, *[1] * (x.ndim - 2)))

    def extra_repr(self) -> str:
        """Say how many slopes there are and where they started."""
        return f"num_parameters={self.num_parameters}, init={self.init:g}"


def _is_rectifier(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU | nn.LeakyReLU | nn.PReLU | PReLU)


def squared_slope(rectifier: nn.Module | None) -> float:
    """Return a^2 of a ReLU, LeakyReLU or PReLU, the mean over its slopes; 0 (that of a ReLU) for None."""
    if isinstance(rectifier, nn.PReLU | PReLU):
        return float(rectifier.weight.detach().double().square().mean())
    return float(rectifier.negative_slope) ** 2 if isinstance(rectifier, nn.LeakyReLU) else 0.0


def he_std(layer: nn.Module, a: float = 0.0, mode: str = "fan_in") -> float:
    """Return sqrt(2 / ((1 + a^2) fan)), the deviation of weights by Equations 10 (fan_in) and 14 (fan_out)."""
    if mode not in MODES:
        raise unknown("mode of initialisation", mode, MODES)
    return float((2 / ((1 + a * a) * fans(layer)[MODES.index(mode)])) ** 0.5)


@torch.no_grad()
def he_normal_(
    layer: nn.Module, a: float = 0.0, mode: str = "fan_in", generator: torch.Generator | None = None
) -> nn.Module:
    """Draw the weights of a linear or convolution layer from N(0, `he_std`^2), set biases to 0, return it."""
    for name, parameter in layer.named_parameters(recurse=False):
        parameter.normal_(0, he_std(layer, a, mode) if name == "weight" else 0.0, generator=generator)
    return layer


@torch.no_grad()
def he_uniform_(
    layer: nn.Module, a: float = 0.0, mode: str = "fan_in", generator: torch.Generator | None = None
) -> nn.Module:
    """Draw the weights uniformly up to sqrt(6 / ((1 + a^2) fan)), which has the same variance, biases 0."""
    for name, parameter in layer.named_parameters(recurse=False):
        bound = 3**0.5 * he_std(layer, a, mode) if name == "weight" else 0.0
        parameter.uniform_(-bound, bound, generator=generator)
    return layer


def _example(generator: torch.Generator) -> tuple[nn.Module]:
    layers = [m for _ in range(8) for m in (nn.Linear(256, 256), PReLU())]
    return (nn.Sequential(*layers, nn.Linear(256, 256)),)


def _promise(model: nn.Module) -> dict[str, tuple[float, float, float]]:
    x = torch.randn(400, 256, generator=torch.Generator().manual_seed(12345))
    variances = layer_variances(model, x, lambda y: y.square().mean())
    first = variances["0"][0]
    return {
        f"variance of layer {name} over the first's": (v[0] / first, 0.5, 2.0)
        for name, v in variances.items()
    }


@paper("prelu_he_init", part="init", kind="initializer", example=_example, promise=_promise)
def he_init_(
    model: nn.Module,
    mode: str = "fan_in",
    distribution: str = "normal",
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Initialise every linear and convolution layer of `model` for its rectifiers, in place; return the model.

    'fan_in' keeps the variance of responses and takes the slope of the rectifier that feeds the layer;
    'fan_out' keeps that of gradients and takes the slope of the one behind it.  Where there is none (at the
    input, or at the output), the layer takes the other's, since one layer does not matter (Section 2.2).

    Raises:
        UnknownName: for another mode, or a distribution other than 'normal' and 'uniform'.
    """
    if distribution not in DISTRIBUTIONS:
        raise unknown("distribution of weights", distribution, DISTRIBUTIONS)
    draw = he_normal_ if distribution == "normal" else he_uniform_
    for placed in placed_layers(model, _is_rectifier):
        near, other = (placed.before, placed.after) if mode == "fan_in" else (placed.after, placed.before)
        draw(placed.layer, squared_slope(near or other) ** 0.5, mode, generator)
    return model


def layer_variances(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]
) -> dict[str, tuple[float, float]]:
    """Return for every linear and convolution layer the variance of its responses, and of their gradients.

    The gradients are those of `loss(model(x))`; the model's own gradients stay untouched.
    """
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.update({name: output})

    hooks = [m.register_forward_hook(note(n)) for n, m in model.named_modules() if isinstance(m, LAYERS)]
    try:
        gradients = torch.autograd.grad(loss(model(x)), list(found.values()) or [x])
    finally:
        for hook in hooks:
            hook.remove()
    return {
        n: (float(y.detach().var()), float(g.var()))
        for (n, y), g in zip(found.items(), gradients, strict=True)
    }


def slopes(model: nn.Module) -> dict[str, float]:
    """Return the mean |a| of every PReLU in `model`, ours or torch's, by its name."""
    rectifiers = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.PReLU | PReLU))
    return {name: float(rectifier.weight.detach().abs().mean()) for name, rectifier in rectifiers}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups for an optimizer: all weights with the decay, the slopes of PReLUs without (Section 2.1).

    Decay would pull the slopes to 0 and the PReLUs to ReLUs.
    """
    own = {id(m.weight) for m in model.modules() if isinstance(m, nn.PReLU | PReLU)}
    return [
        {"params": [p for p in model.parameters() if id(p) not in own], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if id(p) in own], "weight_decay": 0.0},
    ]


def plain_cnn(
    in_channels: int, widths: Sequence[int], halve: Sequence[int], rectifier: Callable[[int], nn.Module]
) -> nn.Sequential:
    """Build 3x3 convolutions without normalisation, average pooling and a linear layer for 10 classes.

    The convolutions with their index in `halve` have stride 2; `rectifier` maps a width to an activation.
    """
    layers: list[nn.Module] = []
    for i, (width_in, width) in enumerate(pairwise([in_channels, *widths])):
        layers += [nn.Conv2d(width_in, width, 3, 2 if i in halve else 1, padding=1), rectifier(width)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


@torch.no_grad()
def xavier_init_(model: nn.Module) -> nn.Module:
    """Initialise as He et al. compare with: Var[w] = 2 / (fan_in + fan_out), biases 0 (Glorot and Bengio, 2010)."""
    for layer in (m for m in model.modules() if isinstance(m, LAYERS)):
        for name, parameter in layer.named_parameters(recurse=False):
            parameter.normal_(0, (2 / sum(fans(layer))) ** 0.5 if name == "weight" else 0.0)
    return model


@claim(
    "prelu_he_init",
    "Initialisation derived for rectifiers trains extremely deep models from scratch, where earlier schemes stall.",
    seeds=5,
    holds=all_of(at_least(0.5, of="accuracy"), at_least(0.3, of="accuracy_over_xavier")),
)
def thirty_layers(budget: Budget, seed: int) -> Evidence:
    """A plain net of 30 weight layers on MNIST by SGD; each initialisation has the better of two learning rates."""
    split = images(
        "mnist",
        train=budget.pick(quick=3000, full=20000),
        test=budget.pick(quick=2000, full=10000),
        size=14,
        seed=seed,
    )
    build = partial(plain_cnn, 1, [16] * 29, (1, 9), lambda width: nn.ReLU())
    epochs = budget.pick(quick=10, full=20)

    def accuracy(init: Callable[[nn.Module], nn.Module], lr: float) -> float:
        model = initialise(lambda: init(build()), seed)
        return fit(model, split, epochs=epochs, lr=lr, optimizer="sgd", seed=seed).metrics["accuracy"]

    rates = (0.01, 0.03)
    best = {
        name: max(accuracy(init, lr) for lr in rates)
        for name, init in {"he": he_init_, "xavier": xavier_init_}.items()
    }
    return Evidence(accuracy=best["he"], accuracy_over_xavier=best["he"] - best["xavier"])


def _trained(
    rectifier: Callable[[int], nn.Module], budget: Budget, seed: int
) -> tuple[nn.Sequential, Result]:
    """Train an 8-layer CNN without normalisation on CIFAR-10 by SGD from the initialisation of the paper."""

    def build() -> nn.Sequential:
        model = plain_cnn(3, (16, 16, 32, 32, 64, 64, 64), (2, 4), rectifier)
        he_init_(model)
        return model

    model = initialise(build, seed)
    epochs = budget.pick(quick=6, full=40)
    return model, fit(model, cifar(budget, seed), epochs=epochs, lr=0.02, optimizer="sgd", seed=seed)


@claim(
    "prelu_he_init",
    "Learning the negative slope improves fitting at almost no cost and little overfitting risk, and carries "
    "ImageNet results past human level.",
    seeds=5,
    holds=all_of(
        at_most(0.0, of="train_loss_over_relu"),
        at_least(-0.015, of="accuracy_over_relu"),
        at_least(0.35, of="accuracy"),
        below(0.005, of="extra_parameters", by="every"),
    ),
)
def better_fit(budget: Budget, seed: int) -> Evidence:
    """Last epoch's training loss and test accuracy, channel-wise PReLU against ReLU; share of slopes."""
    model, learned = _trained(PReLU, budget, seed)
    plain, fixed = _trained(lambda width: nn.ReLU(), budget, seed)
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, plain)]
    return Evidence(
        train_loss_over_relu=learned.metrics["train_loss"] - fixed.metrics["train_loss"],
        accuracy_over_relu=learned.metrics["accuracy"] - fixed.metrics["accuracy"],
        accuracy=learned.metrics["accuracy"],
        extra_parameters=counts[0] / counts[1] - 1,
    )


@claim(
    "prelu_he_init",
    "The learned slopes are larger in the first layer than further up.",
    seeds=5,
    holds=above(0.0, of="first_over_last"),
)
def slopes_by_layer(budget: Budget, seed: int) -> Evidence:
    """Mean |a| of the first layer less that of the last three, after training on CIFAR-10."""
    found = list(slopes(_trained(PReLU, budget, seed)[0]).values())
    return Evidence(first_over_last=found[0] - sum(found[-3:]) / 3, first=found[0])
