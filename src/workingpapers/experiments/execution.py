"""One run: seeded, measured, and its end put into one of six words whatever happens in it."""

import errno
import math
import numbers
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.cells import Cell
from workingpapers.experiments.circumstances import PeakMemory, circumstances

DONE = "done"
DIVERGED = "diverged"
FAILED = "failed"
OUT_OF_MEMORY = "out of memory"
KILLED = "killed"
TIMED_OUT = "timed out"
FINAL = (DONE, DIVERGED)  # the others are tried again in a later session

Point = dict[str, float]

_EXPECTED = "a number, a dict of numbers, or an iterator of such dicts was expected"
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "cannot allocate memory")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `status` is done, diverged, failed, out of memory, killed or timed out.

    A run diverged if a number of its result is not finite.  `seconds` is the run's own time, `peak_memory`
    the bytes by which it made its process (on a GPU, the allocated memory) grow.  `output` is the end of
    what it printed in a worker process, kept for runs without a result.
    """

    status: str
    metrics: Point | None = None
    curve: list[Point] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory: int | None = None
    machine: str = ""
    error: str | None = None
    traceback: str | None = None
    output: str | None = None


class _WrongResult(Exception):
    """What a run returned is none of what was expected."""


def execute(
    run: Callable[..., Any],
    cell: Cell,
    on_point: Callable[[Point], None] | None = None,
    *,
    threads: int = 1,
    device: str = "cpu",
) -> Outcome:
    """Make the run of `cell` in this process and return its outcome; `on_point` sees the curve as it grows.

    Python's, numpy's and torch's generators are seeded by the cell's seed alone, so all variants of a seed
    start alike; their state before the run comes back after it.  Only a KeyboardInterrupt gets out.
    """
    outcome = None
    for step in steps(run, cell, threads=threads, device=device):
        if isinstance(step, Outcome):
            outcome = step
        elif on_point:
            on_point(step)
    assert outcome is not None
    return outcome


def steps(
    run: Callable[..., Any], cell: Cell, *, threads: int = 1, device: str = "cpu"
) -> Iterator[Point | Outcome]:
    """Make the run of `cell` and yield the points of its curve, then its outcome."""
    curve: list[Point] = []
    result: Point | None = None
    ending: dict[str, Any] = {}
    with circumstances(cell.seed, threads), PeakMemory(device) as memory:
        began = time.perf_counter()
        try:
            returned = run(**cell.variant, seed=cell.seed)
            if _is_curve(returned):
                for point in returned:
                    curve.append(_point(point))
                    yield curve[-1]
            result = _result(returned, curve)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            ending = _ending(error)
        seconds = time.perf_counter() - began
    status = ending.pop("status", DONE)
    if result is not None and not all(map(math.isfinite, result.values())):
        status = DIVERGED
    yield Outcome(status, result, curve, seconds, memory.peak, machine(device), **ending)


def paced(stream: Iterator[Point | Outcome], every: float = 0.1) -> Iterator[Point | Outcome]:
    """Pass on at most one point per `every` seconds, and the outcome; a run may yield thousands a second."""
    last = -math.inf
    for step in stream:
        if isinstance(step, Outcome) or time.monotonic() - last >= every:
            last = time.monotonic()
            yield step


def _is_curve(returned: Any) -> bool:
    return (
        isinstance(returned, Iterable)
        and not isinstance(returned, Mapping | str | bytes)
        and getattr(returned, "ndim", None) != 0
    )  # a tensor without dimensions says it is iterable


def _result(returned: Any, curve: list[Point]) -> Point:
    if isinstance(returned, Mapping):
        return _point(returned)
    if _is_curve(returned):
        if not curve:
            raise _WrongResult(f"run yielded nothing; {_EXPECTED}")
        return curve[-1]
    value = _number(returned)
    if value is None:
        raise _WrongResult(f"run returned {_a(returned)}; {_EXPECTED}")
    return {"value": value}


def _point(returned: Any) -> Point:
    if not isinstance(returned, Mapping):
        raise _WrongResult(f"run yielded {_a(returned)}; {_EXPECTED}")
    if not returned:
        raise _WrongResult(f"run gave an empty dict; {_EXPECTED}")
    point = {}
    for name, item in returned.items():
        value = _number(item)
        if value is None or not isinstance(name, str):
            raise _WrongResult(f"run gave {_a(item)} for {name!r}; {_EXPECTED}")
        point[_storable(str.__str__(name))] = value  # a plain text, as a subclass may not travel
    return point


def _number(value: Any) -> float | None:
    """Return a Python, numpy or torch scalar as a float, None for anything else."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    return float(value) if isinstance(value, numbers.Real) else None


def _a(value: Any) -> str:
    name = type(value).__name__
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"{article} {name}" + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) and shape else "")


def _ending(error: BaseException) -> dict[str, Any]:
    """Return status, one-line error and traceback of a run that raised."""
    if isinstance(error, _WrongResult):
        return {"status": FAILED, "error": str(error)}
    status = OUT_OF_MEMORY if _lacks_memory(error) else FAILED
    try:
        first = " ".join(_storable(str(error)).split())
    except Exception:  # its own __str__ failed; the traceback still tells
        first = ""
    sentence = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if isinstance(error, WorkingPapersError):
        sentence = first
    return {
        "status": status,
        "error": sentence if len(sentence) <= 300 else sentence[:297] + "...",
        "traceback": _storable(
            "".join(traceback.format_exception(type(error), error, _own_frames(error.__traceback__)))
        ),
    }


def _storable(text: str) -> str:
    """Return `text` with what UTF-8 cannot hold (halves of surrogate pairs, as in odd file names) spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _lacks_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _NO_MEMORY)


def _own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of this room, with which every traceback begins."""
    here = Path(__file__).parent
    while trace and trace.tb_next and Path(trace.tb_frame.f_code.co_filename).parent == here:
        trace = trace.tb_next
    return trace


@lru_cache(maxsize=4)
def machine(device: str = "cpu") -> str:
    """Return the machine in words: host, processor, cores, and the GPU where the run used one."""
    words = [platform.node() or "unknown host", f"{_processor()} x {os.cpu_count()}"]
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            words.append(torch.cuda.get_device_name(device))
    return ", ".join(words)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
