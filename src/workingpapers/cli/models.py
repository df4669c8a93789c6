"""The doors to what works on models: bench, contract, swap, inspect, verify.  Heavy imports come late."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from workingpapers.cli import _options
from workingpapers.cli._app import app
from workingpapers.cli._options import Json


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


@app.command(
    epilog="Examples: workingpapers inspect my.py:case --report health.html  |  "
    "workingpapers inspect my.py:case --loss cross_entropy --lr 0.1 --checks redo,sgd_stability --json.  "
    "Exit code: 0 healthy, 1 something is serious or warns, 2 bad input."
)
def inspect(
    case: Annotated[
        str, typer.Argument(help="file.py:function that returns a model and data for it, or module:function.")
    ],
    loss: Annotated[str | None, typer.Option(help="cross_entropy or mse, where data have targets.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="The learning rate, to hold against the curvature.")
    ] = None,
    checks: Annotated[str, typer.Option(help="all, or names of checks or papers, with commas.")] = "all",
    batch: Annotated[int, typer.Option(min=1, help="Examples at a time, where data are one tensor.")] = 64,
    seed: Annotated[int, typer.Option(help="Of samples and probes.")] = 0,
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page with pictures here.")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Keep the findings here as JSON.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="FILE", help="Print what changed since the findings kept there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is dead, redundant, collapsed or unstable in a network, and what to do about it."""
    from workingpapers.verbs import _print
    from workingpapers.verbs._inspection import Inspection
    from workingpapers.verbs.inspect import inspect_named

    before = Inspection.load(since) if since else None
    wanted = "all" if checks == "all" else checks.split(",")
    with _print.status(quiet=as_json) as say:
        found = inspect_named(case, loss=loss, lr=lr, checks=wanted, batch=batch, seed=seed, watch=say)
    if out is not None:
        found.save(out)
    if report is not None:
        found.report(report)
    if as_json:
        _print.json(found.as_dict())
    elif before is not None:
        print(found.since(before))
    else:
        _print.inspection(found)
    raise typer.Exit(0 if found.healthy else 1)


@app.command(
    epilog="Examples: workingpapers verify net.onnx prop.vnnlib --timeout 116  |  "
    "workingpapers verify net.onnx.gz prop.vnnlib.gz --json.  "
    "Exit code: 0 holds, 1 violated, 2 bad input, 3 not decided in time."
)
def verify(
    network: Annotated[str, typer.Argument(help="An ONNX file, .onnx or .onnx.gz.")],
    property: Annotated[str, typer.Argument(help="What must hold, in VNN-LIB 1.0: .vnnlib or .vnnlib.gz.")],
    timeout: Annotated[float, typer.Option(help="Seconds after which it gives up.")] = 60.0,
    method: Annotated[
        str, typer.Option(help="halve (the box of inputs), branch (on hidden numbers), milp (exact) or auto.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of the search for counterexamples.")] = 0,
    out: Annotated[str | None, typer.Option(help="Write the result here, as competitions do.")] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw how much was proved over time here.")
    ] = None,
    certificate: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write a proof of halved boxes here, such as proof.npz."),
    ] = None,
    check: Annotated[
        str | None, typer.Option(metavar="FILE", help="Check a proof instead of searching for one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove that a network keeps a property, or find an input that breaks it.

    The first line is holds, violated or timeout; after violated come inputs and outputs that onnxruntime confirmed.
    """
    from workingpapers.files import write_whole
    from workingpapers.verbs import _print

    if check is not None:
        return _check(network, property, check, as_json)
    from workingpapers.verbs._draw import save_figure
    from workingpapers.verbs.verify import verify as decided

    with _print.status(quiet=as_json) as say:
        found = decided(
            network,
            property=property,
            timeout=timeout,
            method=method,
            seed=seed,
            watch=lambda what, cases: say(f"{what}, {cases} bounded"),
            certificate=certificate,
        )
    if out is not None:
        write_whole(Path(out), found.lines() + "\n")
    if plot is not None:
        save_figure(found.figure(), plot)
    _print.json(found.as_dict()) if as_json else print(found.lines())
    raise typer.Exit({"holds": 0, "violated": 1}.get(found.verdict, 3))


def _check(network: str, property: str, certificate: str, as_json: bool) -> None:
    """Check a certificate and end with the exit code."""
    from workingpapers.engines.bounds.vnnlib import read_property
    from workingpapers.engines.proofs.chain import Rejected
    from workingpapers.engines.proofs.checker import check
    from workingpapers.verbs import _print

    regions = [(r.lower, r.upper, r.rows, r.offsets) for r in read_property(Path(property)).regions]
    try:
        boxes, why = check(Path(network), regions, Path(certificate)), ""
    except Rejected as rejected:
        boxes, why = 0, str(rejected)
    if as_json:
        _print.json({"verdict": "rejected" if why else "holds", "boxes": boxes, "why": why})
    else:
        print(f"rejected: {why}" if why else f"holds: checked from {boxes} boxes")
    raise typer.Exit(3 if why else 0)
