"""What `inspect` asks of feed-forward layers: how many neurons make nearly all of the output?"""

from functools import partial

import torch
from torch import Tensor

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, NotApplicable, example_case
from workingpapers.engines.activity.layers import bars
from workingpapers.engines.activity.observe import Place
from workingpapers.experiments.evidence import Finding
from workingpapers.papers.sparsity._cett import down_weight, sizes, threshold_for


@paper("sparsing_law", part="ratio", kind="analysis", example=example_case())
def ratio(case: Case, level: float = 0.2, rows: int = 128) -> Finding:
    """Tell which share of the neurons of each feed-forward layer is active, by CETT at a fixed level; no fault.

    Looked at are linear layers whose sampled outputs are their weights times an activation's sampled outputs, or
    times the product of such outputs with another layer's, as in gated layers.

    Args:
        case: of a sweep.
        level: the share of the output's length that the inactive neurons make together; 0.2 as in the studies of
            sparse language models that the paper starts from.
        rows: at most so many sampled tokens are used.
    """
    places = list(case.activity.places.values())
    shares = {}
    for at, place in enumerate(places):
        found = _pair(places, at, rows) if place.kind == "layer" else None
        if found is not None:
            a, weight = found
            shares[place.name] = float((sizes(a, weight) > threshold_for(a, weight, level)).double().mean())
    if not shares:
        raise NotApplicable("it needs a linear layer right behind an activation, plain or gated")
    mean = sum(shares.values()) / len(shares)
    return Finding(
        {"ratio": mean, **{f"ratio of {name}": share for name, share in shares.items()}},
        f"{mean:.1%} of the neurons are active in the mean over {len(shares)} feed-forward layers: the others make "
        f"{level:.0%} of the output.",
        partial(bars, shares, "share of neurons that are active", f"Activation ratio at a CETT of {level:g}"),
    )


def _pair(places: list[Place], at: int, rows: int) -> tuple[Tensor, Tensor] | None:
    """Return (activations (n, m), weight (d, m)) of the layer at this place where these explain its outputs."""
    layer = places[at]
    held = getattr(layer.module, "weight", None)
    if not isinstance(held, Tensor) or held.ndim != 2:
        return None
    weight = down_weight(layer.module).cpu().float()
    bias = getattr(layer.module, "bias", None)
    wanted = layer.output.rows[:rows].float()
    wanted = wanted - bias.detach().cpu().float() if isinstance(bias, Tensor) else wanted
    for a in _candidates(places[:at], weight.shape[1]):
        own = a[:rows].float()
        if (
            len(own) == len(wanted)
            and weight.shape[0] == wanted.shape[1]
            and _explains(own @ weight.T, wanted)
        ):
            return own, weight
    return None


def _candidates(before: list[Place], width: int) -> list[Tensor]:
    """Return what may have entered a layer: the latest activation, or its products with layers near it."""
    found = [(i, p) for i, p in enumerate(before) if p.kind == "activation" and p.output.units == width][-1:]
    rows = []
    for i, place in found:
        a = place.output.rows
        rows.append(a)
        for other in before[max(0, i - 2) : i + 3]:
            b = other.output.rows
            if other.kind == "layer" and len(a) == len(b):
                rows += [a * part for part in b.split(width, 1) if part.shape == a.shape]
    return rows


def _explains(found: Tensor, wanted: Tensor) -> bool:
    return bool(torch.linalg.vector_norm(found - wanted) <= 1e-2 * torch.linalg.vector_norm(wanted))
