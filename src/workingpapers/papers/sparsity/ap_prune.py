"""Activate while pruning (AP): beside any iterative pruning, also remove weights that hold ReLUs below zero.

    each round: the base pruner removes (p - q) % of the weights that are left,
                AP removes q % of them: strictly negative ones of the smallest |W - W_prev|

W_prev is W at the start of the round's training.  An output of a ReLU is dead for an input where it is 0; the
dynamic dead neuron rate counts dead outputs but those of units that have no incoming weights left.

Paper: "AP: Selective Activation for De-sparsifying Pruned Neural Networks" (2022), Section 3; the rule is read from
the authors' training script.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.engines.masks import apply_masks, prunable, weights_of
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, above, all_of, at_least
from workingpapers.papers.sparsity._activating import CHOICES, Scores, next_masks
from workingpapers.papers.sparsity._silent import DeadRates, dnr
from workingpapers.tasks import Budget, fit, initialise, mlp

Base = Callable[[nn.Module, Tensor, Tensor], Scores]

BASES = ("global_magnitude", "layer_magnitude", "global_gradient", "random")


@dataclass(frozen=True)
class Round:
    """A round after its training: the share of weights gone, test accuracy, dead rates, and the masks."""

    sparsity: float
    accuracy: float
    dead: DeadRates
    masks: Scores


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    y = torch.arange(60) % 3
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3))
    for p in model.parameters():
        nn.init.uniform_(p, -0.4, 0.4, generator=generator)
    return model, torch.randn(60, 8, generator=generator) + 2 * y[:, None], y


@paper("ap_prune", trains="fit", example=_example, options={"every": 8, "rewind": False, "lr": 0.01})
class AP:
    """Prune a classifier while it trains, by a base pruner with AP beside it.  Biases and norms are never pruned.

    Args:
        base: "global_magnitude", "layer_magnitude", "global_gradient" (size of weight times gradient), "random", or
            (model, x, y) -> scores by layer, of which the smallest go first in all layers together.
        p: percentage of the weights left that a round removes.
        q: percentage of them that AP chooses, at most p; 0 is the base pruner alone.
        rewind: put weights back to where training began after each round, as lottery tickets do.
        choose: "negative slow", or a control: "negative fast", "positive slow", "random".
        decay: factor of q from round to round; below 1 it is AP-Pro.
        every: steps of a round, for `fit`.
        lr: learning rate of Adam, for `fit`.
        seed: decides batches and random choices.
    """

    def __init__(
        self,
        base: str | Base = "global_magnitude",
        p: float = 20.0,
        q: float = 2.0,
        rewind: bool = True,
        choose: str = "negative slow",
        decay: float = 1.0,
        every: int = 1000,
        lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        if isinstance(base, str) and base not in BASES:
            raise unknown("base pruner", base, BASES)
        if choose not in CHOICES:
            raise unknown("choice of weights", choose, CHOICES)
        if not 0 <= q <= p < 100:
            raise WorkingPapersError(f"AP takes percentages 0 <= q <= p < 100; got p={p} and q={q}")
        self.base, self.p, self.q, self.rewind, self.choose = base, p, q, rewind, choose
        self.decay, self.every, self.lr, self.seed = decay, every, lr, seed
        self.rounds = self.done = 0
        self.initial: dict[str, Tensor] | None = None
        self.before: Scores = {}
        self.masks: Scores = {}
        self._adam: dict[str, Any] | None = None

    def begin(self, model: nn.Module) -> None:
        """Keep what a round of training starts from; the first time also what is rewound to."""
        weights = weights_of(model)
        if self.initial is None:
            self.initial = {n: v.clone() for n, v in model.state_dict().items()}
            self.masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
        self.before = {n: w.clone() for n, w in weights.items()}

    def prune(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """End a round: set the pruned weights to 0, in place, and rewind the others if so wanted."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.rounds)
        self.masks = next_masks(
            weights_of(model),
            self.before,
            self.masks,
            self.scores(model, x, y, generator),
            (self.p, self.q * self.decay**self.rounds),
            self.choose,
            self.base == "layer_magnitude",
            generator,
        )
        if self.rewind and self.initial is not None:
            model.load_state_dict(self.initial, strict=False)
        self.hide(model)
        self.rounds += 1

    @torch.no_grad()
    def hide(self, model: nn.Module) -> None:
        """Set what is pruned to 0."""
        for name, layer in prunable(model).items():
            layer.weight.mul_(self.masks[name])

    def scores(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Scores:
        """Return the base pruner's scores by layer."""
        weights = {n: layer.weight for n, layer in prunable(model).items()}
        if callable(self.base):
            return self.base(model, x, y)
        if self.base == "random":
            return {n: torch.rand(w.shape, generator=generator).to(w) for n, w in weights.items()}
        if self.base == "global_gradient":
            loss = F.cross_entropy(model(x), y)
            slopes = torch.autograd.grad(loss, list(weights.values()))
            return {n: (w * g).abs().detach() for (n, w), g in zip(weights.items(), slopes, strict=True)}
        return {n: w.detach().abs() for n, w in weights.items()}

    def run(
        self, build: Callable[[], nn.Module], train: Callable[[nn.Module], object], rounds: int, split: Split
    ) -> list[Round]:
        """Train and prune in turns from a fresh model; return `rounds` + 1 trained states, the first one dense.

        `train` trains a model in place; masked weights get no gradient.  The test part of `split` measures, its
        first 512 training examples are what a pruner that needs examples sees.
        """
        model, found = build(), []
        for _ in range(rounds + 1):
            self.begin(model)
            train(apply_masks(model, self.masks))
            kept = sum(int(m.sum()) for m in self.masks.values()) / sum(
                m.numel() for m in self.masks.values()
            )
            found.append(Round(1 - kept, accuracy(model, split), dnr(model, split.x_test), self.masks))
            self.prune(model, split.x_train[:512], split.y_train[:512])
        return found

    def fit(self, model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> list[float]:
        """Take `steps` more steps on examples (N, ...) with labels (N,), and prune after each `every`-th.

        Returns the loss of each.  Adam starts anew in each round.
        """
        adam = torch.optim.Adam(model.parameters(), self.lr)
        if self._adam is not None:
            adam.load_state_dict(self._adam)
        if self.initial is None:
            self.begin(model)
        losses = []
        with torch.random.fork_rng(devices=[]):
            for _ in range(steps):
                torch.default_generator.manual_seed(self.seed * 1_000_003 + self.done)
                chosen = torch.randint(len(x), (min(64, len(x)),)).to(x.device)
                adam.zero_grad()
                loss = F.cross_entropy(model.train()(x[chosen]), y[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                self.hide(model)
                losses.append(float(loss.detach()))
                self.done += 1
                if self.done % self.every == 0:
                    self.prune(model, x[chosen], y[chosen])
                    self.begin(model)
                    adam = torch.optim.Adam(model.parameters(), self.lr)
        self._adam = adam.state_dict()
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later fit needs to go on bit for bit, beside the model."""
        names = ("rounds", "done", "initial", "before", "masks", "_adam")
        return copy.deepcopy({name: getattr(self, name) for name in names})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        for name, value in copy.deepcopy(dict(state)).items():
            setattr(self, name, value)


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the test accuracy."""
    model.eval()
    return float((model(split.x_test).argmax(1) == split.y_test).double().mean())


def tickets(budget: Budget, seed: int, q: float, choose: str = "negative slow") -> tuple[float, float]:
    """Return (dynamic dead rate, accuracy), means over the last 5 rounds, of LeNet-300-100 on Fashion-MNIST.

    14 rounds of global magnitude pruning with rewinding, 20 % each.
    """
    train, test = budget.pick(quick=(3000, 1000), full=(6000, 2000))
    split = images("fashion_mnist", train=train, test=test, seed=seed)
    rounds = AP(q=q, choose=choose, seed=seed).run(
        partial(initialise, partial(mlp, [784, 300, 100, 10]), seed),
        partial(fit, split=split, epochs=3, every=10_000, seed=seed),
        14,
        split,
    )[-5:]
    return sum(r.dead.dynamic for r in rounds) / 5, sum(r.accuracy for r in rounds) / 5


@claim(
    "ap_prune",
    "Used alongside existing pruners, it lowers the rate of input-dependent silent ReLUs and raises accuracy of "
    "the pruned net.",
    figure="3%-4% on CIFAR-10/100; 2%-3% on ImageNet and vision transformers",
    seeds=5,
    holds=all_of(at_least(0.01, of="dynamic_lowered"), at_least(-0.002, of="accuracy_gain")),
)
def with_and_without(budget: Budget, seed: int) -> Evidence:
    """Over the last 5 of 14 rounds, to 95 % sparsity: dynamic dead rate without AP less with it, and accuracies."""
    dead, right = tickets(budget, seed, 2.0)
    base_dead, base_right = tickets(budget, seed, 0.0)
    return Evidence(
        dynamic_lowered=base_dead - dead,
        accuracy_gain=right - base_right,
        dynamic=base_dead,
        accuracy=base_right,
    )


@claim(
    "ap_prune",
    "Ablations examine what each component of the selective activation rule contributes.",
    seeds=5,
    holds=all_of(at_least(0.01, of="below_positive_slow"), above(0.0, of="below_random")),
)
def which_weights(budget: Budget, seed: int) -> Evidence:
    """By how much AP's dynamic dead rate is below those of its three controls, as in `with_and_without`."""
    dead = {choose: tickets(budget, seed, 2.0, choose)[0] for choose in CHOICES}
    own = dead.pop("negative slow")
    return Evidence(
        **{f"below_{name.replace(' ', '_')}": rate - own for name, rate in dead.items()}, dynamic=own
    )
