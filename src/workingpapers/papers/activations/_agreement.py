"""How much models disagree that were trained alike."""

from itertools import combinations

from torch import Tensor

from workingpapers.errors import WorkingPapersError


def disagreement(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Compare the class probabilities (R, N, C) that R models give N examples with `labels` (N,).

    `pd`: mean over examples and pairs of models of the L1 distance; `relative_pd`: over the mean probability
    of the true class; `churn`: share of examples whose predicted class differs, mean over pairs; `accuracy`.
    """
    if probabilities.ndim != 3 or len(probabilities) < 2:
        raise WorkingPapersError(
            f"disagreement takes probabilities (models, examples, classes) of two models or more; "
            f"got shape {tuple(probabilities.shape)}"
        )
    p, chosen = probabilities.double(), probabilities.argmax(-1)
    pairs = list(combinations(range(len(p)), 2))
    distance = sum(float((p[i] - p[j]).abs().sum(-1).mean()) for i, j in pairs) / len(pairs)
    churn = sum(float((chosen[i] != chosen[j]).double().mean()) for i, j in pairs) / len(pairs)
    true = float(p.gather(-1, labels.expand(len(p), -1)[..., None]).mean())
    return {
        "pd": distance,
        "relative_pd": distance / true,
        "churn": churn,
        "accuracy": float((chosen == labels).double().mean()),
    }
