"""The ledger: contract and claim results that ship with the papers, tied to the hash of each paper's file.

Only `workingpapers check --record` writes it.  Every entry carries a digest of its own content, so that an
edit by hand shows; a result whose paper file has changed since is stale.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from workingpapers.catalog.records import collection_of, collections, record
from workingpapers.catalog.registry import path_of, source_hash
from workingpapers.errors import WorkingPapersError
from workingpapers.files import write_whole

Entry = dict[str, Any]


@dataclass(frozen=True)
class Status:
    """What is known of a paper here.

    `works`: it has a file whose contract passed in its present state.  `contract`: 'passed', 'failed',
    'stale' or None.  `verdicts`: claim -> latest entry, with a 'stale' field.
    """

    works: bool
    contract: str | None
    verdicts: Mapping[str, Entry]


def digest(entry: Mapping[str, Any]) -> str:
    """Return the sha256 of an entry's content, its own digest left out."""
    content = {k: v for k, v in entry.items() if k != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> list[Entry]:
    """Return the entries of a ledger file, none where there is no file; a hand-edited entry raises."""
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            entry = None
        if not isinstance(entry, dict) or entry.get("digest") != digest(entry):
            raise WorkingPapersError(
                f"{path}:{number} was not written by `workingpapers check --record`: "
                "its digest does not fit; restore the file and run the check again"
            )
        entries.append(entry)
    return entries


def entries(id: str) -> list[Entry]:
    """Return the ledger's entries for the paper `id`."""
    record(id)
    return _by_paper().get(id, [])


@lru_cache(maxsize=1)
def _by_paper() -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for collection in collections():
        for entry in read(collection.ledger_file):
            found.setdefault(entry["paper"], []).append(entry)
    return found


def status(id: str) -> Status:
    """Return what the paper's file and the ledger together say of the paper `id`."""
    now = source_hash(id)
    contract: str | None = None
    verdicts: dict[str, Entry] = {}
    for entry in entries(id):
        stale = entry["source"] != now
        if entry["what"] == "contract":
            contract = "stale" if stale else entry["result"]
        elif entry["name"] not in verdicts or entry["budget"] == "full":
            verdicts[entry["name"]] = {**entry, "stale": stale}
    return Status(path_of(id) is not None and contract == "passed", contract, verdicts)


def works(id: str) -> bool:
    """Tell whether the paper `id` has a file that passed its contract in its present state."""
    return status(id).works


def record_entries(id: str, new: Iterable[Entry]) -> Path:
    """Put `new` entries of the paper `id` into its ledger, in place of those of the same name and budget.

    The file is replaced as a whole, so that an interruption leaves the old or the new one.
    """
    path = collection_of(id).ledger_file
    merged = {_key(entry): entry for entry in read(path)}
    for entry in new:
        entry = {"paper": id, "source": source_hash(id), **entry}
        merged[_key(entry)] = {**entry, "digest": digest(entry)}
    lines = [json.dumps(merged[key], ensure_ascii=False, sort_keys=True) for key in sorted(merged)]
    write_whole(path, "".join(line + "\n" for line in lines))
    _by_paper.cache_clear()
    return path


def _key(entry: Entry) -> tuple[str, str, str, str]:
    return entry["paper"], entry["what"], entry["name"], entry.get("budget", "")
