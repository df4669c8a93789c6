"""What `inspect` asks of the effective theory: do signals keep their size from layer to layer?"""

import math
from functools import partial

from torch import nn

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, NotApplicable, example_case
from workingpapers.engines.activity.layers import bars, normed
from workingpapers.engines.activity.observe import Place
from workingpapers.experiments.evidence import Finding, Symptom


def _small(model: nn.Sequential) -> None:
    model.get_parameter("2.weight").mul_(1e-3)
    model.get_parameter("2.bias").mul_(1e-3)


def gain(place: Place) -> float | None:
    """Return the variance that a layer gives over that which it reads, biases apart; None where that is 0."""
    read = 0.0 if place.input is None else float(place.input.moments.var.mean())
    return float(place.output.moments.var.mean()) / read if read > 0 else None


@paper("pdlt", part="scale", kind="analysis", example=example_case(_small))
def scale(case: Case, layer: float = 30.0, depth: float = 1e4) -> Finding:
    """Find layers whose weights let signals explode or vanish.

    Args:
        case: of `inspect`; variances over rows of what layers read and give, so that biases do not count.
        layer: a hidden layer is badly scaled where its gain, variance out over variance in, is above this or below
            its inverse.  Critical gains are about 1 (tanh, linear) to 3 (ReLU); torch's default for Linear is 1/3.
        depth: signals explode or vanish where the variance before the last hidden activation is this many times
            larger or smaller than before the first one; at criticality it stays (Section 5 of the book).

    A layer whose output goes to a norm is left out, as its scale has no effect; so is the last layer.
    """
    layers = [p for p in case.activity.layers() if p.name not in normed(case)][:-1]
    gains = {p.name: found for p in layers if (found := gain(p)) is not None}
    if not gains:
        raise NotApplicable("it needs a hidden layer that no norm follows")
    symptoms = [
        Symptom(
            name,
            "warning",
            f"the layer's weights are badly scaled: it {'enlarges' if found > 1 else 'shrinks'} the variance of "
            f"what it reads {found if found > 1 else 1 / max(found, 1e-300):.3g} times (limit {layer:g}).",
            "Draw its weights at criticality, `make('pdlt.init')`, or put a norm behind it.",
        )
        for name, found in gains.items()
        if not 1 / layer <= found <= layer
    ]
    sizes = [float(p.output.moments.var.mean()) for p in layers]
    over = sizes[-1] / sizes[0] if sizes[0] > 0 else math.nan
    plain = not normed(case) and not any(p.kind == "norm" for p in case.activity.places.values())
    if plain and not symptoms and not 1 / depth <= over <= depth:
        symptoms.append(
            Symptom(
                "depth",
                "serious",
                f"signals {'explode' if over > 1 else 'vanish'}: their variance changes {over:.3g} times over "
                f"{len(layers)} hidden layers.",
                "Draw all weights at criticality, `make('pdlt.init')`, or add norms or skip connections.",
            )
        )
    typical = math.exp(sum(math.log(max(g, 1e-300)) for g in gains.values()) / len(gains))
    return Finding(
        {"typical gain": typical, **{f"gain of {name}": found for name, found in gains.items()}},
        f"A hidden layer multiplies the variance of what it reads by {typical:.3g} in the geometric mean.",
        partial(bars, gains, "variance out over variance in", "Gain of hidden layers"),
        symptoms=tuple(symptoms),
    )
