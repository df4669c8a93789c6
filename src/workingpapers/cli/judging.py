"""The doors to what is judged: compare, check, demo.  Heavy imports happen inside the commands."""

from typing import Annotated

import typer

from workingpapers.cli import _options
from workingpapers.cli._app import app
from workingpapers.cli._options import Budget, Json, On, ReportFile, Store, Workers


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
