"""The store of runs: one SQLite file, shared by all sessions, in which every cell is run once.

A session claims a cell before it runs it and beats its heart while it does; a cell whose session has died
can be claimed again.
"""

import json
import math
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import workingpapers
from workingpapers.experiments.cells import Cell, Experiment, Key, canonical
from workingpapers.experiments.database import open_database, saying, writing
from workingpapers.experiments.execution import FINAL, Outcome, Point
from workingpapers.experiments.leases import STALE_AFTER, gone

RUNNING = "running"
_LARGE = 1000  # characters from which a curve is stored compressed

_COLUMNS = (
    "experiment",
    "name",
    "code",
    "variant",
    "seed",
    "status",
    "metrics",
    "seconds",
    "peak_memory",
    "machine",
    "version",
    "started",
    "finished",
    "error",
    "traceback",
    "output",
    "curve",
)
_SELECT = (
    f"SELECT {', '.join('runs.' + c if c not in ('name', 'code') else c for c in _COLUMNS)} "
    "FROM runs JOIN experiments ON experiments.key = runs.experiment"
)
_CELL = "experiment = ? AND variant = ? AND seed = ?"


@dataclass(frozen=True)
class Run:
    """A stored run: what was run (name, code version, variant, seed), how it ended, and where and when.

    `status` is an outcome's or 'running'; `metrics` is None where there is no result; `seconds` the run's
    own time, `peak_memory` in bytes, `started` and `finished` in seconds since 1970, `version` the package's.
    """

    experiment: str
    name: str
    code: str
    variant: dict[str, Any]
    seed: int
    status: str
    metrics: dict[str, float] | None
    seconds: float | None
    peak_memory: int | None
    machine: str | None
    version: str | None
    started: float | None
    finished: float | None
    error: str | None
    traceback: str | None = field(repr=False)
    output: str | None = field(repr=False)
    key: Key = field(repr=False)
    packed_curve: str | bytes | None = field(repr=False)

    @cached_property
    def curve(self) -> list[Point]:
        """The points of the learning curve, none where the run gave a single result."""
        packed = self.packed_curve
        if packed is None:
            return []
        points: list[Point] = json.loads(zlib.decompress(packed) if isinstance(packed, bytes) else packed)
        return points


class Store:
    """The runs made so far, in the SQLite file at `path` (created where it is missing).

    Without a path it is the file that the variable WORKINGPAPERS_STORE names, else `runs.sqlite` in the
    user's data folder.  Safe for several processes and threads at once.

    Raises:
        WorkingPapersError: from every method, in one sentence, where the file is damaged, foreign, newer,
            locked, cannot be written, or the disk is full; what was stored before stays.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        self._lock = threading.RLock()
        self._database = open_database(self.path)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        with self._lock, saying(self.path):
            self._database.close()

    def claim(self, experiment: Experiment, cell: Cell, owner: str, since: float = math.inf) -> bool:
        """Mark `cell` as being run by `owner` and tell whether that was possible.

        It is where the cell is missing, its run ended before `since` (seconds since 1970) without a result,
        or the session that was running it is gone: its process ended, or its heart has not beaten for 60 s.
        """
        with self._writing() as database:
            database.execute(
                "INSERT OR IGNORE INTO experiments VALUES (?, ?, ?, ?, ?)",
                (experiment.key, experiment.name, experiment.code, canonical(experiment.spec), time.time()),
            )
            row = database.execute(
                f"SELECT status, owner, heartbeat, finished FROM runs WHERE {_CELL}",
                (experiment.key, *cell.key),
            ).fetchone()
            if row and not _claimable(row, since):
                return False
            now = time.time()
            database.execute(
                "INSERT OR REPLACE INTO runs (experiment, variant, seed, status, owner, heartbeat, "
                "started, version) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (experiment.key, *cell.key, RUNNING, owner, now, now, workingpapers.__version__),
            )
            return True

    def beat(self, owner: str) -> None:
        """Say that the session `owner` still lives."""
        with self._writing() as database:
            database.execute(
                "UPDATE runs SET heartbeat = ? WHERE owner = ? AND status = 'running'", (time.time(), owner)
            )

    def finish(self, experiment: Experiment, cell: Cell, owner: str, outcome: Outcome) -> bool:
        """Store the outcome of a claimed cell; False if the claim had been lost to another session meanwhile."""
        values = (
            outcome.status,
            time.time(),
            outcome.seconds,
            outcome.peak_memory,
            outcome.machine,
            outcome.error,
            None if outcome.metrics is None else json.dumps(outcome.metrics),
            outcome.traceback,
            outcome.output,
            _packed(outcome.curve),
        )
        with self._writing() as database:
            return (
                database.execute(
                    "UPDATE runs SET status = ?, finished = ?, seconds = ?, peak_memory = ?, machine = ?, "
                    f"error = ?, metrics = ?, traceback = ?, output = ?, curve = ? WHERE {_CELL} "
                    "AND owner = ? AND status = 'running'",
                    (*values, experiment.key, *cell.key, owner),
                ).rowcount
                == 1
            )

    def release(self, owner: str) -> None:
        """Give up all cells that `owner` claimed and did not finish, so that others may run them at once."""
        with self._writing() as database:
            database.execute("DELETE FROM runs WHERE owner = ? AND status = 'running'", (owner,))

    def find(self, experiment: Experiment, cell: Cell) -> Run | None:
        """Return the stored run of `cell`, in whatever state, or None."""
        found = self._select("WHERE runs." + _CELL, (experiment.key, *cell.key))
        return found[0] if found else None

    def runs(self, experiment: Experiment | str | None = None, name: str | None = None) -> list[Run]:
        """Return the stored runs, oldest first: of an experiment (or its key), of all of one name, or all."""
        conditions: dict[str, str] = {}
        if experiment is not None:
            conditions["runs.experiment"] = (
                experiment.key if isinstance(experiment, Experiment) else experiment
            )
        if name is not None:
            conditions["experiments.name"] = name
        where = "WHERE " + " AND ".join(f"{column} = ?" for column in conditions) if conditions else ""
        return self._select(f"{where} ORDER BY runs.rowid", tuple(conditions.values()))

    def _select(self, clause: str, values: tuple[Any, ...]) -> list[Run]:
        with self._lock, saying(self.path):
            return [_run(row) for row in self._database.execute(f"{_SELECT} {clause}", values)]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, saying(self.path), writing(self._database) as database:
            yield database


def default_path() -> Path:
    """Return where the store is unless told otherwise: WORKINGPAPERS_STORE, else the user's data folder."""
    if named := os.environ.get("WORKINGPAPERS_STORE"):
        return Path(named)
    from platformdirs import user_data_dir

    return Path(user_data_dir("workingpapers", appauthor=False)) / "runs.sqlite"


def _claimable(row: tuple[str, str, float, float | None], since: float) -> bool:
    status, owner, heartbeat, finished = row
    if status == RUNNING:
        return time.time() - heartbeat > STALE_AFTER or gone(owner)
    return status not in FINAL and (finished or 0.0) < since


def _packed(curve: list[Point]) -> str | bytes | None:
    if not curve:
        return None
    text = json.dumps(curve)
    return zlib.compress(text.encode()) if len(text) > _LARGE else text


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip(_COLUMNS, row, strict=True))
    variant, metrics, curve = values.pop("variant"), values.pop("metrics"), values.pop("curve")
    return Run(
        **values,
        variant=json.loads(variant),
        metrics=json.loads(metrics) if metrics else None,
        key=(variant, values["seed"]),
        packed_curve=curve,
    )
