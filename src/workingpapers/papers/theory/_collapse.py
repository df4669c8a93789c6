"""Neural collapse of last-layer features: variability, frames, duality and nearest means, on rows with labels."""

import math

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError, unknown

FRAMES = ("etf", "orthogonal")


def class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the classes (K,) in ascending order, their means (K, units) in float64 and their sizes (K,)."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise WorkingPapersError(
            f"features are (n, units) with labels (n,); got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    classes, index, sizes = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise WorkingPapersError(f"collapse is measured between at least 2 classes; got {len(classes)}")
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.float64, device=features.device)
    return classes, sums.index_add_(0, index, features.double()) / sizes[:, None], sizes


def variability(features: Tensor, labels: Tensor) -> float:
    """Return NC1, trace(S_W pinv(S_B)) / K: how far features scatter within classes against between them.

    S_W is the covariance of the rows about the means of their classes, S_B that of the K class means about the
    mean of them, all classes alike.  With C (units, K) the centred means, pinv(S_B) = K pinv(C)' pinv(C), so no
    matrix (units, units) is formed.  Directions in which the means differ a millionth as much as in the widest
    count as none; infinite where all means are one.
    """
    classes, means, _ = class_means(features, labels)
    centred = means - means.mean(0)
    if float(centred.abs().max()) <= 1e-12 * float(means.abs().max()):
        return math.inf
    within = features.double() - means[torch.searchsorted(classes, labels)]
    return float((within @ torch.linalg.pinv(centred, rtol=1e-6)).square().sum(1).mean())


def frame(name: str, count: int) -> Tensor:
    """Return the Gram matrix of norm 1 of `count` vectors in an "etf" (simplex) or an "orthogonal" frame."""
    if name not in FRAMES:
        raise unknown("frame", name, FRAMES)
    gram = torch.eye(count, dtype=torch.float64)
    return (gram - 1 / count if name == "etf" else gram) / math.sqrt(count - (name == "etf"))


def frame_distance(vectors: Tensor, name: str) -> float:
    """Return NC2, the distance |G / |G| - T| of the Gram matrix G of the rows (K, units) to that of a frame."""
    gram = vectors.double() @ vectors.double().T
    norm = gram.norm().clamp_min(torch.finfo(torch.float64).tiny)
    return float((gram / norm - frame(name, len(vectors)).to(gram.device)).norm())


def duality(means: Tensor, classifier: Tensor) -> float:
    """Return NC3, the distance |W / |W| - M / |M|| of the classifier's rows (K, units) to the class means."""
    m, w = means.double(), classifier.double()
    tiny = torch.finfo(torch.float64).tiny
    return float((w / w.norm().clamp_min(tiny) - m / m.norm().clamp_min(tiny)).norm())


def off_nearest_mean(features: Tensor, labels: Tensor, outputs: Tensor) -> float:
    """Return NC4, the share of rows whose largest output (n, classes) is not the class of the nearest mean."""
    classes, means, _ = class_means(features, labels)
    nearest = classes[torch.cdist(features.double(), means).argmin(1)]
    return float((nearest != outputs.argmax(1)).double().mean())


def cosines(vectors: Tensor) -> Tensor:
    """Return the cosines (pairs,) between different rows; those with a row of 0 are 0."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    rows, columns = torch.triu_indices(len(vectors), len(vectors), 1)
    return (unit @ unit.T)[rows, columns]


def collapse(
    features: Tensor, labels: Tensor, classifier: Tensor, outputs: Tensor | None = None, name: str = "etf"
) -> dict[str, float]:
    """Return how far features and classifier are from collapse; every number is 0 at full collapse but the cosine.

    Args:
        features: rows (n, units), the input of the classifier.
        labels: (n,) integers, the classifier's row of each class.
        classifier: weights (classes, units).
        outputs: (n, classes), for NC4; left out without.
        name: "etf", which class means are centred for, or "orthogonal" (squared error without a bias), where
            they are not.

    `nc1` variability, `nc2_means` and `nc2_classifier` distances to the frame, `nc3` duality, `nc4` share off the
    nearest mean, `cosine` the mean cosine between class means (-1 / (K - 1) in a simplex frame).
    """
    classes, means, _ = class_means(features, labels)
    if int(classes[0]) < 0 or int(classes[-1]) >= len(classifier):
        raise WorkingPapersError(
            f"labels name rows of the classifier, 0 to {len(classifier) - 1}; got {int(classes[0])} to "
            f"{int(classes[-1])}"
        )
    if classifier.shape[1] != features.shape[1]:
        raise WorkingPapersError(
            f"the classifier reads {classifier.shape[1]} units and the features have {features.shape[1]}"
        )
    if name == "etf":
        means = means - means.mean(0)
    rows = classifier[classes]
    numbers = {
        "nc1": variability(features, labels),
        "nc2_means": frame_distance(means, name),
        "nc2_classifier": frame_distance(rows, name),
        "nc3": duality(means, rows),
        "cosine": float(cosines(means).mean()),
    }
    return numbers if outputs is None else numbers | {"nc4": off_nearest_mean(features, labels, outputs)}
