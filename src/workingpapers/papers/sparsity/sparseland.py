"""Sparseland: a runnable map of sparse networks, by when, how and in what pattern they lose their weights.

Every branch names representatives that run here, as parts of this paper, and the catalogue's own papers.

Paper: "Ten Lessons We Have Learned in the New 'Sparseland': A Short Handbook for Sparse Neural Network
Researchers" (2023), arXiv 2302.02596.  The handbook proposes no method; the representatives are our choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.engines.masks import masks_of, shuffled
from workingpapers.errors import unknown
from workingpapers.experiments import Evidence, above, all_of, at_least, at_most
from workingpapers.papers.sparsity._questions import (
    QUESTIONS,
    accuracy,
    network,
    retrained,
    start_masks,
    ticket,
)
from workingpapers.tasks import Budget


@dataclass(frozen=True)
class Method:
    """Where a method stands on the map, and what it costs, in shares of a dense network's FLOPs at density d."""

    stage: str
    direction: str
    pattern: str
    mask: str
    training: str
    inference: str = "d"


METHODS: dict[str, Method] = {
    "sparseland.magnitude": Method("post-training", "dense-to-sparse", "unstructured", "static", "1"),
    "sparseland.gradual": Method("during training", "dense-to-sparse", "unstructured", "dynamic", "d to 1"),
    "sparseland.imp": Method(
        "post-training", "dense-to-sparse", "unstructured", "static", "rounds * (d to 1)"
    ),
    "sparseland.snip": Method("before training", "sparse-to-sparse", "unstructured", "static", "d"),
    "sparseland.grasp": Method("before training", "sparse-to-sparse", "unstructured", "static", "d"),
    "sparseland.synflow": Method("before training", "sparse-to-sparse", "unstructured", "static", "d"),
    "sparseland.static": Method("before training", "sparse-to-sparse", "unstructured", "static", "d"),
    "sparseland.set": Method("during training", "sparse-to-sparse", "unstructured", "dynamic", "d"),
    "sparseland.rigl": Method(
        "during training", "sparse-to-sparse", "unstructured", "dynamic", "d + (1 - d) / 300"
    ),
    "sparseland.two_four": Method("post-training", "dense-to-sparse", "N:M", "static", "1", "1/2"),
    "sparseland.two_four_trained": Method(
        "during training", "dense-to-sparse", "N:M", "dynamic", "2/3", "1/2"
    ),
    "sparseland.slimming": Method("post-training", "dense-to-sparse", "channel", "static", "1", "about d^2"),
    "sparseland.wanda": Method("post-training", "dense-to-sparse", "unstructured", "static", "1"),
}

CATALOGUE: dict[str, list[str]] = {
    "post-training": ["sketch_pruning_bound", "lnp", "reprogram_lt", "meta_pruning"],
    "during training": ["ap_prune", "sparse_rnn_study", "hidden_structure_sparse", "sortednet"],
    "before training": ["clipped_sparse_act"],
    "channel": ["ftwt", "n2n"],
    "sparse activations": [
        "cats",
        "r_sparse",
        "coreinfer",
        "sparsing_law",
        "lazy_neuron",
        "clipped_sparse_act",
    ],
    "sparse experts": ["blockffn", "remoe"],
    "sparse depth and time": ["cola_layers", "dyn_perceiver", "continual_inference"],
}


def _branches() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for id, method in METHODS.items():
        for tag in (method.stage, method.direction, method.pattern, f"{method.mask} mask"):
            found.setdefault(tag, []).append(id)
    for branch, ids in CATALOGUE.items():
        found[branch] = [*found.get(branch, []), *ids]
    return found


@paper("sparseland")
class Sparseland:
    """The map: `branches` from a tag to the ids of its entries, `methods` with each representative's place."""

    branches = _branches()
    methods = METHODS

    def answer(
        self, question: str, split: Split, density: float = 0.05, steps: int = 1000, seed: int = 0
    ) -> dict[str, float]:
        """Run one of the ten experiments (QUESTIONS) on `split` and return its table, by method.

        Figures are test accuracies unless the question asks for another: "layer collapse" gives the density of
        the sparsest layer, "FLOPs or wall time" ratios to the dense network.
        """
        if question not in QUESTIONS:
            raise unknown("question", question, QUESTIONS)
        return QUESTIONS[question](split, density, steps, seed)


def _fashion(budget: Budget, seed: int) -> Split:
    return images("fashion_mnist", train=budget.pick(quick=10000, full=60000), test=5000, seed=seed)


@claim(
    "sparseland",
    "Letting the sparse mask change while training beats a fixed random one at high sparsity, and pruning after "
    "training beats pruning at initialisation.",
    seeds=5,
    holds=all_of(at_least(0.005, of="dynamic_over_static"), at_least(-0.002, of="gradual_over_snip")),
)
def moving_masks(budget: Budget, seed: int) -> Evidence:
    """Fashion-MNIST, MLP 784-300-100-10, all for the same number of steps; 2 % density, and 5 % for the second."""
    split, steps = _fashion(budget, seed), budget.pick(quick=1500, full=10000)
    low = {name: accuracy(name, split, 0.02, steps, seed) for name in ("static", "set", "rigl")}
    high = {name: accuracy(name, split, 0.05, steps, seed) for name in ("gradual", "snip")}
    return Evidence(
        dynamic_over_static=max(low["set"], low["rigl"]) - low["static"],
        gradual_over_snip=high["gradual"] - high["snip"],
        **low,
        **high,
    )


@claim(
    "sparseland",
    "Masks found at initialisation survive shuffling within layers, whereas masks from trained magnitudes do not.",
    seeds=5,
    holds=all_of(at_most(0.015, of="snip_drop"), above(0, of="imp_over_snip_drop")),
)
def shuffled_masks(budget: Budget, seed: int) -> Evidence:
    """Accuracy lost when masks of density 5 % are shuffled within layers: SNIP's, and a lottery ticket's.

    The ticket's masks, whole and shuffled, are trained from the rewound weights.
    """
    split, steps = _fashion(budget, seed), budget.pick(quick=600, full=6000)
    generator = torch.Generator().manual_seed(seed)
    dense = network(split, seed)
    early = start_masks("snip", dense, split, 0.05, seed)
    late = masks_of(ticket(dense, split, 0.05, steps, seed))
    drops = {}
    for name, masks in (("snip", early), ("imp", late)):
        whole, mixed = (
            retrained(found, _rewound(split, name, steps, seed), split, steps, seed)
            for found in (masks, shuffled(masks, generator))
        )
        drops[name] = whole - mixed
    return Evidence(
        snip_drop=drops["snip"], imp_drop=drops["imp"], imp_over_snip_drop=drops["imp"] - drops["snip"]
    )


def _rewound(split: Split, name: str, steps: int, seed: int) -> torch.nn.Module:
    """Return the network as initialised or, for tickets, after the first tenth of the steps."""
    from workingpapers.tasks import fit

    model = network(split, seed)
    if name == "imp":
        fit(model, split, steps=max(1, steps // 10), every=steps, seed=seed + 1)
    return model
