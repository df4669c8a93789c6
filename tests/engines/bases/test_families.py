"""Closed forms of the families: angles, orthogonality, integrals, heights and places."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from workingpapers.engines.bases import (
    BASES,
    RBF,
    Chebyshev,
    Fourier,
    Gram,
    Linear,
    MexicanHat,
    Rational,
    ReLUPower,
    basis,
)
from workingpapers.errors import UnknownName, WorkingPapersError


def test_chebyshev_polynomials_are_cosines_of_multiples():
    t = torch.linspace(0, math.pi, 50, dtype=torch.float64)[:, None]
    found = Chebyshev(1, 7)(t.cos())[:, 0]
    assert (found - torch.cos(t * torch.arange(8))).abs().max() < 1e-12


def test_gram_polynomials_are_orthonormal_over_their_points():
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    found = Gram(1, 6, points=21)(x)[:, 0]
    assert (found.T @ found / 21 - torch.eye(7)).abs().max() < 1e-12
    assert (found[-1] > 0).all()


def test_fourier_has_cosines_then_sines():
    x = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    found = Fourier(2, 3, omega=0.5).double()(x)[0, 1].tolist()
    wanted = [math.cos(-m) for m in (1, 2, 3)] + [math.sin(-m) for m in (1, 2, 3)]
    assert found == pytest.approx(wanted)


def test_gaussians_fall_by_e_one_centre_on():
    found = RBF(1, 5, span=(-2.0, 2.0))(torch.tensor([[-1.0]]))[0, 0]
    assert found.tolist() == pytest.approx([math.exp(-1), 1.0, math.exp(-1), math.exp(-4), math.exp(-9)])


@pytest.mark.parametrize("power", [1, 2, 3])
def test_bumps_have_height_one_in_their_middle_and_end_where_they_should(power):
    bumps = ReLUPower(1, 5, 3, power)
    middles = (torch.arange(-3, 5) / 5 + 0.4)[:, None]
    found = bumps(middles)[:, 0]
    assert torch.allclose(found.diagonal(), torch.ones(8))
    assert bumps.low[0].tolist() == pytest.approx([j / 5 for j in range(-3, 5)])
    ends = torch.tensor([[-0.6], [0.2]])
    assert bumps(ends)[:, 0, 0].abs().max() < 1e-6
    assert bumps(torch.tensor([[0.0]]))[0, 0, 0].item() == pytest.approx((0.75) ** power)


def test_the_mexican_hat_has_no_mean_and_norm_one():
    hat = MexicanHat(1, 2).double()
    at = [lambda u, p=p: float(hat(torch.tensor([[u]], dtype=torch.float64))[0, 0, 0]) ** p for p in (1, 2)]
    with torch.no_grad():
        mean, square = (quad(f, -12, 12, points=[-0.5])[0] for f in at)
    assert abs(mean) < 1e-7
    assert square == pytest.approx(float(hat.log_scale[0, 0].detach().exp()))
    with torch.no_grad():
        hat.shift[0, 0], hat.log_scale[0, 0] = 0.7, math.log(2.0)
        moved = float(hat(torch.tensor([[2.7]], dtype=torch.float64))[0, 0, 0])
        assert moved == pytest.approx(0.0, abs=1e-12)  # u = 1
    assert bool(torch.isfinite(hat(torch.tensor([[1e200]], dtype=torch.float64))).all())


def test_rationals_are_powers_over_one_denominator():
    functions = Rational(2, 3, 2).double()
    with torch.no_grad():
        functions.b[1] = torch.tensor([-3.0, 0.5])
    for x in (-1.7, 0.4, 8.0):  # the denominator's polynomial is above, below and above 0
        found = functions(torch.tensor([[0.0, x]], dtype=torch.float64))[0, 1].tolist()
        below = 1 + abs(-3 * x + 0.5 * x**2)
        assert found == pytest.approx([1 / below, x / below, x**2 / below, x**3 / below])
    assert functions(torch.zeros(1, 2, dtype=torch.float64))[0, 0].tolist() == [1, 0, 0, 0]


def test_rationals_of_equal_degrees_are_bounded_and_can_be_trained():
    functions = Rational(1, 2, 2)
    with torch.no_grad():
        functions.b[0] = torch.tensor([1.0, -0.25])
    assert functions(torch.tensor([[1e8]]))[0, 0].tolist() == pytest.approx([0, 0, 4], abs=1e-6)
    functions(torch.tensor([[2.0]]))[0, 0, 1].backward()  # 2 / (1 + 2 b_1 + 4 b_2), with b_1 = 1, b_2 = -1/4
    assert functions.b.grad[0].tolist() == pytest.approx([-2 / 4 * 2, -2 / 4 * 4])


def test_linear_is_x():
    x = torch.randn(4, 3)
    assert torch.equal(Linear(3)(x)[..., 0], x)


@pytest.mark.parametrize("name", BASES)
def test_a_selection_of_inputs_gives_their_functions(name):
    whole = basis(name, 4)
    x = torch.rand(9, 4) * 2 - 1
    with torch.no_grad():
        for p in whole.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    if name == "bspline":
        whole.knots.mul_(1 + 0.1 * torch.arange(4.0)[:, None])
    assert torch.equal(whole.select([2, 0])(x[:, [2, 0]]), whole(x)[:, [2, 0]])


def test_families_that_cannot_be_are_refused():
    with pytest.raises(UnknownName, match="nearest name is 'chebyshev'"):
        basis("chebishev", 3)
    for build, message in (
        (lambda: Chebyshev(2, -1), "degree of a polynomial is 0 or more; got -1"),
        (lambda: Gram(2, 5, points=5), "up to degree 4; got 5"),
        (lambda: basis("bspline", 2, order=-1), "order of a spline is 0 or more; got -1"),
        (lambda: ReLUPower(2, power=0), "power of a bump is at least 1; got 0"),
        (lambda: Rational(2, -1), "degree of a polynomial is 0 or more; got -1"),
        (lambda: Rational(2, 2, 0), "degree of a denominator is at least 1; got 0"),
        (lambda: Fourier(2, 0), "at least one input and one function; got 2 and 0"),
    ):
        with pytest.raises(WorkingPapersError, match=message):
            build()


def test_low_degrees_have_as_many_functions_as_they_say():
    assert np.array_equal(Chebyshev(1, 0)(torch.tensor([[0.5]])).numpy(), [[[1.0]]])
    assert Chebyshev(1, 1)(torch.tensor([[0.5]])).tolist() == [[[1.0, 0.5]]]
