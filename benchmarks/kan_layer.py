"""A Kolmogorov-Arnold layer's time and memory against two public ones, in one run.

    python benchmarks/kan_layer.py [--efficient-kan CLONE/src] [--grid 5] [--batch 4096] [--threads N]

Peers are `kan.KANLayer` of pykan, where it is installed, and `KANLinear` of efficient-kan, where the option
names the folder that its package lies in; nothing of theirs is kept here.  All layers get the same coefficients
and must give the same outputs before anything is timed.  Times are of forward and backward together, taken in
turns, so that a busy machine is fair to all; a ratio is the median of the ratios within each turn, with their
quartiles.

Memory: `kept` are the bytes of distinct storages that autograd keeps for the backward pass
(saved_tensors_hooks), without input and parameters; `peak` the largest sum of bytes allocated and not yet freed
during forward and backward (torch.profiler's record of the allocator).
"""

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from workingpapers.engines.bases import BasisLinear, BSpline, from_pykan, to_pykan

Layer = Callable[[Tensor], Tensor]


def ours(features: int, grid: int) -> BasisLinear:
    """Return our layer with coefficients as large as trained ones."""
    torch.manual_seed(0)
    layer = BasisLinear(features, features, BSpline(features, grid, 3), nn.SiLU())
    nn.init.normal_(layer.coefficients, std=0.1)
    return layer


def pykan(layer: BasisLinear) -> Layer | None:
    """Return pykan's layer of the same function, or None where pykan is not installed."""
    if importlib.util.find_spec("kan") is None:
        return None
    from kan.KANLayer import KANLayer

    theirs = to_pykan(layer, KANLayer(layer.in_features, layer.out_features, num=layer.basis.size - 3, k=3))
    assert torch.allclose(from_pykan(theirs).coefficients, layer.coefficients)
    return lambda x: theirs(x)[0]


def efficient_kan(layer: BasisLinear, folder: str | None) -> Layer | None:
    """Return efficient-kan's layer of the same function, or None where its folder is not given."""
    if folder is None:
        return None
    sys.path.insert(0, folder)
    from efficient_kan import KANLinear

    theirs = KANLinear(layer.in_features, layer.out_features, grid_size=layer.basis.size - 3)
    with torch.no_grad():
        theirs.spline_scaler.fill_(1.0)
        theirs.spline_weight.copy_(layer.coefficients.permute(2, 0, 1))
        theirs.base_weight.copy_(layer.base_weight)
    return theirs


def both_ways(layer: Layer, x: Tensor, seed: Tensor) -> None:
    """Run forward and backward."""
    layer(x).backward(seed)
    x.grad = None


def seconds(layer: Layer, x: Tensor, seed: Tensor) -> float:
    """Return the time of one forward and backward."""
    began = time.perf_counter()
    both_ways(layer, x, seed)
    return time.perf_counter() - began


def kept_bytes(layer: Layer, x: Tensor, parameters: list[Tensor]) -> int:
    """Return what autograd keeps beside the input and the parameters."""
    known = {t.untyped_storage().data_ptr() for t in [x, *parameters]}
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = layer(x)
    assert out is not None
    return sum(found.values())


def peak_bytes(layer: Layer, x: Tensor, seed: Tensor) -> int:
    """Return the most that is allocated at a time beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        both_ways(layer, x, seed)
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def parameters_of(layer: Layer) -> list[Tensor]:
    """Return the parameters and buffers of a layer, wrapped or not."""
    modules = [layer, *(cell.cell_contents for cell in getattr(layer, "__closure__", None) or ())]
    return [t for m in modules if isinstance(m, nn.Module) for t in [*m.parameters(), *m.buffers()]]


def ratios(times: dict[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Return the median and quartiles of the ratios of two layers' times within each turn."""
    found = [a / b for a, b in zip(times[over], times[under], strict=True)]
    low, middle, high = statistics.quantiles(found, n=4)
    return {"median": middle, "low": low, "high": high}


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all layers there are."""
    layer, long = ours(options.features, options.grid), ours(options.features, 10 * options.grid)
    peers = {"efficient-kan": efficient_kan(layer, options.efficient_kan), "pykan": pykan(layer)}
    layers: dict[str, Layer] = {"ours": layer, "ours, grid x 10": long}
    layers |= {name: peer for name, peer in peers.items() if peer is not None}
    x = (torch.rand(options.batch, options.features) * 2 - 1).requires_grad_()
    seed = torch.randn(options.batch, options.features)
    gaps = {n: float((p(x) - layer(x)).detach().abs().max()) for n, p in layers.items() if n in peers}
    assert all(gap < 1e-5 for gap in gaps.values()), gaps
    memory = {
        name: {"kept": kept_bytes(one, x, parameters_of(one)), "peak": peak_bytes(one, x, seed)}
        for name, one in layers.items()
    }
    times: dict[str, list[float]] = {name: [] for name in layers}
    for one in layers.values():
        both_ways(one, x, seed)
    for _ in range(options.repeats):
        for name, one in layers.items():
            times[name].append(seconds(one, x, seed))
    return {
        "largest difference of outputs": gaps,
        "milliseconds": {name: 1e3 * statistics.median(t) for name, t in times.items()},
        "time over ours": {name: ratios(times, name, "ours") for name in layers if name != "ours"},
        "bytes": memory,
        "machine": {
            "cpu": platform.processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--efficient-kan", metavar="FOLDER")
    for name, default in (("grid", 5), ("batch", 4096), ("features", 64), ("repeats", 15), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = compared(options)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, spent in found["milliseconds"].items():
        one, base = found["bytes"][name], found["bytes"]["ours"]
        against = found["time over ours"].get(name)
        kept, peak = one["kept"] / 2**20, one["peak"] / 2**20
        line = f"{name:<16} {spent:8.1f} ms   kept {kept:7.1f} MiB   peak {peak:7.1f} MiB"
        if against:
            line += f"   time x {against['median']:.2f} ({against['low']:.2f} to {against['high']:.2f})"
            line += f"   peak x {one['peak'] / base['peak']:.2f}"
        print(line)
    print("largest difference of outputs:", found["largest difference of outputs"], found["machine"])


if __name__ == "__main__":
    main()
