"""Claims run through the engine on their own seeds, are judged by their own rule, and errors are no verdicts."""

import math
from pathlib import Path

import pytest

from workingpapers.catalog import ledger
from workingpapers.claims import check_claims
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.store import Store
from workingpapers.verbs.check import check, check_many, chosen, parse_seeds, write_ledger

CODE = """
from pathlib import Path
from workingpapers.catalog import claim, paper
from workingpapers.experiments import Evidence, all_of, at_least, below
from torch import nn

@paper("quiet", smooth=True, monotone=True, lipschitz=0.5, zero_at_zero=True, odd=True)
class Quiet(nn.Module):
    def forward(self, x):
        if not x.is_floating_point():
            raise TypeError(f"quiet takes a floating tensor; got {x.dtype}")
        return x / 2

@claim("quiet", "It halves.", figure="0.5", holds=all_of(below(1.0), at_least(0, of="seed", by="every")), seeds=4)
def halves(budget, seed):
    with open(Path(__file__).with_name("log"), "a") as file:
        file.write(f"{budget.name}{seed} ")
    return Evidence(0.5 + 0.01 * seed, seed=seed, size=budget.pick(quick=1, full=9))

@claim("quiet", "It doubles.", holds=at_least(2.0), seeds=[3, 5, 8])
def doubles(budget, seed):
    return Evidence(0.5 + 0.01 * seed)

@claim("quiet", "It is stable.", holds=below(1.0, by="every"), seeds=3, calibrated="was 0.5 before seeds 1000-1004")
def stable(budget, seed):
    return Evidence(float("nan") if seed == 1 else 0.1)
"""


@pytest.fixture
def quiet(add_paper) -> Path:
    return add_paper("quiet", CODE)


def test_verdicts_follow_the_rules(quiet: Path) -> None:
    found = {v.claim: v for v in check_claims("quiet", workers=0)}
    assert {n: v.verdict for n, v in found.items()} == {
        "halves": "holds",
        "doubles": "does not hold",
        "stable": "does not hold",
    }
    halves = found["halves"]
    assert halves.values["value"] == [0.5, 0.51, 0.52, 0.53]
    assert halves.figures["value"].estimate == pytest.approx(0.515)
    assert (halves.seeds, found["doubles"].seeds) == ([0, 1, 2, 3], [3, 5, 8])
    assert (halves.figure, halves.rule) == ("0.5", "mean value < 1 and every seed >= 0")
    assert halves.values["size"] == [1.0] * 4
    assert found["stable"].calibrated == "was 0.5 before seeds 1000-1004"
    assert math.isnan(found["stable"].values["value"][1])
    assert all(v.machine and v.version and v.complete for v in found.values())


def test_a_second_check_measures_nothing_again_until_the_file_changes(quiet: Path) -> None:
    log = quiet.with_name("log")
    for _ in range(2):
        check_claims("quiet", names=["halves"], workers=0)
    assert sorted(log.read_text().split()) == ["quick0", "quick1", "quick2", "quick3"]
    check_claims("quiet", names=["halves"], workers=0, budget="full")
    assert log.read_text().count("full") == 4
    quiet.write_text(quiet.read_text() + "\n# changed\n")
    check_claims("quiet", names=["halves"], workers=0)
    assert log.read_text().count("quick") == 8


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise RuntimeError('no data')", "seed 0: RuntimeError: no data"),
        ("return 0.5", "must return Evidence; got 0.5"),
    ],
)
def test_a_claim_that_cannot_be_measured_is_not_shown(add_paper, body: str, sentence: str) -> None:
    add_paper(
        "broken",
        f"""
from workingpapers.catalog import claim, paper
from workingpapers.experiments import below
@paper("broken")
class Broken: pass
@claim("broken", "It works.", holds=below(1.0), seeds=2)
def works(budget, seed):
    {body}
""",
    )
    (found,) = check_claims("broken", workers=0)
    assert found.verdict == "not shown"
    assert not found.complete
    assert sentence in found.errors[0]


def test_recording_ties_results_to_the_file(quiet: Path) -> None:
    checked = check("quiet", workers=0)
    assert checked.passed, checked.contracts["quiet"].failures
    write_ledger(checked)
    known = ledger.status("quiet")
    assert known.works
    assert known.verdicts["doubles"]["result"] == "does not hold"
    assert known.verdicts["stable"]["values"]["value"] == [0.1, "nan", 0.1]
    assert known.verdicts["halves"]["figures"]["value"]["estimate"] == pytest.approx(0.515)


def test_calibration_seeds_and_failed_claims_are_never_recorded(quiet: Path) -> None:
    with pytest.raises(WorkingPapersError, match="other seeds than the declared ones"):
        write_ledger(check("quiet", seeds=[1000, 1001], contract=False, workers=0))
    with pytest.raises(WorkingPapersError, match="cannot be recorded"):
        list(check_many(["quiet"], seeds=[1000], record=True))
    assert ledger.entries("quiet") == []


def test_choosing_papers_and_claims(quiet: Path, add_paper) -> None:
    add_paper("later")
    assert chosen(["quiet"]) == chosen([], ["activations"]) == chosen([], all=True) == ["quiet"]
    (only,) = check_many(["quiet:halves"], contract=False, workers=0, store=Store())
    assert [v.claim for v in only.verdicts] == ["halves"]
    (all_of_them,) = check_many(["quiet:halves", "quiet"], contract=False, workers=0, store=Store())
    assert len(all_of_them.verdicts) > 1
    (bare,) = check_many(["quiet"], claims=False)
    assert bare.verdicts == []
    assert list(bare.contracts) == ["quiet"]
    for call, sentence in [
        (lambda: chosen([]), "no paper was named"),
        (lambda: chosen(["quite"]), "no paper is named 'quite'; the nearest name is 'quiet'"),
        (
            lambda: chosen([], ["activation"]),
            "no family is named 'activation'; the nearest name is 'activations'",
        ),
        (lambda: list(check_many(["quiet:halfs"], contract=False)), "no claim of 'quiet' is named 'halfs'"),
        (lambda: list(check_many(["later"])), "not written yet"),
        (lambda: next(check_many(["quiet", "later"], claims=False)), "not written yet"),
    ]:
        with pytest.raises(WorkingPapersError, match=sentence):
            call()


def test_seeds_in_words() -> None:
    assert parse_seeds(None) is None
    assert parse_seeds("1000-1002,7,7,1001") == [1000, 1001, 1002, 7]
    for text in ("a", "5-3", "", "1-", "-1"):
        with pytest.raises(WorkingPapersError, match="seeds are given as"):
            parse_seeds(text)
