"""Temperature gates: scores against autograd, EM, losses against hand counts, and the gate's invariance."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.theory._gated_mixture import (
    Mixture,
    fit_em,
    hellinger,
    log_gate,
    log_joint,
    log_likelihood,
    perturbed,
    sample,
    scores,
    voronoi_loss,
)
from workingpapers.papers.theory.dense_to_sparse_gate import (
    GATES,
    DenseToSparseMoE,
    pde_residual,
    score_gram,
    study,
    two_experts,
)


def three(activation: str = "sigmoid") -> Mixture:
    generator = np.random.default_rng(3)
    return Mixture(
        beta1=np.vstack([generator.normal(size=(2, 2)) * 2, np.zeros((1, 2))]),
        beta0=np.array([0.3, -0.2, 0.0]),
        tau=0.7,
        a=generator.normal(size=(3, 2)),
        b=generator.normal(size=3),
        v=np.array([0.2, 0.5, 1.0]),
        activation=activation,
    )


@pytest.mark.parametrize("activation", GATES)
def test_density_and_scores_agree_with_torch(activation: str) -> None:
    m = three(activation)
    x, y = sample(m, 7, np.random.default_rng(0))
    names = ("beta1", "beta0", "tau", "a", "b", "v")
    p = {n: torch.tensor(getattr(m, n), dtype=torch.float64, requires_grad=True) for n in names}
    xs, ys = torch.tensor(x), torch.tensor(y)
    pi = ((GATES[activation]()(xs @ p["beta1"].T) + p["beta0"]) / p["tau"]).softmax(-1)
    normal = torch.distributions.Normal(xs @ p["a"].T + p["b"], p["v"].sqrt())
    log_g = (pi * normal.log_prob(ys[:, None]).exp()).sum(1).log()
    np.testing.assert_allclose(log_gate(m, x), pi.log().detach().numpy(), rtol=1e-12, atol=1e-14)
    assert log_likelihood(m, x, y) == pytest.approx(log_g.mean().item(), rel=1e-12)
    found = scores(m, x, y)
    for i in range(7):
        slopes = torch.autograd.grad(log_g[i], list(p.values()), retain_graph=True)
        for name, slope in zip(names, slopes, strict=True):
            np.testing.assert_allclose(
                found[name][i].reshape(slope.shape), slope.numpy(), rtol=1e-9, atol=1e-12, err_msg=name
            )


def test_only_the_plain_gate_is_blind_to_a_common_factor() -> None:
    x = np.linspace(-1, 1, 20).reshape(10, 2)
    for activation, blind in (("linear", True), ("sigmoid", False), ("tanh", False), ("gelu", False)):
        m = three(activation)
        for c in (0.3, 2.0, 7.0):
            scaled = replace(m, beta1=c * m.beta1, beta0=c * m.beta0, tau=c * m.tau)
            gap = np.abs(np.exp(log_gate(scaled, x)) - np.exp(log_gate(m, x))).max()
            assert (gap < 1e-14) if blind else (gap > 1e-3), (activation, c)


def test_the_differential_equation() -> None:
    for activation in GATES:
        m = three(activation)
        x, y = sample(m, 200, np.random.default_rng(1))
        residual = pde_residual(m, x, y)
        assert (residual < 1e-12) == (activation == "linear"), activation
    values = np.linalg.eigvalsh(score_gram(three("linear"), x, y))
    assert values.shape == (2 * 2 + 2 + 1 + 3 * 2 + 3 + 3,)
    assert abs(values[0]) < 1e-12 * values[-1] < 1e-9 * values[1]


def test_gram_is_the_variance_of_scores() -> None:
    true = two_experts("sigmoid")
    x, y = sample(true, 20_000, np.random.default_rng(0))
    gram = score_gram(true, x, y)
    found = scores(true, x, y)
    assert gram[2, 2] == pytest.approx((found["tau"] ** 2).mean())
    assert gram[0, 1] == pytest.approx((found["beta1"][:, 0, 0] * found["beta0"][:, 0]).mean())
    for name, part in found.items():  # scores at the truth have mean zero
        flat = part.reshape(len(x), -1)
        assert (np.abs(flat.mean(0)) < 5 * flat.std(0) / math.sqrt(len(x)) + 1e-12).all(), name


def test_samples_follow_the_mixture() -> None:
    m = replace(two_experts(), v=np.array([1e-4, 1e-4]))
    x, y = sample(m, 20_000, np.random.default_rng(0))
    assert np.abs(x).max() <= 1
    first = np.abs(y - (2 * x[:, 0] + 0.5)) < np.abs(y - (-2 * x[:, 0] - 0.5))
    clear = np.abs(4 * x[:, 0] + 1) > 0.2
    probability = np.exp(log_gate(m, x))[:, 0]
    gap = float((first[clear] - probability[clear]).mean())
    assert abs(gap) < 4 * 0.5 / math.sqrt(clear.sum())
    high = clear & (x[:, 0] > 0.5)
    assert first[high].mean() == pytest.approx(probability[high].mean(), abs=0.03)


@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
def test_em_climbs_to_a_stationary_point(activation: str) -> None:
    true = two_experts(activation)
    generator = np.random.default_rng(5)
    x, y = sample(true, 600, generator)
    fitted, trace = fit_em(perturbed(true, 0.4, generator), x, y, iterations=400, tolerance=1e-12)
    assert np.diff(trace).min() > -1e-8
    assert trace[-1] >= log_likelihood(true, x, y)
    assert trace[-1] == log_likelihood(fitted, x, y)
    slopes = {name: part.mean(0) for name, part in scores(fitted, x, y).items()}
    assert max(np.abs(slopes[n]).max() for n in ("a", "b", "v")) < 2e-3
    assert fitted.beta1[-1] == 0
    assert fitted.beta0[-1] == 0


def test_one_expert_step_is_least_squares() -> None:
    sharp = replace(two_experts("linear"), beta0=np.array([4000.0, 0.0]), beta1=np.zeros((2, 1)))
    x, y = sample(sharp, 50, np.random.default_rng(0))
    fitted, _ = fit_em(sharp, x, y, iterations=1)
    line = stats.linregress(x[:, 0], y)
    assert fitted.a[0, 0] == pytest.approx(line.slope)
    assert fitted.b[0] == pytest.approx(line.intercept)
    assert fitted.v[0] == pytest.approx(np.mean((y - line.slope * x[:, 0] - line.intercept) ** 2))


def test_voronoi_loss_by_hand() -> None:
    true = two_experts()
    assert voronoi_loss(true, true) == 0
    w = math.exp(-0.5 / 0.4)
    moved = replace(true, b=true.b + np.array([0.1, 0.0]), v=true.v + np.array([0.0, 0.05]))
    assert voronoi_loss(moved, true) == pytest.approx(w * 0.1 + 0.05)
    pick, half = [0, 0, 1], 0.4 * math.log(2)
    double = Mixture(
        true.beta1[pick],
        true.beta0[pick] - np.array([half, half, 0]),
        0.4,
        true.a[pick],
        true.b[pick] + np.array([0.1, -0.2, 0]),
        true.v[pick],
    )
    assert voronoi_loss(double, true) == pytest.approx(w / 2 * (0.1**2 + 0.2**2))
    swapped = replace(true, a=true.a[::-1], b=true.b[::-1], v=true.v[::-1])
    assert voronoi_loss(swapped, true) > 1


def test_hellinger_of_gaussians_in_closed_form() -> None:
    def line(mean: float, v: float) -> Mixture:
        two = np.full(2, 1.0)
        return replace(two_experts(), a=np.zeros((2, 1)), b=mean * two, v=v * two)

    one, other = line(0.0, 1.0), line(0.7, 2.0)
    affinity = math.sqrt(2 * math.sqrt(2) / 3) * math.exp(-(0.7**2) / 12)
    assert hellinger(one, other) == pytest.approx(math.sqrt(1 - affinity), rel=1e-6)
    assert hellinger(one, one) == 0
    y = np.linspace(-9, 9, 2001)
    density = np.exp(log_joint(two_experts(), np.zeros((2001, 1)), y)).sum(1)
    assert integrate.trapezoid(density, y) == pytest.approx(1, abs=1e-9)


def test_study_learns_the_density_and_shares_its_seed() -> None:
    found = study("tanh", (100, 400), 2, seed=4)
    assert found.numbers["density_slope"] < 0
    assert found.numbers == study("tanh", (100, 400), 2, seed=4).numbers
    slope = math.log(found.numbers["loss_400"] / found.numbers["loss_100"]) / math.log(4)
    assert found.numbers["loss_slope"] == pytest.approx(slope)


def test_moe_is_the_weighted_sum_of_its_experts() -> None:
    torch.manual_seed(0)
    moe = DenseToSparseMoE(3, 4).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    moe.bias.data.normal_()
    weights = ((torch.sigmoid(x @ moe.score.weight.T) + moe.bias) / 2.0).softmax(-1)
    torch.testing.assert_close(moe.gate(x), weights)
    expected = sum(weights[:, i : i + 1] * expert(x) for i, expert in enumerate(moe.experts))
    torch.testing.assert_close(moe(x), expected)


def test_moe_cuts_small_weights_and_sharpens() -> None:
    moe = DenseToSparseMoE(3, 4, threshold=0.3, tau_min=0.5)
    moe.bias.data = torch.tensor([3.0, 2.0, 0.0, -1.0])
    torch.nn.init.zeros_(moe.score.weight)
    weights = ((0.5 + moe.bias) / 2).softmax(-1)
    kept = torch.where(weights >= 0.3, weights, 0.0)
    assert 0 < int((kept == 0).sum()) < 4
    torch.testing.assert_close(moe.gate(torch.zeros(1, 3))[0], kept / kept.sum())
    moe.threshold = 0.9
    assert torch.equal(moe.gate(torch.zeros(1, 3))[0], torch.tensor([1.0, 0.0, 0.0, 0.0]))
    taus = []
    for done in (0.0, 0.5, 1.0):
        moe.anneal(done)
        taus.append(moe.tau.item())
    assert taus == pytest.approx([2.0, 1.0, 0.5])


def test_errors_are_one_sentence() -> None:
    with pytest.raises(UnknownName, match="sigmoid"):
        two_experts("sigmoyd")
    with pytest.raises(WorkingPapersError, match="at least 2"):
        study(experts=1)
    with pytest.raises(UnknownName, match="sigmoid"):
        DenseToSparseMoE(3, activation="sigmod")
    with pytest.raises(WorkingPapersError, match="tau_min"):
        DenseToSparseMoE(3, tau=0.1)
    with pytest.raises(WorkingPapersError, match="share of training"):
        DenseToSparseMoE(3).anneal(1.5)
