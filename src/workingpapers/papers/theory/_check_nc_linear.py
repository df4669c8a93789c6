"""What `inspect` asks of neural collapse: how far have the classes of the last features drawn together?"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, NotApplicable, example_case
from workingpapers.experiments.evidence import Finding
from workingpapers.papers.theory import _collapse


def _draw(cosines: Tensor, classes: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.hist(cosines.tolist(), bins=30, range=(-1, 1), color="#1f77b4")
    axis.axvline(-1 / (classes - 1), color="#b3420b", linestyle="--", label="a simplex frame")
    axis.set_xlabel("cosine between two class means")
    axis.set_ylabel("pairs")
    axis.legend(fontsize=7)
    axis.set_title("Class means of the last features", fontsize=9)
    return figure


@paper("nc_linear", part="collapse", kind="analysis", example=example_case())
def collapse(case: Case) -> Finding:
    """Tell how near a classifier's last features are to neural collapse; it is a state of training and no fault.

    `nc1` is 0 where all features of a class are alike, `nc2_means` where class means form a simplex frame, `nc3`
    where the classifier's rows point the same ways, `nc4` the share of examples that the nearest mean would answer
    otherwise.  Read from the sampled examples and the last layer's weights.
    """
    labels, layers = case.labels(), case.activity.layers()
    weight = getattr(layers[-1].module, "weight", None) if layers else None
    names = list(case.activity.places)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or case.activity.outputs is None:
        raise NotApplicable("it needs a linear last layer that gives the classes")
    before = [case.activity.places[n] for n in names[: names.index(layers[-1].name)]]
    features = next((p.output.examples for p in reversed(before) if p.output.units == weight.shape[1]), None)
    if features is None or len(features) != len(labels) or int(labels.max()) >= len(weight):
        raise NotApplicable("it needs the last layer's input among the places")
    if len(torch.unique(labels)) < 2:
        raise NotApplicable("it needs examples of two classes")
    held = weight.detach().cpu().double()
    numbers = _collapse.collapse(features.double(), labels, held, case.activity.outputs.double())
    _, means, _ = _collapse.class_means(features.double(), labels)
    cosines = _collapse.cosines(means - means.mean(0))
    return Finding(
        numbers,
        f"Within-class variability is {numbers['nc1']:.3g}, and class means have cosines {numbers['cosine']:.2f} "
        f"where full collapse has {-1 / max(len(means) - 1, 1):.2f}.",
        partial(_draw, cosines, len(means)) if len(means) > 1 else None,
    )
