"""Where skipping pays: what skipping and the dense product cost on this machine, measured once and kept.

Both costs are taken to be linear in the entries of the weights that are read, which decoding from memory is:

    skipping = start + rate * active entries,   dense = start' + rate' * all entries
"""

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import platformdirs

from workingpapers.errors import WorkingPapersError
from workingpapers.files import write_whole
from workingpapers.kernels.timing import median_seconds

SMALL, LARGE = (256, 1024), (4096, 8192)  # the larger one does not fit into caches
RUNS = 7
Trial = Callable[
    [tuple[int, int], float], Callable[[], object]
]  # shape, share of active rows -> what is timed


@dataclass(frozen=True)
class Costs:
    """Seconds of a product: at the start, and for each entry read."""

    start: float
    rate: float
    dense_start: float
    dense_rate: float

    def pays(self, active: float, entries: int) -> bool:
        """Tell whether to skip when a share `active` of so many entries of the weights would be read."""
        return self.start + self.rate * active * entries < self.dense_start + self.dense_rate * entries


def costs(what: str, trial: Trial, dense: Trial) -> Costs:
    """Return the costs under a name such as "cpu bf16 2 threads", kept or measured now, in about a second."""
    return _known(what) or _measured(what, trial, dense)


@cache
def _folder() -> Path:
    return Path(platformdirs.user_cache_dir("workingpapers", appauthor=False)) / "costs"


def _file(what: str) -> Path:
    return _folder() / f"{platform.node()} {what}.json".replace(" ", "-")


def _known(what: str) -> Costs | None:
    try:
        return Costs(**json.loads(_file(what).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _measured(what: str, trial: Trial, dense: Trial) -> Costs:
    start, rate = _line(trial, 0.25)
    found = Costs(start, rate, *_line(dense, 1.0))
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        write_whole(_file(what), json.dumps(asdict(found)))
    except (OSError, WorkingPapersError):
        pass  # measured again by the next process
    return found


def _line(trial: Trial, share: float) -> tuple[float, float]:
    (few, short), (many, long) = (
        (share * rows * width, median_seconds([trial((rows, width), share)], RUNS)[0])
        for rows, width in (SMALL, LARGE)
    )
    rate = max(0.0, long - short) / (many - few)
    return max(0.0, short - rate * few), rate
