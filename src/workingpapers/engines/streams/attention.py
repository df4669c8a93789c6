"""Softmax attention over the last n tokens of a stream: for all of them, or for the newest alone.

    d_i <- d_i - exp(q_i k_old) + exp(q_i k_new)          normaliser of query i
    A_i <- A_i - exp(q_i k_old) v_old + exp(q_i k_new) v_new,    o_i = A_i / d_i

Retroactive attention updates the outputs of all tokens so, in O(n d) a step; single-output attention computes the
newest token's only, in O(n d) too.  Both are those of Hedegaard, Bakhtiarnia and Iosifidis.
"""

from typing import NamedTuple

import torch
from torch import Tensor

RISK = 1e8  # a normaliser that has lost this factor has lost as many digits, and is summed anew


class Memory(NamedTuple):
    """Keys and values (B, H, n, D) of the last tokens."""

    keys: Tensor
    values: Tensor


class Sums(NamedTuple):
    """Queries, keys and values (B, H, n, D) in float64; sums A (B, H, n, D), d, its largest value yet, and shifts.

    Exponents are those of q k - shift; the shift of a query is its largest product when it came, so that nothing
    overflows.  A query leaves with its token, so rounding adds up over n steps at most.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    weighted: Tensor
    normaliser: Tensor
    peak: Tensor
    shift: Tensor


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(q k / sqrt(D)) v for queries (B, H, m, D)."""
    scores = torch.matmul(query, keys.transpose(-1, -2)) * query.shape[-1] ** -0.5
    return torch.matmul(scores.softmax(-1), values)


def single_output(
    query: Tensor, key: Tensor, value: Tensor, memory: Memory | None, length: int
) -> tuple[Tensor, Memory]:
    """Return the newest token's output (B, H, 1, D), its query, key and value given, and the memory.

    It attends to itself and to the last `length` - 1 tokens before it, or fewer where the stream is younger.
    """
    if memory is not None:
        key = torch.cat([memory.keys[:, :, 1 - length :], key], 2) if length > 1 else key
        value = torch.cat([memory.values[:, :, 1 - length :], value], 2) if length > 1 else value
    return attend(query, key, value), Memory(key, value)


def retroactive(
    query: Tensor, key: Tensor, value: Tensor, sums: Sums | None, length: int
) -> tuple[Tensor, Sums]:
    """Return the outputs (B, H, n, D) of all tokens in the window now that one more has come, and the sums.

    Query, key and value (B, H, 1, D) are the new token's.  The window has at most `length` tokens.
    """
    dtype = query.dtype
    q, k, v = (x.double() for x in (query * query.shape[-1] ** -0.5, key, value))
    if sums is None or length == 1:
        sums = _fresh(q, k, v, q[:, :, :0])
    else:
        sums = _updated(sums, q, k, v, sums.keys.shape[2] >= length)
    lost = sums.normaliser * RISK < sums.peak
    if bool(lost.any()):
        again = _fresh(sums.queries, sums.keys, sums.values, sums.queries[:, :, :0])
        sums = Sums(
            *sums[:3],
            *(
                torch.where(lost[..., None] if new.ndim > lost.ndim else lost, new, old)
                for new, old in zip(again[3:], sums[3:], strict=True)
            ),
        )
    return (sums.weighted / sums.normaliser[..., None]).to(dtype), sums


def _fresh(queries: Tensor, keys: Tensor, values: Tensor, before: Tensor) -> Sums:
    """Return the sums of queries over all keys; `before` are queries whose sums are not wanted."""
    scores = torch.matmul(queries, keys.transpose(-1, -2))
    shift = scores.amax(-1)
    weights = torch.exp(scores - shift[..., None])
    total = weights.sum(-1)
    all_queries = torch.cat([before, queries], 2)
    return Sums(all_queries, keys, values, torch.matmul(weights, values), total, total, shift)


def _updated(sums: Sums, q: Tensor, k: Tensor, v: Tensor, full: bool) -> Sums:
    old_key, old_value = sums.keys[:, :, :1], sums.values[:, :, :1]
    if full:
        sums = Sums(*(x[:, :, 1:] for x in sums))
    new = torch.exp(
        torch.matmul(sums.queries, k.transpose(-1, -2)) - sums.shift[..., None]
    )  # (B, H, n - 1, 1)
    weighted, normaliser = sums.weighted + torch.matmul(new, v), sums.normaliser + new[..., 0]
    if full:
        gone = torch.exp(torch.matmul(sums.queries, old_key.transpose(-1, -2)) - sums.shift[..., None])
        weighted, normaliser = weighted - torch.matmul(gone, old_value), normaliser - gone[..., 0]
    keys, values = torch.cat([sums.keys, k], 2), torch.cat([sums.values, v], 2)
    own = _fresh(q, keys, values, sums.queries)
    return Sums(
        own.queries,
        keys,
        values,
        torch.cat([weighted, own.weighted], 2),
        torch.cat([normaliser, own.normaliser], 2),
        torch.cat([torch.maximum(sums.peak, normaliser), own.peak], 2),
        torch.cat([sums.shift, own.shift], 2),
    )
