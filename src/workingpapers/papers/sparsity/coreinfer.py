"""CoreInfer: a sentence's core neurons, chosen once from its prompt, do all of the decoding.

    core of a token: the L largest of its activations, L = int(alpha mean #{positive});   core of the sentence: the
    (1 - sparsity) d_ff neurons that are in most tokens' cores

Paper: "CoreInfer: Accelerating Large Language Model Inference with Semantics-Inspired Adaptive Sparse Activation"
(2024), Sections 3 and 4.  The mechanics are as the specification read them in a re-implementation.  Leaving the
other neurons' weights on another device is not done here.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.engines.activity.batches import batches_of
from workingpapers.engines.skipping.calibration import evaluating
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.kernels.timing import median_seconds
from workingpapers.papers.sparsity._core_domains import continuation_rises, two_domains
from workingpapers.papers.sparsity._core_sets import (
    Core,
    Director,
    MaskKeeper,
    core_layers,
    overlap,
    sentence_core,
    sentence_means,
)
from workingpapers.papers.sparsity._sparse_examples import tiny_decoder
from workingpapers.surgery import note_changes
from workingpapers.surgery.collect import collect
from workingpapers.surgery.feedforward import FeedForward, feed_forwards
from workingpapers.tasks import Budget


@paper("coreinfer", example=tiny_decoder, target="sparsity")
def coreinfer(
    model: nn.Module,
    calibration: Any,
    sparsity: float = 0.6,
    alpha: float = 0.4,
    groups: int = 0,
    dense_first: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of a decoder that decodes by the core neurons of each prompt.

    Args:
        model: a decoder with plain or gated feed-forward layers; calls with one token a sequence are decoding,
            calls with more are prompts, which are computed in full.
        calibration: tokens (N, T), or batches as the model takes them: one is enough without groups.
        sparsity: share of the neurons left out, 1 - beta of the paper.
        alpha: share of a token's positive activations that make its core.
        groups: so many groups of calibration sentences, each with a core of its own; a prompt takes that of the
            nearest group (similarity-guided).  0 takes the prompt's own (stability-guided).
        dense_first: feed-forward layers left dense; None for an eighth, 4 of 32.
        seed: of the grouping.

    Raises:
        WorkingPapersError: where a share is out of range, or there is no feed-forward layer.
    """
    for name, share in {"sparsity": sparsity, "alpha": alpha}.items():
        if not 0 <= share <= 1:
            raise WorkingPapersError(f"{name} lies between 0 and 1; got {share}")
    changed = copy.deepcopy(model)
    first = next(iter(batches_of(calibration, 1)))
    layers = feed_forwards(changed, dict(first.named) if first.named else first.arguments)
    chosen = layers[len(layers) // 8 if dense_first is None else dense_first :]
    director = Director()
    cores = [Core(f.count, int(round((1 - sparsity) * f.count, 6)), alpha, director) for f in chosen]
    if groups:
        _group(changed, calibration, chosen, cores, groups, seed)
    for layer, core in zip(chosen, cores, strict=True):
        core_layers(layer, core)
    changed.register_forward_pre_hook(MaskKeeper(director), with_kwargs=True)
    said = f"CoreInfer: {len(chosen)} feed-forward layers decode by {1 - sparsity:.0%} of their neurons."
    return note_changes(changed, [said])  # type: ignore[no-any-return]


def _group(
    model: nn.Module, calibration: Any, layers: list[FeedForward], cores: list[Core], groups: int, seed: int
) -> None:
    """Group calibration sentences by the mean of what enters the first layer; give each layer the groups' cores."""
    from sklearn.cluster import KMeans

    seen: dict[str, list[Tensor]] = {}
    names = {f.down.name: f.down.layer for f in layers}
    gate = layers[0].gate

    def note(name: str) -> Any:
        return lambda module, args, output: seen.setdefault(name, []).extend(args[0].detach())

    handles = [m.register_forward_hook(note(n)) for n, m in {**names, gate.name: gate.layer}.items()]
    try:
        with evaluating(model):
            for batch in batches_of(calibration, 8):
                model(*batch.arguments, **batch.named)
    finally:
        for handle in handles:
            handle.remove()
    if len(seen[gate.name]) < groups:
        raise WorkingPapersError(f"{groups} groups need as many sentences; got {len(seen[gate.name])}")
    points = torch.stack([sentence_means(s[None], None)[0] for s in seen[gate.name]])
    found = KMeans(groups, n_init=4, random_state=seed).fit(points.double().cpu().numpy())
    gate.layer.register_buffer("core_centres", torch.tensor(found.cluster_centers_).to(points))
    labels = torch.tensor(found.labels_)
    for layer, core in zip(layers, cores, strict=True):
        rows = [
            torch.cat([s for s, g in zip(seen[layer.down.name], labels, strict=True) if g == group])
            for group in range(groups)
        ]
        sets = torch.stack([sentence_core(r, core.count, core.alpha) for r in rows])
        layer.down.layer.register_buffer("core_sets", sets)


def cores_of(model: nn.Module, tokens: Tensor, sparsity: float = 0.6, alpha: float = 0.4) -> list[Tensor]:
    """Return, by feed-forward layer, the core (sentences, count) of each sentence of tokens (sentences, T)."""
    layers = feed_forwards(model, tokens[:1])
    held = collect(model, tokens, [f.down.name for f in layers], side="input")
    return [
        torch.stack([sentence_core(h, int((1 - sparsity) * f.count), alpha) for h in held[f.down.name]])
        for f in layers
    ]


@claim(
    "coreinfer",
    "The set of most important neurons stays stable through a sentence and is alike for semantically similar "
    "sentences.",
    seeds=3,
    holds=all_of(
        at_least(0.10, of="within_over_across", by="every"), at_least(0.05, of="same_over_across", by="every")
    ),
)
def cores_are_stable(budget: Budget, seed: int) -> Evidence:
    """Jaccard overlap of cores: two halves of a passage, passages of one domain, passages of two."""
    model, first, second = two_domains(budget, seed)
    half = first.shape[1] // 2
    halves = [(cores_of(model, d[:, :half]), cores_of(model, d[:, half:])) for d in (first, second)]

    def mean(pairs: Any) -> float:
        found = [overlap(a, b) for one, other in pairs for a, b in zip(one, other, strict=True)]
        return sum(found) / len(found)

    within = mean(pair for one, other in halves for pair in zip(one, other, strict=True))
    same = mean((a, b.roll(1, 0)) for one, other in halves for a, b in zip(one, other, strict=True))
    across = mean(zip(halves[0][0], halves[1][1], strict=True))
    return Evidence(within_over_across=within - across, same_over_across=same - across, across=across)


@claim(
    "coreinfer",
    "Sentence-level core neurons fixed at prefill can replace per-token prediction without degrading model "
    "performance.",
    seeds=3,
    holds=all_of(at_most(0.5, of="over_random", by="every"), at_most(0.8, of="over_first_token", by="every")),
)
def cores_of_prompts_suffice(budget: Budget, seed: int) -> Evidence:
    """Rises of the log-perplexity of continuations, by the core of the prompt and by other sets of equal size."""
    model, text, _ = two_domains(budget, seed)
    rises = continuation_rises(model, text, 0.4, seed)
    return Evidence(
        over_random=rises["core"] / rises["random"],
        over_first_token=rises["core"] / rises["first token"],
        rise=rises["core"],
        oracle=rises["oracle"],
        by_weights=rises["weights"],
    )


@claim(
    "coreinfer",
    "Decoding becomes much faster since no predictor network runs.",
    figure="10.33 times over Huggingface and 2.72 times over PowerInfer on an NVIDIA TITAN XP GPU",
    seeds=3,
    holds=at_least(1.7, of="speed", by="every"),
)
@torch.no_grad()
def decoding_speed(budget: Budget, seed: int) -> Evidence:
    """Time of dense feed-forward layers (1,024 to 4,096, gated) for one token over that of their cores of 40 %."""
    generator = torch.Generator().manual_seed(seed)
    dense = tiny_decoder(generator, dim=1024, width=4096, depth=2)[0].eval()
    tokens = torch.randint(0, 11, (1, 8), generator=generator)
    sparse = coreinfer(dense, tokens, 0.6, dense_first=0)
    sparse(tokens)
    x = torch.randn(1, 1, 1024, generator=generator)
    runs = [partial(_feed, model, x) for model in (dense, sparse)]
    whole, core = median_seconds(runs, budget.pick(quick=100, full=400))
    return Evidence(speed=whole / core)


def _feed(model: Any, x: Tensor) -> None:
    for block in model.blocks:
        block.contract(block.activation(block.expand(x)))
