"""The contract that analyses and studies share: a `Finding` of finite numbers, a figure and a sentence.

A finding is any object with `numbers` (name -> number), `reading` (one sentence) and `figure` (None, or a
function without arguments that draws a matplotlib figure); `experiments.Finding` is one.
"""

import math
from collections.abc import Mapping
from typing import Any

from workingpapers.contracts._check import Contract, ContractFailure, declares, expect, expect_none
from workingpapers.contracts._function import FunctionSubject
from workingpapers.contracts._snapshot import changes, snapshot

SAME = 1e-6  # relative difference of numbers that an invariance may leave


class FindingSubject(FunctionSubject):
    """An analysis or a study; its example gives the arguments of one small run."""

    def numbers(self, arguments: tuple[Any, ...], seed: int = 0) -> dict[str, float]:
        """Return the numbers of one run."""
        return {name: float(value) for name, value in _finding(self.run(arguments, seed)).numbers.items()}


def _finding(found: Any) -> Any:
    missing = [name for name in ("numbers", "reading", "figure") if not hasattr(found, name)]
    expect_none(missing, f"it gives a {type(found).__name__}, which is no Finding: it has no {{}}")
    return found


contract = Contract(FindingSubject)


@contract.check("numbers", "it gives at least one number, by name, and all are finite")
def _numbers(subject: FindingSubject) -> None:
    numbers = _finding(subject.run(subject.arguments())).numbers
    expect(isinstance(numbers, Mapping) and bool(numbers), f"the numbers are {numbers!r}")
    for name, value in numbers.items():
        number = isinstance(name, str) and math.isfinite(float(value))
        expect(number, f"the number {name!r} is {value!r}")


@contract.check("reading", "the reading is one sentence")
def _reading(subject: FindingSubject) -> None:
    reading = _finding(subject.run(subject.arguments())).reading
    one = isinstance(reading, str) and reading.endswith(".") and " " in reading and "\n" not in reading
    expect(one and ". " not in reading, f"the reading is {reading!r}")


@contract.check("figure", "the figure is None, or a function that draws a matplotlib figure with axes")
def _figure(subject: FindingSubject) -> None:
    draw = _finding(subject.run(subject.arguments())).figure
    if draw is None:
        return
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    if not callable(draw):
        raise ContractFailure(f"the figure is a {type(draw).__name__}, neither None nor a function")
    figure = draw()
    expect(
        isinstance(figure, Figure), f"drawing gives a {type(figure).__name__}, which is no matplotlib Figure"
    )
    expect(bool(figure.axes), "the figure has no axes")
    figure.canvas.draw()
    pyplot.close(figure)


@contract.check(
    "same seed",
    "the same arguments give the same numbers, whatever the global seed "
    "unless deterministic=False is declared",
)
def _same_seed(subject: FindingSubject) -> None:
    one, other = (subject.numbers(subject.arguments(), seed) for seed in subject.seeds())
    expect_none(_differences(one, other, 0.0), "two runs differ in {}")


@contract.check("arguments untouched", "models keep weights, gradients, hooks and modes, data keep values")
def _arguments_untouched(subject: FindingSubject) -> None:
    arguments = subject.arguments()
    before = snapshot(arguments)
    subject.run(arguments)
    expect_none(changes(before, snapshot(arguments)), "it changed {}")


@contract.check(
    "invariances", "every declared invariance leaves the numbers as they are", declares("invariances")
)
def _invariances(subject: FindingSubject) -> None:
    wanted = subject.numbers(subject.arguments())
    for name, change in subject.properties["invariances"].items():
        changed = change(*subject.arguments())
        found = subject.numbers(changed if isinstance(changed, tuple) else (changed,))
        expect_none(_differences(wanted, found, SAME), f"under {name!r} it moves {{}}")


def _differences(wanted: dict[str, float], found: dict[str, float], tolerance: float) -> list[str]:
    """Return where the numbers differ by more than the relative tolerance."""
    if wanted.keys() != found.keys():
        return [f"its names, {sorted(wanted)} and {sorted(found)}"]
    return [
        f"{name}, {value:.9g} and {found[name]:.9g}"
        for name, value in wanted.items()
        if not abs(value - found[name]) <= tolerance * max(abs(value), abs(found[name]))
    ]
