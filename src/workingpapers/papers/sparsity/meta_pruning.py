"""Meta pruning: a graph network rewrites a trained CNN's weights, so that pruning its channels costs less.

    theta' = Graph2Net(g + 0.01 MetaGNN(g)),    g = Net2Graph(theta)

It is trained on a few networks of the task: the new weights shall have a small loss, and channels that are weak
shall become weaker.  So the sum of cross-entropies gets the gradient reg gamma w more, where

    gamma = alpha^((max I - I) / (max I - min I)),    I the root of a channel's group importance

Afterwards: once through it, fine-tune, prune the channels with the smallest group norms, fine-tune.

Paper: "Meta Pruning via Graph Metanetworks: A Meta Learning Framework for Network Pruning" (2025), arXiv
2506.12041.  Graph, network and training follow the authors' code; the regulariser follows torch_pruning's
GroupNormPruner, which that uses.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, above, all_of, at_least
from workingpapers.papers.sparsity._channel_groups import channels_of, pruned_to, weights_of
from workingpapers.papers.sparsity._meta_training import meta_train, regulariser
from workingpapers.papers.sparsity._metanetwork import Metanetwork
from workingpapers.papers.sparsity._weight_graphs import graph_of
from workingpapers.surgery import note_changes
from workingpapers.tasks import Budget, fit, initialise, residual_cnn


def small_cnn() -> nn.Module:
    """Build a residual CNN of two blocks, 16 channels, for one-channel images of ten classes."""
    return residual_cnn(1, 10, widths=(16, 16), blocks_per_stage=1)


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = residual_cnn(1, 3, widths=(6, 8))
    for p in model.parameters():
        nn.init.uniform_(p, -0.5, 0.5, generator=generator)
    return model, torch.randn(2, 1, 6, 6, generator=generator)


def _example_rewriting(generator: torch.Generator) -> tuple[Any, ...]:
    metanetwork = Metanetwork(1, 8, ratio=0.1)
    for p in metanetwork.parameters():
        nn.init.uniform_(p, -0.5, 0.5, generator=generator)
    model, x = _example(generator)
    return model, x, x, metanetwork


@paper("meta_pruning", example=_example_rewriting)
def rewrite(model: nn.Module, x: Tensor, metanetwork: Metanetwork) -> nn.Module:
    """Return a copy of a CNN with the weights that a trained metanetwork gives for it: one pass.

    Args:
        model: of convolutions, batch norms, linear layers, activations, pooling and sums.
        x: an input, which tells the number of channels.
        metanetwork: such as `meta_train` returns.
    """
    graph = graph_of(model, x.shape[1])
    with torch.no_grad():
        new = graph.parameters(*metanetwork(graph.nodes, graph.edges, graph.kernels))
    return _with(model, new, "The weights of {} tensors are those that a metanetwork gave.")


def _with(model: nn.Module, new: Mapping[str, Tensor], sentence: str) -> nn.Module:
    changed = copy.deepcopy(model)
    for name, parameter in changed.named_parameters():
        if name in new:
            parameter.data.copy_(new[name])
    return note_changes(changed, [sentence.format(len(new))])  # type: ignore[no-any-return]


def _example_pruning(generator: torch.Generator) -> tuple[Any, ...]:
    model, x = _example(generator)
    return model, x, x


@paper("meta_pruning", part="prune", kind="transform", example=_example_pruning, options={"speed_up": 1.3})
def prune(model: nn.Module, x: Tensor, speed_up: float = 3.0) -> nn.Module:
    """Return a copy without the channels of the smallest group norms, `speed_up` times fewer multiply-adds in all.

    Channels that are added up go together.  The norms are compared across groups, over each group's largest.

    Args:
        model: as of `rewrite`.
        x: an input.
        speed_up: ratio of multiply-adds.
    """
    if speed_up < 1:
        raise WorkingPapersError(f"a speed-up is at least 1; got {speed_up}")
    channels = channels_of(model, x)
    smaller, reached = pruned_to(model, channels, speed_up)
    if reached < speed_up:
        raise WorkingPapersError(
            f"with a channel left in every group the speed-up is {reached:.3g}, below {speed_up}"
        )
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, smaller))
    said = f"The weakest channels are gone, {before - after} of {before} parameters: {reached:.2f} times less work."
    return note_changes(smaller, [said] if after < before else [])  # type: ignore[no-any-return]


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the test accuracy."""
    return float((model.eval()(split.x_test).argmax(1) == split.y_test).double().mean())


def tuned(model: nn.Module, split: Split, steps: int, seed: int = 0, reg: float = 0.0) -> nn.Module:
    """Return a fine-tuned copy; with `reg` above 0 the regulariser of meta-training acts on its weights."""
    new = copy.deepcopy(model)
    channels = channels_of(new, split.x_train)
    loss = partial(_regularised, new, channels, reg) if reg else None
    fit(new, split, steps=steps, lr=1e-3, every=10**9, loss=loss, seed=seed)
    return new


def _regularised(model: nn.Module, channels: Any, reg: float, outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets) + regulariser(weights_of(model, channels), channels, reg)


def curve(
    model: nn.Module, split: Split, speed_ups: Sequence[float], steps: int, seed: int = 0
) -> dict[float, tuple[float, float]]:
    """Return by speed-up the test accuracies right after pruning, and after fine-tuning."""
    found = {}
    for speed_up in speed_ups:
        smaller = prune(model, split.x_train, speed_up)
        found[speed_up] = (accuracy(smaller, split), accuracy(tuned(smaller, split, steps, seed), split))
    return found


def draw(curves: Mapping[str, Mapping[float, tuple[float, float]]]) -> Any:
    """Draw accuracies before (dashed) and after fine-tuning against speed-ups, by method."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    for name, points in curves.items():
        (line,) = axes.plot(list(points), [after for _, after in points.values()], label=name)
        axes.plot(list(points), [before for before, _ in points.values()], "--", color=line.get_color())
    axes.set(xlabel="speed-up (multiply-adds)", ylabel="accuracy")
    axes.legend()
    return figure


def _digits(budget: Budget, seed: int) -> Split:
    split = images("digits", seed=seed)
    size = budget.pick(quick=8, full=16)
    larger = [F.interpolate(x, size, mode="bilinear") for x in (split.x_train, split.x_test)]
    return Split(larger[0], split.y_train, larger[1], split.y_test, 10, split.name)


def _trained(split: Split, budget: Budget, seed: int) -> nn.Module:
    model = initialise(small_cnn, seed)
    fit(model, split, steps=budget.pick(quick=300, full=1000), lr=3e-3, every=10**9, seed=seed)
    return model


def _learned(budget: Budget, seed: int, split: Split) -> tuple[list[nn.Module], Metanetwork]:
    """Return three networks and the metanetwork trained on them."""
    models = [_trained(split, budget, 10 * seed + k) for k in range(3)]
    net = initialise(partial(Metanetwork, 3, 32), seed)
    steps = budget.pick(quick=60, full=300)
    return models, meta_train(models, split, net, steps=steps, seed=seed)


def _gain(model: nn.Module, net: Metanetwork, split: Split, seed: int) -> float:
    """Return the accuracy at 3 times less work, before fine-tuning, with the metanetwork less without."""
    both = [model, rewrite(model, split.x_train, net)]
    before = [accuracy(prune(tuned(m, split, 100, seed), split.x_train, 3.0), split) for m in both]
    return before[1] - before[0]


@claim(
    "meta_pruning",
    "One pass through a trained metanetwork turns a hard-to-prune model into an easy one, reaching "
    "state-of-the-art pruning on common benchmarks.",
    seeds=3,
    holds=all_of(
        at_least(0.05, of="gain"), at_least(-0.005, of="gain_tuned"), at_least(-0.01, of="unpruned_kept")
    ),
)
def easier(budget: Budget, seed: int) -> Evidence:
    """Accuracy of a pruned network with the metanetwork over that without, at 3 times less work.

    Digits; three networks to learn from and another one to prune, each fine-tuned for 100 steps before and, for
    `gain_tuned`, 50 steps after pruning.  `gain_over_direct` is over fine-tuning with the regulariser itself.
    """
    split = _digits(budget, seed)
    _, net = _learned(budget, seed, split)
    model = _trained(split, budget, 10 * seed + 9)
    rewritten = tuned(rewrite(model, split.x_train, net), split, 100, seed)
    kept = accuracy(rewritten, split) - accuracy(model, split)
    own = curve(rewritten, split, (2.0, 3.0, 4.0), 50, seed)
    plain = curve(tuned(model, split, 100, seed), split, (2.0, 3.0, 4.0), 50, seed)
    direct = curve(tuned(model, split, 100, seed, reg=1e-3), split, (3.0,), 50, seed)
    gains = {f"gain_at_{s:g}": own[s][0] - plain[s][0] for s in (2.0, 4.0)}
    return Evidence(
        gain=own[3.0][0] - plain[3.0][0],
        gain_tuned=own[3.0][1] - plain[3.0][1],
        unpruned_kept=kept,
        gain_over_direct=own[3.0][0] - direct[3.0][0],
        plain=plain[3.0][0],
        plain_tuned=plain[3.0][1],
        **gains,
    )


@claim(
    "meta_pruning",
    "Once trained, the same metanetwork applies to further networks with only a forward pass and standard "
    "fine-tuning.",
    seeds=3,
    holds=all_of(above(0.0, of="gain_seen"), at_least(0.0, of="over_half")),
)
def applies(budget: Budget, seed: int) -> Evidence:
    """Gain at 3 times less work on a network not seen, over half of the mean gain on those it was trained on.

    `gain_fashion` is on a network of the same form trained on Fashion-MNIST.
    """
    split = _digits(budget, seed)
    models, net = _learned(budget, seed, split)
    seen = sum(_gain(m, net, split, seed) for m in models) / len(models)
    unseen = _gain(_trained(split, budget, 10 * seed + 9), net, split, seed)
    size = budget.pick(quick=8, full=16)
    fashion = images("fashion_mnist", train=1500, test=1000, size=size, seed=seed)
    other = _gain(_trained(fashion, budget, 10 * seed + 9), net, fashion, seed)
    return Evidence(gain_seen=seen, over_half=unseen - seen / 2, gain_unseen=unseen, gain_fashion=other)
