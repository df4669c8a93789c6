"""How many directions the rows of a matrix fill: exact and soft notions of rank, from the singular values.

    stable = sum s^2 / s_1^2        nuclear = (sum s)^2 / sum s^2
    participation = (sum s^2)^2 / sum s^4        entropy = exp(-sum p log p),  p = s / sum s

All lie between 1 and the exact rank, are 0 for the matrix of zeros, equal the exact rank where the singular
values that are not 0 are all alike, and do not change when rows or columns are scaled together, rotated or
permuted.  Sources: Rudelson and Vershynin 2007 (stable), Gao et al. 2017 (participation, of the covariance's
eigenvalues), Roy and Vetterli 2007 (entropy; their effective rank).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError

TOLERANCES = (1e-2, 1e-3, 1e-6)
EXACT = 1e-10  # singular values below this share of the largest count as 0, in float64


def singular_values(rows: Tensor, centre: bool = False) -> Tensor:
    """Return the singular values (min(n, units),) of `rows` (n, ...), largest first, in float64.

    Further dimensions are flattened to units.  `centre` subtracts the mean of each column first, so that the
    values are those of the covariance, up to a factor of sqrt(n).  The time grows as n units min(n, units).

    Raises:
        WorkingPapersError: for less than two dimensions, an empty matrix, complex or infinite numbers.
    """
    if rows.ndim < 2 or rows.numel() == 0 or rows.is_complex():
        raise WorkingPapersError(
            f"ranks are those of real rows (n, units), neither empty; got {tuple(rows.shape)}, {rows.dtype}"
        )
    x = rows.detach().flatten(1).double()
    if not torch.isfinite(x).all():
        raise WorkingPapersError("ranks need finite numbers; the rows have infinite ones or nan")
    if centre:
        size, x = x.norm(), x - x.mean(0)
        if x.norm() <= len(x) * torch.finfo(x.dtype).eps * size:
            x = torch.zeros_like(x)  # equal rows, up to the rounding of their mean
    found: Tensor = torch.linalg.svdvals(x)
    return found


def exact_tolerance(rows: Tensor) -> float:
    """Return the share of the largest singular value under which rounding may stand: 1e-10, more below float64."""
    if not rows.is_floating_point():
        return EXACT
    return max(EXACT, max(rows.flatten(1).shape) * torch.finfo(rows.dtype).eps)


def exact_rank(rows: Tensor, tolerance: float | None = None, centre: bool = False) -> int:
    """Return the number of singular values of `rows` (n, ...) above `tolerance` times the largest.

    `tolerance` is by default `exact_tolerance`: 1e-10, or the rounding of the rows' own dtype if that is more.
    """
    s = singular_values(rows, centre)
    return _count(s, exact_tolerance(rows) if tolerance is None else tolerance)


def stable_rank(rows: Tensor, centre: bool = False) -> float:
    """Return the squared Frobenius norm of `rows` (n, ...) over the squared spectral norm."""
    return _stable(singular_values(rows, centre))


def nuclear_rank(rows: Tensor, centre: bool = False) -> float:
    """Return the squared nuclear norm of `rows` (n, ...) over the squared Frobenius norm."""
    return _participation(_shares(singular_values(rows, centre)))


def participation_ratio(rows: Tensor, centre: bool = False) -> float:
    """Return (sum e)^2 / sum e^2 of the squared singular values e of `rows` (n, ...).

    With `centre` these are the covariance's eigenvalues, as neuroscience has it.
    """
    return _participation(_shares(singular_values(rows, centre)).square())


def entropy_rank(rows: Tensor, centre: bool = False) -> float:
    """Return the exponential of the entropy of the singular values of `rows` (n, ...), as shares of their sum."""
    return _entropy(singular_values(rows, centre))


def rank_notions(
    rows: Tensor, tolerances: Sequence[float] = TOLERANCES, centre: bool = False
) -> dict[str, float]:
    """Return every notion of rank of `rows` (n, ...) from one decomposition, by the names of `spectrum_notions`."""
    return spectrum_notions(singular_values(rows, centre), tolerances, exact_tolerance(rows))


def spectrum_notions(
    s: Tensor, tolerances: Sequence[float] = TOLERANCES, exact: float = EXACT
) -> dict[str, float]:
    """Return every notion of rank of a matrix with the singular values `s` (k,), largest first.

    The names: exact (above `exact` times the largest), one for each tolerance such as "above 0.01", stable,
    nuclear, participation, entropy.  Of a covariance or Gram matrix, summed up over batches, `s` are the square
    roots of the eigenvalues; rounding then stands at about 1e-8.
    """
    return {
        "exact": float(_count(s, exact)),
        **{f"above {tau:g}": float(_count(s, tau)) for tau in tolerances},
        "stable": _stable(s),
        "nuclear": _participation(_shares(s)),
        "participation": _participation(_shares(s).square()),
        "entropy": _entropy(s),
    }


def _count(s: Tensor, tolerance: float) -> int:
    return int((s > tolerance * s[0]).sum())


def _shares(s: Tensor) -> Tensor:
    """Return the values over the largest, so that no square under- or overflows."""
    return s / s[0] if s[0] > 0 else s


def _stable(s: Tensor) -> float:
    return float(_shares(s).square().sum()) if s[0] > 0 else 0.0


def _participation(s: Tensor) -> float:
    return float(s.sum().square() / s.square().sum()) if s[0] > 0 else 0.0


def _entropy(s: Tensor) -> float:
    if not s[0] > 0:
        return 0.0
    p = _shares(s) / _shares(s).sum()
    return float(torch.special.entr(p).sum().exp())
