"""How the paper compares attentions: singular values, slices of the loss, and maps of the single heads."""

import math
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import paper
from workingpapers.engines.landscapes import filter_direction, loss_grid
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Finding
from workingpapers.papers.attention._karat_mixer import ScoreOperator
from workingpapers.papers.attention._karat_vit import KArAtViT
from workingpapers.surgery.collect import collect

SHOWN = 4  # images in the figure of the maps
TINY = torch.finfo(torch.float64).tiny


def layer_weights(model: nn.Module, images: Tensor, layer: int = -1) -> Tensor:
    """Return the attention (B, H, T, T) of one layer of `model` on a batch of its inputs.

    Layers are the modules with a method `attention` of tokens (B, T, D), such as `KArAt`, in the model's order.
    """
    names = [name for name, module in model.named_modules() if callable(getattr(module, "attention", None))]
    if not -len(names) <= layer < len(names):
        raise WorkingPapersError(f"the model has {len(names)} layers with attention; got layer={layer}")
    name = names[layer]
    tokens = collect(model, images, [name], side="input")[name]
    mixer: Any = model.get_submodule(name)
    with torch.no_grad():
        weights: Tensor = mixer.attention(tokens)
    return weights


def _attention_example(generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(3, 2, 6, 6, generator=generator).softmax(-1),)


@paper("karat", part="spectrum", kind="analysis", example=_attention_example)
@torch.no_grad()
def spectrum(weights: Tensor, energy: float = 0.9) -> Finding:
    """Return how many singular values of attention matrices (..., N, N) hold a share `energy` of all squares.

    Numbers are the mean over matrices and the largest; `details` has the mean singular values, largest first.
    """
    values = torch.linalg.svdvals(weights.flatten(0, -3).double())
    share = values.square().cumsum(-1) / values.square().sum(-1, keepdim=True)
    rank = 1 + (share < energy - 1e-12).sum(-1).clamp_max(values.shape[-1] - 1)
    mean, average = float(rank.double().mean()), values.mean(0)

    def draw() -> Figure:
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.semilogy(range(1, len(average) + 1), average.clamp_min(1e-12).tolist(), marker=".")
        axes.set(xlabel="number", ylabel="mean singular value of the attention")
        return figure

    return Finding(
        {"effective_rank": mean, "largest": float(rank.max())},
        f"{mean:.1f} of {values.shape[-1]} singular values hold {energy:.0%} of an attention matrix's energy.",
        draw,
        {"singular_values": average},
    )


def _model_example(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    model = KArAtViT(**KArAtViT.presets["tiny"])
    return model, torch.randn(6, 3, 16, 16, generator=generator), torch.arange(6) % 4


@paper("karat", part="landscape", kind="analysis", example=_model_example)
def loss_slice(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    points: int = 9,
    radius: float = 1.0,
    seed: int = 0,
) -> Finding:
    """Return the cross-entropy of `model` along two random filter-normalised directions through its weights.

    Args:
        points: points along each direction, an odd number so that the model itself is one of them.
        radius: how far the slice reaches to each side, in lengths of the filters.
        seed: of the two directions.

    Numbers: `centre`, `least` and `largest` loss; `curvature`, the second difference at the centre along a
    direction, mean of both; `concave`, the share of negative second differences over the slice, 0 for a convex
    one.  `details` has the slice (points, points).
    """
    if points < 3 or points % 2 == 0:
        raise WorkingPapersError(f"a slice has an odd number of points, at least 3; got {points}")
    if radius <= 0:
        raise WorkingPapersError(f"the radius of a slice is above 0; got {radius}")
    generator = torch.Generator().manual_seed(seed)
    directions = [filter_direction(model, generator, _filters(model)) for _ in range(2)]
    steps = torch.linspace(-radius, radius, points, dtype=torch.float64)
    loss = loss_grid(model, lambda moved: F.cross_entropy(moved(images), labels), directions, steps.tolist())
    second = [loss.diff(n=2, dim=dim) / (steps[1] - steps[0]) ** 2 for dim in (0, 1)]
    middle = points // 2
    curvature = (second[0][middle - 1, middle] + second[1][middle, middle - 1]) / 2
    numbers = {
        "centre": float(loss[middle, middle]),
        "least": float(loss.min()),
        "largest": float(loss.max()),
        "curvature": float(curvature),
        "concave": float(torch.cat([d.flatten() for d in second]).lt(0).double().mean()),
    }

    def draw() -> Figure:
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.subplots()
        drawn = axes.contourf(steps.numpy(), steps.numpy(), loss.T.numpy(), levels=20, cmap="viridis")
        axes.plot(0, 0, "w+")
        axes.set(xlabel="first direction", ylabel="second direction", aspect="equal")
        figure.colorbar(drawn, label="loss")
        return figure

    reading = (
        f"The loss, {numbers['centre']:.3g} at the model, goes up to {numbers['largest']:.3g} within {radius:g} "
        f"times the length of the filters and curves downwards at {numbers['concave']:.0%} of the places."
    )
    return Finding(numbers, reading, draw, {"slice": loss})


def _filters(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return which dimensions of KArAt's parameters make one output of a head, by the parameter's name."""
    spans = {"coefficients": (1, 2), "base_weight": (1,), "up": (2,)}
    return {
        f"{name}.{own}".lstrip("."): spans[own]
        for name, module in model.named_modules()
        if isinstance(module, ScoreOperator)
        for own, _ in module.named_parameters(recurse=False)
    }


def _image_example(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    return _model_example(generator)[:2]


@paper("karat", part="maps", kind="analysis", example=_image_example)
def attention_maps(model: nn.Module, images: Tensor, layer: int = -1) -> Finding:
    """Return where each head of one layer looks in each image, as maps over the grid of patches.

    A map is the class token's row of the attention, the first token's, where there is one token more than a
    square has; else the mean over all rows.

    Numbers: `negative`, the share of all weight, in absolute value, that is negative; `agreement`, the mean
    cosine of two heads' maps (only with several heads); `head_h_entropy`, that of the rows' absolute weights,
    0 where a row has one key and 1 where it is even.  `details` has the maps (B, H, side, side).
    """
    weights = layer_weights(model, images, layer).double()
    heads, tokens = weights.shape[1], weights.shape[-1]
    side = math.isqrt(tokens)
    if side**2 == tokens:
        rows = weights.mean(2)
    elif math.isqrt(tokens - 1) ** 2 == tokens - 1:
        side, rows = math.isqrt(tokens - 1), weights[:, :, 0, 1:]
    else:
        raise WorkingPapersError(
            f"maps need a square of patches, with or without a class token; got {tokens}"
        )
    maps = rows.unflatten(-1, (side, side))
    size = weights.abs()
    share = size / size.sum(-1, keepdim=True).clamp_min(TINY)
    entropy = -torch.xlogy(share, share).sum(-1).mean((0, 2)) / math.log(max(tokens, 2))
    numbers = {"negative": float((-weights).relu().sum() / size.sum().clamp_min(TINY))}
    if heads > 1:
        cosines = F.cosine_similarity(rows.unsqueeze(1), rows.unsqueeze(2), dim=-1).mean(0)
        off = ~torch.eye(heads, dtype=torch.bool, device=cosines.device)
        numbers["agreement"] = float(cosines[off].mean())
    numbers |= {f"head_{h}_entropy": float(value) for h, value in enumerate(entropy)}
    reading = (
        f"Of the weight of {heads} heads {numbers['negative']:.0%} is negative, and it is spread over the keys to "
        f"{float(entropy.mean()):.2f} of the greatest entropy."
    )
    return Finding(numbers, reading, lambda: _drawn(images, maps), {"maps": maps})


def _drawn(images: Tensor, maps: Tensor) -> Figure:
    """Draw up to four images, and beside each the maps of its heads on one scale."""
    shown = min(len(images), SHOWN)
    figure = Figure(figsize=(1.6 * (1 + maps.shape[1]), 1.6 * shown), layout="constrained")
    panels = figure.subplots(shown, 1 + maps.shape[1], squeeze=False)
    for row, image, heads in zip(panels, images, maps, strict=False):
        picture = image.detach().float() if len(image) == 3 else image.detach().float().mean(0, keepdim=True)
        low, high = picture.min(), picture.max()
        row[0].imshow(
            ((picture - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0).cpu().numpy(), cmap="gray"
        )
        most, signed = float(heads.abs().max()), bool((heads < 0).any())
        scale: dict[str, Any] = {"vmin": -most if signed else 0.0, "vmax": most}
        for h, (axes, seen) in enumerate(zip(row[1:], heads, strict=True)):
            axes.imshow(seen.cpu().numpy(), cmap="RdBu_r" if signed else "viridis", **scale)
            axes.set_title(f"head {h}", fontsize="small")
        for axes in row:
            axes.set_axis_off()
    return figure
