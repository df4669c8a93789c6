"""Times of several ways to compute the same, taken in turns."""

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any


def seconds_by_turns(
    runs: Sequence[Callable[[], Any]], repeats: int = 11, warm: int = 2
) -> list[list[float]]:
    """Return the times of each run, all taking turns, after a few rounds that are not counted."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(warm + repeats):
        for run, taken in zip(runs, seconds, strict=True):
            start = perf_counter()
            run()
            if number >= warm:
                taken.append(perf_counter() - start)
    return seconds


def median_seconds(runs: Sequence[Callable[[], Any]], repeats: int = 11, warm: int = 2) -> list[float]:
    """Return the median time of each run, all taking turns."""
    return [median(taken) for taken in seconds_by_turns(runs, repeats, warm)]
