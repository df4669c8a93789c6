"""Runs on a real two-node Ray cluster of this machine, one node of which goes away half-way."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import cluster
from workingpapers.experiments.cells import Cell, Experiment
from workingpapers.experiments.cluster import RayPool
from workingpapers.experiments.engine import run_experiment
from workingpapers.experiments.store import Store

CLUSTER = """
import json, os, sys, threading, time, warnings
from pathlib import Path
import beside
from workingpapers.experiments.cells import Cell, Experiment
from workingpapers.experiments.engine import run_experiment
from workingpapers.experiments.store import Store

folder, PAUSE = sys.argv[1], 0.0

def noted(a, seed):
    with open(f"{folder}/log", "a") as file:
        file.write(f"{a} {seed}\\n")

def mark(what):
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        with open(f"{folder}/marks", "a") as file:
            file.write(f"{what} {ray.get_runtime_context().get_node_id()}\\n")

def draw(a, seed):
    import torch
    noted(a, seed)
    mark("begin")
    for step in range(4):
        time.sleep(PAUSE)
        yield {"x": beside.shift(a) + torch.rand(()), "threads": torch.get_num_threads()}
    mark("end")

def end(a, seed):
    noted(a, seed)
    if a == "crash":
        os._exit(3)
    if a == "slow":
        time.sleep(60)
    if a == "raise":
        raise ValueError("no")
    return 1.0

def go(name, run, cells, **options):
    events = []
    runs = run_experiment(Experiment(name, run, "c", cells), store=store, progress=events.append, **options)
    return [[r.variant["a"], r.seed, r.status, r.metrics, r.curve, r.error] for r in runs], events

store = Store(f"{folder}/runs.sqlite")
cells = [Cell({"a": a}, seed) for a in (1, 2) for seed in range(4)]
expected, _ = go("inline", draw, cells, workers=0)
os.remove(f"{folder}/log")
PAUSE = 0.25

from ray.cluster_utils import Cluster
import ray
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = two.add_node(num_cpus=1)
warnings.simplefilter("error")

def lose_a_node():
    '''Take the second node away while a run is in the midst of its work there.'''
    marks = Path(f"{folder}/marks")
    while True:
        lines = marks.read_text().splitlines() if marks.exists() else []
        begun, ended = (lines.count(f"{what} {node.node_id}") for what in ("begin", "end"))
        if len(lines) >= 4 and begun > ended:
            break
        time.sleep(0.01)
    two.remove_node(node)

threading.Thread(target=lose_a_node).start()
found, events = go("ray", draw, cells, on="ray=" + two.address)
points = sum(event.kind == "point" for event in events)
log = Path(f"{folder}/log").read_text().splitlines()
still = ray.is_initialized()

endings, _ = go("endings", end, [Cell({"a": a}, 0) for a in ("fine", "slow", "raise", "crash")],
                on="ray=" + two.address, timeout=1.5)
log2 = Path(f"{folder}/log").read_text().splitlines()[len(log):]
two.shutdown()
print(json.dumps({"same": found == expected, "found": found, "points": points, "log": log, "still": still,
                  "endings": endings, "crashes": log2.count("crash 0"), "tries": len(log2)}))
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra [ray] is not installed")
def test_a_cluster_gives_the_same_numbers_though_it_loses_a_node(tmp_path: Path) -> None:
    """A process of its own: Ray leaves threads and settings behind.  It is ended after 120 s at the latest."""
    (tmp_path / "script.py").write_text(CLUSTER)
    (tmp_path / "beside.py").write_text("def shift(a):\n    return 10 * a\n")
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout)
    assert said["same"], said["found"]
    assert [row[2] for row in said["found"]] == ["done"] * 8
    assert said["points"] >= 8
    assert set(said["log"]) == {f"{a} {seed}" for a in (1, 2) for seed in range(4)}
    assert 8 < len(said["log"]) <= 10, (
        "the run that was lost with its node was begun anew, the others were not"
    )
    assert not said["still"], "a connection that the pool opened is closed with it"
    assert [(row[0], row[2]) for row in said["endings"]] == [
        ("fine", "done"),
        ("slow", "timed out"),
        ("raise", "failed"),
        ("crash", "killed"),
    ]
    assert (said["crashes"], said["tries"]) == (4, 7)
    assert "ValueError: no" in said["endings"][2][-1]
    assert "lost 4 times" in said["endings"][3][-1]
    assert [line for line in ended.stderr.splitlines() if "arning" in line] == []


def test_without_ray_the_command_that_brings_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        Store(tmp_path / "runs.sqlite") as store,
        pytest.raises(WorkingPapersError, match=r"pip install 'workingpapers\[ray\]'"),
    ):
        run_experiment(Experiment("e", len, "c", [Cell({}, 0)]), store=store, on="ray")


class FakeRay:
    """Just enough of Ray to refuse a connection."""

    @staticmethod
    def is_initialized() -> bool:
        return False

    @staticmethod
    def init(**options: Any) -> None:
        raise ConnectionError("Could not connect\nto the head")


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_import_ray", FakeRay)
    with pytest.raises(WorkingPapersError, match=r"at '10.0.0.1:6379' cannot be reached: Could not connect$"):
        RayPool(Experiment("e", len, "c", []), lambda *_: None, "10.0.0.1:6379")
