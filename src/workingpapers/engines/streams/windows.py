"""What takes time away: means, maxima and other readings of a window of frames."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workingpapers.engines.streams.operations import Operation, Step, World
from workingpapers.errors import WorkingPapersError


@dataclass(frozen=True)
class Window(Step):
    """An operation that reads the last `length` frames and gives one output for each new frame.

    `how` is "mean", "sum" or "max" where the operation gives this of what it gives for single frames: then a
    running sum is kept, formed anew once in `length` steps, or the frames' maxima.  Otherwise ("whole") the
    operation runs on the whole window each time.
    """

    operation: Operation
    input: str
    axis: int
    length: int
    how: str

    def start(self) -> Any:
        """Return an empty window, no sum, and how old the sum is."""
        return (), None, 0

    def push(self, world: World, inputs: list[list[Any]], state: Any) -> tuple[list[Any], Any]:
        """Give an output for each frame, once the window is full."""
        out = []
        for frame in inputs[0]:
            kept, total, age = state
            new = frame if self.how == "whole" else self._run(world, frame)
            old, kept = (kept[0], kept[1:]) if len(kept) == self.length else (None, kept)
            kept, full = (*kept, new), len(kept) + 1 == self.length
            if self.how in ("mean", "sum"):
                fresh = total is None or age >= self.length
                total = torch.stack(kept).sum(0) if fresh else total + new - (0 if old is None else old)
                age = 0 if fresh else age + 1
            state = kept, total, age
            if full:
                out.append(self._read(world, kept, total))
        return out, state

    def _read(self, world: World, kept: tuple[Tensor, ...], total: Tensor | None) -> Any:
        if self.how == "whole":
            return self._run(world, torch.cat(kept, self.axis))
        if total is None:
            return torch.stack(kept).amax(0)
        return total / self.length if self.how == "mean" else total

    def _run(self, world: World, x: Tensor) -> Any:
        return self.operation.run(world.network, {**world.values, self.input: x})

    def clip(self, world: World, inputs: list[Any]) -> Any:
        """Run the operation on the newest window of the clip."""
        there = inputs[0].shape[self.axis]
        if there < self.length:
            raise WorkingPapersError(
                f"the clip is too short: {self.length} frames are read together, and {there} are there"
            )
        return self._run(world, inputs[0].narrow(self.axis, there - self.length, self.length))
