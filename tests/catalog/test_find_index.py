"""The shipped search index: fresh, faithful to what is built, and dropped where the records differ."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from workingpapers.catalog.index import FIELDS, FILE, Index, build, index, read, texts, write
from workingpapers.catalog.records import Record, collection_of, own_collection, records

module = import_module("workingpapers.catalog.index")


@pytest.fixture(scope="module")
def own() -> tuple[Record, ...]:
    package = own_collection().package
    return tuple(record for id, record in records().items() if collection_of(id).package == package)


def same(one: Index, other: Index) -> None:
    assert list(one.postings.spelled) == list(other.postings.spelled)
    assert list(one.postings.terms) == list(other.postings.terms)
    assert list(one.postings.starts) == list(other.postings.starts)
    assert list(one.postings.documents) == list(other.postings.documents)
    assert one.postings.impacts == pytest.approx(other.postings.impacts, rel=2e-3)
    a, b = np.array(one.space.points), np.array(other.space.points)
    assert a.shape == b.shape
    # near-equal singular values may turn their vectors within a plane: angles between documents stay
    assert np.abs(a @ a.T - b @ b.T).max() < 1e-2


def test_the_shipped_index_is_up_to_date(own: tuple[Record, ...]) -> None:
    shipped = read(FILE, own)
    assert shipped is not None, "run `python -m workingpapers.catalog.index`: the records' texts have changed"
    same(shipped, build(own))


def test_what_is_written_is_read_back(tmp_path: Path, own: tuple[Record, ...]) -> None:
    few = own[:30]
    built = build(few)
    write(built, tmp_path / "index.json")
    found = read(tmp_path / "index.json", few)
    assert found is not None
    assert found.records == few
    assert list(found.postings.impacts) == list(built.postings.impacts)
    assert list(found.space.squares) == list(built.space.squares)
    assert [list(point) for point in found.space.points] == [list(point) for point in built.space.points]
    query = {"attent": 1.0, "train": 0.5}
    assert found.postings.scores(query) == built.postings.scores(query)
    placed = built.space.place(built.postings.scores(query))
    assert found.space.place(found.postings.scores(query)) == pytest.approx(placed)


def test_a_file_of_other_records_is_not_used(tmp_path: Path, own: tuple[Record, ...]) -> None:
    few = own[:10]
    write(build(few), tmp_path / "index.json")
    edited = (*few[:9], replace(few[9], summary="Something else."))
    assert read(tmp_path / "index.json", few) is not None
    assert read(tmp_path / "index.json", edited) is None
    assert read(tmp_path / "index.json", own[:11]) is None
    assert read(tmp_path / "absent.json", few) is None


def test_what_is_not_searched_does_not_make_the_index_stale(tmp_path: Path, own: tuple[Record, ...]) -> None:
    few = own[:10]
    write(build(few), tmp_path / "index.json")
    assert read(tmp_path / "index.json", (*few[:9], replace(few[9], fidelity_note="Read again."))) is not None


def test_every_field_has_its_text(own: tuple[Record, ...]) -> None:
    one = texts(own[0])
    assert len(one) == len(FIELDS)
    assert dict(zip(FIELDS, one, strict=True))["title"] == own[0].title
    assert own[0].asks[-1] in dict(zip(FIELDS, one, strict=True))["asks"]


def test_records_that_come_later_are_indexed(
    monkeypatch: pytest.MonkeyPatch, own: tuple[Record, ...]
) -> None:
    plugin = replace(
        own[0], id="quokka_net", title="Quokka networks", summary="A quokka.", asks=(), topics=()
    )
    before = index()
    assert "quokka" not in before.postings.row
    assert index() is before
    monkeypatch.setattr(module, "_held", {})
    monkeypatch.setattr(module, "records", lambda: {record.id: record for record in (*own, plugin)})
    after = index()
    assert set(after.postings.impact("quokka")) == {len(own)}
    assert len(after.space.points) == len(own) + 1
