"""Masks from scores: the largest of all or of each layer, n of every m, at random, and shuffled."""

from collections.abc import Mapping

import torch
from torch import Tensor

from workingpapers.engines.masks.densities import counts
from workingpapers.errors import WorkingPapersError


def top(scores: Tensor, count: int) -> Tensor:
    """Return a mask (the scores' shape and dtype) of exactly `count` largest scores; ties go to the first."""
    flat = scores.flatten()
    mask = torch.zeros_like(flat)
    mask[flat.argsort(descending=True, stable=True)[:count]] = 1
    return mask.reshape(scores.shape)


def keep_by_score(scores: Mapping[str, Tensor], density: float, way: str = "global") -> dict[str, Tensor]:
    """Return masks that keep the largest scores: of all layers together ("global"), or of each, which keeps its
    "uniform", "er" or "erk" share."""
    if way != "global":
        kept = counts({name: s.shape for name, s in scores.items()}, density, way)
        return {name: top(s, kept[name]) for name, s in scores.items()}
    if not 0 < density <= 1:
        raise WorkingPapersError(f"a density lies above 0 and at most at 1; got {density}")
    whole = torch.cat([s.flatten() for s in scores.values()])
    parts = top(whole, round(density * len(whole))).split([s.numel() for s in scores.values()])
    return {name: part.reshape(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def random_masks(
    weights: Mapping[str, Tensor], density: float, generator: torch.Generator, way: str = "erk"
) -> dict[str, Tensor]:
    """Return random masks with the layers' shares by `way`."""
    scores = {name: torch.rand(w.shape, generator=generator).to(w) for name, w in weights.items()}
    return keep_by_score(scores, density, way)


def shuffled(masks: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Return masks whose entries are permuted within each layer."""
    return {
        name: m.flatten()[torch.randperm(m.numel(), generator=generator).to(m.device)].reshape(m.shape)
        for name, m in masks.items()
    }


def n_of_m(scores: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """Return a mask that keeps the `n` largest scores of every `m` neighbours along the input axis.

    Scores are (out, in, ...); a number of inputs that `m` does not divide raises.
    """
    if scores.shape[1] % m:
        raise WorkingPapersError(
            f"{n}:{m} masks take a number of inputs that {m} divides; got {scores.shape[1]}"
        )
    rows = scores.movedim(1, -1)
    groups = rows.reshape(-1, m)
    order = groups.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(groups).scatter_(1, order[:, :n], 1.0)
    return mask.reshape(rows.shape).movedim(-1, 1).contiguous()
