"""Evolution by tournaments over lists of choices, for one objective or several."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workingpapers.errors import WorkingPapersError


@dataclass(frozen=True)
class Trial:
    """A point that was tried, its value, -inf where it failed, and the objectives behind the value."""

    point: dict[str, Any]
    value: float
    scores: tuple[float, ...]


def _evaluate(objective: Callable[[Any], float | Sequence[float]], point: dict[str, Any]) -> Trial:
    try:
        found = objective(point)
        scores = tuple(float(s) for s in found) if isinstance(found, Sequence) else (float(found),)
    except Exception:  # a layer that cannot be built or run is a result: the worst there is
        scores = (-math.inf,)
    mean = sum(scores) / len(scores)
    return Trial(point, -math.inf, scores) if math.isnan(mean) else Trial(point, mean, scores)


def winner(tournament: Sequence[Trial], chance: random.Random) -> Trial:
    """Return one of those that no other of the tournament dominates."""

    def dominates(a: Trial, b: Trial) -> bool:
        pairs = list(zip(a.scores, b.scores, strict=False))
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    return chance.choice([t for t in tournament if not any(dominates(other, t) for other in tournament)])


def peaks() -> tuple[dict[str, list[int]], Callable[[dict[str, int]], float], float]:
    """Return a space whose best point is known: five choices of eight, each best at its own place."""
    best = {"a": 2, "b": 7, "c": 0, "d": 5, "e": 3}
    space = {name: list(range(8)) for name in best}
    return space, lambda p: -float(sum((p[n] - b) ** 2 for n, b in best.items())), 0.0


def evolve(
    space: Mapping[str, list[Any]],
    objective: Callable[[Any], float | Sequence[float]],
    budget: int,
    seed: int = 0,
    trials: Sequence[Trial] | None = None,
    initial: int = 20,
    tournament: float = 0.05,
    pool: int = 2500,
) -> list[Trial]:
    """Evolve points with large objectives in `budget` evaluations; return all trials.

    Args:
        space: a list of choices for each name; `layer_space()` is that of layers, one name a node.
        objective: point -> value, or one for each of several architectures; raising and NaN are failures.
        budget: number of trials in all, with those in `trials`, an earlier call's with the same seed.
        seed: decides everything that is drawn.
        initial: random points before evolution.
        tournament: share of the pool that competes to be mutated, at least two; the winner is one of those that
            no other dominates, and one of its nodes is drawn anew.
        pool: the most recent trials, which may compete.
    """
    for name, choices in space.items():
        if not isinstance(choices, list) or not choices:
            raise WorkingPapersError(
                f"a search space has a list of choices for each name; {name!r} has {choices!r}"
            )
    found = list(trials or [])[:budget]
    while len(found) < budget:
        chance = random.Random(f"{seed} {len(found)}")
        alive = [t for t in found[-pool:] if t.value > -math.inf]
        if len(found) < initial or not alive:
            point = {name: chance.choice(choices) for name, choices in space.items()}
        else:
            size = min(len(alive), max(2, math.ceil(tournament * len(alive))))
            point = dict(winner(chance.sample(alive, size), chance).point)
            name = chance.choice(list(space))
            point[name] = chance.choice(space[name])
        found.append(_evaluate(objective, point))
    return found
