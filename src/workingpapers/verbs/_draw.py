"""Line charts in a terminal, drawn with braille dots (two across and four down in each character), and figures."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from workingpapers.errors import WorkingPapersError

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column within a character
Line = tuple[Sequence[float], Sequence[float]]


def chart(
    lines: Mapping[str, Line], *, width: int = 60, height: int = 12, log: bool = False, unit: str = ""
) -> list[str]:
    """Draw each line of (x, y) points below its name, all on the same axes, whose ends are labelled.

    With `log` both axes are logarithmic.  Points that are not finite are left out.
    """
    scaled = {name: [_scaled(x, y, log) for x, y in zip(*line, strict=True)] for name, line in lines.items()}
    points = [p for line in scaled.values() for p in line if all(map(math.isfinite, p))]
    low_x, high_x = min(p[0] for p in points), max(p[0] for p in points)
    low_y, high_y = min(p[1] for p in points), max(p[1] for p in points)
    across, up = max(high_x - low_x, 1e-12), max(high_y - low_y, 1e-12)
    found: list[str] = []
    for name, line in scaled.items():
        cells = [[0] * width for _ in range(height)]
        for x, y in _filled([p for p in line if all(map(math.isfinite, p))], across / (2 * width)):
            column = round((x - low_x) / across * (2 * width - 1))
            row = round((high_y - y) / up * (4 * height - 1))
            cells[row // 4][column // 2] |= DOTS[row % 4][column % 2]
        labels = {0: _label(high_y, log, unit), height - 1: _label(low_y, log, unit)}
        found.append(f"{'':>10} {name}")
        found += [
            f"{labels.get(i, ''):>10} " + "".join(chr(0x2800 + c) for c in row).rstrip("\u2800")
            for i, row in enumerate(cells)
        ]
    left, right = _label(low_x, log, ""), _label(high_x, log, "")
    return [*found, f"{'':>10} {left}{right:>{max(width - len(left), 1)}}"]


def _scaled(x: float, y: float, log: bool) -> tuple[float, float]:
    return (math.log10(x), math.log10(y)) if log else (float(x), float(y))


def _filled(line: Sequence[tuple[float, float]], step: float) -> list[tuple[float, float]]:
    """Add points between those of the line, so that no column of dots is left out."""
    found = list(line[:1])
    for (x0, y0), (x1, y1) in pairwise(line):
        pieces = max(1, math.ceil((x1 - x0) / step) * 2)
        found += [(x0 + (x1 - x0) * k / pieces, y0 + (y1 - y0) * k / pieces) for k in range(1, pieces + 1)]
    return found


def _label(value: float, log: bool, unit: str) -> str:
    return f"{10**value if log else value:.4g}{unit}"


def save_figure(figure: Any, path: str) -> None:
    """Write a matplotlib figure to `path`; what cannot be written is said in one sentence."""
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise WorkingPapersError(f"cannot write the figure {path}: {error}") from None
