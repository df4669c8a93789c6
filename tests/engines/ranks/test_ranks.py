"""Notions of rank: matrices with chosen singular values, limits, invariances, numpy's own, refusals."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from workingpapers.engines.ranks import (
    entropy_rank,
    exact_rank,
    exact_tolerance,
    nuclear_rank,
    participation_ratio,
    rank_notions,
    singular_values,
    spectrum_notions,
    stable_rank,
)
from workingpapers.errors import WorkingPapersError

SOFT = (stable_rank, nuclear_rank, participation_ratio, entropy_rank)


def with_values(s: list[float], n: int = 9, units: int = 7) -> Tensor:
    u = torch.linalg.qr(torch.randn(n, len(s), dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(units, len(s), dtype=torch.float64)).Q
    return u * torch.tensor(s, dtype=torch.float64) @ v.T


def test_closed_forms() -> None:
    x = with_values([4, 2, 1])
    assert torch.allclose(singular_values(x)[:3], torch.tensor([4.0, 2, 1]).double())
    assert stable_rank(x) == pytest.approx(21 / 16)
    assert nuclear_rank(x) == pytest.approx(49 / 21)
    assert participation_ratio(x) == pytest.approx(21**2 / (256 + 16 + 1))
    entropy = -sum(p * math.log(p) for p in (4 / 7, 2 / 7, 1 / 7))
    assert entropy_rank(x) == pytest.approx(math.exp(entropy))
    assert exact_rank(x) == 3


def test_a_flat_spectrum_has_its_exact_rank_in_every_notion() -> None:
    for k in (1, 2, 5):
        assert all(v == pytest.approx(k) for v in rank_notions(with_values([3.0] * k)).values())


def test_tolerances_count_singular_values_beside_the_largest() -> None:
    x = 50 * with_values([1, 0.5, 2e-2, 5e-3, 1e-5, 1e-8, 1e-12])
    found = rank_notions(x)
    assert [found[k] for k in ("above 0.01", "above 0.001", "above 1e-06", "exact")] == [3, 4, 5, 6]
    assert exact_rank(x, tolerance=0.1) == 2
    assert rank_notions(x, tolerances=(0.3,))["above 0.3"] == 2


def test_rounding_of_a_low_dtype_is_no_rank() -> None:
    x = with_values([1, 0.5]).float()
    assert exact_rank(x) == 2 == np.linalg.matrix_rank(x.numpy())
    assert exact_tolerance(x) == pytest.approx(9 * 2**-23)
    assert exact_tolerance(x.double()) == 1e-10
    assert exact_rank(torch.tensor([[1, 2], [2, 4]])) == 1


def test_order_scale_and_rotation_do_not_matter() -> None:
    x = torch.randn(8, 5, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    for changed in (x[torch.randperm(8)], -1e-200 * x, 1e200 * x, x @ q, x.T):
        for notion, value in rank_notions(x).items():
            assert rank_notions(changed)[notion] == pytest.approx(value), notion


def test_the_notions_are_ordered() -> None:
    for _ in range(20):
        found = rank_notions(torch.randn(6, 11) @ torch.randn(11, 11))
        assert 1 <= found["stable"] <= found["participation"] * (1 + 1e-9)  # e_1 sum e >= sum e^2
        assert found["participation"] <= found["nuclear"] * (1 + 1e-9) <= found["entropy"] * (1 + 2e-9)
        assert found["entropy"] <= found["exact"] * (1 + 1e-9)


def test_the_centred_participation_ratio_is_that_of_the_covariance() -> None:
    x = torch.randn(30, 4, dtype=torch.float64) + 3
    e = np.linalg.eigvalsh(np.cov(x.numpy().T))
    assert participation_ratio(x, centre=True) == pytest.approx(e.sum() ** 2 / (e**2).sum())
    assert participation_ratio(x) < participation_ratio(x, centre=True)


def test_a_covariance_summed_over_batches_will_do() -> None:
    x = torch.randn(60, 5, dtype=torch.float64) @ torch.diag(torch.tensor([1, 1, 0.5, 0.01, 0.0]).double())
    gram = sum(part.T @ part for part in x.split(20))
    s = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()
    assert spectrum_notions(s, exact=1e-6) == pytest.approx(rank_notions(x))


def test_nothing_has_rank_0_and_equal_rows_have_it_centred() -> None:
    assert set(rank_notions(torch.zeros(4, 3)).values()) == {0.0}
    same = torch.rand(5).expand(7, 5)
    assert all(v == pytest.approx(1) for v in rank_notions(same).values())
    assert set(rank_notions(same, centre=True).values()) == {0.0}


def test_maps_are_flattened_to_units_and_gradients_are_not_needed() -> None:
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    for rank in (exact_rank, *SOFT):
        assert rank(x) == rank(x.detach().reshape(4, 12))


@pytest.mark.parametrize(
    "rows", [torch.ones(3), torch.ones(0, 3), torch.ones(2, 2) * 1j, torch.tensor([[1.0, math.nan]])]
)
def test_what_has_no_rank_is_refused(rows: Tensor) -> None:
    with pytest.raises(WorkingPapersError, match="ranks"):
        exact_rank(rows)
