"""The engine: the same numbers however they are run, every ending told, every kind of function."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.cells import Cell, Experiment, code_version
from workingpapers.experiments.engine import Event, run_experiment
from workingpapers.experiments.execution import (
    DIVERGED,
    DONE,
    FAILED,
    KILLED,
    OUT_OF_MEMORY,
    TIMED_OUT,
)
from workingpapers.experiments.store import Run, Store


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


def train(a: float, seed: int) -> Iterator[dict[str, float]]:
    """A small training with random weights, data and dropout, all from the global generator."""
    net = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Dropout(0.2), nn.Linear(50, 1))
    x = torch.randn(200, 20)
    for _ in range(5):
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        net.zero_grad()
        loss.backward()
        with torch.no_grad():  # by hand, as torch.optim takes seconds to import in every worker
            for parameter in net.parameters():
                parameter.sub_(a * parameter.grad)  # type: ignore[operator]
        yield {"loss": loss.item(), "norm": sum(p.detach().norm() for p in net.parameters())}  # type: ignore[dict-item]


class TestResults:
    def test_numbers_do_not_depend_on_the_number_of_workers(self, tmp_path: Path) -> None:
        found = []
        for workers in (0, 1, 2):
            with Store(tmp_path / f"{workers}.sqlite") as store:
                runs = carried_out(store, train, grid(3, 0.01, 0.02), workers=workers)
            found.append([(r.variant, r.seed, r.status, r.metrics, r.curve) for r in runs])
        assert found[0] == found[1] == found[2]
        assert len({str(numbers) for *_, numbers, _ in found[0]}) == 6

    def test_results_come_in_the_order_of_the_cells_and_runs_seed_by_seed(self, store: Store) -> None:
        events: list[Event] = []
        cells = [Cell({"a": a}, seed) for a in (1, 2, 3) for seed in (5, 4)]
        runs = carried_out(store, lambda a, seed: 10 * a + seed, cells, progress=events.append)
        assert [r.metrics for r in runs] == [{"value": 10.0 * c.variant["a"] + c.seed} for c in cells]
        started = [e.cell for e in events if e.kind == "started"]
        assert started == [Cell({"a": a}, seed) for seed in (5, 4) for a in (1, 2, 3)]

    def test_events_tell_the_whole_story(self, store: Store) -> None:
        def run(a: int, seed: int) -> Iterator[dict[str, float]]:
            yield {"x": a}
            yield {"x": a + 1}

        events: list[Event] = []
        carried_out(store, run, grid(1, 1, 2), progress=events.append)
        assert [(e.kind, e.finished, e.total) for e in events[:4]] == [
            ("started", 0, 2),
            ("point", 0, 2),
            ("point", 0, 2),
            ("finished", 1, 2),
        ]
        assert [e.point for e in events[1:3]] == [{"x": 1.0}, {"x": 2.0}]
        assert events[3].run is not None
        assert events[3].run.metrics == {"x": 2.0}
        again: list[Event] = []
        carried_out(store, run, grid(1, 1, 2, 3), progress=again.append)
        assert [(e.kind, e.fresh, e.finished) for e in again] == [
            ("finished", False, 1),
            ("finished", False, 2),
            ("started", True, 2),
            ("point", True, 2),
            ("point", True, 2),
            ("finished", True, 3),
        ]

    def test_a_cell_asked_for_twice_is_run_once(self, store: Store) -> None:
        calls: list[int] = []

        def run(seed: int) -> int:
            calls.append(seed)
            return 1

        runs = carried_out(store, run, [Cell({}, 1)] * 3)
        assert (calls, len(runs)) == ([1], 1)
        assert carried_out(store, len, []) == []

    def test_every_ending_has_its_status_and_spoils_no_other_run(self, store: Store) -> None:
        def run(a: str, seed: int) -> Any:
            if a == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if a == "memory":
                raise MemoryError
            if a == "raises":
                raise ValueError("no")
            if a == "slow":
                time.sleep(60)
            return {"nan": float("nan"), "text": "text"}.get(a, 1.0)

        expected = {
            "fine": DONE,
            "nan": DIVERGED,
            "killed": KILLED,
            "memory": OUT_OF_MEMORY,
            "raises": FAILED,
            "text": FAILED,
            "slow": TIMED_OUT,
            "well": DONE,
        }
        runs = carried_out(store, run, grid(1, *expected), workers=2, timeout=2.5)
        assert {r.variant["a"]: r.status for r in runs} == expected
        again: list[Event] = []
        second = carried_out(store, run, grid(1, *expected), workers=2, timeout=2.5, progress=again.append)
        assert {r.variant["a"]: r.status for r in second} == expected
        tried = {e.cell.variant["a"] for e in again if e.kind == "started"}
        assert tried == {"killed", "memory", "raises", "text", "slow"}

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"workers": -1}, "workers="),
            ({"workers": 1.5}, "workers="),
            ({"workers": True}, "workers="),
            ({"timeout": 0, "workers": 1}, "timeout="),
            ({"timeout": 1}, "timeout= needs worker"),
            ({"on": "rya"}, "'rya'; the nearest name is 'ray'"),
        ],
    )
    def test_bad_arguments_are_refused(self, store: Store, options: dict[str, Any], said: str) -> None:
        with pytest.raises(WorkingPapersError, match=said):
            carried_out(store, len, grid(1, 1), **options)
        assert store.runs() == []


class TestFunctions:
    def test_closures_lambdas_and_functions_of_a_notebook(self, store: Store) -> None:
        def make(factor: int) -> Callable[[int, int], int]:
            return lambda a, seed: factor * a + seed

        scope: dict[str, Any] = {"__name__": "__main__"}
        exec(
            "import math\nK = 3\ndef helper(a): return K * a\nclass Box:\n    def get(self, a): return helper(a)\n"
            "def run(a, seed): return math.floor(Box().get(a)) + seed",
            scope,
        )
        for name, run in (("closure", make(3)), ("notebook", scope["run"])):
            runs = run_experiment(
                Experiment(name, run, code_version(run), grid(2, 1, 2)), store=store, workers=1
            )
            assert [r.metrics for r in runs] == [{"value": v} for v in (3.0, 4.0, 6.0, 7.0)]

    def test_a_script_without_a_guard(self, tmp_path: Path) -> None:
        """Its body runs once, here; functions, classes, globals and modules beside it reach the workers."""
        (tmp_path / "beside.py").write_text("def shift(x):\n    return x + 1000\n")
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent("""
            import sys
            import beside
            from workingpapers.experiments.cells import Cell, Experiment, code_version
            from workingpapers.experiments.engine import run_experiment
            from workingpapers.experiments.store import Store
            print("body")
            SCALE = 100
            class Model:
                def __init__(self, a): self.a = a
                def __call__(self): return self.a * SCALE
            class Larger(Model):
                def __call__(self): return super().__call__()
            def run(a, seed):
                print("never shown")
                return beside.shift(Larger(a)()) + seed
            SEEDS = int(sys.argv[2])
            fresh = []
            runs = run_experiment(
                Experiment("script", run, code_version(run), [Cell({"a": 1}, seed) for seed in range(SEEDS)]),
                store=Store(sys.argv[1]), workers=2,
                progress=lambda event: event.kind == "finished" and event.fresh and fresh.append(event))
            print(len(fresh), *(run.metrics["value"] for run in runs))
        """)
        )
        said = [
            subprocess.run(
                [sys.executable, str(script), str(tmp_path / "runs.sqlite"), seeds],
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
            for seeds in ("2", "3")
        ]
        assert [s.stderr for s in said] == ["", ""]
        assert [s.stdout.split("\n") for s in said] == [
            ["body", "2 1100.0 1101.0", ""],
            ["body", "1 1100.0 1101.0 1102.0", ""],
        ]
