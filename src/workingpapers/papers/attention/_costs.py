"""What an attention costs: its time, and the operators that gather over whole rows of scores."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

GATHERS = {"amax": 1, "max": 1, "sum": 1, "logsumexp": 2, "_softmax": 2, "_safe_softmax": 2}


class RowReductions(TorchDispatchMode):
    """Within it, `count` grows with every maximum or sum over a dimension; a softmax takes one of each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the operator `func` and run it."""
        self.count += GATHERS.get(func.overloadpacket.__name__, 0)
        return func(*args, **(kwargs or {}))


def median_seconds(runs: Sequence[Callable[[], Any]], repeats: int = 11) -> list[float]:
    """Return the median time of each run, all taking turns."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, taken in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]
