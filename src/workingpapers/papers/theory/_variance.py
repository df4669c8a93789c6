"""How strongly, how uniquely and how densely activations carry a feature."""

import math

import numpy as np
import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._alignment import centred


def _checked(rows: Tensor, feature: Tensor) -> None:
    if len(rows) != len(feature) or feature.ndim != 1 or len(rows) < 2:
        raise WorkingPapersError(
            f"a feature has one value for each of at least 2 rows; got {tuple(feature.shape)} for {len(rows)}"
        )


def _one_hot(feature: Tensor) -> Tensor:
    index = feature.unique(return_inverse=True)[1]
    return torch.nn.functional.one_hot(index).double()


def explained(rows: Tensor, feature: Tensor) -> float:
    """Return R2, the share of the variance of `rows` (n, ...) that the mean by value of `feature` (n,) explains.

    sum_f p_f |E[h | f] - E[h]|^2 / Var(h), over all units together; 0 where the rows do not vary.  The feature's
    values may be any numbers, each its own group.
    """
    _checked(rows, feature)
    h, group = centred(rows), _one_hot(feature)
    total = h.square().sum()
    between = ((group.T @ h).square().sum(1) / group.sum(0)).sum()
    return float(between / total) if total > 0 else 0.0


def explained_by_unit(rows: Tensor, feature: Tensor) -> Tensor:
    """Return R2 of `feature` (n,) in each unit of `rows` (n, ...) alone, (units,); 0 where a unit does not vary."""
    _checked(rows, feature)
    h, group = centred(rows), _one_hot(feature)
    between = ((group.T @ h).square() / group.sum(0)[:, None]).sum(0)
    total = h.square().sum(0)
    return torch.where(total > 0, between / total.clamp_min(1e-300), 0.0)


def unique(rows: Tensor, features: Tensor) -> list[float]:
    """Return for each column of `features` (n, k) the variance that is lost when it alone is left out.

    R2 of the linear regression of `rows` (n, ...) on all features, each as its values' indicators, less that on all
    others.
    """
    groups = [_one_hot(column) for column in features.T]
    for column in features.T:
        _checked(rows, column)
    h = centred(rows)
    total = h.square().sum().clamp_min(1e-300)

    def r2(chosen: list[Tensor]) -> float:
        if not chosen:
            return 0.0
        design = torch.cat(chosen, 1)
        basis, values, _ = torch.linalg.svd(design - design.mean(0), full_matrices=False)
        basis = basis[:, values > 1e-9 * values[0].clamp_min(1e-300)]
        return float((basis.T @ h).square().sum() / total)

    whole = r2(groups)
    return [whole - r2(groups[:i] + groups[i + 1 :]) for i in range(len(groups))]


def coding_units(rows: Tensor, feature: Tensor, level: float = 0.01) -> float:
    """Return the share of units of `rows` (n, ...) that code for `feature` (n,), as tested unit by unit.

    One-way analysis of variance at `level` over the number of units (Bonferroni).
    """
    from scipy.stats import f as distribution

    r2 = explained_by_unit(rows, feature).numpy(force=True)
    groups = len(feature.unique())
    if groups < 2:
        return 0.0
    free = len(feature) - groups
    with np.errstate(divide="ignore"):
        statistic = r2 / (groups - 1) / (np.maximum(1 - r2, 0) / max(free, 1))
    return float((distribution.sf(statistic, groups - 1, free) < level / len(r2)).mean())


def components(rows: Tensor, feature: Tensor, count: int = 2) -> list[float]:
    """Return R2 of `feature` (n,) in each of the first `count` principal components of `rows` (n, ...)."""
    left, values, _ = torch.linalg.svd(centred(rows), full_matrices=False)
    found = explained_by_unit(left[:, :count] * values[:count], feature).tolist()
    return [*found, *[math.nan] * (count - len(found))][:count]
