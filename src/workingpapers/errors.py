"""Errors a user can act on: one sentence that says what was expected and what came."""

from collections.abc import Iterable
from difflib import get_close_matches


class WorkingPapersError(Exception):
    """A problem with what the user gave; its message is one clear sentence.

    The command line prints the sentence alone, without a traceback, and exits with code 2.
    """


class UnknownName(WorkingPapersError, LookupError):
    """A name that is not known here; the message offers the nearest valid ones."""


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of the `valid` names that look most like `name`, best first."""
    folded = {v.lower(): v for v in valid}
    return [folded[m] for m in get_close_matches(name.lower(), folded, n=count, cutoff=0.5)]


def unknown(what: str, name: object, valid: Iterable[str]) -> UnknownName:
    """Build the error for a `what` (such as "paper") called `name` that is not among `valid`."""
    valid = sorted(valid)
    close = nearest(str(name), valid)
    if close:
        hint = f"the nearest {'name is' if len(close) == 1 else 'names are'} {_listed(close)}"
    elif len(valid) <= 12:
        hint = f"it is one of {_listed(valid)}" if valid else "there is none"
    else:
        hint = f"there are {len(valid)}, such as {_listed(valid[:3])}"
    return UnknownName(f"no {what} is named {str(name)!r}; {hint}")


def _listed(names: list[str]) -> str:
    return ", ".join(repr(n) for n in names)
