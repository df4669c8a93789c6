"""Circa: faults counted over every share of small fields, the transform on ReLUs of every form, costs by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.private import circa as module
from workingpapers.papers.private._costs import and_gates, circuit_cost, ratios
from workingpapers.papers.private._shares import MODES, PRIME, fault_probability, share_signs
from workingpapers.papers.private._sites import sites
from workingpapers.papers.private.circa import StochasticReLU, circa, drops, faults, tune_bits
from workingpapers.tasks import cnn, mlp


class Mixed(nn.Module):
    """A block that runs one module twice, and calls ReLU in two further ways."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.one(x))
        x = self.relu(self.two(x))
        return torch.relu(self.three(F.relu(x - 0.1)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_faults_counted_over_every_share_of_a_small_field(mode: str, k: int) -> None:
    p = 257
    t = np.arange(p)
    for v in range(-100, 101):
        s = (v + t) % p
        positive = (s >> k) > (t >> k) if mode == "poszero" else (s >> k) >= (t >> k)
        wrong = int((positive != (v > 0)).sum()) if v else 0
        found = float(fault_probability(torch.tensor(v), k, mode, p))
        assert found == pytest.approx(wrong / p, abs=1e-12), v
        signs = share_signs(torch.tensor(v), torch.from_numpy(t), k, mode, p)
        assert signs.tolist() == positive.tolist()


def test_without_truncation_a_fault_is_a_wrap_around() -> None:
    v = torch.arange(-128, 129)
    for mode in MODES:
        found = fault_probability(v, 0, mode, 257)
        torch.testing.assert_close(found, v.abs().double() / 257)


def test_each_mode_errs_on_its_own_side_only() -> None:
    t = torch.randint(PRIME, (20_000,))
    small = torch.randint(1, 2**12, t.shape)
    no_wrap = (t + small < PRIME) & (t >= small)
    assert not share_signs(-small, t, 12, "poszero")[no_wrap].any()
    assert share_signs(small, t, 12, "negpass")[no_wrap].all()
    large = small + 2**12
    fits = (t + large < PRIME) & (t >= large)
    for mode in MODES:
        assert share_signs(large, t, 12, mode)[fits].all()
        assert not share_signs(-large, t, 12, mode)[fits].any()


def test_the_papers_law_up_to_the_end_of_the_field() -> None:
    v = torch.tensor([10, 1000, 4000, 30_000])
    law = v / PRIME + (1 - v / 2**12).clamp_min(0)
    torch.testing.assert_close(fault_probability(v, 12, "poszero"), law.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(fault_probability(-v, 12, "negpass"), law.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(fault_probability(-v, 12, "poszero"), v.double() / PRIME, atol=1e-12, rtol=0)


@pytest.mark.parametrize("draw", ["law", "shares"])
@pytest.mark.parametrize("mode", MODES)
def test_the_module_draws_faults_by_the_law(draw: str, mode: str) -> None:
    for value in (0.03, -0.03, 0.2, -0.2):
        unit = StochasticReLU(12, mode, draw=draw)
        y = unit(torch.full((20_000,), value))
        assert set(torch.unique(y.abs()).tolist()) <= {0.0, abs(round(value * 2**15) / 2**15)}
        wrong = (y == 0) if value > 0 else (y != 0)
        wanted = float(fault_probability(unit.encode(torch.tensor(value)), 12, mode))
        error = math.sqrt(max(wanted * (1 - wanted), 1e-9) / 20_000)
        assert float(wrong.double().mean()) == pytest.approx(wanted, abs=6 * error + 1e-4)


def test_values_are_rounded_and_wrap_around() -> None:
    unit = StochasticReLU(0, p=257, scale=4.0)
    assert unit.encode(torch.tensor([0.3, -0.3, 32.0, 32.25, -32.25])).tolist() == [1, -1, 128, -128, 128]
    with pytest.raises(WorkingPapersError, match="p=257 and k=9"):
        StochasticReLU(9, p=257)
    with pytest.raises(WorkingPapersError, match="poszero"):
        StochasticReLU(mode="poszer")
    with pytest.raises(WorkingPapersError, match="shares"):
        StochasticReLU(draw="share")


def test_gradients_are_those_of_a_product_with_the_drawn_sign() -> None:
    x = torch.linspace(-1, 1, 101, requires_grad=True)
    unit = StochasticReLU(14)
    y = unit(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert set(slope.tolist()) == {0.0, 1.0}
    assert torch.equal(slope[y != 0], torch.ones(int((y != 0).sum())))
    assert int((slope == 1).sum()) < 51  # some positive ones are zeroed
    assert not slope[:51].any()


def test_every_form_of_relu_is_replaced() -> None:
    model, x = Mixed(), torch.randn(40, 6)
    faulty = circa(model, x, k=0)
    assert set(sites(faulty)) == {"relu", "relu#2", ":relu", ":relu#2"}
    assert all(isinstance(unit, StochasticReLU) for unit, _ in sites(faulty).values())
    torch.testing.assert_close(faulty(x), model(x), atol=2e-3, rtol=0)
    for name, one in faults(faulty, x).items():
        assert one.rate < 1e-4, name
        assert one.overflow == 0
    assert isinstance(model.relu, nn.ReLU)
    with torch.no_grad():
        torch.manual_seed(0)
        zeroed = (circa(model, x, k=30)(x) == 0)[model(x) > 0]
    assert zeroed.all()


def test_the_report_is_the_mean_of_the_law() -> None:
    model, x = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 2)), torch.randn(30, 6)
    faulty = circa(model, x, k=14, mode="negpass")
    v = (model[0](x).double() * 2**15).round().long()
    wanted = float(fault_probability(v, 14, "negpass").mean())
    assert faults(faulty, x)["1"].rate == pytest.approx(wanted)
    assert wanted > 0.01


def test_overflow_is_refused_in_one_sentence() -> None:
    model = mlp([4, 8, 2])
    with pytest.raises(WorkingPapersError, match="take a smaller scale"):
        circa(model, 1e6 * torch.ones(3, 4))
    with pytest.raises(WorkingPapersError, match="no relu"):
        circa(nn.Sequential(nn.Linear(4, 2), nn.GELU()), torch.ones(3, 4))


def test_bits_are_tuned_up_to_the_first_that_costs_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {k: 0.0 if k < 9 else 0.2 if k == 9 else 0.0 for k in range(31)}
    monkeypatch.setattr(module, "drops", lambda model, split, ks, *rest: {k: lost[k] for k in ks})
    x = torch.randn(4, 4)
    split = Split(x, torch.arange(4) % 2, x, torch.arange(4) % 2, 2, "example")
    assert tune_bits(mlp([4, 2]), split) == 8
    lost[0] = 0.5
    with pytest.raises(WorkingPapersError, match="even without dropped bits"):
        tune_bits(mlp([4, 2]), split)


def test_drops_grow_with_the_bits() -> None:
    y = torch.arange(200) % 4
    x = torch.randn(200, 1, 4, 4) + 4 * F.one_hot(y, 16).reshape(-1, 1, 4, 4)
    split = Split(x, y, x, y, 4, "example")
    model = cnn(1, 4, widths=(32,), size=4)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    lost = drops(model, split, [0, 30], draws=1)
    assert abs(lost[0]) < 0.02
    assert lost[30] > 0.3


def test_gates_by_hand() -> None:
    # adder, subtraction and choice twice, a comparison and a selection: (3 + 3 + 1 + 1) gates for each of 31 bits
    assert and_gates("relu") == 248
    assert and_gates("sign") == 155
    assert and_gates("stochastic sign") == 62
    assert and_gates("stochastic sign", dropped=12) == 19 + 31
    cost = circuit_cost("stochastic sign", dropped=12)
    assert cost.stored == 2 * 16 * 50 + 16 * 19 + 3 * 4
    assert ratios(12)["gates"] == pytest.approx(248 / 50)
    with pytest.raises(WorkingPapersError, match="0 to 30"):
        and_gates("stochastic sign", dropped=31)
    with pytest.raises(WorkingPapersError, match="stochastic sign alone"):
        and_gates("relu", dropped=3)


def test_the_field_is_prime() -> None:
    assert PRIME.bit_length() == 31
    assert all(PRIME % d for d in range(2, math.isqrt(PRIME) + 1))


def test_the_catalogue_builds_it() -> None:
    assert isinstance(make("circa.relu", k=3), StochasticReLU)
    assert {c.says for c in claims("circa").values()} == {c["says"] for c in record("circa").claims}
