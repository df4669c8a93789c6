"""The main drawings as matplotlib figures, for notebooks and papers."""

import math
from typing import TYPE_CHECKING

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments.comparison import Comparison
from workingpapers.report.measured import (
    baseline_label,
    curve_metrics,
    differences,
    learning_curves,
    looks,
    step_name,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart; black is the baseline's.
COLOURS = ("#333333", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
WORDS = {"better": ("#0072b2", "^"), "worse": ("#d55e00", "v"), "no difference shown": ("#666666", "o")}
MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "down": "v"}


def plot_differences(comparison: Comparison) -> "Figure":
    """Return a figure of each variant's difference to the baseline, with its interval and the single seeds.

    Raises:
        WorkingPapersError: where no variant has a finite difference.
    """
    rows = [r for r in comparison.rows if r.difference and math.isfinite(r.difference.interval.estimate)]
    if not rows:
        raise WorkingPapersError(
            "there is no difference to draw: it takes a variant beside the baseline, and finite runs of both"
        )
    figure = _figure(6.4, 1.2 + 0.42 * len(rows))
    axes = figure.add_subplot()
    axes.axvline(0.0, color="#333333", linewidth=1)
    by_seed = differences(comparison)
    for y, row in enumerate(rows):
        assert row.difference is not None
        i, (colour, marker) = row.difference.interval, WORDS[row.difference.word]
        if math.isfinite(i.low) and math.isfinite(i.high):
            axes.plot([i.low, i.high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(i.estimate, y, marker, color=colour, markersize=7)
        dots = list(by_seed[row.label].values())
        axes.plot(dots, [y + 0.25] * len(dots), "o", color="#666666", alpha=0.5, markersize=2.5)
    axes.set_yticks(
        range(len(rows)), [f"{_safe(r.label)}\n{r.difference.word}" for r in rows if r.difference]
    )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    better = "right" if comparison.goal == "max" else "left"
    base = baseline_label(comparison)
    axes.set_xlabel(_safe(f"difference to {base} in {comparison.metric} (better to the {better})"))
    _plain(axes)
    return figure


def plot_curves(comparison: Comparison, metric: str | None = None) -> "Figure":
    """Return a figure of the learning curves of `metric` (default: the judged one): mean and range over seeds.

    Raises:
        WorkingPapersError: where no run has a learning curve.
        UnknownName: where none has one of `metric`.
    """
    known = curve_metrics(comparison)
    if not known:
        raise WorkingPapersError(
            "there is no learning curve to draw: the runs gave single results, no points on the way"
        )
    metric = known[0] if metric is None else metric
    if metric not in known:
        raise unknown("metric of the learning curves", metric, known)
    figure = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    drawn_as = looks(comparison)
    for curve in reversed(learning_curves(comparison, metric)):
        look = drawn_as.get(curve.label)
        if look is None:
            axes.plot(curve.steps, curve.mean, color="#bbbbbb", linewidth=0.8)
            continue
        colour = COLOURS[look.colour]
        dashes = "-" if look.dash == "none" else (0, tuple(float(d) / 2 for d in look.dash.split()))
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(curve.steps, curve.mean, color=colour, linestyle=dashes, marker=MARKERS[look.marker],
                  markevery=[-1], label=_safe(curve.label))  # fmt: skip
    axes.set_xlabel(step_name(comparison))
    axes.set_ylabel(_safe(metric))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False)
    _plain(axes)
    return figure


def _figure(width: float, height: float) -> "Figure":
    """Return an empty figure; pyplot is imported, as that is what makes notebooks show figures, but not told."""
    import matplotlib.pyplot  # noqa: F401
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _safe(text: str) -> str:
    """Return `text` so that matplotlib neither reads dollars as mathematics nor hides a leading underscore."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _plain(axes: object) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)  # type: ignore[attr-defined]
    axes.grid(axis="both", color="#dddddd", linewidth=0.6)  # type: ignore[attr-defined]
    axes.set_axisbelow(True)  # type: ignore[attr-defined]
