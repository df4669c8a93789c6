"""Every promise is kept by small components that are known to be right."""

import pytest
from cases import Case
from good_functions import GOOD_FUNCTIONS
from good_modules import GOOD_MODULES

from workingpapers.catalog import KINDS
from workingpapers.contracts import checks

GOOD = GOOD_MODULES + GOOD_FUNCTIONS


@pytest.fixture(autouse=True)
def _golu_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workingpapers.contracts.survey.available", lambda: ["golu"])


@pytest.mark.parametrize("case", GOOD, ids=[f"{i}-{case.name}" for i, case in enumerate(GOOD)])
def test_a_right_component_keeps_every_promise(case: Case) -> None:
    report = case.check()
    assert report.passed, str(report)


def test_every_check_is_kept_by_some_right_component() -> None:
    for kind in KINDS:
        cases = [case for case in GOOD if case.kind == kind]
        for check in checks(kind):
            assert any(check.applies(case.properties) for case in cases), (kind, check.name)
