"""What `inspect` asks of the optimal constant: does the network answer its inputs, or always the same?"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, NotApplicable, example_case
from workingpapers.experiments.evidence import Finding, Symptom


def _silent(model: nn.Sequential) -> None:
    model.get_parameter("2.bias").fill_(-1e6)


def _draw(outputs: Tensor) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    axis = figure.subplots()
    shown = outputs[:, : min(outputs.shape[1], 20)]
    axis.boxplot(shown.T.tolist(), showfliers=False)
    axis.set_xlabel("output")
    axis.set_ylabel("value over the examples")
    axis.set_title("What the network answers, by output", fontsize=9)
    return figure


@paper("ocs_extrapolation", part="constant", kind="analysis", example=example_case(_silent))
def constant(case: Case, share: float = 1e-6) -> Finding:
    """Find whether the network's answer depends on its input at all.

    Args:
        case: of `inspect`; the sampled outputs are read.
        share: the answer is constant where its variance over examples is below this share of its mean square.  Far
            from the training data networks drift to the constant that is best for the loss (the paper); on the
            training data themselves such a network has learnt nothing but that.
    """
    outputs = case.activity.outputs
    if outputs is None or len(outputs) < 2 or not outputs.is_floating_point():
        raise NotApplicable("it needs a model that gives one tensor for several examples")
    rows = outputs.double().flatten(1)
    size = float(rows.square().mean())
    varying = float(rows.var(0, correction=0).mean()) / size if size > 0 else 0.0
    if not torch.isfinite(rows).all():
        raise NotApplicable("it needs finite outputs")
    numbers = {"share that varies": varying, "root mean square": size**0.5}
    symptoms: tuple[Symptom, ...] = ()
    if varying < share:
        symptoms = (
            Symptom(
                "output",
                "serious",
                f"the network answers the same whatever its input: {varying:.2g} of the mean square varies.",
                "Look for the first layer that has collapsed or died; what comes behind it cannot learn.",
            ),
        )
    return Finding(
        numbers,
        f"{varying:.1%} of the outputs' mean square varies with the input.",
        partial(_draw, rows),
        symptoms=symptoms,
    )
