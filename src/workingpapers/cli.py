"""The shell's doors to the verbs: names, options and help.  Heavy imports happen inside the commands."""

import sys
from typing import Annotated, Any

import typer

from workingpapers import __version__, _options
from workingpapers._options import Budget, Family, Id, Json, Kind, On, ReportFile, Store, Workers, Working
from workingpapers.errors import WorkingPapersError

app = typer.Typer(
    name="workingpapers",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Neural-network papers that work: find one, use it, compare it, check its claim.",
)


@app.command(epilog="Example: workingpapers find 'replace softmax in attention' --kind mixer")
def find(
    query: Annotated[list[str], typer.Argument(help="What you are looking for, in your own words.")],
    family: Family = None,
    kind: Kind = None,
    working: Working = False,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="How many to print.")] = 10,
    as_json: Json = False,
) -> None:
    """Search the catalogue by meaning and words; typing errors are forgiven."""
    from workingpapers.verbs import _print
    from workingpapers.verbs.find import as_dict
    from workingpapers.verbs.find import find as search

    matches = search(" ".join(query), family=family, kind=kind, working=working, limit=limit)
    _print.json([as_dict(m) for m in matches]) if as_json else _print.matches(matches)


@app.command(epilog="Examples: workingpapers show golu  |  workingpapers show golu --draw golu.svg")
def show(
    id: Id,
    draw: Annotated[
        str | None, typer.Option(help="Write a figure of its activations here (.svg, .png, .pdf).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a paper is, its formula and curve, how to use it, and whether its claims held here."""
    from workingpapers.verbs import _print
    from workingpapers.verbs.show import show as sheet

    found = sheet(id)
    _print.json(found.as_dict()) if as_json else print(found)
    if draw is not None:
        found.draw(draw)
        print(f"drawn: {draw}", file=sys.stderr)


@app.command(epilog="Example: workingpapers bench golu --against gelu,compile,eager --plot golu.png")
def bench(
    name: Annotated[str, typer.Argument(help="An activation, such as golu.", autocompletion=_options.ids)],
    against: Annotated[
        str, typer.Option(help="Its peers: names of activations, eager, compile.")
    ] = "gelu,compile,eager",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    sizes: Annotated[
        str | None, typer.Option(help="Numbers of elements, such as 1024,4194304 or 2^10,2^22.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Times that all are timed, in turns.")] = 9,
    plot: Annotated[str | None, typer.Option(help="Write a figure of time over size here.")] = None,
    as_json: Json = False,
) -> None:
    """Time an activation here against peers and the memory's speed, forward and with backward."""
    from workingpapers.verbs import _print
    from workingpapers.verbs._draw import save_figure
    from workingpapers.verbs.bench import bench as timed
    from workingpapers.verbs.bench import elements

    chosen = [elements(size) for size in sizes.split(",")] if sizes else None
    with _print.status(quiet=as_json) as progress:
        found = timed(
            name,
            against.split(","),
            device=device,
            dtype=dtype,
            sizes=chosen,
            rounds=rounds,
            progress=progress,
        )
    _print.json(found.as_dict()) if as_json else _print.bench(found)
    if plot is not None:
        save_figure(found.figure(), plot)
        print(f"drawn: {plot}", file=sys.stderr)


@app.command("list", epilog="Example: workingpapers list --working --kind activation")
def list_(family: Family = None, kind: Kind = None, working: Working = False, as_json: Json = False) -> None:
    """Print every paper with what is known of it here."""
    from workingpapers.verbs import _print
    from workingpapers.verbs.listing import listing

    rows = listing(family=family, kind=kind, working=working)
    _print.json(rows) if as_json else _print.records(rows)


@app.command(
    epilog="Examples: workingpapers compare train.py:run activation=relu,golu lr=1e-3,3e-3 --seeds 10  |  "
    "workingpapers compare --task fashion_mnist-mlp activation=relu,gelu,golu --report out.html"
)
def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="file.py:function (left out with --task), then what "
            "varies: name=value,value,...  The first is the baseline."
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(help="One of our tasks in place of your function.", autocompletion=_options.tasks),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds a variant, from 0.")] = 10,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="Give every variant its own seeds.")] = False,
    baseline: Annotated[str | None, typer.Option(help="The baseline: name=value[,name=value].")] = None,
    metric: Annotated[
        str | None, typer.Option(help="The figure that counts, where a run gives several.")
    ] = None,
    goal: Annotated[str | None, typer.Option(help="max or min; default: by the metric's name.")] = None,
    detect: Annotated[float | None, typer.Option(help="The difference you care about.")] = None,
    budget: Budget = "quick",
    device: Annotated[str, typer.Option(help="cpu or cuda, for our tasks.")] = "cpu",
    workers: Workers = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads of each run.")] = 1,
    on: On = "local",
    timeout: Annotated[float | None, typer.Option(help="Seconds after which a run is ended.")] = None,
    store: Store = None,
    out: Annotated[str | None, typer.Option(help="Write every run here: .csv, .parquet or .json.")] = None,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Run variants on shared seeds and say which is better, worse, or not shown to differ from the baseline.

    A rerun goes on where the last one stopped: finished runs are kept in the store.
    """
    from workingpapers.experiments.comparison import check_format
    from workingpapers.verbs import _print
    from workingpapers.verbs.compare import compare as run
    from workingpapers.verbs.compare import parse_arguments, parse_baseline

    function, over = parse_arguments(arguments, task)
    if out:
        check_format(out)
    with _print.progress(quiet=as_json) as show_progress:
        result = run(
            function,
            over,
            seeds=seeds,
            paired=not unpaired,
            baseline=parse_baseline(baseline),
            metric=metric,
            goal=goal,
            detect=detect,
            budget=budget,
            device=device,
            workers=workers,
            threads=threads,
            on=on,
            timeout=timeout,
            store=store,
            progress=show_progress,
        )
    print(result.to_json()) if as_json else _print.comparison(result)
    if out:
        result.save(out)
    if report:
        _print.report(report, comparisons=[result])
    if result.failures:
        raise typer.Exit(1)


@app.command(
    epilog="Examples: workingpapers check golu  |  workingpapers check --family activations --budget full"
)
def check(
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Papers to check; paper:claim picks one claim.", autocompletion=_options.ids),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(help="All written papers of a family.", autocompletion=_options.families),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All written papers.")] = False,
    budget: Budget = "quick",
    seeds: Annotated[
        str | None,
        typer.Option(help="Other seeds, such as 1000-1004, to calibrate a rule; never recorded."),
    ] = None,
    claims_only: Annotated[bool, typer.Option("--claims-only", help="Leave the contracts out.")] = False,
    contract_only: Annotated[bool, typer.Option("--contract-only", help="Leave the claims out.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write contracts and verdicts into the ledger.")
    ] = False,
    workers: Workers = None,
    on: On = "local",
    store: Store = None,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Check the contract of papers and measure whether their own claims hold here.

    Exits with 0 whatever the verdicts say, 1 where a contract failed or a claim could not be measured.
    """
    from workingpapers.verbs import _print
    from workingpapers.verbs.check import check_many, parse_seeds

    found = []
    with _print.progress(quiet=as_json) as show_progress:
        for checked in check_many(
            ids or [],
            families=family or [],
            all=everything,
            budget=budget,
            seeds=parse_seeds(seeds),
            contract=not claims_only,
            claims=not contract_only,
            record=record,
            store=store,
            workers=workers,
            on=on,
            progress=show_progress,
        ):
            found.append(checked)
            None if as_json else _print.checked(checked)
    if as_json:
        _print.json([c.as_dict() for c in found])
    if report:
        _print.report(report, verdicts=[v for c in found for v in c.verdicts])
    if not all(c.complete for c in found):
        raise typer.Exit(1)


@app.command(epilog="Example: workingpapers contract golu")
def contract(
    name: Annotated[
        str,
        typer.Argument(
            help="A component: a paper's id, a part such as repvgg.block, or a reference such as relu.",
            autocompletion=_options.ids,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Check one component against the contract of its kind, check by check."""
    from workingpapers.contracts import check_contract
    from workingpapers.verbs import _print

    report = check_contract(name)
    _print.json({k: str(v) for k, v in report.results.items()}) if as_json else print(report)
    if not report.passed:
        raise typer.Exit(1)


@app.command(epilog="Example: workingpapers swap model.py:build relu golu --where 'layer1.*'")
def swap(
    model: Annotated[str, typer.Argument(help="file.py:function that builds a model, or module:function.")],
    old: Annotated[str, typer.Argument(help="The activation to take out, such as relu.")],
    new: Annotated[str, typer.Argument(help="The activation to put in.", autocompletion=_options.ids)],
    where: Annotated[
        list[str] | None, typer.Option(help="Only places whose names have this pattern.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print where a model has an activation and what a swap would change; `wp.swap` in Python does it."""
    from workingpapers.verbs import _print
    from workingpapers.verbs.swap import listed

    rows = listed(model, old, new, where)
    _print.json(rows) if as_json else _print.rows(rows)


@app.command(epilog="Example: workingpapers new my_method --family activations --kind activation")
def new(
    id: Annotated[str, typer.Argument(help="The new paper's id: a valid Python name.")],
    family: Family = None,
    kind: Kind = None,
    into: Annotated[
        str | None, typer.Option(help="Folder of the repository or plug-in; default: here.")
    ] = None,
) -> None:
    """Write the record, the file and the test file of a new paper, ready to be filled in."""
    from workingpapers.verbs.new import new as write

    for path in write(id, family=family, kind=kind, into=into):
        print(path)


@app.command()
def tasks(as_json: Json = False) -> None:
    """Print the real-data tasks that `compare --task` runs."""
    from workingpapers.tasks import TASKS
    from workingpapers.verbs import _print

    rows = [
        {"task": t.name, "summary": t.summary, "metric": t.metric, "variables": ", ".join(t.variables)}
        for t in TASKS.values()
    ]
    _print.json(rows) if as_json else _print.rows(rows)


@app.command()
def demo(
    report: Annotated[
        str, typer.Option("--report", help="Where the HTML report goes.")
    ] = "workingpapers-out/demo.html",
    store: Store = None,
) -> None:
    """Compare six activations on real images, check claims of three papers, and write a report: a few minutes."""
    from workingpapers.experiments.store import Store as Runs
    from workingpapers.verbs import _print
    from workingpapers.verbs import demo as verb

    runs, found, checked = Runs(store), [], []
    with _print.progress() as show_progress:
        for comparison in verb.comparisons(runs, show_progress):
            found.append(comparison)
            _print.comparison(comparison)
        for result in verb.claims(runs, show_progress):
            checked.append(result)
            _print.checked(result)
    _print.report(report, found, [v for c in checked for v in c.verdicts])
    if any(c.failures for c in found) or not all(c.complete for c in checked):
        raise typer.Exit(1)


def _version(value: bool) -> None:
    if value:
        print(f"workingpapers {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before the command."""


def main() -> Any:
    """Run the command line; a known error is one sentence on standard error and exit code 2."""
    try:
        return app()
    except WorkingPapersError as error:
        print(f"workingpapers: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
