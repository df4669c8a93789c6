"""The store: claims, contents, and several processes at once."""

import math
import random
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workingpapers.experiments.cells import Cell, Experiment
from workingpapers.experiments.execution import (
    DIVERGED,
    DONE,
    FAILED,
    KILLED,
    OUT_OF_MEMORY,
    TIMED_OUT,
    Outcome,
)
from workingpapers.experiments.leases import gone, new_owner
from workingpapers.experiments.store import RUNNING, Store, default_path

CELL = Cell({"lr": 0.1, "name": "größe"}, 7)
OUTCOME = Outcome(DONE, {"loss": 0.25}, [{"loss": 1.0}, {"loss": 0.25}], 1.5, 4096, "here")


def experiment(name: str = "e") -> Experiment:
    return Experiment(name, len, "code", [CELL])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "runs.sqlite") as opened:
        yield opened


def python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def put(store: Store, cell: Cell = CELL, outcome: Outcome = OUTCOME, name: str = "e") -> None:
    owner = new_owner()
    assert store.claim(experiment(name), cell, owner)
    assert store.finish(experiment(name), cell, owner, outcome)


class TestClaims:
    def test_a_cell_is_claimed_once_and_its_result_is_kept(self, store: Store) -> None:
        one, two = new_owner(), new_owner()
        before = time.time()
        assert store.claim(experiment(), CELL, one)
        assert not store.claim(experiment(), CELL, two)
        assert not store.claim(experiment(), CELL, one)
        [running] = store.runs()
        assert (running.status, running.metrics, running.curve) == (RUNNING, None, [])
        assert store.finish(experiment(), CELL, one, OUTCOME)
        assert not store.claim(experiment(), CELL, two)
        run = store.find(experiment(), CELL)
        assert run is not None
        assert (run.name, run.code, run.experiment) == ("e", "code", experiment().key)
        assert (run.variant, run.seed, run.key) == (CELL.variant, 7, CELL.key)
        assert (
            Outcome(
                run.status,
                run.metrics,
                run.curve,
                run.seconds or 0,
                run.peak_memory,
                run.machine or "",
                run.error,
                run.traceback,
                run.output,
            )
            == OUTCOME
        )
        assert before <= (run.started or 0) <= (run.finished or 0) <= time.time()

    def test_other_experiments_and_cells_do_not_mix(self, store: Store) -> None:
        cells = [CELL, Cell({"lr": 0.1}, 7), Cell(CELL.variant, 8)]
        for name in ("a", "b"):
            for index, cell in enumerate(cells):
                put(store, cell, Outcome(DONE, {"x": index}), name)
        expected = [(cell.key, {"x": index}) for index, cell in enumerate(cells)]
        assert [(r.key, r.metrics) for r in store.runs(name="a")] == expected
        assert [r.name for r in store.runs(experiment("b"))] == ["b"] * 3
        assert len(store.runs()) == 6
        assert store.runs(experiment("c")) == store.runs(experiment("b").key, name="a") == []

    @pytest.mark.parametrize(
        ("status", "again"),
        [
            (DONE, False),
            (DIVERGED, False),
            (FAILED, True),
            (KILLED, True),
            (OUT_OF_MEMORY, True),
            (TIMED_OUT, True),
        ],
    )
    def test_runs_without_a_result_are_tried_again_in_a_later_session(
        self, store: Store, status: str, again: bool
    ) -> None:
        beginning = time.time()
        put(store, outcome=Outcome(status, error="E"))
        assert not store.claim(experiment(), CELL, new_owner(), since=beginning)
        assert store.claim(experiment(), CELL, new_owner(), since=time.time() + 1) is again

    def test_what_a_session_gives_up_is_free_at_once(self, store: Store) -> None:
        one, two = new_owner(), new_owner()
        other = Cell({}, 1)
        store.claim(experiment(), CELL, one)
        store.claim(experiment(), other, two)
        store.release(one)
        assert store.find(experiment(), CELL) is None
        assert store.claim(experiment(), CELL, two)
        store.release(one)
        assert {r.status for r in store.runs()} == {RUNNING}
        assert len(store.runs()) == 2

    def test_the_claim_of_an_ended_process_is_free(self, store: Store) -> None:
        owner = python(
            "from workingpapers.experiments.leases import new_owner; print(new_owner())"
        ).stdout.strip()
        assert gone(owner)
        assert store.claim(experiment(), CELL, owner)
        mine = new_owner()
        assert not gone(mine)
        assert store.claim(experiment(), CELL, mine)
        assert not store.finish(experiment(), CELL, owner, OUTCOME)
        assert [r.status for r in store.runs()] == [RUNNING]

    def test_the_same_process_id_later_is_another_process(self) -> None:
        host, pid, _, name = new_owner().split("|")
        assert gone(f"{host}|{pid}|12345|{name}")
        assert not gone(f"elsewhere|{pid}|12345|{name}")

    def test_a_heart_that_stopped_frees_the_claim_of_another_host(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        away, now = "elsewhere|1|1|x", time.time()
        store.claim(experiment(), CELL, away)
        monkeypatch.setattr(time, "time", lambda: now + 50)
        assert not store.claim(experiment(), CELL, new_owner())
        store.beat(away)
        monkeypatch.setattr(time, "time", lambda: now + 100)
        assert not store.claim(experiment(), CELL, new_owner())
        monkeypatch.setattr(time, "time", lambda: now + 120)
        assert store.claim(experiment(), CELL, new_owner())


class TestContent:
    def test_numbers_that_are_not_finite_and_long_curves_come_back(self, store: Store) -> None:
        curve = [{"loss": random.random(), "step": float(i)} for i in range(2000)]
        put(store, outcome=Outcome(DIVERGED, {"a": math.nan, "b": math.inf, "c": -math.inf}, curve))
        [run] = store.runs()
        assert run.metrics == pytest.approx({"a": math.nan, "b": math.inf, "c": -math.inf}, nan_ok=True)
        assert run.curve == curve

    def test_ten_thousand_runs_are_listed_as_they_were_stored(self, store: Store) -> None:
        owner = new_owner()
        one = experiment()
        cells = [
            Cell({"lr": lr, "act": act}, seed) for seed in range(1000) for lr in (0.1, 0.2) for act in "abcde"
        ]
        for number, cell in enumerate(cells):
            store.claim(one, cell, owner)
            store.finish(one, cell, owner, Outcome(DONE, {"n": number}, [{"n": float(number)}] * 3))
        runs = store.runs(name="e")
        assert [r.key for r in runs] == [c.key for c in cells]
        assert [(r.variant, r.metrics, len(r.curve)) for r in runs] == [
            (c.variant, {"n": n}, 3) for n, c in enumerate(cells)
        ]

    def test_the_path_is_the_variables_or_the_users_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORKINGPAPERS_STORE", "/some/where.sqlite")
        assert default_path() == Path("/some/where.sqlite")
        monkeypatch.delenv("WORKINGPAPERS_STORE")
        assert default_path().parts[-2:] == ("workingpapers", "runs.sqlite")


def test_processes_that_write_at_once_share_the_cells(tmp_path: Path) -> None:
    """Four processes open a store that is not there yet and go through the same cells."""
    code = """
        import sys, time
        from workingpapers.experiments.cells import Cell, Experiment
        from workingpapers.experiments.execution import Outcome
        from workingpapers.experiments.leases import new_owner
        from workingpapers.experiments.store import Store
        while time.time() < float(sys.argv[2]): pass
        store, owner, experiment = Store(sys.argv[1]), new_owner(), Experiment("e", len, "c", [])
        for seed in range(150):
            if store.claim(experiment, Cell({}, seed), owner):
                print(seed)
                outcome = Outcome("done", {"x": seed}, [{"x": 1}] * 500)
                assert store.finish(experiment, Cell({}, seed), owner, outcome)
    """
    path = tmp_path / "runs.sqlite"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path), str(time.time() + 2)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [worker.communicate(timeout=60) for worker in workers]
    assert [error for _, error in said] == [""] * 4
    assert Counter(seed for output, _ in said for seed in output.split()) == Counter(
        str(s) for s in range(150)
    )
    with Store(path) as store:
        assert sorted((r.seed, r.metrics["x"]) for r in store.runs() if r.metrics) == [
            (s, s) for s in range(150)
        ]
