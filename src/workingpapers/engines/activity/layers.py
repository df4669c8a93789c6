"""Which places of an activity a question is about, and a picture of one number by layer."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from workingpapers.engines.activity.case import Case, NotApplicable
from workingpapers.engines.activity.observe import Place

MOST_BARS = 40


def hidden(case: Case, *kinds: str, units: int = 2) -> list[Place]:
    """Return the places of these kinds before the last layer that have so many units and two sampled rows.

    Raises:
        NotApplicable: where there is none.
    """
    layers = case.activity.layers()
    last = layers[-1].module if layers else None
    found = [
        place
        for place in case.activity.places.values()
        if place.kind in kinds
        and place.module is not last
        and place.output.units >= units
        and len(place.output.rows) >= 2
    ]
    if not found:
        raise NotApplicable(f"it needs a hidden {' or '.join(kinds)} of at least {units} units")
    return found


def normed(case: Case) -> set[str]:
    """Return the names of layers whose output goes to a norm next: their scale does not matter."""
    names, places = list(case.activity.places), case.activity.places
    return {
        one for one, after in pairwise(names) if places[one].kind == "layer" and places[after].kind == "norm"
    }


def parametrised(name: str) -> str:
    """Return the module's own name of a place: without the function called, or the number of the run."""
    return name.split(":")[0].split("#")[0]


def bars(values: Mapping[str, float], label: str, title: str, limit: float | None = None) -> Any:
    """Draw one number a layer, in the order in which layers run, with a line at a limit; a matplotlib figure."""
    from matplotlib.figure import Figure

    names = list(values)
    if len(names) > MOST_BARS:
        chosen = torch.linspace(0, len(names) - 1, MOST_BARS).round().long().tolist()
        names = [names[i] for i in chosen]
    figure = Figure(figsize=(6.4, 1.2 + 0.24 * len(names)), layout="constrained")
    axis = figure.subplots()
    held = [values[name] for name in names]
    axis.barh(names, held, color="#1f77b4", height=0.7)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7)
    if not any(held):
        axis.set_xlim(0, 1)
    if limit is not None:
        axis.axvline(limit, color="#b3420b", linestyle="--", linewidth=1, label=f"limit {limit:g}")
        axis.legend(fontsize=7)
    axis.set_xlabel(label)
    axis.set_ylabel("layer")
    axis.set_title(title, fontsize=9)
    return figure
