"""The doors to the catalogue: find, show, list, new, tasks.  Heavy imports happen inside the commands."""

import sys
from typing import Annotated

import typer

from workingpapers.cli._app import app
from workingpapers.cli._options import Family, Id, Json, Kind, Working


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


@app.command("list", epilog="Example: workingpapers list --working --kind activation")
def list_(family: Family = None, kind: Kind = None, working: Working = False, as_json: Json = False) -> None:
    """Print every paper with what is known of it here."""
    from workingpapers.verbs import _print
    from workingpapers.verbs.listing import listing

    rows = listing(family=family, kind=kind, working=working)
    _print.json(rows) if as_json else _print.records(rows)


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
