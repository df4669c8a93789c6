"""Layers as computation graphs of primitive operations: the space, the layer, and what rejects bad ones early.

A graph has four inputs (x, zeros, and two learned vectors v0 = 0 and v1 = 1 over channels) and some nodes, each
an operation on earlier ones; the last node is the output, then scaled and shifted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.tasks import fit, initialise

EPS = 1e-5
INPUTS = 4
Node = tuple[str, int, int]
Point = Mapping[str, Any]
Build = Callable[[Callable[[int], nn.Module]], nn.Module]  # (channels -> layer) -> classifier

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
}
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log": lambda x: torch.log(x.abs() + EPS),
    "square": torch.square,
    "sqrt": lambda x: x.sign() * torch.sqrt(x.abs() + EPS),
}
MOMENTS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "mean": lambda x, dims: x.mean(dims, keepdim=True),
    "rms": lambda x, dims: torch.sqrt(x.square().mean(dims, keepdim=True) + EPS),
    "std": lambda x, dims: torch.sqrt(x.var(dims, correction=0, keepdim=True) + EPS),
}
OVER: dict[str, tuple[int, ...]] = {"bhw": (0, 2, 3), "hw": (2, 3), "chw": (1, 2, 3), "ghw": (2, 3, 4)}
OPERATIONS = [*BINARY, *UNARY, *(f"{moment}_{over}" for moment in MOMENTS for over in OVER)]


def layer_space(nodes: int = 10) -> dict[str, list[Any]]:
    """Return for each node its choices (operation, first parent, second parent); unary ones ignore the second."""
    return {
        f"node{i}": [(op, a, b) for op in OPERATIONS for a in range(INPUTS + i) for b in range(INPUTS + i)]
        for i in range(nodes)
    }


class GraphLayer(nn.Module):
    """Apply a graph to (B, num_features, H, W), then scale and shift each channel.

    Moments over the batch are replaced by exponential running averages in evaluation mode.

    Args:
        num_features: channels.
        point: the graph's nodes, as `layer_space` lists them.
        groups: for moments over groups of channels; their common divisor with `num_features` is taken.
        decay: of the running averages.
    """

    def __init__(self, num_features: int, point: Point, groups: int = 32, decay: float = 0.9) -> None:
        super().__init__()
        self.nodes: list[Node] = list(point.values())
        self.groups, self.decay = math.gcd(groups, num_features), decay
        self.v0 = nn.Parameter(torch.zeros(num_features, 1, 1))
        self.v1 = nn.Parameter(torch.ones(num_features, 1, 1))
        self.weight = nn.Parameter(torch.ones(num_features, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_features, 1, 1))
        for i, (op, _, _) in enumerate(self.nodes):
            if op.endswith("_bhw"):
                self.register_buffer(f"running{i}", torch.zeros(()) if op[:4] == "mean" else torch.ones(()))
        self.used = self._used()

    def _used(self) -> set[int]:
        """Return the nodes that the output depends on."""
        wanted = {INPUTS + len(self.nodes) - 1}
        for i in range(len(self.nodes) - 1, -1, -1):
            if INPUTS + i in wanted:
                op, a, b = self.nodes[i]
                wanted |= {a, b} if op in BINARY else {a}
        return wanted

    def forward(self, x: Tensor) -> Tensor:
        """Return weight * graph(x) + bias."""
        values: dict[int, Tensor] = {0: x, 1: torch.zeros_like(x), 2: self.v0, 3: self.v1}
        for i, (op, a, b) in enumerate(self.nodes):
            if INPUTS + i not in self.used:
                continue
            if op in BINARY:
                values[INPUTS + i] = BINARY[op](values[a], values[b])
            elif op in UNARY:
                values[INPUTS + i] = UNARY[op](values[a])
            else:
                values[INPUTS + i] = self._moment(i, op, values[a].expand_as(x))
        return values[INPUTS + len(self.nodes) - 1] * self.weight + self.bias + torch.zeros_like(x)

    def _moment(self, i: int, op: str, x: Tensor) -> Tensor:
        moment, over = op.split("_")
        if over == "ghw":
            grouped = x.unflatten(1, (self.groups, -1))
            found = MOMENTS[moment](grouped, OVER[over])
            return found.expand(-1, -1, grouped.shape[2], 1, 1).flatten(1, 2)
        if over != "bhw":
            return MOMENTS[moment](x, OVER[over])
        running: Tensor = getattr(self, f"running{i}")
        if not self.training:
            return running.expand(1, x.shape[1], 1, 1)
        found = MOMENTS[moment](x, OVER[over])
        with torch.no_grad():  # one value serves all channels at first, then each has its own
            setattr(self, f"running{i}", torch.lerp(running.expand_as(found), found, 1 - self.decay))
        return found


def small_networks(channels: int, num_classes: int) -> list[Build]:
    """Return three small classifiers that a layer is tried in: plain, wide and short, and residual."""

    def plain(layer: Callable[[int], nn.Module], widths: Sequence[int]) -> nn.Module:
        parts: list[nn.Module] = []
        before = channels
        for width in widths:
            parts += [nn.Conv2d(before, width, 3, padding=1, bias=False), layer(width)]
            before = width
        return nn.Sequential(
            *parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * before, num_classes)
        )

    def residual(layer: Callable[[int], nn.Module]) -> nn.Module:
        block = _Residual(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), layer(8)))
        ends = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes))
        return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1, bias=False), layer(8), block, *ends)

    return [lambda layer: plain(layer, (8, 8, 8)), lambda layer: plain(layer, (16, 16)), residual]


class _Residual(nn.Module):
    """Add what a branch makes of x to x."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Return x + branch(x)."""
        out: Tensor = x + self.branch(x)
        return out


def quality(
    build: Build, layer: Callable[[int], nn.Module], split: Split, *, steps: int = 100, seed: int = 0
) -> float:
    """Return the accuracy of a network with the layer after some steps of SGD, 0 if it is not even finite.

    A network whose gradient at the start is not finite, or is 0 in its first convolution, is not trained.
    """
    model = initialise(lambda: build(layer), seed)
    loss = F.cross_entropy(model(split.x_train[:64]), split.y_train[:64])
    first = next(p for p in model.parameters() if p.ndim == 4)
    (slope,) = torch.autograd.grad(loss, first, allow_unused=True)
    if slope is None or not bool(slope.isfinite().all()) or not slope.any():
        return 0.0
    done = fit(model, split, steps=steps, every=steps, optimizer="sgd", lr=0.05, seed=seed)
    return 0.0 if done.diverged else done.metrics["accuracy"]


def largest_gradient(
    build: Build, layer: Callable[[int], nn.Module], split: Split, *, steps: int = 100, seed: int = 0
) -> float:
    """Return the norm of the gradient after the convolutions' weights climbed it for some steps; inf if it blew up.

    Each step moves the weights by a tenth of their norm along the gradient of the norm.
    """
    model = initialise(lambda: build(layer), seed)
    weights = [p for p in model.parameters() if p.ndim == 4]
    x, y = split.x_train[:64], split.y_train[:64]
    norm = torch.zeros(())
    for _ in range(steps):
        slopes = torch.autograd.grad(F.cross_entropy(model(x), y), weights, create_graph=True)
        norm = torch.stack([s.square().sum() for s in slopes]).sum().sqrt()
        if not torch.isfinite(norm):
            return math.inf
        uphill = torch.autograd.grad(norm, weights, allow_unused=True) if norm.requires_grad else ()
        with torch.no_grad():
            for weight, up in zip(weights, uphill, strict=False):
                if up is not None and up.any() and bool(up.isfinite().all()):
                    weight.add_(0.1 * weight.norm() * up / up.norm())
    return float(norm.detach())
