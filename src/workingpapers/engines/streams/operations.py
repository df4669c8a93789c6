"""One operation of a traced network, and the simplest way to run it on a stream: frame by frame."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.nn import functional as F

FUNCTIONS = {  # those that cannot be pickled, by name
    getattr(F, name): name
    for stem in ("max_pool", "adaptive_max_pool")
    for name in (f"{stem}1d", f"{stem}2d", f"{stem}3d")
}


@dataclass(frozen=True)
class Ref:
    """Stands for the value of another operation."""

    name: str


@dataclass(frozen=True)
class Operation:
    """A call of a module ("call_module"), function, method, or the reading of an attribute ("get_attr")."""

    name: str
    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, network: nn.Module, values: Mapping[str, Any]) -> Any:
        """Return the result, given the values of the operations that it refers to."""

        def value(arg: Any) -> Any:
            return values[arg.name] if isinstance(arg, Ref) else arg

        args: Any = map_aggregate(self.args, value)
        kwargs: Any = map_aggregate(dict(self.kwargs), value)
        if self.kind == "call_module":
            return network.get_submodule(self.target)(*args, **kwargs)
        if self.kind == "get_attr":
            return reduce(getattr, self.target.split("."), network)
        if self.kind == "call_method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        function = getattr(F, self.target) if isinstance(self.target, str) else self.target
        return function(*args, **kwargs)


@dataclass
class World:
    """What a step may look at: the network, values that are no streams, and where in the stream we are."""

    network: nn.Module
    values: dict[str, Any]
    ending: bool = False


class Step:
    """How one operation runs on a stream.

    A step object never changes; what it remembers is its state, which goes in and comes out.  Frames are tensors
    whose time axis has the length 1.
    """

    def start(self) -> Any:
        """Return the state before the first frame."""
        return ()

    def push(self, world: World, inputs: list[list[Any]], state: Any) -> tuple[list[Any], Any]:
        """Take the frames that have arrived at each input, in order; return those that are ready, and the state."""
        raise NotImplementedError

    def end(self, world: World, state: Any) -> list[Any]:
        """Return what still comes once the inputs have ended."""
        return []

    def clip(self, world: World, inputs: list[Any]) -> Any:
        """Return the outputs for whole clips at once."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pass(Step):
    """An operation that treats each frame by itself; of several inputs, frames of the same time meet.

    Frames wait in the state until their partners have come: this is the delay that a shortcut around a
    convolution needs.  `skip` is how many frames to drop of each input before the first meeting, `axes` the time
    axis of each (None where there is none).
    """

    operation: Operation
    inputs: tuple[str, ...]
    skip: tuple[int, ...]
    axes: tuple[int | None, ...]

    def start(self) -> Any:
        """Return empty queues, and how many frames each input still drops."""
        return tuple(() for _ in self.inputs), self.skip

    def push(self, world: World, inputs: list[list[Any]], state: Any) -> tuple[list[Any], Any]:
        """Run the operation once for all that have met."""
        queues, skip = state
        arrived = [(*q, *new[min(k, len(new)) :]) for q, new, k in zip(queues, inputs, skip, strict=True)]
        skip = tuple(k - min(k, len(new)) for k, new in zip(skip, inputs, strict=True))
        met = min(len(q) for q in arrived)
        out = [self._run(world, [q[i] for q in arrived]) for i in range(met)]
        return out, (tuple(q[met:] for q in arrived), skip)

    def clip(self, world: World, inputs: list[Any]) -> Any:
        """Run the operation on the stretch of time that all inputs have."""
        timed = [
            x.shape[a] - k
            for x, a, k in zip(inputs, self.axes, self.skip, strict=True)
            if a is not None and isinstance(x, Tensor)
        ]
        if len(inputs) > 1 and timed:
            inputs = [
                x.narrow(a, k, min(timed)) if a is not None and isinstance(x, Tensor) else x
                for x, a, k in zip(inputs, self.axes, self.skip, strict=True)
            ]
        return self._run(world, inputs)

    def _run(self, world: World, frames: list[Any]) -> Any:
        return self.operation.run(
            world.network, {**world.values, **dict(zip(self.inputs, frames, strict=True))}
        )


@dataclass(frozen=True)
class Cut(Step):
    """x[..., first : -last, ...] along time: drops frames at the beginning and at the end.

    `tail` is how many frames come only when the stream ends, because of padding; as many need not be held back.
    Where padding is dropped (not `padded`), they never come.
    """

    axis: int
    first: int
    last: int
    tail: int
    padded: bool = True

    def start(self) -> Any:
        """Return how many frames are still to be dropped, and those that are held back."""
        return self.first, ()

    def push(self, world: World, inputs: list[list[Any]], state: Any) -> tuple[list[Any], Any]:
        """Give all but the newest frames that may turn out to be at the end."""
        first, held = state
        dropped = min(first, len(inputs[0]))
        held = (*held, *inputs[0][dropped:])
        if world.ending:
            return [], (first - dropped, held)
        ready = max(len(held) - max(self.last - self.tail, 0), 0)
        return list(held[:ready]), (first - dropped, held[ready:])

    def end(self, world: World, state: Any) -> list[Any]:
        """Give what is not at the end."""
        return list(state[1][: len(state[1]) - self.last])

    def clip(self, world: World, inputs: list[Any]) -> Any:
        """Cut a clip."""
        last = self.last if self.padded else max(self.last - self.tail, 0)
        length = inputs[0].shape[self.axis] - self.first - last
        return inputs[0].narrow(self.axis, self.first, max(length, 0))


@dataclass(frozen=True)
class Pad(Step):
    """`before` frames of a constant before the stream, `after` ones after it; both 0 where padding is dropped."""

    axis: int
    before: int
    after: int
    value: float

    def start(self) -> Any:
        """Return the last frame seen: none yet."""
        return None

    def push(self, world: World, inputs: list[list[Any]], state: Any) -> tuple[list[Any], Any]:
        """Give the frames, after the padding where they are the first."""
        frames = inputs[0]
        if not frames:
            return [], state
        begun = [] if state is not None else self._blank(frames[0], self.before)
        return [*begun, *frames], frames[-1]

    def end(self, world: World, state: Any) -> list[Any]:
        """Give the padding that comes last."""
        return self._blank(state, self.after) if state is not None else []

    def _blank(self, like: Tensor, count: int) -> list[Any]:
        return [torch.full_like(like, self.value)] * count

    def clip(self, world: World, inputs: list[Any]) -> Any:
        """Return the clip with its padding."""
        x = inputs[0]
        blank = torch.full_like(x.narrow(self.axis, 0, 1), self.value)
        return torch.cat([blank] * self.before + [x] + [blank] * self.after, self.axis)
