"""Magnitude pruning of a perceptron layer by layer: what it takes away, and how far the outputs can move."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import paper
from workingpapers.engines.masks import apply_masks, keep_by_score
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._chains import (
    chain_of,
    gaps,
    inputs_of,
    lengths,
    linear_layers,
    reach,
    run,
    spectral,
)
from workingpapers.surgery import note_changes


def small_example(generator: torch.Generator) -> tuple[Any, ...]:
    """Return a small perceptron, inputs and labels."""
    parts: list[nn.Module] = [
        nn.Linear(6, 16, bias=False),
        nn.ReLU(),
        nn.Linear(16, 16, bias=False),
        nn.ReLU(),
    ]
    model = nn.Sequential(*parts, nn.Linear(16, 3, bias=False))
    for p in model.parameters():
        nn.init.normal_(p, std=0.4, generator=generator)
    return model, torch.randn(30, 6, generator=generator), torch.arange(30) % 3


@paper("sketch_pruning_bound", part="prune", kind="transform", example=lambda g: small_example(g)[:2])
def prune(model: nn.Module, keep: float = 0.4, d: float | None = None) -> nn.Module:
    """Return a copy of a perceptron with masks that hide the smallest weights of each layer.

    Args:
        model: Linear layers with ReLU between; biases stay.
        keep: share of each layer's weights that stays.
        d: in place of `keep`: what is at most d psi in size is removed, psi the layer's root mean square weight.
    """
    if not 0 < keep <= 1 or (d is not None and d < 0):
        raise WorkingPapersError(f"pruning takes 0 < keep <= 1 and d >= 0; got keep={keep} and d={d}")
    pruned = copy.deepcopy(model)
    chosen = {id(layer) for layer in linear_layers(pruned)}
    sizes = {
        n: (m.weight * getattr(m, "mask", 1)).detach().abs()
        for n, m in pruned.named_modules()
        if id(m) in chosen
    }
    if d is None:
        masks = keep_by_score(sizes, keep, "uniform")
    else:
        masks = {name: size > d * size.pow(2).mean().sqrt() for name, size in sizes.items()}
    apply_masks(pruned, masks)
    left = sum(int(mask.bool().sum()) for mask in masks.values()) / sum(m.numel() for m in masks.values())
    said = f"The largest weights of each of {len(masks)} layers are kept, {left:.2%} of all."
    return note_changes(pruned, [said])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Removed:
    """What pruning took from a layer: its weights' psi, the threshold, the share, and the norm |Delta|.

    `predicted` is what |Delta| stays below with probability 1 - delta were the weights Gaussian of deviation psi.
    """

    psi: float
    threshold: float
    share: float
    error: float
    predicted: float


def predicted_error(shape: tuple[int, int], psi: float, threshold: float, delta: float = 0.05) -> float:
    """Return s (sqrt(rows) + sqrt(columns)) + 4 t sqrt(ln(4 / delta)), entries N(0, psi^2) kept where at most t.

    s is the deviation of such an entry; the first term is the limit for large matrices (Bai & Yin, 1993), the
    second what norms of independent entries in [-t, t] stray from their median (Talagrand, 1996).
    """
    if threshold == 0 or psi == 0:
        return 0.0
    a = threshold / psi
    density = math.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    s = psi * math.sqrt(max(math.erf(a / math.sqrt(2)) - 2 * a * density, 0.0))
    return s * sum(math.sqrt(n) for n in shape) + 4 * threshold * math.sqrt(math.log(4 / delta))


def removed(model: nn.Module, pruned: nn.Module, delta: float = 0.05) -> list[Removed]:
    """Return what was taken from each layer of `model`; predictions hold together with probability 1 - delta."""
    pairs = list(zip(linear_layers(model), linear_layers(pruned), strict=True))
    found = []
    for old, new in pairs:
        weight = old.weight.detach().double() * getattr(old, "mask", 1)
        gone = weight - new.weight.detach().double() * getattr(new, "mask", 1)
        psi, threshold = float(weight.pow(2).mean().sqrt()), float(gone.abs().max())
        shape = (weight.shape[0], weight.shape[1])
        predicted = predicted_error(shape, psi, threshold, delta / len(pairs))
        found.append(Removed(psi, threshold, float((gone != 0).double().mean()), spectral(gone), predicted))
    return found


@torch.no_grad()
def output_gap(
    model: nn.Module, pruned: nn.Module, x: Tensor, by: str = "norms", errors: list[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Return (measured, bound) of |f(x) - f_pruned(x)|, (N,) each.

    `by` "norms" sums |Delta_l| prod_{i<l} |W_i| prod_{i>l} |W_i pruned| |x| over the layers; "lengths" takes the
    layers' inputs as long as they are for each example.
    `errors` stand in for the norms |Delta_l|, such as the predicted ones.
    """
    whole, left = chain_of(model), chain_of(pruned)
    rows = inputs_of(model, x)
    errors = [spectral(a - b) for a, b in zip(whole, left, strict=True)] if errors is None else errors
    before = reach(whole, rows) if by == "norms" else lengths(whole, rows)
    measured = (run(whole, rows)[-1] - run(left, rows)[-1]).norm(dim=1)
    return measured, gaps(errors, before, [spectral(w) for w in left])
