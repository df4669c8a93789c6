"""bench: how fast an activation is here, against peers, and against what this machine's memory allows."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog.registry import component, make
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.kernels import compiles, fusing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZES = {"cpu": (2**10, 2**14, 2**18, 2**22), "cuda": (2**14, 2**18, 2**22, 2**28)}
FORMS = ("eager", "compile")  # the activation itself, operation by operation, and by torch.compile
TRAFFIC = {
    "forward": 2,
    "forward+backward": 5,
}  # least tensors read and written: x, y; then x, grad, x's gradient
BATCH_SECONDS = 0.02  # calls are repeated until they take this long, so that the clock's own cost vanishes
Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One contender at one size and pass.

    Attributes:
        contender: the activation's name, a peer's, "eager" or "compile".
        what: "forward" or "forward+backward".
        size: elements.
        seconds: median time of a call.
        bandwidth: share of this machine's copy bandwidth, by the least traffic that the pass needs.
        ratio, low, high: time over the activation's own, median and quartiles over rounds taken in turns.
        kept: bytes kept for backward, over those of the input.
    """

    contender: str
    what: str
    size: int
    seconds: float
    bandwidth: float
    ratio: float
    low: float
    high: float
    kept: float


@dataclass(frozen=True)
class Bench:
    """All timings of one activation, and where they were taken."""

    name: str
    device: str
    dtype: str
    copy_bandwidth: dict[int, float]
    timings: list[Timing]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a dictionary for `--json`; copy bandwidth in bytes a second by size."""
        return asdict(self)

    def series(self, what: str) -> dict[str, tuple[list[float], list[float]]]:
        """Return time by size of each contender, for plots."""
        names = dict.fromkeys(t.contender for t in self.timings)
        rows = {n: [t for t in self.timings if t.contender == n and t.what == what] for n in names}
        return {n: ([float(t.size) for t in r], [t.seconds for t in r]) for n, r in rows.items()}

    def figure(self) -> Any:
        """Draw time over size of all contenders, forward and with backward, as a matplotlib figure."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axis, what in zip(figure.subplots(1, 2), TRAFFIC, strict=True):
            for name, line in self.series(what).items():
                axis.loglog(*line, marker="o", label=name)
            axis.set(title=what, xlabel="elements", ylabel="seconds")
            axis.legend(frameon=False)
        return figure


def bench(
    name: str,
    against: Sequence[str] = ("gelu", "compile", "eager"),
    *,
    device: str = "cpu",
    dtype: str = "float32",
    sizes: Sequence[int] | None = None,
    rounds: int = 9,
    progress: Callable[[str], None] = lambda sentence: None,
) -> Bench:
    """Time the activation `name` against other activations, against itself uncompiled, and under torch.compile.

    Args:
        against: names of activations, "eager" and "compile", which is left out where torch cannot compile.
        device: "cpu" or "cuda"; dtype: float32, bfloat16 or float16.
        sizes: numbers of elements; by default 2^10 to 2^22, on a GPU 2^14 to 2^28.
        rounds: times that all contenders are timed in turns, so that a busy machine is fair to all.
        progress: is told what is being timed.

    Raises:
        WorkingPapersError: for an unknown name, device or dtype, or a component that is no activation.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if device not in SIZES:
        raise unknown("device", device, SIZES)
    if device == "cuda" and not torch.cuda.is_available():
        raise WorkingPapersError("device 'cuda' needs a GPU that torch can use, and there is none")
    chosen = [n for n in dict.fromkeys([name, *against]) if n != "compile" or compiles(device)]
    contenders = {n: _contender(n, name, device, dtype) for n in chosen}
    timings: list[Timing] = []
    bandwidth: dict[int, float] = {}
    for size in sizes or SIZES[device]:
        x = torch.randn(size, device=device).to(DTYPES[dtype])
        for what in TRAFFIC:
            progress(f"{what} of {size:,} elements")
            calls = {n: _call(f, x, what) for n, f in contenders.items()}
            seconds = _rounds({"copy": _copy(x), **calls}, rounds, device)
            copied = statistics.median(seconds.pop("copy"))
            bandwidth[size] = 2 * x.nbytes / copied
            own = seconds[name]
            for contender, times in seconds.items():
                ratios = [t / o for t, o in zip(times, own, strict=True)]
                low, ratio, high = statistics.quantiles(ratios, n=4)
                median = statistics.median(times)
                share = TRAFFIC[what] / 2 * copied / median
                kept = _kept(contenders[contender], x)
                timings.append(Timing(contender, what, size, median, share, ratio, low, high, kept))
    return Bench(name, device, dtype, bandwidth, timings)


def elements(written: str) -> int:
    """Return the number that `written` stands for, such as "1024" or "2^10".

    Raises:
        WorkingPapersError: where it writes none.
    """
    base, _, exponent = written.strip().partition("^")
    if not (base.isdigit() and (exponent or "1").isdigit()) or int(base) < 1:
        raise WorkingPapersError(f"a size is a number of elements such as 1024 or 2^10; got {written!r}")
    size: int = int(base) ** int(exponent or "1")
    return size


def _contender(name: str, own: str, device: str, dtype: str) -> nn.Module:
    found = component(own if name in FORMS else name)
    if found.kind != "activation":
        raise WorkingPapersError(f"bench times activations; {found.name!r} is a {found.kind}")
    module: nn.Module = make(found.name, **found.properties.get("options", {})).to(
        device=device, dtype=DTYPES[dtype]
    )
    if name == "compile":
        compiled: Any = torch.compile(module)
        return compiled  # type: ignore[no-any-return]
    return _Eager(module) if name == "eager" else module


class _Eager(nn.Module):
    """An activation computed operation by operation; its parameters' gradients are part of the work."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        with fusing("never"):
            found: Tensor = self.activation(x)
            return found


def _call(function: nn.Module, x: Tensor, what: str) -> Call:
    if what == "forward":
        return torch.no_grad()(lambda: function(x))
    leaf, seed = x.clone().requires_grad_(), torch.randn_like(x)
    # parameters' gradients are part of the work, and kept out of .grad so that nothing adds up
    parameters = [p for p in function.parameters() if p.requires_grad]
    return lambda: torch.autograd.grad(function(leaf), [leaf, *parameters], seed, allow_unused=True)


def _copy(x: Tensor) -> Call:
    target = torch.empty_like(x)
    return lambda: target.copy_(x)


def _rounds(calls: dict[str, Call], rounds: int, device: str) -> dict[str, list[float]]:
    """Return seconds a call by contender and round, all contenders taking turns within a round."""
    repeats = {}
    for name, call in calls.items():
        for _ in range(3):  # compiles, and warms caches
            call()
        repeats[name] = max(1, round(BATCH_SECONDS / max(_seconds(call, 1, device), 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(_seconds(call, repeats[name], device))
    return found


def _seconds(call: Call, repeats: int, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else nullcontext
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats


def _kept(function: nn.Module, x: Tensor) -> float:
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = function(x.detach().clone().requires_grad_())
    del y
    return sum(kept.values()) / x.nbytes
