"""The series against numpy's transforms, the harmonics in closed form, and the constant taken out."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._movement import probe_accuracy, small_cnn, train_until, weight_movement
from workingpapers.papers.theory._textures import BANDS, photograph_row, textures
from workingpapers.papers.theory.relu_dc import (
    ReLUNoDC,
    ReLUOnlyDC,
    convolve,
    cosine_harmonics,
    dc_share,
    layer_spectra,
    predicted_spectrum,
    radial_spectrum,
    relu_spectrum,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_convolution_of_spectra_is_the_sum_over_all_pairs() -> None:
    a, b = (torch.complex(normal(7, seed=s), normal(7, seed=s + 2)).to(torch.complex128) for s in (0, 1))
    wanted = [sum(a[j] * b[(k - j) % 7] for j in range(7)) for k in range(7)]
    torch.testing.assert_close(convolve(a, b), torch.stack(wanted))  # type: ignore[arg-type]
    x = normal(4, 6).double()
    spectrum = torch.fft.fft2(x) / 24
    torch.testing.assert_close(convolve(spectrum, spectrum), torch.fft.fft2(x * x) / 24)


@pytest.mark.parametrize("order", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("shape", [(50,), (6, 9)])
def test_the_prediction_is_the_truncated_series(order: int, shape: tuple[int, ...]) -> None:
    x = 3 * normal(*shape).double()
    s = (x / x.abs().max()).numpy()
    binomials = [math.prod((0.5 - j) / (j + 1) for j in range(n)) for n in range(order + 1)]
    absolute = sum(c * (s * s - 1) ** n for n, c in enumerate(binomials))
    wanted = float(x.abs().max()) * np.fft.fftn((s + absolute) / 2) / s.size
    np.testing.assert_allclose(predicted_spectrum(x, order).numpy(), wanted, atol=1e-12)


def test_the_errors_of_order_40_for_a_tone() -> None:
    t = 2 * math.pi * torch.arange(1024, dtype=torch.float64) / 1024
    errors = [relu_spectrum(torch.cos(5 * t), n).numbers["relative error"] for n in (5, 10, 20, 40, 400)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] == pytest.approx(0.0145, abs=0.0007)
    assert errors[4] < 0.004


def test_harmonics_of_a_cosine() -> None:
    found = cosine_harmonics(4)
    assert found == pytest.approx([1 / math.pi, 0.5, 2 / (3 * math.pi), 0, -2 / (15 * math.pi)])
    assert cosine_harmonics(0, 3.0) == pytest.approx([3 / math.pi])
    n = 4096
    y = np.maximum(2.5 * np.cos(2 * np.pi * np.arange(n) / n), 0)
    measured = np.fft.rfft(y).real / n
    measured[1:] *= 2
    np.testing.assert_allclose(cosine_harmonics(12, 2.5), measured[:13], atol=1e-5)
    # Parseval: the mean square of relu(cos t) is 1/4
    many = cosine_harmonics(400)
    assert many[0] ** 2 + sum(v * v for v in many[1:]) / 2 == pytest.approx(0.25, abs=1e-7)


def test_what_relu_adds_to_a_tone() -> None:
    t = 2 * math.pi * torch.arange(256, dtype=torch.float64) / 256
    numbers = relu_spectrum(4 * torch.cos(3 * t), 60).numbers
    assert numbers["constant added"] == pytest.approx(1 / math.pi, abs=1e-3)
    assert numbers["constant predicted"] == pytest.approx(1 / math.pi, abs=0.01)
    # |cos| has the mean 2/pi and the mean square 1/2
    share = numbers["share of the added power that is constant"]
    assert share == pytest.approx((2 / math.pi) ** 2 / 0.5, abs=1e-3)


def test_relu_without_its_constant() -> None:
    x = normal(3, 4, 5, 6)
    y, constant = ReLUNoDC()(x), ReLUOnlyDC()(x)
    torch.testing.assert_close(y.mean((2, 3)), torch.zeros(3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(y + constant, torch.relu(x))
    assert torch.equal(constant, constant[..., :1, :1].expand_as(x))
    assert dc_share(y) == pytest.approx(0, abs=1e-12)
    assert dc_share(constant) == pytest.approx(1)
    with pytest.raises(WorkingPapersError, match="of 3 or more dimensions; got 2"):
        ReLUNoDC()(normal(3, 4))


def test_radial_spectra_find_a_wave_where_it_is() -> None:
    place = torch.arange(16) / 16
    wave = torch.cos(2 * math.pi * (3 * place[:, None] + 4 * place))  # at distance 5
    spectrum = radial_spectrum((2 + wave)[None, None])
    assert spectrum[0] == pytest.approx(4)
    rows, columns = np.meshgrid(np.fft.fftfreq(16, 1 / 16), np.fft.fftfreq(16, 1 / 16))
    at_five = int((np.round(np.hypot(rows, columns)) == 5).sum())
    assert float(spectrum[5]) == pytest.approx(0.5 / at_five)
    assert float(spectrum[[1, 2, 3, 4, 6, 7, 8]].max()) < 1e-12


def test_layer_spectra_measure_both_sides_of_each_relu() -> None:
    torch.manual_seed(0)
    model, x = small_cnn(nn.ReLU, 4), normal(3, 1, 16, 16)
    numbers = layer_spectra(model, x).numbers
    assert len(numbers) == 12
    h = model[:3](x).detach()
    assert numbers["3 constant before"] == pytest.approx(dc_share(h))
    assert numbers["3 constant after"] == pytest.approx(dc_share(h.relu()))
    spectrum = radial_spectrum(h)
    assert numbers["3 upper half before"] == pytest.approx(float(spectrum[2:].sum() / spectrum[1:].sum()))


def test_movement_of_weights() -> None:
    start = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for a, b in zip(model.parameters(), start.parameters(), strict=True):
        a.data = 3 * b.data
    assert weight_movement(model, start) == pytest.approx((2, 1))
    model[0].weight.data.neg_()
    a, b = (float(layer.weight.detach().square().sum()) for layer in start)
    assert weight_movement(model, start)[1] == pytest.approx((b - a) / (a + b), abs=1e-5)
    model[0].bias.data.fill_(100)
    assert weight_movement(model, start)[1] == pytest.approx((b - a) / (a + b), abs=1e-5)


def test_training_stops_at_the_accuracy() -> None:
    torch.manual_seed(0)
    x, y = normal(60, 5), torch.arange(60) % 2
    x[:, 0] = 4.0 * y - 2
    model = nn.Linear(5, 2)
    reached = train_until(model, x, y, 0.9, seed=0, most=2000)
    assert 0.9 <= reached <= 1
    assert reached == pytest.approx(float((model(x).argmax(1) == y).float().mean()))
    assert train_until(nn.Linear(5, 2), normal(60, 5), y, 1.1, seed=0, most=10) < 1


def test_the_probe_separates_what_is_linear() -> None:
    x, y = normal(200, 3), torch.arange(200) % 2
    assert probe_accuracy(x, y, normal(200, 3, seed=1), y) < 0.65
    x[:, 1] *= 0.01
    x[:, 1] += 100.0 + y
    assert probe_accuracy(x[:100], y[:100], x[100:], y[100:]) == 1


def test_textures_lie_in_their_bands() -> None:
    x, y = textures(200, seed=3, size=32, noise=0.0)
    power = torch.fft.fft2(x[:, 0]).abs().square()
    f = torch.fft.fftfreq(32) * 32
    distance = (f[:, None] ** 2 + f**2).sqrt()
    centre = (power * distance).sum((1, 2)) / power.sum((1, 2))
    for band, (low, high) in enumerate(BANDS):
        assert low - 0.3 < float(centre[y == band].median()) < high + 1.2
    assert y.bincount().tolist() == [50] * 4
    assert float(textures(400, seed=3)[0].var()) == pytest.approx(0.75, abs=0.05)


def test_rows_of_the_photograph() -> None:
    row = photograph_row(1024, 0)
    assert row.shape == (1024,)
    assert row.mean() == pytest.approx(0, abs=1e-9)
    assert not np.array_equal(row, photograph_row(1024, 1))


def test_wrong_signals_are_refused() -> None:
    with pytest.raises(WorkingPapersError, match="a floating tensor that is not 0 throughout"):
        relu_spectrum(torch.zeros(4))
    with pytest.raises(WorkingPapersError, match="at least 0; got -1"):
        relu_spectrum(normal(4), -1)
