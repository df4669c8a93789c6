"""Deep Q-learning with a replay ratio, many updates for each step played, and on fixed replay data."""

import copy
import importlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.rl._dormant import Recycler, dormancy
from workingpapers.tasks import initialise, mlp

Transition = tuple[Tensor, int, float, Tensor, bool]


@dataclass
class Agent:
    """A Q-network of two hidden layers, its replay, and what it did.

    Attributes:
        env: gymnasium's name of an environment with vectors as states and numbered actions.
        ratio: updates for each step played; 0.25 is one update each four steps.
        redo: check and recycle each so many updates, 0 for never.
        seed: of everything.
    """

    env: str = "CartPole-v1"
    ratio: float = 1.0
    redo: int = 0
    tau: float = 0.1
    width: int = 128
    lr: float = 1e-3
    batch: int = 64
    seed: int = 0
    memory: list[Transition] = field(default_factory=list, repr=False)
    returns: list[float] = field(default_factory=list, repr=False)
    dormant: list[float] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        try:
            gymnasium: Any = importlib.import_module("gymnasium")
        except ImportError:
            raise WorkingPapersError(
                "deep Q-learning needs gymnasium: pip install 'workingpapers[rl]'"
            ) from None
        self.world = gymnasium.make(self.env)
        self.actions = int(self.world.action_space.n)
        size = int(self.world.observation_space.shape[0])
        self.network = initialise(lambda: mlp([size, self.width, self.width, self.actions]), self.seed)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.lr)
        every = self.redo or 1
        self.recycler = Recycler(self.network, self.optimizer, self.tau, every, seed=self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.updates = 0

    def play(self, steps: int, warmup: int = 500, random_share: float = 0.2) -> None:
        """Play and learn; chance actions fall from all to 1 in 20 over the share `random_share` of the steps."""
        state, total, owed = self._reset(self.seed), 0.0, 0.0
        for step in range(steps):
            chance = max(1 - 0.95 * step / (random_share * steps), 0.05)
            action = self._act(state, chance)
            seen, reward, ended, cut, _ = self.world.step(action)
            following = torch.as_tensor(seen, dtype=torch.float32)
            self.memory.append((state, action, float(reward), following, bool(ended)))
            state, total = following, total + float(reward)
            if ended or cut:
                self.returns.append(total)
                state, total = self._reset(None), 0.0
            if len(self.memory) >= warmup:
                owed += self.ratio
                self.learn(int(owed))
                owed -= int(owed)

    def learn(self, updates: int) -> None:
        """Update the network so often by what is in the memory; on a fixed memory this is offline training."""
        for _ in range(updates):
            states, actions, rewards, following, ends = self._draw(self.batch)
            with torch.no_grad():
                wanted = rewards + 0.99 * (1 - ends) * self.target(following).amax(1)
            value = self.network(states).gather(1, actions[:, None])[:, 0]
            self.optimizer.zero_grad()
            F.smooth_l1_loss(value, wanted).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.updates += 1
            if self.redo:
                self.recycler.step(states)
            if self.updates % 500 == 0:
                self.target.load_state_dict(self.network.state_dict())

    def measure(self, tau: float = 0.025) -> float:
        """Note and return the share of dormant units on 512 remembered states."""
        self.dormant.append(dormancy(self.network, self._draw(512)[0]).share(tau))
        return self.dormant[-1]

    def score(self, last: int = 20) -> float:
        """Return the mean return of the last games."""
        games = self.returns[-last:]
        return sum(games) / len(games) if games else 0.0

    def _reset(self, seed: int | None) -> Tensor:
        return torch.as_tensor(self.world.reset(seed=seed)[0], dtype=torch.float32)

    def _act(self, state: Tensor, chance: float) -> int:
        if float(torch.rand((), generator=self.generator)) < chance:
            return int(torch.randint(self.actions, (), generator=self.generator))
        with torch.no_grad():
            return int(self.network(state[None]).argmax())

    def _draw(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(self.memory), (count,), generator=self.generator).tolist()
        states, actions, rewards, following, ends = zip(*(self.memory[i] for i in chosen), strict=True)
        numbers = (torch.tensor(actions), torch.tensor(rewards), torch.tensor(ends, dtype=torch.float32))
        return torch.stack(states), numbers[0], numbers[1], torch.stack(following), numbers[2]


def offline(agent: Agent, updates: int, checks: int = 5) -> Agent:
    """Return a fresh agent that learned from another's memory alone, its dormant shares noted `checks` times."""
    fresh = Agent(agent.env, agent.ratio, agent.redo, agent.tau, agent.width, seed=agent.seed)
    fresh.memory = agent.memory
    for _ in range(checks):
        fresh.learn(updates // checks)
        fresh.measure()
    return fresh
