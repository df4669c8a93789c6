"""The door to sparsify.  Heavy imports come late."""

from typing import Annotated

import typer

from workingpapers.cli._app import app
from workingpapers.cli._options import Json


@app.command(
    epilog="Examples: workingpapers sparsify my.py:case --method cats --target 0.5  |  "
    "workingpapers sparsify my.py:case --sweep --plot front.png --json"
)
def sparsify(
    case: Annotated[
        str,
        typer.Argument(
            help="file.py:function that returns a model, calibration data, and evaluation data if it likes."
        ),
    ],
    method: Annotated[
        str, typer.Option(help="cats, r_sparse or coreinfer; with --sweep several, with commas.")
    ] = "cats",
    target: Annotated[
        str, typer.Option(help="Share left out, 0 to 1; with --sweep several, with commas.")
    ] = "0.5",
    sweep: Annotated[bool, typer.Option("--sweep", help="Measure every method at every target.")] = False,
    rounds: Annotated[int, typer.Option(min=2, help="In which dense and sparse are timed in turns.")] = 20,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw the sweep's trade-off here.")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Keep the sparse model here (save_pretrained).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a trained model skip what is small; print what that costs in quality and how much faster it is here."""
    from workingpapers.verbs import _print
    from workingpapers.verbs._tradeoff import sweep as swept
    from workingpapers.verbs.sparsify import case_named, keep, numbers, sparsify_named

    targets = numbers(target)
    if not sweep:
        with _print.status(quiet=as_json) as say:
            say(f"{method} at {targets[0]:.0%}")
            model, found = sparsify_named(case, method=method, target=targets[0], rounds=rounds)
        if out is not None:
            keep(model, out)
        _print.json(found.as_dict()) if as_json else print(found)
        return
    model, calibration, *rest = case_named(case)
    with _print.status(quiet=as_json) as say:
        points = swept(
            model, calibration, *rest, methods=method.split(","), targets=targets, rounds=rounds, watch=say
        )
    if plot is not None:
        points.plot(plot)
    _print.json(points.as_dict()) if as_json else _print.tradeoff(points)
