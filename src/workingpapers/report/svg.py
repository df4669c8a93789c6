"""Drawing in SVG: elements, scales, axes.

Positions across a drawing are per cent of its width, so that it fits any screen while its text, dots and
lines keep their size.  Colours come from the style sheet by classes, so that one drawing serves light, dark
and paper.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from workingpapers.report.numbers import MINUS

HUGE = 1e150  # beyond, differences of two values overflow
CANVAS = 1000  # width and height of the canvas on which paths are drawn and then stretched


def element(name: str, *content: object, **attributes: object) -> Markup:
    """Return an SVG or HTML element; content that is no Markup is escaped, attributes of None are left out.

    `class_` becomes class, underscores hyphens.  Raises ValueError for a number that is not finite.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{said}>{''.join(escape(c) for c in content)}</{name}>")


def _attribute(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        raise ValueError(f"a drawing needs finite positions; got {value}")
    return _short(value)


def _short(value: float) -> str:
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


@dataclass(frozen=True)
class Scale:
    """A map of values to positions: `low` lies at 0, `high` at 1."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def fitting(cls, values: Iterable[float], log: bool = False, pad: float = 0.06) -> "Scale":
        """Return a scale that shows the finite ones of `values` with some room on both sides."""
        least = 1 / HUGE if log else -HUGE
        finite = [min(max(v, least), HUGE) for v in values if math.isfinite(v) and (v > 0 or not log)]
        if not finite:
            return cls(0.1, 1.0, True) if log else cls(0.0, 1.0)
        low, high = min(finite), max(finite)
        if high - low < 1e-9 * max(abs(low), abs(high)):  # rounding errors make no range
            low = high
        if log:
            room = max(pad * (math.log10(high) - math.log10(low)), 0.05)
            return cls(low / 10**room, high * 10**room, True)
        room = pad * (high - low) if high > low else 0.1 * abs(high) or 1.0
        return cls(low - room, high + room)

    def fraction(self, value: float) -> float:
        """Return the position of `value`, from 0 to 1 where it lies on the scale."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(value) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)

    def shows(self, value: float) -> bool:
        """Tell whether `value` is a number that lies on the scale."""
        return math.isfinite(value) and self.low <= value <= self.high

    def at(self, value: float) -> str:
        """Return the position of `value` from the left in per cent; beyond an end it is that end."""
        return f"{_short(100 * min(max(self.fraction(value), 0.0), 1.0))}%"

    def ticks(self, count: int = 5) -> list[float]:
        """Return at most about `count` round values on the scale."""
        if self.log:
            low, high = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            if high > low:
                every = math.ceil((high - low + 1) / count)
                return [10.0**e for e in range(low, high + 1, every)]
        rough = (self.high - self.low) / count
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(s * unit for s in (1, 2, 5, 10) if s * unit >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Return the labels of an axis: all with the decimals that tell its ticks apart."""
    steps = [b - a for a, b in pairwise(ticks)]
    large = max((abs(t) for t in ticks), default=0.0)
    if not steps or large >= 1e5 or (max(steps) / min(steps) > 1.5) or min(steps) < 1e-5:
        return [f"{t:.4g}".replace("-", MINUS) for t in ticks]
    places = max(0, -math.floor(math.log10(min(steps)) + 1e-9))
    return [f"{t:.{places}f}".replace("-", MINUS) if t else "0" for t in ticks]


def usual_range(values: Iterable[float], far: float = 4.0) -> tuple[float, float]:
    """Return the least and the largest of the finite `values`, those left out that lie far from the rest.

    Far means more than `far` times the middle half's width outside that half.
    """
    finite = np.clip([v for v in values if math.isfinite(v)], -HUGE, HUGE)
    if not len(finite):
        return 0.0, 0.0
    low, high = np.quantile(finite, [0.25, 0.75])
    near = finite[np.abs(finite - (low + high) / 2) <= (far + 0.5) * (high - low)]
    kept = near if len(near) and high > low else finite
    return float(kept.min()), float(kept.max())


def line_path(x: NDArray[np.float64], y: NDArray[np.float64], across: Scale, up: Scale) -> str:
    """Return the path of a line on the canvas, broken where a value is missing."""
    words, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if not (math.isfinite(a) and math.isfinite(b)) or (up.log and b <= 0):
            pen = "M"
            continue
        words.append(f"{pen}{_canvas(across.fraction(a))} {_canvas(1 - up.fraction(b))}")
        pen = "L"
    return "".join(words)


def band_path(
    x: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], across: Scale, up: Scale
) -> str:
    """Return the path of the area between two lines; points with a missing end are left out."""
    known = np.isfinite(low) & np.isfinite(high) & ((low > 0) | (not up.log))
    if not known.any():
        return ""
    there = line_path(x[known], high[known], across, up)
    back = line_path(x[known][::-1], low[known][::-1], across, up)
    return f"{there}L{back[1:]}Z"


def _canvas(fraction: float) -> str:
    return f"{CANVAS * min(max(fraction, -9.0), 10.0):.1f}".removesuffix(".0")


def canvas(*paths: Markup) -> Markup:
    """Return paths stretched over the whole drawing; what leaves it is cut off."""
    return element(
        "svg",
        *paths,
        viewBox=f"0 0 {CANVAS} {CANVAS}",
        preserveAspectRatio="none",
        width="100%",
        height="100%",
        class_="canvas",
    )


def drawing(name: str, title: str, told: str, height: int, *content: Markup) -> Markup:
    """Return a drawing of so many pixels height with a title and a description for those who do not see it.

    `name` must be the document's only one; ids within are made from it.
    """
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", told, id=f"{name}-desc"),
        *content,
        class_="drawing",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        width="100%",
        height=height,
    )


def axis_across(scale: Scale, height: int, count: int = 5) -> Markup:
    """Return vertical grid lines with labels below a drawing of so many pixels height."""
    ticks = scale.ticks(count)
    return Markup("").join(
        element("line", x1=scale.at(t), x2=scale.at(t), y1=0, y2=height, class_="grid")
        + element("text", text, x=scale.at(t), y=height, dy=16, class_="tick middle")
        for t, text in zip(ticks, tick_texts(ticks), strict=True)
    )


def axis_up(scale: Scale, count: int = 5) -> Markup:
    """Return horizontal grid lines with labels on their left."""
    ticks = scale.ticks(count)
    return Markup("").join(
        element("line", x1=0, x2="100%", y1=place, y2=place, class_="grid")
        + element("text", text, x=-8, y=place, dy=4, class_="tick end")
        for t, text in zip(ticks, tick_texts(ticks), strict=True)
        for place in [f"{_short(100 - 100 * scale.fraction(t))}%"]
    )


def marker(x: str, y: object, shape: str, class_: str, tip: str = "") -> Markup:
    """Return a marker ('circle', 'square', 'triangle', 'down', 'diamond', 'cross') centred at a position."""
    path = MARKERS[shape]
    told = [element("title", tip)] if tip else []
    return element("svg", element("path", *told, d=path, class_=class_), x=x, y=y, class_="at")


MARKERS = {
    "circle": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
    "square": "M-4 -4H4V4H-4Z",
    "triangle": "M0 -5.5L5 4H-5Z",
    "down": "M0 5.5L5 -4H-5Z",
    "diamond": "M0 -5.8L5.8 0L0 5.8L-5.8 0Z",
    "cross": "M-4 -4L4 4M-4 4L4 -4",
    "right": "M5.5 0L-4 5V-5Z",
    "left": "M-5.5 0L4 5V-5Z",
}
