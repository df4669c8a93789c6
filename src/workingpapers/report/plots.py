"""The drawings of a comparison: paired differences with intervals, every seed's value, learning curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from workingpapers.experiments.comparison import Comparison, Row, choose_goal
from workingpapers.experiments.statistics import Difference
from workingpapers.report.measured import (
    LearningCurve,
    Look,
    baseline_label,
    differences,
    learning_curves,
    looks,
    step_name,
    values,
)
from workingpapers.report.numbers import around, counted, plain
from workingpapers.report.svg import (
    Scale,
    axis_across,
    axis_up,
    band_path,
    canvas,
    drawing,
    element,
    line_path,
    marker,
    usual_range,
)

ROW = 36  # pixels a variant
CURVE_HEIGHT = 230
THREADED_ROWS = 8  # with more variants, lines that join the seeds hide more than they show

WORD_CLASS = {Difference.BETTER: "better", Difference.WORSE: "worse", Difference.NONE: "open"}
WORD_SHAPE = {Difference.BETTER: "triangle", Difference.WORSE: "down", Difference.NONE: "circle"}


@dataclass(frozen=True)
class Name:
    """The words that stand beside a row of a drawing: the variant, what befell it, and its verdict."""

    label: str
    note: str = ""
    word: str = ""
    word_class: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing with the words around it; the template sets them as HTML, so that they wrap and are found."""

    caption: str
    note: str
    svg: Markup
    names: Sequence[Name] = ()
    hints: tuple[str, str] | None = None
    legend: Sequence[tuple[Markup, str]] = field(default_factory=tuple)


def differences_plot(comparison: Comparison, name: str) -> Plot | None:
    """Draw each variant's difference to the baseline: estimate, interval and seeds; None where there is none."""
    rows = [
        row for row in comparison.rows if row.difference and math.isfinite(row.difference.interval.estimate)
    ]
    if not rows:
        return None
    base, by_seed = baseline_label(comparison), differences(comparison)
    ends = [v for r in rows if r.difference for v in _ends(r.difference)]
    dots = [v for r in rows for v in by_seed[r.label].values()]
    scale = Scale.fitting([0.0, *usual_range([*ends, *dots])])
    height = ROW * len(rows)
    zero = element("line", x1=scale.at(0), x2=scale.at(0), y1=-4, y2=height, class_="zero")
    content = [axis_across(scale, height), zero]
    content += [_difference(row, by_seed[row.label], scale, i) for i, row in enumerate(rows)]
    told = "; ".join(_told(row) for row in rows)
    towards = ("worse", "better") if comparison.goal == "max" else ("better", "worse")
    return Plot(
        f"Difference to {base} in {comparison.metric}",
        _differences_note(comparison),
        drawing(
            name, f"Differences to {base} in {comparison.metric}, with intervals", told, height, *content
        ),
        [_name(row) for row in rows],
        (f"◂ {towards[0]}", f"{towards[1]} ▸"),
    )


def _told(row: Row) -> str:
    assert row.difference is not None
    return f"{row.label}: {around(row.difference.interval, sign=True)}, {row.difference.word}"


def _ends(difference: Difference) -> list[float]:
    i = difference.interval
    return [v for v in (i.estimate, i.low, i.high) if math.isfinite(v)]


def _differences_note(comparison: Comparison) -> str:
    several = ", corrected for their number" if len(comparison.variants) > 2 else ""
    seeds = "; dots: seeds" if comparison.paired else ""
    return f"Marker: mean; bar: 95 % interval{several}{seeds}."


def _difference(row: Row, by_seed: dict[int, float], scale: Scale, index: int) -> Markup:
    assert row.difference is not None
    d, middle = row.difference, ROW * index + ROW // 2 - 4
    i, look = d.interval, WORD_CLASS.get(d.word, "open")
    parts = [element("line", x1=0, x2="100%", y1=ROW * (index + 1), y2=ROW * (index + 1), class_="rule")]
    for seed, value in by_seed.items():
        if scale.shows(value):
            tip = element("title", f"{row.label}, seed {seed}: {plain(value)}")
            parts.append(element("circle", tip, cx=scale.at(value), cy=middle + 12, r=2.2, class_="dot"))
    low, high = max(i.low, scale.low), min(i.high, scale.high)
    if low < high and (math.isfinite(i.low) or math.isfinite(i.high)):
        x1, x2 = scale.at(low), scale.at(high)
        parts.append(element("line", x1=x1, x2=x2, y1=middle, y2=middle, class_=f"bar {look}"))
    if math.isfinite(i.low) and i.low < scale.low:
        parts.append(marker("0%", middle, "left", f"fill {look}"))
    if math.isfinite(i.high) and i.high > scale.high:
        parts.append(marker("100%", middle, "right", f"fill {look}"))
    if scale.shows(i.estimate):
        shape = WORD_SHAPE.get(d.word, "circle")
        parts.append(marker(scale.at(i.estimate), middle, shape, f"mark {look}", _told(row)))
    else:
        parts.append(_beyond(i.estimate, scale, middle))
    return Markup("").join(parts)


def _beyond(value: float, scale: Scale, middle: int) -> Markup:
    """Write a value that lies off the scale beside the arrow that points to it."""
    right = value > scale.high
    side = "end" if right else "start"
    place, off = ("100%", -10) if right else ("0%", 10)
    return element("text", plain(value, 3), x=place, dx=off, y=middle, dy=4, class_=f"tick {side}")


def _name(row: Row) -> Name:
    lost = [f"{row.diverged} diverged"] if row.diverged else []
    lost += [f"{row.failed} failed"] if row.failed else []
    word = row.difference.word if row.difference else ""
    return Name(row.label, ", ".join(lost), word, WORD_CLASS.get(word, "open") if word else "")


def seeds_plot(comparison: Comparison, name: str) -> Plot | None:
    """Draw every seed's value of the metric, one row a variant, best first; None where no run is finite."""
    by_seed = values(comparison)
    shown = [v for row in by_seed.values() for v in row.values()]
    if not shown:
        return None
    rows = comparison.rows
    scale = Scale.fitting(usual_range(shown))
    height = ROW * len(rows)
    content = [axis_across(scale, height)]
    threaded = comparison.paired and 1 < len(rows) <= THREADED_ROWS
    if threaded:
        content += _threads([by_seed[row.label] for row in rows], scale)
    content += [_seeds(row, by_seed[row.label], scale, i) for i, row in enumerate(rows)]
    better = "higher" if comparison.goal == "max" else "lower"
    told = "; ".join(f"{r.label}: mean {plain(r.mean)} over {counted(r.seeds, 'seed')}" for r in rows)
    joined = " Lines join the same seed." if threaded else ""
    title = f"Every seed's {comparison.metric}"
    return Plot(
        title,
        f"Dots: seeds; tall mark: mean; {better} is better.{joined}",
        drawing(name, title, told, height, *content),
        [Name(row.label, _name(row).note) for row in rows],
    )


def _threads(rows: Sequence[dict[int, float]], scale: Scale) -> list[Markup]:
    return [
        element("line", x1=scale.at(upper[s]), x2=scale.at(lower[s]), y1=ROW * i + ROW // 2,
                y2=ROW * (i + 1) + ROW // 2, class_="thread")
        for i, (upper, lower) in enumerate(pairwise(rows))
        for s in upper
        if s in lower and scale.shows(upper[s]) and scale.shows(lower[s])
    ]  # fmt: skip


def _seeds(row: Row, by_seed: dict[int, float], scale: Scale, index: int) -> Markup:
    middle = ROW * index + ROW // 2
    parts = [element("line", x1=0, x2="100%", y1=ROW * (index + 1), y2=ROW * (index + 1), class_="rule")]
    if scale.shows(row.mean):
        place = scale.at(row.mean)
        parts.append(element("line", x1=place, x2=place, y1=middle - 10, y2=middle + 10, class_="mean"))
    elif math.isfinite(row.mean):
        parts.append(_beyond(row.mean, scale, middle))
    for seed, value in by_seed.items():
        tip = f"{row.label}, seed {seed}: {plain(value)}"
        if scale.shows(value):
            hover = element("title", tip)
            parts.append(element("circle", hover, cx=scale.at(value), cy=middle, r=3.4, class_="seed"))
        else:
            shape = "right" if value > scale.high else "left"
            parts.append(marker(scale.at(value), middle, shape, "fill off", tip))
    return Markup("").join(parts)


def curves_plot(comparison: Comparison, metric: str, name: str) -> Plot:
    """Draw the learning curves of a metric: mean and range over the seeds, the best variants in colour."""
    curves, drawn_as = learning_curves(comparison, metric), looks(comparison)
    across = Scale.fitting([float(s) for c in curves for s in (c.steps[0], c.steps[-1])], pad=0.0)
    up = _height_scale(curves, metric)
    paths = [_curve(c, drawn_as.get(c.label), across, up) for c in reversed(curves)]
    content = [axis_up(up), axis_across(across, CURVE_HEIGHT), canvas(*paths)]
    content += [_end(c, drawn_as[c.label], across, up) for c in curves if c.label in drawn_as]
    told = "; ".join(f"{c.label}: ends at {plain(float(c.mean[-1]))}" for c in curves)
    coloured = [c for c in curves if c.label in drawn_as]
    legend = [(swatch(drawn_as[c.label]), c.label) for c in coloured]
    rest = len(curves) - len(coloured)
    legend += [(swatch(None), f"{rest} others")] if rest else []
    scale = " (logarithmic)" if up.log else ""
    return Plot(
        f"{metric} by {step_name(comparison)}{scale}",
        "",
        drawing(name, f"Learning curves of {metric}", told, CURVE_HEIGHT, *content),
        legend=legend,
    )


def _height_scale(curves: Sequence[LearningCurve], metric: str) -> Scale:
    """Return the scale for the curves after their first tenth, which would flatten all that follows."""
    late = [c.steps >= c.steps[0] + (c.steps[-1] - c.steps[0]) / 10 for c in curves]
    parts = [part[k] for c, k in zip(curves, late, strict=True) for part in (c.mean, c.low, c.high)]
    heights = np.concatenate([part[np.isfinite(part)] for part in parts])
    falls = choose_goal(metric, None) == "min" and heights.min() > 0 and heights.max() > 50 * heights.min()
    if not falls:
        return Scale.fitting(usual_range(heights, far=20))
    low, high = usual_range(np.log10(heights))
    return Scale.fitting([10**low, 10**high], log=True)


def _curve(curve: LearningCurve, look: Look | None, across: Scale, up: Scale) -> Markup:
    line = line_path(curve.steps, curve.mean, across, up)
    if look is None:
        return element("path", d=line, class_="line rest")
    band = band_path(curve.steps, curve.low, curve.high, across, up) if curve.runs > 1 else ""
    area = element("path", d=band, class_=f"band v{look.colour}") if band else Markup("")
    return area + element("path", d=line, class_=f"line v{look.colour}", stroke_dasharray=look.dash)


def _end(curve: LearningCurve, look: Look, across: Scale, up: Scale) -> Markup:
    known = np.flatnonzero(np.isfinite(curve.mean))
    if not len(known):
        return Markup("")
    step, height = float(curve.steps[known[-1]]), float(curve.mean[known[-1]])
    if not up.shows(height):
        return Markup("")
    place = f"{100 - 100 * up.fraction(height):.2f}%"
    return marker(
        across.at(step), place, look.marker, f"mark v{look.colour}", f"{curve.label}: {plain(height)}"
    )


def swatch(look: Look | None) -> Markup:
    """Return a short piece of a variant's line with its marker, for a legend."""
    if look is None:
        return _swatch(element("line", x1=1, x2=33, y1=7, y2=7, class_="line rest"))
    return _swatch(
        element("line", x1=1, x2=33, y1=7, y2=7, class_=f"line v{look.colour}", stroke_dasharray=look.dash),
        marker("17", 7, look.marker, f"mark v{look.colour}"),
    )


def _swatch(*content: Markup) -> Markup:
    return element("svg", *content, class_="swatch", width=34, height=14, aria_hidden="true")
