"""Chebyshev polynomials by their recurrence, the network by its formula, tomography of a disk, the baselines."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev as numpys
from torch import nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.fields._coordinates import (
    Encoding,
    Sine,
    matched,
    parameters,
    pixels,
    psnr,
    relu_encoded,
    siren,
)
from workingpapers.papers.fields._photographs import photograph
from workingpapers.papers.fields.sl2a_inr import (
    SL2A,
    ChebyshevLayer,
    LowRankLinear,
    chebyshev,
    fitted,
    line_integrals,
)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_polynomials_obey_the_recurrence() -> None:
    u = uniform(200).double() * 0.999
    found = chebyshev(u, 64)
    wanted = [torch.ones_like(u), u]
    for _ in range(63):
        wanted.append(2 * u * wanted[-1] - wanted[-2])
    torch.testing.assert_close(found, torch.stack(wanted, -1), rtol=0, atol=1e-9)
    torch.testing.assert_close(chebyshev(u.float(), 64).double(), found, rtol=0, atol=1e-4)


def test_gradients_are_finite_at_the_edge() -> None:
    x = torch.tensor([[-1e3, 0.3], [20.0, 1e4]], requires_grad=True)
    layer = ChebyshevLayer(2, 4, 16)
    layer.expand(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[0, 1] != 0


def test_the_layer_is_numpys_series_of_tanh() -> None:
    torch.manual_seed(0)
    layer, x = ChebyshevLayer(2, 3, 9).double(), uniform(5, 7, 2).double()
    c = layer.coefficients.detach().numpy()
    u = np.tanh(x.numpy())
    wanted = sum(numpys.chebval(u[..., i], c[i].T) for i in range(2))  # (3, 5, 7)
    np.testing.assert_allclose(layer.expand(x).detach().numpy(), np.moveaxis(wanted, 0, -1), atol=1e-12)
    bound = math.sqrt(6 / ((2 + 3) * 10))
    assert 0.8 * bound < float(layer.coefficients.detach().abs().max()) <= bound


def test_with_degree_one_alone_it_is_linear_in_tanh() -> None:
    torch.manual_seed(0)
    layer, x = ChebyshevLayer(2, 3, 6), uniform(10, 2)
    layer.coefficients.data[..., [0, 2, 3, 4, 5, 6]] = 0
    weight = layer.coefficients.detach()[..., 1]
    torch.testing.assert_close(layer.expand(x), torch.tanh(x) @ weight, rtol=1e-4, atol=1e-5)


def test_features_are_normalised_at_every_point() -> None:
    torch.manual_seed(0)
    y = ChebyshevLayer(2, 64, 32)(uniform(20, 2)).detach()
    torch.testing.assert_close(y.mean(-1), torch.zeros(20), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(-1, correction=0), torch.ones(20), atol=1e-3, rtol=0)


@pytest.mark.parametrize("fusion", [True, False])
@pytest.mark.parametrize("rank", [None, 3])
def test_the_network_is_its_formula(fusion: bool, rank: int | None) -> None:
    torch.manual_seed(0)
    model, x = SL2A(2, 3, width=8, depth=2, degree=5, rank=rank, fusion=fusion), uniform(11, 2)
    psi = model.first(x)
    m = psi if fusion else torch.ones_like(psi)
    z = psi
    for layer in model.layers:
        w = layer.weight.T if rank is None else layer.left @ layer.right
        z = torch.relu((m * z) @ w + layer.bias)
    torch.testing.assert_close(model(x), model.last(m * z))
    assert len(model.layers) == 2


def test_defaults_are_the_papers() -> None:
    with torch.device("meta"):
        model = SL2A()
    assert model.first.coefficients.shape == (2, 256, 513)
    assert [layer.left.shape for layer in model.layers] == [(256, 32)] * 3
    layer = LowRankLinear(100, 25)
    for values, bound in ((layer.left, 0.2), (layer.right, 0.1), (layer.bias, 0.2)):
        assert 0.9 * bound < float(values.detach().abs().max()) <= bound


def test_line_integrals_of_a_disk_and_of_a_ramp() -> None:
    angles, offsets = torch.tensor([0.0, 0.7, 2.0]), torch.tensor([-0.4, 0.0, 0.3, 0.9])
    disk = line_integrals(lambda p: (p.square().sum(-1, keepdim=True) < 0.25).float(), angles, offsets, 4000)
    chords = 2 * (0.25 - offsets.square()).clamp(min=0).sqrt()
    torch.testing.assert_close(disk[..., 0], chords.expand(3, 4), atol=2e-3, rtol=0)
    # x along a line has the mean offset * cos(angle), over a chord of the unit disk
    ramp = line_integrals(lambda p: p[..., :1], angles, offsets, 4000)[..., 0]
    wanted = angles.cos()[:, None] * offsets * 2 * (1 - offsets.square()).sqrt()
    torch.testing.assert_close(ramp, wanted, atol=2e-3, rtol=0)


def test_pixels_and_psnr() -> None:
    image = torch.arange(12.0).view(2, 2, 3)
    x, y = pixels(image)
    torch.testing.assert_close(x[4], torch.tensor([0.5, 0.0]))
    assert y[4].tolist() == [4.0, 10.0]
    assert psnr(0.01) == pytest.approx(20)
    assert math.isnan(psnr(math.nan))


def test_baselines_are_their_papers() -> None:
    torch.manual_seed(0)
    net = siren(256, 2)
    assert float(net[0].weight.detach().abs().max()) == pytest.approx(0.5, rel=0.02)
    assert float(net[2].weight.detach().abs().max()) == pytest.approx(math.sqrt(6 / 256) / 30, rel=0.01)
    # the distribution of SIREN's activations: an arcsine law, of variance 1/2
    hidden = net[:4](uniform(2000, 2)).detach()
    assert float(hidden.var()) == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(Sine(2.0)(torch.tensor(0.3)), torch.tensor(math.sin(0.6)))
    torch.testing.assert_close(Sine(2.0, True)(torch.tensor(-0.5)), torch.tensor(math.sin(-1.5)))
    found = Encoding(2)(torch.tensor([0.25, -0.5]))
    angles = [math.pi * v for v in (0.25, 0.5, -0.5, -1.0)]
    wanted = [0.25, -0.5, *map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_widths_are_matched() -> None:
    own = SL2A(out_features=1, width=64, depth=2, degree=256, rank=32)
    for build in (partial(siren, depth=2), partial(relu_encoded, depth=2, frequencies=7)):
        assert parameters(matched(build, own)()) == pytest.approx(parameters(own), rel=0.02)
    assert parameters(nn.Linear(3, 2)) == 8


def test_photographs_are_averaged_down() -> None:
    data = pytest.importorskip("skimage.data")
    x = photograph("camera", 256)
    assert x.shape == (1, 256, 256)
    assert float(x[0, 3, 5]) == pytest.approx(data.camera()[6:8, 10:12].mean() / 255)
    assert photograph("astronaut", 64).shape == (3, 64, 64)
    with pytest.raises(WorkingPapersError, match=r"has \(512, 512\) pixels, no multiple of 100"):
        photograph("camera", 100)


def test_fitting_reports_psnr_of_the_test_points() -> None:
    from workingpapers.data import Split

    x = uniform(64, 2)
    split = Split(x, x[:, :1], x, torch.full((64, 1), 0.1), 0, "ramp")
    early, late = fitted(partial(SL2A, 2, 1, 8, 1, 4, 4), split, 40, seed=0, batch=64)
    assert 0 < late < 20
    assert early != late


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(WorkingPapersError, match="a degree of at least 1; got 0"):
        SL2A(degree=0)
    with pytest.raises(WorkingPapersError, match="between 1 and the width 8; got 9"):
        SL2A(width=8, rank=9)
    with pytest.raises(WorkingPapersError, match="points have 2 coordinates here; got 3"):
        SL2A(width=8, rank=4, degree=4)(uniform(5, 3))
