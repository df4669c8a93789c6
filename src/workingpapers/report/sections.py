"""A comparison as the page shows it: the answer, the ranking, the drawings, what failed, how to reproduce it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from workingpapers.experiments.comparison import Comparison
from workingpapers.experiments.execution import FINAL
from workingpapers.report import sentences
from workingpapers.report.measured import baseline_label, curve_metrics, value_of
from workingpapers.report.numbers import (
    bounds,
    column,
    common_decimals,
    counted,
    duration,
    fixed,
    listed,
    plain,
    ranges,
    width,
)
from workingpapers.report.plots import (
    WORD_CLASS,
    Plot,
    curves_plot,
    differences_plot,
    seeds_plot,
)
from workingpapers.report.provenance import machines, when, without_home
from workingpapers.report.shapes import Shape, shapes

MOST_CURVES = 4  # metrics drawn; runs may report dozens
MOST_FAILURES = 20
MOST_SEED_COLUMNS = 40


@dataclass(frozen=True)
class Line:
    """One line of the ranking, every cell in words."""

    label: str
    baseline: bool
    mean: str
    spread: str
    difference: str
    interval: str
    word: str
    look: str
    seeds: str
    lost: str
    to_tell: str
    seconds: str
    memory: str


@dataclass(frozen=True)
class Section:
    """A comparison as the template shows it."""

    anchor: str
    name: str
    metric: str
    goal: str
    baseline: str
    design: str
    paired: bool
    variants: int
    answer: str
    more: list[str]
    lines: list[Line]
    differences: Plot | None
    seeds: Plot | None
    curves: list[Plot]
    legend: Sequence[tuple[Markup, str]]
    shapes: list[Shape]
    failures: list[str]
    seed_columns: list[int]
    seed_rows: list[tuple[str, list[str]]]
    facts: list[tuple[str, str]]


def section(comparison: Comparison, activations: Mapping[str, Callable[..., Any]], anchor: str) -> Section:
    """Return all that the page shows of `comparison`; `anchor` begins every id within."""
    seeds = sorted({run.seed for run in comparison.runs})
    most = max((len(runs) for runs in comparison.by_label.values()), default=0)
    metrics = curve_metrics(comparison)[:MOST_CURVES]
    curves = [curves_plot(comparison, metric, f"{anchor}-curve-{i}") for i, metric in enumerate(metrics)]
    columns = seeds if len(seeds) <= MOST_SEED_COLUMNS else []
    return Section(
        anchor,
        without_home(comparison.name),
        comparison.metric,
        "higher is better" if comparison.goal == "max" else "lower is better",
        baseline_label(comparison) if len(comparison.variants) > 1 else "",
        _design(comparison, most),
        comparison.paired,
        len(comparison.variants),
        sentences.answer(comparison),
        sentences.more(comparison),
        _lines(comparison),
        differences_plot(comparison, f"{anchor}-differences"),
        seeds_plot(comparison, f"{anchor}-seeds"),
        curves,
        max((plot.legend for plot in curves), key=len, default=()),
        shapes(comparison, activations, f"{anchor}-shape"),
        _failures(comparison),
        columns,
        [(row.label, [_cell(comparison, row.label, s) for s in columns]) for row in comparison.rows],
        _facts(comparison, seeds),
    )


def _design(comparison: Comparison, most: int) -> str:
    if len(comparison.variants) == 1:
        return counted(most, "seed")
    return (
        counted(most, "paired seed") if comparison.paired else f"{counted(most, 'seed')} a variant, unpaired"
    )


def _lines(comparison: Comparison) -> list[Line]:
    rows = comparison.rows
    mean_places = common_decimals([row.spread for row in rows])
    places = common_decimals([width(row.difference.interval) if row.difference else math.nan for row in rows])
    found = []
    seconds = column(row.seconds for row in rows)
    memory = column(None if row.peak_memory is None else row.peak_memory / 2**20 for row in rows)
    for i, (row, for_mean, for_difference) in enumerate(zip(rows, mean_places, places, strict=True)):
        d = row.difference
        lost = [f"{row.diverged} diverged"] if row.diverged else []
        lost += [f"{row.failed} failed"] if row.failed else []
        found.append(
            Line(
                row.label,
                d is None and len(rows) > 1,
                fixed(row.mean, for_mean) if row.seeds else "no finite run",
                fixed(row.spread, for_mean) if row.seeds > 1 else "",
                fixed(d.interval.estimate, for_difference, sign=True) if d else "",
                bounds(d.interval, for_difference, sign=True) if d else "",
                d.word if d else "baseline" if len(rows) > 1 else "",
                WORD_CLASS.get(d.word, "open") if d else "base",
                str(row.seeds),
                ", ".join(lost),
                str(d.seeds_needed or "") if d else "",
                seconds[i],
                memory[i],
            )
        )
    return found


def _failures(comparison: Comparison) -> list[str]:
    """Return a line for each variant and way of failing, the first of them where there are many."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for name, runs in comparison.by_label.items():
        for run in runs:
            if run.status not in FINAL:
                seeds.setdefault((name, run.status, run.error or ""), []).append(run.seed)
    found = [_failure(*key, at) for key, at in seeds.items()]
    if len(found) <= MOST_FAILURES:
        return found
    return [*found[:MOST_FAILURES], f"and {len(found) - MOST_FAILURES} more"]


def _failure(name: str, status: str, error: str, seeds: Sequence[int]) -> str:
    where = f"{name}, {'seed' if len(seeds) == 1 else 'seeds'} {ranges(seeds)}"
    return without_home(f"{where}: {status}{f': {error}' if error else ''}")


def _cell(comparison: Comparison, label: str, seed: int) -> str:
    for run in comparison.by_label[label]:
        if run.seed == seed:
            value = value_of(run, comparison.metric)
            if run.status not in FINAL:
                return run.status
            return plain(value, 5) if math.isfinite(value) else "diverged"
    return ""


def _facts(comparison: Comparison, seeds: Sequence[int]) -> list[tuple[str, str]]:
    """Return what one needs to make these runs again, as (what, which)."""
    runs = comparison.runs
    codes = list(dict.fromkeys(run.code for run in runs if run.code))
    packages = list(dict.fromkeys(run.version for run in runs if run.version))
    finished = [run.finished for run in runs if run.finished]
    total = sum(run.seconds or 0.0 for run in runs)
    facts = [
        ("Experiment", without_home(comparison.name)),
        ("Variants", "; ".join(row.label for row in comparison.rows)),
        ("Seeds", ranges(seeds) or "none"),
        ("Code version", listed(codes) or "not known"),
        ("Working Papers", listed(packages) or "not known"),
        ("Machine", "; ".join(machines(run.machine for run in runs))),
        ("Computing", f"{counted(len(runs), 'run')}, {duration(total)} in all"),
    ]
    return facts + ([("Last run", when(max(finished)))] if finished else [])
