"""The interval is right: closed forms, simulated error rates, Holm by hand, power by the noncentral t."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workingpapers.experiments.statistics import (
    Difference,
    holm_levels,
    judge,
    mean_interval,
    paired_sample,
    seeds_needed,
    unpaired_sample,
)


def simulate(effect: float, seeds: int, rounds: int, variants: int = 1) -> list[set[str]]:
    rng = np.random.default_rng(20261121)
    words = []
    for _ in range(rounds):
        shared = rng.normal(size=seeds) * 5
        runs = {"base": dict(enumerate(shared))}
        for v in range(variants):
            runs[f"v{v}"] = dict(enumerate(shared + effect + rng.normal(size=seeds)))
        words.append({d.word for d in judge(runs, "base").values()})
    return words


@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
def test_without_a_difference_one_is_rarely_claimed(seeds: int) -> None:
    words = simulate(0.0, seeds, 4000)
    assert sum(w != {Difference.NONE} for w in words) <= 0.06 * 4000


def test_holm_keeps_the_family_error_with_five_variants() -> None:
    words = simulate(0.0, 10, 2000, variants=5)
    assert sum(w != {Difference.NONE} for w in words) <= 0.06 * 2000


def test_an_effect_of_one_standard_deviation_is_found_with_ten_seeds() -> None:
    words = simulate(1.0, 10, 4000)
    assert sum(w == {Difference.BETTER} for w in words) >= 0.8 * 4000
    assert sum(w == {Difference.WORSE} for w in words) <= 2


def test_interval_is_close_to_students_for_symmetric_data() -> None:
    values = np.array([-2.0, -1.0, -0.5, 0.0, 0.0, 0.5, 1.0, 2.0]) + 3
    found = mean_interval(values)
    half = stats.t.ppf(0.975, 7) * values.std(ddof=1) / math.sqrt(8)
    assert found.estimate == pytest.approx(3)
    assert found.high - 3 == pytest.approx(half, rel=0.06)
    assert 3 - found.low == pytest.approx(half, rel=0.06)


def test_interval_leans_with_skewed_data() -> None:
    found = mean_interval([0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 5.0])
    assert found.high - found.estimate > 1.2 * (found.estimate - found.low)


@pytest.mark.parametrize("values", [[1.0, 3.0], [1.0, 2.0, 4.0]])
def test_two_and_three_values_have_students_interval(values: list[float]) -> None:
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_one_value_has_no_finite_interval() -> None:
    assert mean_interval([4.0]).low == -math.inf
    assert judge({"a": {0: 1.0}, "b": {0: 9.0}}, "a")["b"].word == Difference.NONE


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.floats(-50, 50), st.floats(0.1, 10))
def test_interval_moves_and_scales_with_the_data(values: list[float], shift: float, scale: float) -> None:
    one = mean_interval(values)
    two = mean_interval([scale * v + shift for v in values])
    assert two.low == pytest.approx(scale * one.low + shift, abs=1e-6)
    assert two.high == pytest.approx(scale * one.high + shift, abs=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=10), st.floats(0.001, 0.4))
def test_p_value_is_where_the_interval_meets_zero(values: list[float], alpha: float) -> None:
    sample = paired_sample(values)
    p = sample.p_value()
    if abs(p - alpha) > 1e-9 and len(set(values)) > 1:
        assert sample.interval(1 - alpha).excludes(0.0) == (p < alpha)


def test_holm_by_hand() -> None:
    # sorted: 0.01 <= 0.05/3, 0.02 <= 0.05/2, 0.04 <= 0.05/1: all rejected at their own level
    assert holm_levels({"a": 0.02, "b": 0.01, "c": 0.04}) == pytest.approx(
        {"b": 0.05 / 3, "a": 0.025, "c": 0.05}
    )
    # 0.03 > 0.05/2 stops it: the later 0.04 is not rejected although 0.04 <= 0.05
    assert holm_levels({"a": 0.03, "b": 0.01, "c": 0.04}) == pytest.approx(
        {"b": 0.05 / 3, "a": 0.025, "c": 0.025}
    )


def test_goal_turns_the_word() -> None:
    runs = {"base": dict.fromkeys(range(6), 1.0), "v": {s: 0.5 + 0.01 * s for s in range(6)}}
    assert judge(runs, "base", goal="min")["v"].word == Difference.BETTER
    assert judge(runs, "base", goal="max")["v"].word == Difference.WORSE


def test_identical_runs_show_no_difference() -> None:
    runs = {"base": {0: 0.5, 1: 0.7, 2: 0.6}, "v": {0: 0.5, 1: 0.7, 2: 0.6}}
    found = judge(runs, "base")["v"]
    assert found.word == Difference.NONE
    assert found.p_value == 1.0


def test_a_constant_difference_is_a_difference() -> None:
    runs = {"base": {s: s / 7 for s in range(5)}, "v": {s: s / 7 + 0.1 for s in range(5)}}
    assert judge(runs, "base")["v"].word == Difference.BETTER


def test_pairing_takes_the_seeds_spread_out() -> None:
    rng = np.random.default_rng(3)
    shared = rng.normal(size=10) * 10
    runs = {"base": dict(enumerate(shared)), "v": dict(enumerate(shared + 1 + 0.1 * rng.normal(size=10)))}
    assert judge(runs, "base")["v"].word == Difference.BETTER
    assert judge(runs, "base", paired=False)["v"].word == Difference.NONE


def test_unpaired_agrees_with_welch() -> None:
    rng = np.random.default_rng(4)
    one, two = rng.normal(size=30), rng.normal(size=12) * 3
    found = unpaired_sample(one, two)
    welch = stats.ttest_ind(one, two, equal_var=False)
    assert found.freedom == pytest.approx(welch.df)
    interval = welch.confidence_interval(0.95)
    width = interval.high - interval.low
    got = found.interval()
    assert got.high - got.low == pytest.approx(width, rel=0.1)


def test_a_diverged_variant_is_never_better() -> None:
    runs = {"base": dict.fromkeys(range(8), 0.5), "v": {s: 0.9 + 0.001 * s for s in range(8)}}
    runs["v"][3] = math.nan
    found = judge(runs, "base")["v"]
    assert (found.word, found.diverged, found.pairs) == (Difference.NONE, 1, 7)


def test_diverging_in_most_seeds_is_worse() -> None:
    base = dict.fromkeys(range(8), 0.5)
    assert judge({"base": base, "v": dict.fromkeys(range(8), math.nan)}, "base")["v"].word == Difference.WORSE
    few = {s: (math.nan if s < 2 else 0.5) for s in range(8)}
    assert judge({"base": base, "v": few}, "base")["v"].word == Difference.NONE


def test_both_diverging_says_nothing() -> None:
    lost = dict.fromkeys(range(8), math.nan)
    assert judge({"base": lost, "v": dict(lost)}, "base")["v"].word == Difference.NONE


@pytest.mark.parametrize(
    ("spread", "difference", "expected"), [(1.0, 1.0, 10), (1.0, 0.5, 34), (0.0, 0.5, 2)]
)
def test_seeds_needed_are_those_of_the_t_test(spread: float, difference: float, expected: int) -> None:
    assert seeds_needed(spread, difference) == expected


def test_seeds_needed_reach_the_power_by_simulation() -> None:
    n = seeds_needed(1.0, 0.8)
    assert n is not None
    x = np.random.default_rng(0).normal(0.8, 1.0, size=(4000, n))
    power = (stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05).mean()
    assert 0.79 <= power <= 0.87


@pytest.mark.parametrize(
    ("spread", "difference"), [(math.nan, 1.0), (1.0, 0.0), (1.0, math.nan), (1.0, 1e-9)]
)
def test_no_number_of_seeds_where_none_tells(spread: float, difference: float) -> None:
    assert seeds_needed(spread, difference) is None


@pytest.mark.parametrize("size", [1e-200, 1e100, 1e300])
def test_metrics_of_any_size_are_judged(size: float) -> None:
    runs = {
        "base": {s: size * s / 10 for s in range(6)},
        "v": {s: size * (s / 10 + 0.01 * s + 0.1) for s in range(6)},
    }
    small = {name: {s: v / size for s, v in values.items()} for name, values in runs.items()}
    for paired in (True, False):
        one, two = (judge(r, "base", paired=paired)["v"] for r in (runs, small))
        assert one.word == two.word
        assert one.interval.low == pytest.approx(size * two.interval.low, rel=1e-9)
        assert one.seeds_needed == two.seeds_needed


@pytest.mark.parametrize("seeds", [2, 3])
def test_coarse_metrics_rarely_give_a_false_word(seeds: int) -> None:
    rng = np.random.default_rng(11)
    words = []
    for _ in range(1500):
        runs = {
            name: dict(enumerate(rng.integers(0, 2, seeds).astype(float))) for name in ("base", "a", "b", "c")
        }
        words.append({d.word for d in judge(runs, "base").values()})
    assert sum(w != {Difference.NONE} for w in words) <= 0.06 * 1500


def test_a_word_and_its_interval_agree() -> None:
    for seeds in (2, 3, 4):
        found = judge(
            {"base": dict.fromkeys(range(seeds), 0.0), "v": dict.fromkeys(range(seeds), 1.0)}, "base"
        )["v"]
        assert found.interval.excludes(0.0) == (found.word != Difference.NONE) == (seeds == 4)
