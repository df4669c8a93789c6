"""Rules decide by the interval, by every seed, or by a sign test, and nothing that is not finite complies."""

import math

import pytest

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import (
    Evidence,
    Finding,
    above,
    all_of,
    any_of,
    at_least,
    at_most,
    below,
    between,
)

HOLDS, FAILS, OPEN = "holds", "does not hold", "not shown"


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        (below(1.0), [0.5, 0.6, 0.55, 0.52, 0.58], HOLDS),
        (below(1.0), [1.5, 1.6, 1.55, 1.52, 1.58], FAILS),
        (below(1.0), [0.5, 1.6, 0.9, 1.2, 0.7], OPEN),
        (above(0.0), [0.1, 0.2, 0.15, 0.12], HOLDS),
        (at_least(0.3), [0.3, 0.3, 0.3], HOLDS),
        (above(0.3), [0.3, 0.3, 0.3], FAILS),
        (at_most(0.3), [0.3, 0.3, 0.3], HOLDS),
        (below(0.3), [0.3, 0.3, 0.3], FAILS),
        (below(1.0), [0.5], OPEN),
        (below(1.0), [], OPEN),
        (below(1.0, by="every"), [0.5], HOLDS),
        (below(1.0, by="every"), [0.5, 1.0], FAILS),
        (below(1.0, by="every"), [0.5, math.nan], FAILS),
        (below(1.0), [0.5, 0.5, 0.5, math.nan], OPEN),
        (below(1.0), [0.5, math.inf, math.nan], FAILS),
        (below(1.0, by="median"), [0.1, 0.2, 0.3, 0.4, 0.5], HOLDS),
        (below(1.0, by="median"), [0.1, 0.2, 0.3, 0.4], OPEN),
        (below(1.0, by="median"), [0.1, 0.2, 0.3, 0.4, 9.0], OPEN),
        (below(1.0, by="median"), [9.0, 8.0, 7.0, 6.0, 5.0], FAILS),
        (between(0.0, 1.0, by="every"), [0.0, 1.0], HOLDS),
        (between(0.0, 1.0, by="every"), [0.5, 1.1], FAILS),
    ],
)
def test_rule(rule, values, expected) -> None:
    assert rule.judge({"value": values}) == expected


def test_all_of_takes_the_weakest_and_any_of_the_strongest() -> None:
    yes, no, unsure = below(1.0, "a", "every"), above(1.0, "a", "every"), below(1.0, "b")
    figures = {"a": [0.5], "b": [0.5]}
    assert all_of(yes, unsure).judge(figures) == OPEN
    assert all_of(yes, unsure, no).judge(figures) == FAILS
    assert any_of(no, unsure).judge(figures) == OPEN
    assert any_of(no, unsure, yes).judge(figures) == HOLDS
    assert all_of(yes, yes).judge(figures) == HOLDS


def test_rules_read_as_words() -> None:
    rule = all_of(
        below(1.0, of="ratio"), any_of(at_least(0.9, of="a", by="every"), above(0, of="b", by="median"))
    )
    assert rule.text == "mean ratio < 1 and (every a >= 0.9 or median b > 0)"


def test_a_rule_about_a_missing_figure_names_the_nearest() -> None:
    with pytest.raises(WorkingPapersError, match="no figure in the evidence is named 'ratoi'.*'ratio'"):
        below(1.0, of="ratoi").judge({"ratio": [1.0]})


def test_an_unknown_way_of_judging_is_refused_at_once() -> None:
    with pytest.raises(WorkingPapersError, match="'mean'"):
        below(1.0, by="means")


def test_evidence_takes_a_value_or_figures() -> None:
    assert Evidence(0.5).figures == {"value": 0.5}
    assert Evidence(a=1, b=True).figures == {"a": 1.0, "b": 1.0}
    assert repr(Evidence(a=0.25)) == "Evidence(a=0.25)"
    with pytest.raises(WorkingPapersError, match="got none"):
        Evidence()
    with pytest.raises(WorkingPapersError, match="takes numbers"):
        Evidence(a="good")


def test_a_finding_prints_its_reading_first() -> None:
    assert str(Finding({"share": 0.25}, "A quarter is dead.")).splitlines()[0] == "A quarter is dead."
