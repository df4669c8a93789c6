"""A pool that makes runs on a Ray cluster, or on a local one that it starts; lost work is submitted again."""

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.cells import Cell, Experiment
from workingpapers.experiments.execution import (
    FAILED,
    KILLED,
    OUT_OF_MEMORY,
    TIMED_OUT,
    Outcome,
    Point,
    machine,
    paced,
    steps,
)
from workingpapers.experiments.pools import OnPoint
from workingpapers.experiments.serving import STARTED
from workingpapers.experiments.shipping import ship, unpacked

RESUBMISSIONS = 3  # how often a run whose node or process was lost is begun anew
_LOOK_EVERY = 5.0
_COUNT_EVERY = 1.0  # seconds between looks at the size of the cluster, which may grow and shrink


@dataclass
class _Task:
    """A run under way: `stream` yields references to 'started', points and the outcome."""

    cell: Cell
    stream: Any
    lost: int = 0
    begun: float | None = None


class RayPool:
    """Makes runs as Ray tasks of `threads` CPUs (and one GPU on 'cuda'), at most `workers` at a time.

    `address` is a cluster's ('auto', 'host:6379'); without one a local cluster is started and ended with
    the pool.  Every node needs this package; the user's own modules are sent along.
    """

    def __init__(
        self,
        experiment: Experiment,
        on_point: OnPoint,
        address: str | None = None,
        workers: int | None = None,
        timeout: float | None = None,
    ) -> None:
        self._experiment, self._on_point = experiment, on_point
        self._workers, self._timeout = workers, timeout
        self._tasks: dict[Any, _Task] = {}
        self._slots, self._counted = 1, 0.0
        payload = ship(experiment.run, far=True)
        with _quiet():
            self._ray = _import_ray()
            self._owned = not self._ray.is_initialized()
            if self._owned:
                _connect(self._ray, address)
                _print_messages(self._ray, False)
            gpus = 1 if experiment.device.startswith("cuda") else 0
            self._run = self._ray.remote(
                num_cpus=experiment.threads, num_gpus=gpus, max_retries=0, num_returns="streaming"
            )(_task)
            self._payload = self._ray.put(payload)

    @property
    def free(self) -> int:
        """How many more runs the cluster, as large as it is now, has room for."""
        if time.monotonic() - self._counted > _COUNT_EVERY:
            self._slots, self._counted = self._room(), time.monotonic()
        return max(0, self._slots - len(self._tasks))

    def submit(self, cell: Cell) -> None:
        """Begin the run of `cell` somewhere on the cluster."""
        self._begin(_Task(cell, None))

    def wait(self, timeout: float | None = None) -> list[tuple[Cell, Outcome]]:
        """Return the runs that ended, waiting for the first of them, at most `timeout` seconds."""
        limit = None if timeout is None else time.monotonic() + timeout
        while True:
            deadlines = (self._deadline(task) for task in self._tasks.values())
            moments = [moment for moment in (limit, *deadlines) if moment is not None]
            pause = max(0.0, min([_LOOK_EVERY, *(moment - time.monotonic() for moment in moments)]))
            if not self._tasks:
                time.sleep(pause if limit else 0.0)
                return []
            ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=pause)
            ended = [end for stream in ready if (end := self._advance(self._tasks[stream]))] + self._overdue()
            if ended or (limit is not None and time.monotonic() >= limit):
                return ended

    def close(self) -> None:
        """Cancel all runs, and end the local cluster or leave the other one."""
        with _quiet():
            for stream in self._tasks:
                self._ray.cancel(stream, force=True)
            self._tasks.clear()
            if self._owned:
                self._ray.shutdown()
                _print_messages(self._ray, True)

    def _room(self) -> int:
        resources = self._ray.cluster_resources()
        room = int(resources.get("CPU", 0)) // self._experiment.threads
        if self._experiment.device.startswith("cuda"):
            room = min(room, int(resources.get("GPU", 0)))
        return max(1, room if self._workers is None else min(room, self._workers))

    def _begin(self, task: _Task) -> None:
        with _quiet():
            task.stream = self._run.remote(
                self._payload, task.cell, self._experiment.threads, self._experiment.device
            )
        task.begun = None
        self._tasks[task.stream] = task

    def _advance(self, task: _Task) -> tuple[Cell, Outcome] | None:
        """Take the next step of a run; begin it anew if its node or process is lost."""
        errors = self._ray.exceptions
        try:
            step: Point | Outcome | str = self._ray.get(next(task.stream))
        except errors.RayTaskError as error:  # not the user's function, whose errors are outcomes
            reason = str(error).strip().splitlines()[-1]
            return self._end(
                task,
                Outcome(FAILED, error=f"the run could not begin on its node: {reason}", traceback=str(error)),
            )
        except (errors.RayError, StopIteration) as error:
            return self._lost(task, error)
        if isinstance(step, Outcome):
            return self._end(task, step)
        if isinstance(step, str):
            task.begun = time.monotonic()
        else:
            self._on_point(task.cell, step)
        return None

    def _lost(self, task: _Task, error: Exception) -> tuple[Cell, Outcome] | None:
        del self._tasks[task.stream]
        if task.lost < RESUBMISSIONS:
            task.lost += 1
            self._begin(task)
            return None
        status = OUT_OF_MEMORY if isinstance(error, self._ray.exceptions.OutOfMemoryError) else KILLED
        return task.cell, Outcome(
            status,
            machine=machine(),
            traceback=str(error),
            error=f"the run's process was lost {RESUBMISSIONS + 1} times ({type(error).__name__})",
        )

    def _overdue(self) -> list[tuple[Cell, Outcome]]:
        now = time.monotonic()
        late = [
            t for t in self._tasks.values() if (deadline := self._deadline(t)) is not None and deadline <= now
        ]
        for task in late:
            self._ray.cancel(task.stream, force=True)
        return [
            self._end(
                task,
                Outcome(
                    TIMED_OUT,
                    seconds=now - (task.begun or now),
                    machine=machine(),
                    error=f"stopped after {self._timeout:g} s, the limit that timeout= sets for a run",
                ),
            )
            for task in late
        ]

    def _deadline(self, task: _Task) -> float | None:
        return None if self._timeout is None or task.begun is None else task.begun + self._timeout

    def _end(self, task: _Task, outcome: Outcome) -> tuple[Cell, Outcome]:
        del self._tasks[task.stream]
        return task.cell, outcome


def _task(payload: bytes, cell: Cell, threads: int, device: str) -> Iterator[Point | Outcome | str]:
    """Make one run on a node."""
    yield STARTED
    yield from paced(steps(unpacked(payload), cell, threads=threads, device=device))


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise WorkingPapersError(
            "on='ray' needs Ray, which is not installed here: `pip install 'workingpapers[ray]'` brings it"
        ) from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = {} if address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = (
            f"the Ray cluster at {address!r} cannot be reached" if address else "Ray cannot be started here"
        )
        raise WorkingPapersError(f"{where}: {reason}") from None


def _print_messages(ray: Any, on: bool) -> None:
    """Switch what Ray prints of dying processes into our standard output, for which it has no public switch."""
    ray._private.worker._worker_logs_enabled = on


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's warnings on its own future away from users, who can do nothing about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
