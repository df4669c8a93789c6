"""The search index over the records: built by numpy, shipped as a file, read back without numpy.

`python -m workingpapers.catalog.index` writes the file anew; it must be run after a change of the records'
texts or of how they are indexed.  The file is used only where it fits the records that are there.  Where it
does not (a plug-in brings papers, a record was edited), the index is built in memory in a fraction of a second.
"""

import hashlib
import json
import struct
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workingpapers.catalog import lexical, semantics
from workingpapers.catalog.lexical import Field, Postings
from workingpapers.catalog.records import Record, collection_of, own_collection, records
from workingpapers.catalog.semantics import LatentSpace

FILE = Path(__file__).with_name("index.json")

# Weights chosen by cross-validation over the records' `asks`, half of them indexed and the other half asked.
# They are round, because the optimum is flat: halving or doubling one moves the hit rate by about 1 % at most.
FIELDS = {
    "id": Field(4),
    "title": Field(3),
    "topics": Field(3),
    "summary": Field(2),
    "asks": Field(1),
    "claims": Field(1.5),
    "formula": Field(0.5),
    "family": Field(0.5),
    "kind": Field(0.5),
}


@dataclass(frozen=True)
class Index:
    """What a search needs of the records: their words and their places in the space of meanings."""

    records: tuple[Record, ...]
    postings: Postings
    space: LatentSpace


_held: dict[str, Index] = {}


def index() -> Index:
    """Return the index of the records there are, from the file where that fits them."""
    now = tuple(records().values())
    held = _held.get("index")
    if held is None or held.records != now:
        held = _held["index"] = read(FILE, now) or build(now)
    return held


def texts(record: Record) -> list[str]:
    """Return what is searched of a record, one text a field of `FIELDS`."""
    claims = " ; ".join(f"{claim['says']} {claim['figure'] or ''}" for claim in record.claims)
    found = {
        "id": record.id,
        "title": record.title,
        "topics": " ; ".join(record.topics),
        "summary": record.summary,
        "asks": " ; ".join(record.asks),
        "claims": claims,
        "formula": record.formula or "",
        "family": record.family,
        "kind": record.kind,
    }
    return [found[name] for name in FIELDS]


def build(chosen: Sequence[Record]) -> Index:
    """Index the `chosen` records in memory."""
    postings = lexical.build([texts(record) for record in chosen], list(FIELDS.values()))
    return Index(tuple(chosen), postings, semantics.fit(postings))


def digest(chosen: Sequence[Record]) -> str:
    """Return the sha256 of all that is searched of the `chosen` records."""
    joined = "\x1e".join("\x1f".join(texts(record)) for record in chosen)
    return hashlib.sha256(joined.encode()).hexdigest()


def write(index: Index, path: Path) -> None:
    """Write the index as JSON, its numbers as little-endian arrays in base64."""
    words, space = index.postings, index.space
    content = {
        "digest": digest(index.records),
        "spelled": " ".join(words.spelled),
        "terms": " ".join(words.terms),
        "starts": _packed("I", words.starts),
        "documents": _packed("H", words.documents),
        "impacts": _packed("e", words.impacts),
        "points": _packed("e", [value for point in space.points for value in point]),
        "pulls": _packed("d", space.pulls),
        "squares": _packed("d", space.squares),
    }
    path.write_text(json.dumps(content, indent=0) + "\n", "utf-8")


def read(path: Path, chosen: tuple[Record, ...]) -> Index | None:
    """Read the index of the `chosen` records; None where the file is of other records, or is not there."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    if content["digest"] != digest(chosen):
        return None
    postings = Postings(
        content["spelled"].split(),
        content["terms"].split(),
        _unpacked("I", content["starts"]),
        _unpacked("H", content["documents"]),
        _unpacked("e", content["impacts"]),
        len(chosen),
    )
    values, squares = _unpacked("e", content["points"]), _unpacked("d", content["squares"])
    points = [values[at : at + len(squares)] for at in range(0, len(values), len(squares))]
    return Index(chosen, postings, LatentSpace(points, _unpacked("d", content["pulls"]), squares))


def _packed(code: str, values: Sequence[float]) -> str:
    return b2a_base64(struct.pack(f"<{len(values)}{code}", *values), newline=False).decode()


def _unpacked(code: str, text: str) -> tuple:
    data = a2b_base64(text)
    return struct.unpack(f"<{len(data) // struct.calcsize('<' + code)}{code}", data)


def main() -> None:
    """Write the shipped index anew, of our own records only."""
    own = own_collection().package
    chosen = [record for record in records().values() if collection_of(record.id).package == own]
    write(build(chosen), FILE)
    print(f"{FILE}: {len(chosen)} papers, {FILE.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
