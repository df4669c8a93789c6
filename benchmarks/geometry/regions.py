"""Regions per second and peak memory of exact partitions, beside the public codes in the same run.

    python benchmarks/geometry/regions.py [--widths 384 384 ...] [--small 256 256 256] [--threads 2] [--json]

A perceptron 2-(widths)-1 is trained on a wavy function over [-1, 1]^2, then all its linear regions there are found.
Before anything is timed, the network must equal the regions' maps to 1e-8 at 20,000 points and the areas must
sum to the square's within 1e-9; the large partition is checked likewise after it is timed.

The public codes are compared on the network --small, where they can be imported: put a clone of
github.com/arturs-berzins/relu_edge_subdivision on PYTHONPATH.  github.com/AhmedImtiazPrio/splinecam asks for torch
1.12 and graph-tool, which pip does not install, so no way to call it is kept here.  Each measurement has a process
of its own, --limit seconds and --threads threads.  Processor seconds are told too, for machines that are shared.
"""

import argparse
import importlib.util
import json
import multiprocessing
import platform
import resource
import statistics as moments
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from workingpapers.engines.regions import box, program, region_set, statistics
from workingpapers.papers.geometry.splinecam import map_error
from workingpapers.tasks import mlp

PEERS = {"relu_edge_subdivision": "edge_subdivision"}  # by the module that is imported


def trained(widths: list[int], steps: int) -> torch.nn.Sequential:
    """Return the perceptron after some steps of Adam on random points."""
    torch.manual_seed(0)
    model = mlp([2, *widths, 1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        x = torch.rand(256, 2) * 2 - 1
        y = torch.sin(8 * x[:, :1]) * torch.cos(8 * x[:, 1:] + 3 * x[:, :1] ** 2)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return model


def kept(model: torch.nn.Sequential) -> int:
    """Find the regions and keep them."""
    return len(region_set(model, box(-1.0, 1.0)))


def counted(model: torch.nn.Sequential) -> int:
    """Measure the regions without keeping them."""
    return statistics(model, box(-1.0, 1.0), boundary=False).number


def by_edges(model: torch.nn.Sequential) -> int:
    """Count the regions by relu_edge_subdivision, which takes the output for one more neuron."""
    from edge_subdivision import skeletal_subdivision
    from NN import Net

    linear = [m for m in model if isinstance(m, torch.nn.Linear)]
    net = Net([2, *(m.out_features for m in linear)])
    for ours, theirs in zip(linear, net.fcs, strict=True):
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        corners, edges, _ = skeletal_subdivision(net, bbox=(-1, 1), device=torch.device("cpu"), verbose=False)
    return 1 + len(edges) - len(corners)  # Euler


WAYS: dict[str, Callable[[torch.nn.Sequential], int]] = {
    "ours, regions kept": kept,
    "ours, only counted": counted,
    "relu_edge_subdivision": by_edges,
}


def measured(queue: Any, way: str, widths: list[int], steps: int, threads: int, repeats: int) -> None:
    """Put the regions, the median and spread of seconds, and the peak memory into the queue."""
    torch.set_num_threads(threads)
    model = trained(widths, steps)
    program(model, torch.zeros(1, 2))  # what the first export loads is not counted
    seconds, busy = [], []
    for _ in range(repeats):
        began, processor = time.perf_counter(), time.process_time()
        number = WAYS[way](model)
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - processor)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)
    middle = moments.median(seconds)
    queue.put(
        {
            "regions": number,
            "seconds": middle,
            "spread": max(seconds) - min(seconds),
            "processor seconds": moments.median(busy),
            "regions per second": number / middle,
            "peak GiB": peak,
        }
    )


def within(limit: float, way: str, *arguments: Any) -> dict[str, Any]:
    """Return what `measured` gives in a process of its own, or that it ran out of time or failed."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measured, args=(queue, way, *arguments))
    process.start()
    end = time.monotonic() + limit
    try:
        while time.monotonic() < end:
            if not queue.empty():
                return dict(queue.get())
            if not process.is_alive() and queue.empty():
                return {"failed": f"it ended with code {process.exitcode}"}
            time.sleep(0.2)
        return {"failed": f"nothing within {limit:g} s"}
    finally:
        process.kill()
        process.join()


def right(widths: list[int], steps: int) -> dict[str, float]:
    """Return how far the partition is off, which may not be much."""
    model = trained(widths, steps)
    regions = region_set(model, box(-1.0, 1.0))
    found = {"maps": map_error(model, regions), "areas": abs(float(regions.areas.sum()) / 4 - 1)}
    assert found["maps"] <= 1e-8, found
    assert found["areas"] <= 1e-9, found
    return found


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[384] * 6)
    parser.add_argument("--small", type=int, nargs="+", default=[256] * 3)
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=900)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    errors = {"before": right(options.small, options.steps)}
    there = [name for name, module in PEERS.items() if importlib.util.find_spec(module)]
    rows = []
    for widths, ways in ((options.small, [*list(WAYS)[:2], *there]), (options.widths, list(WAYS)[:2])):
        for way in ways:
            found = within(options.limit, way, widths, options.steps, options.threads, options.repeats)
            rows.append({"network": "-".join(map(str, [2, *widths, 1])), "by": way, **found})
            if not options.json:
                print(
                    "  ".join(
                        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()
                    )
                )
    errors["after"] = right(options.widths, options.steps)
    ours = rows[0].get("regions per second", 0.0)
    ratios = {
        row["by"]: ours / row["regions per second"]
        for row in rows[2:]
        if row["by"] in there and "seconds" in row
    }
    absent = [*(name for name in PEERS if name not in there), "splinecam"]
    said = f"Not compared, since they cannot be imported here: {', '.join(absent)}."
    machine = {"cpu": platform.processor(), "threads": options.threads, "torch": torch.__version__}
    if options.json:
        print(
            json.dumps(
                {"runs": rows, "times as fast": ratios, "errors": errors, "note": said, "machine": machine}
            )
        )
    else:
        print("errors:", errors)
        print("times as fast as:", ratios)
        print(said, machine)


if __name__ == "__main__":
    main()
