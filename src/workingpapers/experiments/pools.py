"""What a pool of runs is, the pool of this very process, and how many runs go side by side."""

import os
import time
from collections.abc import Callable
from typing import Protocol

from workingpapers.experiments.cells import Cell, Experiment
from workingpapers.experiments.execution import Outcome, Point, execute

OnPoint = Callable[[Cell, Point], None]


class Pool(Protocol):
    """What makes runs: `submit` while `free`, `wait` for outcomes, `close` at the end (which ends runs at once)."""

    @property
    def free(self) -> int:
        """How many more cells can be submitted now."""

    def submit(self, cell: Cell) -> None:
        """Begin the run of `cell`."""

    def wait(self, timeout: float | None = None) -> list[tuple[Cell, Outcome]]:
        """Return the runs that ended; none of them only after `timeout` seconds."""

    def close(self) -> None:
        """End all runs and give up the pool."""


class InlinePool:
    """Makes runs in this process, one after the other: for debugging, where prints and breakpoints count."""

    def __init__(self, experiment: Experiment, on_point: OnPoint) -> None:
        self._experiment, self._on_point = experiment, on_point
        self._next: Cell | None = None

    @property
    def free(self) -> int:
        """One while no run is asked for."""
        return 0 if self._next else 1

    def submit(self, cell: Cell) -> None:
        """Keep `cell` for the next `wait`."""
        self._next = cell

    def wait(self, timeout: float | None = None) -> list[tuple[Cell, Outcome]]:
        """Make the run that was submitted; without one, sleep for `timeout` seconds."""
        if self._next is None:
            time.sleep(timeout or 0.0)
            return []
        cell, self._next = self._next, None
        return [
            (
                cell,
                execute(
                    self._experiment.run,
                    cell,
                    lambda point: self._on_point(cell, point),
                    threads=self._experiment.threads,
                    device=self._experiment.device,
                ),
            )
        ]

    def close(self) -> None:
        """Do nothing: no run outlives `wait`."""


def default_workers(experiment: Experiment) -> int:
    """Return how many runs go side by side unless told otherwise: by cores and threads, or one per GPU."""
    if experiment.device.startswith("cuda"):
        return max(1, len(visible_gpus())) if experiment.device == "cuda" else 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // experiment.threads)


def visible_gpus() -> list[str]:
    """Return the names by which CUDA_VISIBLE_DEVICES knows the GPUs of this process."""
    if listed := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return listed.split(",")
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
