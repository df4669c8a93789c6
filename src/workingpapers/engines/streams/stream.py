"""A trained network on a stream: one frame in, one output out, the same outputs as on clips, the same weights."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from workingpapers.engines.streams.operations import World
from workingpapers.engines.streams.planning import Plan, Wishes, plan
from workingpapers.engines.streams.tracing import first_line
from workingpapers.errors import WorkingPapersError, unknown

State = dict[str, dict[str, Any]]


class Stream(nn.Module):
    """A network, and the plan by which it runs on a stream.

    Attributes:
        model: the network, with its own weights and names.
        plan: how each of its operations steps.
        warmup: how many frames there are up to the first output.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.model, self.plan, self.warmup = model, plan, 0

    def forward(self, clip: Tensor, start: int = 0) -> Tensor:
        """Return the outputs for a clip at once; its first frame is number `start` of its stream."""
        p = self.plan
        if p.native:
            return self.model(clip)  # type: ignore[no-any-return]
        world = World(self.model, {"start": start, p.entrance: clip})
        for e in p.entries:
            if e.step is None:
                world.values[e.name] = e.operation.run(self.model, world.values)
            else:
                world.values[e.name] = e.step.clip(world, [world.values[n] for n in e.inputs])
        return world.values[p.exit]  # type: ignore[no-any-return]

    def step(self, frame: Tensor, state: State | None = None) -> tuple[Tensor | None, State]:
        """Take one frame (a clip without its time axis); return the output, if there is one yet, and the state.

        Run it in evaluation mode, and without gradients.  No state (the default) is the start of a stream; a
        state is never changed, so that it can be kept and gone on from again.
        """
        done, state = self._advance([frame.unsqueeze(self.plan.time)], state, False)
        return (self._frame(done[-1]) if done else None), state

    def steps(
        self, clip: Tensor, state: State | None = None, end: bool = False
    ) -> tuple[Tensor | None, State]:
        """Take the frames of a clip one by one; return the outputs together, and the state.

        Outputs with a time axis are joined along it; others are stacked along a new first axis.  With `end` the
        outputs that see padding behind the last frame come too, and the stream is over.
        """
        out = []
        for frame in clip.split(1, self.plan.time):
            done, state = self._advance([frame], state, False)
            out += done
        if end:
            done, state = self._advance([], state, True)
            out += done
        if not out:
            return None, state or self._start()
        joined = torch.stack(out) if self.plan.axis is None else torch.cat(out, self.plan.axis)
        return joined, state or self._start()

    def _frame(self, y: Tensor) -> Tensor:
        return y if self.plan.axis is None else y.squeeze(self.plan.axis)

    def _start(self) -> State:
        return {"steps": {e.name: e.step.start() for e in self.plan.entries if e.step}, "values": {}}

    def _advance(self, frames: list[Tensor], state: State | None, ending: bool) -> tuple[list[Any], State]:
        state = state or self._start()
        steps, world = dict(state["steps"]), World(self.model, dict(state["values"]), ending)
        arrived: dict[str, list[Any]] = {self.plan.entrance: frames}
        kept = {}
        for e in self.plan.entries:
            if e.step is None:
                if all(arrived[n] for n in e.inputs) and all(n in world.values for n in e.values):
                    newest = {n: arrived[n][-1] for n in e.inputs}
                    world.values[e.name] = e.operation.run(self.model, {**world.values, **newest})
                if e.streams and e.name in world.values:
                    kept[e.name] = world.values[e.name]
                continue
            out, own = e.step.push(world, [arrived[n] for n in e.inputs], steps[e.name])
            arrived[e.name] = [*out, *e.step.end(world, own)] if ending else out
            steps[e.name] = own
        return arrived[self.plan.exit], {"steps": steps, "values": kept}


def convert(
    model: nn.Module,
    example: Tensor,
    *,
    time: int = 2,
    padding: str = "keep",
    window: int | None = None,
    attention: str = "window",
    outputs: str = "newest",
) -> Stream:
    """Return a copy of `model` that also runs on streams, checked on `example` against its outputs on clips.

    Args:
        model: takes clips with an axis of time and gives one tensor; every operation of it that relates frames
            must be a convolution, a pool, a mean or other reading of all frames, a cut or padding at the ends,
            recycling positions, or a transformer encoder of torch's.  Shortcuts wait for their partners.
        example: a clip; its length is that of the windows which means over time and encoders see.
        time: its axis of time.
        padding: "keep" takes the stream as one long clip with its padding; "drop" gives the outputs without
            padding over time, as networks must that are to see windows.
        window: how many tokens encoders see, where that is not the example's length.
        attention: "window" or "band"; see `encoders`.
        outputs: of an encoder on a window, the "newest" token's or "all".

    Raises:
        WorkingPapersError: where the model has an operation that does not run on a stream.
    """
    for what, value, valid in (
        ("padding", padding, ("keep", "drop")),
        ("attention on a stream", attention, ("window", "band")),
        ("outputs of an encoder", outputs, ("newest", "all")),
    ):
        if value not in valid:
            raise unknown(what, value, valid)
    if window is not None and window < 1:
        raise WorkingPapersError(f"an encoder sees a window of at least 1 token; got {window}")
    if isinstance(model, Stream):
        model = model.model
    own, mode = copy.deepcopy(model), model.training
    with torch.no_grad():
        own.eval()
        stream = Stream(own, plan(own, example, Wishes(time, padding, window, attention, outputs))).eval()
        stream.warmup = _checked(stream, example)
    for old, new in zip(model.modules(), own.modules(), strict=True):
        new.training = old.training
    stream.training = mode
    return stream


def _checked(stream: Stream, example: Tensor) -> int:
    """Return the number of frames up to the first output; raise if the outputs are not those on clips."""
    p, time = stream.plan, stream.plan.time
    back = example.flip(time)
    clip = torch.cat([example, back, example, back], time)
    state, out = None, []
    try:
        for t, frame in enumerate(clip.split(1, time)):
            done, state = stream._advance([frame], state, False)
            if len(done) > 1:
                raise WorkingPapersError(
                    "there are more zeros in front of the first frame than what reads them takes"
                )
            out += [(t, y) for y in done]
        if not out:
            raise WorkingPapersError(f"there is no output yet after {clip.shape[time]} frames")
        if p.windowed:
            _compare_windows(stream, clip, out)
        else:
            found, _ = stream.steps(clip, end=p.native)
            wanted = stream(clip)
            _compare(found, wanted)
    except (RuntimeError, ValueError, IndexError) as problem:
        raise WorkingPapersError(
            f"{type(stream.model).__name__} does not run frame by frame; something in it relates frames "
            f"({first_line(problem)})"
        ) from problem
    return out[0][0] + 1


def _compare_windows(stream: Stream, clip: Tensor, out: list[tuple[int, Tensor]]) -> None:
    """Hold outputs against those of the network for the clip that they see, or for the stream so far."""
    first, time, axis = out[0][0], stream.plan.time, stream.plan.axis
    for t, y in out[:3]:
        begin = t - first if stream.plan.native else 0
        wanted = stream(clip.narrow(time, begin, t + 1 - begin))
        if axis is not None:
            wanted = wanted.narrow(axis, wanted.shape[axis] - 1, 1)
        _compare(y, wanted)


def _compare(found: Tensor | None, wanted: Tensor) -> None:
    if found is not None and found.shape == wanted.shape:
        gap = float((found.double() - wanted.double()).abs().max()) if found.numel() else 0.0
        size = float(wanted.double().abs().max()) if wanted.numel() else 0.0
        if gap <= (1e-3 if wanted.dtype in (torch.float16, torch.bfloat16) else 1e-5) * max(size, 1.0) * 10:
            return
    raise WorkingPapersError(
        "frame by frame the outputs are not those on clips: something relates frames in a way that is not known "
        "here (such as positions that count from the window's start), or all outputs of an encoder are read, which "
        "outputs='all' gives"
    )


@torch.no_grad()
def multiply_adds(run: Callable[[], object]) -> int:
    """Return how many multiply-adds the matrix products and convolutions of a call `run()` take."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused operations are not counted
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2
