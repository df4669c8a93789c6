"""Rationals in 50 digits, their fits, closure under skips; deep Q-learning's parts by hand."""

import operator
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from tests.exact import expect_exact
from torch import Tensor, nn

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.kernels.fusion import fusing
from workingpapers.papers.activations import _rational
from workingpapers.papers.activations._dqn import Played, Replay, environment, play, td_loss
from workingpapers.papers.activations._rational import BASES, evaluate, fit_rational, rational
from workingpapers.papers.activations.adaptive_rationals import (
    Rational,
    Skip,
    add_identity,
    input_histograms,
    is_activation,
    movement,
    parameter_groups,
    relearn,
    replace_activations,
    residual_absorb,
)
from workingpapers.tasks import mlp

A, B = [0.5, 1.0, 0.25, 0.5], [0.25, 0.0, 0.75]


def quotient(x, version: str):  # type: ignore[no-untyped-def]
    """Return P / Q and its derivative by the quotient rule."""
    p, dp = sum(a * x**j for j, a in enumerate(A)), sum(j * a * x ** (j - 1) for j, a in enumerate(A) if j)
    terms = [b * x**k for k, b in enumerate(B, 1)]
    slopes = [k * b * x ** (k - 1) for k, b in enumerate(B, 1)]
    if version == "A":
        signs = [(t > 0) - (t < 0) for t in terms]
        q, dq = 1 + sum(map(abs, terms)), sum(map(operator.mul, signs, slopes))
    else:
        sign = -1 if version == "B" and sum(terms) < 0 else 1
        q, dq = 1 + sign * sum(terms), sign * sum(slopes)
    return p / q, (dp * q - p * dq) / q**2


@pytest.mark.parametrize("version", ["A", "B"])
def test_rationals_in_fifty_digits(version: str) -> None:
    a, b = torch.tensor(A), torch.tensor(B)
    # P cancels between its terms for negative x, by up to 10 times where the slope is near 0
    expect_exact(
        lambda x: rational(x, a, b, version),
        lambda x: quotient(x, version)[0],
        lambda x: quotient(x, version)[1],
        ulps=64,
        every=5,
    )


@pytest.mark.parametrize("version", list(_rational.VERSIONS))
@pytest.mark.parametrize("degrees", [(5, 4), (2, 3), (4, 4), (0, 1), (6, 3)])
def test_values_are_those_of_the_definition(version: str, degrees: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=degrees[0] + 1), 0.05 * np.abs(rng.normal(size=degrees[1]))
    x = np.linspace(-3, 3, 101) if version != "plain" else np.linspace(-0.9, 3, 101)
    found = rational(torch.tensor(x), torch.tensor(a), torch.tensor(b), version)
    np.testing.assert_allclose(found.numpy(), evaluate(x, a, b, version), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("version", list(_rational.VERSIONS))
def test_gradients_of_inputs_and_coefficients(version: str) -> None:
    x = torch.tensor([-2.5, -0.7, 0.3, 0.99, 1.01, 4.0], dtype=torch.float64, requires_grad=True)
    a, b = (torch.tensor(c, dtype=torch.float64, requires_grad=True) for c in (A, [0.2, 0.3, 0.11]))
    assert torch.autograd.gradcheck(lambda *t: rational(*t, version), (x, a, b))


def test_no_finite_input_overflows() -> None:
    x = torch.tensor([-1e30, -1e10, 1e10, 1e30], requires_grad=True)
    y = Rational()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    a5, b4 = 0.15, 0.30
    assert torch.isfinite(y).all()
    assert torch.allclose(slope, slope[0].expand(4), rtol=1e-3)  # a line far out
    assert slope[0].item() == pytest.approx(a5 / b4, rel=0.05)


def test_with_unit_numerator_and_no_denominator_it_is_the_identity() -> None:
    x = torch.linspace(-1e4, 1e4, 2001)
    b = torch.zeros(4, requires_grad=True)
    y = rational(x, torch.tensor([0.0, 1.0, 0, 0, 0, 0]), b)
    torch.testing.assert_close(y, x, rtol=1e-6, atol=0)
    y.sum().backward()
    assert b.grad is not None
    assert (b.grad != 0).any()  # else a fit to a polynomial would never learn its denominator


@pytest.mark.parametrize(
    ("base", "most"), [("leaky_relu", 0.04), ("tanh", 1e-5), ("gelu", 2e-3), ("swish", 1e-4)]
)
def test_fits_come_near(base: str, most: float) -> None:
    x = np.linspace(-3, 3, 3001)
    a, b = fit_rational(base)
    assert np.abs(evaluate(x, a, b, "B") - BASES[base](x)).max() < most
    module = Rational(base).double()
    np.testing.assert_allclose(module(torch.tensor(x)).detach(), BASES[base](x), atol=most + 1e-5)


def test_a_rational_base_is_found_again() -> None:
    def base(x: np.ndarray) -> np.ndarray:
        return np.asarray((1 + 2 * x - x**3) / (1 + np.abs(0.5 * x**2)))

    a, b = fit_rational(base, (3, 2))
    np.testing.assert_allclose(a, [1, 2, 0, -1], atol=1e-6)
    np.testing.assert_allclose(np.abs(b), [0, 0.5], atol=1e-6)


def test_adding_the_identity() -> None:
    rng = np.random.default_rng(1)
    for degrees in ((5, 4), (4, 2)):
        a, b = torch.tensor(rng.normal(size=degrees[0] + 1)), torch.tensor(0.1 * rng.uniform(size=degrees[1]))
        x = torch.linspace(-0.9, 9, 1000, dtype=torch.float64)
        expected = rational(x, a, b, "plain") + x
        torch.testing.assert_close(
            rational(x, add_identity(a, b), b, "plain"), expected, rtol=1e-6, atol=1e-6
        )
    with pytest.raises(WorkingPapersError, match=r"degree 5, which takes m > n; got \(4, 4\)"):
        add_identity(torch.ones(5), torch.ones(4))


def test_skips_are_absorbed_once_each_even_where_shared() -> None:
    shared = Rational("tanh", version="plain")
    model = nn.Sequential(Skip(shared), nn.Linear(3, 3), Skip(shared), Skip(nn.ReLU()))
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    found = residual_absorb(model)
    torch.testing.assert_close(found(x), model(x), rtol=1e-5, atol=1e-5)
    assert [type(m) for m in found] == [Rational, nn.Linear, Rational, Skip]
    with pytest.raises(WorkingPapersError, match="got version 'B'"):
        residual_absorb(Skip(Rational()))
    with pytest.raises(WorkingPapersError, match="takes m > n"):
        residual_absorb(Skip(Rational(degrees=(4, 4), version="plain")))


def test_joint_rationals_are_one() -> None:
    model = nn.Sequential(mlp([4, 8, 8, 2]), nn.GELU(), nn.Softmax(-1))
    joint, each = replace_activations(model), replace_activations(model, share=False)
    found = [m for m in joint.modules() if isinstance(m, Rational)]
    assert len(found) == 1
    assert joint[0][2] is joint[0][4] is joint[1]  # type: ignore[index]
    assert sum(isinstance(m, Rational) for m in each.modules()) == 3
    assert isinstance(joint[2], nn.Softmax)  # type: ignore[index]
    assert not is_activation("", nn.MultiheadAttention(4, 1))
    assert is_activation("", Rational())


def test_coefficients_have_a_group_of_their_own() -> None:
    model = replace_activations(mlp([4, 8, 8, 2]))
    rest, own = parameter_groups(model, 1e-3, 1e-2, weight_decay=0.1)
    assert [p.numel() for p in own["params"]] == [6, 4]
    assert (own["lr"], own["weight_decay"], rest["lr"], rest["weight_decay"]) == (1e-2, 0.0, 1e-3, 0.1)
    assert len(rest["params"]) == 6
    assert len(parameter_groups(mlp([4, 8, 2]), 1e-3)) == 1


def test_histograms_and_movement() -> None:
    model = nn.Sequential(nn.Identity(), Rational())
    counts, edges = input_histograms(model, torch.tensor([0.0, 0.1, 0.9, 1.0]), bins=2)["1"]
    assert counts.tolist() == [2, 2]
    assert edges.tolist() == pytest.approx([0, 0.5, 1])
    other = Rational()
    with torch.no_grad():
        other.numerator[0] += 0.25
    assert movement(Rational(), other) == pytest.approx(0.25, rel=1e-3)  # where Q is 1


def test_an_unpickled_rational_makes_its_formula_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = pickle.dumps(Rational("tanh", (3, 2)))
    monkeypatch.setattr(_rational, "_known", {})
    module = pickle.loads(stored)
    assert (3, 2, "B") in _rational._known
    torch.testing.assert_close(module(torch.ones(1)), Rational("tanh", (3, 2))(torch.ones(1)))


def test_fused_kernels_agree() -> None:
    found = []
    for mode in ("never", "always"):
        module = Rational("gelu")
        x = (3 * torch.randn(9, 16, generator=torch.Generator().manual_seed(0))).requires_grad_()
        with fusing(mode):
            y = module(x)
            y.square().sum().backward()
        found.append((y.detach(), x.grad, module.numerator.grad, module.denominator.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_bad_options_are_refused() -> None:
    with pytest.raises(UnknownName, match="'leaky_relu'"):
        Rational("leaky")
    with pytest.raises(UnknownName, match="version of the denominator"):
        Rational(version="C")
    with pytest.raises(WorkingPapersError, match=r"got \(5, 0\)"):
        Rational(degrees=(5, 0))


class Table(nn.Module):
    """Action values looked up by the number that is the state."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, state: Tensor) -> Tensor:
        return self.rows[state[:, 0].long()]


def test_the_loss_of_deep_q_learning_by_hand() -> None:
    network, target = Table([[1.0, 2.0], [5.0, 4.0]]), Table([[0.0, 0.0], [10.0, 20.0]])
    step = (torch.zeros(1, 1), torch.tensor([1]), torch.tensor([0.5]), torch.ones(1, 1), torch.zeros(1))
    # simple: 0.5 + 0.9 * 20; double: the network prefers action 0 in state 1, which the target values 10
    for double, wanted in ((False, 18.5), (True, 9.5)):
        assert td_loss(network, target, step, 0.9, double).item() == pytest.approx(wanted - 2 - 0.5)
    ended = (*step[:4], torch.ones(1))
    assert td_loss(network, target, ended, 0.9, False).item() == pytest.approx(1.5 - 0.5)


def test_replay_forgets_the_oldest() -> None:
    replay = Replay(3, 1)
    for n in range(5):
        replay.add(torch.tensor([float(n)]), n, float(n), torch.tensor([n + 1.0]), n == 4)
    states, actions, rewards, after, ends = replay.draw(200, torch.Generator().manual_seed(0))
    assert set(actions.tolist()) == {2, 3, 4}
    assert torch.equal(states[:, 0], rewards)
    assert torch.equal(after[:, 0], rewards + 1)
    assert torch.equal(ends, (rewards == 4).float())


class Corridor:
    """One state; action 1 earns 1, action 0 nothing; four steps an episode."""

    class _Space:
        shape = (1,)
        n = 2

    observation_space = action_space = _Space()

    def __init__(self) -> None:
        self.left = 0

    def reset(self, seed: int | None = None) -> tuple[Any, dict]:
        self.left = 4
        return np.ones(1, dtype=np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.left -= 1
        return np.ones(1, dtype=np.float32), float(action), self.left == 0, False, {}


@pytest.mark.parametrize("double", [False, True])
def test_the_trainer_learns_what_pays(double: bool) -> None:
    network, seen = nn.Linear(1, 2), []
    optimizer = torch.optim.Adam(network.parameters(), 0.05)
    played = play(
        network,
        Corridor(),
        optimizer,
        steps=800,
        double=double,
        watch=lambda step, net, x: seen.append((step, tuple(x.shape))),
    )
    assert played.greedy == [4.0] * 10
    assert len(played.returns) == 200
    assert sum(played.returns[-20:]) > 70
    assert seen[0] == (560, (500, 1))
    assert Played(network, [0.0] * 30, [3.0] * 10).score == pytest.approx(1.0)


def test_environments_that_do_not_fit_are_refused() -> None:
    pytest.importorskip("gymnasium")
    with pytest.raises(WorkingPapersError, match="makes no environment 'NoSuch-v1'"):
        environment("NoSuch-v1")
    with pytest.raises(WorkingPapersError, match="Pendulum-v1 has others"):
        environment("Pendulum-v1")
    assert environment("CartPole-v1").action_space.n == 2


def test_relearning_renames_the_classes() -> None:
    y = torch.arange(3).repeat(20)
    x = nn.functional.one_hot(y, 3).float()
    torch.manual_seed(0)
    found = relearn(mlp([3, 32, 3]), x, y, tasks=3, steps=150, seed=0)
    assert found == [1.0, 1.0, 1.0]
