"""Where skipping pays: what skipping and the dense product cost on this machine, measured once and kept.

Small weights are read from caches and large ones from memory, so both are measured at several sizes.  In between
they are interpolated over the logarithm of the size, and what skipping costs over the share of active rows too.
"""

import json
import math
import platform
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import platformdirs

from workingpapers.errors import WorkingPapersError
from workingpapers.files import write_whole
from workingpapers.kernels.timing import seconds_by_turns

SHAPES = ((128, 512), (512, 1024), (2048, 2048), (8192, 4096))
FEW = 0.25  # share of active rows; the other measurement is of all
RUNS = 15
Trial = Callable[
    [tuple[int, int], float], Callable[[], object]
]  # shape, share of active rows -> what is timed


@dataclass(frozen=True)
class Costs:
    """Seconds by size of the weights: (entries, dense product, skipping with few active rows, with all)."""

    points: tuple[tuple[float, float, float, float], ...]

    def pays(self, active: float, entries: int) -> bool:
        """Tell whether to skip when a share `active` of so many entries of the weights would be read."""
        dense, few, every = self._at(entries)
        return few + (active - FEW) / (1 - FEW) * (every - few) < dense

    def _at(self, entries: int) -> list[float]:
        place = min(max(bisect(self.points, (entries,)), 1), len(self.points) - 1)
        below, above = self.points[place - 1 : place + 1]
        share = math.log(max(1, entries) / below[0]) / math.log(above[0] / below[0])
        if share > 1:  # from memory, in proportion
            return [seconds * entries / above[0] for seconds in above[1:]]
        return [low + max(0.0, share) * (high - low) for low, high in zip(below[1:], above[1:], strict=True)]


def costs(what: str, skipping: Trial, dense: Trial) -> Costs:
    """Return the costs under a name such as "cpu bf16 2 threads", kept or measured now, in about a second."""
    return _known(what) or _measured(what, skipping, dense)


@cache
def _folder() -> Path:
    return Path(platformdirs.user_cache_dir("workingpapers", appauthor=False)) / "costs"


def _file(what: str) -> Path:
    return _folder() / f"{platform.node()} {what}.json".replace(" ", "-")


def _known(what: str) -> Costs | None:
    try:
        points = tuple(tuple(map(float, point)) for point in json.loads(_file(what).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return Costs(points) if len(points) > 1 and all(len(p) == 4 for p in points) else None  # type: ignore[arg-type]


def _measured(what: str, skipping: Trial, dense: Trial) -> Costs:
    points = []
    for shape in SHAPES:
        runs = [dense(shape, 1.0), skipping(shape, FEW), skipping(shape, 1.0)]
        whole, few, every = map(min, seconds_by_turns(runs, RUNS))  # whatever else the machine does
        points.append((float(shape[0] * shape[1]), whole, few, every))
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        write_whole(_file(what), json.dumps(points))
    except (OSError, WorkingPapersError):
        pass  # measured again by the next process
    return Costs(tuple(points))
