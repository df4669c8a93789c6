"""Swish and its search: exact values, limits, derivative, expressions as written, and the search itself."""

import math
from functools import partial

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from workingpapers.catalog import make
from workingpapers.engines.expressions import BINARY, UNARY, Expression, expression_space
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.activations._controller import Controller
from workingpapers.papers.activations.swish_search import (
    SWISH,
    SearchedAct,
    Swish,
    Trial,
    child_accuracy,
    fingerprint,
    ranked,
    search,
    swish,
)

GRID = torch.linspace(-8, 8, 801, dtype=torch.float64)


def test_value_and_slope_at_zero() -> None:
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    y = swish(x)
    assert y.item() == 0
    assert torch.autograd.grad(y, x)[0].item() == 0.5


def test_the_minimum() -> None:
    found = minimize_scalar(lambda x: swish(torch.tensor(x, dtype=torch.float64)).item(), bracket=(-3, -1, 0))
    assert found.x == pytest.approx(-1.27846, abs=1e-5)
    assert found.fun == pytest.approx(-0.27846, abs=1e-5)


def test_limits_in_beta() -> None:
    torch.testing.assert_close(swish(GRID, 0.0), GRID / 2)
    torch.testing.assert_close(swish(GRID, 1e6), GRID.relu(), atol=1e-6, rtol=0)
    torch.testing.assert_close(Swish()(GRID), nn.SiLU()(GRID))


@pytest.mark.parametrize("beta", [0.3, 1.0, 2.5])
def test_the_derivative_is_the_papers(beta: float) -> None:
    x = GRID.clone().requires_grad_()
    f = swish(x, beta)
    (slope,) = torch.autograd.grad(f.sum(), x)
    torch.testing.assert_close(slope, (beta * f + torch.sigmoid(beta * x) * (1 - beta * f)).detach())


def test_a_beta_for_each_channel() -> None:
    act = Swish(trainable=True, channels=3)
    with torch.no_grad():
        act.beta.copy_(torch.tensor([0.0, 1.0, 2.0]))  # type: ignore[union-attr]
    x = torch.randn(2, 3, 4, 5)
    wanted = torch.stack([x[:, c] * torch.sigmoid(c * x[:, c]) for c in range(3)], 1)
    torch.testing.assert_close(act(x), wanted)
    assert sum(p.numel() for p in act.parameters()) == 3
    assert not list(Swish().parameters())


def test_swish_is_in_the_space() -> None:
    assert str(SWISH) == "sigmoid(x)*x"
    torch.testing.assert_close(SWISH(GRID), nn.SiLU()(GRID))
    point = {"u1": "{x}", "v1": "{x}", "b1": "sigmoid({a})*{b}"}
    assert Expression.of(point) == SWISH
    assert all(value in expression_space()[name] for name, value in point.items())
    sizes = [len(choices) for choices in expression_space(2).values()]
    assert sizes == [25, 25, 10, 25, 25, 10]


SCALAR = {
    "sqrt|{x}|": lambda x: math.sqrt(abs(x)),
    "log|{x}|": lambda x: math.log(abs(x)),
    "{x}^3": lambda x: x**3,
    "sinc({x})": lambda x: math.sin(x) / x,
    "min({x}, 0)": lambda x: min(x, 0.0),
    "max({x}, 0)": lambda x: max(x, 0.0),
    "log(1 + exp({x}))": lambda x: math.log1p(math.exp(x)),
    "exp(-{x}^2)": lambda x: math.exp(-x * x),
    "erf({x})": math.erf,
    "asinh({x})": math.asinh,
    "sigmoid({x})": lambda x: 1 / (1 + math.exp(-x)),
    "beta*{x}": lambda x: 0.6 * x,
    "({x} + beta)": lambda x: x + 0.6,
    "beta": lambda x: 0.6,
}


@pytest.mark.parametrize("name", SCALAR)
def test_unary_pieces_mean_what_they_say(name: str) -> None:
    x = torch.tensor([-2.3, -0.4, 0.7, 1.9], dtype=torch.float64)
    wanted = torch.tensor([SCALAR[name](v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(UNARY[name].apply(x, 0.6), wanted, atol=2e-5, rtol=1e-4)


def test_all_pieces_agree_with_their_text() -> None:
    words = {
        "exp": math.exp,
        "sigmoid": SCALAR["sigmoid({x})"],
        "beta": 0.6,
        "eps": 1e-5,
        "max": max,
        "min": min,
    }
    a, b = 0.8, -1.7
    for text, piece in BINARY.items():
        code = text.format(a="a", b="b").replace("|a - b|", "abs(a - b)").replace("^", "**")
        found = piece.apply(torch.tensor(a).double(), torch.tensor(b).double(), 0.6).item()
        assert found == pytest.approx(eval(code, {**words, "a": a, "b": b})), text


@pytest.mark.parametrize("name", UNARY)
def test_pieces_have_finite_slopes_near_zero(name: str) -> None:
    x = torch.tensor([-1.0, -1e-7, 0.0, 1e-7, 1.0], dtype=torch.float64, requires_grad=True)
    y = UNARY[name].apply(x, 0.6)
    (slope,) = torch.autograd.grad(y.sum() + 0 * x.sum(), x)
    assert bool(torch.isfinite(y).all() and torch.isfinite(slope).all())


def test_two_cores_chain_and_betas_go_in_order() -> None:
    e = Expression(
        (("beta*{x}", "{x}", "({a} - {b})"), ("{x}^2", "({x} + beta)", "(beta*{a} + (1 - beta)*{b})"))
    )
    assert e.betas == 3
    x = torch.tensor([0.5, -2.0]).double()
    first = 3 * x - x
    torch.testing.assert_close(e(x, [3.0, 5.0, 0.25]), 0.25 * first**2 + 0.75 * (x + 5))
    assert str(e) == "(beta*(beta*x - x)^2 + (1 - beta)*(x + beta))"
    act = SearchedAct(e, channels=2)
    assert [p.shape for p in act.parameters()] == [(2,)] * 3


def test_fingerprints_tell_functions_apart_and_see_through_spelling() -> None:
    def mark(u: str, v: str, b: str) -> bytes:
        return fingerprint({"u1": u, "v1": v, "b1": b})

    assert mark("{x}", "sigmoid({x})", "{a}*{b}") == mark("{x}", "{x}", "sigmoid({a})*{b}")
    assert mark("max({x}, 0)", "min({x}, 0)", "({a} + {b})") == mark("{x}", "{x}", "max({a}, {b})")
    assert mark("{x}", "{x}", "{a}*{b}") != mark("{x}", "{x}^2", "{a}*{b}")
    assert mark("beta*{x}", "{x}", "max({a}, {b})") != mark("{x}", "{x}", "max({a}, {b})")


def test_enumeration_tries_every_point_once() -> None:
    space = {"a": [1, 2, 3], "b": ["x", "y"]}
    trials = search(space, lambda p: p["a"] * (2 if p["b"] == "y" else 1), 100, seed=3)
    assert sorted((t.point["a"], t.point["b"]) for t in trials) == [(a, b) for a in (1, 2, 3) for b in "xy"]
    assert max(trials, key=lambda t: t.value) == Trial({"a": 3, "b": "y"}, 6.0)


def test_points_that_are_the_same_are_evaluated_once() -> None:
    asked = []
    search({"a": list(range(10))}, lambda p: asked.append(p["a"]) or 0.0, 10, same=lambda p: p["a"] % 3)
    assert sorted(a % 3 for a in asked) == [0, 1, 2]


def test_the_controller_learns_what_is_rewarded() -> None:
    controller, generator = Controller([4, 4], seed=0), torch.Generator().manual_seed(0)
    for _ in range(30):
        batch = [controller.draw(generator) for _ in range(8)]
        controller.learn(batch, [float(c[0] == 2) + float(c[1] == 3) for c in batch])
    drawn = [controller.draw(generator) for _ in range(50)]
    assert sum(c == [2, 3] for c in drawn) > 25
    _, log, entropy = controller(torch.cartesian_prod(torch.arange(4), torch.arange(4)))
    assert float(log.detach().exp().sum()) == pytest.approx(1, abs=1e-5)
    assert bool((entropy >= 0).all())


def test_failures_are_the_worst() -> None:
    def objective(point: dict[str, int]) -> float:
        if point["a"] == 1:
            raise RuntimeError("no")
        return math.nan if point["a"] == 2 else 0.5

    values = {t.point["a"]: t.value for t in search({"a": [0, 1, 2]}, objective, 9)}
    assert values == {0: 0.5, 1: -math.inf, 2: -math.inf}


def test_ranking_gives_text_module_and_value() -> None:
    points = [{"u1": "{x}", "v1": "{x}", "b1": b} for b in ("{a}*{b}", "sigmoid({a})*{b}")]
    (text, module, value), second = ranked([Trial(p, v) for p, v in zip(points, (0.1, 0.9), strict=True)])
    assert (text, value, second[0]) == ("sigmoid(x)*x", 0.9, "x*x")
    torch.testing.assert_close(module(GRID), nn.SiLU()(GRID))


def test_a_diverging_child_counts_as_zero() -> None:
    from workingpapers.data import images

    split = images("digits", train=160, test=50)
    blown = Expression((("exp({x})", "exp({x})", "{a}*{b}"),) * 3)
    assert child_accuracy(split, partial(SearchedAct, blown), (0,)) == 0.0
    assert child_accuracy(split, nn.ReLU, (0,), epochs=10) > 0.3


def test_bad_input_is_named() -> None:
    with pytest.raises(WorkingPapersError, match="trainable=True"):
        make("swish_search.swish", channels=3)
    with pytest.raises(UnknownName, match="search method"):
        search({"a": [1]}, lambda p: 0.0, 1, method="enumrate")
    with pytest.raises(WorkingPapersError, match="'a' has"):
        search({"a": (0.0, 1.0)}, lambda p: 0.0, 1)  # type: ignore[dict-item]
    with pytest.raises(UnknownName, match="unary piece"):
        Expression((("{y}", "{x}", "{a}*{b}"),))
    with pytest.raises(WorkingPapersError, match="1 parameters beta; got 0"):
        Expression((("beta*{x}", "{x}", "{a}*{b}"),))(GRID)
    with pytest.raises(WorkingPapersError, match="u1, v1, b1"):
        Expression.of({"u1": "{x}"})
