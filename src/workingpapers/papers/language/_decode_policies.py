"""Which cached tokens each decoding step attends to: policies behind the attention interface of transformers.

A policy belongs to one attention layer.  It sees each call: queries (B, H, T, D), keys and values (B, G, n, D) of G
key-value heads, and a mask (B, 1, T, n) or None.  Calls with T > 1 (prompts) and the first of a sequence are full.
Positions are kept as distances from the newest token, which stay right where a sliding cache drops its oldest.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError

NAME = "workingpapers_policy"
Full = Callable[[], Tensor]  # full attention as transformers computes it: (B, T, H, D)


def shares(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Return the attention of single queries (B, H, 1, D), by key-value head: (B, G, H / G, n), in float32."""
    grouped = query.unflatten(1, (key.shape[1], -1)).squeeze(3)  # (B, G, H / G, D)
    scores = torch.matmul(grouped, key.transpose(-1, -2)).float() * scaling
    if mask is not None:
        row = mask[:, :, -1:]
        scores = scores.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else scores + row.float()
    return scores.softmax(-1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, at: Tensor
) -> Tensor:
    """Return the outputs (B, 1, H, D) of single queries over positions `at` (B, G, K), negative ones left out."""
    batch, groups, n, _ = key.shape
    heads = torch.arange(batch * groups, device=key.device).view(batch, groups, 1)
    index = (heads * n + at.clamp(min=0)).flatten()  # whole rows: several times faster than gather
    keys, values = (
        x.flatten(0, 2).index_select(0, index).view(batch, groups, -1, x.shape[-1]) for x in (key, value)
    )
    row: Tensor = (at >= 0)[:, :, None]  # (B, G, 1, K)
    if mask is not None:
        own = mask[:, :, -1:].expand(-1, groups, -1, -1).gather(3, at.clamp(min=0)[:, :, None])
        row = row & own if own.dtype == torch.bool else own.masked_fill(~row, -torch.inf)
    grouped = query.unflatten(1, (key.shape[1], -1)).squeeze(3)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=row, scale=scaling)
    return out.flatten(1, 2)[:, None]


class Policy(nn.Module):
    """Attends to all; others say what they read by `positions`.

    Attributes:
        budget: how many tokens a step may read: a count, or a share (below 1) of those that there are.
        watch: also compute how much of the true attention the tokens read have (`mass`), for each step.
        read: tokens read and tokens there in each decoding step.
    """

    def __init__(self, budget: float) -> None:
        super().__init__()
        if not budget > 0:
            raise WorkingPapersError(
                f"a budget is a count of tokens or a share of them above 0; got {budget}"
            )
        self.budget, self.watch = budget, False
        self.length = 0
        self.mass: list[float] = []
        self.read: list[tuple[int, int]] = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come back from a file; in a new process transformers must hear of policies first."""
        from workingpapers.papers.language._policy_attention import register

        super().__setstate__(state)  # type: ignore[no-untyped-call]
        register()

    def count(self, n: int) -> int:
        """Return the budget where there are `n` tokens."""
        return max(math.ceil(self.budget * n) if self.budget < 1 else int(self.budget), 1)

    def positions(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor | None:
        """Return the positions (B, G, K) that this step reads, None for all."""
        return None

    def whole(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Take note of a prompt (the newest query is the last)."""

    def after(self, found: Tensor | None, key: Tensor, chosen: Tensor | None) -> None:
        """Take note of a step: of the attention (B, G, H / G, n), where it was computed, and what was read."""

    def needs_all(self, n: int) -> bool:
        """Tell whether `after` wants the attention to all `n` tokens of a full step."""
        return False

    def run(
        self,
        module: nn.Module,
        tensors: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        scaling: float,
        full: Full,
    ) -> Tensor:
        """Return what attention gives, (B, T, H, D)."""
        query, key, value = tensors
        steps, n = query.shape[2], key.shape[2]
        window = getattr(module, "sliding_window", None) or n
        goes_on = steps == 1 and self.length > 0 and n == min(self.length + 1, window)
        self.length = n
        if not goes_on:
            self.whole(query, key, mask, scaling)
            return full()
        chosen = self.positions(query, key, mask, scaling)
        chosen = None if chosen is not None and chosen.shape[-1] >= n else chosen
        self.read.append((n if chosen is None else chosen.shape[-1], n))
        seen = (
            shares(query, key, mask, scaling)
            if self.watch or (chosen is None and self.needs_all(n))
            else None
        )
        if self.watch and seen is not None:
            self.mass.append(1.0 if chosen is None else captured(seen, chosen))
        self.after(seen, key, chosen)
        if chosen is not None:
            return attend(query, key, value, mask, scaling, chosen)
        if seen is None or self.watch:
            return full()
        return torch.matmul(seen.to(value.dtype), value).flatten(1, 2)[:, None]


def captured(seen: Tensor, chosen: Tensor) -> float:
    """Return the mean share of the attention (B, G, R, n) that the positions (B, G, K) have."""
    at = chosen.clamp(min=0)[:, :, None].expand(-1, -1, seen.shape[2], -1)
    return float((seen.gather(3, at) * (chosen >= 0)[:, :, None]).sum(-1).mean())


class Recycled(Policy):
    """Reads all in each `stride`-th step, and in between what that step attended to most and what came since.

    Args:
        budget: K.
        stride: S, at most so many steps from one full step to the next.
        recent: share of K that goes to the newest tokens before the full step.
        threshold: a full step also where the mean cosine of the query with that of the last full step is below.
        min_stride: but not sooner than so many steps after it.
    """

    def __init__(
        self, budget: float, stride: int, recent: float, threshold: float | None, min_stride: int
    ) -> None:
        super().__init__(budget)
        if stride < 1 or not 1 <= min_stride <= stride:
            raise WorkingPapersError(
                f"strides are counts of steps, 1 <= min_stride <= stride; got {min_stride} and {stride}"
            )
        if not 0 <= recent < 1:
            raise WorkingPapersError(f"the share of recent tokens is 0 to below 1; got {recent}")
        if threshold is not None and not -1 <= threshold <= 1:
            raise WorkingPapersError(f"the threshold is a cosine, -1 to 1; got {threshold}")
        self.stride, self.recent, self.threshold, self.min_stride = stride, recent, threshold, min_stride
        self.continued = False
        self.back: Tensor | None = None  # distances of the set from the newest token of the full step
        self.query: Tensor | None = None
        self.age = 0

    def needs_all(self, n: int) -> bool:
        """Tell whether the next steps will need a set."""
        return self.stride > 1 and self.count(n) < n

    def select(self, seen: Tensor) -> Tensor:
        """Return the positions (..., K) of the newest and of the most attended tokens of (..., n)."""
        n = seen.shape[-1]
        count = min(self.count(n), n)
        recent = min(int(self.recent * count), count - 1)
        newest = torch.arange(n - recent, n, device=seen.device).expand(*seen.shape[:-1], recent)
        top = seen[..., : n - recent].topk(count - recent).indices
        return torch.cat([top, newest], -1)

    def whole(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Take the set from the prompt's last token."""
        self._everything(query[:, :, -1:], key)
        if self.needs_all(key.shape[2]):
            self._full(shares(query[:, :, -1:], key, mask, scaling), query[:, :, -1:])

    def _everything(self, query: Tensor, key: Tensor) -> None:
        """Begin a full step whose set, unless a choice is made, are all tokens."""
        self.back = torch.arange(key.shape[2], device=key.device).expand(*key.shape[:2], -1)
        self.query, self.age = query, 0

    def _full(self, seen: Tensor, query: Tensor) -> None:
        self.back = seen.shape[-1] - 1 - self.select(seen.mean(2))
        self.query, self.age = query, 0

    def positions(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor | None:
        """Return the last full step's set and the tokens since; None where this step is full."""
        self.age += 1
        due = self.back is None or self.query is None or self.back.shape[0] != len(query)
        if due or self.age >= self.stride or self._moved(query):
            self._everything(query, key)
            return None
        n, back = key.shape[2], self.back
        assert back is not None
        since = torch.arange(n - self.age, n, device=key.device).expand(*back.shape[:2], -1)
        return torch.cat([n - 1 - self.age - back, since], -1)

    def _moved(self, query: Tensor) -> bool:
        if self.threshold is None or self.query is None or self.age < self.min_stride:
            return False
        return bool((F.cosine_similarity(query, self.query, -1).mean((1, 2)) < self.threshold).any())

    def after(self, found: Tensor | None, key: Tensor, chosen: Tensor | None) -> None:
        """Take the set from a full step."""
        if chosen is None and self.age == 0 and found is not None and self.query is not None:
            self._full(found, self.query)

    def training_mask(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Return which keys a query would see in decoding, (B, H, T, T) bool, with full steps at 0, S, 2 S..."""
        steps, groups = query.shape[2], key.shape[1]
        seen = torch.ones(steps, steps, dtype=torch.bool, device=query.device).tril()
        full = seen if mask is None else seen & (mask if mask.dtype == torch.bool else mask > -1)
        out = full.expand(len(query), groups, steps, steps).clone()
        for start in range(0, steps, self.stride):
            row = full[..., start : start + 1, : start + 1]
            row = row if row.ndim == 4 else row[None, None]
            found = shares(query[:, :, start : start + 1], key[:, :, : start + 1], row, scaling)
            kept = torch.zeros(len(query), groups, steps, dtype=torch.bool, device=query.device)
            kept.scatter_(2, self.select(found.mean(2)), True)
            kept[:, :, start + 1 :] = True
            out[:, :, start + 1 : start + self.stride] &= kept[:, :, None]
        return out.repeat_interleave(query.shape[1] // groups, 1)


class Streaming(Policy):
    """StreamingLLM: the first four tokens and the newest ones, K in all."""

    def positions(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor | None:
        """Return the first four and the newest positions."""
        n = key.shape[2]
        count = min(self.count(n), n)
        sinks = min(4, count - 1)
        at = torch.cat([torch.arange(sinks), torch.arange(n - count + sinks, n)]).to(key.device)
        return at.expand(len(key), key.shape[1], -1)


class Oracle(Policy):
    """The K tokens that this very step attends to most."""

    def positions(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor | None:
        """Return the most attended positions."""
        seen = shares(query, key, mask, scaling).mean(2)
        return seen.topk(min(self.count(key.shape[2]), key.shape[2])).indices


class HeavyHitters(Policy):
    """H2O: half of K for the newest tokens, half for those with the largest sum of attention; others are gone."""

    def __init__(self, budget: float) -> None:
        super().__init__(budget)
        self.total: Tensor | None = None  # sums of attention (B, G, n); -inf for what is gone

    def whole(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Sum the attention of the whole prompt."""
        groups, steps = key.shape[1], query.shape[2]
        scores = (
            torch.matmul(query.unflatten(1, (groups, -1)), key[:, :, None].transpose(-1, -2)).float()
            * scaling
        )
        hidden = ~torch.ones(steps, key.shape[2], dtype=torch.bool, device=key.device).tril(
            key.shape[2] - steps
        )
        if mask is not None:
            hidden = hidden | (~mask if mask.dtype == torch.bool else mask < -1)[:, :, None]
        attention = (
            scores.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num(0.0)
        )  # rows of padding see none
        self.total = attention.sum((2, 3))

    def positions(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor | None:
        """Return what is left, with the new token."""
        n, total = key.shape[2], self.total
        if total is None or total.shape[0] != len(key) or total.shape[2] != n - 1:
            raise WorkingPapersError(
                "the heavy-hitter baseline goes on with the batch of its prompt, without sliding caches"
            )
        count = min(self.count(n), n)
        recent = max(count // 2, 1)
        total = F.pad(total, (0, 1))
        ranked = total.clone()
        ranked[:, :, n - recent :] = torch.inf
        at = ranked.topk(count).indices
        gone = torch.ones_like(total, dtype=torch.bool).scatter_(2, at, False)
        self.total = total.masked_fill(gone, -torch.inf)
        seen = shares(query, key.gather(2, at[..., None].expand(-1, -1, -1, key.shape[-1])), None, scaling)
        self.total.scatter_add_(2, at, seen.sum(2))
        return at
