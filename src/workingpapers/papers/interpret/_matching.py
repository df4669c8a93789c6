"""Units of two layers held against each other: correlations, dead and duplicate units, and matchings.

Everything takes rows: activations (n, units), a row for each example and, in a map, each position.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workingpapers.errors import WorkingPapersError

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]
DEAD = 1e-8  # a unit whose standard deviation is below this is dead


class Moments:
    """Means and covariances of rows (n, columns) that come in pieces, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.moment: Tensor = torch.zeros(())  # sums of products of deviations, (columns, columns)

    def add(self, rows: Tensor) -> None:
        """Take in further rows (n, columns)."""
        rows = rows.detach().to("cpu", torch.float64)
        if not len(rows):
            return
        mean = rows.mean(0)
        apart, count = mean - self.mean, self.count + len(rows)
        centred = rows - mean
        # Chan, Golub and LeVeque (1979): exact merging, without the cancellation of sums of squares
        self.moment = (
            self.moment + centred.T @ centred + apart.outer(apart) * (self.count * len(rows) / count)
            if self.count
            else centred.T @ centred
        )
        self.mean = self.mean + apart * (len(rows) / count)
        self.count = count

    @property
    def covariance(self) -> Matrix:
        """The covariance matrix (columns, columns), over n."""
        if not self.count:
            raise WorkingPapersError("there are no rows of activations to take statistics of")
        return np.asarray(self.moment.numpy() / self.count)

    @property
    def std(self) -> Matrix:
        """The standard deviations (columns,)."""
        return np.asarray(np.sqrt(np.diag(self.covariance).clip(min=0)))


@dataclass(frozen=True)
class Correlations:
    """Pearson correlations (units of a, units of b), 0 where one is dead, and which units are dead."""

    matrix: Matrix
    dead_a: list[int]
    dead_b: list[int]


def correlation(a: Tensor, b: Tensor | None = None, dead: float = DEAD) -> Correlations:
    """Return the correlations between the columns of `a` (n, units) and of `b` (n, units), by default `a`.

    A unit with a standard deviation below `dead` correlates with none, itself neither.
    """
    check_rows(a, a if b is None else b)
    moments = Moments()
    for piece in (a if b is None else torch.cat([a, b.to(a)], 1)).split(10_000):
        moments.add(piece)
    whole = correlations_of(moments, dead)
    if b is None:
        return whole
    n = a.shape[1]
    return Correlations(
        whole.matrix[:n, n:],
        [i for i in whole.dead_a if i < n],
        [i - n for i in whole.dead_a if i >= n],
    )


def correlations_of(moments: Moments, dead: float = DEAD) -> Correlations:
    """Return the correlations among all columns that `moments` has taken in."""
    std = moments.std
    lives = std >= dead
    scale = np.where(lives, 1 / np.where(lives, std, 1), 0)
    matrix = np.clip(moments.covariance * scale[:, None] * scale, -1, 1)
    silent = [int(i) for i in np.flatnonzero(~lives)]
    return Correlations(matrix, silent, silent)


def check_rows(a: Tensor, b: Tensor) -> None:
    """Raise one sentence if these are no rows of activations on the same examples."""
    for rows in (a, b):
        if rows.ndim != 2:
            raise WorkingPapersError(
                f"activations come as rows (n, units); got a tensor of shape {tuple(rows.shape)}"
            )
    if len(a) != len(b):
        raise WorkingPapersError(f"units are compared on the same rows; got {len(a)} and {len(b)} of them")


def dead_units(rows: Tensor, below: float = DEAD) -> list[int]:
    """Return the units (columns of `rows`, (n, units)) whose standard deviation is under `below`."""
    check_rows(rows, rows)
    std = rows.double().std(0, correction=0)
    return [int(i) for i in torch.nonzero(std < below)[:, 0]]


def duplicates(rows: Tensor, limit: float = 0.99, dead: float = DEAD) -> list[tuple[int, int, float]]:
    """Return the pairs i < j of units of one layer with |correlation| above `limit`, the closest first.

    `rows` is (n, units); dead units have no pair.  Each pair comes with its correlation, negative where one
    unit is the other turned round.
    """
    matrix = correlation(rows, dead=dead).matrix
    first, second = np.nonzero(np.triu(np.abs(matrix) > limit, 1))
    pairs = [(int(i), int(j), float(matrix[i, j])) for i, j in zip(first, second, strict=True)]
    return sorted(pairs, key=lambda pair: -abs(pair[2]))


@dataclass(frozen=True)
class Matching:
    """For each unit of a the unit of b it is matched to (-1: none), and how well, in the units of the matrix."""

    partner: Indices
    value: Matrix


def semi_matching(matrix: Matrix) -> Matching:
    """Match every row of `matrix` (units of a, units of b) to its best column; columns may be used again."""
    partner = matrix.argmax(1)
    return Matching(partner.astype(np.int64), matrix[np.arange(len(matrix)), partner])


def bipartite_matching(matrix: Matrix) -> Matching:
    """Match rows and columns one to one with the largest sum (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(matrix, maximize=True)
    partner = np.full(len(matrix), -1)
    partner[rows] = columns
    value = np.zeros(len(matrix))
    value[rows] = matrix[rows, columns]
    return Matching(partner.astype(np.int64), value)


def mutual_information(a: Tensor, b: Tensor, levels: int = 8) -> Matrix:
    """Return the mutual information in nats of the columns of `a` and `b` (n, units), each cut into levels.

    Levels hold equal numbers of rows; equal values share one, so a rectified unit may have fewer.
    """
    check_rows(a, b)
    if levels < 2:
        raise WorkingPapersError(f"mutual information needs at least 2 levels; got {levels}")
    one, other = _indicators(a, levels), _indicators(b, levels)
    counts = (one.flatten(1).T @ other.flatten(1)).reshape(*one.shape[1:], *other.shape[1:])
    joint = counts.permute(0, 2, 1, 3) / len(a)  # (units of a, units of b, levels, levels)
    rows, columns = joint.sum(3, keepdim=True), joint.sum(2, keepdim=True)
    ratio = torch.where(joint > 0, joint / (rows * columns).clamp(min=1e-300), 1)
    return np.asarray((joint * ratio.log()).sum((2, 3)).numpy())


def _indicators(rows: Tensor, levels: int) -> Tensor:
    """Return (n, units, levels), 1 at the level of each value."""
    values = rows.detach().double().T.contiguous().cpu()
    cuts = torch.arange(1, levels, dtype=torch.float64) / levels
    edges = values.sort(1).values[:, (cuts * values.shape[1]).long()]
    level = torch.searchsorted(edges.contiguous(), values, right=True)
    return torch.nn.functional.one_hot(level.T, levels).double()
