"""Elementwise formulas against an evaluation with 50 digits: the whole bfloat16 grid and 10^5 float32 points."""

from collections.abc import Callable
from functools import cache

import mpmath
import torch
from mpmath import mp, mpf
from tests.untraced import untraced
from torch import Tensor

Exact = Callable[[mpf], mpf]

FAR = 1e5  # beyond, an exponential's exponent has more digits than memory
ULPS = 8  # roundings of float32 that a formula of a few operations may lose


def exp(x: mpf) -> mpf:
    """Return e^x, or 0 below -10^5 and e^(10^5) above 10^5; formulas here take this one and not mp.exp.

    The latter is beyond every float by far, but finite, so that 0 * exp(x) is 0 and no NaN.
    """
    return mp.exp(min(x, FAR)) if x >= -FAR else mpf(0)


@cache
def grid() -> tuple[Tensor, Tensor]:
    """Return all finite bfloat16 values up to 1e30 in size, and 10^5 float32 points of all sizes, as float32."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    generator = torch.Generator().manual_seed(0)
    even = torch.rand(50_000, generator=generator) * 40 - 20
    sizes = torch.exp(torch.rand(49_990, generator=generator) * 60 - 40)
    signs = torch.randint(0, 2, (49_990,), generator=generator) * 2.0 - 1
    extremes = torch.tensor([0.0, 1e-38, 1e-45, 87.0, 88.8, 89.0, 103.9, 104.0, 1e4, 1e18])
    return every[every.abs() <= 1e30], torch.cat([even, sizes * signs, extremes])


def expect_exact(
    function: Callable[[Tensor], Tensor], exact: Exact, slope: Exact, *, ulps: float = ULPS, every: int = 1
) -> None:
    """Assert that an elementwise `function` and its gradient are those of `exact` and `slope` in 50 digits.

    The error allowed to a value y is `ulps` float32 roundings of the largest of |y| and |x y'|, what rounding x
    alone may cost; to a slope y' it is `ulps` roundings of the larger of |y'| and 1.  In bfloat16 one rounding
    of the result is added.  What is smaller than float32's least normal number (times |x|, of a product with x)
    may be zero.  `every` thins the points for formulas that take long in 50 digits.
    """
    with mp.workdps(50):
        brain, single = (points[::every] for points in grid())
        for points, dtype in ((brain, torch.bfloat16), (brain, torch.float32), (single, torch.float32)):
            x = points.to(dtype).requires_grad_()
            y = function(x)
            (found,) = torch.autograd.grad(y.sum(), x)
            _expect(points, y.detach(), found, exact, slope, ulps, 0.0 if dtype == torch.float32 else 2.0**-8)


def _expect(
    x: Tensor, y: Tensor, found: Tensor, exact: Exact, slope: Exact, ulps: float, rounding: float
) -> None:
    values, slopes = (_evaluated(f, x) for f in (exact, slope))
    unit = ulps * 2.0**-24
    allowed = (
        unit * torch.maximum(values.abs(), (x.double() * slopes).abs()) + rounding * values.abs(),
        unit * slopes.abs().clamp(min=1) + rounding * slopes.abs(),
    )
    for what, got, true, most in zip(("value", "slope"), (y, found), (values, slopes), allowed, strict=True):
        error = (got.double() - true).abs()
        most = most + torch.finfo(torch.float32).tiny * x.double().abs().clamp(min=1)
        bad = ~(error <= most)  # not "error > most": a NaN is wrong as well
        bad &= true.abs() < (1 - 2.0**-8) * torch.finfo(y.dtype).max  # beyond, infinity is right
        if bad.any():
            i = int(torch.where(bad, torch.nan_to_num(error / most, nan=torch.inf), -1.0).argmax())
            raise AssertionError(
                f"at x = {x[i].item()!r} in {y.dtype} the {what} is {got[i].item()!r}, not {true[i].item()!r} "
                f"({int(bad.sum())} of {len(x)} points are off)"
            )


_known: dict[tuple[Exact, int, int], Tensor] = {}


def _evaluated(function: Exact, x: Tensor) -> Tensor:
    key = function, x.data_ptr(), len(x)  # the bfloat16 points are asked for in two dtypes
    if key not in _known:
        with untraced():
            values = [float(function(mpmath.mpf(v))) for v in x.tolist()]
        _known[key] = torch.tensor(values, dtype=torch.float64)
    return _known[key]
