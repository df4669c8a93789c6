"""How alike two sets of rows are: centred kernel alignment and correlation of dissimilarities."""

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError, unknown

METRICS = ("euclidean", "correlation")


def centred(rows: Tensor) -> Tensor:
    """Return rows (n, ...) as (n, units) in float64, each column less its mean."""
    x = rows.detach().reshape(len(rows), -1).double()
    return x - x.mean(0)


def _same_rows(one: Tensor, other: Tensor) -> None:
    if len(one) != len(other) or len(one) < 2:
        raise WorkingPapersError(
            f"two sets of rows are compared example by example, at least 2; got {len(one)} and {len(other)}"
        )


def cka(one: Tensor, other: Tensor) -> float:
    """Return the centred kernel alignment of rows (n, units) and (n, other units), between 0 and 1.

    That is <K, L> / (|K| |L|) of the centred linear kernels K and L, computed through whichever of kernels (n, n)
    and covariances (units, units) are the smaller; 0 where one of them has no variance.  Orthogonal maps of the
    units, shifts and a scale do not change it.
    """
    _same_rows(one, other)
    a, b = centred(one), centred(other)
    if len(a) < a.shape[1] + b.shape[1]:
        return kernel_alignment(a @ a.T, b @ b.T)
    norms = (a.T @ a).norm() * (b.T @ b).norm()
    return float((a.T @ b).square().sum() / norms) if norms > 0 else 0.0


def kernel_alignment(k: Tensor, other: Tensor) -> float:
    """Return the alignment of two kernel matrices (n, n), centred first; 0 where one of them vanishes."""
    if k.shape != other.shape or k.ndim != 2 or k.shape[0] != k.shape[1]:
        raise WorkingPapersError(f"kernels are (n, n), both; got {tuple(k.shape)} and {tuple(other.shape)}")
    a, b = (
        m.double() - m.double().mean(0) - m.double().mean(1, keepdim=True) + m.double().mean()
        for m in (k, other)
    )
    norms = a.norm() * b.norm()
    return float((a * b).sum() / norms) if norms > 0 else 0.0


def dissimilarities(rows: Tensor, metric: str = "euclidean") -> Tensor:
    """Return the distances (pairs,) of all pairs of rows (n, ...): Euclidean, or 1 less Pearson's correlation."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    x = rows.detach().reshape(len(rows), -1).double()
    if metric == "euclidean":
        return torch.pdist(x)
    unit = torch.nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1)
    upper, right = torch.triu_indices(len(x), len(x), 1)
    return 1 - (unit @ unit.T)[upper, right]


def rsa(one: Tensor, other: Tensor, metric: str = "euclidean") -> float:
    """Return Spearman's correlation of the dissimilarities of two sets of rows; 0 where one of them is constant."""
    from scipy.stats import spearmanr

    _same_rows(one, other)
    a, b = (dissimilarities(rows, metric).numpy(force=True) for rows in (one, other))
    return float(spearmanr(a, b).statistic) if a.std() > 0 and b.std() > 0 else 0.0
