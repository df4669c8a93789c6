"""Writes one page a paper, the table of verdicts, and the page of kinds, from records, ledger and contracts."""

import json
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from workingpapers.catalog import KINDS, available, component, families, records
from workingpapers.catalog.ledger import status
from workingpapers.catalog.remarks import remarks
from workingpapers.contracts import checks
from workingpapers.verbs.inspect import chosen_checks
from workingpapers.verbs.show import number, show

HERE = Path(__file__).parent
BACKTICKS = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def paper_page(id: str) -> str:
    """Return the page of one paper: what `show` says, and its module where it is written."""
    sheet = show(id)
    r = sheet.record
    # not in the sidebar of every page: its cost would grow with the square of the catalogue
    lines = ["---", "orphan: true", "---", "", "[The catalogue](index.md)", "", f"# {r.id}", ""]
    lines += [f"**{r.title}** ({r.year}), {r.family}, {r.kind}", "", r.summary, ""]
    if r.formula:
        lines += ["```text", r.formula, "```", ""]
    if sheet.source:
        lines += ["```python", *sheet.usage, "```", ""]
    links = [f"[arXiv {r.arxiv}]({r.url})"] * bool(r.arxiv) + [f"[authors' code]({r.code})"] * bool(r.code)
    lines += [" · ".join(links), ""] if links else []
    state = "works here" if sheet.works else "not written yet" if not sheet.source else "does not work yet"
    lines += [
        f"State: {state}. Fidelity: {r.fidelity}. {r.fidelity_note}",
        "",
        "## Claims",
        "",
    ]
    lines += [f"- {c['says']}" + (f" Paper: {c['figure']}." if c["figure"] else "") for c in r.claims] or [
        "None stated."
    ]
    lines += verdict_table(id)
    if sheet.source:
        lines += [
            "",
            "## Code",
            "",
            "```{eval-rst}",
            f".. automodule:: {sheet.source}",
            "   :members:",
            "```",
        ]
    return "\n".join(lines) + "\n"


def verdict_table(id: str) -> list[str]:
    """Return the ledger's verdicts of one paper as a table."""
    verdicts = status(id).verdicts
    if not verdicts:
        return []
    lines = ["", "## Measured here", "", "| claim | figures | rule | verdict |", "| --- | --- | --- | --- |"]
    for name, entry in verdicts.items():
        stale = " (stale)" if entry["stale"] else ""
        lines.append(
            f"| {name} | {_figures(entry)} | {entry['rule']} | {entry['result']}{stale}, {entry['budget']}, "
            f"{len(entry['seeds'])} seeds, {entry['finished'][:10]} |"
        )
    return lines


def verdicts_page() -> str:
    """Return the table of all verdicts in the ledger, and a paragraph on each claim that did not hold."""
    measured = {id: status(id).verdicts for id in sorted(available())}
    entries = [(id, name, e) for id, verdicts in measured.items() for name, e in verdicts.items()]
    words = [e["result"] for _, _, e in entries]
    counts = ", ".join(f"{words.count(w)} {w}" for w in ("holds", "does not hold", "not shown"))
    lines = [
        "# Verdicts",
        "",
        f"{len(entries)} claims of {sum(map(bool, measured.values()))} papers, measured until "
        f"{max(e['finished'] for *_, e in entries)[:10]} by `workingpapers check --record`: {counts}. "
        "Figures are means over the seeds with 95 % intervals; each paper's page has them all.",
        "",
        "| paper | claim | figures | rule | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for id, name, entry in entries:
        stale = " (stale)" if entry["stale"] else ""
        says = entry["says"].replace("|", "\\|")
        lines.append(
            f"| [{id}](papers/{id}.md) | {name}: {says} | {_figures(entry)} | {entry['rule']} | "
            f"{entry['result']}{stale}, {entry['budget']}, {len(entry['seeds'])} seeds, {entry['finished'][:10]} |"
        )
    lines += ["", "## What did not hold", ""]
    for id, name, entry in entries:
        if entry["result"] == "does not hold":
            lines += [f"**{id}:{name}.** {remarks().get(f'{id}:{name}', 'No remark yet.')}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _figures(entry: dict[str, Any]) -> str:
    return "; ".join(
        f"{k} {number(i['estimate'])} [{number(i['low'])}, {number(i['high'])}]"
        for k, i in entry["figures"].items()
    )


def index_page() -> str:
    """Return the catalogue: every paper by family."""
    lines = [
        "# The catalogue",
        "",
        f"{len(records())} papers, {sum(status(i).works for i in available())} work here.",
        "",
    ]
    for family in families():
        lines += [f"## {family}", ""]
        for r in records().values():
            if r.family == family:
                lines.append(f"- [{r.id}]({r.id}.md){' (works)' if status(r.id).works else ''}: {r.summary}")
        lines.append("")
    return "\n".join(lines) + "\n"


def kinds_page() -> str:
    """Return the kinds, what `make` gives for each, its properties, and the checks of its contract."""
    lines = [
        "# Kinds and their contracts",
        "",
        "A component declares what holds for every instance in its decorator; the contract verifies each property",
        'and picks its checks by them. `check_contract(MyAct, kind="activation")` holds yours to the same.',
        "",
    ]
    for kind in KINDS.values():
        lines += [f"## {kind.name}", "", f"`make` gives: {kind.makes}", ""]
        lines += [f"- `{name}`: {meaning}" for name, meaning in kind.properties.items()]
        lines += ["", "| check | promise |", "| --- | --- |"]
        lines += [
            f"| {check.name} | {check.promise.replace('|', chr(92) + '|')} |" for check in checks(kind.name)
        ]
        lines.append("")
    return "\n".join(lines) + "\n"


def verify_table(results: Path = HERE.parent / "benchmarks" / "results") -> str:
    """Return what `benchmarks/verify/vnncomp.py --save` stored as a table, the newest of each family."""
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(results.glob("verify-*.json")):
        found = json.loads(path.read_text("utf-8"))
        newest[found["family"]] = found
    if not newest:
        return "No results are stored in this copy.\n"
    lines = [
        "| family | instances | holds | violated | not decided | limit, s | decided in, s | machine, date |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for family, found in newest.items():
        totals = found["totals"]
        part = "" if found["every"] == 1 else f", each {found['every']}th"
        limit = max(row["limit"] for row in found["rows"])
        lines.append(
            f"| {family} | {totals['instances']}{part} | {totals.get('holds', 0)} | {totals.get('violated', 0)} | "
            f"{totals['instances'] - totals['decided']} | {limit:g} | {totals['seconds of decided']:.0f} | "
            f"{found['machine']}, {found['finished'][:10]} |"
        )
    return "\n".join(lines) + "\n"


def checks_table() -> str:
    """Return what `inspect` looks at as a table."""
    lines = ["| check | what it does |", "| --- | --- |"]
    for name in chosen_checks("all"):
        said = (component(name).target.__doc__ or "").splitlines()[0]
        lines.append(f"| [{name}](papers/{name.split('.')[0]}.md) | {said} |")
    return "\n".join(lines) + "\n"


def write(folder: Path = HERE) -> None:
    """Write all generated pages; a page that is as it was keeps its date, so that builds stay incremental."""
    pages = {
        "papers/index.md": index_page(),
        "kinds.md": kinds_page(),
        "verdicts.md": verdicts_page(),
        "verify_results.md": verify_table(),
        "inspect_checks.md": checks_table(),
        **{f"papers/{id}.md": paper_page(id) for id in records()},
    }
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def plain_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Turn our plain docstrings into reStructuredText: indented formulas are literal, bars just bars."""
    found: list[str] = []
    in_block = False
    for at, line in enumerate(lines):
        before = next((text for text in reversed(lines[:at]) if text.strip()), "")
        opens_block = line.startswith("    ") and at and not lines[at - 1].strip()
        if opens_block and not before.startswith((" ", ">>>")) and not before.endswith("::"):
            found += ["::", ""]
            in_block = True
        in_block = in_block and (line.startswith("    ") or not line.strip())
        literal = line.startswith(">>>") or in_block or (before.endswith("::") and line.startswith("    "))
        found.append(line if literal else BACKTICKS.sub(r"``\1``\\ ", line).replace("|", r"\|"))
    lines[:] = found


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx reads its sources; read docstrings before napoleon does."""
    app.connect("builder-inited", lambda _: write())
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)
    return {"parallel_read_safe": True}
