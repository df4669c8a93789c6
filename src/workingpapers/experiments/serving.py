"""The inside of a worker process: it makes one run at a time, and ends when its driver does."""

import faulthandler
import gc
import io
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from workingpapers.experiments.execution import FINAL, Outcome, paced, steps
from workingpapers.experiments.shipping import unpacked

STARTED = "started"
KEPT_OUTPUT = 4096  # bytes of a run's output that are kept
_MOST_OUTPUT = 2**20  # bytes at which the file is cut back while a run goes on
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def serve(
    work: Connection,
    lifeline: Connection,
    output: str,
    payload: bytes,
    threads: int,
    device: str,
    environment: dict[str, str],
    start_method: str,
) -> None:
    """Make the runs that come in by `work`, and send back 'started', points, and an outcome for each.

    What runs print goes to the file `output`; `environment` is set before anything heavy is imported.
    `start_method` is how the run's own processes are to begin (those of a DataLoader), as in the driver.
    """
    _leave_the_terminal()
    multiprocessing.set_start_method(
        start_method, force=True
    )  # it is 'spawn', the way this process came about
    os.environ.update(environment, **dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    printed = _Output(output)
    threading.Thread(target=_end_with_driver, args=(lifeline, printed), daemon=True).start()
    run = unpacked(payload)
    while True:
        try:
            cell = work.recv()
        except EOFError:
            return
        printed.clear()
        work.send(STARTED)
        own = os.getpid()
        for step in paced(steps(run, cell, threads=threads, device=device)):
            if os.getpid() != own:  # the run forked and the child came back here: one process answers
                os._exit(0)
            work.send(printed.kept_with(step) if isinstance(step, Outcome) else step)
        gc.collect()  # or the next run's memory would be measured with this one's leftovers
        gc.freeze()  # modules that stay; without this the next collection goes through all of torch again


class _Output:
    """The file that takes the place of a worker's standard output and standard error."""

    def __init__(self, path: str) -> None:
        self.path = path
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        sys.stdout, sys.stderr = _by_line(1), _by_line(2)
        faulthandler.enable()  # the place of a crash in compiled code is printed here too

    def clear(self) -> None:
        os.truncate(self.path, 0)

    def limit(self) -> None:
        if os.stat(self.path).st_size > _MOST_OUTPUT:
            end = tail(self.path)
            self.clear()
            os.write(1, end.encode())

    def kept_with(self, outcome: Outcome) -> Outcome:
        """Return `outcome` with the end of the output if the run has no result."""
        sys.stdout.flush()
        sys.stderr.flush()
        if outcome.status in FINAL:
            return outcome
        changes: dict[str, Any] = {**vars(outcome), "output": tail(self.path) or None}
        return Outcome(**changes)


def _by_line(descriptor: int) -> io.TextIOWrapper:
    """Return a text stream that writes every line at once: what it kept would die with a killed process."""
    raw = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="replace", line_buffering=True)


def tail(path: str) -> str:
    """Return the end of the file at `path`, empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - KEPT_OUTPUT))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _leave_the_terminal() -> None:
    """Take a process group of its own, which Ctrl-C does not reach and which can be ended as a whole."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setsid"):
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with_driver(lifeline: Connection, printed: _Output) -> None:
    """End this process once the driver's end of `lifeline` is closed, even in the midst of a run."""
    while not lifeline.poll(1.0):
        printed.limit()
    shutil.rmtree(Path(printed.path).parent, ignore_errors=True)
    if hasattr(os, "killpg"):
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
