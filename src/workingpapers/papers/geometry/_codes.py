"""Binary codes of labelled examples: how unique they are, how far apart, and how well they classify."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Labels = NDArray[np.integer]


def _keys(packed: Bits) -> NDArray[Any]:
    """Return each row as one value that can be compared and sorted."""
    return np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).reshape(-1)


def redundancy(packed: Bits) -> float:
    """Return (N - number of distinct rows) / N; 0 where every row is alone."""
    return 1 - len(np.unique(_keys(packed))) / len(packed)


def collisions(packed: Bits, labels: Labels, other: Bits, other_labels: Labels) -> float:
    """Return the share of rows of `other` that equal a row of `packed` with another label."""
    owners: dict[bytes, set[int]] = {}
    for key, label in zip(_keys(packed), labels, strict=True):
        owners.setdefault(bytes(key), set()).add(int(label))
    pairs = zip(_keys(other), other_labels, strict=True)
    return float(np.mean([bool(owners.get(bytes(key), set()) - {int(label)}) for key, label in pairs]))


def hamming(bits: Bits, labels: Labels) -> tuple[float, float]:
    """Return the mean Hamming distance of pairs within classes and between classes, in shares of the width.

    Of n rows of which k have a bit on, k (n - k) pairs differ in it, so no pair is looked at.
    """

    def differing(rows: Bits) -> float:
        on = rows.sum(0, dtype=np.int64)
        return float((on * (len(rows) - on)).sum())

    counts = np.unique(labels, return_counts=True)[1].astype(float)
    inside = sum(differing(bits[labels == label]) for label in np.unique(labels))
    pairs = float((counts * (counts - 1) / 2).sum())
    rest = len(bits) * (len(bits) - 1) / 2 - pairs
    width = bits.shape[1]
    within = inside / pairs / width if pairs else 0.0
    return within, (differing(bits) - inside) / rest / width if rest else 0.0


def categorise(
    bits: Bits, labels: Labels, other: Bits, other_labels: Labels, seed: int = 0
) -> dict[str, float]:
    """Return the accuracies on `other` of k-means, 1 and 5 nearest neighbours and logistic regression on codes.

    k-means has as many clusters as there are classes; each is named after a class by the best matching on the
    training codes (Hungarian method).
    """
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    x, x_other = bits.astype(np.float32), other.astype(np.float32)
    classes = np.unique(labels)
    clusters = KMeans(len(classes), n_init=3, random_state=seed).fit(x)
    names = _matching(clusters.labels_, labels, classes)
    found = {"kmeans": float((names[clusters.predict(x_other)] == other_labels).mean())}
    for k in (1, 5):
        # on zeros and ones the squared Euclidean distance is the Hamming distance, and it goes by matrix products
        neighbours = KNeighborsClassifier(min(k, len(x)), algorithm="brute").fit(x, labels)
        found[f"knn{k}"] = float(neighbours.score(x_other, other_labels))
    found["logistic"] = float(LogisticRegression(max_iter=2000).fit(x, labels).score(x_other, other_labels))
    return found


def _matching(clusters: Labels, labels: Labels, classes: Labels) -> Labels:
    """Return the class of each cluster, so that most examples are right."""
    from scipy.optimize import linear_sum_assignment

    table = np.array(
        [[np.sum((clusters == c) & (labels == k)) for k in classes] for c in range(len(classes))]
    )
    names: Labels = classes[linear_sum_assignment(-table)[1]]
    return names


def regime(
    redundancy: float,
    code_accuracy: float,
    accuracy: float,
    high: float = 0.5,
    low: float = 0.01,
    gap: float = 0.02,
) -> str:
    """Return "under", "critically" or "sufficiently" (expressive) by redundancy and accuracy on codes.

    Under: redundancy above `high`.  Sufficiently: at most `low`, and the codes classify within `gap` of the
    network.  The limits are ours; the paper draws its regions by eye.
    """
    if redundancy > high:
        return "under"
    return "sufficiently" if redundancy <= low and code_accuracy >= accuracy - gap else "critically"


def draw_means(means: NDArray[np.float64]) -> Any:
    """Draw the share of each class in which each bit is on."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3))
    shown = axes.imshow(means, aspect="auto", vmin=0, vmax=1)
    axes.set(xlabel="unit", ylabel="class", title="share of the class in which the unit is on")
    figure.colorbar(shown, ax=axes)
    return figure


def draw_phase(
    widths: Sequence[int],
    epochs: Sequence[int],
    sizes: Sequence[int],
    cells: Mapping[tuple[int, int, int], Mapping[str, Any]],
) -> Any:
    """Draw a map of redundancy for each sample size, each cell marked with its regime's first letter."""
    from matplotlib import pyplot

    figure, row = pyplot.subplots(1, len(sizes), figsize=(4.5 * len(sizes), 4), squeeze=False)
    for axes, size in zip(row[0], sizes, strict=True):
        table = np.array([[cells[w, e, size]["redundancy_train"] for e in epochs] for w in widths])
        shown = axes.imshow(table, vmin=0, vmax=1, cmap="viridis_r", origin="lower")
        for i, w in enumerate(widths):
            for j, e in enumerate(epochs):
                axes.text(j, i, cells[w, e, size]["regime"][0], ha="center", va="center", color="white")
        axes.set_xticks(range(len(epochs)), list(epochs))
        axes.set_yticks(range(len(widths)), list(widths))
        axes.set(xlabel="epochs", ylabel="width", title=f"redundancy, {size} examples (u, c, s: regime)")
    figure.colorbar(shown, ax=list(row[0]))
    return figure
