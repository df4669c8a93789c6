"""Attention masks: bool, True where a query sees a key, or added to the scores, -inf where it does not."""

import torch
from torch import Tensor


def with_causal(mask: Tensor | None, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """Return the mask, bool or added, that also hides later keys if `causal`; None where all is seen."""
    if not causal:
        return mask
    earlier = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is None:
        return earlier
    return mask & earlier if mask.dtype == torch.bool else mask.masked_fill(~earlier, -torch.inf)


def seen(mask: Tensor | None) -> Tensor | None:
    """Return which keys a mask leaves, None for all."""
    return mask if mask is None or mask.dtype == torch.bool else mask > -torch.inf


def keys_seen(mask: Tensor | None, key: Tensor) -> int | Tensor:
    """Return how many of the keys (..., Lk, d) each query sees, as a number or (..., Lq, 1)."""
    visible = seen(mask)
    if visible is None:
        return key.shape[-2]
    return visible.expand(*visible.shape[:-1], key.shape[-2]).sum(-1, keepdim=True)
