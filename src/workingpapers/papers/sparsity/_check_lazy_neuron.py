"""What `inspect` asks of lazy neurons: which share of hidden activations is not zero?  No fault either way."""

from functools import partial

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, example_case
from workingpapers.engines.activity.layers import bars, hidden
from workingpapers.engines.activity.observe import Place
from workingpapers.experiments.evidence import Finding, Symptom
from workingpapers.papers.sparsity._silent import RECTIFIERS


@paper("lazy_neuron", part="sparsity", kind="analysis", example=example_case())
def sparsity(case: Case, small: float = 0.1, lazy: float = 0.1) -> Finding:
    """Tell which share of each hidden activation is not zero, by layer.

    ReLUs at initialisation have about half; the paper finds 3 % in a trained T5-Base and 6 % in a ViT-B16.  Few
    non-zeros are no fault: the products of the next matrix with zeros could be left out.

    Args:
        case: of a sweep.
        small: entries of smooth activations, which are never exactly zero, count where they are larger than this
            times the root mean square of their layer (from the sampled rows).
        lazy: a layer with at most this share is noted; ours, the paper's figures lie below.
    """
    places = {p.name: p for p in hidden(case, "activation")}
    shares = {name: nonzero(place, small) for name, place in places.items()}
    mean = sum(shares.values()) / len(shares)
    notes = tuple(
        Symptom(
            name,
            "note",
            f"{share:.1%} of the activations are not zero (noted up to {lazy:.0%}).",
            "Nothing is wrong: a sparse product would save the next matrix most of its work.",
        )
        for name, share in shares.items()
        if share <= lazy
    )
    return Finding(
        {"nonzero": mean, **{f"nonzero of {name}": share for name, share in shares.items()}},
        f"{mean:.1%} of the hidden activations are not zero, in the mean over {len(shares)} layers.",
        partial(bars, shares, "share of non-zeros", "Hidden activations that fire"),
        symptoms=notes,
    )


def nonzero(place: Place, small: float) -> float:
    """Return the share of a place's outputs that are not zero, or not small where they never are zero."""
    if place.activation in RECTIFIERS:
        return float(place.output.moments.positive.mean())
    rows = place.output.rows.double()
    limit = small * float(rows.square().mean().sqrt())
    return float((rows.abs() > limit).double().mean())
