"""Deep Q-learning on gymnasium's environments, as small as it goes: replay, target network, epsilon-greedy."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError


@dataclass(frozen=True)
class Played:
    """What a training run left: the network, the returns of its episodes, and of greedy episodes afterwards."""

    network: nn.Module
    returns: list[float]
    greedy: list[float]

    @property
    def score(self) -> float:
        """The mean return of the last 20 training episodes and the greedy ones together."""
        last = [*self.returns[-20:], *self.greedy]
        return sum(last) / len(last)


def environment(name: str) -> Any:
    """Return the gymnasium environment called `name`, with vectors as states and a number of actions."""
    try:
        gymnasium = importlib.import_module("gymnasium")
    except ImportError:
        raise WorkingPapersError("deep Q-learning needs gymnasium: pip install 'workingpapers[rl]'") from None
    try:
        env = gymnasium.make(name)
    except gymnasium.error.Error as error:
        raise WorkingPapersError(f"gymnasium makes no environment {name!r}: {error}") from None
    if len(env.observation_space.shape) != 1 or not hasattr(env.action_space, "n"):
        raise WorkingPapersError(
            f"the trainer takes states that are vectors and numbered actions; {name} has others"
        )
    return env


class Replay:
    """The last `capacity` transitions (state, action, reward, next state, whether it ended)."""

    def __init__(self, capacity: int, size: int) -> None:
        self.states, self.next_states = torch.empty(capacity, size), torch.empty(capacity, size)
        self.actions = torch.empty(capacity, dtype=torch.long)
        self.rewards, self.ends = torch.empty(capacity), torch.empty(capacity)
        self.capacity, self.count = capacity, 0

    def add(self, state: Tensor, action: int, reward: float, next_state: Tensor, end: bool) -> None:
        """Keep one transition in place of the oldest."""
        at = self.count % self.capacity
        self.states[at], self.actions[at], self.rewards[at] = state, action, reward
        self.next_states[at], self.ends[at] = next_state, float(end)
        self.count += 1

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return `batch` random transitions."""
        chosen = torch.randint(min(self.count, self.capacity), (batch,), generator=generator)
        return tuple(
            t[chosen] for t in (self.states, self.actions, self.rewards, self.next_states, self.ends)
        )


def td_loss(
    network: nn.Module, target: nn.Module, batch: tuple[Tensor, ...], gamma: float, double: bool
) -> Tensor:
    """Return the Huber loss of Q(s, a) to r + gamma max Q_target(s', .), 0 behind an end.

    With `double` the network chooses the next action, and the target network only values it.
    """
    state, action, reward, next_state, end = batch
    value = network(state).gather(1, action[:, None])[:, 0]
    with torch.no_grad():
        future = target(next_state)
        best = network(next_state).argmax(1, keepdim=True) if double else future.argmax(1, keepdim=True)
        wanted = reward + gamma * (1 - end) * future.gather(1, best)[:, 0]
    return F.smooth_l1_loss(value, wanted)


def greedy_return(network: nn.Module, env: Any, seed: int) -> float:
    """Return the sum of rewards of one episode by the best actions."""
    state, total, over = env.reset(seed=seed)[0], 0.0, False
    while not over:
        with torch.no_grad():
            action = int(network(torch.as_tensor(state, dtype=torch.float32)[None]).argmax())
        state, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total


def play(
    network: nn.Module,
    env: Any,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    seed: int = 0,
    double: bool = False,
    batch: int = 64,
    every: int = 1,
    watch: Callable[[int, nn.Module, Tensor], None] | None = None,
) -> Played:
    """Train `network` (states (B, S) to action values (B, A)) in place for `steps` of `env`; play 10 greedy games.

    Discount 0.99; the target network is copied each 250 steps; epsilon falls from 1 to 0.05 in the first 30 %;
    an update each `every` steps once 500 transitions are kept.  `watch` gets (step, network, recent states) ten
    times.  The seed decides exploration, replay and the environment.
    """
    target = _copy(network)
    generator, chance = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    replay = Replay(min(steps, 10_000), env.observation_space.shape[0])
    state, total, returns = torch.as_tensor(env.reset(seed=seed)[0], dtype=torch.float32), 0.0, [0.0][:0]
    for step in range(steps):
        epsilon = max(1 - 0.95 * step / (0.3 * steps), 0.05)
        if chance.random() < epsilon:
            action = int(chance.integers(env.action_space.n))
        else:
            with torch.no_grad():
                action = int(network(state[None]).argmax())
        found, reward, terminated, truncated, _ = env.step(action)
        after = torch.as_tensor(found, dtype=torch.float32)
        replay.add(state, action, float(reward), after, terminated)
        state, total = after, total + float(reward)
        if terminated or truncated:
            returns.append(total)
            state, total = torch.as_tensor(env.reset()[0], dtype=torch.float32), 0.0
        if replay.count >= 500 and step % every == 0:
            optimizer.zero_grad()
            loss = td_loss(network, target, replay.draw(batch, generator), 0.99, double)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
        if step % 250 == 0:
            target.load_state_dict(network.state_dict())
        if watch is not None and step % max(steps // 10, 1) == 0 and replay.count >= 500:
            watch(step, network, replay.draw(500, generator)[0])
    return Played(network, returns, [greedy_return(network, env, 10_000 + seed + n) for n in range(10)])


def _copy(network: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(network).requires_grad_(False)
