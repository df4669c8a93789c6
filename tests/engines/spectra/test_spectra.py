"""Spectra: products, eigenvalues, trace and density against the dense Hessian and known spectra; stability."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from workingpapers.engines.spectra import (
    Operator,
    extremes,
    hessian,
    of_matrix,
    parameter_vector,
    sharpness,
    smallest,
    spectral_density,
    stability_limit,
    trace,
)
from workingpapers.errors import UnknownName, WorkingPapersError

CE = F.cross_entropy


def classifier(width: int = 20, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(64, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 10)
    )


def data(n: int, features: int = 64, classes: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, features, generator=generator)
    return x + 0.5 * (torch.arange(n) % classes)[:, None].float(), torch.arange(n) % classes


def exact(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The Hessian as torch.func writes it out, in float64."""
    model = copy.deepcopy(model).double()
    shapes = {n: p.shape for n, p in model.named_parameters()}

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([s.numel() for s in shapes.values()])
        named = {n: part.view(s) for (n, s), part in zip(shapes.items(), parts, strict=True)}
        return CE(functional_call(model, named, (x.double(),)), y)

    found: Tensor = torch.func.jacrev(torch.func.jacrev(loss), chunk_size=256)(parameter_vector(model))
    return found


@pytest.fixture(scope="module")
def big() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """A trained net of 1,930 parameters, its data in two batches, its eigenvalues and its Hessian."""
    model, (x, y) = classifier(), data(60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
    matrix = exact(model, x, y)
    return model, [(x[:40], y[:40]), (x[40:], y[40:])], torch.linalg.eigvalsh(matrix), matrix


def test_products_equal_the_dense_hessian_whatever_the_batches(big) -> None:
    model, batches, _, matrix = big
    assert sum(p.numel() for p in model.parameters()) == 1930
    v = torch.randn(1930, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    for given in (batches, [whole], iter(batches)):
        operator = hessian(model, CE, given, dtype=torch.float64)
        torch.testing.assert_close(operator @ v, matrix @ v, rtol=1e-9, atol=1e-11)
    single = hessian(model, CE, batches)
    assert single.dtype == torch.float32
    torch.testing.assert_close((single @ v).double(), matrix @ v, rtol=1e-3, atol=1e-4)


def test_top_smallest_trace_and_density_of_a_net_are_within_two_percent(big) -> None:
    model, batches, values, _ = big
    found = extremes(hessian(model, CE, batches), 5, 1)
    assert found.converged
    torch.testing.assert_close(found.top, values.flip(0)[:5], rtol=0.02, atol=0)
    torch.testing.assert_close(found.bottom, values[:1], rtol=0.02, atol=0)
    assert abs(sharpness(model, CE, batches) / float(values[-1]) - 1) < 0.001
    assert abs(smallest(model, CE, batches) / float(values[0]) - 1) < 0.02
    operator = hessian(model, CE, batches)
    estimate = trace(operator, most=200)
    assert estimate.products <= 200
    assert abs(estimate.value / float(values.sum()) - 1) < 0.02
    density = spectral_density(operator, probes=6, steps=40)
    cut = 0.05 * float(values[-1])
    assert abs(density.share(cut, math.inf) - float((values > cut).double().mean())) < 0.003
    assert density.moment(1) * 1930 == pytest.approx(float(values.sum()), rel=0.15)


def test_eigenvectors_and_residuals_are_those_of_the_operator(big) -> None:
    model, batches, _, matrix = big
    found = extremes(hessian(model, CE, batches, dtype=torch.float64), 3, 2, tolerance=1e-5)
    values = torch.cat([found.top, found.bottom])
    left = matrix @ found.vectors - found.vectors * values
    torch.testing.assert_close(left.norm(dim=0), found.residuals, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(5).double(), atol=1e-9, rtol=0)


def spectrum(values: Tensor) -> Operator:
    turn = torch.linalg.qr(
        torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(5)).double()
    )
    return of_matrix(turn[0] @ torch.diag(values) @ turn[0].T)


@pytest.mark.parametrize("basis", [12, 40, 100])
def test_restarts_keep_what_was_found(basis: int) -> None:
    values = torch.linspace(-1, 1, 300).double() ** 3
    found = extremes(spectrum(values), 2, 2, tolerance=1e-6, most=5000, basis=basis)
    assert found.converged
    torch.testing.assert_close(found.top, values.flip(0)[:2], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.bottom, values[:2], rtol=1e-6, atol=0)


def test_small_operators_are_solved_whole() -> None:
    values = torch.tensor([3.0, -2.0, 0.5, 0.0]).double()
    found = extremes(spectrum(values), 2, 2)
    torch.testing.assert_close(found.top, values[[0, 2]], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.bottom, values[[1, 3]], rtol=1e-9, atol=1e-9)
    nothing = extremes(of_matrix(torch.zeros(5, 5).double()))
    assert float(nothing.top[0]) == 0
    assert nothing.converged


def test_what_did_not_converge_says_so() -> None:
    found = extremes(spectrum(torch.linspace(0, 1, 300).double()), tolerance=1e-8, most=5)
    assert not found.converged
    assert found.products == 5


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_the_standard_error_of_a_trace_is_its_error(method: str) -> None:
    values = torch.linspace(-1, 3, 200).double()
    operator, how = spectrum(values), {"method": method, "most": 60, "sketch": 5, "tolerance": 0}
    estimates = [trace(operator, **how, seed=seed) for seed in range(60)]
    off = torch.tensor([(e.value - float(values.sum())) / e.error for e in estimates])
    assert 0.7 < float(off.square().mean().sqrt()) < 1.4
    assert abs(float(off.mean())) < 0.5
    assert {e.products for e in estimates} == {60}


def test_hutch_is_exact_for_low_rank_and_small_operators_are_traced_exactly() -> None:
    values = torch.cat([torch.tensor([5.0, -1.0, 2.0]), torch.zeros(200)]).double()
    found = trace(spectrum(values), most=100, sketch=6)
    assert found.value == pytest.approx(6.0, abs=1e-9)
    assert found.products < 25
    small = trace(spectrum(values[:9]), most=9)
    assert (small.value, small.error) == (pytest.approx(6.0, abs=1e-9), 0.0)


def test_the_density_of_few_eigenvalues_is_exact() -> None:
    values = torch.tensor([2.0] * 3 + [0.0] * 5 + [-1.0] * 2).double()
    turned = spectrum(values)
    density = spectral_density(turned, probes=400, steps=10)
    assert float(density.weights.sum()) == pytest.approx(1.0)
    assert density.size == 10
    near = [density.share(v - 1e-6, v + 1e-6) for v in (2.0, 0.0, -1.0)]
    assert sum(near) == pytest.approx(1.0)
    assert near == pytest.approx([0.3, 0.5, 0.2], abs=0.03)
    grid = torch.linspace(-4, 5, 4001).double()
    assert float(torch.trapezoid(density.on(grid, 0.1), grid)) == pytest.approx(1.0, abs=1e-6)
    assert float(density.on(torch.tensor([2.0]), 0.1)) == pytest.approx(
        0.3 / (0.1 * math.sqrt(2 * math.pi)), rel=0.1
    )


def test_moments_are_exact_for_the_vector_that_was_drawn() -> None:
    # steps Lanczos steps integrate polynomials of degree 2 steps - 1 as v.A^k v does
    operator = spectrum(torch.linspace(-1, 2, 50).double() ** 3)
    density, whole = (spectral_density(operator, probes=1, steps=s, seed=4) for s in (4, 50))
    for power in range(8):
        assert density.moment(power) == pytest.approx(whole.moment(power), rel=1e-9)
    assert density.moment(8) != pytest.approx(whole.moment(8), rel=1e-6)


class Mixed(nn.Module):
    """Attention, tied weights, batch normalisation, two inputs and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.read = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.read.weight = self.embed.weight
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
        self.norm, self.frozen = nn.BatchNorm1d(4), nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        h = self.block(self.embed(x) + shift).mean(1)
        return self.read(self.frozen(self.norm(h)))


def test_models_with_everything_are_left_as_they_were() -> None:
    torch.manual_seed(0)
    model = Mixed().train()
    model.norm.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    batch = ((torch.randn(6, 3, 4), torch.randn(4)), torch.randn(6, 4))
    named = ({"x": batch[0][0], "shift": batch[0][1]}, batch[1])
    operator = hessian(model, F.mse_loss, [batch], dtype=torch.float64)
    assert operator.size == sum(p.numel() for p in model.parameters() if p.requires_grad)
    matrix = operator.dense()
    torch.testing.assert_close(matrix, operator @ torch.eye(operator.size), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(matrix, hessian(model, F.mse_loss, [named], dtype=torch.float64).dense())
    flat, h = operator.gradient(), 1e-5
    v = torch.randn(operator.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = [copy.deepcopy(model).double() for _ in range(2)]
    for other, sign in zip(moved, (1, -1), strict=True):
        for name, part in operator.split(v).items():
            other.get_parameter(name).data.add_(part, alpha=sign * h)
    one, two = (hessian(m, F.mse_loss, [batch]).gradient() for m in moved)
    torch.testing.assert_close((one - two) / (2 * h), matrix @ v, rtol=1e-5, atol=1e-7)
    assert flat.shape == v.shape
    assert all(p.grad is None for p in model.parameters())
    assert modes == [m.training for m in model.modules()]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_weights_that_moved_are_seen_and_linear_losses_are_flat() -> None:
    model, batch = nn.Linear(3, 2, bias=False), (torch.randn(5, 3), torch.arange(5) % 2)
    operator = hessian(model, CE, [batch])
    first = operator.dense()
    with torch.no_grad():
        model.weight.mul_(3)
    torch.testing.assert_close(operator.dense(), hessian(model, CE, [batch]).dense())
    assert not torch.allclose(operator.dense(), first)
    flat = hessian(model, lambda out, y: out.mean(), [batch])
    assert float(flat.dense().abs().max()) == 0.0
    assert float(flat.gradient().abs().max()) > 0


def test_part_of_the_parameters_gives_a_block() -> None:
    model, (x, y) = classifier(4), data(12)
    whole, names = exact(model, x, y), ["0.bias", "4.weight"]
    part = hessian(model, CE, [(x, y)], names=names, dtype=torch.float64)
    every, sizes = [n for n, _ in model.named_parameters()], [p.numel() for p in model.parameters()]
    marks = torch.cat([torch.full((s,), n in names) for n, s in zip(every, sizes, strict=True)])
    torch.testing.assert_close(part.dense(), whole[marks][:, marks], rtol=1e-9, atol=1e-11)
    assert torch.equal(parameter_vector(model, names), torch.cat([model[0].bias, model[4].weight.flatten()]))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.5, True), (0.9, True)])
def test_gradient_descent_is_stable_just_below_the_limit_and_not_above(
    momentum: float, nesterov: bool
) -> None:
    lr = 0.07
    limit = stability_limit(lr, momentum, nesterov=nesterov)
    for factor, stable in ((0.98, True), (1.02, False)):
        w = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=lr, momentum=momentum, nesterov=nesterov)
        for _ in range(2000):
            w.grad = limit * factor * w.detach()
            optimizer.step()
        assert (abs(float(w.detach())) < 1e-3) == stable


def test_errors_are_one_sentence() -> None:
    model, (x, y) = classifier(4), data(5)
    with pytest.raises(UnknownName, match="nearest names are '0.weight'"):
        hessian(model, CE, [(x, y)], names=["0.weigth"])
    with pytest.raises(WorkingPapersError, match="no parameters that require a gradient"):
        hessian(nn.ReLU(), CE, [(x, y)])
    with pytest.raises(WorkingPapersError, match="at least one batch"):
        hessian(model, CE, []) @ torch.zeros(330)
    with pytest.raises(WorkingPapersError, match="one number for a batch"):
        sharpness(model, lambda out, y: out, [(x, y)])
    with pytest.raises(WorkingPapersError, match="not finite"):
        sharpness(model, CE, [(x * math.inf, y)])
    with pytest.raises(WorkingPapersError, match="without dropout"):
        hessian(Mixed(), CE, [(x, y)], training=True).gradient()
    with pytest.raises(WorkingPapersError, match=r"vectors \(3,\)"):
        of_matrix(torch.eye(3)) @ torch.zeros(4)
    with pytest.raises(WorkingPapersError, match="square matrix"):
        of_matrix(torch.zeros(2, 3))
    with pytest.raises(WorkingPapersError, match="between 1 and 3"):
        extremes(of_matrix(torch.eye(3)), 4)
    with pytest.raises(UnknownName, match="way to estimate a trace"):
        trace(of_matrix(torch.eye(3)), method="hutch")
    with pytest.raises(WorkingPapersError, match="at least 2 products"):
        trace(of_matrix(torch.eye(3)), most=1)
    with pytest.raises(WorkingPapersError, match="1 probe and 1 step"):
        spectral_density(of_matrix(torch.eye(3)), probes=0)
    with pytest.raises(WorkingPapersError, match="lr > 0"):
        stability_limit(0.0)
