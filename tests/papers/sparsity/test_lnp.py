"""LNP: neurons that decay exactly, covariances and exponents by other ways, sampling right on the average."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workingpapers.catalog import make
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.sparsity._noise_pruning import (
    as_array,
    bayesian,
    central,
    chances,
    covariance,
    delocalised,
    exponents,
    harmonic_means,
    jacobian,
    participation,
    sampled,
    scores,
    similarity,
)
from workingpapers.papers.sparsity._spiking import HRSNN, Spike, lorenz, mackey_glass, rate_coded, ridge
from workingpapers.papers.sparsity._spiking_runs import kept, ported, pruned
from workingpapers.papers.sparsity.lnp import changed_times, lnp, retuned
from workingpapers.tasks import initialise


def network(neurons: int = 30, **options: Any) -> HRSNN:
    return initialise(lambda: HRSNN(2, 3, neurons=neurons, connectivity=0.4, **options), 5)


def random_weights(size: int = 12, seed: int = 0) -> Any:
    chance = np.random.default_rng(seed)
    return np.where(chance.random((size, size)) < 0.5, chance.standard_normal((size, size)), 0.0)


def test_a_neuron_without_input_decays_exactly() -> None:
    model = network(heterogeneous=True)
    with torch.no_grad():
        model.weight.zero_()
    v = torch.full((1, 30), 0.9)
    for _ in range(25):
        v = model.step(v, torch.zeros(1, 30), torch.zeros(1, 30)).detach()
    torch.testing.assert_close(v[0], 0.9 * torch.exp(-25 / model.tau))
    assert float(model.tau.std()) > 3
    assert set(network(heterogeneous=False).tau.tolist()) == {20.0}


def test_networks_start_as_told() -> None:
    model = initialise(lambda: HRSNN(2, 3, neurons=200), 1)
    w = as_array(model.weight)
    assert np.abs(np.linalg.eigvals(w)).max() == pytest.approx(1, rel=1e-4)
    assert (w[:, :160] >= 0).all()
    assert (w[:, 160:] <= 0).all()
    assert (np.diag(w) == 0).all()
    assert np.count_nonzero(w) == pytest.approx(4000, abs=6 * 60)
    assert float(model.tau.mean()) == pytest.approx(20, abs=6 * 20 / math.sqrt(3 * 200))
    with pytest.raises(WorkingPapersError, match="at least 2 neurons"):
        HRSNN(1, 1, neurons=1)


def test_runs_by_hand() -> None:
    model = network(4, coupling=7.0, input_scale=6.0)
    x = torch.rand(2, 40, 2) * 4
    potentials, fired = (t.detach() for t in model.run(x))
    v, s, trace, traces = torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 4), []
    for t in range(40):
        for b in range(2):
            for i in range(4):
                v[b, i] = 0 if s[b, i] else v[b, i]
            drive = model.inputs.detach() @ x[b, t] + model.current + 7 * (model.weight.detach() @ s[b])
            v[b] += (1 - torch.exp(-1 / model.tau)) * (drive - v[b])
        s = (v >= 1).float()
        torch.testing.assert_close(potentials[:, t], v, atol=1e-5, rtol=1e-4)
        assert torch.equal(fired[:, t], s)
        trace = math.exp(-1 / 20) * trace + s
        traces.append(trace)
    assert float(fired.mean()) > 0.01
    torch.testing.assert_close(model.traces(x).detach(), torch.stack(traces, 1))
    torch.testing.assert_close(model(x), model.readout(trace))


def test_surrogate_gradients_reach_the_synapses() -> None:
    v = torch.tensor([0.5, 1.0, 1.3], requires_grad=True)
    Spike.apply(v).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(v.grad, torch.tensor([1 / 36, 1.0, 1 / 16]))
    model = network(input_scale=6.0)
    model(torch.rand(2, 20, 2) * 4).square().sum().backward()
    assert model.weight.grad is not None
    assert (model.weight.grad[~model.mask] == 0).all()  # pruned synapses stay away
    assert model.weight.grad.abs().sum() > 0


def test_covariances_solve_lyapunovs_equation() -> None:
    weight, tau = 3 * random_weights(20), np.random.default_rng(1).gamma(3, 7, 20)
    stable = jacobian(weight, tau)
    assert np.linalg.eigvals(stable).real.max() < 0
    c = covariance(stable, 0.7)
    np.testing.assert_allclose(stable @ c + c @ stable.T, -0.49 * np.eye(20), atol=1e-8)
    calm = jacobian(0.01 * weight, tau)  # stable as it is
    np.testing.assert_allclose(calm, np.diag(1 / tau) @ (0.01 * weight - np.eye(20)), atol=1e-12)
    lone = covariance(jacobian(np.zeros((3, 3)), np.array([1.0, 2.0, 4.0])))
    np.testing.assert_allclose(lone, np.diag([0.5, 1.0, 2.0]))  # sigma^2 tau / 2


def test_exponents_of_lone_neurons_and_of_volumes() -> None:
    model = network(10)
    with torch.no_grad():
        model.weight.zero_()
    np.testing.assert_allclose(exponents(model), -1 / as_array(model.tau), rtol=1e-6)
    model = network(10, coupling=10.0)
    found = exponents(model, steps=12, every=3, seed=2)
    noise = 0.5 * torch.randn(1, 12, 10, generator=torch.Generator().manual_seed(2))
    potentials = model.run(torch.zeros(1, 12, 2), noise)[0][0].detach()
    decay = torch.exp(-1 / model.tau)

    def smooth(v: Tensor) -> Tensor:
        return decay * v + (1 - decay) * 10 * (Spike.apply(v) @ model.weight.detach().T)  # type: ignore[no-any-return]

    steps = [torch.autograd.functional.jacobian(smooth, v).double() for v in potentials]
    volume = sum(float(j.det().abs().log()) for j in steps) / 12
    assert found.sum() == pytest.approx(volume, rel=1e-3, abs=1e-3)
    q = torch.eye(10, dtype=torch.float64)
    whole = torch.zeros(10, dtype=torch.float64)
    for j in steps:
        q, r = torch.linalg.qr(j @ q)
        whole += r.diagonal().abs().log()
    np.testing.assert_allclose(found, whole / 12, rtol=1e-2, atol=1e-3)  # however often it is made orthogonal


def test_harmonic_means_over_the_neighbours_of_both_ends() -> None:
    on = random_weights(9) != 0
    on = on | on.T
    values = np.random.default_rng(3).random(9) + 0.1
    found = harmonic_means(on, values)
    for i in range(9):
        for j in range(9):
            near = [k for k in range(9) if on[i, k] or on[j, k]]
            assert found[i, j] == pytest.approx(len(near) / sum(1 / values[k] for k in near))
    assert harmonic_means(np.zeros((2, 2), bool), values[:2])[0, 1] == 1


def test_scores_of_excitation_and_inhibition() -> None:
    weight = random_weights()
    c = covariance(jacobian(weight, np.full(12, 20.0)))
    values = -np.random.default_rng(3).random(12) - 0.1
    found = scores(weight, c, values)
    on = weight != 0
    means = harmonic_means(on | on.T, np.abs(values))
    by_hand = np.zeros_like(weight)
    for i, j in zip(*np.nonzero(weight), strict=True):
        sign = -1 if weight[i, j] > 0 else 1
        by_hand[i, j] = means[i, j] * abs(weight[i, j]) * (c[i, i] + c[j, j] + sign * 2 * c[i, j])
    least = 0.01 * by_hand[on].mean()
    np.testing.assert_allclose(found[on], np.maximum(by_hand[on], least))
    assert (found[~on] == 0).all()


def test_sampling_keeps_the_weights_on_the_average() -> None:
    weight = random_weights(10)
    odds = chances(np.abs(weight), 20)
    assert odds.sum() == pytest.approx(20)
    assert odds.max() <= 1
    free = (odds > 0) & (odds < 1)
    ratio = odds[free] / np.abs(weight)[free]
    np.testing.assert_allclose(ratio, ratio[0])
    draws = np.stack([sampled(weight, odds, seed) for seed in range(1000)])
    deviation = (
        np.abs(weight) * np.sqrt(np.where(odds > 0, 1 / np.where(odds > 0, odds, 1) - 1, 0)) / math.sqrt(1000)
    )
    assert (np.abs(draws.mean(0) - weight) <= 5 * deviation + 1e-12).all()
    assert np.count_nonzero(draws, (1, 2)).mean() == pytest.approx(20, abs=0.8)
    np.testing.assert_array_equal(chances(np.abs(weight), 1000), weight != 0)


def test_central_neurons_are_on_the_shortest_paths() -> None:
    path = np.zeros((6, 6))
    for k in range(5):
        path[k + 1, k] = 1.0  # from k to k + 1
    assert central(path, 2).tolist() == [2, 3]
    assert central(path, 4).tolist() == [1, 2, 3, 4]
    assert central(np.diag([1.0, 3.0, 2.0]), 1).tolist() == [1]


def test_weak_synapses_spread_the_eigenvectors() -> None:
    assert participation(np.diag([1.0, 2.0, 3.0, 4.0])) == pytest.approx(1)
    circle = np.roll(np.eye(8), 1, 1)
    assert participation(circle) == pytest.approx(1 / 8)
    blocks: Any = np.kron(np.diag([1.0, 0.98, 1.02, 0.99, 1.01, 1.03]), np.ones((4, 4)))
    inhibits = np.arange(24) % 5 == 0
    found = delocalised(blocks, inhibits, 0.1, seed=0)
    assert participation(found) < 0.8 * participation(blocks)
    new = (found != 0) & (blocks == 0)
    assert np.array_equal(found[~new], blocks[~new])
    size = 0.1 * np.abs(blocks[blocks != 0]).mean()
    np.testing.assert_allclose(found[new], np.where(np.broadcast_to(inhibits, (24, 24))[new], -size, size))
    assert np.array_equal(delocalised(blocks, inhibits, 1.0, seed=0), blocks)


def test_bayesian_optimisation_finds_the_top_of_a_hill() -> None:
    seen = []

    def hill(p: Any) -> float:
        seen.append(p)
        return -float((p[0] - 0.4) ** 2 + 2 * (p[1] + 0.3) ** 2)

    best = bayesian(hill, np.zeros(2), 20, seed=0)
    assert len(seen) == 20
    assert (seen[0] == 0).all()
    assert hill(best) > -0.02  # chance comes so near once in fifty points


def test_spectra_are_compared_by_quantiles() -> None:
    spectrum = np.linspace(-3, 0, 50)
    assert similarity(spectrum, spectrum) == 0
    assert similarity(spectrum - 0.5, spectrum) == pytest.approx(-1)  # half for the shift, half for its top
    assert similarity(np.linspace(-3, 0, 20), spectrum) == pytest.approx(0)


def test_time_constants_move_in_level_and_spread() -> None:
    tau = torch.tensor([10.0, 20.0, 30.0])
    assert torch.equal(changed_times(tau, np.zeros(2)), tau)
    torch.testing.assert_close(changed_times(tau, np.array([1.0, 0.0])), 2 * tau)
    torch.testing.assert_close(changed_times(tau, np.array([0.0, 1.0])), torch.tensor([5.0, 20.0, 45.0]))
    torch.testing.assert_close(
        changed_times(torch.full((3,), 8.0), np.array([-1.0, 1.0])), torch.full((3,), 4.0)
    )
    model = network(12)
    slow = copy.deepcopy(model)
    slow.tau = changed_times(model.tau, np.array([0.8, 0.0]))
    spectrum = exponents(slow)
    model.tau = retuned(model, spectrum, 10)
    assert similarity(exponents(model), spectrum) >= similarity(exponents(network(12)), spectrum)


def test_lnp_gives_small_sparse_networks() -> None:
    model = network(40)
    found: Any = make("lnp", keep_edges=0.3, keep_nodes=0.25, evaluations=2)(model)
    assert len(found.tau) == 10
    assert found.weight.shape == (10, 10)
    assert found.inputs.shape == (10, 2)
    assert found.readout.weight.shape == (3, 10)
    assert torch.equal(found.mask, found.weight != 0)
    assert found(torch.randn(2, 6, 2)).shape == (2, 3)
    whole: Any = lnp(model, keep_edges=1.0, keep_nodes=1.0, spread=1.0, evaluations=0)
    torch.testing.assert_close(whole.weight, model.weight)
    torch.testing.assert_close(whole(torch.ones(1, 9, 2)), model(torch.ones(1, 9, 2)))
    some: Any = lnp(model, keep_edges=0.3, keep_nodes=1.0, spread=1.0, evaluations=0)
    left = some.mask & model.mask
    assert torch.equal(some.mask, left)
    assert int(left.sum()) == pytest.approx(0.3 * int(model.mask.sum()), abs=60)
    assert (some.weight[left].abs() >= model.weight[left].abs() * 0.999).all()
    assert torch.equal(some.tau, model.tau)
    with pytest.raises(WorkingPapersError, match="a recurrent spiking network, HRSNN; got Linear"):
        lnp(nn.Linear(2, 2))
    with pytest.raises(WorkingPapersError, match=r"lie in \(0, 1\]; got 0"):
        lnp(model, keep_edges=0)


def test_smaller_networks_are_those_of_the_neurons_left() -> None:
    model = network(8, input_scale=6.0)
    rest = np.array([1, 3, 4, 7])
    with torch.no_grad():  # what the others send counts for nothing
        gone = [0, 2, 5, 6]
        model.weight[:, gone] = 0
        model.readout.weight[:, gone] = 0
    small = kept(model, rest, as_array(model.weight))
    x = torch.rand(3, 25, 2) * 4
    torch.testing.assert_close(small(x), model(x))
    assert float(model.traces(x).detach().abs().sum()) > 0


def test_other_ways_to_prune() -> None:
    model = network(20, input_scale=6.0)
    x = torch.rand(4, 30, 2) * 4
    for by in ("random", "magnitude", "activity"):
        small = pruned(model, 25, 10, by, x)
        assert len(small.tau) == 10
        assert int(small.mask.sum()) <= 25
        assert int((small.weight != 0).sum()) == int(small.mask.sum())
        assert set(small.weight[small.mask].tolist()) <= set(model.weight[model.mask].tolist())
    w = as_array(model.weight).copy()
    best = np.sort(np.argsort(-(np.abs(w).sum(0) + np.abs(w).sum(1)))[:10])
    small = pruned(model, 25, 10, "magnitude")
    inner = np.sort(np.abs(w[np.ix_(best, best)]).ravel())[::-1]
    np.testing.assert_allclose(np.sort(np.abs(as_array(small.weight)).ravel())[::-1][:25], inner[:25])
    assert torch.equal(small.inputs, model.inputs[best])
    rate = as_array(model.run(x)[1].mean((0, 1))) * as_array(model.readout.weight.abs().sum(0))
    busy = np.sort(np.argsort(-rate)[:10])
    assert torch.equal(pruned(model, 25, 10, "activity", x).inputs, model.inputs[busy])
    with pytest.raises(UnknownName, match="magnitude"):
        pruned(model, 25, 10, "magnitud")
    with pytest.raises(WorkingPapersError, match="takes inputs x"):
        pruned(model, 25, 10, "activity")


def test_readouts_are_ridge_regressions() -> None:
    x, y = torch.randn(60, 5), torch.randn(60, 2)
    weight, bias = ridge(x, y, 0.3)
    x64, y64 = x.double(), y.double()
    rest = x64 @ weight.T + bias - y64
    assert float((rest.T @ x64 / 60 + 0.3 * weight).abs().max()) < 1e-9
    assert float(rest.mean(0).abs().max()) < 1e-9


def test_data() -> None:
    spikes = rate_coded(torch.tensor([[[[0.0, 1.0, 0.5]]]]), 4000)
    assert spikes.shape == (1, 4000, 3)
    assert (spikes.mean((0, 1)) - torch.tensor([0.0, 0.5, 0.25])).abs().max() < 0.05
    series = mackey_glass(600)
    assert float(series.std()) == pytest.approx(1, abs=1e-3)
    near = [float((series[:-k] * series[k:]).mean()) for k in (1, 25, 50)]
    assert near[0] > 0.95
    assert near[2] > 0.4 > 0 > near[1]  # it swings once in about fifty units
    points = lorenz(1500)
    assert float((points[:, 0] * points[:, 1]).mean()) > 0.8
    assert points.shape == (1500, 3)
    other = ported(network(), 7, 4)
    assert other(torch.randn(2, 3, 7)).shape == (2, 4)
    assert torch.equal(other.weight, network().weight)
