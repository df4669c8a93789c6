"""Training a metanetwork: small losses, and weak channels drawn to zero more than strong ones."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._channel_groups import Channels, Group, channels_of, importance
from workingpapers.papers.sparsity._metanetwork import Metanetwork
from workingpapers.papers.sparsity._weight_graphs import graph_of, run_with
from workingpapers.tasks import initialise


def pull(weights: Mapping[str, Tensor], group: Group, alpha: float = 16.0) -> Tensor:
    """Return gamma (count,), how much more than the largest each channel of a group is drawn to 0: 1 to alpha."""
    size = importance(weights, group).sqrt()
    span = (size.max() - size.min()).clamp_min(1e-12)
    return torch.as_tensor(alpha, dtype=size.dtype) ** ((size.max() - size) / span)


def regulariser(
    weights: Mapping[str, Tensor], channels: Channels, reg: float = 10.0, alpha: float = 16.0
) -> Tensor:
    """Return a number whose gradient by each weight w is reg gamma w, summed over the groups that it is in."""
    total = torch.zeros(())
    for group in channels.groups:
        if group.fixed:
            continue
        gamma = pull({n: w.detach() for n, w in weights.items()}, group, alpha)
        for member in group.members:
            w = weights[member.name]
            rows = w.movedim(1, 0) if member.side == "in" else w
            rows = rows.reshape(group.count, -1)
            total = total + reg * (gamma[:, None] * rows.detach() * rows).sum()
    return total


def meta_train(
    models: Sequence[nn.Module],
    split: Split,
    metanetwork: Metanetwork | None = None,
    steps: int = 100,
    lr: float = 1e-3,
    reg: float = 10.0,
    seen: int = 500,
    seed: int = 0,
) -> Metanetwork:
    """Train a metanetwork on networks of one task, in turns, one step each.

    Args:
        models: trained networks; they stay as they are.
        split: data; the training part is used.
        metanetwork: trained in place; by default a new one of the paper's size.
        steps: of AdamW with weight decay 5e-4; the rate falls to a tenth after nine tenths of them.
        lr: its rate.
        reg: weight of the regulariser, against the sum of the losses of batches of 64.
        seen: examples for the loss of one step, whose mean stands for all batches.
        seed: decides which.
    """
    if not models:
        raise WorkingPapersError("a metanetwork learns from at least one trained network")
    net = initialise(Metanetwork, seed) if metanetwork is None else metanetwork
    adam = torch.optim.AdamW(net.parameters(), lr, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, [max(1, steps * 9 // 10)], 0.1)
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for trained in models:
        model = copy.deepcopy(trained).eval()
        cases.append((model, graph_of(model, split.x_train.shape[1]), channels_of(model, split.x_train)))
    batches = len(split.x_train) / 64
    for step in range(steps):
        model, graph, channels = cases[step % len(cases)]
        chosen = torch.randperm(len(split.x_train), generator=generator)[:seen]
        adam.zero_grad()
        new = graph.parameters(*net(graph.nodes, graph.edges, graph.kernels))
        loss = batches * F.cross_entropy(run_with(model, new, split.x_train[chosen]), split.y_train[chosen])
        weights = {name.removesuffix(".weight"): w for name, w in new.items() if name.endswith(".weight")}
        loss = loss + regulariser(weights, channels, reg)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    return net
