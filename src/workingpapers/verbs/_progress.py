"""The live table of a running experiment: how far each variant is, and how it does so far."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live as RichLive
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

if TYPE_CHECKING:
    from workingpapers.experiments.engine import Event

REFRESH = 4  # times a second


class Live:
    """A progress callback for the engine; silent where `console` is no terminal or `quiet` is set."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._shown = console.is_terminal and not quiet
        self._live = RichLive(console=console, refresh_per_second=REFRESH, transient=True, auto_refresh=False)
        self._began = self._drawn = time.monotonic()
        self._finished: dict[str, list[str]] = defaultdict(list)
        self._values: dict[str, list[float]] = defaultdict(list)
        self._points: dict[str, str] = {}
        self._fresh = 0

    def __enter__(self) -> Live:
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take in one event of the engine and redraw, a few times a second at most."""
        if not self._shown:
            return
        name = _name(event.cell.variant)
        if event.kind == "finished" and event.run is not None:
            self._fresh += event.fresh
            self._finished[name].append(event.run.status)
            self._values[name] += [v for v in [_last(event.run.metrics)] if math.isfinite(v)]
        elif event.kind == "point" and event.point is not None:
            self._points[name] = _words(event.point)
        else:
            self._finished.setdefault(name, [])
        now = time.monotonic()
        if now - self._drawn > 1 / REFRESH or event.finished == event.total:
            self._drawn = now
            self._live.update(self._table(event), refresh=True)

    def _table(self, event: Event) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for name, statuses in list(self._finished.items())[:30]:
            lost = sum(s not in ("done",) for s in statuses)
            mean = sum(self._values[name]) / len(self._values[name]) if self._values[name] else math.nan
            table.add_row(
                escape(name),
                f"{len(statuses)} done" + (f", {lost} not" if lost else ""),
                f"{mean:.4g}" if math.isfinite(mean) else "",
                escape(self._points.get(name, "")),
            )
        bar = ProgressBar(total=event.total, completed=event.finished, width=30)
        table.add_row(bar, f"{event.finished}/{event.total}", self._left(event), "")
        return table

    def _left(self, event: Event) -> str:
        if not self._fresh:
            return ""
        seconds = (time.monotonic() - self._began) / self._fresh * (event.total - event.finished)
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"


def _name(variant: Mapping[str, Any]) -> str:
    """Return a variant's values in one line; the code version that tasks keep in it says nothing to the eye."""
    shown = {k: v for k, v in variant.items() if k not in ("code", "code of objects")}
    return " ".join(v if isinstance(v, str) else f"{k}={v}" for k, v in shown.items()) or "run"


def _last(metrics: dict[str, float] | None) -> float:
    """Return the metric to show while runs go on: accuracy or value where there is one, else the last given."""
    if not metrics:
        return math.nan
    for name in ("accuracy", "value"):
        if name in metrics:
            return metrics[name]
    return list(metrics.values())[-1]


def _words(point: dict[str, Any]) -> str:
    return " ".join(f"{k} {v:.4g}" for k, v in point.items() if isinstance(v, int | float))
