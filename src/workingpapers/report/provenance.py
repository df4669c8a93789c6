"""Where results come from: command, machines, versions, dates; without the paths of anyone's home folder."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path

import workingpapers

LIBRARIES = ("torch", "numpy", "scipy")
MACHINES = 4  # named; a cluster has many


def without_home(text: str) -> str:
    """Return `text` with the user's home folder written as '~'."""
    homes = {str(Path.home()), os.path.realpath(Path.home())}
    for home in sorted((h for h in homes if len(h) > 1), key=len, reverse=True):
        text = re.sub(rf"(?<![\w/.-]){re.escape(home)}(?![\w.-])", "~", text)
    return text


def shell_command(argv: Sequence[str] | None = None) -> str | None:
    """Return the command line of this process as one would type it, None where it is a notebook or a console."""
    words = list(sys.argv if argv is None else argv)
    program = Path(words[0]).name if words else ""
    module = Path(words[0] if words else "").parts[-2:]
    if program in ("workingpapers", "workingpapers.exe") or module == ("workingpapers", "__main__.py"):
        return without_home(shlex.join(["workingpapers", *words[1:]]))
    if program.endswith(".py") and not program.startswith(("ipykernel", "colab")):
        return without_home(shlex.join(["python", _near(words[0]), *words[1:]]))
    return None


def _near(path: str) -> str:
    """Return a path as seen from the working folder where it lies in it."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path


def versions() -> dict[str, str]:
    """Return the versions of Working Papers, Python and the libraries that decide the numbers."""
    found = {"Working Papers": workingpapers.__version__, "Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machines(names: Iterable[str | None]) -> list[str]:
    """Return the machines that made the runs, this one where none is known."""
    here = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    found = list(dict.fromkeys(n for n in names if n)) or [here]
    return found if len(found) <= MACHINES else [*found[: MACHINES - 1], f"{len(found) - MACHINES + 1} more"]


def when(moment: float | str | datetime | None) -> str:
    """Return a moment (seconds since 1970, as a number or text, or ISO) as a date with time; '' for none."""
    if isinstance(moment, str):
        try:
            return when(float(moment))
        except ValueError:
            return moment
    if moment is None:
        return ""
    date = moment if isinstance(moment, datetime) else datetime.fromtimestamp(moment)
    date = date.astimezone()
    return f"{date.day} {date:%B %Y, %H:%M %Z}"
