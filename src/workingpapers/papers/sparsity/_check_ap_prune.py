"""What `inspect` asks of dead rectifiers: how many outputs are 0, and which units give 0 for every example?"""

from functools import partial

from torch import Tensor, nn

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, NotApplicable, example_case
from workingpapers.engines.activity.layers import bars
from workingpapers.experiments.evidence import Finding, Symptom
from workingpapers.papers.sparsity._silent import Silent, silent, unburdened


def _dead(model: nn.Sequential) -> None:
    """Turn a third of the second layer's units off."""
    model.get_parameter("2.bias")[:5] = -100.0


@paper("ap_prune", part="dead", kind="analysis", example=example_case(_dead))
def dead(case: Case, share: float = 0.15, serious: float = 0.3) -> Finding:
    """Tell how many outputs of hidden ReLUs are 0, and which units are 0 for every example of the sweep.

    Rates of outputs: `total`, `static` (no incoming weight is left) and `dynamic`, the rest: zero for this input.
    About half is usual and no fault.  `dead` is the share of units that never fire: they learn nothing any more.
    Looked at are ReLU, ReLU6 and squared ReLU: smooth activations such as GELU are never exactly 0.

    Args:
        case: of a sweep.
        share: of a layer's units that never fire, from which a warning is given; ours, the paper has no limit:
            of 100 small networks trained well the worst layer had 11 %, with a fifth of one layer killed 20 %.
        serious: share from which it is serious; ours too.

    A symptom's cure does what AP does, on a copy: it removes the negative weights into the units, which hold them
    below zero.  A unit without a positive weight stays dead; ReDo's cure (`redo.dormant`) draws it anew.
    """
    found = silent(case.activity)
    if not found:
        raise NotApplicable("it needs ReLUs between two layers")
    outputs = sum(s.outputs for s in found.values())
    total = sum(float(s.rates.mean()) * s.outputs for s in found.values()) / outputs
    static = sum(float((s.rates * s.cut).mean()) * s.outputs for s in found.values()) / outputs
    units = sum(len(s.never) for s in found.values())
    never = sum(int(s.never.sum()) for s in found.values())
    shares = {name: float(s.never.double().mean()) for name, s in found.items()}
    numbers = {"total": total, "static": static, "dynamic": total - static, "dead": never / units}
    numbers |= {f"dead rate of {name}": float(s.rates.mean()) for name, s in found.items()}
    numbers |= {f"dead units of {name}": value for name, value in shares.items()}
    return Finding(
        numbers,
        f"{never} of {units} units are 0 for every example, and {total:.1%} of the outputs are 0 for theirs, "
        f"{static:.1%} for want of weights.",
        partial(bars, shares, "share of units that never fire", "Dead units by layer", share),
        {"dead": {name: s.never for name, s in found.items()}},
        tuple(
            _symptom(case, name, s, share, serious)
            for name, s in found.items()
            if shares[name] >= share and int(s.never.sum()) > 1
        ),
    )


def _symptom(case: Case, name: str, found: Silent, share: float, serious: float) -> Symptom:
    count, cut = int(found.never.sum()), int((found.never & found.cut).sum())
    part = count / len(found.never)
    why = f", {cut} of them without any incoming weight" if cut else ""
    return Symptom(
        name,
        "serious" if part >= serious else "warning",
        f"{count} of {len(found.never)} units are 0 for all {case.activity.examples} examples ({part:.0%}, limit "
        f"{share:.0%}){why}.",
        "Prune the negative weights that hold them below zero (AP), or recycle them (ReDo); a lower rate or a "
        "leaky activation keeps more of them alive.",
        partial(_cure, case=case, name=name, mask=found.never),
    )


def _cure(model: nn.Module, case: Case, name: str, mask: Tensor) -> nn.Module:
    batch = case.activity.batches[0]
    return unburdened(model, dict(batch.named) or batch.arguments, {name: mask})
