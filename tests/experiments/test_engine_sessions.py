"""Sessions of the engine: interrupted, killed, side by side, out of disk; nothing is run twice."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workingpapers.experiments import engine
from workingpapers.experiments.cells import Cell, Experiment
from workingpapers.experiments.engine import Event, run_experiment
from workingpapers.experiments.execution import (
    DONE,
    FAILED,
    Outcome,
)
from workingpapers.experiments.leases import new_owner
from workingpapers.experiments.store import RUNNING, Run, Store

DRIVER = """
import os, signal, sys, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children inherit that it is ignored
from workingpapers.experiments.cells import Cell, Experiment, code_version
from workingpapers.experiments.engine import run_experiment
from workingpapers.experiments.store import Store

path, log, seeds = sys.argv[1], sys.argv[2], int(sys.argv[3])

def run(a, seed):
    with open(log, "a") as file:
        file.write(f"{a} {seed}\\n")
    time.sleep(float(os.environ["SECONDS"]) if seed else 0)
    return a + seed

cells = [Cell({"a": a}, seed) for a in (10, 20) for seed in range(seeds)]
store = Store(path)
try:
    runs = run_experiment(Experiment("driven", run, code_version(run), cells), store=store, workers=2)
except KeyboardInterrupt:
    print("interrupted", *sorted({r.status for r in store.runs()}))
    sys.exit(130)
print(*(f"{r.status}:{r.metrics['value']:.0f}" for r in runs))
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "runs.sqlite") as opened:
        yield opened


def grid(count: int, *values: Any) -> list[Cell]:
    return [Cell({"a": value}, seed) for value in values for seed in range(count)]


def carried_out(store: Store, run: Callable[..., Any], cells: list[Cell], **options: Any) -> list[Run]:
    """Run a function that is told by its name, in this process unless `workers` says otherwise."""
    experiment = Experiment("test", run, "one version", cells)
    return run_experiment(experiment, store=store, **{"workers": 0, **options})


class Driver:
    """Runs DRIVER as a process of its own on the store and the log of executions of one test."""

    def __init__(self, folder: Path) -> None:
        self.script, self.path, self.log = folder / "driver.py", folder / "driven.sqlite", folder / "log"
        self.script.write_text(DRIVER)
        self.log.touch()

    def start(self, seconds: float = 0.0, seeds: int = 3) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(self.script), str(self.path), str(self.log), str(seeds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "SECONDS": str(seconds)},
        )

    def executions(self) -> Counter[str]:
        return Counter(self.log.read_text().splitlines())

    def stored(self) -> Counter[str]:
        database = sqlite3.connect(self.path)
        found = Counter(status for (status,) in database.execute("SELECT status FROM runs"))
        database.close()
        return found

    def when(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not (self.path.exists() and self.log.read_text() and condition()):
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path)


ALL = "done:10 done:11 done:12 done:20 done:21 done:22"
CELLS = {f"{a} {seed}" for a in (10, 20) for seed in range(3)}


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    output, error = process.communicate(timeout=50)
    return process.returncode, output.strip(), error


class TestInterruptions:
    def hanging(self, driver: Driver) -> "subprocess.Popen[str]":
        """Start a driver whose runs of the first seed are done, and whose two of the second hang."""
        process = driver.start(seconds=100)
        driver.when(lambda: driver.executions().total() == 4 and driver.stored() == {DONE: 2, RUNNING: 2})
        return process

    def test_ctrl_c_keeps_the_finished_and_gives_up_the_rest(self, driver: Driver) -> None:
        """SIGINT goes to the driver's whole process group, as the terminal's Ctrl-C does."""
        process = self.hanging(driver)
        os.killpg(process.pid, signal.SIGINT)
        assert ended(process) == (130, "interrupted done", "")
        assert driver.stored() == {DONE: 2}
        before = driver.executions()
        assert ended(driver.start()) == (0, ALL, "")
        after = driver.executions()
        assert after - before == Counter(CELLS - {"10 0", "20 0"})
        assert ended(driver.start()) == (0, ALL, "")
        assert driver.executions() == after

    def test_a_killed_driver_is_taken_over_at_once(self, driver: Driver) -> None:
        """At once: `ended` does not wait for the 60 s after which a silent session counts as gone."""
        process = self.hanging(driver)
        process.kill()
        process.communicate()
        assert driver.stored() == {DONE: 2, RUNNING: 2}
        before = driver.executions()
        assert ended(driver.start()) == (0, ALL, "")
        assert driver.executions() - before == Counter(CELLS - {"10 0", "20 0"})

    def test_two_drivers_share_the_cells(self, driver: Driver) -> None:
        both = [driver.start(seconds=0.2, seeds=6) for _ in range(2)]
        results = [ended(process) for process in both]
        expected = " ".join(f"done:{a + seed}" for a in (10, 20) for seed in range(6))
        assert results == [(0, expected, "")] * 2
        assert set(driver.executions().values()) == {1}
        assert driver.executions().total() == 12

    def test_a_driver_takes_over_from_one_that_is_killed_beside_it(self, driver: Driver) -> None:
        """It runs what is left, waits for what the first is running, and runs that when the first is gone."""
        first = self.hanging(driver)
        second = driver.start()
        driver.when(lambda: driver.stored() == {DONE: 4, RUNNING: 2})
        assert driver.executions() == Counter(CELLS)
        first.kill()
        first.communicate()
        assert ended(second) == (0, ALL, "")
        assert driver.executions() == Counter(
            {"10 1": 2, "20 1": 2, **dict.fromkeys(CELLS - {"10 1", "20 1"}, 1)}
        )

    def test_an_interrupt_in_this_process_leaves_a_clean_store(self, store: Store) -> None:
        def run(a: int, seed: int) -> int:
            if (a, seed) == (2, 1):
                raise KeyboardInterrupt
            return a

        with pytest.raises(KeyboardInterrupt):
            carried_out(store, run, grid(3, 1, 2))
        assert [(r.variant["a"], r.seed, r.status) for r in store.runs()] == [
            (1, 0, DONE),
            (2, 0, DONE),
            (1, 1, DONE),
        ]

    def test_an_error_of_the_callers_progress_ends_the_session(self, store: Store) -> None:
        def progress(event: Event) -> None:
            if event.kind == "finished":
                raise RuntimeError("table")

        with pytest.raises(RuntimeError, match="table"):
            carried_out(store, lambda a, seed: 1, grid(2, 1), workers=1, progress=progress)
        assert [r.status for r in store.runs()] == [DONE]


class TestSharing:
    def test_a_session_waits_for_what_another_runs(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another living session holds one cell and finishes it while this one waits."""
        monkeypatch.setattr(engine, "_LOOK_EVERY", 0.01)
        other, cells = new_owner(), grid(1, 1, 2)
        experiment = Experiment("test", lambda a, seed: a, "one version", cells)
        assert store.claim(experiment, cells[0], other)
        looks: list[Cell] = []
        collect = engine._Session._collect

        def look(session: Any, cell: Cell) -> bool:
            looks.append(cell)
            if len(looks) == 3:
                store.finish(experiment, cell, other, Outcome(DONE, {"value": 77.0}))
            return collect(session, cell)

        monkeypatch.setattr(engine._Session, "_collect", look)
        runs = run_experiment(experiment, store=store, workers=0)
        assert [r.metrics for r in runs] == [{"value": 77.0}, {"value": 2.0}]
        assert looks == [cells[0]] * 3

    def test_what_another_session_fails_meanwhile_is_not_tried_again(self, store: Store) -> None:
        """Sessions that run side by side see a failure once; only a later session tries again."""
        cells, calls = grid(1, 1, 2), list[int]()

        def run(a: int, seed: int) -> int:
            calls.append(a)
            if a == 1:  # while this runs, another session takes the second cell and fails
                other = new_owner()
                assert store.claim(experiment, cells[1], other)
                store.finish(experiment, cells[1], other, Outcome(FAILED, error="theirs"))
            return a

        experiment = Experiment("test", run, "one version", cells)
        runs = run_experiment(experiment, store=store, workers=0)
        assert [(r.status, r.error) for r in runs] == [(DONE, None), (FAILED, "theirs")]
        assert calls == [1]
        assert [
            r.status
            for r in run_experiment(
                Experiment("test", lambda a, seed: a, "one version", cells), store=store, workers=0
            )
        ] == [DONE, DONE]

    def test_the_heart_beats_during_a_run(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "BEAT_EVERY", 0.02)
        beats: list[str] = []
        monkeypatch.setattr(Store, "beat", lambda self, owner: beats.append(owner))

        def run(a: int, seed: int) -> int:
            time.sleep(0.3)
            return a

        carried_out(store, run, grid(1, 1))
        assert len(beats) >= 3
        assert len(set(beats)) == 1

    def test_a_full_disk_ends_the_session_in_a_sentence(self, tmp_path: Path) -> None:
        script = tmp_path / "full.py"
        script.write_text(
            textwrap.dedent("""
            import random, resource, sys
            from workingpapers.errors import WorkingPapersError
            from workingpapers.experiments.cells import Cell, Experiment
            from workingpapers.experiments.engine import run_experiment
            from workingpapers.experiments.store import Store
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
            def run(seed):
                return ({"x": random.random()} for _ in range(2000))
            cells = [Cell({}, seed) for seed in range(40)]
            store = Store(sys.argv[1])
            try:
                print(len(run_experiment(Experiment("full", run, "c", cells), store=store, workers=1)))
            except WorkingPapersError as error:
                print(error)
                sys.exit(2)
        """)
        )
        path = tmp_path / "runs.sqlite"

        def attempt(limit: int) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                [sys.executable, str(script), str(path), str(limit)],
                capture_output=True,
                text=True,
                check=False,
            )

        first = attempt(300_000)
        assert (first.returncode, first.stderr) == (2, "")
        assert "disk may be full" in first.stdout
        assert first.stdout.count("\n") == 1
        with Store(path) as store:
            kept = {r.seed: r.curve for r in store.runs() if r.status == DONE}
        assert 3 < len(kept) < 40
        second = attempt(-1)
        assert (second.returncode, second.stdout, second.stderr) == (0, "40\n", "")
        with Store(path) as store:
            assert {r.seed: r.curve for r in store.runs() if r.seed in kept} == kept
