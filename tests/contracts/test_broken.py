"""Every check fails for a component that breaks its promise, and says so in one sentence."""

import pytest
from broken_functions import BROKEN_FUNCTIONS
from broken_modules import BROKEN_MODULES, SUBTLE, UNTRUE
from cases import Case

from workingpapers.catalog import KINDS
from workingpapers.contracts import checks

BROKEN = {**BROKEN_MODULES, **BROKEN_FUNCTIONS}
RAISING = {"empty batch", "pickle", "compile", "export", "device moves", "deepcopy", "repeats"}
EVERY_CHECK = [(kind, check.name) for kind in KINDS for check in checks(kind)]


@pytest.fixture(autouse=True)
def _golu_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workingpapers.contracts.survey.available", lambda: ["golu"])


@pytest.mark.parametrize(("kind", "check"), EVERY_CHECK, ids=[f"{k}-{c}" for k, c in EVERY_CHECK])
def test_a_broken_promise_fails_its_check(kind: str, check: str) -> None:
    report = BROKEN[kind, check].check(only=check)
    assert list(report.results) == [check], "the check does not apply to what the component declares"
    assert list(report.failures) == [check], str(report)
    sentence = report.failures[check]
    assert sentence.startswith("promised that ")
    assert ", but " in sentence
    assert "\n" not in sentence
    assert len(sentence) < 700
    assert check in RAISING or "was raised" not in sentence, "it fails for another reason than its promise"


@pytest.mark.parametrize(("check", "case"), UNTRUE, ids=[f"{c.name}-{c.properties}" for _, c in UNTRUE])
def test_an_untrue_declaration_fails(check: str, case: Case) -> None:
    failures = case.check(only=check).failures
    assert list(failures) == [check]
    assert "was raised" not in failures[check]


@pytest.mark.parametrize(("check", "case"), SUBTLE, ids=[case.name for _, case in SUBTLE])
def test_a_subtle_fault_fails(check: str, case: Case) -> None:
    assert list(case.check(only=check).failures) == [check]


def test_no_broken_component_is_left_without_its_check() -> None:
    assert set(BROKEN) == set(EVERY_CHECK)
