"""What the foundation costs: imports, search, the engine's own time, listing the store.

    python benchmarks/foundation.py [--json]

Every figure stands beside its limit; medians of several runs, with the spread.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workingpapers.catalog.find import find
from workingpapers.experiments.cells import Cell, Experiment
from workingpapers.experiments.engine import run_experiment
from workingpapers.experiments.execution import Outcome
from workingpapers.experiments.leases import new_owner
from workingpapers.experiments.store import Store

QUERIES = [
    "replace softmax in attention",
    "verify a network with branch and bound",
    "activation that varies less",
    "prune heads of a language model",
    "periodic functions extrapolation",
    "robust training against attacks",
]


def repeated(measure: Callable[[], float], times: int) -> list[float]:
    """Return the figures of `times` measurements after one that is not counted."""
    measure()
    return [measure() for _ in range(times)]


def shell(*words: str) -> float:
    """Return the seconds of a whole process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - began


def import_seconds() -> list[float]:
    """Return what `import workingpapers` adds to an empty Python, in pairs."""
    return repeated(lambda: shell("-c", "import workingpapers") - shell("-c", "pass"), 9)


def find_milliseconds() -> list[float]:
    """Return the time of warm queries."""
    find(QUERIES[0])

    def one(query: str) -> float:
        began = time.perf_counter()
        find(query)
        return (time.perf_counter() - began) * 1000

    return [one(query) for _ in range(5) for query in QUERIES]


def busy(size: int, seed: int) -> float:
    """Keep a core busy for about two seconds."""
    end = time.process_time() + 2.0
    while time.process_time() < end:
        sum(i * i for i in range(size))
    return float(seed)


def engine_overhead() -> list[float]:
    """Return the engine's own share of the time of eight runs of two seconds in one worker, its start left out."""

    def one() -> float:
        with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "runs.sqlite") as store:
            cells = [Cell({"size": 1000}, seed) for seed in range(8)]
            runs = run_experiment(Experiment("busy", busy, "1", cells), store=store, workers=1)
            took = max(r.finished or 0 for r in runs) - min(r.started or 0 for r in runs)
            return took / sum(r.seconds or 0 for r in runs) - 1

    return repeated(one, 3)


def listing_seconds() -> list[float]:
    """Return the time to list 10,000 stored runs."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "runs.sqlite") as store:
        cells = [Cell({"activation": "relu"}, seed) for seed in range(10_000)]
        experiment, owner = Experiment("many", busy, "1", cells), new_owner()
        outcome = Outcome("done", {"accuracy": 0.5}, [{"step": i, "loss": 0.5} for i in range(20)])
        for cell in cells:
            store.claim(experiment, cell, owner)
            store.finish(experiment, cell, owner, outcome)

        def one() -> float:
            began = time.perf_counter()
            assert len(store.runs()) == 10_000
            return time.perf_counter() - began

        return repeated(one, 5)


MEASURES: dict[str, tuple[Callable[[], list[float]], float, str]] = {
    "import workingpapers": (import_seconds, 0.15, "s"),
    "workingpapers find x, cold": (
        lambda: repeated(lambda: shell("-m", "workingpapers", "find", "x"), 7),
        0.6,
        "s",
    ),
    "find, warm": (find_milliseconds, 15, "ms"),
    "engine's share of 2 s runs": (engine_overhead, 0.05, ""),
    "list 10,000 runs": (listing_seconds, 1.0, "s"),
}


def main() -> int:
    """Measure everything and print a row each; exit with 1 where a median is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json, rows = parser.parse_args().json, list[dict[str, Any]]()
    for name, (measure, limit, unit) in MEASURES.items():
        values = measure()
        rows.append(
            {
                "what": name,
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "limit": limit,
                "unit": unit,
            }
        )
        if not as_json:
            row = rows[-1]
            print(
                f"{name:<28} {row['median']:8.3f} {unit:<2} [{row['min']:.3f}, {row['max']:.3f}]  limit {limit}"
            )
    if as_json:
        print(
            json.dumps(
                {"machine": platform.platform(), "python": platform.python_version(), "rows": rows}, indent=1
            )
        )
    return int(any(row["median"] > row["limit"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
