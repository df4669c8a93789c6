"""list: every record with what is known of it here."""

from typing import Any

from workingpapers.catalog.kinds import kind_named
from workingpapers.catalog.ledger import Status, status
from workingpapers.catalog.records import families, records
from workingpapers.errors import unknown


def listing(
    *, family: str | None = None, kind: str | None = None, working: bool = False
) -> list[dict[str, Any]]:
    """Return every record (of a family, of a kind, or of those that work) with `works`, `contract`, `verdicts`.

    `verdicts` maps a claim's name to its verdict, budget and date, and tells whether it is stale.
    """
    if family is not None and family not in families():
        raise unknown("family", family, families())
    if kind is not None:
        kind_named(kind)
    rows = []
    for record in records().values():
        if family not in (None, record.family) or kind not in (None, record.kind):
            continue
        known = status(record.id)
        if working and not known.works:
            continue
        facts = {
            name: getattr(record, name)
            for name in (
                "id",
                "title",
                "year",
                "arxiv",
                "code",
                "family",
                "kind",
                "summary",
                "formula",
                "fidelity",
                "fidelity_note",
            )
        }
        rows.append(
            {
                **facts,
                "claims": list(record.claims),
                "works": known.works,
                "contract": known.contract,
                "verdicts": verdicts(known),
            }
        )
    return rows


def verdicts(known: Status) -> dict[str, dict[str, Any]]:
    """Return the ledger's verdicts in short: result, budget, date, and whether the file changed since."""
    return {
        name: {"result": e["result"], "budget": e["budget"], "date": e["finished"], "stale": e["stale"]}
        for name, e in known.verdicts.items()
    }
