"""ReDo: units of a network that have almost stopped firing are recycled while it trains.

    s_i = E|h_i(x)| / mean_k E|h_k(x)|,   unit i is tau-dormant where s_i <= tau

Every so many updates dormant units get fresh incoming weights, outgoing weights of 0 and fresh optimizer moments:
what the network computes stays nearly as it is, and exactly so where the units were silent.

Paper: "The Dormant Neuron Phenomenon in Deep Reinforcement Learning" (2023), Definition 3.1 and Algorithm 1.
`Recycler` is ReDo for any training loop.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.experiments import Evidence, above, all_of, at_least, below
from workingpapers.papers.rl._dormant import Recycler, dormancy, overlap, recycle, recycled
from workingpapers.papers.rl._moving_targets import stream
from workingpapers.papers.rl._value_learning import Agent, offline
from workingpapers.tasks import Budget

__all__ = ["Agent", "ReDo", "Recycler", "dormancy", "offline", "overlap", "recycle", "recycled", "stream"]


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    y = torch.arange(48) % 3
    return model, torch.randn(48, 8, generator=generator) + 2 * y[:, None], y


@paper("redo", trains="fit", example=_example, options={"every": 6, "lr": 0.01}, steps=40)
class ReDo:
    """Train a model in place by Adam, recycling its dormant units.

    Args:
        tau: units with a score of at most this are dormant.
        every: updates between two checks.
        batch: examples in a step; the step's own batch decides which units are dormant.
        lr: learning rate.
        choose: "dormant", or "random" for as many units drawn blindly, as a control.
        way_out: outgoing weights become "zero" or "random".
        reset_moments: False leaves Adam's moments of recycled weights.
        seed: decides batches, dropout and fresh weights.
    """

    def __init__(
        self,
        tau: float = 0.1,
        every: int = 1000,
        batch: int = 64,
        lr: float = 1e-3,
        choose: str = "dormant",
        way_out: str = "zero",
        reset_moments: bool = True,
        seed: int = 0,
    ) -> None:
        Recycler(nn.Identity(), None, tau, every, choose, way_out)  # refuses what makes no sense
        self.tau, self.every, self.batch, self.lr, self.seed = tau, every, batch, lr, seed
        self.how = {"choose": choose, "way_out": way_out, "reset_moments": reset_moments}
        self.done = 0
        self._adam: dict[str, Any] | None = None

    def fit(self, model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> list[float]:
        """Take `steps` more steps on examples (N, ...); return the loss of each.

        Targets are labels (N,) under cross-entropy, or numbers shaped like the outputs under squared error.
        """
        adam = torch.optim.Adam(model.parameters(), self.lr)
        if self._adam is not None:
            adam.load_state_dict(self._adam)
        recycler = Recycler(model, adam, self.tau, self.every, seed=self.seed, **self.how)  # type: ignore[arg-type]
        recycler.updates = self.done
        error = F.mse_loss if y.is_floating_point() else F.cross_entropy
        losses = []
        with torch.random.fork_rng(devices=[]):
            for _ in range(steps):
                torch.default_generator.manual_seed(self.seed * 1_000_003 + self.done)
                rows = torch.randperm(len(x))[: self.batch].to(x.device)
                model.train()
                loss = error(model(x[rows]), y[rows])
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                recycler.step(x[rows])
                losses.append(float(loss.detach()))
                self.done += 1
        self._adam = adam.state_dict()
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later fit needs to go on bit for bit, beside the model."""
        return {"done": self.done, "adam": self._adam}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.done, self._adam = state["done"], state["adam"]


@claim(
    "redo",
    "Reinforcement-learning agents lose more and more active neurons while training, because their targets keep "
    "moving; with fixed targets this does not happen.",
    seeds=5,
    holds=all_of(at_least(2.0, of="ratio"), at_least(0.15, of="moving")),
)
def moving_targets(budget: Budget, seed: int) -> Evidence:
    """Share of 0.025-dormant units after 25 periods of 100 steps on digits, labels shuffled each period or fixed.

    `ratio` is of the shares, each at least one unit of 256; `early` the share after two periods of moving labels.
    """
    split, periods = images("digits", seed=seed), budget.pick(quick=25, full=250)
    moving = stream(split, "plain", True, periods, seed=seed).dormant
    fixed = stream(split, "plain", False, periods, seed=seed).dormant
    ratio = max(moving[-1], 1 / 256) / max(fixed[-1], 1 / 256)
    return Evidence(ratio=ratio, moving=moving[-1], fixed=fixed[-1], early=moving[1])


@claim(
    "redo",
    "Recycling the inactive units preserves expressive power and improves results across algorithms and "
    "environments.",
    seeds=5,
    holds=all_of(
        below(0.5, of="dormant_ratio"),
        at_least(0.03, of="over_plain"),
        at_least(0.0, of="over_random"),
        above(-0.1, of="cartpole_gain"),
    ),
)
def recycling(budget: Budget, seed: int) -> Evidence:
    """ReDo each 100 steps against none and blind recycling on moving labels; and in deep Q-learning.

    The first three figures: dormant share over the plain run's, and differences of the training accuracy at the end
    of the last 8 periods.  `cartpole_gain` is the relative gain of the mean return of the last 20 games on CartPole
    at replay ratio 4, ReDo each 1,000 updates.
    """
    split, periods = images("digits", seed=seed), budget.pick(quick=25, full=100)
    runs = {m: stream(split, m, True, periods, seed=seed) for m in ("plain", "redo", "random")}
    last = {m: sum(run.accuracy[-8:]) / 8 for m, run in runs.items()}
    games = {}
    for redo in (0, 1000):
        agent = Agent(ratio=4, redo=redo, seed=seed)
        agent.play(budget.pick(quick=3000, full=8000))
        games[redo] = agent
    plain, with_redo = games[0].score(), games[1000].score()
    return Evidence(
        dormant_ratio=runs["redo"].dormant[-1] / max(runs["plain"].dormant[-1], 1 / 256),
        over_plain=last["redo"] - last["plain"],
        over_random=last["redo"] - last["random"],
        cartpole_gain=(with_redo - plain) / max(plain, 1e-9),
        cartpole_plain=plain,
        accuracy_plain=last["plain"],
    )
