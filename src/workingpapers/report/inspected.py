"""The page of an inspection: what is wrong first, then every finding with its sentence, picture and numbers."""

import re
from datetime import datetime
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from workingpapers.files import write_whole
from workingpapers.report.provenance import versions, when

LOOKS = {"serious": "worse", "warning": "worse", "note": "open"}
SHOWN = 12  # numbers of a finding that are shown; the rest is folded away


def write_inspection(path: str | Path, inspection: Any) -> Path:
    """Write the page of an inspection, an object as `inspect` returns, to `path` and return that.

    Raises:
        WorkingPapersError: where the file cannot be written; one that was there before stays.
    """
    write_whole(Path(path), page(inspection))
    return Path(path)


def page(inspection: Any) -> str:
    """Return the page as text."""
    cards = [
        {
            "check": check,
            "paper": check.split(".")[0],
            "reading": found.reading,
            "picture": _picture(found.figure, f"figure-{place}"),
            "numbers": [(name, f"{value:.4g}") for name, value in found.numbers.items()],
            "worst": next((s.severity for s in found.symptoms), None),
        }
        for place, (check, found) in enumerate(inspection.findings.items())
    ]
    return _template().render(
        title=f"Inspection of {inspection.model}",
        headline=inspection.headline(),
        inspection=inspection,
        symptoms=[(check, s, LOOKS[s.severity]) for check, s in inspection.symptoms],
        cards=cards,
        shown=SHOWN,
        seconds=sum(inspection.seconds.values()),
        date=when(datetime.now()),
        versions=versions(),
        style=Markup((Path(__file__).parent / "style.css").read_text("utf-8")),
    )


def _picture(draw: Any, prefix: str) -> Markup | None:
    """Return a finding's figure as SVG that stands in the page; its ids get a prefix, as pages hold many."""
    if draw is None:
        return None
    from matplotlib import pyplot

    figure, out = draw(), StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'xlink:href="#', f'xlink:href="#{prefix}-', text)
    return Markup(
        re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    surroundings = Environment(
        loader=PackageLoader("workingpapers", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return surroundings.get_template("inspection.html.jinja")
