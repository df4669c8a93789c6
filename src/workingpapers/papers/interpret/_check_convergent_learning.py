"""What `inspect` asks of unit correlations: which units of one layer say the same?"""

from functools import partial

from torch import nn

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, example_case
from workingpapers.engines.activity.layers import bars, hidden
from workingpapers.experiments.evidence import Finding, Symptom
from workingpapers.papers.interpret._matching import duplicates as unit_duplicates

NAMED = 3  # pairs of a layer that are told


def _twins(model: nn.Sequential) -> None:
    for name in ("0.weight", "0.bias"):
        model.get_parameter(name)[5] = model.get_parameter(name)[2]


@paper("convergent_learning", part="duplicates", kind="analysis", example=example_case(_twins))
def duplicates(case: Case, limit: float = 0.9999) -> Finding:
    """Find units of one layer that are copies of each other, before the activation.

    Args:
        case: of `inspect`; sampled rows of layers are read.
        limit: of the Pearson correlation above which two units are duplicates.  The paper matches units of
            different networks, whose best correlations stay well below; a copy has 1 up to rounding.

    Layers with fewer than four times as many sampled rows as the rank they could show are judged all the same:
    a correlation this high has no chance of its own.  Per layer the share of units that have an earlier twin.
    """
    shares: dict[str, float] = {}
    symptoms = []
    for place in hidden(case, "layer", units=3):
        # a unit turned round is no copy for a rectifier behind it
        found = [(a, b) for a, b, r in unit_duplicates(place.output.rows, limit) if r > 0]
        copies = {b for _, b in found}
        shares[place.name] = len(copies) / place.output.units
        if copies and len(place.output.rows) >= 8:
            told = ", ".join(f"{a} and {b}" for a, b in found[:NAMED])
            more = f" and {len(found) - NAMED} pairs more" if len(found) > NAMED else ""
            symptoms.append(
                Symptom(
                    place.name,
                    "warning",
                    f"{len(copies)} of {place.output.units} units are copies of others (correlation above "
                    f"{limit:g}): units {told}{more}.",
                    "Merge each pair (add the outgoing weights, drop one) or draw one's incoming weights anew.",
                )
            )
    worst = max(shares, key=shares.__getitem__)
    return Finding(
        {f"copies in {name}": share for name, share in shares.items()},
        f"{len(symptoms)} of {len(shares)} layers have duplicate units, most in {worst}: {shares[worst]:.1%}.",
        partial(bars, shares, "share of units with an earlier twin", "Duplicate units by layer"),
        symptoms=tuple(symptoms),
    )
