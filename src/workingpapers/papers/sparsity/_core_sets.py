"""Core neurons: which neurons of a feed-forward layer a prompt fires most, and layers that compute those alone."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.skipping import note, skipper
from workingpapers.surgery._unit_tracing import transposed
from workingpapers.surgery.feedforward import FeedForward
from workingpapers.surgery.intercept import subclass


def sentence_core(h: Tensor, count: int, alpha: float) -> Tensor:
    """Return the core neurons (count,), sorted, of a sentence by its activations h (tokens, neurons).

    A token's core is its L largest entries, L = int(alpha times the mean number of positive entries of a token).
    The sentence's is the neurons in most tokens' cores, ties by the summed activation.
    """
    largest = max(1, int(alpha * float((h > 0).sum(-1).double().mean())))
    places = h.topk(min(largest, h.shape[-1]), -1).indices.flatten()
    votes = torch.zeros(h.shape[-1], dtype=torch.float64, device=h.device)
    votes.index_add_(0, places, torch.ones_like(places, dtype=torch.float64))
    by_sum = h.double().sum(0).argsort().argsort()  # ranks, so that only ties of votes are decided
    return (votes * len(by_sum) + by_sum).topk(count).indices.sort().values


def overlap(one: Tensor, other: Tensor) -> float:
    """Return the Jaccard overlap of two sets of neurons."""
    both = len(set(one.tolist()) & set(other.tolist()))
    return both / (len(one) + len(other) - both)


Choose = Callable[[Tensor], Tensor]  # activations (tokens, neurons) of a prompt -> core neurons


@dataclass
class Director:
    """What a model's feed-forward layers share: (batch, tokens) of a call, its padding, its prompts' groups."""

    shape: tuple[int, ...] = ()
    mask: Tensor | None = None
    group: Tensor | None = None


@dataclass
class Core:
    """The core of one feed-forward layer: how it is chosen, and the neurons (batch, count) since the last prompt.

    `width` is the number of its neurons, `alpha` the share of a token's positive entries in that token's core.
    """

    width: int
    count: int
    alpha: float
    director: Director
    index: Tensor | None = None
    gathered: dict[str, list[Tensor]] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to the last prompt."""
        return {**self.__dict__, "index": None, "gathered": {}}

    def see(self, h: Tensor, sets: Tensor | None) -> None:
        """Choose the core by the activations h (batch, tokens, neurons) of a prompt, or among those of groups."""
        self.gathered.clear()
        if sets is not None and self.director.group is not None:
            self.index = sets[self.director.group]
            return
        mask = self.director.mask
        fits = mask is not None and mask.shape == h.shape[:2]
        rows = [row[m] if fits else row for row, m in zip(h, mask if fits else h, strict=True)]  # type: ignore[arg-type]
        self.index = torch.stack([sentence_core(row, self.count, self.alpha) for row in rows])


class MaskKeeper:
    """A hook in front of a model that tells its feed-forward layers which tokens are padding."""

    def __init__(self, director: Director) -> None:
        self.director = director

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Keep what a call's arguments tell."""
        tokens = [kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args]
        first = next((t for t in tokens if isinstance(t, Tensor) and t.ndim > 1), None)
        self.director.shape = () if first is None else tuple(first.shape[:2])
        mask = kwargs.get("attention_mask")
        self.director.mask = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self.director.group = None


def core_layers(layer: FeedForward, core: Core) -> None:
    """Let the linear layers of a feed-forward layer compute core neurons alone when one token comes at a time."""
    roles = {layer.gate.layer: "rows", layer.down.layer: "columns"}
    if layer.up is not None:
        roles[layer.up.layer] = "rows"
    for module, role in roles.items():
        base: Any = type(module)
        module.__dict__["core"], module.__dict__["core_role"] = core, role
        if base.__dict__.get("workingpapers_make") is not core_class:
            module.__class__ = core_class(base)


@functools.cache
def core_class(base: Any) -> Any:
    """Return the subclass of a linear layer's class that knows a core.

    More than one token at a time is a prompt: computed in full, and the core chosen from it.
    """

    @functools.wraps(base.forward)
    def forward(self: Any, x: Tensor) -> Any:
        core: Core = self.core
        if x.ndim == 2 and len(core.director.shape) == 2 and len(x) == math.prod(core.director.shape):
            return forward(self, x.unflatten(0, core.director.shape)).flatten(0, 1)
        prompt = x.ndim != 3 or x.shape[1] != 1
        if prompt or core.index is None or len(core.index) != len(x):
            if self.core_role == "columns" and x.ndim == 3 and x.shape[1] > 1:
                core.see(x.detach(), self._buffers.get("core_sets"))
            elif self.core_role == "rows" and x.ndim == 3 and x.shape[1] > 1:
                _find_group(self, x.detach())
            return base.forward(self, x)
        return _among(self, x, core)

    return skipper(subclass(base, forward, core_class))


def _find_group(layer: Any, x: Tensor) -> None:
    centres, director = layer._buffers.get("core_centres"), layer.core.director
    if centres is not None and director.group is None:
        director.group = torch.cdist(sentence_means(x, director.mask), centres.to(x)).argmin(1)


def sentence_means(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean (batch, width) over tokens of x (batch, tokens, width) that are no padding."""
    if mask is None or mask.shape != x.shape[:2]:
        return x.mean(1)
    weights = mask.to(x)[..., None]
    return (x * weights).sum(1) / weights.sum(1).clamp_min(1)


def _among(layer: Any, x: Tensor, core: Core) -> Tensor:
    """Compute a layer for one token a sequence by its core's rows or columns, gathered at the first such token."""
    key = str(id(layer))
    if key not in core.gathered:
        core.gathered[key] = _gather(layer, core)
    weight, bias = core.gathered[key]
    kept = (torch.arange(core.width, device=x.device) < core.count).expand(*x.shape[:2], -1)
    note(
        layer,
        kept,
        weight[0].numel() // max(1, core.count),
        0,
        layer.weight.numel(),
    )
    if len(weight) == 1:
        return F.linear(x, weight[0], bias[0] if len(bias) else None)
    found = torch.einsum("bti,boi->bto", x, weight)
    return found + bias[:, None] if len(bias) else found


def _gather(layer: Any, core: Core) -> list[Tensor]:
    assert core.index is not None
    weight = layer.weight.detach()
    weight = weight.t() if transposed(layer) else weight
    none = weight.new_empty(0)
    if layer.core_role == "columns":
        bias = none if layer.bias is None else layer.bias.detach().expand(len(core.index), -1)
        return [torch.stack([weight[:, i] for i in core.index]), bias]
    parts = len(weight) // core.width  # of a fused layer, whose parts follow one another
    index = torch.cat([core.index + part * core.width for part in range(parts)], 1)
    bias = none if layer.bias is None else layer.bias.detach()[index]
    return [weight[index], bias]
