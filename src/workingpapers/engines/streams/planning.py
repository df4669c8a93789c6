"""From a traced network to the steps that run it on a stream."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.streams.convolutions import CONVOLUTIONS, POOLS, Convolve, Pool, reach_of
from workingpapers.engines.streams.encoders import Encode, Positions, RecyclingPositions, layers_of
from workingpapers.engines.streams.operations import Cut, Operation, Pad, Pass, Ref, Step
from workingpapers.engines.streams.tracing import Traced, trace
from workingpapers.engines.streams.windows import Window
from workingpapers.errors import WorkingPapersError

MEANS = {"mean", torch.mean}
POOLED = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
SUMS, MAXIMA = {"sum", torch.sum}, {"amax", torch.amax}
PADDINGS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)  # nn.ZeroPad are among them


@dataclass(frozen=True)
class Wishes:
    """How a network is to run on a stream; see `convert`."""

    time: int
    padding: str
    window: int | None
    attention: str
    outputs: str


@dataclass(frozen=True)
class Entry:
    """A step with its inputs; or, where there is no step, an operation whose value is no stream of tensors.

    Such a value may still depend on the stream, as sizes do (`streams`), and on other such values (`values`).
    """

    name: str
    operation: Operation
    step: Step | None
    inputs: tuple[str, ...]
    streams: bool
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The steps of a network in order.

    Attributes:
        entries: the steps.
        entrance: name of the network's input.
        exit: name of its output.
        time: axis of time of the input.
        axis: that of the output of a step, None where it has none.
        windowed: whether outputs are those of windows, not of the whole stream.
        native: whether the network itself gives the outputs for a clip.
    """

    entries: tuple[Entry, ...]
    entrance: str
    exit: str
    time: int
    axis: int | None
    windowed: bool
    native: bool


def plan(model: nn.Module, clip: Tensor, wishes: Wishes) -> Plan:
    """Return the plan of `model`, which is in evaluation mode, for clips like the given one."""
    operations, entrance, exit = trace(model, clip, wishes.time)
    planner = _Planner(model, wishes, {t.name: t for t in operations})
    entries = [planner.entry(t) for t in operations if t.name != entrance]
    if planner.windowed and planner.padded and wishes.padding == "keep":
        raise WorkingPapersError(
            f"{planner.padded} pads each window with zeros over time, which no stream has; "
            "padding='drop' runs the network without, from the same weights"
        )
    steps = [e.step for e in entries]
    if not any(isinstance(s, Convolve | Pool | Window | Encode | Cut | Pad | Positions) for s in steps):
        raise WorkingPapersError(f"{type(model).__name__} has no operation over time (axis {wishes.time})")
    band = any(isinstance(s, Encode) and s.attention == "band" for s in steps)
    moved = any(isinstance(s, Positions) for s in steps)
    native = not band and not moved and wishes.padding == "keep"
    last = {t.name: t for t in operations}[exit]
    axis = None if exit in planner.whole else last.axis
    return Plan(tuple(entries), entrance, exit, wishes.time, axis, planner.windowed, native)


class _Planner:
    """Gives each operation its step; knows how many frames each value has lost at the start, and its tail."""

    def __init__(self, model: nn.Module, wishes: Wishes, traced: Mapping[str, Traced]) -> None:
        self.model, self.wishes, self.traced = model, wishes, traced
        self.begin = dict.fromkeys(traced, 0)
        self.tail = dict.fromkeys(traced, 0)
        self.whole: set[str] = set()  # values that are whole windows
        self.windowed, self.padded = False, ""

    def entry(self, t: Traced) -> Entry:
        """Return the entry of an operation."""
        inputs = tuple(n for n in t.needs if self.traced[n].streams and self.traced[n].tensor)
        if not t.streams or not t.tensor:
            values = tuple(n for n in t.needs if n not in inputs)
            return Entry(t.name, t.operation, None, inputs, t.streams, values)
        timed = [n for n in inputs if self.traced[n].axis is not None and n not in self.whole]
        if any(n in self.whole for n in inputs):
            if timed:
                raise WorkingPapersError(
                    f"{t.name!r} joins a stream of frames with whole windows (outputs='all'), which do not fit"
                )
            self.whole.add(t.name)
            step: Step = Pass(t.operation, inputs, (0,) * len(inputs), (None,) * len(inputs))
        elif len(timed) == 1:
            step = self._over_time(t, timed[0]) or self._pass(t, inputs)
        elif timed and t.axis is None:
            raise WorkingPapersError(f"{t.name!r} takes the time out of several values at once")
        else:
            step = self._pass(t, inputs)
        return Entry(t.name, t.operation, step, step.inputs if isinstance(step, Pass) else (timed[0],), True)

    def _pass(self, t: Traced, inputs: tuple[str, ...]) -> Pass:
        begin = max((self.begin[n] for n in inputs), default=0)
        self.begin[t.name] = begin
        self.tail[t.name] = max((self.tail[n] for n in inputs), default=0)
        axes = tuple(self.traced[n].axis for n in inputs)
        return Pass(t.operation, inputs, tuple(begin - self.begin[n] for n in inputs), axes)

    def _over_time(self, t: Traced, source: str) -> Step | None:
        """Return the step of an operation with one stream of frames as input, None if it treats each alone."""
        axis: Any = self.traced[source].axis
        op = t.operation
        module = self.model.get_submodule(op.target) if op.kind == "call_module" else None
        if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer):
            return self._encode(t, module, source, axis)
        if t.axis is None:
            self.windowed = True
            index = op.args[1] if op.target is operator.getitem else ()
            newest = isinstance(index, tuple) and index[axis : axis + 1] == (-1,)
            length = 1 if newest else self.traced[source].shape[axis]
            if op.target in POOLED and set(t.shape[2:]) == {
                1
            }:  # whose size is that of its input, as in ST-GCN
                op = Operation(
                    t.name, "call_method", "mean", (Ref(source), (*range(2, len(t.shape)),), True), {}
                )
            return Window(op, source, axis, length, self._how(op, t.shape, module, axis))
        if isinstance(module, RecyclingPositions):
            return Positions(op.target)
        if isinstance(module, CONVOLUTIONS + POOLS) and axis >= 2:
            return self._reach(t, module, source, axis)
        if isinstance(module, PADDINGS) or op.target is F.pad:
            return self._pad(t, module, source, axis)
        if op.target is operator.getitem:
            return self._cut(t, source, axis)
        return None

    def _encode(self, t: Traced, module: nn.Module, source: str, axis: int) -> Step:
        layers_of(module)
        given = [*t.operation.args[1:], *t.operation.kwargs.values()]
        if any(g is not None and g is not False for g in given):
            raise WorkingPapersError(
                f"{t.name!r} is given a mask, which an encoder on a stream does not take"
            )
        w = self.wishes
        self.begin[t.name], self.tail[t.name] = self.begin[source], self.tail[source]
        if w.attention == "window":
            self.windowed = True
            if w.outputs == "all":
                self.whole.add(t.name)
        length = w.window or self.traced[source].shape[axis]
        return Encode(t.operation.target, length, w.attention, w.outputs, axis)

    def _how(self, op: Operation, shape: tuple[int, ...], module: nn.Module | None, axis: int) -> str:
        mean = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
        largest = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
        if module is not None:
            single = shape[axis : axis + 1] == (1,)
            if isinstance(module, mean + largest) and single:
                return "mean" if isinstance(module, mean) else "max"
            return "whole"
        known = {"mean": MEANS, "sum": SUMS, "max": MAXIMA}
        return next((how for how, targets in known.items() if op.target in targets), "whole")

    def _reach(self, t: Traced, module: nn.Module, source: str, axis: int) -> Step | None:
        reach = reach_of(module, axis, len(t.shape) - 2)
        if reach.alone:
            return None
        if reach.left or reach.right:
            self.padded = self.padded or repr(module)
        self.tail[t.name] = (self.tail[source] + reach.right) // reach.stride
        if self.wishes.padding == "drop":
            reach = reach.dropped(self.begin[source])
            self.begin[t.name] = reach.first
        kind = Convolve if isinstance(module, CONVOLUTIONS) else Pool
        return kind(t.operation.target, axis, reach)

    def _pad(self, t: Traced, module: Any, source: str, axis: int) -> Step | None:
        op = t.operation
        given = dict(zip(("input", "pad", "mode", "value"), op.args, strict=False)) | dict(op.kwargs)
        pads = [*module.padding] if module is not None else list(given["pad"])
        at = 2 * (len(t.shape) - 1 - axis)
        if at >= len(pads) or not any(pads[at : at + 2]):
            return None
        before, after = pads[at : at + 2]
        if any(pads[:at]) or any(pads[at + 2 :]) or given.get("mode", "constant") != "constant" or before < 0:
            raise WorkingPapersError(
                f"{t.name!r} must pad by a constant, and over time alone, to run on a stream"
            )
        value = module.value if module is not None else given.get("value") or 0.0
        self.padded = self.padded or t.name
        self.tail[t.name] = self.tail[source] + after
        if self.wishes.padding == "drop":
            self.begin[t.name] = self.begin[source] + before
            before = after = 0
        return Pad(axis, before, after, float(value))

    def _cut(self, t: Traced, source: str, axis: int) -> Step | None:
        index = t.operation.args[1]
        index = index if isinstance(index, tuple) else (index,)
        if axis >= len(index) or not isinstance(index[axis], slice) or index[axis] == slice(None):
            return None
        own = index[axis]
        rest = [i for n, i in enumerate(index) if n != axis]
        first, last = own.start or 0, -(own.stop or 0)
        if own.step not in (None, 1) or first < 0 or last < 0 or any(i != slice(None) for i in rest):
            raise WorkingPapersError(
                f"{t.name!r} must cut frames off the ends, as x[:, :, a:-b], to run on a stream"
            )
        tail, dropped = self.tail[source], self.wishes.padding == "drop"
        self.tail[t.name] = max(tail - last, 0)
        if dropped:
            self.begin[t.name] = max(self.begin[source] - first, 0)
            first = max(first - self.begin[source], 0)
        return Cut(axis, first, last, tail, not dropped)
