"""Linear layers that read strong input channels in full and the weak ones through a low rank.

y = W (x m) + U_r S_r V_r^T (x (1 - m)) + b,   m_i = [|x_i| c_i > t],   c_i = ||W_i|| the norm of column i
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.skipping import activations, note, quantile, skipper
from workingpapers.engines.skipping.calibration import Sample
from workingpapers.errors import WorkingPapersError
from workingpapers.kernels.rows import skipped_rows
from workingpapers.surgery._unit_tracing import transposed
from workingpapers.surgery.intercept import subclass


@dataclass(frozen=True)
class Factors:
    """A layer's weight W (out, in) by singular values, its channels' scales, and scores |x_i| c_i of a sample."""

    left: Tensor
    values: Tensor
    right: Tensor
    scale: Tensor
    scores: Tensor


def matrix(layer: Any) -> Tensor:
    """Return the weight (out, in) of a linear layer, however it keeps it."""
    weight: Tensor = layer.weight.detach()
    return weight.t() if transposed(layer) else weight


def inner_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers inside the blocks of a model (its module lists), or all where it has none, by name.

    Raises:
        WorkingPapersError: where there is no linear layer.
    """
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) or transposed(m)}
    blocks = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    inside = {n: m for n, m in linear.items() if blocks and n.startswith(blocks)}
    if not linear:
        raise WorkingPapersError(f"{type(model).__name__} has no linear layer")
    return inside or linear


def factorise(
    model: nn.Module, data: Any, layers: Mapping[str, nn.Module], scaled: bool
) -> dict[str, Factors]:
    """Return the factors of each layer, and the scores of its inputs on calibration data."""
    scales = {name: torch.linalg.vector_norm(matrix(layer).float(), dim=0) for name, layer in layers.items()}
    samples = {name: Sample() for name in layers}

    def score(name: str, x: Tensor, output: Tensor) -> Tensor:
        return x.abs() * scales[name] if scaled else x.abs()

    activations(model, data, layers, score, lambda name, scores: samples[name].add(scores))
    found = {}
    for name, layer in layers.items():
        left, values, right = torch.linalg.svd(matrix(layer).float(), full_matrices=False)
        scale = scales[name] if scaled else torch.ones_like(scales[name])
        found[name] = Factors(left, values, right, scale, samples[name].values())
    return found


def budgeted(factors: Factors, sparsity: float, alpha: float) -> tuple[float, int]:
    """Return threshold and rank that touch the share 1 - sparsity of the weights, alpha of it by channels."""
    out, into = len(factors.left), factors.right.shape[1]
    kept = (1 - sparsity) * alpha
    rank = int((1 - alpha) * (1 - sparsity) * into * out / (into + out))
    if kept >= 1:
        return -1.0, 0
    return (quantile(factors.scores, 1 - kept) if kept > 0 else float("inf")), min(rank, len(factors.values))


def rank_aware(layer: Any, factors: Factors, threshold: float, rank: int, prefill: float) -> None:
    """Change a linear layer in place; with threshold -1 it stays what it was, bit for bit."""
    if "rank_below" not in layer._buffers:
        base: Any = type(layer)
        layer.__class__ = rank_aware_class(base)
    like: Tensor = layer.weight
    layer.register_buffer("rank_below", torch.tensor(threshold, device=like.device))
    layer.register_buffer("rank_scale", factors.scale.to(like.device))
    layer.register_buffer("rank_left", (factors.left[:, :rank] * factors.values[:rank]).to(like))
    layer.register_buffer("rank_right", factors.right[:rank].to(like))
    layer.rank_prefill = prefill
    if threshold >= 0 and not transposed(layer):
        with torch.no_grad():  # an input channel's column becomes one contiguous read
            layer.weight.data = layer.weight.data.t().contiguous().t()


@functools.cache
def rank_aware_class(base: Any) -> Any:
    """Return the subclass of a linear layer's class that treats strong and weak channels apart."""

    @functools.wraps(base.forward)
    def forward(self: Any, x: Tensor) -> Any:
        if float(self.rank_below) < 0:
            return base.forward(self, x)
        dense = int(self.rank_prefill * x.shape[-2]) if x.ndim > 2 and x.shape[-2] > 1 else 0
        sparse = _two_ways(self, x.narrow(-2, dense, x.shape[-2] - dense) if dense else x, base.forward)
        if not dense:
            return sparse
        return torch.cat([base.forward(self, x.narrow(-2, 0, dense)), sparse], -2)

    return skipper(subclass(base, forward, rank_aware_class))


def _two_ways(layer: Any, x: Tensor, dense: Callable[..., Tensor]) -> Tensor:
    strong = torch.where(x.abs() * layer.rank_scale > layer.rank_below, x, 0)
    whole, rank = layer.weight.numel(), len(layer.rank_right)
    out = whole // x.shape[-1]
    note(layer, strong, out, rank * (out + x.shape[-1]), whole)
    rows = layer.weight if transposed(layer) else layer.weight.t()
    found = skipped_rows(strong, rows)
    if found is None:
        found = dense(layer, strong)
    elif layer.bias is not None:
        found = found + layer.bias
    if not len(layer.rank_right):
        return found
    return found + F.linear(F.linear(x - strong, layer.rank_right), layer.rank_left)


def weights_touched(layer: Any, kept: float) -> float:
    """Return the share of a changed layer's weights that a token with a share `kept` of strong channels touches."""
    out, into = matrix(layer).shape
    return kept + len(layer.rank_right) * (into + out) / (into * out)


def weak_constancy(layer: nn.Module, x: Tensor, share: float = 0.5) -> float:
    """Return how constant over tokens the output of weak channels is: the mean's norm over the mean norm, 0 to 1.

    Args:
        layer: a linear layer.
        x: inputs (tokens, in).
        share: of the channels of each token, the weakest by |x_i|, whose output is looked at.
    """
    count = int(share * x.shape[1])
    places = x.abs().topk(count, largest=False).indices
    weak = torch.zeros_like(x).scatter(1, places, x.gather(1, places)) @ matrix(layer).T
    return float(weak.mean(0).norm() / weak.norm(dim=1).mean())


def importance(layer: nn.Module, x: Tensor, bins: int = 16) -> Tensor:
    """Return the joint importance (bins, bins) of input channels, strongest first, and singular directions.

    Entry (i, j) is the share of sum |s_k v_kc x_c| that channels c of bin i, ranked for each token by |x_c|, and
    directions k of bin j bring in.
    """
    _, values, right = torch.linalg.svd(matrix(layer).float(), full_matrices=False)
    order = x.abs().argsort(1, descending=True)
    parts = (values[:, None] * right).abs()  # (directions, in)
    ranked = torch.stack([(parts[:, o] * row[o].abs()) for o, row in zip(order, x, strict=True)]).mean(0)
    rows = ranked.T.tensor_split(bins, 0)
    found = torch.stack([torch.stack([p.sum() for p in row.tensor_split(bins, 1)]) for row in rows])
    return found / found.sum()
