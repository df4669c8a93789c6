"""Sentences and numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, PackageLoader

from workingpapers.experiments.statistics import Interval
from workingpapers.report import numbers, provenance, svg
from workingpapers.report.sentences import answer, more

NAN = math.nan


def said(comparison):
    return answer(comparison).replace("\N{NO-BREAK SPACE}", " ")


GAIN = [0.010, 0.012, 0.014, 0.011, 0.013, 0.012]
BASE = [0.90, 0.93, 0.88, 0.91, 0.92, 0.89]
UP = [b + g for b, g in zip(BASE, GAIN, strict=True)]


def test_better_and_worse_are_told_by_their_size(compared):
    for goal, words in (
        ("max", ("b is better than a", "b is worse than a")),
        ("min", ("b is worse than a", "b is better than a")),
    ):
        for (first, second), word in zip(((BASE, UP), (UP, BASE)), words, strict=True):
            comparison = compared({"a": first, "b": second}, goal=goal)
            interval = comparison.rows[0].difference or comparison.rows[1].difference
            low, high = sorted(abs(end) for end in (interval.interval.low, interval.interval.high))
            assert (
                said(comparison) == f"{word} by 0.0120 [{low:.4f}, {high:.4f}] accuracy over 6 paired seeds."
            )


def test_no_difference_says_how_many_seeds_would_tell(compared):
    comparison = compared({"a": [0.1, 0.2, 0.3, 0.4], "b": [0.2, 0.1, 0.5, 0.3]}, detect=0.1)
    need = comparison.rows[0].difference or comparison.rows[1].difference
    assert said(comparison).startswith("No difference between b and a is shown: +0.02")
    assert said(comparison).endswith(f"about {need.seeds_needed} seeds would tell one of 0.1.")


def test_the_best_of_several_leads_and_the_rest_follows(compared):
    worse = [b - g for b, g in zip(BASE, GAIN, strict=True)]
    mixed = [b + 0.01 * (-1) ** i for i, b in enumerate(BASE)]
    best = [b + 2 * g for b, g in zip(BASE, GAIN, strict=True)]
    comparison = compared({"a": BASE, "up": UP, "down": worse, "same": mixed, "best": best})
    assert said(comparison).startswith("best is better than a by 0.0240 [")
    assert more(comparison) == ["Better too: up; worse: down; no difference to a shown: same."]
    assert said(compared({"a": UP, "b": BASE, "c": BASE})) == "All 2 variants are worse than a."
    assert (
        said(compared({"a": BASE, "b": mixed, "c": worse}))
        == "None of the 2 variants is shown to be better than a."
    )


def test_small_and_broken_comparisons_are_told_as_such(compared):
    assert (
        said(compared({"a": [0.5, 0.5]}))
        == "a has a mean accuracy of 0.5, standard deviation 0, over 2 seeds."
    )
    assert said(compared({"a": [0.5]})) == "a has a mean accuracy of 0.5 over 1 seed."
    assert said(compared({"a": [None] * 2, "b": [None] * 2})) == "No result: all 4 runs failed."
    assert said(compared({"a": [NAN], "b": [NAN]})) == "No finite accuracy: all 2 runs diverged."
    assert said(compared({"a": [NAN], "b": [None]})) == "No finite accuracy: 1 run diverged and 1 failed."
    assert said(compared({"a": []})) == "Nothing was run."
    assert said(compared({"a": [None], "b": [0.5]})).startswith("a, the baseline, gave no finite accuracy")
    assert "One seed cannot show a difference; take more." in more(compared({"a": [0.5], "b": [0.5]}))


def test_a_verdict_by_divergence_is_told_as_such(compared):
    comparison = compared({"a": [0.5 + i / 100 for i in range(12)], "b": [0.6] + [NAN] * 11})
    assert said(comparison) == "b is worse than a: it diverged in 11 of 12 runs, a in 0 of 12."
    assert "Diverged: b in 11 of 12 runs." in more(comparison)


@given(st.floats(-1e300, 1e300), st.integers(0, 6), st.booleans())
def test_shown_numbers_are_right_to_their_last_digit(value, places, sign):
    text = numbers.fixed(value, places, sign).replace("\N{MINUS SIGN}", "-")
    bound = 0.5001 * 10.0**-places if abs(value) < 1e6 else 0.00501 * abs(value)
    assert abs(float(text) - value) <= bound
    assert not text.startswith("-0.000000") or float(text) != 0


@given(st.lists(st.one_of(st.floats(1e-12, 1e12), st.just(NAN), st.just(math.inf), st.just(0.0)), max_size=8))
def test_a_column_hides_no_digit_that_counts(widths):
    for width, places in zip(widths, numbers.common_decimals(widths), strict=True):
        if math.isfinite(width) and width > 0:
            assert 10.0**-places <= width * 1.0001 or places == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not known"),
        (NAN, "not known"),
        (math.inf, "infinite"),
        (-math.inf, "minus infinite"),
        (-0.25, "−0.25"),
    ],
)
def test_what_is_no_number_is_a_word(value, text):
    assert numbers.plain(value) == numbers.fixed(value, 2) == text


def test_intervals_and_spans_in_words():
    around = numbers.around(Interval(0.0121, 0.0042, 0.0199)).replace("\N{NO-BREAK SPACE}", " ")
    assert around == "0.012 [0.004, 0.020]"
    assert numbers.around(Interval(0.5, -math.inf, math.inf)) == "0.5"
    assert numbers.bounds(Interval(0.5, -math.inf, math.inf), 2) == "not known"
    assert numbers.ranges([3, 0, 1, 2, 7, 9, 10]) == "0–3, 7, 9, 10"
    assert [numbers.duration(s) for s in (0.25, 42, 600, 9000, None)] == [
        "0.25 s",
        "42 s",
        "10 min",
        "2.5 h",
        "not known",
    ]


@given(
    st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6),
    st.booleans(),
    st.integers(2, 6),
)
def test_scales_show_their_values_and_round_ticks(values, log, count):
    scale = svg.Scale.fitting(values, log=log)
    assert math.isfinite(scale.low)
    assert math.isfinite(scale.high)
    assert scale.low < scale.high
    for value in values:
        if abs(value) < svg.HUGE and (value > 1 / svg.HUGE or not log):
            assert -1e-9 <= scale.fraction(value) <= 1 + 1e-9
    ticks = scale.ticks(count)
    assert len(ticks) <= 2 * count + 2
    assert ticks == sorted(set(ticks))
    texts = svg.tick_texts(ticks)
    assert len(texts) == len(ticks)


def test_values_that_differ_by_rounding_alone_are_one():
    scale = svg.Scale.fitting([1.0, 1.0 + 2e-16])
    assert scale.fraction(1.0) == pytest.approx(0.5)
    assert svg.tick_texts(scale.ticks()) == ["0.90", "0.95", "1.00", "1.05", "1.10"]


def test_elements_escape_and_refuse_what_cannot_be_drawn():
    assert (
        svg.element("text", "<b>", class_="a", data_x='"&')
        == '<text class="a" data-x="&#34;&amp;">&lt;b&gt;</text>'
    )
    assert svg.element("line", x1=-0.001, x2=1 / 3, y1=None) == '<line x1="0" x2="0.33"></line>'
    with pytest.raises(ValueError, match="finite"):
        svg.element("line", x1=NAN)


def test_paths_break_where_a_value_is_missing():
    import numpy as np

    across, up = svg.Scale(0, 4), svg.Scale(0, 1)
    path = svg.line_path(np.arange(5.0), np.array([0, 0.5, NAN, 0.5, 1]), across, up)
    assert path == "M0 1000L250 500M750 500L1000 0"


def test_far_values_are_left_out_of_the_usual_range():
    assert svg.usual_range([1, 2, 3, 4, 5, 1e9, NAN]) == (1, 5)
    assert svg.usual_range([1, 1, 1, 8]) == (1, 8)
    assert svg.usual_range([]) == (0, 0)


def test_commands_are_told_as_typed(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    told = provenance.shell_command
    assert told(["/usr/bin/workingpapers", "compare", "a b"]) == "workingpapers compare 'a b'"
    assert (
        told([f"{tmp_path}/lib/workingpapers/__main__.py", "check", f"{tmp_path}/x"])
        == "workingpapers check ~/x"
    )
    assert told([f"{tmp_path}/train.py", "3"]) == "python ~/train.py 3"
    assert told(["/x/ipykernel_launcher.py", "-f", "k.json"]) is None
    assert told([""]) is told(["-c"]) is told([]) is None


def test_only_the_home_folder_itself_is_cut(monkeypatch):
    monkeypatch.setenv("HOME", "/root")
    assert provenance.without_home("/root/a /roots /mnt/root/b --s=/root") == "~/a /roots /mnt/root/b --s=~"


def luminance(colour):
    colour = "".join(c * 2 for c in colour) if len(colour) == 3 else colour
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one, two):
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_told_from_their_ground():
    import re

    style = PackageLoader("workingpapers", "report").get_source(Environment(), "style.css")[0]
    light, dark = (
        dict(re.findall(r"--([\w-]+): #(\w+)", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    )
    assert light["card"] != dark["card"]
    for colours in (light, dark):
        for text in ("ink", "soft", "link"):
            for ground in ("paper", "card"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for word in ("better", "worse", "open"):
            assert contrast(colours[word], colours[f"{word}-tint"]) >= 4.5, word
        for line in ("v0", "v1", "v2", "v3", "v4", "v5", "v6", "zero"):
            assert contrast(colours[line], colours["card"]) >= 3.0, line
