"""What the drawings show of a comparison: values by seed, paired differences, learning curves, looks."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workingpapers.experiments.comparison import Comparison
from workingpapers.experiments.execution import FINAL
from workingpapers.experiments.store import Run
from workingpapers.experiments.variants import label
from workingpapers.report.svg import HUGE

Numbers = NDArray[np.float64]

STEPS = ("step", "epoch", "iteration")  # names under which a point of a curve says where it lies
CURVE_POINTS = 160  # places at which a learning curve is drawn
SHOWN_CURVES = 7  # more lines of their own colour cannot be told apart

DASHES = ("none", "7 3", "2 3", "9 3 2 3", "5 2", "12 4", "1 2")
SHAPES = ("circle", "square", "triangle", "diamond", "down", "circle", "square")


@dataclass(frozen=True)
class Look:
    """How a variant is drawn: the number of its colour, its dashes and its marker; 0 is the baseline's."""

    colour: int
    dash: str
    marker: str


@dataclass(frozen=True)
class LearningCurve:
    """The curves of a variant's runs: mean and range over the seeds at `steps`; nan where no run has got to."""

    label: str
    steps: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers
    runs: int


def baseline_label(comparison: Comparison) -> str:
    """Return the label of the baseline."""
    return label(comparison.baseline, comparison.variants)


def value_of(run: Run, metric: str) -> float:
    """Return a run's metric, nan where it has none or gave no result."""
    value = (run.metrics or {}).get(metric) if run.status in FINAL else None
    return math.nan if value is None else float(value)


def values(comparison: Comparison) -> dict[str, dict[int, float]]:
    """Return each variant's finite values of the metric by seed, best variant first."""
    found = {}
    for row in comparison.rows:
        by_seed = {r.seed: value_of(r, comparison.metric) for r in comparison.by_label[row.label]}
        found[row.label] = {seed: v for seed, v in by_seed.items() if math.isfinite(v)}
    return found


def differences(comparison: Comparison) -> dict[str, dict[int, float]]:
    """Return each variant's differences to the baseline by seed, none where the comparison is not paired."""
    found = values(comparison)
    base = found[baseline_label(comparison)] if comparison.paired else {}
    return {
        row.label: {s: v - base[s] for s, v in found[row.label].items() if s in base}
        for row in comparison.rows
        if row.difference is not None
    }


def looks(comparison: Comparison) -> dict[str, Look]:
    """Return the looks of the variants that are drawn in colour: the baseline and the best of the others."""
    base = baseline_label(comparison)
    others = [row.label for row in comparison.rows if row.label != base]
    found = {base: Look(0, "4 4" if others else "none", "circle")}
    for i, name in enumerate(others[: SHOWN_CURVES - 1]):
        found[name] = Look(i + 1, DASHES[i], SHAPES[i])
    return found


def curve_metrics(comparison: Comparison) -> list[str]:
    """Return the metrics of which some run has a curve of two points or more, the judged one first."""
    names: dict[str, None] = {comparison.metric: None}
    for run in comparison.runs:
        for point in run.curve or ():
            names |= dict.fromkeys(k for k in point if k not in STEPS)
    return [n for n in names if any(len(_points(run, n)[0]) > 1 for run in comparison.runs)]


def step_name(comparison: Comparison) -> str:
    """Return what the points of the learning curves are counted in, 'point' where they do not say."""
    points = [point for run in comparison.runs for point in (run.curve or ())]
    return next((name for name in STEPS if any(name in p for p in points)), "point")


def learning_curves(comparison: Comparison, metric: str) -> list[LearningCurve]:
    """Return the learning curves of the variants that have any, best variant first."""
    found = [_learning_curve(row.label, comparison, metric) for row in comparison.rows]
    return [curve for curve in found if curve is not None]


def _learning_curve(name: str, comparison: Comparison, metric: str) -> LearningCurve | None:
    curves = [_points(run, metric) for run in comparison.by_label[name]]
    curves = [(steps, height) for steps, height in curves if len(steps)]
    if not curves:
        return None
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    if len(grid) > CURVE_POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, CURVE_POINTS).round().astype(int)]
    heights = np.array([np.interp(grid, s, h, left=np.nan, right=np.nan) for s, h in curves])
    known = np.isfinite(heights)
    any_known = known.any(axis=0)
    mean = np.where(known, heights / np.maximum(known.sum(axis=0), 1), 0.0).sum(axis=0)
    return LearningCurve(
        name,
        grid,
        np.where(any_known, mean, np.nan),
        np.where(any_known, np.where(known, heights, np.inf).min(axis=0), np.nan),
        np.where(any_known, np.where(known, heights, -np.inf).max(axis=0), np.nan),
        len(curves),
    )


def _points(run: Run, metric: str) -> tuple[Numbers, Numbers]:
    """Return steps and heights of the finite points of a run's curve, in the order of steps."""
    steps, heights = [], []
    for i, point in enumerate(run.curve or (), 1):
        step = next((point[name] for name in STEPS if name in point), float(i))
        height = point.get(metric)
        if height is not None and math.isfinite(height) and math.isfinite(step):
            steps.append(float(step))
            heights.append(float(np.clip(height, -HUGE, HUGE)))
    order = np.argsort(np.array(steps), kind="stable")
    return np.array(steps, float)[order], np.array(heights, float)[order]
