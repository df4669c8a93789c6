"""Worker processes: what they do to a run, and what becomes of one that dies, hangs or prints."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.cells import Cell, Experiment
from workingpapers.experiments.execution import DONE, FAILED, KILLED, TIMED_OUT, Outcome, Point
from workingpapers.experiments.pools import default_workers
from workingpapers.experiments.shipping import ship, unpacked
from workingpapers.experiments.workers import LocalPool, cause_of_death


class Pools:
    """Makes pools, collects their points, and closes them at the end."""

    def __init__(self) -> None:
        self.points: list[tuple[Cell, Point]] = []
        self.made: list[LocalPool] = []

    def __call__(self, run: Callable[..., Any], workers: int = 1, timeout: float | None = None) -> LocalPool:
        pool = LocalPool(Experiment("e", run, "c", []), lambda *a: self.points.append(a), workers, timeout)
        self.made.append(pool)
        return pool


@pytest.fixture
def pools() -> Iterator[Pools]:
    made = Pools()
    yield made
    for pool in made.made:
        pool.close()


def outcomes(pool: LocalPool, cells: list[Cell]) -> list[Outcome]:
    """Run the cells, as many at once as the pool takes, and return their outcomes in the same order."""
    ended: dict[Cell, Outcome] = {}
    waiting = list(cells)
    while len(ended) < len(cells):
        while waiting and pool.free:
            pool.submit(waiting.pop(0))
        ended.update(pool.wait())
    return [ended[cell] for cell in cells]


def seeds(count: int) -> list[Cell]:
    return [Cell({}, seed) for seed in range(count)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_runs_of_one_worker_do_not_share_what_a_script_keeps(pools: Pools) -> None:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec("made = []\ndef run(seed):\n    made.append(seed)\n    return len(made)", scope)
    assert [o.metrics for o in outcomes(pools(scope["run"]), seeds(3))] == [{"value": 1.0}] * 3


def test_points_arrive_in_order_and_the_first_at_once(pools: Pools) -> None:
    def run(seed: int) -> Iterator[dict[str, float]]:
        for i in range(4):
            yield {"i": i}
            time.sleep(0.12)

    [outcome] = outcomes(pools(run), seeds(1))
    assert outcome.curve == [{"i": float(i)} for i in range(4)]
    seen = [point["i"] for _, point in pools.points]
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert len(seen) >= 3


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("os.kill(os.getpid(), 9)", "signal 9 (SIGKILL)"),
        ("ctypes.string_at(0)", "signal 11 (SIGSEGV)"),
        ("os._exit(3)", "exit code 3"),
        ("os.abort()", "signal 6 (SIGABRT)"),
    ],
)
def test_a_death_takes_only_its_own_run_along(pools: Pools, ending: str, said: str) -> None:
    def run(seed: int) -> float:
        import ctypes
        import os

        print("before", flush=True)
        if seed == 1:
            exec(ending, {"os": os, "ctypes": ctypes})
        return seed

    ended = outcomes(pools(run, workers=2), seeds(4))
    assert [o.status for o in ended] == [DONE, KILLED, DONE, DONE]
    assert said in (ended[1].error or "")
    assert "before" in (ended[1].output or "")


def test_a_crash_in_compiled_code_shows_its_place(pools: Pools) -> None:
    def crashing_here(seed: int) -> None:
        import ctypes

        ctypes.string_at(0)

    [outcome] = outcomes(pools(crashing_here), seeds(1))
    assert "crashing_here" in (outcome.output or "")


def test_a_worker_killed_from_outside(pools: Pools, tmp_path: Path) -> None:
    """The worker of one run is killed half-way; the other run goes on, and a third follows."""

    def run(seed: int) -> int:
        (tmp_path / str(seed)).write_text(str(os.getpid()))
        while not (tmp_path / "go on").exists():
            time.sleep(0.01)
        return os.getpid()

    pool = pools(run, workers=2)
    for cell in seeds(2):
        pool.submit(cell)
    assert until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "01"))
    os.kill(int((tmp_path / "0").read_text()), signal.SIGKILL)
    [(cell, outcome)] = pool.wait()
    assert (cell.seed, outcome.status) == (0, KILLED)
    assert outcome.seconds > 0
    assert pool.free == 1
    pool.submit(Cell({}, 2))
    (tmp_path / "go on").touch()
    rest: dict[Cell, Outcome] = {}
    while len(rest) < 2:
        rest.update(pool.wait())
    assert {cell.seed: outcome.status for cell, outcome in rest.items()} == {1: DONE, 2: DONE}
    survivor = rest[Cell({}, 1)].metrics
    assert survivor is not None
    assert survivor["value"] == int((tmp_path / "1").read_text())


@pytest.mark.parametrize("buried", [True, False])
def test_a_worker_that_died_while_idle_is_replaced(pools: Pools, buried: bool) -> None:
    """Also where it is given a run in the moment of its death, which then seems to be that run's."""
    pool = pools(lambda seed: __import__("os").getpid())
    for cell in seeds(4):
        [outcome] = outcomes(pool, [cell])
        assert outcome.status == DONE
        worker = int((outcome.metrics or {})["value"])
        os.kill(worker, signal.SIGKILL)
        if buried:
            until(lambda: not alive(worker))  # noqa: B023


def test_a_run_over_its_time_is_stopped_with_its_children(pools: Pools, tmp_path: Path) -> None:
    path = tmp_path / "child"

    def run(seed: int) -> int:
        if seed == 0:
            path.write_text(str(subprocess.Popen(["sleep", "100"]).pid))
            print("hanging")
            time.sleep(100)
        return 1

    ended = outcomes(pools(run, timeout=1.5), seeds(2))
    assert [o.status for o in ended] == [TIMED_OUT, DONE]
    assert 1.5 <= ended[0].seconds < 50
    assert "1.5 s" in (ended[0].error or "")
    assert ended[0].output == "hanging\n"
    assert until(lambda: not alive(int(path.read_text())))


def test_output_is_kept_for_runs_without_a_result_only(
    pools: Pools, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(seed: int) -> int:
        print(f"seed {seed}")
        os.write(2, b"from below\n")
        if seed == 2:
            print("x" * 3_000_000)
        if seed:
            raise ValueError("bad")
        return 1

    ended = outcomes(pools(run), seeds(3))
    assert [o.status for o in ended] == [DONE, FAILED, FAILED]
    assert ended[0].output is None
    assert sorted((ended[1].output or "").splitlines()) == ["from below", "seed 1"]
    assert ended[2].output == "x" * 4095 + "\n"
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(
    multiprocessing.get_all_start_methods()[0] != "fork", reason="needs picklable classes there"
)
def test_the_function_may_have_workers_of_its_own(pools: Pools) -> None:
    """A data set that a script defines cannot be imported by them: they begin as they do in the script."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(
        textwrap.dedent("""
        import torch
        class Numbers(torch.utils.data.Dataset):
            def __len__(self): return 8
            def __getitem__(self, i): return float(i)
        def run(seed):
            data = torch.utils.data.DataLoader(Numbers(), batch_size=4, num_workers=1)
            return float(sum(batch.sum() for batch in data))
    """),
        scope,
    )
    assert [o.metrics for o in outcomes(pools(scope["run"]), seeds(1))] == [{"value": 28.0}]


def test_threads_of_torch_and_of_the_environment_are_the_experiments(pools: Pools) -> None:
    def run(seed: int) -> dict[str, float]:
        return {"torch": torch.get_num_threads(), "omp": float(os.environ["OMP_NUM_THREADS"])}

    pool = LocalPool(Experiment("e", run, "c", [], threads=3), lambda *_: None, 1)
    pools.made.append(pool)
    assert [o.metrics for o in outcomes(pool, seeds(1))] == [{"torch": 3.0, "omp": 3.0}]


def test_workers_end_with_their_driver(tmp_path: Path) -> None:
    """The driver is killed while its worker computes without ever giving way."""
    script = tmp_path / "driver.py"
    script.write_text(
        textwrap.dedent("""
        import os, pathlib, sys
        from workingpapers.experiments.cells import Cell, Experiment
        from workingpapers.experiments.workers import LocalPool
        def run(seed):
            pathlib.Path(FILE).write_text(str(os.getpid()))
            while True: pass
        FILE = sys.argv[1]
        pool = LocalPool(Experiment("e", run, "c", []), print, 1)
        pool.submit(Cell({}, 0))
        pool.wait()
    """)
    )
    note = tmp_path / "pid"
    with subprocess.Popen([sys.executable, str(script), str(note)], stderr=subprocess.PIPE) as driver:
        assert until(lambda: note.exists() and note.read_text() != "")
        worker = int(note.read_text())
        assert alive(worker)
        driver.kill()
    assert until(lambda: not alive(worker))


def test_ctrl_c_does_not_reach_workers(pools: Pools, tmp_path: Path) -> None:
    path = tmp_path / "pid"

    def run(seed: int) -> int:
        path.write_text(str(os.getpid()))
        time.sleep(0.5)
        return 1

    def interrupt() -> None:
        until(lambda: path.exists() and path.read_text() != "")
        os.kill(int(path.read_text()), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert [o.status for o in outcomes(pools(run), seeds(1))] == [DONE]
    thread.join()


def test_what_cannot_be_sent_is_said_in_a_sentence(pools: Pools) -> None:
    lock = threading.Lock()

    def locked(seed: int) -> int:
        with lock:
            return 1

    with pytest.raises(WorkingPapersError, match=r"'.*locked' cannot be sent to worker processes.*workers=0"):
        pools(locked)


def test_a_file_loaded_by_path_goes_by_value(tmp_path: Path) -> None:
    """Neither its name nor its folder is known to another process."""
    (tmp_path / "loaded_by_path.py").write_text(
        "K = 41\ndef helper(x):\n    return x + K\ndef run(seed):\n    return helper(seed)\n"
    )
    code = """
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("loaded_by_path", sys.argv[1])
        module = sys.modules["loaded_by_path"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        from workingpapers.experiments.shipping import ship
        sys.stdout.buffer.write(ship(module.run))
    """
    payload = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "loaded_by_path.py")],
        capture_output=True,
        check=True,
    ).stdout
    assert unpacked(payload)(seed=1) == 42


def test_importable_functions_go_by_name() -> None:
    assert len(ship(textwrap.dedent)) < 100
    assert len(ship(default_workers)) < 200


def test_the_cause_of_death_in_words() -> None:
    assert "SIGKILL" in cause_of_death(-9)
    assert "memory" in cause_of_death(-9)
    assert cause_of_death(-11).endswith("signal 11 (SIGSEGV)")
    assert cause_of_death(3).endswith("exit code 3")
    assert "signal 99" in cause_of_death(-99)


def test_default_workers_fill_the_cores() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert default_workers(Experiment("e", len, "c", [], threads=1)) == cores
    assert default_workers(Experiment("e", len, "c", [], threads=cores + 1)) == 1
