"""The engine: runs the cells of an experiment that have no result yet, and returns all results."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments.cells import Cell, Experiment, Key
from workingpapers.experiments.execution import FINAL, Outcome, Point
from workingpapers.experiments.leases import BEAT_EVERY, new_owner
from workingpapers.experiments.pools import InlinePool, OnPoint, Pool, default_workers
from workingpapers.experiments.store import RUNNING, Run, Store
from workingpapers.experiments.workers import LocalPool

_LOOK_EVERY = (
    0.25  # seconds between looks at cells that another session is running, when there is nothing to do
)


@dataclass(frozen=True)
class Event:
    """Something to show: a run 'started', gave a 'point' of its curve, or 'finished' (`run` is its result).

    `fresh` is False for a result that was there already or came from another session; of `total` cells
    `finished` are through.
    """

    kind: str
    cell: Cell
    finished: int
    total: int
    point: Point | None = None
    run: Run | None = None
    fresh: bool = True


Progress = Callable[[Event], None]


def run_experiment(
    experiment: Experiment,
    *,
    store: Store,
    workers: int | None = None,
    on: str = "local",
    timeout: float | None = None,
    progress: Progress | None = None,
) -> list[Run]:
    """Run the cells of `experiment` that `store` has no result for, and return all, in the order of the cells.

    Done and diverged runs are never run again; the others are, once in every session.  The seeds go one
    after the other, each through all variants, so that a part of the runs is a part of the pairs.  Several
    sessions on one store share the cells.  The numbers do not depend on `workers` (default: cores //
    threads; 0: in this process) nor on `on` ('local', 'ray', 'ray=ADDRESS').  A run longer than `timeout`
    seconds is stopped.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after the runs under way were given up; finished ones are stored.
        WorkingPapersError: for bad arguments, a function that cannot be sent, or a store that cannot be written.
    """
    _check(workers, timeout)
    session = _Session(experiment, store, progress)
    missing = session.recall()
    if missing:
        pool = _pool(experiment, workers, on, timeout, len(missing), session.point)
        with session.alive(), contextlib.closing(pool):  # no cell is given up before its run has ended
            session.run(missing, pool)
    return session.results()


class _Session:
    """One call of the engine: what it waits for and what it has."""

    def __init__(self, experiment: Experiment, store: Store, progress: Progress | None) -> None:
        self.experiment, self.store, self.progress = experiment, store, progress
        self.cells = list(dict.fromkeys(experiment.cells))
        self.owner, self.since = new_owner(), time.time()
        self.found: dict[Key, Run] = {}

    def recall(self) -> list[Cell]:
        """Take the results that are there, and return the other cells, seed by seed."""
        stored = {run.key: run for run in self.store.runs(self.experiment) if run.status in FINAL}
        missing = []
        for cell in self.cells:
            if cell.key in stored:
                self._keep(cell, stored[cell.key], fresh=False)
            else:
                missing.append(cell)
        rank = {seed: index for index, seed in enumerate(dict.fromkeys(cell.seed for cell in self.cells))}
        return sorted(missing, key=lambda cell: rank[cell.seed])

    def run(self, missing: list[Cell], pool: Pool) -> None:
        """Run what nobody else does, and wait for what others run."""
        waiting, elsewhere, busy = deque(missing), list[Cell](), 0
        while waiting or elsewhere or busy:
            while waiting and pool.free:
                cell = waiting.popleft()
                if self.store.claim(self.experiment, cell, self.owner, self.since):
                    self._tell("started", cell)
                    pool.submit(cell)
                    busy += 1
                elif not self._collect(cell):
                    elsewhere.append(cell)
            if not (busy or elsewhere):
                continue
            for cell, outcome in pool.wait(_LOOK_EVERY if elsewhere and pool.free else None):
                busy -= 1
                if not self._finish(cell, outcome):
                    elsewhere.append(cell)
            waiting.extend(elsewhere)
            elsewhere.clear()

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Beat the heart as long as the session runs, then give up what it had claimed and not finished."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_EVERY):
                with contextlib.suppress(
                    WorkingPapersError
                ):  # the next result's write meets it too and says so
                    self.store.beat(self.owner)

        heart = threading.Thread(target=beat, name="workingpapers-heart", daemon=True)
        heart.start()
        try:
            yield
        finally:
            over.set()
            with contextlib.suppress(WorkingPapersError):  # others see from the ended process that it is free
                self.store.release(self.owner)

    def results(self) -> list[Run]:
        """Return the runs in the order of the experiment's cells."""
        return [self.found[cell.key] for cell in self.cells]

    def point(self, cell: Cell, point: Point) -> None:
        """Show a point of a learning curve."""
        self._tell("point", cell, point=point)

    def _finish(self, cell: Cell, outcome: Outcome) -> bool:
        """Store an outcome; False if another session took the cell over, having thought this one dead."""
        if not self.store.finish(self.experiment, cell, self.owner, outcome):
            return False
        run = self.store.find(self.experiment, cell)
        assert run is not None
        self._keep(cell, run, fresh=True)
        return True

    def _collect(self, cell: Cell) -> bool:
        """Take the result of another session, if there is one by now."""
        run = self.store.find(self.experiment, cell)
        if run is None or run.status == RUNNING:
            return False
        self._keep(cell, run, fresh=False)
        return True

    def _keep(self, cell: Cell, run: Run, fresh: bool) -> None:
        self.found[cell.key] = run
        self._tell("finished", cell, run=run, fresh=fresh)

    def _tell(
        self, kind: str, cell: Cell, *, point: Point | None = None, run: Run | None = None, fresh: bool = True
    ) -> None:
        if self.progress:
            self.progress(Event(kind, cell, len(self.found), len(self.cells), point, run, fresh))


def _check(workers: int | None, timeout: float | None) -> None:
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise WorkingPapersError(
            f"workers= takes a whole number from 0 (0: in this process); got {workers!r}"
        )
    if timeout is not None and (not isinstance(timeout, int | float) or not timeout > 0):
        raise WorkingPapersError(f"timeout= takes seconds above 0; got {timeout!r}")
    if timeout is not None and workers == 0:
        raise WorkingPapersError("timeout= needs worker processes, which can be stopped; workers=0 has none")


def _pool(
    experiment: Experiment, workers: int | None, on: str, timeout: float | None, cells: int, on_point: OnPoint
) -> Pool:
    if on == "local" and workers == 0:
        return InlinePool(experiment, on_point)
    if on == "local":
        chosen = default_workers(experiment) if workers is None else workers
        return LocalPool(experiment, on_point, min(chosen, cells), timeout)
    if on == "ray" or on.startswith("ray="):
        from workingpapers.experiments.cluster import RayPool

        return RayPool(experiment, on_point, on.partition("=")[2] or None, workers or None, timeout)
    raise unknown("place to run (on=)", on, ("local", "ray", "ray=ADDRESS"))
