"""AF-KAN: features from pairs of ordinary activations, weighed by attention, before one linear map.

    u = act(x - low_j),  v = act(high_j - x),  f_j(x) = (u v)^2 or another combination,  j = 1 .. g + k
    y = W act(norm(r)),  r_i = sum_j a_i f_j(x_i),  a = softmax over the inputs i of (w . f(x_i)) / temperature

The intervals start as those of ReLU-KAN, low_j = j / g for j from -k to g - 1, each (k + 1) / g long; they are
trained and shared by all inputs, so that only a few numbers are added to an MLP of the same widths.

Paper: "AF-KAN: Activation Function-Based Kolmogorov-Arnold Networks for Efficient Representation Learning" (2025),
Section 3; checked against the authors' layer (hoangthangta/All-KAN, models/af_kan.py).
"""

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.engines.bases import BasisLinear, ReLUPower
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, above, all_of, at_least, at_most, below
from workingpapers.tasks import Budget, fit, initialise

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "selu": F.selu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quad1": lambda u, v: (u * v).square(),
    "quad2": lambda u, v: u * v + u.square() + v.square(),
    "sum": lambda u, v: u + v,
    "prod": lambda u, v: u * v,
    "sum_prod": lambda u, v: u + v + u * v,
    "cubic1": lambda u, v: (u + v) * (u.square() + v.square()),
    "cubic2": lambda u, v: (u * v) ** 3,
}
METHODS = ("global_attn", "spatial_attn", "multistep")
NORMS = ("layer", "batch", "none")
SCOPES = ("sample", "batch", "none")


def scaled(features: Tensor, scope: str) -> Tensor:
    """Bring the features (..., D, J) of each example, or of the whole batch, linearly to [0, 1].

    The released code divides by the L2 norm first, which cancels.
    """
    if scope == "none":
        return features
    axes = (-2, -1) if scope == "sample" else tuple(range(features.ndim))
    low, high = features.amin(axes, keepdim=True), features.amax(axes, keepdim=True)
    wide = high - low
    return (features - low) / torch.where(wide > 0, wide, 1.0)


@paper(
    "af_kan", arguments=(6, 5), example=lambda batch, generator: torch.randn(batch, 6, generator=generator)
)
class AFKANLayer(nn.Module):
    """A layer (..., in_features) -> (..., out_features) with one weight an edge, and no bias.

    Args:
        grid, order: g and k; there are g + k intervals.
        act: silu, relu, leaky_relu, elu, gelu, selu, softplus, sigmoid or tanh; it stands before W too.
        func: quad1, quad2, sum, prod, sum_prod, cubic1 or cubic2, of u and v.
        method: global_attn (softmax over the inputs), spatial_attn (a depthwise convolution along the inputs,
            softmax over the intervals) or multistep (one linear map of the g + k features of an input).
        norm: layer, batch or none, before the last activation.
        norm_scope: over what the features are brought to [0, 1]: each "sample", the whole "batch" as in the
            released code (an output then depends on the other examples), or "none".
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid: int = 5,
        order: int = 3,
        act: str = "silu",
        func: str = "quad1",
        method: str = "global_attn",
        norm: str = "layer",
        norm_scope: str = "sample",
    ) -> None:
        super().__init__()
        if grid < 1 or order < 0:
            raise WorkingPapersError(f"the grid is 1 or more and the order 0 or more; got {grid} and {order}")
        for what, name, valid in (
            ("activation", act, list(ACTIVATIONS)),
            ("combination (func)", func, list(COMBINATIONS)),
            ("method", method, METHODS),
            ("norm", norm, NORMS),
            ("norm_scope", norm_scope, SCOPES),
        ):
            if name not in valid:
                raise unknown(what, name, valid)
        self.in_features, self.out_features, self.grid, self.order = in_features, out_features, grid, order
        self.act, self.func, self.method, self.norm_scope = act, func, method, norm_scope
        self.low = nn.Parameter(torch.arange(-order, grid) / grid)
        self.high = nn.Parameter(self.low.detach() + (order + 1) / grid)
        count = grid + order
        if method == "spatial_attn":
            self.score: nn.Module = nn.Conv1d(count, count, 3, padding=1, groups=count)
        else:
            # before a softmax over the inputs, or a norm, a bias would change nothing
            self.score = nn.Linear(count, 1, bias=method == "multistep" and norm == "none")
        if method != "multistep":
            self.temperature = nn.Parameter(torch.tensor(math.sqrt(in_features)))
        norms = {"layer": nn.LayerNorm, "batch": _LastAxisBatchNorm}
        self.norm = norms[norm](in_features) if norm in norms else nn.Identity()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def features(self, x: Tensor) -> Tensor:
        """Return f_j(x_i), (..., in_features, grid + order), not yet brought to [0, 1]."""
        act, x = ACTIVATIONS[self.act], x.unsqueeze(-1)
        return COMBINATIONS[self.func](act(x - self.low), act(self.high - x))

    def attention(self, features: Tensor) -> Tensor:
        """Return the weights of features (..., D, J): (..., D, 1) that sum to 1 over D, or (..., D, J) over J."""
        temperature = self.temperature.clamp(min=1.0)
        if self.method == "global_attn":
            return torch.softmax(self.score(features) / temperature, dim=-2)
        flat = features.reshape(-1, *features.shape[-2:]).mT  # (N, J, D)
        return torch.softmax(self.score(flat) / temperature, dim=1).mT.reshape(features.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features)."""
        if x.shape[-1] != self.in_features:
            raise WorkingPapersError(
                f"the layer takes {self.in_features} features in the last dimension; got {tuple(x.shape)}"
            )
        features = scaled(self.features(x), self.norm_scope)
        if self.method == "multistep":
            reduced = self.score(features).squeeze(-1)
        else:
            reduced = (features * self.attention(features)).sum(-1)
        return F.linear(ACTIVATIONS[self.act](self.norm(reduced)), self.weight)

    def extra_repr(self) -> str:
        names = ("in_features", "out_features", "grid", "order", "act", "func", "method", "norm_scope")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class _LastAxisBatchNorm(nn.BatchNorm1d):
    """Batch norm of the last axis, whatever stands before it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., D)."""
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def af_kan_network(widths: Sequence[int], grid: int = 5, order: int = 3) -> nn.Sequential:
    """Return layers of the given widths behind one another; inputs are flattened."""
    return nn.Sequential(nn.Flatten(), *(AFKANLayer(a, b, grid, order) for a, b in pairwise(widths)))


def relu_kan_network(widths: Sequence[int], grid: int = 5, order: int = 3) -> nn.Sequential:
    """Return a ReLU-KAN: (r relu(x - low) relu(high - x))^2 for each input and interval, each with a weight."""
    layers = [BasisLinear(a, b, ReLUPower(a, grid, order, power=2), bias=True) for a, b in pairwise(widths)]
    return nn.Sequential(nn.Flatten(), *layers)


def mlp_network(widths: Sequence[int]) -> nn.Sequential:
    """Return the MLP with the same norm and activation before each weight matrix."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(widths):
        layers += [nn.LayerNorm(a), nn.SiLU(), nn.Linear(a, b, bias=False)]
    return nn.Sequential(*layers)


def count(model: nn.Module) -> int:
    """Return how many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def matched_width(inputs: int, outputs: int, parameters: int, grid: int = 5, order: int = 3) -> int:
    """Return the hidden width, at least 1, at which a ReLU-KAN has as many parameters as near as can be."""
    one, two = (count(relu_kan_network([inputs, width, outputs], grid, order)) for width in (1, 2))
    return max(1, round(1 + (parameters - one) / (two - one)))


def _data(budget: Budget, name: str, seed: int) -> Split:
    train, test = budget.pick(quick=(3000, 1000), full=(60000, 10000))
    # pixels from 0 to 1, where the intervals of both sorts of KAN lie
    return images(name, train=train, test=test, normalise=False, seed=seed)


def _accuracy(build: Callable[[], nn.Module], split: Split, budget: Budget, seed: int) -> float:
    model = initialise(build, seed)
    epochs = budget.pick(quick=6, full=25)
    result = fit(model, split, epochs=epochs, lr=1e-3, optimizer="adamw", seed=seed)
    return 0.0 if result.diverged else result.metrics["accuracy"]


@claim(
    "af_kan",
    "At equal parameter count the layer clearly beats MLP, ReLU-KAN and other Kolmogorov-Arnold networks on image "
    "classification.",
    seeds=5,
    holds=all_of(
        at_least(0.01, of="over_relu_kan"), at_least(-0.015, of="over_mlp"), at_least(0.75, of="accuracy")
    ),
)
def equal_parameters(budget: Budget, seed: int) -> Evidence:
    """Accuracy of 784-64-10 on MNIST and Fashion-MNIST over a ReLU-KAN cut to as many parameters, and over an MLP.

    Each figure is the worse of the two data sets.
    """
    widths = [784, 64, 10]
    hidden = matched_width(784, 10, count(af_kan_network(widths)))
    builders: dict[str, Callable[[], nn.Module]] = {
        "af_kan": lambda: af_kan_network(widths),
        "relu_kan": lambda: relu_kan_network([784, hidden, 10]),
        "mlp": lambda: mlp_network(widths),
    }
    found = []
    for name in ("mnist", "fashion_mnist"):
        split = _data(budget, name, seed)
        found.append({arm: _accuracy(build, split, budget, seed) for arm, build in builders.items()})
    return Evidence(
        over_relu_kan=min(f["af_kan"] - f["relu_kan"] for f in found),
        over_mlp=min(f["af_kan"] - f["mlp"] for f in found),
        accuracy=min(f["af_kan"] for f in found),
    )


@claim(
    "af_kan",
    "With the same layer structure it stays competitive while using many times fewer parameters.",
    figure="6 to 10 times fewer parameters",
    seeds=5,
    holds=all_of(at_least(6.0, of="parameter_ratio", by="every"), at_most(0.02, of="accuracy_gap")),
)
def fewer_parameters(budget: Budget, seed: int) -> Evidence:
    """Parameters of a ReLU-KAN over AF-KAN's at 784-64-10, and the accuracy it has more, on Fashion-MNIST."""
    widths, split = [784, 64, 10], _data(budget, "fashion_mnist", seed)
    full = _accuracy(lambda: relu_kan_network(widths), split, budget, seed)
    ours = _accuracy(lambda: af_kan_network(widths), split, budget, seed)
    ratio = count(relu_kan_network(widths)) / count(af_kan_network(widths))
    return Evidence(parameter_ratio=ratio, accuracy_gap=full - ours, accuracy=ours)


@claim(
    "af_kan",
    "The price is longer training and more floating-point operations.",
    seeds=5,
    holds=all_of(above(1.0, of="time_ratio", by="every"), below(15.0, of="time_ratio", by="every")),
)
def training_time(budget: Budget, seed: int) -> Evidence:
    """Time of an epoch over 784-64-10 on Fashion-MNIST against the MLP's, in turns; median of the ratios."""
    split, widths = _data(budget, "fashion_mnist", seed), [784, 64, 10]
    ratios = []
    for _ in range(budget.pick(quick=3, full=9)):
        spent = [
            fit(initialise(build, seed), split, epochs=1, lr=1e-3, optimizer="adamw", seed=seed).seconds
            for build in (lambda: af_kan_network(widths), lambda: mlp_network(widths))
        ]
        ratios.append(spent[0] / spent[1])
    return Evidence(time_ratio=statistics.median(ratios))
