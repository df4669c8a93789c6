"""Channels that must go together, how much each counts, and models without some of them.

A group has the output channels of one layer, or of several that are added up, with the batch norms on the way and
the layers that read them.  Found by torch.fx; `surgery.units` stops at sums, which is where residual nets tie
channels together.
"""

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from workingpapers.errors import WorkingPapersError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
LAYERS = (nn.Conv2d, nn.Linear)
PASSING = {
    "relu",
    "relu_",
    "silu",
    "gelu",
    "tanh",
    "sigmoid",
    "leaky_relu",
    "elu",
    "hardswish",
    "dropout",
    "contiguous",
}
PASSING |= {"max_pool2d", "boolean_dispatch", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
ADDING = (operator.add, operator.iadd, torch.add)
MODULES = ("activation", "pooling", "dropout")


@dataclass(frozen=True)
class Member:
    """A layer's part in a group: its "out" channels, a "norm", or "in": `block` inputs for each channel."""

    name: str
    side: str
    block: int = 1


@dataclass(frozen=True)
class Group:
    """Channels that stay or go together in all members; `fixed` ones are inputs or outputs of the model."""

    count: int
    members: tuple[Member, ...]
    fixed: bool


@dataclass(frozen=True)
class Channels:
    """A model's groups, and at how many places (of one image) each layer is applied."""

    groups: tuple[Group, ...]
    places: Mapping[str, int]

    def macs(self, model: nn.Module) -> int:
        """Return the multiply-adds of one image through all convolutions and linear layers."""
        return sum(n * _weight(model, name).numel() for name, n in self.places.items())


def passes(model: nn.Module, node: fx.Node) -> bool:
    """Tell whether an operation of one tensor treats each channel alone and keeps its place."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        alone = type(module).__module__.rpartition(".")[2] in MODULES and not isinstance(module, nn.Softmax)
        return alone or isinstance(module, nn.Identity)
    name = getattr(node.target, "__name__", node.target)
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    over_places = isinstance(dims, list | tuple) and sorted(int(d) % 4 for d in dims) == [2, 3]
    return name in PASSING or (name == "mean" and over_places)


def flattens(model: nn.Module, node: fx.Node) -> bool:
    """Tell whether an operation puts all but the batch into one dimension."""
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.Flatten)
    ahead = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    return bool(getattr(node.target, "__name__", node.target) == "flatten" and ahead == 1)


class _Following(fx.Interpreter):
    """Runs a model and follows channels; `held` has for each node its group's number and inputs for a channel."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(fx.symbolic_trace(model))
        self.model = model
        self.held: dict[fx.Node, tuple[int, int]] = {}
        self.owner: list[int] = []
        self.counts: list[int] = []
        self.members: list[list[Member]] = []
        self.fixed: list[bool] = []
        self.places: dict[str, int] = {}

    def root(self, number: int) -> int:
        while self.owner[number] != number:
            number = self.owner[number]
        return number

    def new(self, count: int, members: list[Member], fixed: bool = False) -> tuple[int, int]:
        self.owner.append(len(self.owner))
        self.counts.append(count)
        self.members.append(members)
        self.fixed.append(fixed)
        return len(self.owner) - 1, 1

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "output":
            for node in n.all_input_nodes:
                self.fixed[self.root(self.held[node][0])] = True
        elif isinstance(result, Tensor):
            self.held[n] = self._held(n, result)
        return result

    def _held(self, n: fx.Node, result: Tensor) -> tuple[int, int]:
        inputs = [self.held[node] for node in n.all_input_nodes if node in self.held]
        module = self.model.get_submodule(str(n.target)) if n.op == "call_module" else None
        if n.op == "placeholder":
            return self.new(result.shape[1], [], fixed=True)
        if isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1:
            name = str(n.target)
            if name in self.places:
                raise WorkingPapersError(f"the layer {name!r} runs twice; its channels cannot be removed")
            self.members[self.root(inputs[0][0])].append(Member(name, "in", inputs[0][1]))
            self.places[name] = result[0, 0].numel() if result.ndim == 4 else 1
            return self.new(result.shape[1], [Member(name, "out")])
        if isinstance(module, NORMS):
            self.members[self.root(inputs[0][0])].append(Member(str(n.target), "norm", inputs[0][1]))
            return inputs[0]
        if len(inputs) == 2 and (n.target in ADDING or n.target == "add") and inputs[0][1] == inputs[1][1]:
            return self._tied(*inputs)
        if len(inputs) == 1 and flattens(self.model, n):
            number, block = inputs[0]
            return number, block * (result.shape[1] // (self.counts[self.root(number)] * block))
        if len(inputs) == 1 and passes(self.model, n):
            return inputs[0]
        raise WorkingPapersError(
            f"channels cannot be followed through {n.name!r} of {type(self.model).__name__}"
        )

    def _tied(self, one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
        a, b = self.root(one[0]), self.root(other[0])
        if a != b:
            self.owner[b] = a
            self.members[a] += self.members[b]
            self.fixed[a] = self.fixed[a] or self.fixed[b]
        return a, one[1]


@torch.no_grad()
def channels_of(model: nn.Module, x: Tensor) -> Channels:
    """Return the groups of channels of a convolutional network, from one run in evaluation mode.

    Args:
        model: of convolutions without groups, linear layers, batch norms, activations, pooling, sums, flattening.
        x: inputs; the first example runs.

    Raises:
        WorkingPapersError: where anything else stands between.
    """
    following = _Following(copy.deepcopy(model).eval())
    following.run(x[:1])
    numbers = [i for i in range(len(following.owner)) if following.root(i) == i]
    groups = [Group(following.counts[i], tuple(following.members[i]), following.fixed[i]) for i in numbers]
    return Channels(tuple(groups), following.places)


def _weight(model: nn.Module, name: str) -> Tensor:
    weight: Any = model.get_submodule(name).weight
    return weight  # type: ignore[no-any-return]


def member_norms(weight: Tensor, member: Member) -> Tensor:
    """Return the squared norm of a member's weight for each channel."""
    if member.side == "in":
        rows = weight.movedim(1, 0).flatten(1)
        return rows.reshape(len(rows) // member.block, -1).square().sum(1)
    squares = weight.square().flatten(1).sum(1) if weight.ndim > 1 else weight.square()
    return squares.reshape(-1, member.block).sum(1) if member.side == "norm" else squares


def importance(weights: Mapping[str, Tensor], group: Group) -> Tensor:
    """Return the mean over a group's members of the squared norm of each channel, over the largest, (count,).

    weights: by the layers' names, those of norms being their gains.
    """
    norms = torch.stack([member_norms(weights[m.name], m) for m in group.members])
    mean = norms.mean(0)
    return mean / mean.max().clamp_min(1e-30)


def weights_of(model: nn.Module, channels: Channels) -> dict[str, Tensor]:
    """Return the weights of all members by name."""
    return {m.name: _weight(model, m.name) for group in channels.groups for m in group.members}


@torch.no_grad()
def without(model: nn.Module, gone: Mapping[int, Tensor], channels: Channels) -> nn.Module:
    """Return a copy without some channels: `gone` has by the groups' numbers which go, (count,) bool each."""
    smaller = copy.deepcopy(model)
    for number, mask in gone.items():
        for member in channels.groups[number].members:
            _narrow(smaller.get_submodule(member.name), member, ~mask)
    return smaller


def _narrow(layer: Any, member: Member, kept: Tensor) -> None:
    rows = kept.repeat_interleave(member.block) if member.side != "out" else kept
    count = int(rows.sum())
    if member.side == "in":
        layer.weight = nn.Parameter(layer.weight[:, rows].clone(), layer.weight.requires_grad)
        setattr(layer, "in_channels" if isinstance(layer, nn.Conv2d) else "in_features", count)
        return
    for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if value.ndim:
            cut = value[rows].clone()
            setattr(
                layer,
                name,
                nn.Parameter(cut, value.requires_grad) if isinstance(value, nn.Parameter) else cut,
            )
    size = "num_features" if member.side == "norm" else "out_channels"
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else size, count)


def shrunk(channels: Channels, gone: Mapping[int, Tensor]) -> Channels:
    """Return the groups of the model that `without` gives."""
    groups = list(channels.groups)
    for number, mask in gone.items():
        group = groups[number]
        groups[number] = Group(int((~mask).sum()), group.members, group.fixed)
    return Channels(tuple(groups), channels.places)


@torch.no_grad()
def pruned_to(model: nn.Module, channels: Channels, speed_up: float) -> tuple[nn.Module, float]:
    """Remove the channel with the smallest importance, one (or 1/200 of all) at a time, until it is so much faster.

    Every group keeps a channel.  Returns the smaller copy and the ratio of multiply-adds that was reached.
    """
    smaller, whole = copy.deepcopy(model), channels.macs(model)
    step = max(1, sum(g.count for g in channels.groups if not g.fixed) // 200)
    while whole / channels.macs(smaller) < speed_up:
        weights, rows = weights_of(smaller, channels), []
        for number, group in enumerate(channels.groups):
            if not group.fixed and group.count > 1:
                scores = importance(weights, group)
                order = scores.argsort()[:-1]  # the largest stays
                rows += [(float(scores[i]), number, int(i)) for i in order]
        if not rows:
            break
        gone: dict[int, Tensor] = {}
        for _, number, place in sorted(rows)[:step]:
            gone.setdefault(number, torch.zeros(channels.groups[number].count, dtype=torch.bool))[place] = (
                True
            )
        smaller = without(smaller, gone, channels)
        channels = shrunk(channels, gone)
    return smaller, whole / channels.macs(smaller)
