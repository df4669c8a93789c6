"""How outputs and features drift as inputs are shifted, and how well a linear classifier sees the shift."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.uncertainty._constants import distances
from workingpapers.papers.uncertainty._features import features
from workingpapers.surgery.collect import collect


def ood_score(x: Tensor, other: Tensor, seed: int = 0) -> float:
    """Return how well a linear classifier tells two sets of inputs (N, ...) apart: AUC on the half it has not seen.

    0.5 is not at all, 1 perfectly.  Every second example is for fitting, in an order by `seed`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(len(x), len(other)) < 4:
        raise WorkingPapersError("an out-of-distribution score needs at least 4 inputs of each kind")
    rows = torch.cat([x.flatten(1), other.flatten(1)]).double().cpu().numpy()
    truth = torch.cat([torch.zeros(len(x)), torch.ones(len(other))]).numpy()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).numpy()
    fitted, held = order[::2], order[1::2]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=1000))
    classifier.fit(rows[fitted], truth[fitted])
    return float(roc_auc_score(truth[held], classifier.decision_function(rows[held])))


@dataclass(frozen=True)
class Drift:
    """One shift: at level 0 and each further one, the score of being outside, and the distances to the constant.

    `norms` are mean norms of the penultimate features over that at level 0.
    """

    scores: list[float]
    distances: list[float]
    norms: list[float]

    @property
    def spearman(self) -> float:
        """The rank correlation of level and distance; -1 where each level is nearer to the constant."""
        from scipy.stats import spearmanr

        if len(set(self.distances)) == 1:
            return 0.0
        return float(spearmanr(range(len(self.distances)), self.distances).statistic)

    @property
    def ratio(self) -> float:
        """The distance at the strongest level over that at level 0."""
        return self.distances[-1] / max(self.distances[0], 1e-30)


def drift(
    model: nn.Module, x: Tensor, levels: Sequence[Tensor], constant: Tensor, loss: str, score: bool = True
) -> Drift:
    """Follow a model's outputs and penultimate features from inputs `x` (N, ...) through shifted ones."""
    every = [x, *levels]
    outputs = [collect(model, z, [""])[""] for z in every]
    norms = [float(features(model, z).norm(dim=1).mean()) for z in every]
    return Drift(
        [0.5, *(ood_score(x, z) for z in levels)] if score else [],
        [float(distances(o, constant, loss).mean()) for o in outputs],
        [n / max(norms[0], 1e-30) for n in norms],
    )


def draw(found: Mapping[str, Drift]) -> Any:
    """Draw distance over the score of being outside, and feature norm over the level, by shift."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, seen in found.items():
        left.plot(seen.scores, [d / max(seen.distances[0], 1e-30) for d in seen.distances], "o-", label=name)
        right.plot(range(len(seen.norms)), seen.norms, "o-")
    left.set(xlabel="AUC of telling shifted inputs apart", ylabel="distance to the constant / unshifted")
    right.set(xlabel="level of the shift", ylabel="feature norm / unshifted")
    left.legend()
    return figure
