"""One round of pruning by a base pruner and AP beside it, on weights given by layer."""

import torch
from torch import Tensor

Scores = dict[str, Tensor]

CHOICES = ("negative slow", "negative fast", "positive slow", "random")


def next_masks(
    weights: Scores,
    before: Scores,
    masks: Scores,
    scores: Scores,
    amounts: tuple[float, float],
    choose: str = "negative slow",
    by_layer: bool = False,
    generator: torch.Generator | None = None,
) -> Scores:
    """Return the masks (bool) after one round of pruning.

    Args:
        weights, before: by layer, at the end and the start of the round's training.
        masks: what is left so far.
        scores: the base pruner's; the smallest go first.
        amounts: percentages (p, q) of what is left: p in all, of which AP takes q.
        choose: which weights AP takes; where there are too few of them the base pruner takes the rest.
        by_layer: let the base pruner take the same share of each layer.
        generator: for choose="random".
    """
    names, sizes = list(weights), [w.numel() for w in weights.values()]
    w, old, left, score = (
        torch.cat([part[n].flatten() for n in names]) for part in (weights, before, masks, scores)
    )
    left = left.bool()
    count = int(left.sum())
    by_ap = round(amounts[1] / 100 * count)
    by_base = round(amounts[0] / 100 * count) - by_ap
    gone = torch.zeros_like(left)
    for part in torch.arange(len(w)).split(sizes) if by_layer else (torch.arange(len(w)),):
        share = round(by_base * int(left[part].sum()) / count) if by_layer else by_base
        gone[part[_least(score[part], left[part], share)]] = True
    moved = (w - old).abs()
    sign, _, speed = choose.partition(" ")
    if choose == "random":
        key, eligible = torch.rand(w.shape, generator=generator).to(w), left & ~gone
    else:
        key = -moved if speed == "fast" else moved
        eligible = left & ~gone & (w < 0 if sign == "negative" else w > 0)
    taken = _least(key, eligible, by_ap)
    gone[taken] = True
    gone[_least(score, left & ~gone, by_ap - len(taken))] = True
    parts = (left & ~gone).split(sizes)
    return {name: part.reshape(weights[name].shape) for name, part in zip(names, parts, strict=True)}


def _least(key: Tensor, eligible: Tensor, count: int) -> Tensor:
    """Return the places of the `count` smallest keys among those eligible, fewer where there are fewer."""
    places = eligible.nonzero().flatten()
    return places[key[places].argsort(stable=True)[:count]]
