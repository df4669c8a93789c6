"""Linear classifiers on activations that see the geometry as it is: no axis is rescaled."""

import torch
from torch import Tensor


def linear_accuracy(
    rows: Tensor, label: Tensor, other: Tensor, other_label: Tensor, strength: float = 1.0
) -> float:
    """Return the accuracy on `other` (m, units) of logistic regression on `rows` (n, units) with labels (n,).

    The rows are shifted to the mean and scaled by one number, so that turning them changes nothing; `strength` is
    scikit-learn's C.  Labels of one class alone are predicted as that class.
    """
    from sklearn.linear_model import LogisticRegression

    classes = label.unique()
    if len(classes) < 2:
        return float((other_label == classes[0]).double().mean())
    x, mean = rows.double(), rows.double().mean(0)
    scale = float((x - mean).square().sum(1).mean().sqrt()) or 1.0
    model = LogisticRegression(C=strength, max_iter=2000)
    model.fit(((x - mean) / scale).numpy(force=True), label.numpy(force=True))
    return float(
        model.score(((other.double() - mean) / scale).numpy(force=True), other_label.numpy(force=True))
    )


def halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two halves of the indices below `count`, drawn by `seed`."""
    one, other = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tensor_split(2)
    return one, other
