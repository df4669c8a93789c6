"""The report: one HTML file that stands alone, from comparisons and verdicts."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from workingpapers.claims import Verdict
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.comparison import Comparison
from workingpapers.experiments.evidence import FAILS, HOLDS, OPEN
from workingpapers.report.claimed import cards, facts
from workingpapers.report.numbers import listed
from workingpapers.report.provenance import machines, shell_command, versions, when, without_home
from workingpapers.report.sections import section


def write_report(
    path: str | Path,
    *,
    comparisons: Sequence[Comparison] = (),
    verdicts: Sequence[Verdict] = (),
    activations: Mapping[str, Callable[..., Any]] | None = None,
    title: str | None = None,
    command: str | None = None,
) -> Path:
    """Write one self-contained HTML file about `comparisons` and `verdicts` to `path` and return the path.

    Args:
        path: the file; replaced as a whole where it exists.
        activations: functions of a tensor by the names that variants bear under 'activation'; each is drawn
            with its derivative.  Names that are not in it are not drawn.
        title: of the page; by default what was compared and whose claims were checked.
        command: the shell command that made the results; by default the one of this process.

    Raises:
        WorkingPapersError: where the file cannot be written; one that was there before stays.
    """
    path = Path(path)
    text = html(comparisons, verdicts, activations=activations, title=title, command=command)
    try:
        _replace(path, text)
    except OSError as error:
        raise WorkingPapersError(f"cannot write the report {path}: {error.strerror or error}") from None
    return path


def html(
    comparisons: Sequence[Comparison] = (),
    verdicts: Sequence[Verdict] = (),
    *,
    activations: Mapping[str, Callable[..., Any]] | None = None,
    title: str | None = None,
    command: str | None = None,
) -> str:
    """Return the report as text; see `write_report`."""
    names = [run.machine for comparison in comparisons for run in comparison.runs] + [
        v.machine for v in verdicts
    ]
    command = shell_command() if command is None else without_home(command)
    return _template().render(
        title=without_home(title or _title(comparisons, verdicts)),
        date=when(datetime.now()),
        machines=machines(names),
        versions=versions(),
        command=command,
        sections=[section(c, activations or {}, f"comparison-{i}") for i, c in enumerate(comparisons)],
        papers=cards(verdicts),
        tally=_tally(verdicts),
        recheck=_recheck(verdicts),
        claim_facts=facts(verdicts),
        style=_style(),
    )


def _title(comparisons: Sequence[Comparison], verdicts: Sequence[Verdict]) -> str:
    names = list(dict.fromkeys(c.name for c in comparisons))
    papers = list(dict.fromkeys(v.paper for v in verdicts))
    parts = [f"Comparison on {_few(names, 'experiments')}"] if names else []
    parts += [f"Claims of {_few(papers, 'papers')}"] if papers else []
    return " · ".join(parts) or "Nothing was measured"


def _few(names: Sequence[str], what: str) -> str:
    return listed(names) if len(names) <= 3 else f"{len(names)} {what}"


def _tally(verdicts: Sequence[Verdict]) -> str:
    """Return how many claims hold, do not hold and are not shown, in a sentence."""
    count = Counter(v.verdict for v in verdicts)
    if len(count) == 1:
        (word,) = count
        if len(verdicts) == 1:
            return f"The claim {'is not shown' if word == OPEN else word}."
        all_of_them = {HOLDS: "All {} claims hold.", FAILS: "None of the {} claims holds."}
        return all_of_them.get(word, "None of the {} claims is shown.").format(len(verdicts))
    words = {
        HOLDS: ("holds", "hold"),
        FAILS: ("does not hold", "do not hold"),
        OPEN: ("is not shown", "are not shown"),
    }
    parts = [f"{n} {words[word][n > 1]}" for word in words if (n := count[word])]
    return f"Of {len(verdicts)} claims, {listed(parts)}." if parts else ""


def _recheck(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the commands that measure these claims again."""
    asked = dict.fromkeys((v.paper, v.budget) for v in verdicts)
    return [f"workingpapers check {paper} --budget {budget}" for paper, budget in asked]


@lru_cache(maxsize=1)
def _template() -> Template:
    loader = PackageLoader("workingpapers", "report")
    surroundings = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return surroundings.get_template("template.html.jinja")


@lru_cache(maxsize=1)
def _style() -> Markup:
    return Markup((Path(__file__).parent / "style.css").read_text("utf-8"))


def _replace(path: Path, text: str) -> None:
    """Write the file beside its place, then move it there, so that nobody ever sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
