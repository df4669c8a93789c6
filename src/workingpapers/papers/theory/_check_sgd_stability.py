"""What `inspect` asks of dynamical stability: does the learning rate fit the curvature of the loss?"""

from typing import Any

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, NotApplicable, example_case
from workingpapers.engines.spectra.stability import sharpness, stability_limit
from workingpapers.experiments.evidence import Finding, Symptom

AT_THE_EDGE = 1.1  # training hovers about the limit itself, a little above


def _draw(top: float, limit: float | None) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.2), layout="constrained")
    axis = figure.subplots()
    axis.barh(["largest eigenvalue"], [top], color="#1f77b4", height=0.5)
    if limit is not None:
        axis.axvline(limit, color="#b3420b", linestyle="--", label=f"2 (1 + momentum) / lr = {limit:.3g}")
        axis.legend(fontsize=7)
    axis.set_xlabel("curvature of the loss (Hessian eigenvalue)")
    axis.set_title("Sharpness and the limit of stable steps", fontsize=9)
    return figure


@paper("sgd_stability", part="limit", kind="analysis", example=example_case(lr=0.01))
def limit(case: Case, edge: float = AT_THE_EDGE) -> Finding:
    """Hold the learning rate against the largest curvature of the loss.

    Args:
        case: of `inspect`, with a loss; the first batches (at most 256 examples) are read again.
        edge: how far over the limit the curvature may be: full-batch training settles about the limit itself.

    Gradient descent is stable while the largest eigenvalue is at most 2 (1 + momentum) / lr; SGD needs the trace to
    be of that size as well, so this limit is the weaker one.  Adaptive optimizers scale the curvature by their own
    state, which the case does not have: the eigenvalue is told and nothing is held against it.
    """
    loss, batches = case.needs_loss(), case.activity.batches
    if not any(p.requires_grad for p in case.model.parameters()):
        raise NotApplicable("it needs a parameter that is trained")
    pairs = [
        (b.named or (b.arguments if len(b.arguments) > 1 else b.arguments[0]), b.targets) for b in batches
    ]
    try:
        top = sharpness(case.model, loss, pairs, tolerance=1e-2, most=60, seed=case.seed)
    except RuntimeError as error:  # torch has no second derivative of some functions, such as hardsigmoid
        if "not implemented" not in str(error):
            raise
        raise NotApplicable(f"it needs second derivatives, and torch says: {error}") from None
    numbers = {"sharpness": top}
    if case.lr is None or case.adaptive:
        safe = (
            f"plain gradient descent is stable up to lr = {2 / top:.3g}" if top > 0 else "no step is too long"
        )
        return Finding(
            numbers, f"The largest eigenvalue of the loss is {top:.4g}, so {safe}.", lambda: _draw(top, None)
        )
    most = stability_limit(case.lr, case.momentum)
    numbers |= {"limit": most, "share of the limit": top / most}
    symptoms: tuple[Symptom, ...] = ()
    if top > edge * most:
        safe_rate = case.lr * most / top
        symptoms = (
            Symptom(
                "optimizer",
                "serious" if top > 2 * most else "warning",
                f"the learning rate {case.lr:g} is over the stability limit: the loss has curvature {top:.4g}, and "
                f"steps are stable up to {most:.4g}.",
                f"Begin with a learning rate of at most {safe_rate:.2g}, or warm up to this one.",
            ),
        )
    return Finding(
        numbers,
        f"The curvature of the loss is {top / most:.2f} of what the learning rate {case.lr:g} allows.",
        lambda: _draw(top, most),
        symptoms=symptoms,
    )
