"""The report of comparisons and checks, with the shapes of the activations that they name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workingpapers.catalog import make
from workingpapers.claims import Verdict
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.comparison import Comparison


def write(path: str | Path, comparisons: Sequence[Comparison] = (), verdicts: Sequence[Verdict] = ()) -> Path:
    """Write the HTML report to `path` and return it; a folder that is missing is made."""
    from workingpapers.report import write_report

    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkingPapersError(f"cannot write the report {path}: {error.strerror or error}") from None
    return write_report(
        path, comparisons=list(comparisons), verdicts=list(verdicts), activations=_shapes(comparisons)
    )


def _shapes(comparisons: Sequence[Comparison]) -> dict[str, Callable[..., Any]]:
    """Return the activations that runs of our tasks name; in a user's function a name may mean anything."""
    names = [
        v["activation"] for c in comparisons if ":" not in c.name for v in c.variants if "activation" in v
    ]
    return {name: make(name) for name in dict.fromkeys(names) if isinstance(name, str)}
