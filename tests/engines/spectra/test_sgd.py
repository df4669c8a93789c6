"""Stability of SGD: the map of second moments against every batch there is, limits against their closed forms."""

from itertools import combinations, product

import pytest
import torch
from torch import Tensor, nn

from workingpapers.engines.spectra import SecondMoments, jacobians, sgd
from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import mlp


def rows(n: int, outputs: int, parameters: int, seed: int = 0) -> Tensor:
    return torch.randn(
        n, outputs, parameters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(("batch", "outputs"), [(1, 1), (2, 1), (2, 2), (3, 2), (4, 1)])
def test_a_step_is_the_mean_over_all_batches(batch: int, outputs: int, replace: bool) -> None:
    j = rows(4, outputs, 3)
    moments = SecondMoments(j, batch, replace)
    basis = torch.linalg.svd(j.reshape(-1, 3), full_matrices=False)[2]  # the span is all there is here
    root = rows(1, 3, 3, seed=1)[0]
    m, lr, each = root @ root.T, 0.13, j.transpose(1, 2) @ j
    batches = list(product(range(4), repeat=batch) if replace else combinations(range(4), batch))
    steps = [torch.eye(3).double() - lr * each[list(b)].mean(0) for b in batches]
    wanted = torch.stack([s @ m @ s for s in steps]).mean(0)
    found = basis.T @ moments.step(basis @ m @ basis.T, lr) @ basis
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_the_limits_of_full_batches_are_those_of_gradient_descent() -> None:
    j = rows(9, 1, 5)
    values = torch.linalg.eigvalsh(j[:, 0].T @ j[:, 0] / 9)
    full = SecondMoments(j, 9)
    for lr in (0.1, 0.7, 2.0):
        assert full.radius(lr) == pytest.approx(float((1 - lr * values).square().max()))
    assert full.critical() == pytest.approx(2 / float(values[-1]))
    assert full.rates().gradient_descent == pytest.approx(full.critical())


def test_one_example_and_orthogonal_examples_have_known_limits() -> None:
    g = rows(1, 1, 7)
    assert SecondMoments(g).critical() == pytest.approx(2 / float(g.square().sum()))
    # orthogonal gradients g_i: the diagonal of M goes by 1 - 2 lr s/n + lr^2 s^2/n, stable up to 2/s
    j = torch.diag(torch.tensor([1.0, 2.0, 3.0])).double()[:, None]
    assert SecondMoments(j).critical() == pytest.approx(2 / 9)
    assert SecondMoments(j).rates().trace == pytest.approx(2 / (14 / 3))


@pytest.mark.parametrize("batch", [1, 3, 11])
@pytest.mark.parametrize("outputs", [1, 2])
def test_bounds_enclose_the_exact_rate(batch: int, outputs: int) -> None:
    moments = SecondMoments(rows(12, outputs, 6, seed=batch), batch)
    rates = moments.rates()
    assert moments.radius(rates.exact) == pytest.approx(1.0, abs=1e-9)
    assert moments.radius(0.95 * rates.exact) < 1 < moments.radius(1.05 * rates.exact)
    assert rates.sufficient <= rates.exact <= min(rates.moment, rates.gradient_descent) + 1e-12
    if batch == 1 and outputs == 1:
        assert rates.exact <= rates.trace
    assert rates.trace == pytest.approx(2 / float(moments.values.sum()))


def test_larger_spans_are_solved_by_products_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = SecondMoments(rows(12, 1, 40), 2)
    assert moments.size == 12
    wanted = moments.critical(), moments.radius(0.05)
    monkeypatch.setattr(sgd, "EXACT", 3)
    assert (moments.critical(), moments.radius(0.05)) == pytest.approx(wanted, rel=1e-8)


def test_jacobians_are_those_of_each_example_and_leave_the_model() -> None:
    model, x = nn.Sequential(mlp([3, 4, 2]), nn.BatchNorm1d(2), nn.Dropout(0.5)).train(), torch.randn(5, 3)
    model[0][1].bias.requires_grad_(False)
    found = jacobians(model, x, chunk=2)
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert found.shape == (5, 2, sum(p.numel() for p in parameters))
    assert model.training
    assert model[1].num_batches_tracked == 0
    output = model.eval()(x)
    for i, k in product(range(5), range(2)):
        own = torch.cat(
            [g.flatten() for g in torch.autograd.grad(output[i, k], parameters, retain_graph=True)]
        )
        torch.testing.assert_close(found[i, k].float(), own, rtol=1e-4, atol=1e-5)


def test_errors_are_one_sentence() -> None:
    with pytest.raises(WorkingPapersError, match="between 1 and all 4 examples"):
        SecondMoments(rows(4, 1, 3), 5)
    with pytest.raises(WorkingPapersError, match="gradients are zero"):
        SecondMoments(torch.zeros(4, 1, 3))
    with pytest.raises(WorkingPapersError, match="no parameters that require"):
        jacobians(nn.ReLU(), torch.ones(2, 3))
