"""What `inspect` asks of effective dimension: in how many directions does a layer tell its inputs apart?"""

from functools import partial

import torch
from torch import nn

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, example_case
from workingpapers.engines.activity.layers import bars, hidden
from workingpapers.engines.ranks import exact_rank, participation_ratio
from workingpapers.experiments.evidence import Finding, Symptom

DIRECTION = 1e-2  # of the largest singular value: what is smaller is no direction of its own


def _flattened(model: nn.Sequential) -> None:
    weight = model.get_parameter("2.weight")
    weight.copy_(torch.outer(weight[:, 0], weight[0]))


@paper("edim_oscillation", part="collapse", kind="analysis", example=example_case(_flattened))
def collapse(case: Case, same: float = 0.999) -> Finding:
    """Find layers whose outputs hardly differ between inputs, or differ along one line only.

    Args:
        case: of `inspect`; sampled rows of layers and activations are read.
        same: an activation's outputs have collapsed where the squared mean is more than this share of the mean
            square: they have cosines above it.  In wide random networks cosines grow with depth, by
            `next_correlation`; at 0.999 differences are 30 times smaller than what is common.

    A layer of four units or more is collapsed as well where, about the mean, all directions but one have singular
    values below 1 % of the largest.  Per layer `rank` is the participation ratio of the covariance and `alike` the
    share of what is common.
    """
    places = hidden(case, "layer", "activation", units=4)
    numbers: dict[str, float] = {}
    ranks: dict[str, float] = {}
    symptoms = []
    for place in places:
        rows = place.output.rows.double()
        size = rows.square().mean()
        common = place.kind == "activation"  # before it, a bias may be large and harmless
        alike = float(rows.mean(0).square().mean() / size) if size > 0 else 1.0
        rank = participation_ratio(rows, centre=True)
        directions = exact_rank(rows, DIRECTION, centre=True)
        numbers |= {f"rank of {place.name}": rank} | ({f"alike in {place.name}": alike} if common else {})
        ranks[place.name] = rank
        if (common and alike > same) or directions <= 1:
            how = (
                "outputs lie on one line" if directions == 1 else f"{alike:.4f} of its mean square is common"
            )
            symptoms.append(
                Symptom(
                    place.name,
                    "serious",
                    f"the layer has collapsed: {how}; {place.output.units} units vary in {rank:.2f} directions.",
                    "Normalise before it, scale its weights critically, or add a skip connection around it.",
                )
            )
    least = min(ranks, key=ranks.__getitem__)
    return Finding(
        numbers,
        f"{len(symptoms)} of {len(places)} layers have collapsed, and the narrowest, {least}, varies in "
        f"{ranks[least]:.1f} directions.",
        partial(bars, ranks, "participation ratio of the covariance", "Directions in which a layer varies"),
        symptoms=tuple(symptoms),
    )
