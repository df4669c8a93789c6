"""The shell's doors to the verbs: names, options and help, a file for each group of commands."""

import sys
from typing import Annotated, Any

import typer

from workingpapers import __version__
from workingpapers.cli import catalogue, digest, judging, models, serve, site, site_admin, sparse
from workingpapers.cli._app import app
from workingpapers.errors import WorkingPapersError

__all__ = ["app", "catalogue", "digest", "judging", "main", "models", "serve", "site", "site_admin", "sparse"]


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
