"""A comparison: the runs of all variants, and how each stands to the baseline."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments.cells import canonical
from workingpapers.experiments.evidence import summary
from workingpapers.experiments.execution import FINAL
from workingpapers.experiments.statistics import Difference, judge
from workingpapers.experiments.store import Run
from workingpapers.experiments.variants import Variant, label, labels

RUN_COLUMNS = (
    "experiment",
    "seed",
    "status",
    "seconds",
    "peak_memory",
    "machine",
    "code",
    "version",
    "finished",
    "error",
)
FORMATS = (".csv", ".parquet", ".json")
LOWER_IS_BETTER = ("loss", "error", "rmse", "mse", "mae", "perplexity", "nll", "seconds", "time", "memory")


@dataclass(frozen=True)
class Row:
    """One variant: its metric over the seeds, its difference to the baseline, and what a run cost (median).

    `seconds` per run; `peak_memory` in bytes, what a run took beyond what its process held before.
    """

    label: str
    variant: Variant
    mean: float
    spread: float
    seeds: int
    diverged: int
    failed: int
    seconds: float
    peak_memory: float
    difference: Difference | None


@dataclass(frozen=True)
class Comparison:
    """Runs of several variants over shared seeds, judged against the baseline.

    `rows` ranks the variants; `runs` holds every run; `save` writes a tidy table, `to_json` everything that a
    program needs.  `goal` is 'max' or 'min'.
    """

    name: str
    runs: Sequence[Run]
    variants: Sequence[Variant]
    baseline: Variant
    metric: str
    goal: str
    paired: bool = True
    detect: float | None = None

    @cached_property
    def rows(self) -> list[Row]:
        """One row a variant, the best mean first; variants without a finite run come last."""
        by_label = self.by_label
        values = {
            name: {r.seed: _metric(r, self.metric) for r in runs if r.status in FINAL}
            for name, runs in by_label.items()
        }
        base = label(self.baseline, self.variants)
        judged = judge(values, base, goal=self.goal, paired=self.paired, detect=self.detect)
        named = zip(by_label, self.variants, strict=True)
        rows = [self._row(name, variant, by_label, values, judged) for name, variant in named]
        sign = -1 if self.goal == "max" else 1
        return sorted(rows, key=lambda r: (math.isnan(r.mean), sign * r.mean if math.isfinite(r.mean) else 0))

    @cached_property
    def by_label(self) -> dict[str, list[Run]]:
        """The runs of each variant, by the variant's label, in the order of seeds."""
        names = labels(self.variants)
        found: dict[str, list[Run]] = {name: [] for name in names.values()}
        for run in sorted(self.runs, key=lambda r: r.seed):
            found[names[canonical(run.variant)]].append(run)
        return found

    @property
    def failures(self) -> list[Run]:
        """The runs that gave no result: failed, killed, out of memory or timed out."""
        return [run for run in self.runs if run.status not in FINAL]

    def _row(
        self,
        name: str,
        variant: Variant,
        by_label: Mapping[str, list[Run]],
        values: Mapping[str, Mapping[int, float]],
        judged: Mapping[str, Difference],
    ) -> Row:
        runs = by_label[name]
        finite = [v for v in values[name].values() if math.isfinite(v)]
        mean, spread = summary(finite)
        ended = [r for r in runs if r.status in FINAL]
        return Row(
            name,
            variant,
            mean,
            spread,
            len(finite),
            len(values[name]) - len(finite),
            len(runs) - len(ended),
            _median([r.seconds for r in ended]),
            _median([r.peak_memory for r in ended]),
            judged.get(name),
        )

    def table(self) -> list[dict[str, Any]]:
        """Return one flat dictionary a run: variant, seed, status, metrics, cost and circumstances.

        What varies has its own name, or `variant_NAME` where a column of the runs is called so.
        """
        return [
            {
                "experiment": self.name,
                **{f"variant_{k}" if k in RUN_COLUMNS else k: v for k, v in run.variant.items()},
                "seed": run.seed,
                "status": run.status,
                **{f"metric_{k}": v for k, v in (run.metrics or {}).items()},
                "seconds": run.seconds,
                "peak_memory": run.peak_memory,
                "machine": run.machine,
                "code": run.code,
                "version": run.version,
                "finished": run.finished,
                "error": run.error,
            }
            for run in sorted(self.runs, key=lambda r: (r.seed, json.dumps(r.variant, sort_keys=True)))
        ]

    def save(self, path: str | Path) -> Path:
        """Write the tidy table of runs to `path`, as CSV, Parquet (extra [parquet]) or JSON by its ending."""
        path = Path(path)
        writers = {".csv": _write_csv, ".parquet": _write_parquet, ".json": self._write_json}
        check_format(path)
        try:
            writers[path.suffix](self.table(), path)
        except OSError as error:
            raise WorkingPapersError(f"cannot write {path}: {error.strerror or error}") from None
        return path

    def _write_json(self, table: list[dict[str, Any]], path: Path) -> None:
        path.write_text(self.to_json() + "\n", "utf-8")

    def to_json(self) -> str:
        """Return the comparison as JSON: settings, one row a variant, and every run."""
        rows = [
            {**asdict(row), "difference": asdict(row.difference) if row.difference else None}
            for row in self.rows
        ]
        content = {
            "name": self.name,
            "metric": self.metric,
            "goal": self.goal,
            "paired": self.paired,
            "baseline": self.baseline,
            "rows": rows,
            "runs": self.table(),
        }
        return json.dumps(finite(content), indent=1, ensure_ascii=False)

    def __str__(self) -> str:
        width = max(len(row.label) for row in self.rows)
        lines = [f"{self.name}: {self.metric} ({'higher' if self.goal == 'max' else 'lower'} is better)"]
        for row in self.rows:
            tail = difference_text(row.difference) if row.difference else "baseline"
            lines.append(f"  {row.label:<{width}}  {row.mean:.4g} +- {row.spread:.2g}  {tail}")
        return "\n".join(lines)


def check_format(path: str | Path) -> None:
    """Raise one sentence if `save` knows no format for the ending of `path`."""
    if (ending := Path(path).suffix) not in FORMATS:
        raise unknown("format of results file", ending or str(path), FORMATS)


def difference_text(difference: Difference) -> str:
    """Say a difference in words: the word, the estimate and its interval."""
    i = difference.interval
    return f"{difference.word}: {i.estimate:+.3g} [{i.low:+.3g}, {i.high:+.3g}]"


def _median(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(median(known)) if known else math.nan


def _metric(run: Run, name: str) -> float:
    value = (run.metrics or {}).get(name)
    return math.nan if value is None else float(value)


def choose_metric(runs: Sequence[Run], wanted: str | None) -> str:
    """Return the metric to judge by: `wanted`, or the only one, or the one called 'value'."""
    names = list(dict.fromkeys(k for run in runs if run.status in FINAL for k in (run.metrics or {})))
    if wanted is not None:
        if names and wanted not in names:
            raise unknown("metric of these runs", wanted, names)
        return _given_by_all(wanted, runs)
    if not names:
        return "value"
    measured = [n for n in names if n not in ("step", "epoch")]
    if len(measured) == 1 or "value" in measured:
        return _given_by_all("value" if "value" in measured else measured[0], runs)
    if not measured:
        raise WorkingPapersError(f"the runs give {' and '.join(names)} alone, which no variant is judged by")
    raise WorkingPapersError(
        f"the runs give several metrics ({', '.join(measured)}); say which one counts "
        f"with metric={measured[0]!r}"
    )


def _given_by_all(metric: str, runs: Sequence[Run]) -> str:
    """Return `metric`, or raise one sentence if a run that ended lacks it: it did not diverge."""
    lacking = [run for run in runs if run.status in FINAL and metric not in (run.metrics or {})]
    if lacking:
        first = lacking[0]
        raise WorkingPapersError(
            f"{len(lacking)} of {len(runs)} runs give no {metric!r}, such as {first.variant} with seed "
            f"{first.seed}, which gives {', '.join(first.metrics or {})}; all must, to be compared"
        )
    return metric


def choose_goal(metric: str, wanted: str | None) -> str:
    """Return 'max' or 'min': `wanted`, or what the metric's name says (losses and errors are minimised)."""
    if wanted is not None:
        if wanted not in ("max", "min"):
            raise unknown("goal", wanted, ("max", "min"))
        return wanted
    return "min" if any(word in metric.lower() for word in LOWER_IS_BETTER) else "max"


def finite(content: Any) -> Any:
    """Return `content` with every float that JSON cannot hold (nan, inf) replaced by None."""
    if isinstance(content, dict):
        return {k: finite(v) for k, v in content.items()}
    if isinstance(content, list | tuple):
        return [finite(v) for v in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _columns(table: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in table for key in row))


def _write_csv(table: list[dict[str, Any]], path: Path) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _columns(table))
        writer.writeheader()
        writer.writerows(table)


def _of_one_type(values: list[Any]) -> list[Any]:
    """Return a column as Parquet takes it: words where values of several types stand together, as lr=auto,0.1."""
    types = {type(v) for v in values if v is not None}
    if len(types) < 2 or types == {int, float}:
        return values
    return [None if v is None else str(v) for v in values]


def _write_parquet(table: list[dict[str, Any]], path: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise WorkingPapersError(
            "writing Parquet needs pyarrow: pip install 'workingpapers[parquet]', "
            "or give a file that ends in .csv"
        ) from None
    columns = _columns(table)
    data = pyarrow.table({c: pyarrow.array(_of_one_type([row.get(c) for row in table])) for c in columns})
    pyarrow.parquet.write_table(data, path)
