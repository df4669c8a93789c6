"""The contract of searches: better than chance on a known optimum, within budget, resumable.

A search is called as `search(space, objective, budget, seed=0, trials=None)` and maximises.  A space maps each
name to a list of choices or to a tuple (low, high) of numbers, whole ones for an integer range; any other space
has a method `sample(seed) -> point`.
"""

import math
import random
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from workingpapers.contracts._check import Contract, expect
from workingpapers.contracts._subject import Subject

Objective = Callable[[Any], float]
SEEDS = range(5)


class SearchSubject(Subject):
    """A search; its example gives a space, an objective and the objective's best value there."""

    required = ("example",)

    @property
    def budget(self) -> int:
        """How many evaluations the small run may take."""
        return int(self.declared("budget", 40))

    def run(
        self, objective: Objective, budget: int, *, seed: int = 0, trials: Any = None, world: int = 0
    ) -> list[Any]:
        """Return the trials of one search; `world` seeds the global generators, which must not matter."""
        torch.manual_seed(world)
        random.seed(world)
        space = self.properties["example"]()[0]
        return list(self.make()(space, objective, budget, seed=seed, trials=trials))

    def objective(self) -> Objective:
        """Return the example's objective."""
        found: Objective = self.properties["example"]()[1]
        return found


def sample(space: Any, seed: int) -> Any:
    """Return a point of the space drawn uniformly."""
    if not isinstance(space, Mapping):
        return space.sample(seed)
    generator = random.Random(seed)
    point = {}
    for name, values in space.items():
        if isinstance(values, list):
            point[name] = generator.choice(values)
        elif all(isinstance(bound, int) for bound in values):
            point[name] = generator.randint(*values)
        else:
            point[name] = generator.uniform(*values)
    return point


def _counted(objective: Objective) -> tuple[Objective, list[Any]]:
    """Return the objective and the list in which it leaves every point it is asked for."""
    asked: list[Any] = []

    def count(point: Any) -> float:
        asked.append(point)
        return objective(point)

    return count, asked


def _summary(trials: list[Any]) -> list[tuple[Any, str]]:
    return [(trial.point, repr(float(trial.value))) for trial in trials]


def _first_difference(one: list[Any], other: list[Any]) -> int:
    """Return the number of the first trial that differs, or that only one of the two searches has."""
    same = (a == b for a, b in zip(one, other, strict=False))
    return next((number for number, equal in enumerate(same) if not equal), min(len(one), len(other)))


def _best(trials: list[Any]) -> float:
    return max((t.value for t in trials if not math.isnan(t.value)), default=-math.inf)


contract = Contract(SearchSubject)


@contract.check(
    "budget", "it asks the objective as often as it has trials, and no more than the budget allows"
)
def _budget(subject: SearchSubject) -> None:
    for budget in (1, 7, subject.budget):
        objective, asked = _counted(subject.objective())
        trials = subject.run(objective, budget)
        expect(len(asked) <= budget, f"a budget of {budget} led to {len(asked)} evaluations")
        expect(len(trials) == len(asked), f"{len(asked)} evaluations led to {len(trials)} trials")


@contract.check("honest trials", "each trial has a point of the space and the objective's value there")
def _honest_trials(subject: SearchSubject) -> None:
    space, objective, _ = subject.properties["example"]()
    for trial in subject.run(objective, subject.budget):
        value = objective(trial.point)
        expect(trial.value == value, f"the trial at {trial.point} has the value {trial.value}, not {value}")
        if isinstance(space, Mapping):
            strange = [name for name in {**space, **trial.point} if not _within(space, trial.point, name)]
            expect(not strange, f"the point {trial.point} is not in the space, by {strange}")


def _within(space: Mapping[str, Any], point: Mapping[str, Any], name: str) -> bool:
    if name not in space or name not in point:
        return False
    values, value = space[name], point[name]
    return value in values if isinstance(values, list) else bool(values[0] <= value <= values[1])


@contract.check("same seed", "the same seed gives the same trials, whatever the global seed")
def _same_seed(subject: SearchSubject) -> None:
    one, other = (_summary(subject.run(subject.objective(), subject.budget, world=world)) for world in (0, 1))
    place = _first_difference(one, other)
    expect(one == other, f"two runs with the same seed differ from trial {place} on")


@contract.check(
    "beats random search",
    "the median over five seeds of its best value is above random search's, at equal budget",
)
def _beats_random_search(subject: SearchSubject) -> None:
    space, objective, best = subject.properties["example"]()
    budget = subject.budget
    own = median(_best(subject.run(objective, budget, seed=seed)) for seed in SEEDS)
    chance = median(max(objective(sample(space, 1000 * seed + i)) for i in range(budget)) for seed in SEEDS)
    expect(own <= best + 1e-9 * abs(best), f"it found {own:.6g}, above the declared best value {best:.6g}")
    expect(own > chance, f"with {budget} evaluations it finds {own:.6g} and random search {chance:.6g}")


@contract.check(
    "survives failures", "an objective that raises or gives NaN counts as worst and does not end it"
)
def _survives_failures(subject: SearchSubject) -> None:
    objective, asked = _counted(subject.objective())

    def failing(point: Any) -> float:
        value = objective(point)
        if len(asked) == 2:
            raise ValueError("the objective fails at its second point, on purpose")
        return math.nan if len(asked) == 4 else value

    trials = subject.run(failing, subject.budget)
    expect(len(asked) > 4, f"it ended after {len(asked)} evaluations, of which the second and fourth failed")
    for number in (1, 3):
        value = float(trials[number].value)
        expect(value == -math.inf, f"the failed trial {number + 1} has the value {value}, not -inf")


@contract.check("resumes", "going on from the trials of half the budget gives the trials of the whole")
def _resumes(subject: SearchSubject) -> None:
    half, whole = subject.budget // 2, subject.budget
    wanted = _summary(subject.run(subject.objective(), whole))
    first = subject.run(subject.objective(), half)
    objective, asked = _counted(subject.objective())
    found = _summary(subject.run(objective, whole, trials=first, world=1))
    expect(len(asked) <= whole - half, f"after {half} trials of {whole} it evaluated {len(asked)} more")
    place = _first_difference(found, wanted)
    expect(found == wanted, f"from trial {place} on the resumed search gives others ({len(found)} in all)")
