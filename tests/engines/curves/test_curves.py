"""Properties of curves against what is known of them in closed form."""

import math

import pytest
import torch
from torch import nn

from workingpapers.engines.curves import measured


def test_relu() -> None:
    curve = measured(nn.ReLU())
    assert (curve.low, curve.high, curve.lipschitz) == (0.0, math.inf, 1.0)
    assert curve.zeros == (-math.inf, 0.0)
    assert curve.monotone
    assert not curve.smooth
    assert curve.minimum is None
    assert curve.gain == pytest.approx(math.sqrt(2), abs=1e-9)


def test_silu() -> None:
    curve = measured(nn.SiLU())
    place, value = curve.minimum  # type: ignore[misc]
    assert place == pytest.approx(-1.2784645427610738, abs=1e-6)  # where 1 + x + exp(x) vanishes, mirrored
    assert value == pytest.approx(place + 1, abs=1e-7)
    assert curve.low == pytest.approx(value, abs=1e-6)
    assert curve.lipschitz == pytest.approx(1.0998393194, abs=1e-6)
    assert curve.zeros == (0.0,)
    assert curve.smooth
    assert not curve.monotone


def test_zeros_that_lie_between_the_points() -> None:
    curve = measured(lambda x: (x - math.pi) * (x + math.e) / (1 + x * x))
    assert curve.zeros == pytest.approx((-math.e, math.pi), abs=1e-9)


@pytest.mark.parametrize(
    ("function", "smooth"),
    [(torch.sin, True), (torch.abs, False), (nn.ELU(), True), (nn.SELU(), False), (nn.Hardswish(), False),
     (lambda x: torch.where(x > 1, x + 0.1, x), False), (lambda x: x.relu().square(), True)],
)  # fmt: skip
def test_corners_and_jumps_are_found(function, smooth: bool) -> None:
    assert measured(function).smooth is smooth


def test_what_grows_without_bound_has_no_lipschitz_constant() -> None:
    curve = measured(lambda x: x**3)
    assert (curve.low, curve.high, curve.lipschitz) == (-math.inf, math.inf, math.inf)
    assert curve.monotone
    assert measured(lambda x: -x).monotone


def test_the_gain_of_known_moments() -> None:
    assert measured(lambda x: x**2).gain == pytest.approx(1 / math.sqrt(3), abs=1e-9)
    assert measured(lambda x: torch.exp(-x * x / 2)).gain == pytest.approx(3**0.25, abs=1e-9)


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps its input's shape"):
        measured(lambda x: x.sum())
