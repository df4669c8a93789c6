"""Sparseland's trainers: masks that stay (static), grow sparser (gradual), move (SET, RigL), or are 2:4."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import paper
from workingpapers.engines.masks import keep_by_score, n_of_m, prunable, random_masks, weights_of
from workingpapers.engines.masks.scores import top
from workingpapers.errors import WorkingPapersError

Masks = dict[str, Tensor]


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator))
    y = torch.arange(60) % 3
    return model, torch.randn(60, 8, generator=generator) + y[:, None], y


class SparseFit:
    """Train a classifier in place by Adam while a mask holds its hidden weights at 0.

    Args:
        density: share of the weights of Linear and Conv2d layers that is left (in the end).
        way: how layers share it: "erk", "er", "uniform", or where weights are ranked also "global".
        total: steps of the whole training, on which schedules depend; more may follow.
        lr: learning rate.
        batch: examples in a step.
        seed: decides batches, random masks and dropout.
    """

    def __init__(
        self,
        density: float = 0.1,
        way: str = "erk",
        total: int = 1000,
        lr: float = 1e-3,
        batch: int = 64,
        seed: int = 0,
    ) -> None:
        if not 0 < density <= 1:
            raise WorkingPapersError(f"a density lies above 0 and at most at 1; got {density}")
        self.density, self.way, self.total, self.lr, self.batch, self.seed = (
            density,
            way,
            total,
            lr,
            batch,
            seed,
        )
        self.done = 0
        self.masks: Masks = {}
        self._optimizer: dict[str, Any] | None = None

    def fit(self, model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> list[float]:
        """Take `steps` more steps on the examples (N, ...) with labels (N,); return the loss of each."""
        layers = prunable(model)
        optimizer = torch.optim.Adam(model.parameters(), self.lr)
        if self._optimizer is not None:
            optimizer.load_state_dict(self._optimizer)
        if not self.masks:
            self.masks = self.start(model)
        self._hide(layers)
        losses = []
        model.train()
        for _ in range(steps):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed * 1_000_003 + self.done)
                chosen = torch.randint(len(x), (min(self.batch, len(x)),)).to(x.device)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[chosen]), y[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
            if not self.update(layers):
                self._step(layers, optimizer)
            self._hide(layers)
            self.done += 1
        self._optimizer = optimizer.state_dict()
        return losses

    def start(self, model: nn.Module) -> Masks:
        """Return the first masks: random, with the layers' shares."""
        generator = torch.Generator().manual_seed(self.seed)
        return random_masks(weights_of(model), self.density, generator, self.way)

    def update(self, layers: dict[str, Any]) -> bool:
        """Change the masks, with gradients of all weights at hand; say whether this takes the step's place."""
        return False

    def _step(self, layers: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        for name, layer in layers.items():
            layer.weight.grad.mul_(self.masks[name])
        optimizer.step()

    @torch.no_grad()
    def _hide(self, layers: dict[str, Any]) -> None:
        for name, layer in layers.items():
            layer.weight.mul_(self.masks[name])

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later fit needs to go on bit for bit, beside the model."""
        return {"done": self.done, "masks": self.masks, "optimizer": self._optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.done, self.masks, self._optimizer = state["done"], state["masks"], state["optimizer"]


@paper("sparseland", part="static", kind="trainer", trains="fit", example=_example, options={"density": 0.3})
class Static(SparseFit):
    """Train with a random mask that stays as it is."""


@paper("sparseland", part="gradual", kind="trainer", trains="fit", example=_example, options={"total": 20})
class Gradual(SparseFit):
    """Take the smallest weights away while training, by the sparsity s_f (1 - (1 - t/T)^3) (Zhu and Gupta, 2017).

    T is three quarters of the steps; what is gone stays gone.  Weights are ranked over all layers together.
    """

    def start(self, model: nn.Module) -> Masks:
        """Return masks that keep all."""
        return {name: torch.ones_like(w) for name, w in weights_of(model).items()}

    def sparsity(self, done: int) -> float:
        """Return the sparsity after `done` steps."""
        left = 1 - min(1.0, done / (0.75 * self.total))
        return (1 - self.density) * (1 - left**3)

    def update(self, layers: dict[str, Any]) -> bool:
        """Keep the largest of the weights that are left."""
        every = max(1, self.total // 50)
        if self.done % every == 0 and self.done <= 0.75 * self.total + every:
            scores = {name: layer.weight.detach().abs() * self.masks[name] for name, layer in layers.items()}
            way = "global" if self.way == "erk" else self.way
            self.masks = keep_by_score(scores, 1 - self.sparsity(self.done), way)
        return False


class _Dynamic(SparseFit):
    """Drop a share of each layer's weights and grow as many, every so many steps, until three quarters."""

    every = 100

    def fraction(self) -> float:
        """Return the share of a layer's weights that is exchanged now."""
        return 0.3

    def growth(self, name: str, layer: Any) -> Tensor:
        """Return the scores by which hidden weights come back."""
        raise NotImplementedError

    def update(self, layers: dict[str, Any]) -> bool:
        """Exchange weights; the number of those that are on stays."""
        every = min(self.every, max(1, self.total // 10))
        if self.done == 0 or self.done % every or self.done >= 0.75 * self.total:
            return False
        for name, layer in layers.items():
            mask = self.masks[name]
            on = int(mask.count_nonzero())
            moved = min(round(self.fraction() * on), mask.numel() - on)
            size = torch.where(mask > 0, layer.weight.detach().abs(), -1.0)
            kept = top(size, on - moved)
            room = torch.where(
                mask > 0, -math.inf, self.growth(name, layer)
            )  # what was just dropped may not return
            self.masks[name] = kept + top(room, moved)
        return True


@paper("sparseland", part="set", kind="trainer", trains="fit", example=_example, options={"density": 0.3})
class SET(_Dynamic):
    """Drop the 30 % smallest weights of each layer now and then, and grow random ones (Mocanu et al., 2018)."""

    def growth(self, name: str, layer: Any) -> Tensor:
        """Return random numbers."""
        generator = torch.Generator().manual_seed(self.seed * 7919 + self.done * 101 + len(name))
        return torch.rand(layer.weight.shape, generator=generator).to(layer.weight)


@paper("sparseland", part="rigl", kind="trainer", trains="fit", example=_example, options={"density": 0.3})
class RigL(_Dynamic):
    """Drop the smallest weights and grow those with the largest gradients (Evci et al., 2020, Algorithm 1).

    The share falls from 0.3 to 0 by a cosine until three quarters of the steps.
    """

    def fraction(self) -> float:
        """Return 0.15 (1 + cos(pi t / T_end))."""
        return 0.15 * (1 + math.cos(math.pi * self.done / (0.75 * self.total)))

    def growth(self, name: str, layer: Any) -> Tensor:
        """Return the sizes of the gradients, which are those of all weights."""
        found: Tensor = layer.weight.grad.abs()
        return found


@paper("sparseland", part="two_four_trained", kind="trainer", trains="fit", example=_example)
class TwoFour(SparseFit):
    """Train dense weights through 2:4 masks, chosen anew at every step, with a straight-through gradient.

    The network computes with the two largest of four neighbours; the gradient moves all (Zhou et al., 2021).
    Layers whose inputs four does not divide stay dense.  `density` and `way` have no say here.
    """

    def start(self, model: nn.Module) -> Masks:
        """Return the masks of the weights as they are."""
        self.dense = {name: w.clone() for name, w in weights_of(model).items()}
        return self._chosen()

    def _chosen(self) -> Masks:
        return {
            n: n_of_m(w.abs()) if w.shape[1] % 4 == 0 else torch.ones_like(w) for n, w in self.dense.items()
        }

    @torch.no_grad()
    def _step(self, layers: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        for name, layer in layers.items():
            layer.weight.copy_(self.dense[name])
        optimizer.step()
        self.dense = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        self.masks = self._chosen()

    def state_dict(self) -> dict[str, Any]:
        """Return the state with the dense weights behind the masks."""
        return {**super().state_dict(), "dense": self.dense}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        super().load_state_dict(state)
        self.dense = state["dense"]
