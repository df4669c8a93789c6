"""Fused formulas whose number of coefficients is an option: polynomials and quotients of them."""

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature

from torch import Tensor

from workingpapers.kernels import pointwise
from workingpapers.kernels.pointwise import rowwise

Numbers = Sequence[Tensor | float]
Formula = Callable[[Tensor, Numbers], Tensor]


def of_coefficients(formula: Formula, count: int, *, elementwise: bool = True) -> Formula:
    """Make a fused function of x and `count` numbers (tensors of one value, or floats) of a `formula` of them.

    A formula that is not `elementwise` also reduces over dimensions of x, as norms do.
    """
    names = [f"c{i}" for i in range(count)]

    def spelled_out(x: Tensor, **c: Tensor | float) -> Tensor:
        return formula(x, [c[name] for name in names])

    spelled_out.__name__ = formula.__name__.strip("_")
    spelled_out.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("x", *names)]
    )
    fused = (pointwise if elementwise else rowwise)(spelled_out)

    def apply(x: Tensor, coefficients: Numbers) -> Tensor:
        return fused(x, **dict(zip(names, coefficients, strict=True)))

    return apply


def horner(x: Tensor, coefficients: Numbers) -> Tensor:
    """Return sum c_i x^i, of at least one coefficient; no power overflows before the sum does."""
    value = coefficients[-1] + 0 * x if len(coefficients) == 1 else coefficients[-1] * x
    for i in range(len(coefficients) - 2, 0, -1):
        value = (value + coefficients[i]) * x
    return value if len(coefficients) == 1 else value + coefficients[0]
