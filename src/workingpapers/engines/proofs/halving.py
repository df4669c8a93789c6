"""Proof by halving the box of inputs, for networks of few inputs."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from workingpapers.engines.bounds.affine import Affine
from workingpapers.engines.bounds.graph import Graph
from workingpapers.engines.bounds.propagate import Bounds, bounds, linear, planes_of, rounded_down
from workingpapers.engines.bounds.region import Box
from workingpapers.engines.proofs.certificate import Tree
from workingpapers.engines.proofs.pieces import Part, is_piecewise_linear, separated, solved
from workingpapers.engines.proofs.problem import Problem

# A full batch's boxes with at most so many open ReLUs are answered piece by piece.  Fewer boxes may have more,
# for as many pieces: at a corner at which many ReLUs change sign, halving closes none of them.
PIECES = 5
MOST_PIECES = 11

EVERY = 0.05  # seconds between two points of the course

Watch = Callable[[int, int], None]  # boxes bounded, boxes left


@dataclass(frozen=True)
class Outcome:
    """How a search ended: `verdict` holds, violated or timeout, after bounding `boxes`; `witness` an input.

    The course is of what is left to prove: seconds, boxes bounded, and the share of the set's volume.
    """

    verdict: str
    boxes: int
    witness: Tensor | None = None
    course: tuple[tuple[float, int, float], ...] = ()


def halve(
    problem: Problem,
    deadline: float,
    batch: int = 256,
    workers: int = 1,
    watch: Watch | None = None,
    tree: Tree | None = None,
) -> Outcome:
    """Bound the rows over boxes, cut off where they cannot all be broken, and halve what is left.

    Args:
        problem: with a box that may be halved along every input.
        deadline: of `time.monotonic()`.
        batch: boxes bounded at a time, by each worker.
        workers: threads; the search is the same for the same number.
        watch: called after each batch.
        tree: notes all that the proof consists of, for a certificate.
    """
    everything = torch.ones(1, len(problem.groups), dtype=torch.bool, device=problem.box.lower.device)
    waiting = [Part(problem.box, {}, everything, torch.tensor([-1]))]
    bounded, began = 0, time.monotonic()
    course = [(0.0, 0, 1.0)]
    with _workers(workers) as each:
        while waiting:
            if time.monotonic() > deadline:
                return Outcome("timeout", bounded, None, tuple(course))
            # batches side by side, put back in their order: the same search however the threads run
            parts = [_take(waiting, batch) for _ in range(workers) if waiting]
            ends = list(accumulate((len(part.box.lower) for part in parts), initial=bounded))
            bound = partial(_bounded, problem, tree, deadline, batch)
            for end, (witness, halves) in zip(ends[1:], each(bound, parts, ends[:-1]), strict=True):
                bounded = end
                if witness is not None:
                    return Outcome("violated", bounded, witness, tuple(course))
                if halves is not None:
                    waiting.append(halves)
            if time.monotonic() - began > course[-1][0] + EVERY or not waiting:
                course.append((time.monotonic() - began, bounded, _share(waiting, problem.box)))
            if watch is not None:
                watch(bounded, sum(len(p.box.lower) for p in waiting))
    return Outcome("holds", bounded, None, tuple(course))


def _share(waiting: list[Part], whole: Box) -> float:
    """Return which share of the volume of a box is left."""
    width = (whole.upper - whole.lower).flatten()
    wide = width > 0
    parts = [((p.box.upper - p.box.lower).flatten(1)[:, wide] / width[wide]).prod(1).sum() for p in waiting]
    return float(sum(parts))


@contextmanager
def _workers(number: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Give what maps over so many threads of one torch thread each."""
    if number == 1:
        yield map
        return
    with ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.map


@torch.no_grad()
def _bounded(
    problem: Problem, tree: Tree | None, deadline: float, batch: int, part: Part, before: int
) -> tuple[Tensor | None, Part | None]:
    """Bound the rows over boxes, counted from `before`: return a violation, or the halves of what is left."""
    made = _forms(problem, part, deadline)
    numbers = before + torch.arange(len(part.box.lower))
    if tree is not None:
        tree.boxes(numbers, part.number, part.box, made.found)
    part = Part(part.box, made.known, part.alive, numbers)
    part = replace(part, alive=part.alive & ~_excluded(problem, part, made, tree))
    left = part.alive.any(1)
    points = [_corners(part.box[left], made.form[left])]
    if problem.graph.dtype == torch.float64 and is_piecewise_linear(problem.graph) and bool(left.any()):
        here = left.nonzero().flatten()
        most = min(PIECES + int(math.log2(batch / len(here))), MOST_PIECES)
        done, near = solved(problem, part[here], most, tree)
        left[here[done]] = False
        points.append(near)
    witness = problem.violating(torch.cat(points))
    if witness is not None or not bool(left.any()):
        return witness, None
    return None, _halved(problem, part, made, left.nonzero().flatten())


def _take(waiting: list[Part], batch: int) -> Part:
    """Take so many boxes from the end; what is deep is finished first."""
    taken = [waiting.pop()]
    while waiting and sum(len(p.box.lower) for p in taken) < batch:
        taken.append(waiting.pop())
    box = Box(torch.cat([p.box.lower for p in taken]), torch.cat([p.box.upper for p in taken]))
    known = {
        place: (torch.cat([p.known[place][0] for p in taken]), torch.cat([p.known[place][1] for p in taken]))
        for place in taken[0].known
    }
    whole = Part(box, known, torch.cat([p.alive for p in taken]), torch.cat([p.number for p in taken]))
    if len(box.lower) > batch:
        waiting.append(whole[slice(batch, None)])
        whole = whole[slice(batch)]
    return whole


@dataclass(frozen=True)
class Forms:
    """Forms (subs, rows, inputs) below each row, constants less rounding, and all that they came from."""

    form: Tensor
    constant: Tensor
    lower: Tensor
    passed: dict[int, Tensor]
    found: Bounds
    known: dict[int, tuple[Tensor, Tensor]]


def _forms(problem: Problem, part: Part, deadline: float) -> Forms:
    found = bounds(problem.graph, part.box, known=part.known, output=False, deadline=deadline)
    last = problem.graph.nodes[-1]
    eye = torch.eye(last.size, dtype=problem.graph.dtype, device=part.box.lower.device)
    passed: dict[int, Tensor] = {}
    form, constant = linear(problem.graph, found, len(problem.graph.nodes) - 1, eye[None], passed=passed)
    form = form.flatten(2).expand(len(part.box.lower), -1, -1)
    constant = rounded_down(problem.graph, part.box, form, constant)
    known = {place: (found.lower[place], found.upper[place]) for place in problem.graph.needed()}
    return Forms(form, constant, part.box.least(form) + constant, passed, found, known)


def _excluded(problem: Problem, part: Part, made: Forms, tree: Tree | None) -> Tensor:
    """Return which groups (subs, groups) cannot be broken in a box, by one row or by several together."""
    excluded = problem.excluded(made.lower)
    for number, group in enumerate(problem.groups):
        open_boxes = (part.alive[:, number] & ~excluded[:, number]).nonzero().flatten()
        if len(open_boxes) and int(group.sum()) > 1:
            rows, offsets = made.form[open_boxes][:, group], made.constant[open_boxes][:, group]
            proof = None if tree is None else torch.zeros_like(offsets)
            proved = separated(rows, offsets, part.box[open_boxes], proof=proof)[0]
            excluded[open_boxes, number] = proved
            if tree is not None and proof is not None:
                tree.together(part.number[open_boxes[proved]], number, proof[proved])
    return excluded


def _looseness(graph: Graph, made: Forms, weights: Tensor) -> Tensor:
    """Return (subs, inputs): of what the planes of all nodes lose, the share that each input's width brings about.

    Rows count by their weights (subs, rows).  How a node follows the inputs is taken from chords.
    """
    found, passed = made.found, made.passed
    region = found.region
    subs, inputs = len(region.lower), graph.nodes[0].size
    radius = region.radius.flatten(1)
    ways = torch.diag_embed(radius).reshape(subs * inputs, *graph.nodes[0].shape)
    follow: list[Tensor] = [ways]
    total = radius.new_zeros(subs, inputs)
    for place, node in enumerate(graph.nodes[1:], 1):
        ins = [follow[i] for i in node.inputs]
        if isinstance(node.operation, Affine):
            follow.append(node.operation.forward(*ins) - node.operation.offset)
            continue
        planes = planes_of(found, place, node)
        split = [way.reshape(subs, inputs, *node.shape) for way in ins]
        slopes = [(a + b) / 2 for a, b in zip(planes.below, planes.above, strict=True)]
        changes = [way * slope for way, slope in zip(split, slopes, strict=True)]
        follow.append(torch.stack(changes).sum(0).reshape(-1, *node.shape))
        if place not in passed:
            continue
        middles = [((found.lower[i] + found.upper[i]) / 2).unsqueeze(1) for i in node.inputs]
        gap = planes.above_offset - planes.below_offset
        for a, b, m in zip(planes.above, planes.below, middles, strict=True):
            gap = gap + (a - b) * m
        felt = (weights[:, None] @ passed[place].abs().flatten(2)).reshape(-1, 1, *node.shape)
        lost = (felt * gap.clamp(min=0)).flatten(2)
        size = torch.stack(split).abs().sum(0).flatten(2)
        total = total + (lost * size / size.sum(1, keepdim=True).clamp(min=1e-30)).sum(2)
    return total


def _corners(boxes: Box, form: Tensor) -> Tensor:
    """Return the centres, and the corners where the forms are least."""
    middle, radius = boxes.middle, boxes.radius
    toward = form.sum(1).sign().reshape(middle.shape)
    corner = torch.maximum(torch.minimum(middle - radius * toward, boxes.upper), boxes.lower)
    return torch.cat([middle, corner])


def _contracted(problem: Problem, part: Part, made: Forms, left: Tensor) -> tuple[Tensor, Tensor]:
    """Cut off the parts of boxes in which a row that every way of breaking it needs is positive."""
    low, high = (end[left].flatten(1) for end in (part.box.lower, part.box.upper))
    needed = (problem.groups[None] | ~part.alive[left][..., None]).all(1)
    for row in needed.any(0).nonzero().flatten().tolist():
        slope = made.form[left, row]
        # at the corner where the form is least it is lower; it stays at most 0 only so far from there
        reach = (-made.lower[left, row]).clamp(min=0)[:, None] / slope.abs() * (1 + 1e-5)
        reach = torch.where(needed[:, row, None] & (slope.abs() > 1e-9), reach, torch.inf)
        reach = reach.nan_to_num(torch.inf, torch.inf) + 1e-7 * (high - low)
        reach = reach + 4 * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())
        cut_high = torch.where(slope > 0, torch.minimum(high, low + reach), high)
        low = torch.where(slope < 0, torch.maximum(low, high - reach), low)
        high = torch.maximum(cut_high, low)
    return low, high


def _halved(problem: Problem, part: Part, made: Forms, left: Tensor) -> Part:
    """Halve the boxes that are left along the input that matters most to their rows."""
    low, high = _contracted(problem, part, made, left)
    # rows of groups that are excluded already do not count
    weights = (part.alive[..., None] & problem.groups).any(1).to(made.lower.dtype)
    loose = _looseness(problem.graph, made, weights)[left]
    swing = (weights[left][..., None] * made.form[left].abs() * (high - low)[:, None]).sum(1)
    # infinite bounds say nothing of what matters; what has no width cannot be halved
    matters = torch.where(high > low, swing / 2 + loose, -1.0)
    along = matters.nan_to_num(torch.inf, torch.inf).argmax(1, keepdim=True)
    middle = ((low + high) / 2).gather(1, along)
    lower = torch.cat([low, low.scatter(1, along, middle)])
    upper = torch.cat([high.scatter(1, along, middle), high])
    shape = (-1, *part.box.lower.shape[1:])
    rest = part[left.repeat(2)]
    return Part(Box(lower.reshape(shape), upper.reshape(shape)), rest.known, rest.alive, rest.number)
