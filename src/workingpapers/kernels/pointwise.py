"""Elementwise formulas: written once in torch operations, fused into one pass where that pays.

`@pointwise` makes of a formula a function that is exact in every floating dtype (half precision is computed in
float32 and rounded once), and fast: large tensors go through one compiled kernel forward and one backward, and
nothing but the inputs is kept in between.  Small tensors, `torch.compile`, `torch.export`, forward-mode and
higher derivatives, `vmap` and tensor subclasses see the formula itself.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor
from torch.fx import Proxy

from workingpapers.kernels.fusion import LOW_PRECISION, Formula, fused, fuses

__all__ = ["LOW_PRECISION", "per_channel", "pointwise", "rowwise"]


def pointwise(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make an elementwise `formula(x, ...)` safe for every floating dtype, and fused on large tensors.

    Further arguments are numbers, or tensors that broadcast against `x`: as large as `x` (a gate), one value
    a channel (see `per_channel`), or one value.  The formula consists of out-of-place torch operations and
    is differentiable by autograd; derivatives need no code of their own.

    Raises:
        TypeError: where `x` is no floating tensor.
    """
    return _dispatched(formula, elementwise=True)


def rowwise(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a `formula(x, ...)` that also reduces over dimensions of `x`, as norms do, safe and fused likewise.

    Raises:
        TypeError: where `x` is no floating tensor.
    """
    return _dispatched(formula, elementwise=False)


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """Return `parameter`, one value a channel, shaped to broadcast against the channels of `x` (axis 1).

    A single value is returned as it is.
    """
    return parameter if parameter.ndim == 0 else parameter.view(-1, *[1] * (x.ndim - 2))


def _dispatched(formula: Callable[..., Tensor], *, elementwise: bool) -> Callable[..., Tensor]:
    whole = Formula(formula, inspect.signature(formula), elementwise)

    @functools.wraps(formula)
    def apply(x: Tensor, *parameters: Any, **named: Any) -> Tensor:
        if isinstance(x, Proxy):  # torch.fx traces: the whole formula is one node of the graph
            node: Any = x.tracer.create_proxy("call_function", apply, (x, *parameters), named)
            return cast(Tensor, node)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TypeError(f"{formula.__name__} takes a floating-point tensor; got {came}")
        if fuses(whole, x):
            return fused(whole, x, *parameters, **named)
        return whole(x, *parameters, **named)

    return apply
