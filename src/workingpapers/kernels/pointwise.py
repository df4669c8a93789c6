"""Elementwise formulas: written once in torch operations, computed in at least float32."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LOW_PRECISION = (torch.bfloat16, torch.float16)


def pointwise(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make an elementwise `formula(x, ...)` safe for every floating dtype.

    Half-precision inputs are computed in float32 and rounded once at the end; other dtypes as they are.

    Raises:
        TypeError: where `x` is no floating tensor.
    """

    @functools.wraps(formula)
    def apply(x: Tensor, *parameters: Any, **named: Any) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TypeError(f"{formula.__name__} takes a floating-point tensor; got {came}")
        if x.dtype in LOW_PRECISION:
            return formula(x.float(), *parameters, **named).to(x.dtype)
        return formula(x, *parameters, **named).to(x.dtype)

    return apply
