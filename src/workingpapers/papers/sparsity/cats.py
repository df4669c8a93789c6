"""CATS: feed-forward layers skip the neurons whose gate is small, by a threshold a layer from a sample of
text.

    g = act(x W_gate),  g = g [|g| >= t],  y = ((x W_up) * g) W_down,  t the sparsity-quantile of |g| on the
    sample

Plain feed-forward layers (GPT-2, OPT) take the same rule on act(x W_1).

Paper: "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models" (2024), Section 3; for
the plain layers and the row-wise kernel, the specification's reading of them.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.engines.activity.batches import batches_of
from workingpapers.engines.skipping import (
    activations,
    cut_below,
    expert_activations,
    quantile,
    realised,
    skip_below,
)
from workingpapers.engines.skipping.calibration import Sample, evaluating
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.kernels.rows import gated_rows, kept
from workingpapers.kernels.timing import median_seconds
from workingpapers.papers.sparsity._cett import Keep, downs_of, keeping
from workingpapers.papers.sparsity._sparse_examples import tiny_decoder
from workingpapers.papers.sparsity._trained_decoders import trained_decoder
from workingpapers.papers.sparsity.sparsing_law import next_token_loss
from workingpapers.surgery import note_changes, replace_modules
from workingpapers.surgery.collect import collect
from workingpapers.surgery.feedforward import FeedForward, feed_forwards
from workingpapers.tasks import Budget


@paper("cats", example=tiny_decoder, target="sparsity")
def cats(model: nn.Module, calibration: Any, sparsity: float = 0.5) -> nn.Module:
    """Return a copy of a decoder whose feed-forward layers skip the share `sparsity` of their neurons for
    each token.

    Args:
        model: any model with plain or gated feed-forward layers, or with experts as Hugging Face keeps them.
        calibration: tokens (N, T), or batches as the model takes them; a few thousand tokens.
        sparsity: share of neurons left out on the calibration data, 0 to 1; 0 changes no output by a bit.

    Decoding one to eight tokens at a time reads the weights of active neurons only; more are computed
    densely, and the small ones set to 0.  The thresholds are buffers `skip_below` in the state dict.

    Raises:
        WorkingPapersError: where the share is out of range, there is no feed-forward layer, or too little
        data.
    """
    if not 0 <= sparsity <= 1:
        raise WorkingPapersError(f"a sparsity lies between 0 and 1; got {sparsity}")
    changed = copy.deepcopy(model)
    layers, experts = _layers(changed, calibration), expert_activations(changed)
    thresholds = _thresholds(changed, calibration, layers, experts, sparsity)
    for layer in layers:
        skip_below(layer, thresholds[layer.name])
    for name, (activation, beside) in experts.items():
        cut_below(activation, thresholds[name], beside)
    names = [*(layer.name for layer in layers), *experts]
    sentence = (
        f"CATS: {len(names)} feed-forward layers skip {sparsity:.0%} of their neurons, from {names[0]} on."
    )
    return note_changes(changed, [sentence])  # type: ignore[no-any-return]


def _layers(model: nn.Module, calibration: Any) -> list[FeedForward]:
    first = next(iter(batches_of(calibration, 1)))
    inputs = dict(first.named) if first.named else first.arguments
    try:
        return feed_forwards(model, inputs)
    except WorkingPapersError:
        if expert_activations(model):
            return []
        raise


def _thresholds(
    model: nn.Module,
    calibration: Any,
    layers: list[FeedForward],
    experts: dict[str, tuple[nn.Module, nn.Module]],
    sparsity: float,
) -> dict[str, float]:
    gates = {layer.name: layer for layer in layers}
    samples = {name: Sample() for name in [*gates, *experts]}
    modules = {**{n: g.gate.layer for n, g in gates.items()}, **{n: act for n, (act, _) in experts.items()}}

    def value(name: str, x: Tensor, output: Tensor) -> Tensor:
        if name not in gates:
            return output
        gate = gates[name]
        return gate.activation(output.narrow(-1, gate.gate.start, gate.count))

    activations(model, calibration, modules, value, lambda name, a: samples[name].add(a.abs()))
    return {name: quantile(sample.values(), sparsity) for name, sample in samples.items()}


def report(model: nn.Module, data: Any) -> dict[str, float]:
    """Return the share of neurons that each module which skips really leaves out on data, by its name."""
    with evaluating(model), realised(model) as counts:
        for batch in batches_of(data, 8):
            model(*batch.arguments, **batch.named)
    return {name: 1 - c["active"] / max(1, c["all"]) for name, c in counts.items()}


def at_random(sparsity: float, generator: torch.Generator) -> Keep:
    """Keep neurons by chance, a share 1 - sparsity of them for each token."""

    def keep(name: str, a: Tensor) -> Tensor:
        return torch.rand(a.shape, generator=generator) >= sparsity

    return keep


def rectified(model: nn.Module) -> nn.Module:
    """Return a copy of a model with ReLU in place of SiLU, and nothing else changed."""
    return replace_modules(model, nn.SiLU, lambda old: nn.ReLU())


@claim(
    "cats",
    "Half of the MLP activations can be dropped with little quality loss and no fine-tuning, better than rival "
    "sparsification methods.",
    figure="within 1-2% of base models at 50% activation sparsity (Mistral-7B, Llama2-7B)",
    seeds=3,
    holds=all_of(
        at_most(0.02, of="rise", by="every"),
        at_least(5.0, of="random_over_cats", by="every"),
        at_most(0.7, of="cats_over_relu", by="every"),
        at_most(0.02, of="off_target", by="every"),
    ),
)
def half_of_the_activations(budget: Budget, seed: int) -> Evidence:
    """Rises of the test loss of a gated decoder on tinyshakespeare, as shares of its loss, by what is dropped."""
    model, sample, test = trained_decoder(budget, seed, nn.SiLU)
    base = next_token_loss(model, test)

    def rise(changed: nn.Module) -> float:
        return next_token_loss(changed, test) / base - 1

    half = cats(model, sample)
    with keeping(downs_of(model, test[:1]), at_random(0.5, torch.Generator().manual_seed(seed))):
        by_chance = rise(model)
    relu = rectified(model)
    signs = collect(relu, test, nn.ReLU, keep=lambda m, a: a == 0)
    off = float(torch.stack([s.double().mean() for s in signs.values()]).mean())
    cut, swapped = rise(cats(model, sample, off)), rise(relu)
    return Evidence(
        rise=rise(half),
        random_over_cats=by_chance / max(rise(half), 1e-9),
        cats_over_relu=cut / swapped,
        off_target=max(abs(share - 0.5) for share in report(half, test).values()),
        relu_sparsity=off,
    )


@claim(
    "cats",
    "A custom kernel turns that sparsity into real decoding speed.",
    figure="~15% lower token-generation latency on Llama-7B and Mistral-7B",
    seeds=3,
    holds=all_of(at_most(0.85, of="time_at_70", by="every"), at_most(1e-4, of="error", by="every")),
)
@torch.no_grad()
def decoding_time(budget: Budget, seed: int) -> Evidence:
    """Time of a gated layer of 1,024 and 4,096 features for one token, sparse over dense, gate included."""
    generator = torch.Generator().manual_seed(seed)
    dim, width = budget.pick(quick=(1024, 4096), full=(4096, 11008))

    def draw(*shape: int) -> Tensor:
        found: Tensor = torch.randn(*shape, generator=generator) / shape[-1] ** 0.5
        return found

    gate, up, down, x = draw(width, dim), draw(width, dim), draw(width, dim), draw(1, dim)
    by_outputs = down.t().contiguous()  # as a dense layer keeps it

    def dense() -> Tensor:
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), by_outputs)

    ratios, errors = {}, []
    for sparsity in (0.5, 0.7):
        t = quantile(F.silu(F.linear(x, gate)).abs().flatten(), sparsity)

        def sparse(t: float = t) -> Tensor:
            return gated_rows(F.silu(F.linear(x, gate)), up, down, x, t)

        exact = (kept(F.silu(F.linear(x, gate)), t) * F.linear(x, up)) @ down
        errors.append(float((sparse() - exact).abs().max() / exact.abs().max()))
        whole, skipped = median_seconds([dense, sparse], 200)
        ratios[sparsity] = skipped / whole
    return Evidence(time_at_50=ratios[0.5], time_at_70=ratios[0.7], error=max(errors))
