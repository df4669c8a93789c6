"""Make deep networks shallow again: a stack of residual layers as one broad layer of parallel ones.

    (I + F_L) ... (I + F_1) x  =  x + sum_l F_l x + sum_{i<j} F_j F_i x + ...  ~  x + sum_l F_l(x)

The products of several F are small where the residuals are, and are left out; the layers keep their weights.

Paper: "Make Deep Networks Shallow Again" (2023), Sections 2 and 3.
"""

import copy
import math
import statistics
import timeit
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most, between
from workingpapers.papers.layers._layouts import compare_layouts, conv_layer, grid
from workingpapers.papers.layers._stacks import Residue, conv_and_activation, put, runs
from workingpapers.surgery import note_changes
from workingpapers.surgery.choose import Modules, choose
from workingpapers.tasks import Budget, char_gpt, initialise
from workingpapers.tasks.models import ResidualBlock
from workingpapers.tasks.transformers import Block


class SequentialResidual(nn.ModuleList):
    """(I + F_L) ... (I + F_1) x of the layers F, given without their shortcuts."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Return the deep stack's output, of the shape of x."""
        for layer in self:
            x = x + layer(x, *args, **options)
        return x


class ParallelResidual(nn.ModuleList):
    """x + sum_l F_l(x) of the layers F, given without their shortcuts.

    `pairs` terms of the second order, F_j(F_i(x)) with i < j, are added, neighbours first.
    """

    def __init__(self, layers: Sequence[nn.Module] = (), pairs: int = 0) -> None:
        super().__init__(layers)
        self.pairs = pairs

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Return the broad layer's output, of the shape of x."""
        first = [layer(x, *args, **options) for layer in self]
        y = x
        for term in first:
            y = y + term
        for i, j in sorted(combinations(range(len(first)), 2), key=lambda ij: (ij[1] - ij[0], ij))[
            : self.pairs
        ]:
            y = y + self[j](first[i], *args, **options)
        return y

    def extra_repr(self) -> str:
        return f"pairs={self.pairs}"


class FusedResidual(nn.Module):
    """x + sum_l act(W_l * x + b_l) by one convolution C -> L C, the activation, and a sum over L."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module, layers: int) -> None:
        super().__init__()
        self.conv, self.activation, self.layers = conv, activation, layers

    def forward(self, x: Tensor) -> Tensor:
        """Return what the separate layers give, (B, C, H, W)."""
        out: Tensor = x + self.activation(self.conv(x)).unflatten(1, (self.layers, -1)).sum(1)
        return out


def _fuse_example(g: torch.Generator) -> tuple[nn.Module, Tensor]:
    layers = initialise(lambda: nn.ModuleList([conv_layer(3, 3, nn.Tanh) for _ in range(3)]), 0)
    return ParallelResidual(list(layers)), torch.randn(2, 3, 5, 6, generator=g)


@paper("shallow_again", part="fuse", kind="transform", example=_fuse_example, preserves=1e-5)
def fuse(parallel: nn.Module) -> nn.Module:
    """Return a `ParallelResidual` of like convolutions, each with an activation behind, as a `FusedResidual`.

    Raises:
        WorkingPapersError: where the layers are of another form, differ in it, or have second-order terms.
    """
    if isinstance(parallel, FusedResidual):
        return copy.deepcopy(parallel)
    parts = [conv_and_activation(layer) for layer in parallel.children()]
    forms = {None if p is None else (repr(p[0]), repr(p[1])) for p in parts}
    if not isinstance(parallel, ParallelResidual) or parallel.pairs or len(forms) != 1 or None in forms:
        raise WorkingPapersError(
            "only a ParallelResidual of like layers nn.Sequential(nn.Conv2d, activation), first order, can be fused"
        )
    convs = [p[0] for p in parts if p is not None]
    wide = copy.deepcopy(convs[0])
    wide.out_channels *= len(convs)
    wide.weight = nn.Parameter(torch.cat([c.weight.detach() for c in convs]))
    if wide.bias is not None:
        wide.bias = nn.Parameter(torch.cat([c.bias.detach() for c in convs if c.bias is not None]))
    assert parts[0] is not None
    fused = FusedResidual(wide, copy.deepcopy(parts[0][1]), len(convs)).train(parallel.training)
    note_changes(fused, [f"{len(convs)} parallel convolutions are one convolution now."])
    return fused


def _is_layer(_: str, module: nn.Module) -> bool:
    keeps_width = isinstance(module, ResidualBlock) and isinstance(module.shortcut, nn.Identity)
    return keeps_width or isinstance(module, Block)


def _example(g: torch.Generator) -> tuple[nn.Module, Tensor]:
    return initialise(lambda: char_gpt(11, 8, 3, 2, 6), 0), torch.randint(11, (2, 6), generator=g)


@paper("shallow_again", kind="transform", example=_example)
def parallelise(
    model: nn.Module, blocks: Modules | None = None, group: int | None = None, pairs: int = 0
) -> nn.Module:
    """Return a copy of `model` whose stacks of residual blocks are broad parallel layers; weights stay in order.

    A stack is two or more blocks next to one another in an nn.Sequential or nn.ModuleList, or the layers of a
    `SequentialResidual`.

    Args:
        blocks: modules that give x + F(x), of the shape of x (see `surgery.choose`).  Default: blocks of our
            GPT and ViT, and those of our ResNets that keep width and resolution.
        group: put the blocks side by side by so many, and the groups one after another; None all at once.
        pairs: terms of the second order, F_j(F_i(x)), to keep in each group.

    Raises:
        WorkingPapersError: where there is no stack, or the group is smaller than 1.
    """
    if group is not None and group < 1:
        raise WorkingPapersError(f"a group has 1 or more blocks; got {group}")
    if any(isinstance(m, ParallelResidual) for m in model.modules()):
        return copy.deepcopy(model)
    changed = copy.deepcopy(model)
    if isinstance(changed, SequentialResidual):
        broad = _groups(list(changed), group, pairs)
        root: nn.Module = broad[0] if len(broad) == 1 else nn.Sequential(*broad)
        note_changes(root, [f"{len(changed)} layers in a row are {len(broad)} parallel groups now."])
        return root.train(model.training)
    found = choose(changed, blocks or _is_layer)
    chosen, sentences = {module for _, module in found}, []
    for name, holder in list(changed.named_modules()):
        if isinstance(holder, nn.Sequential | nn.ModuleList):
            for run in runs(holder, chosen):
                broad = _groups([Residue(block) for block in run], group, pairs)
                for part in broad:
                    part.train(run[0].training)
                put(holder, run, broad)
                sentences.append(
                    f"{len(run)} blocks of {name or 'the model'} are {len(broad)} parallel groups now."
                )
    if not sentences:
        raise WorkingPapersError(f"{type(model).__name__} has no two residual blocks next to one another")
    note_changes(changed, sentences)
    return changed


def _groups(layers: Sequence[nn.Module], group: int | None, pairs: int) -> list[nn.Module]:
    size = group or len(layers)
    return [ParallelResidual(layers[i : i + size], pairs) for i in range(0, len(layers), size)]


def expansion(matrices: Sequence[Tensor], order: int) -> dict[tuple[int, ...], Tensor]:
    """Return the terms up to `order` of (I + F_L) ... (I + F_1), by the layers in them, first layer first.

    matrices: F_1 to F_L, each (n, n).  The term () is I, and (0, 2) is F_3 F_1; all of them, up to order L, add
    up to the product.
    """
    terms: dict[tuple[int, ...], Tensor] = {(): torch.eye(len(matrices[0]), dtype=matrices[0].dtype)}
    for size in range(1, order + 1):
        for layers in combinations(range(len(matrices)), size):
            terms[layers] = matrices[layers[-1]] @ terms[layers[:-1]]
    return terms


def term_norms(terms: dict[tuple[int, ...], Tensor]) -> list[float]:
    """Return the spectral norm of the sum of all terms of each order, from 0 on."""
    orders = range(max(map(len, terms)) + 1)
    sums = [torch.stack([t for layers, t in terms.items() if len(layers) == k]).sum(0) for k in orders]
    return [float(torch.linalg.matrix_norm(s, 2)) for s in sums]


@claim(
    "shallow_again",
    "Deep sequential and shallow parallel versions reach about the same training and validation loss.",
    figure="6912 combinations on MNIST and CIFAR10",
    seeds=3,
    holds=all_of(at_most(0.1, of="median_gap"), at_least(0.8, of="correlation")),
    calibrated="After seed 1000 (gap 0.016) training was doubled to 60 steps, on smaller images; not the rule.",
)
def same_loss(budget: Budget, seed: int) -> Evidence:
    """Relative gap of validation losses over 24 pairs on MNIST and CIFAR-10, and correlation of their logarithms.

    Pairs have 2, 4 or 8 layers, tanh or relu, two learning rates (`full`: 8 or 16 filters as well), and start
    from the same weights.  `train_gap` is the same of training losses.
    """
    found = [
        compare_layouts(budget, seed, SequentialResidual, ParallelResidual, **one) for one in grid(budget)
    ]
    sequential, parallel = ([pair[name]["loss"] for pair in found] for name in ("sequential", "parallel"))
    train = [abs(p["parallel"]["train_loss"] / p["sequential"]["train_loss"] - 1) for p in found]
    gaps = [abs(p / s - 1) for s, p in zip(sequential, parallel, strict=True)]
    return Evidence(
        median_gap=statistics.median(gaps),
        correlation=float(np.corrcoef(np.log(sequential), np.log(parallel))[0, 1]),
        train_gap=statistics.median(train),
        parallel_over_sequential=math.exp(statistics.fmean(np.log(parallel) - np.log(sequential))),
    )


@claim(
    "shallow_again",
    "The stack is expandable in Taylor-like terms; higher-order ones can be truncated.",
    holds=all_of(between(1.9, 2.1, of="slope", by="every"), at_most(1e-9, of="expansion_error", by="every")),
)
def truncation(budget: Budget, seed: int) -> Evidence:
    """Power of the residuals' norm a by which 8 random 16x16 layers differ from their truncation.

    a is 0.3, 0.1, 0.03 and 0.01; `expansion_error` is by how much all terms together miss the product at 0.3.
    """
    generator = torch.Generator().manual_seed(seed)
    unit = [torch.randn(16, 16, generator=generator, dtype=torch.float64) for _ in range(8)]
    unit = [m / torch.linalg.matrix_norm(m, 2) for m in unit]
    sizes, gaps = (0.3, 0.1, 0.03, 0.01), []
    eye = torch.eye(16, dtype=torch.float64)
    for a in sizes:
        product = eye
        for matrix in unit:
            product = (eye + a * matrix) @ product
        gaps.append(float(torch.linalg.matrix_norm(product - eye - a * torch.stack(unit).sum(0), 2)))
        if a == sizes[0]:
            whole = torch.stack(list(expansion([a * m for m in unit], 8).values())).sum(0)
            missed = float((whole - product).abs().max())
    return Evidence(slope=float(np.polyfit(np.log(sizes), np.log(gaps), 1)[0]), expansion_error=missed)


@claim(
    "shallow_again",
    "The replacement may simplify architecture and accelerate training.",
    holds=at_most(0.9, of="forward_time"),
)
def faster(budget: Budget, seed: int) -> Evidence:
    """Time of a forward pass of 16 fused parallel layers over the sequential ones: 32 channels, 32x32 pixels.

    `training_time` is the same of a forward and backward pass, the loss the mean square.
    """
    layers = initialise(lambda: nn.ModuleList([conv_layer(32, 3, nn.ReLU) for _ in range(16)]), seed)
    deep, broad = SequentialResidual(layers), fuse(ParallelResidual(list(layers)))
    x = torch.randn(4, 32, 32, 32, generator=torch.Generator().manual_seed(seed))
    ratios = {}
    for name, backward in (("forward_time", False), ("training_time", True)):

        def run(model: nn.Module, backward: bool = backward) -> None:
            with torch.set_grad_enabled(backward):
                loss = model(x).square().mean()
            if backward:
                loss.backward()

        rounds = budget.pick(quick=15, full=60)
        times = [[timeit.timeit(lambda m=m: run(m), number=1) for m in (deep, broad)] for _ in range(rounds)]  # type: ignore[misc]
        sequential, parallel = (statistics.median(column) for column in zip(*times[1:], strict=True))
        ratios[name] = parallel / sequential
    return Evidence(**ratios)
