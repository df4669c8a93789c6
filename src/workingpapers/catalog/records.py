"""Records: the facts about every paper, readable without importing torch or any paper's code.

A collection is a package that brings papers: a `papers.jsonl` of records, a `ledger.jsonl` of results,
and `<family>/<id>.py` files.  Ours is the first; installed packages add theirs through the entry-point
group `workingpapers.papers`, whose value names the package.
"""

import json
import warnings
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workingpapers.catalog.kinds import KINDS
from workingpapers.errors import WorkingPapersError, unknown

ENTRY_POINT_GROUP = "workingpapers.papers"


@dataclass(frozen=True)
class Record:
    """One paper's facts.  Whether it works is no field: that follows from its file and the ledger."""

    id: str
    title: str
    year: int
    arxiv: str | None
    code: str | None
    family: str
    kind: str
    summary: str
    formula: str | None
    claims: tuple[dict[str, Any], ...]
    topics: tuple[str, ...]
    asks: tuple[str, ...]
    fidelity: str
    fidelity_note: str
    uses: tuple[str, ...]

    @property
    def url(self) -> str | None:
        """Address of the paper on arXiv, where it has one."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None


@dataclass(frozen=True)
class Collection:
    """A package that brings papers: where its records, its ledger and its papers' files are."""

    package: str
    folder: Path
    records_file: Path
    ledger_file: Path


def own_collection() -> Collection:
    """Return the collection that ships with this package."""
    catalog = Path(__file__).parent
    return Collection(
        "workingpapers.papers", catalog.parent / "papers", catalog / "papers.jsonl", catalog / "ledger.jsonl"
    )


@lru_cache(maxsize=1)
def collections() -> tuple[Collection, ...]:
    """Return our collection and those of installed plug-ins; a broken plug-in warns and is left out."""
    found = [own_collection()]
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        spec = find_spec(entry.value) if "." not in entry.value else None
        if spec is None or not spec.submodule_search_locations:
            warnings.warn(
                f"the plug-in {entry.name!r} names {entry.value!r}, which is no installed "
                "top-level package; its papers are left out",
                stacklevel=2,
            )
            continue
        folder = Path(next(iter(spec.submodule_search_locations)))
        found.append(Collection(entry.value, folder, folder / "papers.jsonl", folder / "ledger.jsonl"))
    return tuple(found)


def parse_record(line: str, where: str) -> Record:
    """Build a record from a line of JSON; `where` names the place in the error for a bad one."""
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise WorkingPapersError(f"{where} is not valid JSON: {error.msg}") from None
    names = {f.name for f in fields(Record)}
    if not isinstance(raw, dict) or raw.keys() != names:
        missing = sorted(names - set(raw)) if isinstance(raw, dict) else sorted(names)
        extra = sorted(set(raw) - names) if isinstance(raw, dict) else []
        raise WorkingPapersError(f"{where} is no record: missing {missing}, not expected {extra}")
    if raw["kind"] not in KINDS:
        raise unknown("kind", raw["kind"], KINDS)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return Record(**values)


@lru_cache(maxsize=1)
def _indexed() -> dict[str, tuple[Record, Collection]]:
    index: dict[str, tuple[Record, Collection]] = {}
    for collection in collections():
        try:
            lines = collection.records_file.read_text("utf-8").splitlines()
        except OSError as error:
            raise WorkingPapersError(
                f"cannot read the records of {collection.package} "
                f"({collection.records_file}): {error.strerror}"
            ) from None
        for number, line in enumerate(lines, 1):
            record = parse_record(line, f"{collection.records_file}:{number}")
            if record.id in index:
                raise WorkingPapersError(
                    f"the paper {record.id!r} is recorded twice: in "
                    f"{index[record.id][1].package} and in {collection.package}"
                )
            index[record.id] = record, collection
    return index


def records() -> dict[str, Record]:
    """Return every paper's record by id, ours first, in the order of the files."""
    return {id: record for id, (record, _) in _indexed().items()}


def record(id: str) -> Record:
    """Return the record of the paper `id`, or raise with the nearest ids."""
    return _lookup(id)[0]


def collection_of(id: str) -> Collection:
    """Return the collection that the paper `id` came with."""
    return _lookup(id)[1]


def families() -> list[str]:
    """Return the names of all families, sorted."""
    return sorted({record.family for record in records().values()})


def _lookup(id: str) -> tuple[Record, Collection]:
    index = _indexed()
    if id not in index:
        raise unknown("paper", id, index)
    return index[id]


def forget() -> None:
    """Drop what was read, so that the next call sees records and plug-ins added since."""
    collections.cache_clear()
    _indexed.cache_clear()
