"""find: search the catalogue by meaning and words together."""

from workingpapers.catalog.find import Match, find
from workingpapers.catalog.ledger import works

__all__ = ["Match", "as_dict", "find"]


def as_dict(match: Match) -> dict[str, object]:
    """Return a match as a flat dictionary for `--json`."""
    record = match.record
    return {
        "id": record.id,
        "title": record.title,
        "year": record.year,
        "family": record.family,
        "kind": record.kind,
        "summary": record.summary,
        "works": works(record.id),
        "score": round(match.score, 4),
    }
