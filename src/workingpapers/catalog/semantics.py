"""Meaning: documents and queries as points in a space where words that go together lie together.

Latent semantic analysis (Deerwester et al. 1990).  With X the documents' impacts, each row at unit length, and
X = U S V' its leading singular vectors, a text x lies at V' x, and two texts compare by the cosine there.
V is never formed: V' x = S^-1 U' (X x), and X x are the word scores of x over the documents' lengths.  So
the space is as small as the number of documents, and placing a query costs one pass over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import mul

from workingpapers.catalog.lexical import Postings

RANK = 50


@dataclass(frozen=True)
class LatentSpace:
    """`points`: the documents' unit vectors, (documents, rank).

    `pulls`: for each document, the length of its row of U S over that of its impacts; `squares`: S^2, (rank,).
    """

    points: Sequence[Sequence[float]]
    pulls: Sequence[float]
    squares: Sequence[float]

    @cached_property
    def axes(self) -> Sequence[Sequence[float]]:
        """The points by axis, (rank, documents)."""
        return list(zip(*self.points, strict=True))

    def place(self, scores: Sequence[float]) -> list[float]:
        """Return the unit vector of a text whose word scores are `scores`; zeros where it has none."""
        pulled = list(map(mul, scores, self.pulls))
        found = [
            sum(map(mul, axis, pulled)) / square for axis, square in zip(self.axes, self.squares, strict=True)
        ]
        length = sum(map(mul, found, found)) ** 0.5
        return [value / length for value in found] if length else found

    def cosines(self, point: Sequence[float]) -> list[float]:
        """Return the cosine of the unit vector `point` with every document."""
        return [sum(map(mul, row, point)) for row in self.points]


def fit(postings: Postings, rank: int = RANK) -> LatentSpace:
    """Fit the space to the impacts; directions that carry nothing are left out, so `rank` is the most."""
    import numpy as np

    impacts = postings.matrix()
    lengths = np.maximum(np.linalg.norm(impacts, axis=0), 1e-12)
    rows = (impacts / lengths).T
    squares, vectors = np.linalg.eigh(rows @ rows.T)
    kept = [k for k in reversed(range(len(squares))) if squares[k] > 1e-9 * squares[-1]][:rank]
    placed = vectors[:, kept] * np.sqrt(squares[kept])
    sizes = np.linalg.norm(placed, axis=1)
    points = placed / np.maximum(sizes, 1e-12)[:, None]
    points *= np.where(points.sum(axis=0) < 0, -1, 1)  # the sign of a singular vector is arbitrary
    return LatentSpace(points.astype(np.float16).tolist(), (sizes / lengths).tolist(), squares[kept].tolist())
