"""One-to-many and many-to-many mappings between units, read off their correlation matrices alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.interpret._matching import Indices, Matrix

# the paper's penalties, on standardised activations
PENALTIES = (0.0, 1e-3, 10**-2.5, 1e-2, 10**-1.5, 1e-1)


@dataclass(frozen=True)
class Prediction:
    """Each unit of b predicted from all units of a, for a path of penalties.

    Attributes:
        penalties: of the L1 norm, ascending (P,).
        weights: (P, units of b, units of a), for standardised activations.
        loss: mean squared error over the unit's variance, (P, units of b).
        dead: units of b that do not vary and so need no prediction.
    """

    penalties: Matrix
    weights: Matrix
    loss: Matrix
    dead: list[int]

    @property
    def predictors(self) -> Indices:
        """How many units of a have a weight, (P, units of b)."""
        return np.asarray((np.abs(self.weights) > 1e-6).sum(2))

    @property
    def live(self) -> Indices:
        """The units of b that vary."""
        return np.setdiff1d(np.arange(self.loss.shape[1]), self.dead)

    def fewest(self, lost: float = 0.1, of: str = "explained") -> Indices:
        """Return for each live unit of b the fewest predictors that are nearly as good as all.

        Args:
            lost: the share that may be lost.
            of: "explained", variance explained falls by no more than this share; "loss", the loss rises by none.
        """
        loss = self.loss[:, self.live]
        least = loss[0]
        if of == "explained":
            good = 1 - loss >= (1 - lost) * (1 - least) - 1e-12
        elif of == "loss":
            good = loss <= (1 + lost) * least + 1e-12
        else:
            raise WorkingPapersError(f"predictors suffice by 'explained' or by 'loss'; got {of!r}")
        counts = np.where(good, self.predictors[:, self.live], self.weights.shape[2] + 1)
        return np.asarray(counts.min(0))


def sparse_prediction(
    within: Matrix, between: Matrix, penalties: Sequence[float] = PENALTIES, rounds: int = 2000
) -> Prediction:
    """Fit each unit of b by a few units of a: the lasso, min |b_j - A w|^2 / 2n + penalty |w|_1.

    Args:
        within: correlations (units of a, units of a); rows of dead units are zero.
        between: correlations (units of a, units of b).
        penalties: at least 0; the result has 0 at the front, whether it is named or not.
        rounds: sweeps of coordinate descent at most, for each penalty; fewer where no weight moves by 1e-9.

    Correlations are all that the lasso on standardised data needs, so the rows are not touched again.
    """
    path = np.array(sorted({0.0, *penalties}))
    if path[0] < 0:
        raise WorkingPapersError(f"penalties are at least 0; got {path[0]:g}")
    live = np.flatnonzero(np.diag(within) > 0.5)
    weights = np.zeros(between.shape)
    found = {0.0: weights.copy()}
    found[0.0][live] = np.linalg.pinv(within[np.ix_(live, live)], rcond=1e-10, hermitian=True) @ between[live]
    for penalty in path[:0:-1]:  # from the sparsest, each a start for the next
        for _ in range(rounds):
            before = weights.copy()
            for i in live:
                rest = between[i] - within[i] @ weights + within[i, i] * weights[i]
                weights[i] = np.sign(rest) * np.maximum(np.abs(rest) - penalty, 0) / within[i, i]
            if np.abs(weights - before).max() < 1e-9:
                break
        found[float(penalty)] = weights.copy()
    stacked = np.stack([found[float(p)] for p in path])
    dead = [int(j) for j in np.flatnonzero(np.abs(between).max(0) == 0)]
    fitted = 2 * (stacked * between).sum(1) - (stacked * (within @ stacked)).sum(1)
    return Prediction(path, stacked.swapaxes(1, 2), np.clip(1 - fitted, 0, None), dead)


@dataclass(frozen=True)
class Clusters:
    """Units of both nets in groups: `a` and `b` give the group of each unit (-1 for a dead one).

    `score` is the mean |correlation| of pairs from different nets within a group, `outside` across groups.
    """

    a: Indices
    b: Indices
    score: float
    outside: float


def spectral_clusters(joint: Matrix, units_a: int, clusters: int, seed: int = 0) -> Clusters:
    """Group the units of two nets by their joint graph, with |correlation| as the weight of an edge.

    Args:
        joint: correlations (units of a and b, units of a and b).
        units_a: how many of them are of net a; they stand first.
        clusters: how many groups; at most the number of live units.
        seed: decides the starts of k-means.

    k-means on the leading eigenvectors of the normalised affinity, rows scaled to length 1 (Ng, Jordan and Weiss).
    """
    from sklearn.cluster import KMeans

    live = np.flatnonzero(np.diag(joint) > 0.5)
    if not 1 <= clusters <= len(live):
        raise WorkingPapersError(
            f"{len(live)} live units make 1 to {len(live)} clusters; asked for {clusters}"
        )
    affinity = np.abs(joint[np.ix_(live, live)])
    root = 1 / np.sqrt(affinity.sum(1))
    vectors = np.linalg.eigh(affinity * root[:, None] * root)[1][:, -clusters:]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    group = np.full(len(joint), -1)
    group[live] = KMeans(clusters, n_init=10, random_state=seed % 2**32).fit_predict(vectors)
    a, b = group[:units_a].astype(np.int64), group[units_a:].astype(np.int64)
    between = np.abs(joint[:units_a, units_a:])
    alive = (a[:, None] >= 0) & (b >= 0)
    same = alive & (a[:, None] == b)
    score = float(between[same].mean()) if same.any() else 0.0
    outside = float(between[alive & ~same].mean()) if (alive & ~same).any() else 0.0
    return Clusters(a, b, score, outside)
