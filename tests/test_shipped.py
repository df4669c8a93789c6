"""What ships with the package is whole: records, claims, the ledger, and every paper's file and test."""

import json
import math
from pathlib import Path

import pytest

from workingpapers.catalog import available, claims, load, record, records
from workingpapers.catalog.ledger import entries, read
from workingpapers.catalog.records import own_collection
from workingpapers.catalog.registry import source_hash
from workingpapers.catalog.remarks import remarks

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = available()

# Claims that no run has judged yet in their present form, one a line: their seeds need more minutes than the
# machine had, and `workingpapers check --record` measures them.  Strict: one that is in the ledger, and not stale,
# must leave this list.
UNMEASURED = (ROOT / "tests" / "unmeasured.txt").read_text("utf-8").split()


def test_every_paper_has_a_full_record() -> None:
    known = records()
    assert len(known) >= 337
    for r in known.values():
        assert r.id.isidentifier()
        assert 1940 < r.year <= 2026
        assert r.summary.endswith(".")
        assert len(r.summary.split()) <= 45, r.id
        assert r.claims, r.id
        assert all(c.keys() == {"says", "figure"} for c in r.claims), r.id
        assert len(r.asks) >= 6, r.id
        assert r.fidelity in ("verified", "reconstructed"), r.id
        assert r.fidelity_note, r.id
        assert set(r.uses) <= known.keys() | set(), r.id


@pytest.mark.parametrize("id", WRITTEN)
def test_a_written_paper_has_its_tests_and_its_claims(id: str) -> None:
    assert (ROOT / "tests" / "papers" / record(id).family / f"test_{id}.py").exists()
    assert sorted(c.says for c in claims(id).values()) == sorted(c["says"] for c in record(id).claims)


@pytest.mark.parametrize("id", WRITTEN)
def test_the_ledger_has_every_paper_in_its_present_state(id: str) -> None:
    stale = [e for e in entries(id) if e["source"] != source_hash(id) and f"{id}:{e['name']}" in UNMEASURED]
    found = [e for e in entries(id) if e.get("budget", "quick") == "quick" and e not in stale]
    known = {(e["what"], e["name"]): e for e in found}
    measured = [name for name in claims(id) if f"{id}:{name}" not in UNMEASURED]
    expected = {("contract", id), *(("claim", name) for name in measured)}
    assert known.keys() == expected, "run `workingpapers check --record` on it"
    assert {e["source"] for e in known.values()} == {source_hash(id)}, "its file has changed since"
    assert known["contract", id]["components"].keys() == load(id).keys()


def test_the_list_of_unmeasured_claims_names_claims() -> None:
    assert set(UNMEASURED) <= {f"{id}:{name}" for id in WRITTEN for name in claims(id)}


@pytest.mark.parametrize("id", WRITTEN)
def test_every_verdict_follows_from_its_own_values(id: str) -> None:
    for entry in entries(id):
        if entry["what"] != "claim":
            continue
        claim = claims(id)[entry["name"]]
        values = {name: [float(v) for v in column] for name, column in entry["values"].items()}
        assert entry["seeds"] == list(claim.seeds)
        assert {len(column) for column in values.values()} == {len(claim.seeds)}
        assert entry["rule"] == claim.holds.text
        assert entry["result"] == claim.holds.judge(values)
        for name, interval in entry["figures"].items():
            finite = [v for v in values[name] if math.isfinite(v)]
            if finite:
                assert float(interval["estimate"]) == pytest.approx(
                    sum(finite) / len(finite), rel=1e-6, abs=1e-12
                )


def test_the_ledger_is_read_whole_and_names_nothing_of_a_machine() -> None:
    path = own_collection().ledger_file
    found = read(path)
    assert {e["paper"] for e in found} == set(WRITTEN)
    text = path.read_text("utf-8")
    assert "/home/" not in text
    assert "/root/" not in text
    assert "/work/" not in text
    assert [json.dumps(e, ensure_ascii=False, sort_keys=True) for e in found] == text.splitlines()


def test_every_claim_that_did_not_hold_has_a_remark() -> None:
    broken = {(id, e["name"]): e for id in WRITTEN for e in entries(id) if e["result"] == "does not hold"}
    present = {f"{id}:{name}" for (id, name), e in broken.items() if e["source"] == source_hash(id)}
    assert present <= remarks().keys() <= {f"{id}:{name}" for id, name in broken}
    assert all(len(text.split()) >= 30 for text in remarks().values())


def test_the_demo_names_claims_that_exist() -> None:
    from workingpapers.tasks import TASKS
    from workingpapers.verbs import demo

    assert set(demo.TASKS) <= set(TASKS)
    assert all(set(demo.CLAIMS.get(id, ())) <= set(claims(id)) for id in demo.PAPERS)
