"""Mutual information of activations with inputs and labels: bins that follow the activity, and kernel bounds.

All in bits.  The inputs are n different examples of equal weight, of which the activations T are a function, so
I(X;T) = H(T) for binned T, and I(T;Y) = H(T) - sum_c p_c H(T | Y = c).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError, unknown

METHODS = ("ebab", "binning", "akde", "kde")


def quantile_bins(t: Tensor, bins: int = 30) -> Tensor:
    """Return which of `bins` each entry of `t` (n, units) lies in, int64 of the same shape.

    The different values of all entries together, in order, are cut into bins of equally many values.  A lowest
    value that several entries share, such as the 0 of ReLU, has one more bin to itself, as in the authors' code.
    Any strictly increasing function of the activations leaves the bins as they are.
    """
    values, rank, counts = t.unique(return_inverse=True, return_counts=True)
    floor = int(counts[0] > 1 and len(values) > 1)
    above: Tensor = (rank - floor) * bins // (len(values) - floor)
    return torch.where(rank < floor, 0, above + floor)


def equal_bins(t: Tensor, bins: int = 30, limits: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Return which of `bins` of equal width between `limits` each entry of `t` lies in; beyond, the outermost."""
    low, high = limits
    if not low < high:
        raise WorkingPapersError(f"limits of bins are a low and a higher number; got {limits}")
    return ((t - low) / (high - low) * bins).floor().clamp(0, bins - 1).long()


def row_entropy(codes: Tensor) -> float:
    """Return the entropy of the rows of whole numbers `codes` (n, units), each as likely as it is frequent."""
    if not len(codes):
        return 0.0
    base, index, size = int(codes.max()) + 1, torch.zeros_like(codes[:, 0]), 1
    for column in codes.T:  # rows as one number, made small again before it would overflow
        if size >= 2**62 // base:
            _, index = index.unique(return_inverse=True)
            size = len(codes)
        index, size = index * base + column, size * base
    p = index.unique(return_counts=True)[1].double() / len(codes)
    return float(torch.special.entr(p).sum() / math.log(2))


def kernel_entropy(t: Tensor, variance: float, bound: str = "upper", block: int = 1024) -> float:
    """Return a bound on I(T; T + noise) for rows `t` (n, units) and Gaussian noise of `variance` in each unit.

    With the rows as the centres of a mixture of n equal Gaussians, -mean_i log2 mean_j exp(-|t_i - t_j|^2 / (2 s))
    is an "upper" bound at s = variance and a "lower" one at s = 4 variance (Kolchinsky and Tracey 2017).
    """
    if bound not in ("upper", "lower"):
        raise unknown("bound", bound, ("upper", "lower"))
    if not variance > 0:
        raise WorkingPapersError(f"the variance of the noise is above 0; got {variance}")
    s = variance * (1 if bound == "upper" else 4)
    rows = t.double()
    logs = [
        torch.logsumexp(
            torch.cdist(part, rows, compute_mode="donot_use_mm_for_euclid_dist").square() / (-2 * s), 1
        )
        for part in rows.split(block)
    ]
    return float((math.log(len(rows)) - torch.cat(logs)).mean() / math.log(2))


def information(
    t: Tensor,
    y: Tensor,
    method: str = "ebab",
    bins: int = 30,
    noise: float = 1e-3,
    limits: tuple[float, float] = (-1.0, 1.0),
    bound: str = "upper",
) -> tuple[float, float]:
    """Return I(X;T) and I(T;Y) in bits of activations `t` (n, ...) of n different inputs with labels `y` (n,).

    Args:
        method: "ebab", entropy-based adaptive binning; "akde", the kernel bound with a noise variance of `noise`
            times the largest |activation|; "binning" and "kde", the same with what does not follow the activity:
            equal bins between `limits`, and `noise` as it is.
        bins: for the two ways of binning.
        noise: variance s_0^2 of the two kernel bounds.
        bound: "upper" or "lower", of the kernel bounds.

    Raises:
        WorkingPapersError: where n differs, a number is not finite, or a name is unknown.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if t.ndim < 1 or not len(t) or y.shape != t.shape[:1] or bins < 1:
        raise WorkingPapersError(
            f"information needs activations (n, ...), labels (n,) and bins; got {tuple(t.shape)}, "
            f"{tuple(y.shape)}, {bins}"
        )
    rows = t.detach().reshape(len(t), -1)
    if not bool(torch.isfinite(rows).all()):
        raise WorkingPapersError("information needs finite activations; some are infinite or nan")
    if method in ("ebab", "binning"):
        codes = quantile_bins(rows, bins) if method == "ebab" else equal_bins(rows, bins, limits)
        return _with_labels(row_entropy, codes, y)
    largest = float(rows.abs().max())
    variance = noise * (largest if method == "akde" and largest > 0 else 1.0)
    return _with_labels(lambda part: kernel_entropy(part, variance, bound), rows, y)


def _with_labels(entropy: Callable[[Tensor], float], rows: Tensor, y: Tensor) -> tuple[float, float]:
    whole = entropy(rows)
    parts = [rows[y == c] for c in y.unique()]
    return whole, whole - sum(len(part) / len(rows) * entropy(part) for part in parts)


def compression(course: Sequence[float]) -> float:
    """Return (I_max - I_final) / I_max of I(X;T) over the checkpoints, 0 where it never was above 0."""
    top = max(course, default=0.0)
    return (top - course[-1]) / top if top > 0 else 0.0
