"""Sparseland's transforms: masks chosen once, before training (SNIP, GraSP, SynFlow) or after it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import paper
from workingpapers.engines.masks import (
    apply_masks,
    density,
    keep_by_score,
    masks_of,
    n_of_m,
    prunable,
    remove_masks,
    weights_of,
)
from workingpapers.engines.masks.scores import top
from workingpapers.errors import WorkingPapersError
from workingpapers.surgery import note_changes
from workingpapers.surgery.collect import collect

Scores = dict[str, Tensor]


def _plain(model: nn.Module) -> nn.Module:
    return remove_masks(copy.deepcopy(model))


def _masked(model: nn.Module, masks: Scores, by: str) -> nn.Module:
    result = apply_masks(copy.deepcopy(model), masks)
    sentence = f"{by} keeps {density(result):.2%} of the weights of {len(masks)} layers."
    return note_changes(result, [sentence])  # type: ignore[no-any-return]


def gradients(model: nn.Module, x: Tensor, y: Tensor, second: bool = False) -> list[Tensor]:
    """Return the gradients of the cross-entropy by the weights of all layers that can be masked."""
    weights = [layer.weight for layer in prunable(model).values()]
    loss = F.cross_entropy(model(x), y)
    return list(torch.autograd.grad(loss, weights, create_graph=second))


def _small(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model, torch.randn(12, 1, 6, 6, generator=generator), torch.arange(12) % 3


def _weights_only(generator: torch.Generator) -> tuple[Any, ...]:
    return _small(generator)[:2]


def _labelled(generator: torch.Generator) -> tuple[Any, ...]:
    model, x, y = _small(generator)
    return model, x, x, y


def _inputs(generator: torch.Generator) -> tuple[Any, ...]:
    model, x, _ = _small(generator)
    return model, x, x


@paper("sparseland", part="magnitude", kind="transform", example=_weights_only)
def magnitude(model: nn.Module, density: float = 0.1, way: str = "global") -> nn.Module:
    """Keep the largest weights by size, of all layers together or by "uniform", "er", "erk" shares; one shot."""
    return _masked(
        model, keep_by_score({n: w.abs() for n, w in weights_of(model).items()}, density, way), "Magnitude"
    )


@paper("sparseland", part="snip", kind="transform", example=_labelled)
def snip(model: nn.Module, x: Tensor, y: Tensor, density: float = 0.1) -> nn.Module:
    """Keep the weights with the largest |w dL/dw| on one batch, before training (Lee et al., 2019)."""
    plain = _plain(model)
    pairs = zip(weights_of(plain).items(), gradients(plain, x, y), strict=True)
    return _masked(model, keep_by_score({n: (w * g).abs() for (n, w), g in pairs}, density), "SNIP")


def grasp_scores(model: nn.Module, x: Tensor, y: Tensor) -> Scores:
    """Return -w (H g): positive where removing the weight raises the norm of the gradient g, H the Hessian."""
    first = gradients(model, x, y, second=True)
    weights = [layer.weight for layer in prunable(model).values()]
    norm = sum(((g * g.detach()).sum() for g in first), torch.zeros(()))
    pairs = zip(prunable(model), weights, torch.autograd.grad(norm, weights), strict=True)
    return {name: -w.detach() * hg for name, w, hg in pairs}


@paper("sparseland", part="grasp", kind="transform", example=_labelled)
def grasp(model: nn.Module, x: Tensor, y: Tensor, density: float = 0.1) -> nn.Module:
    """Keep the weights whose removal would lower the gradient's flow most (Wang et al., 2020).

    Removing a weight changes the squared gradient norm by 2 (-w H g) to first order, so those with the largest
    scores -w H g are removed.
    """
    scores = {name: -s for name, s in grasp_scores(_plain(model), x, y).items()}
    return _masked(model, keep_by_score(scores, density), "GraSP")


def synflow_scores(model: nn.Module, x: Tensor) -> Scores:
    """Return |w dR/dw| with R the sum of outputs of the model of absolute weights on an input of ones."""
    linear = copy.deepcopy(model).double().eval()
    for module in linear.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.reset_running_stats()
    with torch.no_grad():
        for p in linear.parameters():
            p.abs_()
    layers = prunable(linear)
    out = linear(torch.ones_like(x[:1], dtype=torch.float64)).sum()
    found = torch.autograd.grad(out, [layer.weight for layer in layers.values()])
    return {n: (layer.weight.detach() * g).abs() for (n, layer), g in zip(layers.items(), found, strict=True)}


@paper("sparseland", part="synflow", kind="transform", example=_inputs)
def synflow(model: nn.Module, x: Tensor, density: float = 0.1, rounds: int = 100) -> nn.Module:
    """Keep the weights with most synaptic flow, without data, in `rounds` of exponentially falling density
    (Tanaka et al., 2020); `x` gives the shape of inputs alone."""
    work = _plain(model)
    masks: Scores = {}
    for number in range(1, rounds + 1):
        masks = keep_by_score(synflow_scores(work, x), density ** (number / rounds))
        work = remove_masks(apply_masks(work, masks))
    return _masked(model, masks, "SynFlow")


@paper("sparseland", part="two_four", kind="transform", example=_weights_only)
def two_four(model: nn.Module) -> nn.Module:
    """Keep the two largest of every four neighbours along the input axis, where four divides the inputs."""
    weights = {n: w for n, w in weights_of(model).items() if w.shape[1] % 4 == 0}
    if not weights:
        raise WorkingPapersError("no layer has a number of inputs that four divides, so no 2:4 mask fits")
    return _masked(model, {n: n_of_m(w.abs()) for n, w in weights.items()}, "2:4")


@paper("sparseland", part="wanda", kind="transform", example=_inputs)
def wanda(model: nn.Module, x: Tensor, density: float = 0.5) -> nn.Module:
    """Keep in each output row the largest |w| ||x||, the input's norm over the batch `x` (Sun et al., 2023)."""
    plain = _plain(model)
    layers = prunable(plain)
    seen = collect(plain, x, list(layers), side="input")
    masks = {}
    for name, layer in layers.items():
        norms = seen[name].movedim(1, -1) if isinstance(layer, nn.Conv2d) else seen[name]
        norms = norms.reshape(-1, norms.shape[-1]).norm(dim=0)
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        rows = layer.weight.shape[0] // groups
        own = norms.reshape(groups, -1).repeat_interleave(rows, 0)  # the inputs that each output row sees
        scores = layer.weight.detach().abs() * own.reshape(*own.shape, *[1] * (layer.weight.ndim - 2))
        kept = round(density * scores[0].numel())
        masks[name] = torch.stack([top(row, kept) for row in scores])
    return _masked(model, masks, "Wanda")


def slimming_penalty(model: nn.Module, strength: float = 1e-4) -> Tensor:
    """Return strength * sum |gamma| over all batch normalisations, to be added to the loss in training."""
    gammas = [m.weight.abs().sum() for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    return strength * sum(gammas, torch.zeros(()))


@paper("sparseland", part="slimming", kind="transform", example=_weights_only)
@torch.no_grad()
def slimming(model: nn.Module, density: float = 0.5) -> nn.Module:
    """Switch off the channels with the smallest |gamma| of batch normalisation (Liu et al., 2017).

    The share `density` of all channels stays, at least one in each normalisation; gamma and beta of the others
    become 0, which is what removing the channel computes.
    """
    result = copy.deepcopy(model)
    norms = {
        n: m for n, m in result.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.affine
    }
    if not norms:
        raise WorkingPapersError(
            f"{type(model).__name__} has no batch normalisation whose gamma ranks channels"
        )
    masks = keep_by_score({n: m.weight.abs() for n, m in norms.items()}, density)
    for name, module in norms.items():
        kept = torch.maximum(masks[name], top(module.weight.abs(), 1))
        module.weight.mul_(kept)
        module.bias.mul_(kept)
    total = sum(int(m.weight.count_nonzero()) for m in norms.values())
    return note_changes(result, [f"Slimming leaves {total} channels on in {len(norms)} normalisations."])  # type: ignore


@paper("sparseland", part="imp", kind="transform", example=lambda g: (*_weights_only(g), lambda model: None))
def imp(
    model: nn.Module,
    train: Callable[[nn.Module], Any],
    density: float = 0.1,
    rounds: int = 5,
    rewind: Callable[[nn.Module], Any] | None = None,
) -> nn.Module:
    """Find a lottery ticket: train, keep the largest weights, rewind the rest, `rounds` times (Frankle et al.).

    Args:
        model: the network as initialised.
        train: trains a model in place; masked layers keep their zeros.
        density: share of the weights left after all rounds, which fall by one factor each.
        rounds: how often weights are taken away.
        rewind: trains the first few steps, to whose end weights are rewound (default: to the initialisation).
    """
    origin = copy.deepcopy(model)
    if rewind is not None:
        rewind(origin)
    work, masks = copy.deepcopy(origin), masks_of(origin)
    for number in range(1, rounds + 1):
        train(work)
        masks = keep_by_score({n: w.abs() for n, w in weights_of(work).items()}, density ** (number / rounds))
        work = apply_masks(copy.deepcopy(origin), masks)
    return _masked(origin.train(model.training), masks, "Iterative magnitude pruning")
