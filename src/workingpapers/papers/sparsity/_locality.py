"""Losses and measures of how many experts neighbouring tokens share, on router logits (..., T, E)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError


def locality_loss(logits: Tensor, steepness: float = 100.0, detach: bool = False) -> Tensor:
    """Return the mean cross-entropy of which experts a token and the next one switch on.

    BCE(sigmoid(s l_t) against sigmoid(s l_t+1)) over adjacent tokens and experts; the target carries gradients too,
    as in the authors' code, unless `detach`.  Sequences of one token give 0.
    """
    if logits.shape[-2] < 2:
        return (logits * 0).sum()
    left, right = steepness * logits[..., :-1, :], torch.sigmoid(steepness * logits[..., 1:, :])
    return F.binary_cross_entropy_with_logits(left, right.detach() if detach else right)


def shares(logits: Tensor) -> Tensor:
    """Return relu(logits) over their sum, a token's chances of the experts; 0 where no expert is on."""
    a = logits.relu()
    return a / a.sum(-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)


def chunk_loss(logits: Tensor, chunk: int = 64) -> Tensor:
    """Return the mean chance that an expert is used somewhere in a chunk of consecutive tokens.

    1 - prod over the chunk of (1 - p_te), mean over chunks and experts; the last chunk may be shorter.
    """
    if chunk < 1:
        raise WorkingPapersError(f"a chunk has at least one token; got {chunk}")
    unused = 1 - shares(logits)
    padded = F.pad(unused, (0, 0, 0, -logits.shape[-2] % chunk), value=1.0)
    used: Tensor = 1 - padded.unflatten(-2, (-1, chunk)).prod(-2)
    return used.mean()


def token_sparsity(gates: Tensor) -> float:
    """Return the share of experts that are off, mean over tokens, of gates (..., E)."""
    return float((gates == 0).double().mean())


def chunk_sparsity(gates: Tensor, tokens: int = 8) -> float:
    """Return the share of experts off for all of `tokens` consecutive ones, of gates (..., T, E).

    Chunks lie side by side; what is left over at a sequence's end does not count.
    """
    length = gates.shape[-2] // tokens * tokens
    if tokens < 1 or not length:
        raise WorkingPapersError(
            f"sequences of {gates.shape[-2]} tokens have no chunk of {tokens} tokens to measure"
        )
    off = (gates[..., :length, :] == 0).unflatten(-2, (-1, tokens)).all(-2)
    return float(off.double().mean())


class ChunkWeight:
    """The adaptive weight of the chunk loss: it follows how that loss falls or rises.

    Constant for `stable` steps; then, every so many steps, it moves linearly to its value times the ratio of the
    loss's means over the last and the last but one stretch; a ratio above 1 is at least `least`, and the weight
    never exceeds `most` times the first.

    Args:
        start: the weight at first.
        stable: steps without change.
        every: steps of a stretch.
        most: largest weight over the first.
        least: least growth where the loss rises.
    """

    def __init__(
        self, start: float, stable: int = 1000, every: int = 100, most: float = 2.0, least: float = 1.0
    ) -> None:
        if start < 0 or every < 1 or most < 1:
            raise WorkingPapersError(
                f"a weight is at least 0, a stretch 1 step, the largest factor 1; got {start}, {every}, {most}"
            )
        self.start, self.stable, self.every, self.most, self.least = start, stable, every, most, least
        self.base, self.ratio, self.since, self.done = start, 1.0, 0, 0
        self.before: list[float] = []
        self.recent: list[float] = []

    def step(self, loss: float) -> float:
        """Note the chunk loss of a step and return the weight for it."""
        self.done += 1
        self.recent.append(loss)
        value = self.base * (1 + (self.ratio - 1) * min(1.0, self.since / self.every))
        if self.done % self.every == 0:
            if self.done >= self.stable and self.before and value > 0 and sum(self.before) > 0:
                ratio = sum(self.recent) * len(self.before) / (sum(self.before) * len(self.recent))
                ratio = max(self.least, ratio) if ratio > 1 else ratio
                self.base, self.since = value, 0
                self.ratio = min(self.start * self.most / value, ratio)
            self.before, self.recent = self.recent, []
        self.since += 1
        return value

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on."""
        names = ("base", "ratio", "since", "done")
        return {n: getattr(self, n) for n in names} | {"before": [*self.before], "recent": [*self.recent]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        for name, value in state.items():
            setattr(self, name, [*value] if isinstance(value, list) else value)
