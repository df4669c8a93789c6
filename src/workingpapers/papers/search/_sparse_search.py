"""Searches over plain dictionaries of choices: late acceptance hill climbing, and a forest as surrogate.

A space maps names to lists of choices, to (low, high) of numbers, or to (low, high) of whole numbers.  Both
searches maximise, take a failure for -inf, and go on from earlier trials of the same space and seed.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from workingpapers.errors import WorkingPapersError

Point = dict[str, Any]
Space = Mapping[str, Any]
Objective = Callable[[Point], float]


@dataclass(frozen=True)
class Trial:
    """A point that was tried, and what the objective gave: -inf where it failed."""

    point: Point
    value: float


def evaluate(objective: Objective, point: Point) -> Trial:
    """Return the trial of a point; what raises or is not a number failed."""
    try:
        value = float(objective(point))
    except Exception:  # a configuration that cannot be trained is a result: the worst there is
        return Trial(point, -math.inf)
    return Trial(point, -math.inf if math.isnan(value) else value)


def draw(choices: Any, chance: random.Random) -> Any:
    """Return a random value of one variable."""
    if isinstance(choices, list) and choices:
        return chance.choice(choices)
    if isinstance(choices, tuple) and len(choices) == 2:
        whole = all(isinstance(bound, int) for bound in choices)
        return chance.randint(*choices) if whole else chance.uniform(*choices)
    raise WorkingPapersError(f"a variable has a list of choices or a tuple (low, high); got {choices!r}")


def peaks() -> tuple[dict[str, list[int]], Objective, float]:
    """Return a space whose best point is known: five choices of eight, each best at its own place."""
    best = {"a": 2, "b": 7, "c": 0, "d": 5, "e": 3}
    space = {name: list(range(8)) for name in best}
    return space, lambda p: -float(sum((p[n] - b) ** 2 for n, b in best.items())), 0.0


def lahc(
    space: Space,
    objective: Objective,
    budget: int,
    seed: int = 0,
    trials: Sequence[Trial] | None = None,
    history_length: int = 3,
    start: Point | None = None,
) -> list[Trial]:
    """Climb by late acceptance and return all trials; the best of them is the answer.

    A neighbour has one variable drawn anew, and is taken where it is no worse than the present point, or than
    the present point of `history_length` steps ago; with 1 this is plain hill climbing.

    Args:
        space, objective: what is searched; the objective is maximised.
        budget: evaluations in all, with those in `trials`.
        seed: decides everything that is drawn.
        trials: those of an earlier call, to go on from.
        history_length: 3 as in the authors' code.
        start: the first point; by default a random one.
    """
    if history_length < 1:
        raise WorkingPapersError(f"the history has a length of at least 1; got {history_length}")
    chance = random.Random(seed)
    here = dict(start) if start else {name: draw(choices, chance) for name, choices in space.items()}
    found: list[Trial] = []
    history: list[float] = []
    present = Trial(here, -math.inf)
    while len(found) < budget:
        point = dict(present.point)
        if found:
            name = chance.choice(list(space))
            others = (
                [c for c in space[name] if c != point[name]] if isinstance(space[name], list) else space[name]
            )
            point[name] = draw(others or space[name], chance)
        earlier = trials[len(found)] if trials and len(found) < len(trials) else None
        trial = earlier if earlier and earlier.point == point else evaluate(objective, point)
        place = max(len(found) - 1, 0) % history_length
        if not found:
            present, history = trial, [trial.value] * history_length
        else:
            if trial.value >= present.value or trial.value >= history[place]:
                present = trial
            history[place] = present.value
        found.append(trial)
    return found


def random_search(space: Space, objective: Objective, budget: int, seed: int = 0) -> list[Trial]:
    """Try points drawn at random, all variables anew."""
    chance = random.Random(seed)
    points = [{name: draw(choices, chance) for name, choices in space.items()} for _ in range(budget)]
    return [evaluate(objective, point) for point in points]


def _encoded(space: Space, point: Point) -> list[float]:
    row: list[float] = []
    for name, choices in space.items():
        if isinstance(choices, list):
            row += [float(point[name] == c) for c in choices]
        else:
            row.append((point[name] - choices[0]) / max(choices[1] - choices[0], 1e-12))
    return row


def _near(space: Space, point: Point, chance: random.Random) -> Point:
    """Return the point with one or two variables changed, numbers by a tenth of their range."""
    moved = dict(point)
    for name in chance.sample(list(space), min(len(space), chance.randint(1, 2))):
        choices = space[name]
        if isinstance(choices, list) or all(isinstance(bound, int) for bound in choices):
            moved[name] = draw(choices, chance)
        else:
            step = chance.gauss(0, 0.1 * (choices[1] - choices[0]))
            moved[name] = min(max(moved[name] + step, choices[0]), choices[1])
    return moved


def bayesian(
    space: Space,
    objective: Objective,
    budget: int,
    seed: int = 0,
    trials: Sequence[Trial] | None = None,
    initial: int = 6,
    start: Point | None = None,
) -> list[Trial]:
    """Search as SMAC does: a random forest predicts the objective, the largest expected improvement is tried next.

    The first `initial` points are `start` (where given) and random ones; other arguments as of `lahc`.
    """
    from sklearn.ensemble import RandomForestRegressor

    found = list(trials or [])[:budget]
    while len(found) < budget:
        chance = random.Random(f"{seed} {len(found)}")
        drawn = [{name: draw(choices, chance) for name, choices in space.items()} for _ in range(100)]
        finite = [t for t in found if math.isfinite(t.value)]
        if not found and start is not None:
            point = dict(start)
        elif len(found) < initial or len(finite) < 2:
            point = drawn[0]
        else:
            worst = min(t.value for t in finite)
            values = np.array([t.value if math.isfinite(t.value) else worst for t in found])
            forest = RandomForestRegressor(30, min_samples_leaf=1, max_features=0.8, random_state=len(found))
            forest.fit([_encoded(space, t.point) for t in found], values)
            best = max(finite, key=lambda t: t.value)
            candidates = drawn + [_near(space, best.point, chance) for _ in range(100)]
            candidates = [c for c in candidates if all(c != t.point for t in found)] or drawn
            rows = np.array([_encoded(space, c) for c in candidates])
            guesses = np.array([tree.predict(rows) for tree in forest.estimators_])
            mean, spread = guesses.mean(0), guesses.std(0) + 1e-9
            gain = (mean - best.value) * norm.cdf((mean - best.value) / spread)
            point = candidates[int((gain + spread * norm.pdf((mean - best.value) / spread)).argmax())]
        found.append(evaluate(objective, point))
    return found
