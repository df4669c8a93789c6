"""Drawings of diagrams: boxes in columns, a line for each axis."""

from typing import Any

from workingpapers.papers.theory._terms import Beside, Broadcast, Op, Term, Type, Wires, columns


def draw(term: Term, title: str = "") -> Any:
    """Return a matplotlib figure: boxes in columns, a line for each axis, dashes between arrays of a tuple.

    Learned operations have bold frames; the name and the size stand on each line.
    """
    from matplotlib import pyplot

    parts = columns(term)
    widest = max(sum(len(array) + 1 for array in kind) for kind in (term.source, *(p.target for p in parts)))
    size = (1.3 * len(parts) + 1.5, 0.28 * widest + 0.8)
    figure, axes = pyplot.subplots(figsize=(min(size[0], 60), min(size[1], 40)), layout="constrained")
    _wires(axes, term.source, 0.0)
    for place, part in enumerate(parts):
        _boxes(axes, part, place + 0.5, 0.0, ())
        _wires(axes, part.target, place + 1.0)
    axes.set(xlim=(-0.6, len(parts) + 0.4), ylim=(-widest, 1), title=title)
    axes.axis("off")
    return figure


def _height(kind: Type) -> int:
    return sum(len(array) + 1 for array in kind)


def _wires(axes: Any, kind: Type, x: float) -> None:
    y = 0.0
    for number, array in enumerate(kind):
        if number:
            axes.plot([x - 0.2, x + 0.2], [y + 0.5, y + 0.5], "--", color="grey", linewidth=0.8)
        for name, size in array:
            axes.plot([x - 0.2, x + 0.2], [y, y], color="black", linewidth=1)
            axes.text(x, y + 0.1, f"{name} {size}", ha="center", va="bottom", fontsize=6)
            y -= 1
        y -= 1


def _boxes(axes: Any, part: Term, x: float, y: float, lifted: tuple[str, ...]) -> None:
    """Draw one column from the height `y` down; what is broadcast says over which axes."""
    if isinstance(part, Beside):
        _boxes(axes, part.first, x, y, lifted)
        shift = max(_height(part.first.source), _height(part.first.target))
        _boxes(axes, part.second, x, y - shift, lifted)
    elif isinstance(part, Broadcast):
        _boxes(axes, part.term, x, y, (*lifted, part.axis[0]))
    elif not isinstance(part, Wires):
        from matplotlib.patches import Rectangle

        own = columns(part)
        names = " ; ".join(p.name if isinstance(p, Op) else "..." for p in own)
        bold = any(isinstance(p, Op) and p.learned for p in own)
        tall = max(_height(part.source), _height(part.target), 1) - 0.6
        corner = (x - 0.28, y + 0.4 - tall)
        axes.add_patch(Rectangle(corner, 0.56, tall, fill=False, linewidth=2.2 if bold else 1))
        over = f"\nover {' '.join(lifted)}" if lifted else ""
        axes.text(x, y + 0.4 - tall / 2, names + over, ha="center", va="center", fontsize=7)
