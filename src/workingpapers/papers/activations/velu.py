"""VeLU: an input gated by arctangent and arcsine inside a sigmoid, its scale set by the spread of the channels.

    velu(x) = lambda x sigmoid(alpha (arctan(beta_1 x) + arcsin(clip(beta_2 x, -1, 1)))) (1 + gamma tanh(mu s))

lambda is learned; s belongs to each position and is taken over its channels: the authors' code has s = 1 / r, r
the root of the channels' mean square, which scales small inputs up.  Reports of the paper's text have s = sigma,
the deviation itself, which scales large ones up; both are here.  Training adds lambda_OT W^2 to the loss for each
VeLU, W^2 = m^2 + (d - 1)^2 the squared Wasserstein-2 distance of its outputs' mean m and deviation d to N(0, 1)
(before lambda): see `with_penalties`.

Paper: "VeLU: Variance-enhanced Learning Unit for Deep Neural Networks" (2025); formula and defaults of the
authors' notebook, whose figure is drawn with alpha = 2, beta_1 = 1, beta_2 = 0.7.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least
from workingpapers.kernels import pointwise
from workingpapers.papers.activations._fashion import Factory, fashion, four_convolutions
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, Result, fit, initialise

Loss = Callable[[Tensor, Tensor], Tensor]

SPREADS = ("reciprocal", "deviation")
EPSILON = 1e-6  # added to the mean square, as in the authors' code


@pointwise
def velu(
    x: Tensor,
    scale: float | Tensor = 1.0,
    alpha: float | Tensor = 0.1,
    beta1: float | Tensor = 0.1,
    beta2: float | Tensor = 0.1,
) -> Tensor:
    """Return `scale` x sigmoid(alpha (arctan(beta1 x) + arcsin(beta2 x))), beta2 x clipped to [-1, 1]."""
    return scale * x * torch.sigmoid(alpha * (torch.atan(beta1 * x) + _clipped_arcsine(beta2 * x)))


def _clipped_arcsine(t: Tensor) -> Tensor:
    """Return arcsin of `t` clipped to [-1, 1], with finite slopes: 0 at the ends, where arcsin's are infinite.

    Beyond 1/2 it is pi / 2 - 2 arcsin(sqrt((1 - t) / 2)), in which 1 - t is exact.
    """
    size = t.abs()
    near, inside = size <= 0.5, size < 1
    low = torch.asin(torch.where(near, t, 0))
    rest = torch.where(inside & ~near, 0.5 * (1 - size), 0.25)
    high = torch.where(inside, math.pi / 2 - 2 * torch.asin(rest.sqrt()), math.pi / 2)
    return torch.where(near, low, torch.where(t < 0, -high, high))


def channel_gain(x: Tensor, gamma: float, mu: float, spread: str = "reciprocal", dim: int = 1) -> Tensor:
    """Return 1 + gamma tanh(mu s) for each position of `x`, of size 1 along the channels' dimension `dim`.

    `s` is one over the root mean square of the channels, or their standard deviation.
    """
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    dim = min(dim, x.ndim - 1)
    if spread == "deviation":
        centred = wide - wide.mean(dim, keepdim=True)
        s = (centred.square().mean(dim, keepdim=True) + EPSILON).sqrt()
    else:
        s = (wide.square().mean(dim, keepdim=True) + EPSILON).rsqrt()
    return 1 + gamma * torch.tanh(mu * s)


def w2_to_normal(y: Tensor) -> Tensor:
    """Return the squared Wasserstein-2 distance of the Gaussian with the moments of `y` to N(0, 1)."""
    return y.mean().square() + (y.std(correction=0) - 1).square()


class Watched(nn.Module):
    """Pass on what VeLU is penalised for; `with_penalties` looks here."""

    def forward(self, y: Tensor) -> Tensor:
        """Return `y`."""
        return y


@paper(
    "velu",
    elementwise=False,
    zero_at_zero=True,
    variants=[
        {"spread": "deviation", "gamma": 0.5},
        {"alpha": 2.0, "beta1": 1.0, "beta2": 0.7},
        {"dim": -1, "gamma": 0.3},
    ],
)
class VeLU(nn.Module):
    """Apply VeLU to a tensor (B, channels, ...); its scale lambda starts at 1.

    Args:
        alpha, beta1, beta2: steepness of the sigmoid, the arctangent and the arcsine.
        gamma: how much the spread of the channels may add to the scale.
        mu: factor of the spread inside the tanh.
        penalty: lambda_OT, weight of the distance to N(0, 1) in the loss, see `with_penalties`.
        spread: "reciprocal" as in the authors' code, or "deviation" as reported of the paper's text.
        dim: dimension of the channels; -1 for transformers.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        beta1: float = 0.1,
        beta2: float = 0.1,
        gamma: float = 0.1,
        mu: float = 0.9,
        penalty: float = 0.1,
        spread: str = "reciprocal",
        dim: int = 1,
    ) -> None:
        super().__init__()
        if spread not in SPREADS:
            raise unknown("spread of VeLU", spread, SPREADS)
        if penalty < 0:
            raise WorkingPapersError(f"VeLU's penalty is a weight of at least 0; got {penalty}")
        self.alpha, self.beta1, self.beta2 = float(alpha), float(beta1), float(beta2)
        self.gamma, self.mu, self.penalty = float(gamma), float(mu), float(penalty)
        self.spread, self.dim = spread, dim
        self.scale = nn.Parameter(torch.ones(()))
        self.watched = Watched()

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        gain = channel_gain(x, self.gamma, self.mu, self.spread, self.dim) if self.gamma and x.ndim else 1.0
        y: Tensor = self.watched(velu(x, gain, self.alpha, self.beta1, self.beta2))
        return self.scale * y

    def extra_repr(self) -> str:
        """Name the numbers and the spread."""
        names = ("alpha", "beta1", "beta2", "gamma", "mu", "penalty")
        numbers = ", ".join(f"{name}={getattr(self, name):g}" for name in names)
        return f"{numbers}, spread={self.spread!r}, dim={self.dim}"


def with_penalties(model: nn.Module, loss: Loss = F.cross_entropy) -> Loss:
    """Return a loss of (outputs, targets) that adds to `loss` the penalties of the model's VeLUs in training.

    It counts every pass that the model made in training mode since it was last called.
    """
    gathered: list[Tensor] = []

    def watch(velus: VeLU) -> None:
        def note(module: nn.Module, inputs: object, y: Tensor) -> None:
            if module.training:
                gathered.append(velus.penalty * w2_to_normal(y))

        velus.watched.register_forward_hook(note)

    for module in model.modules():
        if isinstance(module, VeLU):
            watch(module)

    def total(outputs: Tensor, targets: Tensor) -> Tensor:
        value = loss(outputs, targets)
        for penalty in gathered:
            value = value + penalty
        gathered.clear()
        return value

    return total


BASELINES: dict[str, Factory] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "swish": nn.SiLU, "gelu": nn.GELU}


def _trained(
    activation: Factory, split: Split, lr: float, epochs: int, seed: int
) -> tuple[nn.Module, Result]:
    model = initialise(lambda: four_convolutions(activation), seed)
    how = partial(fit, optimizer="sgd", schedule="cosine", every=10**6, loss=with_penalties(model))
    return model, how(model, split, epochs=epochs, lr=lr, seed=seed)


def output_deviation(model: nn.Module, x: Tensor, kind: type[nn.Module]) -> float:
    """Return the standard deviation of what the last module of the given `kind` puts out for `x`."""
    return float(list(collect(model, x, kind).values())[-1].std())


@claim(
    "velu",
    "The variance-scaled activation outperforms ReLU, ReLU6, Swish and GELU on vision tasks.",
    seeds=5,
    figure="six networks (ViT_B16, VGG19, ResNet50, DenseNet121, MobileNetV2, EfficientNetB3), six benchmarks; no "
    "number in the abstract",
    holds=all_of(at_least(-0.015, of="accuracy_over_others"), at_least(0.78, of="accuracy")),
)
def accuracy(budget: Budget, seed: int) -> Evidence:
    """Accuracy of a CNN without normalisation on Fashion-MNIST over the mean of the four others.

    SGD with momentum, for each activation the better of the rates 0.03 and 0.1; VeLU with its penalty.
    """
    split, epochs = fashion(budget, seed), budget.pick(quick=5, full=30)
    best = {
        name: max(_trained(activation, split, lr, epochs, seed)[1].metrics["accuracy"] for lr in (0.03, 0.1))
        for name, activation in {"velu": VeLU, **BASELINES}.items()
    }
    others = {name: best["velu"] - best[name] for name in BASELINES}
    return Evidence(
        accuracy=best["velu"],
        accuracy_over_others=sum(others.values()) / len(others),
        **{f"accuracy_over_{name}": gap for name, gap in others.items()},
    )


@claim(
    "velu",
    "Scaling by input variance together with a Wasserstein-2 penalty counters covariate shift and steadies "
    "optimisation.",
    seeds=5,
    holds=at_least(1.3, of="steadier_than_gelu"),
)
def scale_of_inputs(budget: Budget, seed: int) -> Evidence:
    """How much more the last activation's deviation grows in GELU's network than in VeLU's as inputs do.

    Both are trained as in `accuracy`, at the rate 0.03, and then see test images times 1/4 and times 4.
    """
    split, epochs = fashion(budget, seed), budget.pick(quick=5, full=30)
    growth = {}
    for name, kind in {"velu": VeLU, "gelu": nn.GELU}.items():
        model = _trained(kind, split, 0.03, epochs, seed)[0]
        small, large = (output_deviation(model, c * split.x_test, kind) for c in (0.25, 4.0))
        growth[name] = large / small
    return Evidence(steadier_than_gelu=growth["gelu"] / growth["velu"], growth=growth["velu"])
