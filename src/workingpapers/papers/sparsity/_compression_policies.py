"""Two recurrent policies over a list of layers, and the REINFORCE search that trains them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import initialise

KEEP = (False, True)
SHARES = tuple(k / 10 for k in range(1, 11))
FEATURES = 7
NUMBERS = 3  # kinds of number that a layer can have made smaller

Point = tuple[Any, ...]


@dataclass(frozen=True)
class Trial:
    """The choices that were tried, and what the objective gave: -inf where it failed."""

    point: Point
    value: float


@dataclass(frozen=True)
class Decisions:
    """What a policy decides: for each of `steps`, (layer, number of that layer), one of `choices`.

    features: (layers, 7), what the policy sees of each layer.
    """

    features: Tensor = field(repr=False)
    steps: tuple[tuple[int, int], ...]
    choices: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.features.shape[1] != FEATURES or not self.steps:
            raise WorkingPapersError(
                f"decisions take features (layers, {FEATURES}) and at least one step; got "
                f"{tuple(self.features.shape)} and {len(self.steps)} steps"
            )

    def point(self, actions: Tensor) -> Point:
        """Return the choices with the numbers `actions` (steps,)."""
        return tuple(self.choices[int(a)] for a in actions)

    def sample(self, seed: int) -> Point:
        """Return choices drawn uniformly."""
        generator = torch.Generator().manual_seed(seed)
        return self.point(torch.randint(len(self.choices), (len(self.steps),), generator=generator))


class Removal(nn.Module):
    """Stage 1: a bidirectional LSTM over the layers; for each layer the logits of leaving it out and keeping it."""

    def __init__(self, hidden: int = 30, layers: int = 2, choices: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, hidden, layers, bidirectional=True)
        self.head = nn.Linear(2 * hidden, choices)

    def logits(self, space: Decisions) -> Tensor:
        """Return the logits (steps, choices)."""
        seen, _ = self.lstm(space.features)
        logits: Tensor = self.head(seen[[layer for layer, _ in space.steps]])
        return logits

    @torch.no_grad()
    def sample(self, space: Decisions, count: int, generator: torch.Generator) -> Tensor:
        """Draw actions (count, steps)."""
        drawn = torch.multinomial(
            self.logits(space).softmax(-1), count, replacement=True, generator=generator
        )
        return drawn.T

    def log_prob(self, space: Decisions, actions: Tensor) -> Tensor:
        """Return the log-probability (count,) of rows of actions."""
        logs = self.logits(space).log_softmax(-1).expand(len(actions), -1, -1)
        found: Tensor = logs.gather(2, actions[..., None])[..., 0].sum(1)
        return found


class Shrinking(nn.Module):
    """Stage 2: an LSTM that sees one layer after another, which number is asked for, and what it chose last."""

    def __init__(self, hidden: int = 30, layers: int = 2, choices: int = len(SHARES)) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES + NUMBERS + 1, hidden, layers)
        self.head = nn.Linear(hidden, choices)
        self.choices = choices

    def _asked(self, space: Decisions) -> Tensor:
        numbers = torch.tensor([number for _, number in space.steps])
        seen = space.features[[layer for layer, _ in space.steps]]
        return torch.cat([seen, nn.functional.one_hot(numbers, NUMBERS).to(seen)], 1)  # (steps, 10)

    @torch.no_grad()
    def sample(self, space: Decisions, count: int, generator: torch.Generator) -> Tensor:
        """Draw actions (count, steps), each knowing those before it."""
        asked, state, found = self._asked(space), None, []
        last = torch.ones(count, 1)
        for step in asked:
            out, state = self.lstm(torch.cat([step.expand(count, -1), last], 1)[None], state)
            found.append(torch.multinomial(self.head(out[0]).softmax(-1), 1, generator=generator))
            last = (found[-1] + 1) / self.choices
        return torch.cat(found, 1)

    def log_prob(self, space: Decisions, actions: Tensor) -> Tensor:
        """Return the log-probability (count,) of rows of actions."""
        count, _steps = actions.shape
        before = torch.cat([torch.ones(count, 1), (actions[:, :-1] + 1) / self.choices], 1)
        asked = self._asked(space)[:, None].expand(-1, count, -1)
        out, _ = self.lstm(torch.cat([asked, before.T[..., None]], 2))  # (steps, count, hidden)
        found: Tensor = self.head(out).log_softmax(-1).gather(2, actions.T[..., None]).sum((0, 2))
        return found


Policy = Removal | Shrinking


def policy_for(space: Decisions, seed: int = 0) -> Policy:
    """Return a fresh policy: `Removal` where there are two choices, `Shrinking` where there are more."""
    if len(space.choices) == 2:
        return initialise(Removal, seed)
    return initialise(lambda: Shrinking(choices=len(space.choices)), seed)


def reinforce_loss(logs: Tensor, rewards: Tensor, baseline: float) -> Tensor:
    """Return -mean((R - b) log p), (count,) each; its gradient is in expectation that of -E[R]."""
    return -((rewards - baseline) * logs).mean()


def evaluate(objective: Callable[[Point], float], point: Point) -> Trial:
    """Return the trial of a point; what raises or is not a number failed."""
    try:
        value = float(objective(point))
    except Exception:  # a student that cannot be trained is a result: the worst there is
        return Trial(point, -math.inf)
    return Trial(point, -math.inf if math.isnan(value) else value)


def reinforce(
    space: Decisions,
    objective: Callable[[Point], float],
    budget: int,
    seed: int = 0,
    trials: Sequence[Trial] | None = None,
    policy: Policy | None = None,
    lr: float = 3e-3,
    rollouts: int = 5,
) -> list[Trial]:
    """Train a policy by policy gradients and return all trials; the best of them is the answer.

    Args:
        space: what is decided.
        objective: choices -> reward, which is maximised; a failure counts as the reward -1.
        budget: evaluations in all, with those in `trials`.
        seed: decides everything that is drawn.
        trials: those of an earlier call, to go on from (with the policy as it was before that call).
        policy: one trained before, to go on with; it is trained in place.  By default a fresh one.
        lr: learning rate of Adam.
        rollouts: trials for one update; the baseline is the mean of the rewards before, or the first time of
            these.
    """
    if rollouts < 1:
        raise WorkingPapersError(f"an update takes at least one rollout; got {rollouts}")
    policy = policy_for(space, seed) if policy is None else policy
    adam = torch.optim.Adam(policy.parameters(), lr)
    generator = torch.Generator().manual_seed(seed)
    found: list[Trial] = []
    while len(found) < budget:
        actions = policy.sample(space, rollouts, generator)
        batch: list[Trial] = []
        for row in actions[: budget - len(found)]:
            point, number = space.point(row), len(found) + len(batch)
            earlier = trials[number] if trials and number < len(trials) else None
            batch.append(earlier if earlier and earlier.point == point else evaluate(objective, point))
        rewards = [max(t.value, -1.0) for t in batch]
        before = [max(t.value, -1.0) for t in found] or rewards
        loss = reinforce_loss(
            policy.log_prob(space, actions[: len(batch)]), torch.tensor(rewards), sum(before) / len(before)
        )
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        found += batch
    return found
