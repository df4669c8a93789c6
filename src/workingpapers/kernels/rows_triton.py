"""The Triton forms of `rows`: a program takes a block of neurons, reads the rows of those that are on, and
adds up.

A load that is masked off moves no memory, so the rows of neurons that are off cost nothing, wherever they
lie.  Sums are in float32; the programs' shares of the output meet in atomic additions, whose order is not
fixed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NEURONS, COLUMNS = 16, 512  # of a block


@triton.jit
def _rows(  # type: ignore[no-untyped-def]  # Triton reads the annotations
    v, up, up_scale, bias, down, down_scale, x, out, threshold, neurons, into, width,
    GATED: tl.constexpr, BIASED: tl.constexpr, SCALED: tl.constexpr, NEURONS: tl.constexpr, COLUMNS:
    tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1) * NEURONS + tl.arange(0, NEURONS)
    vector = tl.program_id(0)
    values = tl.load(v + vector * neurons + which, mask=which < neurons, other=0.0).to(tl.float32)
    on = (tl.abs(values) >= threshold) & (values != 0) | (values != values)
    values = tl.where(on, values, 0.0)
    if tl.sum(on.to(tl.int32), 0) > 0:
        if GATED:
            product = tl.zeros([NEURONS], tl.float32)
            for start in range(0, into, COLUMNS):
                column = start + tl.arange(0, COLUMNS)
                here = on[:, None] & (column < into)[None, :]
                weight = tl.load(
                    up + which.to(tl.int64)[:, None] * into + column[None, :], mask=here, other=0.0
                )
                entry = tl.load(x + vector * into + column, mask=column < into, other=0.0).to(tl.float32)
                product += tl.sum(weight.to(tl.float32) * entry[None, :], 1)
            if SCALED:
                product *= tl.load(up_scale + which, mask=on, other=0.0)
            if BIASED:
                product += tl.load(bias + which, mask=on, other=0.0).to(tl.float32)
            values *= product
        if SCALED:
            values *= tl.load(down_scale + which, mask=on, other=0.0)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            here = on[:, None] & (column < width)[None, :]
            weight = tl.load(
                down + which.to(tl.int64)[:, None] * width + column[None, :], mask=here, other=0.0
            )
            share = tl.sum(weight.to(tl.float32) * values[:, None], 0)
            tl.atomic_add(out + vector * width + column, share, mask=column < width)


def rows(
    v: Tensor,
    down: Tensor,
    threshold: float,
    up: Tensor | None = None,
    x: Tensor | None = None,
    bias: Tensor | None = None,
    scales: tuple[Tensor | None, Tensor] | None = None,
) -> Tensor:
    """Return `rows.gated_rows`, or without `up` and `x` `rows.weighted_rows`, of v (batch, neurons).

    Args:
        v: what weighs the rows, (batch, neurons).
        down: (neurons, width), floating or int8.
        threshold: smaller entries of `v` count as 0.
        up: (neurons, in), of the same dtype as `down`.
        x: (batch, in).
        bias: (neurons,).
        scales: of int8 weights, a number a row, float32 (neurons,): of `up` and of `down`.

    Returns:
        (batch, width) in the dtype of `v`.
    """
    batch, neurons = v.shape
    width = down.shape[1]
    out = torch.zeros(batch, width, dtype=torch.float32, device=v.device)
    up_scale, down_scale = scales or (None, None)
    grid = (batch, triton.cdiv(neurons, NEURONS))  # the vectors of a block come together and share its reads
    _rows[grid](
        v.contiguous(),
        up if up is None else up.contiguous(),
        up_scale,
        bias,
        down.contiguous(),
        down_scale,
        x if x is None else x.contiguous(),
        out,
        threshold,
        neurons,
        0 if up is None else up.shape[1],
        width,
        GATED=up is not None,
        BIASED=bias is not None,
        SCALED=scales is not None,
        NEURONS=NEURONS,
        COLUMNS=COLUMNS,
    )
    return out.to(v.dtype)
