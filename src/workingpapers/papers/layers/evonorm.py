"""EvoNorms: normalisation and activation found together, as one layer, by evolution over primitive operations.

    B0: x / max(std_bhw, v x + std_hw)            S0: x sigmoid(v x) / std_ghw
    B1: x / max(std_bhw, (x + 1) rms_hw)          S1: x sigmoid(x) / std_ghw
    B2: x / max(std_bhw, rms_hw - x)              S2: x sigmoid(x) / rms_ghw

each times gamma plus beta.  std is sqrt(var + eps), rms is sqrt(mean x^2 + eps), over batch and positions of a
channel (bhw), positions (hw), or positions and the channels of a group (ghw).  B needs batch statistics, S none.

Paper: "Evolving Normalization-Activation Layers" (2020), Sections 3 to 5 and the code listing in its appendix.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least
from workingpapers.kernels import rowwise
from workingpapers.papers.layers._evolution import evolve, peaks
from workingpapers.papers.layers._layer_graphs import (
    GraphLayer,
    largest_gradient,
    layer_space,
    quality,
    small_networks,
)
from workingpapers.papers.layers._norm_activation import replace_norm_activation
from workingpapers.tasks import Budget, fit, initialise, residual_cnn

VARIANTS = ("b0", "b1", "b2", "s0", "s1", "s2")
LINEAR = ("affine", "normalised")
POSITIONS = (2, 3)


def _by_group(moment: Tensor, channels: int) -> Tensor:
    """Spread a moment (B, G, 1, 1, 1) over the channels of each group, (B, channels, 1, 1)."""
    return moment.expand(-1, -1, channels // moment.shape[1], 1, 1).flatten(1, 2)


def _denominator(x: Tensor, variant: str, batch_variance: Tensor | None, groups: int, eps: float) -> Tensor:
    """Return what S divides by, or, for B, what stands in the maximum beside the batch's deviation."""
    second = variant in ("b1", "b2", "s2")  # moments about 0
    y, dims = (x, POSITIONS) if batch_variance is not None else (x.unflatten(1, (groups, -1)), (2, 3, 4))
    moment = y.square().mean(dims, keepdim=True) if second else y.var(dims, correction=0, keepdim=True)
    root = torch.sqrt(moment + eps)
    return root if batch_variance is not None else _by_group(root, x.shape[1])


@rowwise
def evonorm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None = None,
    batch_variance: Tensor | None = None,
    variant: str = "s0",
    groups: int = 32,
    eps: float = 1e-5,
    nonlinear: bool = True,
) -> Tensor:
    """Return an EvoNorm of `x` (B, C, H, W); `weight`, `bias`, `v` and `batch_variance` have a value a channel.

    `batch_variance` belongs to the B variants, `groups` (a divisor of C) to S, `v` to B0 and S0.
    `nonlinear=False` leaves out v x, (x + 1), - x or the sigmoid, and so normalises only.
    """
    below = _denominator(x, variant, batch_variance, groups, eps)
    if batch_variance is None:
        gate = torch.sigmoid(x if v is None else v.view(-1, 1, 1) * x) if nonlinear else 1.0
        y = x * gate / below
    else:
        if nonlinear and variant == "b0" and v is not None:
            below = v.view(-1, 1, 1) * x + below
        elif nonlinear:
            below = (x + 1) * below if variant == "b1" else below - x
        y = x / torch.maximum(torch.sqrt(batch_variance + eps).view(-1, 1, 1), below)
    return y * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


@paper(
    "evonorm",
    replaces="BatchNorm2d",
    variants=[
        *({"variant": name} for name in VARIANTS),
        {"apply_nonlinearity": False},
        {"variant": "b0", "apply_nonlinearity": False, "linear": "normalised"},
    ],
)
class EvoNorm(nn.Module):
    """An EvoNorm in the place of batch normalisation and the activation behind it, (B, C, H, W) -> same shape.

    Args:
        num_features: C.
        eps: added to variances and mean squares.
        variant: "s0", "s1", "s2" (no batch statistics), "b0", "b1" or "b2".
        groups: of the S variants; its common divisor with C is taken.
        decay: of the running average of the batch variance, which B uses in evaluation mode.
        apply_nonlinearity: False for places that had normalisation without activation.
        linear: what is left there: "affine", gamma x + beta, as in the paper's listing, or "normalised", the
            formula without its nonlinear part.
    """

    running_var: Tensor | None
    v: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        variant: str = "s0",
        groups: int = 32,
        decay: float = 0.9,
        apply_nonlinearity: bool = True,
        linear: str = "affine",
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise unknown("EvoNorm", variant, VARIANTS)
        if linear not in LINEAR:
            raise unknown("linear form", linear, LINEAR)
        self.num_features, self.eps, self.variant, self.decay = num_features, eps, variant, decay
        self.groups, self.apply_nonlinearity, self.linear = groups, apply_nonlinearity, linear
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        learns = variant in ("b0", "s0") and apply_nonlinearity
        self.register_parameter("v", nn.Parameter(torch.ones(num_features)) if learns else None)
        running = torch.ones(num_features) if variant[0] == "b" and not self._affine() else None
        self.register_buffer("running_var", running)

    def _affine(self) -> bool:
        return not self.apply_nonlinearity and self.linear == "affine"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate; in training B notes the batch's variance."""
        if x.ndim != 4 or x.shape[1] != self.num_features:
            raise WorkingPapersError(
                f"EvoNorm({self.num_features}) takes (B, {self.num_features}, H, W); got {tuple(x.shape)}"
            )
        if self._affine():
            return x * self.weight.view(-1, 1, 1).to(x.dtype) + self.bias.view(-1, 1, 1).to(x.dtype)
        variance = self.running_var
        if variance is not None and self.training and x.shape[0]:
            wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            batch = wide.var((0, 2, 3), correction=0)
            with torch.no_grad():
                variance.lerp_(batch.to(variance.dtype), 1 - self.decay)
            variance = batch
        groups, nonlinear = math.gcd(self.groups, self.num_features), self.apply_nonlinearity
        return evonorm(x, self.weight, self.bias, self.v, variance, self.variant, groups, self.eps, nonlinear)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, variant={self.variant!r}, groups={self.groups}, "
            f"decay={self.decay}, apply_nonlinearity={self.apply_nonlinearity}, linear={self.linear!r}"
        )


def _small_resnet(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    return residual_cnn(3, 4, widths=(4, 6)), torch.randn(3, 3, 8, 8, generator=generator)


@paper(
    "evonorm",
    part="replace",
    kind="transform",
    example=_small_resnet,
    variants=[{"variant": "b0"}, {"rest": "keep"}],
)
def replace(model: nn.Module, variant: str = "s0", groups: int = 32, rest: str = "affine") -> nn.Module:
    """Return a copy of a network with an EvoNorm for each BatchNorm2d and the ReLU or SiLU behind it.

    Gamma and beta are taken over; see `replace_norm_activation` for what the copy is and for errors.

    Args:
        model: a network that torch.fx can trace.
        variant, groups: of `EvoNorm`.
        rest: what becomes of a BatchNorm2d without activation behind it: a linear form of `EvoNorm`, or "keep".
    """
    if rest not in (*LINEAR, "keep"):
        raise unknown("treatment of the rest", rest, (*LINEAR, "keep"))

    def make(old: nn.BatchNorm2d, active: bool) -> nn.Module | None:
        if not active and rest == "keep":
            return None
        linear = "affine" if active else rest
        new = EvoNorm(old.num_features, old.eps, variant, groups, apply_nonlinearity=active, linear=linear)
        if old.affine:
            new.weight.data.copy_(old.weight)
            new.bias.data.copy_(old.bias)
        return new

    return replace_norm_activation(model, make)


search = paper("evonorm", part="search", kind="search", example=peaks, budget=160)(evolve)


def _networks(arm: str, groups: int) -> Callable[[nn.Module], nn.Module]:
    """Return what makes of a network with BatchNorm and ReLU the one to compare."""
    if arm == "bn":
        return lambda model: model
    if arm != "gn":
        return partial(replace, variant=arm, groups=groups, rest="normalised")

    def group_norm(old: nn.BatchNorm2d, active: bool) -> nn.Module:
        norm = nn.GroupNorm(math.gcd(groups, old.num_features), old.num_features)
        return nn.Sequential(norm, nn.ReLU()) if active else norm

    return lambda model: replace_norm_activation(model, group_norm)


@claim(
    "evonorm",
    "Some discovered layers need no batch statistics, and across ResNets, MobileNets and EfficientNets the layers "
    "match or surpass BatchNorm or GroupNorm followed by an activation.",
    seeds=3,
    holds=all_of(at_least(0.02, of="s0_over_bn_batch_2"), at_least(-0.01, of="best_over_bn_batch_64")),
)
def without_the_batch(budget: Budget, seed: int) -> Evidence:
    """Accuracy of a ResNet-8 on CIFAR-10 over BatchNorm-ReLU's: S0 at batch 2, the better of B0 and S0 at 64.

    SGD at 0.1 for batch 64, 8 times less for batch 2; 4 groups, as 32 would be single channels here.
    """
    train, test, few = budget.pick(quick=(2000, 1000, 1200), full=(20000, 5000, 20000))
    size, epochs, widths = budget.pick(quick=(16, 4, (8, 16, 32)), full=(32, 30, (16, 32, 64)))
    arms = budget.pick(quick=("bn", "s0", "b0"), full=("bn", "s0", "b0", "gn"))
    how: dict[str, Any] = {"optimizer": "sgd", "schedule": "cosine", "seed": seed}

    def run(arm: str, batch: int, count: int, epochs: int, lr: float) -> float:
        split = images("cifar10", train=count, test=test, size=size, seed=seed)
        model = _networks(arm, 4)(initialise(lambda: residual_cnn(3, 10, widths), seed))
        done = fit(model, split, epochs=epochs, batch=batch, lr=lr, every=10**9, **how)
        return 0.0 if done.diverged else done.metrics["accuracy"]

    small = {arm: run(arm, 2, few, 1, 0.0125) for arm in budget.pick(quick=arms[:2], full=arms)}
    usual = {arm: run(arm, 64, train, epochs, 0.1) for arm in arms}
    return Evidence(
        s0_over_bn_batch_2=small["s0"] - small["bn"],
        best_over_bn_batch_64=max(usual["b0"], usual["s0"]) - usual["bn"],
        **{f"{arm}_batch_2": value for arm, value in small.items()},
        **{f"{arm}_batch_64": value for arm, value in usual.items()},
    )


class _BatchNormReLU(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU())


@claim(
    "evonorm",
    "Quick rejection of bad candidates together with multi-architecture evolution makes search over primitive "
    "operations workable.",
    seeds=3,
    holds=all_of(
        at_least(0.8, of="rejected"),
        at_least(0.0, of="evolved_over_random"),
        at_least(-0.03, of="evolved_over_bn"),
    ),
)
def rejection(budget: Budget, seed: int) -> Evidence:
    """Share of random graphs that are rejected, and what mutations of the survivors reach, on digits.

    Rejected is what stays below 20 % accuracy, or whose gradient climbs above 1e8.  Accuracies are means over
    three small networks: of the best mutation, the best random survivor, and BatchNorm-ReLU.
    """
    drawn, mutations, steps = budget.pick(quick=(90, 12, 50), full=(300, 60, 100))
    split = images("digits", seed=seed)
    networks = small_networks(1, 10)

    def rejected(point: Any) -> bool:
        layer = partial(GraphLayer, point=point)
        if quality(networks[0], layer, split, steps=steps, seed=seed) < 0.2:
            return True
        return largest_gradient(networks[0], layer, split, steps=steps, seed=seed) > 1e8

    def accuracies(layer: Callable[[int], nn.Module]) -> list[float]:
        return [quality(build, layer, split, steps=2 * steps, seed=seed) for build in networks]

    def objective(point: Any) -> list[float]:
        return [-math.inf] if rejected(point) else accuracies(partial(GraphLayer, point=point))

    first = search(layer_space(), objective, drawn, seed, initial=drawn)
    alive = [t for t in first if t.value > -math.inf]
    found = search(layer_space(), objective, drawn + mutations, seed, trials=first, initial=drawn)[drawn:]
    norm = sum(accuracies(_BatchNormReLU)) / len(networks)
    best, random = (max((t.value for t in trials), default=0.0) for trials in (found, alive))
    return Evidence(
        rejected=1 - len(alive) / drawn,
        evolved_over_random=max(best, 0.0) - random,
        evolved_over_bn=max(best, 0.0) - norm,
        bn=norm,
    )
