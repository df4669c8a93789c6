"""Drawings: what stands where is what was measured."""

import math

import numpy as np
import pytest
import torch

from workingpapers.experiments.evidence import above, all_of, any_of, at_least, at_most, below, between
from workingpapers.report.claimed import cards, limits, rule_in_words
from workingpapers.report.measured import curve_metrics, differences, learning_curves, looks
from workingpapers.report.plots import ROW, curves_plot, differences_plot, seeds_plot
from workingpapers.report.shapes import LOW, sampled, shapes


def place(value):
    return float(value.removesuffix("%"))


def line_through(points):
    """Return the map of values to positions that two (value, position) pairs fix."""
    (a, x), (b, y) = points
    return lambda value: x + (value - a) * (y - x) / (b - a)


def test_differences_stand_where_their_numbers_say(compared, read):
    rng = np.random.default_rng(0)
    base = rng.normal(0.9, 0.01, 8)
    better, alike = base + 0.02 + rng.normal(0, 0.004, 8), base + rng.normal(0, 0.004, 8)
    comparison = compared({"relu": base.tolist(), "golu": better.tolist(), "gelu": alike.tolist()})
    plot = differences_plot(comparison, "p")
    drawn = read(str(plot.svg))
    zero = place(drawn.one("line", "zero").attributes["x1"])
    rows = [row for row in comparison.rows if row.difference]
    assert [n.label for n in plot.names] == [row.label for row in rows]
    bars = sorted(drawn.all("line", "bar"), key=lambda n: float(n.attributes["y1"]))
    first = rows[0].difference.interval
    where = line_through([(0.0, zero), (first.low, place(bars[0].attributes["x1"]))])
    marks = sorted((n for n in drawn.all("svg", "at")), key=lambda n: float(n.attributes["y"]))
    for bar, mark, row in zip(bars, marks, rows, strict=True):
        interval = row.difference.interval
        assert place(bar.attributes["x1"]) == pytest.approx(where(interval.low), abs=0.05)
        assert place(bar.attributes["x2"]) == pytest.approx(where(interval.high), abs=0.05)
        assert place(mark.attributes["x"]) == pytest.approx(where(interval.estimate), abs=0.05)
        dots = [
            n
            for n in drawn.all("circle", "dot")
            if abs(float(n.attributes["cy"]) - float(mark.attributes["y"])) < ROW / 2
        ]
        expected = sorted(where(v) for v in differences(comparison)[row.label].values())
        assert sorted(place(d.attributes["cx"]) for d in dots) == pytest.approx(expected, abs=0.05)
    ticks = {float(t.text.replace("−", "-")): place(t.attributes["x"]) for t in drawn.all("text", "tick")}
    assert len(ticks) >= 3
    for value, at in ticks.items():
        assert at == pytest.approx(where(value), abs=0.05)


def test_nothing_is_drawn_where_there_is_nothing(compared):
    assert differences_plot(compared({"a": [0.1, 0.2]}), "p") is None
    failed = compared({"a": [None, math.nan], "b": [0.1, None]})
    assert differences_plot(failed, "p") is None
    assert seeds_plot(failed, "p") is not None
    assert seeds_plot(compared({"a": [None], "b": [math.nan]}), "p") is None


def test_differences_are_paired_by_seed(compared):
    found = differences(compared({"relu": [0.1, 0.4, math.nan, 0.3], "golu": [0.2, 0.6, 0.9, None]}))
    assert found == {"golu": {0: pytest.approx(0.1), 1: pytest.approx(0.2)}}


def test_no_differences_by_seed_where_seeds_are_not_paired(compared):
    assert differences(compared({"a": [0.1], "b": [0.2]}, paired=False)) == {"b": {}}


@pytest.mark.parametrize(
    ("goal", "hints"), [("max", ("◂ worse", "better ▸")), ("min", ("◂ better", "worse ▸"))]
)
def test_the_better_side_follows_the_goal(compared, goal, hints):
    assert differences_plot(compared({"a": [0.1, 0.2], "b": [0.2, 0.4]}, goal=goal), "p").hints == hints


def test_an_unknown_interval_is_no_bar(compared, read):
    plot = differences_plot(compared({"a": [0.1], "b": [0.2]}), "p")
    assert not read(str(plot.svg)).all("line", "bar")
    assert len(read(str(plot.svg)).all("svg", "at")) == 1


def test_what_is_far_off_becomes_an_arrow_at_the_edge(compared, read):
    usual = {name: [0.5 + i / 100 + j / 1000 for i in range(5)] for j, name in enumerate("abcde")}
    comparison = compared({**usual, "far": [-1e6 + i for i in range(5)]})
    drawn = read(str(seeds_plot(comparison, "p").svg))
    assert len(drawn.all("circle", "seed")) == 25
    arrows = drawn.all("path", "off")
    assert len(arrows) == 5
    assert {n.attributes["x"] for n in drawn.all("svg", "at")} == {"0%"}
    assert "-1e+06" in arrows[0].text.replace("−", "-")
    told = [t for t in drawn.all("text", "start") if float(t.attributes["y"]) == 5.5 * ROW]
    assert [t.text for t in told] == ["−1e+06"]


def test_lines_join_the_same_seed(compared, read):
    drawn = read(str(seeds_plot(compared({"a": [0.1, 0.2, 0.3], "b": [0.4, math.nan, 0.6]}), "p").svg))
    ends = {(t.attributes["x1"], t.attributes["x2"]) for t in drawn.all("line", "thread")}
    dots = {}
    for dot in drawn.all("circle", "seed"):
        dots.setdefault(float(dot.attributes["cy"]), []).append(dot)
    upper, lower = (dots[y] for y in sorted(dots))
    by_seed = [
        {d.text.split("seed ")[1].split(":")[0]: d.attributes["cx"] for d in row} for row in (upper, lower)
    ]
    assert {(float(t.attributes["y1"]), float(t.attributes["y2"])) for t in drawn.all("line", "thread")} == {
        (float(min(dots)), float(max(dots)))
    }
    assert ends == {(by_seed[0][s], by_seed[1][s]) for s in ("0", "2")}


def test_a_learning_curve_is_the_mean_between_least_and_largest(compared):
    runs = [[{"step": s, "loss": s * k} for s in (0.0, 10.0, 20.0)] for k in (1.0, 2.0, 6.0)]
    (curve,) = learning_curves(compared({"a": [1.0, 2.0, 3.0]}, metric="loss", curves={"a": runs}), "loss")
    assert curve.steps.tolist() == [0, 10, 20]
    assert curve.mean.tolist() == pytest.approx([0, 30, 60])
    assert curve.low.tolist() == [0, 10, 20]
    assert curve.high.tolist() == [0, 60, 120]
    assert curve.runs == 3


def test_a_run_counts_only_as_far_as_it_got_and_steps_in_between_are_joined(compared):
    full = [{"step": s, "loss": 1.0} for s in (10.0, 0.0, 20.0)]
    short = [{"step": 0.0, "loss": 3.0}, {"step": 20.0, "loss": math.nan}, {"step": 15.0, "loss": 6.0}]
    comparison = compared({"a": [1.0, math.nan]}, metric="loss", curves={"a": [full, short]})
    (curve,) = learning_curves(comparison, "loss")
    assert dict(zip(curve.steps, curve.mean, strict=True)) == pytest.approx(
        {0: 2.0, 10: 3.0, 15: 3.5, 20: 1.0}
    )
    assert curve.high[-1] == 1.0


def test_curves_are_counted_by_epoch_or_point_where_there_is_no_step(compared):
    by_epoch = compared({"a": [1.0]}, curves={"a": [[{"epoch": 3.0, "x": 1.0}, {"epoch": 5.0, "x": 2.0}]]})
    assert learning_curves(by_epoch, "x")[0].steps.tolist() == [3, 5]
    assert "by epoch" in curves_plot(by_epoch, "x", "p").caption
    by_point = compared({"a": [1.0]}, curves={"a": [[{"x": 1.0}, {"x": 2.0}]]})
    assert learning_curves(by_point, "x")[0].steps.tolist() == [1, 2]


def test_only_metrics_with_a_course_have_curves(compared):
    points = [{"step": 1.0, "accuracy": 0.1, "note": 3.0}, {"step": 2.0, "accuracy": 0.2, "note": math.nan}]
    assert curve_metrics(compared({"a": [0.2]}, curves={"a": [points]})) == ["accuracy"]
    assert curve_metrics(compared({"a": [0.2]})) == []


def test_looks_differ_where_lines_are_coloured(compared):
    found = looks(compared({f"v{i}": [i / 10, i / 10] for i in range(12)}))
    assert list(found)[:2] == ["v0", "v11"]
    assert len({look.colour for look in found.values()}) == len(found) == 7
    assert len({(look.dash, look.marker) for look in found.values()}) == len(found)


def test_functions_and_derivatives_are_sampled(compared):
    module = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Tanh())
    state = torch.get_rng_state()
    value, slope = sampled(module)
    x = np.linspace(LOW, -LOW, len(value))
    np.testing.assert_allclose(value, np.tanh(x), atol=1e-6)
    np.testing.assert_allclose(slope, 1 - np.tanh(x) ** 2, atol=1e-6)
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    sampled(lambda x: x * torch.rand(()))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.all(sampled(torch.sign)[1] == 0)
    assert np.all(sampled(torch.ones_like)[1] == 0)


def test_activations_that_cannot_be_drawn_say_so(compared):
    def halves(x):
        return x[::2]

    comparison = compared({"a": [0.1], "b": [0.2], "unknown": [0.3]})
    found = {s.label: s for s in shapes(comparison, {"a": torch.tanh, "b": halves, "other": torch.tanh}, "s")}
    assert list(found) == ["b", "a"]
    assert found["a"].svg
    assert found["b"].svg is None
    assert found["b"].why_not


def test_rules_are_read_back_from_their_own_words():
    rule = all_of(
        at_most(1e-3, of="a", by="every"), any_of(below(-0.5, of="b.c"), above(2.0, of="b.c", by="median"))
    )
    assert [(x.sign, x.value) for x in limits(rule.text, "a")] == [("<=", 0.001)]
    assert [(x.sign, x.value) for x in limits(rule.text, "b.c")] == [("<", -0.5), (">", 2.0)]
    assert limits(rule.text, "b") == limits(rule.text, "c") == limits("as the paper says", "a") == []
    assert limits("mean bxc > 1", "b.c") == []
    assert [(x.sign, x.value) for x in limits(between(1, 1e9).text, "value")] == [(">=", 1.0), ("<=", 1e9)]
    assert rule_in_words(rule.text) == "every a at most 0.001 and (mean b.c below −0.5 or median b.c above 2)"


def test_the_side_that_complies_is_tinted(judged, read):
    (card,) = cards([judged({"value": [0.0, 1.0, 2.0]}, rule=at_least(0.5))])["golu"]
    drawn = read(str(card.figures[0].svg))
    limit, tint = place(drawn.one("line", "limit").attributes["x1"]), drawn.one("rect", "allowed").attributes
    assert place(tint["x"]) == pytest.approx(limit, abs=0.02)
    assert place(tint["x"]) + place(tint["width"]) == pytest.approx(100, abs=0.02)
    dots = sorted(place(d.attributes["cx"]) for d in drawn.all("circle", "dot"))
    assert dots[0] < limit < dots[1] < dots[2]
    either = any_of(above(0.5), above(9, of="other"))
    (card,) = cards([judged({"value": [0.0, 1.0], "other": [0.0, 1.0]}, rule=either)])["golu"]
    assert not read(str(card.figures[0].svg)).all("rect", "allowed")
