"""SortedNet: one network holds many, each the first units and the first blocks of the next larger one.

    each step:  for j = 1 ... g:  draw a size k_j,  add grad L(f(first k_j of theta)) / g of the next mini-batch
                then one step of the optimizer

Nothing but the task's loss is used, and all sizes share every weight, the head too.  A size is chosen at inference
without a search, and cut out as a network of its own.

Paper: "SortedNet, a Place for Every Network and Every Network in its Place: Towards a Generalized Solution for
Training Many-in-One Neural Networks" (2023), abstract; drawing sizes uniformly, and giving the batch norms of a
size their statistics after training, are ours.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least
from workingpapers.papers.sparsity import _many_in_one as rivals
from workingpapers.papers.sparsity._cutting import cut_out, recalibrate
from workingpapers.papers.sparsity._slices import BLOCKS, Size, at, sliceable
from workingpapers.tasks import Budget, initialise, mlp

__all__ = ["Size", "SortedNet", "at", "extract", "grid", "recalibrate", "sliceable"]

SAMPLERS = ("uniform", "skewed")
Loss = Callable[[Any, Tensor], Tensor]


def task_loss(outputs: Any, targets: Tensor) -> Tensor:
    """Return the cross-entropy of logits (N, K), or of tokens (N, T, K), which Hugging Face's outputs hold."""
    logits: Tensor = getattr(outputs, "logits", outputs)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def grid(widths: Sequence[float], depths: Sequence[int | None] = (None,)) -> list[Size]:
    """Return all sizes of some widths and depths, the largest last."""
    return [
        Size(width, depth) for width in sorted(widths) for depth in sorted(depths, key=lambda d: d or 10**9)
    ]


def _net(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    net = mlp([6, 8, 8, 3], norm=nn.BatchNorm1d)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator) + (p.ndim == 1))
    return net, torch.randn(12, 6, generator=generator)


def _plain_net(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    net, x = _net(generator)
    return net, x, x


def _sliced_net(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    net, x = _net(generator)
    return sliceable(net, x), x, x


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    y = torch.arange(48) % 3
    x = torch.randn(48, 6, generator=generator) + 2 * y[:, None]
    return sliceable(_net(generator)[0], x), x, y


paper("sortednet", part="sliceable", kind="transform", example=_plain_net, preserves=0.0)(sliceable)


@paper("sortednet", part="extract", kind="transform", example=_sliced_net)
def extract(
    model: nn.Module,
    inputs: Any,
    width: float = 1.0,
    depth: int | None = None,
    calibration: Tensor | None = None,
) -> nn.Module:
    """Return the sub-model of a sliceable model as a plain, smaller network with the same outputs.

    Args:
        model: from `sliceable`; a network that has one size only comes back as it is at full size.
        inputs: an example of what it takes.
        width: share of the units of each layer.
        depth: how many of the first blocks; None is all.
        calibration: inputs (N, ...) for the statistics of its batch norms, which all sizes share in training.
    """
    if not hasattr(model, BLOCKS) and width == 1 and depth is None:
        return copy.deepcopy(model)
    return cut_out(model, inputs, Size(width, depth), calibration)


@paper("sortednet", trains="fit", example=_example, options={"batch": 12, "lr": 0.03})
class SortedNet:
    """Train a sliceable model so that each of its sizes works.

    Args:
        sizes: the sub-models, the full one last; by default a quarter, half, three quarters and all of the width.
        g_acc: how many sub-models, each with its own mini-batch, make a step.
        sampler: "uniform" over the sizes, or "skewed": half of the draws are the last size.
        lr: of the optimizer.
        batch: size of a mini-batch.
        optimizer: (parameters, lr) -> optimizer; default Adam.
        loss: (outputs, targets) -> scalar; default cross-entropy.
        seed: of the sizes and mini-batches.
    """

    def __init__(
        self,
        sizes: Sequence[Size] = (),
        g_acc: int = 4,
        sampler: str = "uniform",
        lr: float = 1e-3,
        batch: int = 64,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        loss: Loss = task_loss,
        seed: int = 0,
    ) -> None:
        if g_acc < 1:
            raise WorkingPapersError(f"a step takes at least one sub-model; got g_acc={g_acc}")
        if sampler not in SAMPLERS:
            raise unknown("sampler", sampler, SAMPLERS)
        self.sizes = list(sizes) or grid((0.25, 0.5, 0.75, 1.0))
        self.g_acc, self.sampler, self.lr, self.batch = g_acc, sampler, lr, batch
        self.optimizer, self.loss, self.seed = optimizer, loss, seed
        self.done = 0
        self._state: dict[str, Any] | None = None

    def draw(self, generator: torch.Generator) -> Size:
        """Draw a size."""
        if self.sampler == "skewed" and float(torch.rand((), generator=generator)) < 0.5:
            return self.sizes[-1]
        return self.sizes[int(torch.randint(len(self.sizes), (), generator=generator))]

    def batches(self, count: int, number: int) -> Tensor:
        """Return the indices of the mini-batch of this number: whole epochs, each in its own order."""
        size = min(self.batch, count)
        each = count // size
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + number // each)
        return torch.randperm(count, generator=order)[number % each * size :][:size]

    def fit(self, model: nn.Module, x: Tensor, y: Tensor, steps: int) -> list[float]:
        """Take steps on examples (N, ...) with targets (N, ...), in place; return the mean loss of each."""
        optimizer = self.optimizer(model.parameters(), lr=self.lr)
        if self._state is not None:
            optimizer.load_state_dict(self._state)
        losses = []
        model.train()
        with torch.random.fork_rng(devices=[]):
            for _ in range(steps):
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.done)
                torch.default_generator.manual_seed(self.seed * 1_000_003 + self.done)
                optimizer.zero_grad()
                total = 0.0
                for j in range(self.g_acc):
                    chosen = self.batches(len(x), self.done * self.g_acc + j).to(x.device)
                    with at(model, self.draw(generator)):
                        loss = self.loss(model(x[chosen]), y[chosen]) / self.g_acc
                        loss.backward()  # type: ignore[no-untyped-call]
                    total += float(loss.detach())
                optimizer.step()
                losses.append(total)
                self.done += 1
        self._state = optimizer.state_dict()
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later fit needs to go on bit for bit, beside the model."""
        return copy.deepcopy({"done": self.done, "optimizer": self._state})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        found = copy.deepcopy(dict(state))
        self.done, self._state = found["done"], found["optimizer"]


def trained(budget: Budget, seed: int, how: str) -> rivals.Table:
    """Return the accuracies of all sizes of the claims' network on CIFAR-10, trained one of several ways.

    "sorted", "sandwich", or "normal", the network at its full size alone, cut afterwards.
    """
    train, test, size, width = budget.pick(quick=(2000, 1000, 16, 16), full=(10_000, 2000, 32, 32))
    split = images("cifar10", train=train, test=test, size=size, seed=seed)
    widths, depths = rivals.SIZES
    sizes = grid(widths, depths)
    model = sliceable(initialise(partial(rivals.block_net, width), seed), split.x_test[:2], "2")
    steps = 8 * train // 64  # eight epochs of 64 examples a step, 16 for each of the 4 sub-models
    if how == "sandwich":
        rivals.sandwich(model, split.x_train, split.y_train, sizes, steps, lr=2e-3, batch=16, seed=seed)
    else:
        kept = {"sorted": (sizes, 4, 16), "normal": (sizes[-1:], 1, 64)}[how]
        SortedNet(kept[0], kept[1], lr=2e-3, batch=kept[2], seed=seed).fit(
            model, split.x_train, split.y_train, steps
        )
    return rivals.accuracies(model, split, sizes)


@claim(
    "sortednet",
    "One round of training yields very many usable sub-models at little loss of performance.",
    figure="160 different sub-models, 96% of the model performance",
    seeds=5,
    holds=all_of(
        at_least(0.9, of="mean_ratio"),
        at_least(0.1, of="small_over_truncated"),
        at_least(-0.03, of="full_over_normal"),
    ),
)
def many_sub_models(budget: Budget, seed: int) -> Evidence:
    """Accuracies of 40 sub-models on CIFAR-10 after one run, to those of a network trained at full size as long.

    `mean_ratio` is that of their mean to the full normal network; `small_over_truncated` the least gain over the
    same size cut out of the normal network, of widths up to a half.
    """
    ours, normal = (trained(budget, seed, how) for how in ("sorted", "normal"))
    full = max(ours, key=lambda s: (s.width, s.depth))
    return Evidence(
        mean_ratio=rivals.mean(ours) / normal[full],
        small_over_truncated=min(ours[s] - normal[s] for s in ours if s.width <= 0.5),
        full_over_normal=ours[full] - normal[full],
        least=min(ours.values()),
        full=ours[full],
    )


@claim(
    "sortednet",
    "Sampling sorted sub-networks with gradient accumulation outperforms earlier dynamic training methods, and "
    "selection at inference needs no search.",
    seeds=5,
    holds=at_least(-0.01, of="over_sandwich"),
)
def against_the_sandwich_rule(budget: Budget, seed: int) -> Evidence:
    """Mean accuracy of the 40 sub-models over that after the sandwich rule of US-Nets with equally many passes.

    The rule runs the largest, the smallest and two random sizes on each mini-batch, and distils the largest one.
    """
    ours, theirs = (trained(budget, seed, how) for how in ("sorted", "sandwich"))
    return Evidence(over_sandwich=rivals.mean(ours) - rivals.mean(theirs), sandwich=rivals.mean(theirs))
