"""Drawings of diagrams: boxes in columns, a line for each axis, dashes between arrays, bold what has learned."""

import math
from collections.abc import Iterator
from typing import Any

from workingpapers.papers.theory._terms import Beside, Broadcast, Op, Sequence_, Term, Type, Wires, columns

ROW = 12  # columns in a row of the drawing


def label(term: Term) -> str:
    """Return what a term does in words: operations in order, and the axes that they are broadcast over."""
    if isinstance(term, Op):
        return term.name
    if isinstance(term, Broadcast):
        return f"{label(term.term)}\nover {term.axis[0]}"
    if isinstance(term, Beside):
        return " | ".join(filter(None, (label(term.first), label(term.second))))
    if isinstance(term, Sequence_):
        return " ; ".join(filter(None, map(label, columns(term))))
    return ""


def learned(term: Term) -> bool:
    """Return whether a term has operations with learned parameters in it."""
    if isinstance(term, Op):
        return term.learned
    parts = [term.term] if isinstance(term, Broadcast) else []
    if isinstance(term, Beside | Sequence_):
        parts = [term.first, term.second]
    return any(map(learned, parts))


def _spread(term: Term) -> Iterator[Term]:
    """Give the columns to draw: a composition under a broadcast as broadcasts in turn, but no idle wires."""
    for part in columns(term):
        if isinstance(part, Broadcast) and isinstance(part.term, Sequence_):
            for inner in columns(part.term):
                yield from _spread(Broadcast(inner, part.axis))
        elif not (isinstance(part, Wires) and part.picks == tuple(range(len(part.source)))):
            yield part


def draw(term: Term, title: str = "") -> Any:
    """Return a matplotlib figure: boxes in columns, a line for each axis, dashes between arrays of a tuple.

    Learned operations have bold frames; the name and the size stand on each line.
    """
    from matplotlib import pyplot

    parts = list(_spread(term))
    rows = [parts[k : k + ROW] for k in range(0, len(parts), ROW)] or [[]]
    heights = [
        max(_height(term.source), 2, *(max(_height(p.source), _height(p.target)) for p in row))
        for row in rows
    ]
    width = max(map(len, rows))
    figure, places = pyplot.subplots(
        len(rows), figsize=(1.3 * width + 1.2, 0.26 * sum(heights) + 0.8), layout="constrained", squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    for axes, row, height in zip(places[:, 0], rows, heights, strict=True):
        _wires(axes, row[0].source if row else term.source, 0.0)
        for place, part in enumerate(row):
            _column(axes, part, place + 0.5, 0.0, 0.0)
            _wires(axes, part.target, place + 1.0)
        axes.set(xlim=(-0.3, width + 0.3), ylim=(-height + 0.2, 1))
        axes.axis("off")
    figure.suptitle(title)
    return figure


def _height(kind: Type) -> int:
    return sum(max(len(array), 1) + 1 for array in kind)


def _tops(kind: Type, y: float) -> list[float]:
    """Return the heights at which the arrays of a type begin."""
    return [y - _height(kind[:k]) for k in range(len(kind))]


def _wires(axes: Any, kind: Type, x: float) -> None:
    for number, (array, top) in enumerate(zip(kind, _tops(kind, 0.0), strict=True)):
        if number:
            axes.plot([x - 0.2, x + 0.2], [top + 1, top + 1], "--", color="grey", linewidth=0.8)
        if not array:
            axes.plot([x - 0.2, x + 0.2], [top, top], ":", color="black", linewidth=1)  # a number has no axis
        for k, (name, size) in enumerate(array):
            axes.plot([x - 0.2, x + 0.2], [top - k, top - k], color="black", linewidth=1)
            axes.text(x, top - k + 0.1, f"{name} {size}", ha="center", va="bottom", fontsize=6)


def _column(axes: Any, part: Term, x: float, source: float, target: float) -> None:
    """Draw one column, whose arrays begin at the heights `source` on its left and `target` on its right."""
    if isinstance(part, Broadcast) and isinstance(part.term, Beside):
        part = Beside(Broadcast(part.term.first, part.axis), Broadcast(part.term.second, part.axis))
    if isinstance(part, Broadcast) and isinstance(part.term, Wires):
        part = Wires(part.source, part.term.picks)
    if isinstance(part, Beside):
        _column(axes, part.first, x, source, target)
        down = _height(part.first.source), _height(part.first.target)
        _column(axes, part.second, x, source - down[0], target - down[1])
    elif isinstance(part, Wires):
        begin = _tops(part.source, source)
        for pick, top in zip(part.picks, _tops(part.target, target), strict=True):
            for k in range(max(len(part.source[pick]), 1)):
                axes.plot([x - 0.3, x + 0.3], [begin[pick] - k, top - k], color="black", linewidth=1)
    else:
        from matplotlib.patches import Rectangle

        top = max(source, target) + 0.5
        bottom = min(source - _height(part.source), target - _height(part.target)) + 1.5
        tall = max(top - bottom, 1.0)
        frame = Rectangle((x - 0.3, top - tall), 0.6, tall, facecolor="white", edgecolor="black")
        frame.set_linewidth(2.2 if learned(part) else 1)
        axes.add_patch(frame)
        axes.text(x, top - tall / 2, _short(label(part)), ha="center", va="center", fontsize=6)


def _short(text: str, line: int = 13, most: int = 40) -> str:
    """Break a label at semicolons into lines that fit a box."""
    lines = [part for piece in text.split(" ; ") for part in piece.split("\n")]
    cut = [part if len(part) <= line else part[: line - 1] + "…" for part in lines]
    return "\n".join(cut[: math.ceil(most / 6)])
