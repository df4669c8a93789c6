"""A collection of papers of the test's own, in place of the shipped one."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workingpapers.catalog import ledger, registry

records = importlib.import_module("workingpapers.catalog.records")

Add = Callable[..., Path]


def raw_record(id: str, **changes: object) -> dict[str, object]:
    """Return a full record as the file holds it."""
    return {
        "id": id,
        "title": f"On {id}",
        "year": 2024,
        "arxiv": None,
        "code": None,
        "family": "activations",
        "kind": "activation",
        "summary": f"What {id} is.",
        "formula": None,
        "claims": [],
        "topics": [],
        "asks": [],
        "fidelity": "verified",
        "fidelity_note": "A test.",
        "uses": [],
        **changes,
    }


@pytest.fixture
def add_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Give a function that adds a paper (record and file) to a collection in a temporary folder."""
    package = f"collection_{tmp_path.name}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "papers.jsonl").touch()
    own = records.Collection(package, folder, folder / "papers.jsonl", folder / "ledger.jsonl")
    monkeypatch.setattr(records, "own_collection", lambda: own)
    monkeypatch.setattr(records, "entry_points", lambda group: [])
    monkeypatch.syspath_prepend(str(tmp_path))
    kept = dict(registry._components), {k: dict(v) for k, v in registry._claims.items()}

    def forget() -> None:
        records.forget()
        registry._files.cache_clear()
        ledger._by_paper.cache_clear()

    def add(id: str, code: str | None = None, **changes: object) -> Path:
        raw = raw_record(id, **changes)
        with own.records_file.open("a") as file:
            file.write(json.dumps(raw) + "\n")
        path = folder / str(raw["family"]) / f"{id}.py"
        path.parent.mkdir(exist_ok=True)
        if code is not None:
            path.write_text(code)
        forget()
        return path

    forget()
    yield add
    registry._components.clear()
    registry._components.update(kept[0])
    registry._claims.clear()
    registry._claims.update(kept[1])
    for name in [n for n in sys.modules if n.startswith(package)]:
        del sys.modules[name]
    monkeypatch.undo()
    forget()
