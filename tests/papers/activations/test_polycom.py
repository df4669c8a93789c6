"""PolyReLU and PolyNorm against 50 digits, numpy and their invariances; the exact networks; equal sizes."""

import math

import numpy as np
import pytest
import torch
from tests.exact import expect_exact
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import make
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.kernels.fusion import fusing
from workingpapers.papers.activations._coefficients import horner
from workingpapers.papers.activations.polycom import (
    PolyCom,
    PolyNorm,
    PolyReLU,
    fitted_error,
    gated,
    polynorm,
    polyrelu,
    polyrelu_from_relu,
    squaring_network,
)
from workingpapers.tasks import char_gpt

A = (0.5, 1.5, 0.25, 2.0)


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm(z: np.ndarray, eps: float) -> np.ndarray:
    return z / np.sqrt((z**2).mean(-1, keepdims=True) + eps)


def test_polyrelu_in_fifty_digits() -> None:
    def slope(x):  # type: ignore[no-untyped-def]
        return A[1] + 2 * A[2] * x + 3 * A[3] * x**2 if x > 0 else 0

    expect_exact(lambda x: polyrelu(x, A), lambda x: sum(a * max(x, 0) ** i for i, a in enumerate(A)), slope)


def test_horner_sums_the_powers() -> None:
    x = features(50)
    for count in range(1, 6):
        a = [0.3, -1.0, 2.0, 0.7, -0.1][:count]
        torch.testing.assert_close(horner(x, a), torch.tensor(np.polyval(a[::-1], x.numpy())))


@pytest.mark.parametrize("order", [1, 3, 6])
def test_polynorm_is_its_definition(order: int) -> None:
    x, a = features(4, 5, 7), features(order + 1, seed=1)
    expected = a[0].item() + sum(a[i].item() * norm(x.numpy() ** i, 1e-3) for i in range(1, order + 1))
    np.testing.assert_allclose(polynorm(x, a, 1e-3).numpy(), expected, rtol=1e-12)


def test_polynorm_has_the_gradient_of_its_definition() -> None:
    # the scale inside is held fixed for the gradient, and must not show
    x, a = features(3, 6).requires_grad_(), features(4, seed=1).requires_grad_()
    weights = features(3, 6, seed=2)

    def plain() -> torch.Tensor:
        powers = [x**i for i in range(1, 4)]
        normed = [p * torch.rsqrt(p.square().mean(-1, keepdim=True) + 1e-2) for p in powers]
        return a[0] + sum(a[i + 1] * p for i, p in enumerate(normed))

    expected = torch.autograd.grad((plain() * weights).sum(), (x, a))
    found = torch.autograd.grad((polynorm(x, a, 1e-2) * weights).sum(), (x, a))
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda t, c: polynorm(t, c, 1e-2), (x, a))


def test_polynorm_without_eps_ignores_the_scale_of_its_input() -> None:
    x, module = features(5, 8), PolyNorm(eps=0.0).double()
    for scale in (1e-3, 7.0, 1e30):
        torch.testing.assert_close(module(scale * x), module(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(module(-x), module(x))


def test_extreme_features_stay_finite() -> None:
    for scale in (0.0, 1e-30, 1e30):
        x = (scale * features(2, 8)).float().requires_grad_()
        y = PolyNorm()(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert torch.isfinite(y).all()
        assert torch.isfinite(slope).all()


def test_coefficients_at_the_start() -> None:
    one = torch.tensor([1.0, -1.0])
    assert PolyReLU()(one).tolist() == pytest.approx([1.0, 0.0])
    for module in (PolyReLU(4), PolyNorm(4), PolyCom(torch.tanh, 4)):
        assert module.a.tolist() == [0.0, 0.25, 0.25, 0.25, 0.25]


def test_a_relu_is_a_polyrelu() -> None:
    x = features(1000).float()
    for order in (1, 3):
        assert torch.equal(polyrelu_from_relu(order)(x), x.relu())


def test_two_units_square_a_number() -> None:
    x = torch.linspace(-3, 3, 61)[:, None]
    torch.testing.assert_close(squaring_network()(x), x * x, rtol=1e-6, atol=0)


def test_compositions_have_the_two_as_special_cases() -> None:
    x, a = features(4, 9), features(4, seed=3)
    outer, inner = (
        PolyCom(torch.relu).double(),
        PolyCom(lambda z: F.rms_norm(z, (9,), eps=1e-6), mode="inner").double(),
    )
    relu, normed = PolyReLU().double(), PolyNorm().double()
    for module in (outer, inner, relu, normed):
        module.a.data = a
    torch.testing.assert_close(outer(x), relu(x))
    torch.testing.assert_close(inner(x), normed(x), rtol=1e-9, atol=1e-9)
    sine = PolyCom(torch.sin, 2, mode="inner").double()
    torch.testing.assert_close(sine(x), (torch.sin(x) + torch.sin(x**2)) / 2)


@pytest.mark.parametrize("kind", [PolyReLU, PolyNorm, lambda **o: PolyCom(torch.tanh, **o)])
def test_recomputing_changes_no_number(kind) -> None:  # type: ignore[no-untyped-def]
    x = features(3, 8).float()
    found = []
    for recompute in (False, True):
        module, z = kind(recompute=recompute), x.clone().requires_grad_()
        y = module(z)
        y.square().sum().backward()
        found.append((y.detach(), z.grad, module.a.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_powers_are_computed_in_single_precision_under_autocast() -> None:
    x = features(6, 16).to(torch.bfloat16)
    for module in (PolyReLU(), PolyNorm(), PolyCom(torch.tanh)):
        with torch.autocast("cpu", torch.bfloat16):
            found = module(x)
        assert torch.equal(found, module(x.float()).to(torch.bfloat16))


@pytest.mark.parametrize("kind", [PolyReLU, PolyNorm])
def test_fused_kernels_agree(kind) -> None:  # type: ignore[no-untyped-def]
    found = []
    for mode in ("never", "always"):
        module, x = kind(), features(7, 24).float().requires_grad_()
        with fusing(mode):
            y = module(x)
            y.square().sum().backward()
        found.append((y.detach(), x.grad, module.a.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_gated_models_have_the_size_of_ungated_ones() -> None:
    plain, swiglu = char_gpt(65, 96, 2), gated(char_gpt(65, 96, 2))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (plain, swiglu)]
    assert sizes[1] == pytest.approx(sizes[0], rel=5e-3)
    assert swiglu(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 8, 65)
    # the last layers' outputs are scaled as before: entries of Linear are uniform, with variance 1 / (3 fan_in)
    spread = swiglu.blocks[0].contract.weight.std().item()  # type: ignore[union-attr, operator]
    assert spread == pytest.approx(1 / math.sqrt(3 * 256) / math.sqrt(4), rel=0.02)


def test_a_cubic_is_within_reach_of_few_units() -> None:
    assert fitted_error(PolyReLU, 8, 0, steps=60) < fitted_error(nn.Identity, 8, 0, steps=60) / 3


def test_bad_options_are_refused() -> None:
    with pytest.raises(WorkingPapersError, match="order is 1 to 8; got 0"):
        PolyReLU(0)
    with pytest.raises(WorkingPapersError, match="at least 0; got -1"):
        PolyNorm(eps=-1.0)
    with pytest.raises(UnknownName, match="'outer'"):
        PolyCom(torch.tanh, mode="outside")
    with pytest.raises(WorkingPapersError, match="vectors of features"):
        PolyNorm()(torch.tensor(1.0))
    with pytest.raises(TypeError, match="polyrelu takes a floating-point tensor"):
        make("polycom.polyrelu")(torch.arange(3))
    with pytest.raises(TypeError, match="PolyCom takes a floating-point tensor"):
        PolyCom(torch.tanh)(torch.arange(3))
