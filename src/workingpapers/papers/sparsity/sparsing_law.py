"""Sparsing law: how few neurons of feed-forward layers a language model needs for nearly its own perplexity.

    s_i = |a_i| ||W_i||,   CETT(t) = mean of ||sum over s_i <= t of a_i W_i|| / ||FFN output||

PPL-p % sparsity: one level of CETT gives each layer its threshold; the level is the largest at which the perplexity
rises by at most p %.  What stays above the thresholds is the activation ratio.

Paper: "Sparsing Law: Towards Large Language Models with Greater Activation Sparsity" (2024), Sections 3 and 4.  The
laws' functional forms are from its abstract and memory.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import text
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, above, all_of, at_least, at_most
from workingpapers.papers.sparsity._cett import (
    Keep,
    above_thresholds,
    activations_into,
    beyond,
    cett,
    downs_of,
    keeping,
    ratios,
    thresholds_for_cett,
    thresholds_of,
    top_share,
)
from workingpapers.papers.sparsity._ratio_laws import fit_law
from workingpapers.papers.sparsity._small_decoders import decoder
from workingpapers.tasks import Budget, LanguageModelling, initialise
from workingpapers.tasks.training import Training, points

__all__ = ["cett", "fit_law", "sparsing_law", "thresholds_for_cett"]


@torch.no_grad()
def next_token_loss(model: nn.Module, tokens: Tensor) -> float:
    """Return the mean cross-entropy of each token (B, T) given those before, in nats, in evaluation mode.

    The model gives logits (B, T, V), or something with `logits`.
    """
    modes = {module: module.training for module in model.modules()}
    total = 0.0
    try:
        model.eval()
        for part in tokens.split(16):
            output = model(part[:, :-1])
            logits = getattr(output, "logits", output)
            total += float(F.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten())) * len(part)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return total / len(tokens)


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    model = decoder(11, 12, 16, 2, 24, nn.SiLU, gated=True)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return model, torch.randint(11, (6, 12), generator=generator)


def _in_training(model: nn.Module, *rest: Any) -> tuple[Any, ...]:
    return model.train(), *rest


@paper("sparsing_law", example=_example, invariances={"training mode": _in_training})
def sparsing_law(
    model: nn.Module, tokens: Tensor, p: float = 1.0, rows: int = 1024, tolerance: float = 1e-4
) -> Finding:
    """Measure the PPL-p % activation ratio of any decoder with plain or gated feed-forward layers.

    Args:
        model: tokens (B, T) -> logits, or something with `logits`; its feed-forward layers are found by a run.
        tokens: (B, T), on which the perplexity is measured.
        p: by how many percent the perplexity may rise; 0 keeps the loss exactly.
        rows: at most so many tokens, evenly spaced, decide the thresholds.
        tolerance: of the level of CETT, which is bisected in [0, 1].

    The numbers: `ratio` of neurons kept, over layers and tokens, and by layer; `cett`; `loss` and `loss_sparse`.
    `details` has `thresholds` and `by_token` (tokens,) by layer.
    """
    if p < 0:
        raise WorkingPapersError(f"the perplexity may rise by p >= 0 percent; got p={p}")
    inputs = tokens[:, :-1]
    downs = downs_of(model, inputs[:1])
    held = activations_into(model, inputs, downs, 16)
    dense = next_token_loss(model, tokens)

    def sparse(level: float) -> tuple[float, dict[str, float]]:
        thresholds = thresholds_of(held, downs, level, rows)
        with keeping(downs, above_thresholds(downs, thresholds)):
            return next_token_loss(model, tokens), thresholds

    low, high = 0.0, 1.0 if p > 0 else 0.0
    best = sparse(0.0)
    while high - low > tolerance:
        middle = (low + high) / 2
        found = sparse(middle)
        if found[0] - dense <= math.log1p(p / 100):
            low, best = middle, found
        else:
            high = middle
    by_token = ratios(held, above_thresholds(downs, best[1]))
    layers = {name: float(r.mean()) for name, r in by_token.items()}
    ratio = sum(layers.values()) / len(layers)
    numbers = {"ratio": ratio, "cett": low, "loss": dense, "loss_sparse": best[0]}
    return Finding(
        numbers | {f"ratio {name}": r for name, r in layers.items()},
        f"{ratio:.1%} of the neurons suffice for a perplexity at most {p:g} % higher, at a CETT of {low:.3g}.",
        partial(_draw, layers, p),
        {"thresholds": best[1], "by_token": by_token},
    )


def _draw(layers: dict[str, float], p: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1.2 + 0.3 * len(layers)), layout="constrained")
    axis = figure.subplots()
    axis.barh(list(layers), list(layers.values()))
    axis.invert_yaxis()
    axis.set(xlabel="share of neurons kept", xlim=(0, 1), title=f"Activation ratio at PPL-{p:g} %")
    return figure


def perplexity_increase(model: nn.Module, tokens: Tensor, downs: dict[str, nn.Module], keep: Keep) -> float:
    """Return by which share the perplexity rises where down projections see only what `keep` chooses."""
    dense = next_token_loss(model, tokens)
    with keeping(downs, keep):
        return math.expm1(next_token_loss(model, tokens) - dense)


def matched(model: nn.Module, tokens: Tensor, p: float = 1.0) -> dict[str, float]:
    """Return the perplexity's rise under CETT thresholds, Top-k and FAT-epsilon at the ratio of PPL-p %."""
    found = sparsing_law(model, tokens, p)
    downs = downs_of(model, tokens[:1, :-1])
    held = activations_into(model, tokens[:, :-1], downs, 16)
    ratio = found.numbers["ratio"]
    every = torch.cat([a.abs().flatten() for a in held.values()])
    epsilon = float(every.kthvalue(max(1, round((1 - ratio) * len(every)))).values)
    ways = {
        "cett": above_thresholds(downs, found.details["thresholds"]),
        "topk": top_share(ratio),
        "fat": beyond(epsilon),
    }
    rises = {name: perplexity_increase(model, tokens, downs, keep) for name, keep in ways.items()}
    return rises | {"ratio": ratio}


def trained(
    activation: Callable[[], nn.Module], budget: Budget, seed: int, looks: tuple[int, ...]
) -> tuple[nn.Module, Tensor, dict[int, float], float]:
    """Train a gated character decoder; return it, test tokens, PPL-1 % ratios at some steps, and its last loss."""
    dim, depth, width, context = budget.pick(quick=(64, 2, 176, 32), full=(128, 4, 352, 256))
    problem = LanguageModelling(text("tinyshakespeare"), context, budget.pick(quick=10_000, full=50_000))
    count = budget.pick(quick=32, full=8)
    tokens = problem.text.test[: count * context].view(count, context)
    vocab = len(problem.text.vocabulary)
    model = initialise(partial(decoder, vocab, context, dim, depth, width, activation, True), seed)
    found = {}
    every = math.gcd(*looks)
    how = Training(steps=max(looks), lr=2e-3, batch=16, seed=seed, every=every)
    for point in points(model, problem, how):
        if int(point["step"]) in looks:
            found[int(point["step"])] = sparsing_law(model, tokens, rows=512).numbers["ratio"]
    return model, tokens, found, point["loss"]


@claim(
    "sparsing_law",
    "ReLU and SiLU models perform alike, yet with more training data ReLU models grow sparser and SiLU models "
    "denser, each following its own power law.",
    seeds=5,
    holds=all_of(
        at_most(0.06, of="loss_gap"),
        at_least(0.1, of="silu_over_relu"),
        above(0.0, of="relu_falls", by="every"),
    ),
)
def relu_and_silu(budget: Budget, seed: int) -> Evidence:
    """PPL-1 % ratios of gated decoders on tinyshakespeare, early and late; SiLU's trend is told, not judged."""
    looks = budget.pick(quick=(100, 500), full=(100, 200, 400, 700, 1000))
    _, _, relu, relu_loss = trained(nn.ReLU, budget, seed, looks)
    _, _, silu, silu_loss = trained(nn.SiLU, budget, seed, looks)
    first, last = looks[0], looks[-1]
    return Evidence(
        loss_gap=abs(relu_loss - silu_loss),
        silu_over_relu=silu[last] - relu[last],
        relu_falls=relu[first] - relu[last],
        silu_rises=silu[last] - silu[first],
        relu=relu[last],
    )


@claim(
    "sparsing_law",
    "A perplexity-anchored sparsity measure applies to any activation function and respects performance better "
    "than fixed cutoffs; the ratio it reports rises linearly with width over depth up to a point and barely "
    "depends on scale.",
    seeds=5,
    holds=all_of(at_least(-0.001, of="topk_over_cett"), at_least(-0.001, of="fat_over_cett")),
)
def against_cutoffs(budget: Budget, seed: int) -> Evidence:
    """By how much the perplexity of the SiLU decoder rises more under Top-k and FAT-epsilon at the same ratio."""
    model, tokens, _, _ = trained(nn.SiLU, budget, seed, budget.pick(quick=(500,), full=(1000,)))
    rises = matched(model, tokens)
    return Evidence(
        topk_over_cett=rises["topk"] - rises["cett"],
        fat_over_cett=rises["fat"] - rises["cett"],
        cett=rises["cett"],
        ratio=rises["ratio"],
    )
