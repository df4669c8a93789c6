"""Options that several commands share, and the completion of their values."""

from typing import Annotated

import typer


def ids(incomplete: str) -> list[str]:
    """Return the ids of papers that begin with what was typed."""
    from workingpapers.catalog.records import records

    return [id for id in records() if id.startswith(incomplete)]


def families(incomplete: str) -> list[str]:
    """Return the names of families that begin with what was typed."""
    from workingpapers.catalog.records import families

    return [f for f in families() if f.startswith(incomplete)]


def kinds(incomplete: str) -> list[str]:
    """Return the names of kinds that begin with what was typed."""
    from workingpapers.catalog.kinds import KINDS

    return [k for k in KINDS if k.startswith(incomplete)]


def tasks(incomplete: str) -> list[str]:
    """Return the names of tasks that begin with what was typed."""
    from workingpapers.tasks import TASKS

    return [t for t in TASKS if t.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Family = Annotated[str | None, typer.Option(help="Only papers of this family.", autocompletion=families)]
Kind = Annotated[str | None, typer.Option(help="Only papers of this kind.", autocompletion=kinds)]
Working = Annotated[bool, typer.Option("--working", help="Only papers that work here.")]
Id = Annotated[str, typer.Argument(help="A paper's id, such as golu.", autocompletion=ids)]
Store = Annotated[str | None, typer.Option(help="SQLite file of runs; default: the user's data folder.")]
Workers = Annotated[int | None, typer.Option(help="Processes at once; default: as many as fit the cores.")]
On = Annotated[str, typer.Option(help="Where runs go: local, ray, or ray=ADDRESS.")]
Budget = Annotated[str, typer.Option(help="quick (minutes on two cores) or full.")]
ReportFile = Annotated[str | None, typer.Option("--report", help="Write a self-contained HTML report here.")]
