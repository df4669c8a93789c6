"""How results look in a terminal: tables that fit it, progress that stays silent elsewhere."""

import json as _json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from workingpapers.catalog.find import Match
    from workingpapers.claims import Verdict
    from workingpapers.experiments.comparison import Comparison, Row
    from workingpapers.verbs._inspection import Inspection
    from workingpapers.verbs._tradeoff import Tradeoff
    from workingpapers.verbs.bench import Bench
    from workingpapers.verbs.check import Checked

COLOURS = {"better": "green", "worse": "red", "holds": "green", "does not hold": "red", "not shown": "yellow"}


def console() -> Console:
    """Return a console on standard output; where that is no terminal, lines are not cut at 80 columns."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=max(found.width, 160))


def json(content: Any) -> None:
    """Print `content` as JSON; nan and inf become null, which JSON has."""
    from workingpapers.experiments.comparison import finite

    print(_json.dumps(finite(content), indent=1, ensure_ascii=False))


def rows(content: Sequence[Mapping[str, Any]]) -> None:
    """Print dictionaries of the same keys as a table."""
    table = Table(*(content[0] if content else ()), box=None, header_style="bold")
    for row in content:
        table.add_row(*(escape(str(v)) for v in row.values()))
    console().print(table)


def matches(found: "Sequence[Match]") -> None:
    """Print search results, best first: id, whether it works here, kind, and our sentence."""
    from workingpapers.catalog.ledger import works

    if not found:
        print("nothing found; try fewer or other words, or leave a filter out")
        return
    table = Table("paper", "works", "kind", "what it is", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for match in found:
        r = match.record
        table.add_row(
            f"[bold]{r.id}[/bold]", "yes" if works(r.id) else "-", r.kind, escape(f"{r.summary} ({r.year})")
        )
    console().print(table)


def records(content: Sequence[Mapping[str, Any]]) -> None:
    """Print the catalogue: one line a paper, and how many work."""
    table = Table(
        "paper",
        "family",
        "kind",
        "contract",
        "claims measured here",
        "title",
        box=None,
        header_style="bold",
        padding=(0, 2, 0, 0),
    )
    for row in content:
        words = [v["result"] + (" (stale)" if v["stale"] else "") for v in row["verdicts"].values()]
        said = ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words))
        table.add_row(
            row["id"], row["family"], row["kind"], row["contract"] or "-", said or "-", escape(row["title"])
        )
    console().print(table)
    print(f"{len(content)} papers, {sum(bool(r['works']) for r in content)} of them work here")


@contextmanager
def status(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show on standard error what is being done, where that is a terminal."""
    out = Console(stderr=True, quiet=quiet or not sys.stderr.isatty())
    with out.status("") as line:
        yield line.update


def inspection(found: "Inspection") -> None:
    """Print what is wrong, the worst first, then each check's sentence."""
    out = console()
    out.print(f"[bold]{escape(found.headline())}[/bold]")
    for check, symptom in found.symptoms:
        colour = {"serious": "red", "warning": "yellow"}.get(symptom.severity, "cyan")
        where = f"[bold]{escape(symptom.where)}[/bold]: " if symptom.where else ""
        out.print(f"[{colour}]{symptom.severity}[/{colour}] {where}{escape(symptom.says)} [dim]{check}[/dim]")
        out.print(f"        {escape(symptom.remedy)}", style="dim")
    table = Table("check", "what it found", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for check, finding in found.findings.items():
        table.add_row(check, escape(finding.reading))
    for check, why in found.skipped.items():
        table.add_row(check, f"[dim]does not apply: {escape(why)}[/dim]")
    for check, why in found.failed.items():
        table.add_row(check, f"[red]failed: {escape(why)}[/red]")
    out.print(table)


def tradeoff(found: "Tradeoff") -> None:
    """Print every point of a sweep, those that no other one beats with a star."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("", "method", "target", "left out", found.points[0].measure, "rises by", "times as fast"):
        table.add_column(title, no_wrap=True)
    front = found.front
    for point in found.points:
        rise, low, high = point.rise
        speed, slow, fast = point.speed
        table.add_row(
            "*" if point in front else "",
            point.method,
            f"{point.target:.0%}",
            f"{point.sparsity:.1%}",
            f"{point.after:.4g}",
            f"{rise:+.1%} [{low:+.1%}, {high:+.1%}]",
            f"{speed:.2f} [{slow:.2f}, {fast:.2f}]",
        )
    console().print(table)


def bench(found: "Bench") -> None:
    """Print timings by size and pass, each as a ratio to the activation's own, and a chart over sizes."""
    from workingpapers.verbs._draw import chart

    out = console()
    for size, bandwidth in found.copy_bandwidth.items():
        print(
            f"{size:,} {found.dtype} elements on {found.device}; copying reaches {bandwidth / 1e9:.3g} GB/s"
        )
        table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
        for title in ("pass", "", "time", f"times {found.name}", "of copy speed", "kept / input"):
            table.add_column(title, no_wrap=True)
        for t in (t for t in found.timings if t.size == size):
            ratio = "" if t.contender == found.name else rf"{t.ratio:.2f} \[{t.low:.2f}, {t.high:.2f}]"
            kept = f"{t.kept:.2f}" if t.what != "forward" else ""
            table.add_row(t.what, t.contender, _time(t.seconds), ratio, f"{t.bandwidth:.0%}", kept)
        out.print(table)
    if len(found.copy_bandwidth) > 1:
        lines = {f"{n}, seconds by elements": line for n, line in found.series("forward+backward").items()}
        print("\n".join(chart(lines, height=5, log=True)))


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def comparison(result: "Comparison") -> None:
    """Print a comparison: one row a variant with its difference to the baseline, then what failed."""
    out, direction = console(), "higher" if result.goal == "max" else "lower"
    out.print(
        f"[bold]{escape(result.name)}[/bold]: {escape(result.metric)}, {direction} is better", soft_wrap=True
    )
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    wide = out.width >= 100
    for title in ["variant", "mean ± sd", "difference *", "verdict", "seeds", "s/run"] + [
        "MB",
        "to tell",
    ] * wide:
        table.add_column(title, no_wrap=title not in ("variant", "verdict"))
    for row in result.rows:
        table.add_row(*(_cells(row) if wide else _cells(row)[:-2]))
    out.print(table)
    family = " for all of them together (Holm)" if len(result.variants) > 2 else ""
    pairing = "paired by seed" if result.paired else "unpaired"
    words = f"* to the baseline, with the 95 % interval{family}, {pairing}"
    asked = "the difference asked for" if result.detect else "a difference as large as the one seen"
    out.print(f"[dim]{words}{f'; to tell: seeds that tell {asked}' * wide}[/dim]", soft_wrap=True)
    for run in result.failures:
        out.print(
            f"[red]{run.status}[/red] {escape(_variant(run.variant))} seed {run.seed}: {escape(run.error or '')}",
            soft_wrap=True,
        )


def _variant(variant: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in variant.items())


def _cells(row: "Row") -> list[str]:
    lost = [f"{n} {word}" for n, word in ((row.diverged, "diverged"), (row.failed, "failed")) if n]
    seeds = str(row.seeds) + (f" ({', '.join(lost)})" if lost else "")
    mean = f"{row.mean:.4g} ± {row.spread:.2g}" if row.seeds else "-"
    d, needed = row.difference, "-"
    if d is None:
        difference, word = "", "baseline"
    else:
        difference = f"{d.interval.estimate:+.3g}" if math.isfinite(d.interval.estimate) else "-"
        if math.isfinite(d.interval.low):
            difference += rf" \[{d.interval.low:+.2g}, {d.interval.high:+.2g}]"
        colour = COLOURS.get(d.word)
        word = f"[{colour}]{d.word}[/{colour}]" if colour else d.word
        needed = str(d.seeds_needed or "-")
    return [
        escape(row.label),
        mean,
        difference,
        word,
        seeds,
        _short(row.seconds),
        _short(row.peak_memory / 2**20),
        needed,
    ]


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def checked(result: "Checked") -> None:
    """Print what a check of one paper gave: failing checks of its contract, then each claim's verdict."""
    out = console()
    for name, report in result.contracts.items():
        state = "[green]passed[/green]" if report.passed else "[red]failed[/red]"
        out.print(f"[bold]{name}[/bold]  contract {state} ({len(report.results)} checks)")
        for check, why in (report.failures if not report.passed else {}).items():
            out.print(f"    [red]{check}[/red]: {escape(str(why))}", soft_wrap=True)
    for verdict in result.verdicts:
        _claim(out, verdict)


def _claim(out: Console, verdict: "Verdict") -> None:
    colour = COLOURS[verdict.verdict]
    out.print(f"[bold]{verdict.paper}:{verdict.claim}[/bold]  {escape(verdict.says)}", soft_wrap=True)
    if verdict.figure:
        out.print(f"    paper    {escape(verdict.figure)}", soft_wrap=True)
    for name, i in verdict.figures.items():
        interval = "" if i.low == i.high else f"  [{i.low:.4g}, {i.high:.4g}]".replace("[", r"\[")
        out.print(f"    here     {name} {i.estimate:.4g}{interval}")
    out.print(f"    rule     {escape(verdict.rule)}", soft_wrap=True)
    if verdict.calibrated:
        out.print(f"    changed  {escape(verdict.calibrated)}", soft_wrap=True)
    out.print(
        f"    verdict  [{colour}]{verdict.verdict}[/{colour}]  ({verdict.budget} budget, "
        f"{len(verdict.seeds)} seeds, {verdict.seconds:.0f} s)"
    )
    for error in verdict.errors:
        out.print(f"    [red]no evidence[/red] {escape(error)}", soft_wrap=True)


def report(path: str, comparisons: "Sequence[Comparison]" = (), verdicts: "Sequence[Verdict]" = ()) -> None:
    """Write the HTML report and say where it is."""
    from workingpapers.verbs._report import write

    print(f"report: {write(path, comparisons, verdicts)}")


@contextmanager
def progress(quiet: bool = False) -> Iterator[Any]:
    """Give a progress callback for the engine: a live table on a terminal, nothing elsewhere.

    Where it is quiet, standard output is kept for our JSON: what the user's code prints goes to standard error.
    Ctrl-C inside is answered with one sentence and goes on to the caller.
    """
    from workingpapers.verbs._progress import Live

    try:
        away = redirect_stdout(sys.stderr) if quiet else nullcontext()
        with away, Live(Console(stderr=True), quiet=quiet) as live:
            yield live
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; finished runs are kept, and the same command goes on from here")
        raise
