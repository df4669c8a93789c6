"""The pool that makes runs in worker processes of this machine."""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Any

from workingpapers.experiments.cells import Cell, Experiment
from workingpapers.experiments.execution import KILLED, TIMED_OUT, Outcome, machine
from workingpapers.experiments.pools import OnPoint, visible_gpus
from workingpapers.experiments.serving import STARTED, serve, tail
from workingpapers.experiments.shipping import ship

_LOOK_EVERY = 5.0  # seconds after which a silent worker is looked at: its children may hold its pipe open
_starting = threading.Lock()


class LocalPool:
    """Makes runs in `workers` processes that stay from run to run; one that dies takes only its own run along."""

    def __init__(
        self, experiment: Experiment, on_point: OnPoint, workers: int, timeout: float | None = None
    ) -> None:
        self._experiment, self._on_point = experiment, on_point
        self._size, self._timeout = workers, timeout
        self._payload = ship(experiment.run)
        self._workers: list[_Worker] = []
        self._folder = tempfile.TemporaryDirectory(prefix="workingpapers-", ignore_cleanup_errors=True)
        self._made = 0

    @property
    def free(self) -> int:
        """How many workers are idle or not started yet."""
        return self._size - sum(w.cell is not None for w in self._workers)

    def submit(self, cell: Cell) -> None:
        """Give `cell` to an idle worker, starting one if there is none."""
        for worker in [w for w in self._workers if w.cell is None]:
            if worker.give(cell):
                return
            self._bury(worker)  # it died while idle
        self._start().give(cell)

    def wait(self, timeout: float | None = None) -> list[tuple[Cell, Outcome]]:
        """Return the runs that ended, waiting for the first of them, at most `timeout` seconds."""
        limit = None if timeout is None else time.monotonic() + timeout
        while True:
            busy = [w for w in self._workers if w.cell is not None]
            moments = [m for m in (limit, *(w.deadline for w in busy)) if m is not None]
            pause = min([_LOOK_EVERY, *(m - time.monotonic() for m in moments)])
            if not busy:
                time.sleep(max(0.0, pause) if limit else 0.0)
                return []
            ready = set(wait([x for w in busy for x in (w.work, w.process.sentinel)], max(0.0, pause)))
            ended = [
                end for w in busy if (end := self._look_at(w, bool(ready & {w.work, w.process.sentinel})))
            ]
            if ended or (limit is not None and time.monotonic() >= limit):
                return ended

    def close(self) -> None:
        """Kill the workers and what they started."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.bury()
        self._workers.clear()
        self._folder.cleanup()

    def _start(self) -> "_Worker":
        output = str(Path(self._folder.name) / f"output-{self._made}")
        worker = _Worker(self._experiment, self._payload, output, self._environment())
        self._made += 1
        self._workers.append(worker)
        return worker

    def _environment(self) -> dict[str, str]:
        """Share the GPUs out among the workers, where the experiment leaves open which."""
        if self._experiment.device != "cuda":
            return {}
        gpus = visible_gpus()
        taken = [w.environment.get("CUDA_VISIBLE_DEVICES") for w in self._workers]
        return {"CUDA_VISIBLE_DEVICES": min(gpus, key=taken.count)} if gpus else {}

    def _look_at(self, worker: "_Worker", speaks: bool) -> tuple[Cell, Outcome] | None:
        """Return how the worker's run ended, if it did; pass on its points."""
        cell = worker.cell
        assert cell is not None
        try:
            while speaks and worker.work.poll():
                message = worker.work.recv()
                if isinstance(message, Outcome):
                    worker.cell, worker.deadline, worker.served = None, None, True
                    return cell, message
                if message == STARTED:
                    worker.begun = time.monotonic()
                    worker.deadline = None if self._timeout is None else worker.begun + self._timeout
                else:
                    self._on_point(cell, message)
        except (EOFError, OSError):
            return self._lost(worker, cell)
        if not worker.process.is_alive():
            return self._lost(worker, cell)
        if worker.deadline is not None and time.monotonic() >= worker.deadline:
            worker.kill()
            self._bury(worker)
            return cell, Outcome(
                TIMED_OUT,
                seconds=worker.seconds,
                machine=machine(),
                output=worker.printed,
                error=f"stopped after {self._timeout:g} s, the limit that timeout= sets for a run",
            )
        return None

    def _lost(self, worker: "_Worker", cell: Cell) -> tuple[Cell, Outcome] | None:
        seconds = worker.seconds
        self._bury(worker)
        if worker.served and worker.begun is None:  # it died between two runs, so this one is not to blame
            self._start().give(cell)
            return None
        return cell, Outcome(
            KILLED,
            seconds=seconds,
            machine=machine(),
            output=worker.printed,
            error=cause_of_death(worker.exitcode),
        )

    def _bury(self, worker: "_Worker") -> None:
        worker.bury()
        self._workers.remove(worker)


class _Worker:
    """The driver's side of a worker process."""

    def __init__(
        self, experiment: Experiment, payload: bytes, output: str, environment: dict[str, str]
    ) -> None:
        self.cell: Cell | None = None
        self.deadline: float | None = None
        self.begun: float | None = None
        self.served = False
        self.exitcode: int | None = None
        self.printed: str | None = None
        self.environment, self._output = environment, output
        context = multiprocessing.get_context("spawn")
        self.work, work = context.Pipe()
        lifeline, self._lifeline = context.Pipe(duplex=False)
        self.process = context.Process(
            target=serve,
            name="workingpapers-worker",
            args=(
                work,
                lifeline,
                output,
                payload,
                experiment.threads,
                experiment.device,
                environment,
                multiprocessing.get_start_method(allow_none=True)
                or multiprocessing.get_all_start_methods()[0],
            ),
        )
        with _starting, _another_main(), _fixed_hashes(), _interrupts_held():
            self.process.start()
        work.close()  # the worker's ends: only while it lives may they be open, or its death would not show
        lifeline.close()

    @property
    def seconds(self) -> float:
        """How long the present run has lasted."""
        return 0.0 if self.begun is None else time.monotonic() - self.begun

    def give(self, cell: Cell) -> bool:
        """Send `cell` to the worker and tell whether it was there to take it."""
        try:
            self.work.send(cell)
        except OSError:
            return False
        self.cell, self.begun = cell, None
        return True

    def kill(self) -> None:
        """End the process and all that it started."""
        pid = self.process.pid
        if pid is not None and hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has no group of its own yet
                os.killpg(pid, signal.SIGKILL)
        self.process.kill()

    def bury(self) -> None:
        """Take note of how the process ended, and free what it held."""
        self.process.join(1.0)
        if self.process.is_alive():  # it closed its pipe, but goes on
            self.kill()
            self.process.join()
        self.exitcode = self.process.exitcode
        self.printed = tail(self._output) or None
        self.process.close()
        self.work.close()
        self._lifeline.close()


def cause_of_death(exitcode: int | None) -> str:
    """Say why a worker process ended."""
    if exitcode is None or exitcode >= 0:
        return f"the run's process ended by itself with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = "unknown"
    hint = "; the system does so when memory runs out" if name == "SIGKILL" else ""
    return f"the run's process was killed by signal {-exitcode} ({name}){hint}"


@contextlib.contextmanager
def _another_main() -> Iterator[None]:
    """Hide the user's script from a process that is being started: 'spawn' would run it again there."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _fixed_hashes() -> Iterator[None]:
    """Give sets of texts one order in all workers, unless the user chose it: a vocabulary may come from one."""
    before = os.environ.setdefault("PYTHONHASHSEED", "")
    os.environ["PYTHONHASHSEED"] = before or "0"
    try:
        yield
    finally:
        os.environ["PYTHONHASHSEED"] = before
        if not before:
            del os.environ["PYTHONHASHSEED"]


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while a process starts, for this process and, until it is set up, for the new one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before: Any = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
