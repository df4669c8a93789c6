"""What `inspect` asks of dormant units: which hidden units hardly fire, beside the others of their layer?"""

from functools import partial

import torch
from torch import nn

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, NotApplicable, example_case
from workingpapers.engines.activity.layers import bars
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.evidence import Finding, Symptom
from workingpapers.papers.rl._dormant import dormancy_of, recycled


def _asleep(model: nn.Sequential) -> None:
    """Turn a third of the first layer's units far down."""
    model.get_parameter("0.bias")[:8] = -100.0


@paper("redo", part="dormant", kind="analysis", example=example_case(_asleep))
def dormant(case: Case, tau: float = 0.025, share: float = 0.25, serious: float = 0.5) -> Finding:
    """Tell which share of each layer's hidden units is tau-dormant: mean size at most tau of the layer's mean.

    Looked at are activations between two layers, so neither the outputs nor layers that no activation follows.

    Args:
        case: of a sweep.
        tau: 0.025, at which the paper's figures count dormant units.
        share: of a layer's units, from which a warning is given; ours, the paper has no limit: of 180 narrow
            layers of healthy networks 98 % had less than 18 %.
        serious: share from which it is serious; ours too.

    A symptom's cure recycles the units on a copy, as ReDo does: fresh weights in, zeros out.  It refuses where the
    units reach more than layers that read them, as in a sum with a shortcut.
    """
    try:
        found = dormancy_of(case.activity)
    except WorkingPapersError:
        raise NotApplicable("it needs an activation between two layers") from None
    masks, shares = found.dormant(tau), found.by_layer(tau)
    symptoms = tuple(
        Symptom(
            name,
            "serious" if shares[name] >= serious else "warning",
            f"{int(mask.sum())} of {len(mask)} units are dormant ({shares[name]:.0%}, limit {share:.0%}): their "
            f"mean size is at most {tau:g} of the layer's mean.",
            "Recycle them (fresh weights in, zeros out), train with ReDo, or lower the learning rate.",
            partial(_cure, case=case, name=name, mask=mask),
        )
        for name, mask in masks.items()
        if shares[name] >= share and int(mask.sum()) > 1
    )
    whole, units = found.share(tau), sum(len(mask) for mask in masks.values())
    return Finding(
        {"dormant": whole, **{f"dormant in {name}": value for name, value in shares.items()}},
        f"{whole:.1%} of {units} hidden units are dormant (mean size at most {tau:g} of their layer's).",
        partial(bars, shares, "share of dormant units", f"Units with a score of at most {tau:g}", share),
        {"dormant": masks, "scores": found.scores},
        symptoms,
    )


def _cure(model: nn.Module, case: Case, name: str, mask: torch.Tensor) -> nn.Module:
    batch = case.activity.batches[0]
    return recycled(model, dict(batch.named) or batch.arguments, {name: mask}, case.seed)
