"""Stability of minima: gradients and traces in closed form against autograd, reports, runs against torch's SGD."""

import numpy as np
import pytest
import torch
from torch import nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._shallow import Diagonal, TwoLayer, descend, top_eigenvalues
from workingpapers.papers.theory.sgd_stability import DiagonalNet, half_squares, stability_report, sweep
from workingpapers.tasks import mlp


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def by_torch(net: Diagonal | TwoLayer, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if isinstance(net, TwoLayer):
        a, w = theta[: net.width], theta[net.width :].view(net.width, -1)
        return torch.relu(x @ w.T) @ a
    u, v = theta.chunk(2)
    return x @ (u * v if net.product else u.square() - v.square())


NETS = [(Diagonal(), 10), (Diagonal(product=True), 10), (TwoLayer(3), 18)]


@pytest.mark.parametrize(("net", "size"), NETS)
def test_outputs_gradients_and_traces_are_autograds(net: Diagonal | TwoLayer, size: int) -> None:
    x, theta = drawn(7, 5), drawn(2, size, seed=1)
    for row in range(2):
        point = torch.tensor(theta[row])
        tx = torch.tensor(x)
        np.testing.assert_allclose(net.outputs(theta, x)[row], by_torch(net, point, tx).numpy(), rtol=1e-12)
        jacobian = torch.func.jacrev(lambda t, tx=tx: by_torch(net, t, tx))(point)
        np.testing.assert_allclose(net.gradients(theta, x)[row], jacobian.numpy(), rtol=1e-12, atol=1e-14)
        y = by_torch(net, point, tx)  # so that every example is fitted
        matrix = torch.func.hessian(lambda t, tx=tx, y=y: half_squares(by_torch(net, t, tx), y))(point)
        assert net.trace(theta, x)[row] == pytest.approx(float(matrix.trace()), rel=1e-10)
        assert top_eigenvalues(net, theta, x)[row] == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]))


def test_the_trace_of_a_diagonal_net_bounds_the_l1_norm_of_its_predictor() -> None:
    theta = drawn(1, 12)
    balanced = np.concatenate(
        [np.sqrt(np.maximum(w := Diagonal().predictor(theta), 0)), np.sqrt(np.maximum(-w, 0))], 1
    )
    eye = np.eye(6) * np.sqrt(6)
    norm = 4 * np.abs(Diagonal().predictor(theta)).sum()
    assert Diagonal().trace(theta, eye)[0] > norm
    assert Diagonal().trace(balanced, eye)[0] == pytest.approx(norm)


@pytest.mark.parametrize(("net", "size"), NETS)
def test_descent_is_torchs(net: Diagonal | TwoLayer, size: int) -> None:
    x, start = drawn(6, 5), 0.4 * drawn(size, seed=2)
    y = drawn(6, seed=3)
    point = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.SGD([point], lr=0.03)
    for _ in range(25):
        optimizer.zero_grad()
        half_squares(by_torch(net, point, torch.tensor(x)), torch.tensor(y)).backward()
        optimizer.step()
    found = descend(net, x, y, start, [0.01, 0.03], 25)
    np.testing.assert_allclose(found[1], point.detach().numpy(), rtol=1e-9)
    draws = np.random.default_rng(8).integers(0, 6, (25, 1))
    theta = start[None]
    for i in draws[:, 0]:
        theta = theta - 0.01 * (net.outputs(theta, x)[0, i] - y[i]) * net.gradients(theta, x)[:, i]
    np.testing.assert_allclose(descend(net, x, y, start, [0.01], 25, 1, seed=8), theta, rtol=1e-9)


def test_runs_that_overflow_are_nan_and_do_not_count_as_fitted() -> None:
    x, y = drawn(4, 6), drawn(4, seed=1)
    runs = sweep(Diagonal(), x, y, (x, y), np.full(12, 0.5), [0.001, 50.0], 400)
    assert [np.isnan(run.trace) for run in runs] == [False, True]
    assert [run.fitted for run in runs] == [False, False]


def test_a_report_on_a_fitted_diagonal_net_is_in_closed_form() -> None:
    net, x = DiagonalNet(6, 0.5), torch.tensor(drawn(4, 6)).float()
    with torch.no_grad():
        net.u.add_(0.1 * torch.arange(6))
        y = net(x)
    found = stability_report(net, x, y, lr=0.02).numbers
    trace = 4 * float(((net.u.square() + net.v.square()) * x.square().mean(0)).sum().detach())
    assert found["loss"] == pytest.approx(0, abs=1e-12)
    for name in ("trace", "gauss_newton"):
        assert found[name] == pytest.approx(trace, rel=1e-5)
    assert found["trace_over_limit"] == pytest.approx(trace * 0.01, rel=1e-5)
    gradients = torch.cat([2 * net.u * x, -2 * net.v * x], 1).detach().double()
    values = torch.linalg.eigvalsh(gradients @ gradients.T / 4)
    assert found["top"] == pytest.approx(float(values[-1]), rel=1e-5)
    assert found["frobenius"] == pytest.approx(float(values.norm()), rel=1e-5)
    whole = stability_report(net, x, y, lr=0.02, batch=4).numbers
    assert whole["radius"] == pytest.approx(float((1 - 0.02 * values).square().max()), rel=1e-6)
    assert whole["critical_lr"] == pytest.approx(whole["gd_lr"])
    assert found["critical_lr"] < whole["critical_lr"]


def test_sgd_leaves_an_unstable_minimum_and_stays_at_a_stable_one() -> None:
    x, net = drawn(5, 8), Diagonal()
    theta = drawn(16, seed=4)
    y = net.outputs(theta[None], x)[0]
    model = DiagonalNet(8).double()
    with torch.no_grad():
        model.u.copy_(torch.tensor(theta[:8]))
        model.v.copy_(torch.tensor(theta[8:]))
    critical = stability_report(model, torch.tensor(x), torch.tensor(y)[:, None]).numbers["critical_lr"]
    start = theta + 1e-6 * drawn(16, seed=5)
    ends = [descend(net, x, y, start, [0.5 * critical, 3 * critical], 3000, 1, seed=s) for s in range(3)]
    for near, far in ends:
        assert np.abs(net.outputs(near[None], x)[0] - y).max() < 1e-9
        assert not np.abs(far - theta).max() < 1e-2


def test_outputs_of_any_shape_and_errors() -> None:
    x = torch.randn(6, 3)
    assert stability_report(mlp([3, 4, 2]), x, torch.randn(6, 2), batch=6).numbers["loss"] > 0
    assert (
        stability_report(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), x, torch.randn(6)).numbers["top"] > 0
    )
    with pytest.raises(WorkingPapersError, match="targets of their shape"):
        stability_report(mlp([3, 2]), x, torch.zeros(6))
    with pytest.raises(WorkingPapersError, match="above 0"):
        stability_report(mlp([3, 2]), x, torch.zeros(6, 2), lr=0.0)
