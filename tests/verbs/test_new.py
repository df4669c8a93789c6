"""new writes what passes once it is filled in, and never touches what is there."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from workingpapers.catalog import KINDS
from workingpapers.errors import WorkingPapersError
from workingpapers.verbs.new import new


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_has_a_skeleton_that_is_clean_python(tmp_path: Path, kind: str) -> None:
    record, code, test = new("my_method", family="mine", kind=kind, into=tmp_path / "mine")
    assert json.loads(record.read_text())["kind"] == kind
    for path in (code, test):
        ast.parse(path.read_text())
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I", "--line-length", "110"]
    done = subprocess.run([*ruff, str(code), str(test)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert '@paper("my_method"' in code.read_text()
    assert '@claim("my_method"' in code.read_text()


def test_a_checkout_gets_the_record_at_the_end(tmp_path: Path) -> None:
    records = tmp_path / "src" / "workingpapers" / "catalog" / "papers.jsonl"
    records.parent.mkdir(parents=True)
    records.write_text("")
    first = new("one", family="activations", into=tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in first] == [
        "src/workingpapers/catalog/papers.jsonl",
        "src/workingpapers/papers/activations/one.py",
        "tests/papers/activations/test_one.py",
    ]
    new("two", family="layers", kind="layer", into=tmp_path)
    assert [json.loads(line)["id"] for line in records.read_text().splitlines()] == ["one", "two"]


def test_a_recorded_paper_keeps_its_record(tmp_path: Path) -> None:
    records = tmp_path / "src" / "workingpapers" / "catalog" / "papers.jsonl"
    records.parent.mkdir(parents=True)
    records.write_text("")
    record, code, test = new("one", family="layers", kind="layer", into=tmp_path)
    code.unlink()
    test.unlink()
    before = record.read_text()
    assert new("one", into=tmp_path) == [code, test]
    assert record.read_text() == before
    assert "nn.Linear" in code.read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"id": "My-Method", "family": "activations"}, "lower-case Python name"),
        ({"id": "fresh"}, "needs --family"),
        ({"id": "fresh", "family": "activations", "kind": "activatoin"}, "nearest name is 'activation'"),
        ({"id": "fresh", "family": "Not A Name"}, "a family is a lower-case Python name"),
        ({"id": "golu", "family": "activations"}, "'golu' is recorded already"),
    ],
)
def test_bad_words_write_nothing(tmp_path: Path, options: dict[str, str], sentence: str) -> None:
    with pytest.raises(WorkingPapersError, match=sentence):
        new(**options, into=tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_what_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "mine"
    _, code, _ = new("one", family="layers", into=home)
    code.write_text("precious")
    with pytest.raises(WorkingPapersError, match="exists already; it is left as it is"):
        new("one", into=home)
    with pytest.raises(WorkingPapersError, match="of the family 'layers', not 'vision'"):
        new("one", family="vision", into=home)
    assert code.read_text() == "precious"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(WorkingPapersError, match="neither a checkout of workingpapers nor a plug-in"):
        new("one", family="layers", into=tmp_path / "other")


@pytest.mark.parametrize(("id", "family"), [("class", "activations"), ("mine", "import")])
def test_words_of_the_language_are_no_names(tmp_path: Path, id: str, family: str) -> None:
    with pytest.raises(WorkingPapersError, match="a lower-case Python name"):
        new(id, family=family, into=tmp_path / "plugin")
    assert not (tmp_path / "plugin").exists()
