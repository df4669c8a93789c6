"""The walk through a network: cells on which it is affine so far, cut where the next neurons bend.

Cells are taken depth first in chunks, so what is held at a time grows with the depth, not with the number of cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from workingpapers.engines.bounds.affine import Dense
from workingpapers.engines.regions.polygons import Cuts
from workingpapers.engines.regions.program import Bend, Program, Step

TOLERANCE = 1e-12  # of the domain's diameter: pieces that are thinner stay with their neighbour
ROUNDING = 1e-14  # of the largest value so far: what varies less does so by rounding alone
NUMBERS = 1_500_000  # in the frames of a chunk of cells, over 3
MOST = 16_384  # cells in a chunk
SPARSE = 0.05  # changes as a share of all neurons, up to which a product is that of the parents, mended


class Cells(Protocol):
    """Pieces of the domain: `Polygons` or `Intervals`."""

    def __len__(self) -> int: ...
    def part(self, index: Tensor | slice) -> Self: ...
    def box(self) -> tuple[Tensor, Tensor]: ...
    def crossed(self, cuts: Cuts) -> Tensor: ...
    def cut(self, cuts: Cuts, most: int) -> Iterator[tuple[Self, Tensor]]: ...


C = TypeVar("C", bound=Cells)


@dataclass
class _Shared:
    """What the bent neurons of a chunk give on it, before it is cut, and products of that with matrices."""

    frames: Tensor
    products: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Changed:
    """Frames of pieces: those of their parents but for `change` (d + 1, changes) at `row` and `column`."""

    shared: _Shared
    parent: Tensor
    row: Tensor
    column: Tensor
    change: Tensor

    def whole(self) -> Tensor:
        out = self.shared.frames[:, self.parent]
        out[:, self.row, self.column] += self.change
        return out

    def product(self, place: int, step: Step) -> Tensor:
        """Return what a dense step makes of the frames."""
        assert isinstance(step.operation, Dense)
        rows, size = len(self.shared.frames), self.shared.frames.shape[2]
        if len(self.row) > SPARSE * len(self.parent) * size:
            return step.affine(self.whole())
        if place not in self.shared.products:
            self.shared.products[place] = step.affine(self.shared.frames)
        out = self.shared.products[place][:, self.parent]
        counts = torch.bincount(self.row, minlength=len(self.parent)).repeat(rows)
        starts = np.concatenate([[0], counts.cumsum(0).numpy()])
        columns = self.column.repeat(rows).numpy()
        matrix = csr_array(
            (self.change.flatten().numpy(), columns, starts), shape=(rows * len(self.parent), size)
        )
        weight = np.ascontiguousarray(step.operation.weight.T.numpy())
        out += torch.from_numpy(matrix @ weight).view_as(out)
        return out


Frames = Tensor | _Changed


@dataclass
class State(Generic[C]):
    """Cells, what steps give on them as far as it is still needed, and the size of the largest value so far."""

    cells: C
    values: dict[int, Frames]
    size: Tensor


@dataclass(frozen=True)
class _Bent:
    """The neurons that bend inside cells, cell by cell: each cell's `count` of them from `start` on."""

    forms: Tensor  # (d + 1, pairs)
    column: Tensor
    part: Tensor  # on which straight part the middle of the owner lies
    start: Tensor
    count: Tensor


class Walk(Generic[C]):
    """Cuts cells until a network is affine on each; `diameter` is that of the domain."""

    def __init__(self, program: Program, diameter: float) -> None:
        self.program, self.tolerance = program, TOLERANCE * diameter
        levels = sum(isinstance(step.operation, Bend) for step in program.steps)
        self.chunk = max(16, min(MOST, NUMBERS // (program.widest * max(1, levels // 6))))

    @torch.no_grad()
    def run(self, cells: C, frames: Tensor) -> Iterator[tuple[C, Tensor]]:
        """Give cells on which the network is affine, with its frames (d + 1, cells, outputs) there."""
        size = frames.abs().amax((0, 2))
        for state in self._walk(State(cells, {0: frames}, size), 1):
            yield state.cells, _whole(state.values[len(self.program.steps) - 1])

    def _walk(self, state: State[C], place: int) -> Iterator[State[C]]:
        for here in range(place, len(self.program.steps)):
            step = self.program.steps[here]
            if isinstance(step.operation, Bend):
                frames = _whole(state.values[step.inputs[0]])
                state.values[step.inputs[0]] = frames
                part, cuts, bent = self._bends(state, frames, step.operation)
                after = step.operation(frames, part)
                self._forget(state, here)
                del frames, part
                if len(cuts.owner):
                    for child in self._children(state, step.operation, after, cuts, bent):
                        child.values[here] = child.values.pop(-1)
                        yield from self._walk(child, here + 1)
                    return
                state.values[here] = after
            else:
                given = [state.values[i] for i in step.inputs]
                state.values[here] = _affine(step, here, given)
                self._forget(state, here)
        yield state

    def _forget(self, state: State[C], here: int) -> None:
        for i in {*self.program.steps[here].inputs}:
            if self.program.last_use[i] == here:
                del state.values[i]

    def _bends(self, state: State[C], frames: Tensor, bend: Bend) -> tuple[Tensor, Cuts, _Bent]:
        """Return the parts that middles lie on, where neurons bend inside cells, and which these are."""
        middle, half = state.cells.box()
        z, reach = frames[-1], torch.zeros(())
        for k in range(len(frames) - 1):
            z = torch.addcmul(z, frames[k], middle[:, k, None])
            reach = torch.addcmul(reach, frames[k].abs(), half[:, k, None])
        state.size = torch.maximum(state.size, z.abs().amax(1))
        found = [self._crossing(state, frames, z, reach, bend, i) for i in range(len(bend.kinks))]
        part = bend.part(z)
        cuts, column = found[0] if found else _none(frames)
        pairs = cuts.owner * z.shape[1] + column
        if len(found) > 1:
            cuts = Cuts(*(torch.cat(list(each), -1) for each in zip(*(c for c, _ in found), strict=True)))
            pairs = (cuts.owner * z.shape[1] + torch.cat([c for _, c in found])).unique()
            order = torch.argsort(cuts.owner, stable=True)
            cuts = cuts.chosen(order)
        owner, column = pairs // z.shape[1], pairs % z.shape[1]
        count = torch.bincount(owner, minlength=len(state.cells))
        bent = _Bent(frames[:, owner, column], column, part[owner, column], count.cumsum(0) - count, count)
        return part, cuts, bent

    def _crossing(
        self, state: State[C], frames: Tensor, z: Tensor, reach: Tensor, bend: Bend, i: int
    ) -> tuple[Cuts, Tensor]:
        """Return where kink i lies inside cells, and of which neurons."""
        kink = bend.kinks[i]
        near = (z - kink if kink else z).abs() < reach
        if not bend.everywhere[i]:
            near &= bend.real[i]
        owner, column = near.nonzero(as_tuple=True)
        forms = frames[:, owner, column]
        forms[-1] -= kink
        slack = self.tolerance * forms[:-1].norm(dim=0) + ROUNDING * state.size[owner]
        cuts = Cuts(owner, forms, slack)
        kept = state.cells.crossed(cuts).nonzero()[:, 0]
        return cuts.chosen(kept), column[kept]

    def _children(
        self, state: State[C], bend: Bend, after: Tensor, cuts: Cuts, bent: _Bent
    ) -> Iterator[State[C]]:
        """Give the pieces of all cells in chunks of about one size; what the bend gives stands at -1."""
        shared = _Shared(after)
        others = {i: _whole(value) for i, value in state.values.items()}
        for cells, parent in state.cells.cut(cuts, 8 * self.chunk):
            number = max(1, round(len(cells) / self.chunk))
            length = -(-len(cells) // number)
            for start in range(0, len(cells), length):
                piece = slice(start, start + length)
                part, owner = cells.part(piece), parent[piece]
                values: dict[int, Frames] = {i: value[:, owner] for i, value in others.items()}
                values[-1] = _changed(part, owner, bend, shared, bent)
                yield State(part, values, state.size[owner])


def _changed(cells: Cells, parent: Tensor, bend: Bend, shared: _Shared, bent: _Bent) -> _Changed:
    """Return the frames of pieces: what bends inside a parent may lie on another part than at its middle."""
    middle = cells.box()[0]
    count = bent.count[parent]
    row = torch.repeat_interleave(count)
    pair = torch.arange(len(row)) + (bent.start[parent] - (count.cumsum(0) - count))[row]
    forms = bent.forms[:, pair]
    z = forms[-1]
    for k in range(len(forms) - 1):
        z = torch.addcmul(z, forms[k], middle[row, k])
    part, before, column = bend.part(z), bent.part[pair], bent.column[pair]
    differs = (part != before).nonzero()[:, 0]
    row, column, new, old = (x[differs] for x in (row, column, part, before))
    new, old = new.long(), old.long()
    change = forms[:, differs] * (bend.slopes[new, column] - bend.slopes[old, column])
    change[-1] += bend.offsets[new, column] - bend.offsets[old, column]
    return _Changed(shared, parent, row, column, change)


def _none(frames: Tensor) -> tuple[Cuts, Tensor]:
    empty = torch.zeros(0, dtype=torch.long)
    return Cuts(empty, frames.new_zeros(len(frames), 0), frames.new_zeros(0)), empty


def _whole(frames: Frames) -> Tensor:
    return frames if isinstance(frames, Tensor) else frames.whole()


def _affine(step: Step, place: int, given: list[Frames]) -> Tensor:
    if step.is_product and isinstance(given[0], _Changed):
        return given[0].product(place, step)
    return step.affine(*(_whole(g) for g in given))
