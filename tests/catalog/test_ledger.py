"""The ledger ties results to the file they were measured on, and shows any edit by hand."""

import json
import os
from pathlib import Path

import pytest

from workingpapers.catalog import ledger
from workingpapers.errors import WorkingPapersError

CODE = """
from workingpapers.catalog import paper
@paper("double")
class Double: pass
"""
CONTRACT = {"what": "contract", "name": "double", "result": "passed", "finished": "2026-11-21"}
CLAIM = {"what": "claim", "name": "doubles", "result": "holds", "budget": "quick", "finished": "2026-11-21"}


def test_a_paper_works_when_its_contract_passed_on_this_very_file(add_paper) -> None:
    path = add_paper("double", CODE)
    assert not ledger.works("double")
    ledger.record_entries("double", [CONTRACT, CLAIM])
    known = ledger.status("double")
    assert (known.works, known.contract) == (True, "passed")
    assert known.verdicts["doubles"]["stale"] is False
    path.write_text(CODE + "# changed\n")
    known = ledger.status("double")
    assert (known.works, known.contract) == (False, "stale")
    assert known.verdicts["doubles"]["stale"] is True


def test_a_failed_contract_does_not_work(add_paper) -> None:
    add_paper("double", CODE)
    ledger.record_entries("double", [{**CONTRACT, "result": "failed"}])
    assert not ledger.works("double")


def test_a_paper_without_a_file_does_not_work(add_paper) -> None:
    add_paper("double")
    assert ledger.status("double") == ledger.Status(False, None, {})


def test_a_new_result_replaces_the_old_of_the_same_name_and_budget(add_paper) -> None:
    add_paper("double", CODE)
    ledger.record_entries("double", [CLAIM, CONTRACT])
    path = ledger.record_entries("double", [{**CLAIM, "result": "does not hold"}])
    ledger.record_entries("double", [{**CLAIM, "budget": "full", "result": "not shown"}])
    assert [e["result"] for e in ledger.read(path)] == ["not shown", "does not hold", "passed"]
    assert ledger.status("double").verdicts["doubles"]["result"] == "not shown"


def test_the_order_of_writing_does_not_matter(add_paper) -> None:
    add_paper("double", CODE)
    path = ledger.record_entries("double", [CLAIM, CONTRACT])
    first = path.read_bytes()
    path.unlink()
    ledger.record_entries("double", [CONTRACT, CLAIM])
    assert path.read_bytes() == first


def edited(line: str) -> str:
    entry = json.loads(line)
    return json.dumps({**entry, "result": "holds", "figures": {"gain": 9}}, sort_keys=True)


@pytest.mark.parametrize("spoil", [edited, lambda line: line[:-5], lambda line: "{}", lambda line: "[1]"])
def test_an_edit_by_hand_is_seen(add_paper, spoil) -> None:
    add_paper("double", CODE)
    path = ledger.record_entries("double", [{**CLAIM, "result": "does not hold"}])
    path.write_text(spoil(path.read_text().strip()) + "\n")
    with pytest.raises(
        WorkingPapersError, match="ledger.jsonl:1 was not written by `workingpapers check --record`"
    ):
        ledger.read(path)


def test_an_unwritable_ledger_is_one_sentence_and_keeps_the_old(
    add_paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_paper("double", CODE)
    path = ledger.record_entries("double", [CLAIM])
    before = path.read_bytes()

    def refuse(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WorkingPapersError, match="cannot write .*ledger.jsonl: No space left on device"):
        ledger.record_entries("double", [CONTRACT])
    assert path.read_bytes() == before
    assert [p.name for p in Path(path.parent).glob("*.tmp")] == []
