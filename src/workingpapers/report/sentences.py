"""The answer of a comparison in plain sentences."""

import math
from collections.abc import Sequence

from workingpapers.experiments.comparison import Comparison, Row
from workingpapers.experiments.statistics import Difference, Interval
from workingpapers.report.measured import baseline_label
from workingpapers.report.numbers import around, counted, listed, plain


def answer(comparison: Comparison) -> str:
    """Return the one sentence that a reader came for."""
    rows = comparison.rows
    base = baseline_label(comparison)
    if not any(row.seeds for row in rows):
        return _nothing(comparison)
    if len(rows) == 1:
        (row,) = rows
        spread = f", standard deviation {plain(row.spread, 2)}," if row.seeds > 1 else ""
        over = counted(row.seeds, "seed")
        return f"{row.label} has a mean {comparison.metric} of {plain(row.mean)}{spread} over {over}."
    if not any(row.seeds for row in rows if row.label == base):
        return f"{base}, the baseline, gave no finite {comparison.metric}, so nothing can be held against it."
    others = [row for row in rows if row.difference]
    best = next((row for row in others if _word(row) == Difference.BETTER), None)
    if best or len(others) == 1:
        return held(best or others[0], comparison)
    worse = sum(_word(row) == Difference.WORSE for row in others)
    if worse == len(others):
        return f"All {worse} variants are worse than {base}."
    return f"None of the {len(others)} variants is shown to be better than {base}."


def more(comparison: Comparison) -> list[str]:
    """Return what is to be said after the answer: the other variants, what was lost, what one cannot know."""
    rows = [row for row in comparison.rows if row.difference]
    base = baseline_label(comparison)
    said = []
    if len(rows) > 1 and any(row.seeds for row in rows):
        better = [row.label for row in rows if _word(row) == Difference.BETTER]
        worse = [row.label for row in rows if _word(row) == Difference.WORSE]
        rest = [row.label for row in rows if _word(row) == Difference.NONE]
        also = better[1:] if better else []
        parts = [f"better too: {_some(also)}"] if also else []
        parts += [f"worse: {_some(worse)}"] if worse else []
        parts += [f"no difference to {base} shown: {_some(rest)}"] if rest else []
        said += [_capital("; ".join(parts)) + "."] if parts else []
    if any(row.seeds == 1 for row in rows):
        said.append("One seed cannot show a difference; take more.")
    lost = [f"{r.label} in {r.diverged} of {r.diverged + r.seeds}" for r in comparison.rows if r.diverged]
    said += [f"Diverged: {_some(lost)} runs."] if lost else []
    if comparison.failures:
        count = len(comparison.failures)
        said.append(f"{counted(count, 'run')} gave no result and {'is' if count == 1 else 'are'} not judged.")
    return said


def held(row: Row, comparison: Comparison) -> str:
    """Return how one variant stands to the baseline, in one sentence."""
    assert row.difference is not None
    d, base, metric = row.difference, baseline_label(comparison), comparison.metric
    over = counted(d.pairs, "paired seed" if comparison.paired else "seed")
    over = f"{over} each" if not comparison.paired else over
    if d.word == Difference.NONE:
        both = f"No difference between {row.label} and {base}"
        if not math.isfinite(d.interval.estimate):
            return f"{both} can be shown: no seed gave both a finite {metric}."
        size = "that size" if comparison.detect is None else plain(comparison.detect)
        need = f"; about {d.seeds_needed} seeds would tell one of {size}" if d.seeds_needed else ""
        return f"{both} is shown: {around(d.interval, sign=True)} {metric} over {over}{need}."
    up = (d.word == Difference.BETTER) == (comparison.goal == "max")
    if d.interval.excludes(0.0) and (d.interval.estimate > 0) == up:
        return f"{row.label} is {d.word} than {base} by {around(_upright(d.interval))} {metric} over {over}."
    return f"{row.label} is {d.word} than {base}: {_divergence(row, comparison)}."


def _divergence(row: Row, comparison: Comparison) -> str:
    base = next(r for r in comparison.rows if r.difference is None)
    return (
        f"it diverged in {row.diverged} of {counted(row.diverged + row.seeds, 'run')}, "
        f"{base.label} in {base.diverged} of {base.diverged + base.seeds}"
    )


def _upright(interval: Interval) -> Interval:
    """Return the interval of the difference's size, whichever way it goes."""
    if interval.estimate >= 0:
        return interval
    return Interval(-interval.estimate, -interval.high, -interval.low, interval.level)


def _nothing(comparison: Comparison) -> str:
    runs, failed = len(comparison.runs), len(comparison.failures)
    if not runs:
        return "Nothing was run."
    if failed == runs:
        return f"No result: {'the only run' if runs == 1 else f'all {runs} runs'} failed."
    if not failed:
        return (
            f"No finite {comparison.metric}: {'the only run' if runs == 1 else f'all {runs} runs'} diverged."
        )
    return f"No finite {comparison.metric}: {counted(runs - failed, 'run')} diverged and {failed} failed."


def _word(row: Row) -> str:
    return row.difference.word if row.difference else ""


def _some(labels: Sequence[str], most: int = 6) -> str:
    if len(labels) <= most:
        return listed(labels)
    return f"{', '.join(labels[: most - 1])} and {len(labels) - most + 1} more"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
