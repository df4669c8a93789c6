"""What `inspect` asks of neural codes: has nearly every example a linear region to itself?"""

from functools import partial

import torch

from workingpapers.catalog import paper
from workingpapers.engines.activity.case import Case, NotApplicable, example_case
from workingpapers.engines.activity.layers import bars
from workingpapers.experiments.evidence import Finding

RECTIFIERS = ("relu", "relu6", "leaky_relu", "prelu", "rrelu", "relu2")


@paper("neural_hash", part="codes", kind="analysis", example=example_case())
def codes(case: Case) -> Finding:
    """Tell how many of the sampled examples have an on-off pattern of their own, layer by layer; that is no fault.

    Of a map one random position stands for the example.  `redundancy` is the share of examples whose code over all
    rectifiers another one has already; a low one means that the network can tell its inputs apart by codes alone.
    """
    places = [p for p in case.activity.activations() if p.activation in RECTIFIERS and p.input is not None]
    patterns = {p.name: p.input.rows > 0 for p in places if p.input is not None and len(p.input.examples)}
    if not patterns:
        raise NotApplicable("it needs rectifiers (ReLU, leaky ReLU, PReLU)")
    size = min(len(bits) for bits in patterns.values())
    shares = {n: 1 - len(torch.unique(bits[:size], dim=0)) / size for n, bits in patterns.items()}
    whole = torch.cat([bits[:size] for bits in patterns.values()], 1)
    redundancy = 1 - len(torch.unique(whole, dim=0)) / size
    return Finding(
        {"redundancy": redundancy, **{f"redundancy of {name}": share for name, share in shares.items()}},
        f"{1 - redundancy:.1%} of {size} examples have a code of their own over {whole.shape[1]} rectifiers.",
        partial(bars, shares, "share of examples whose code is taken", "Redundancy of codes by layer"),
    )
