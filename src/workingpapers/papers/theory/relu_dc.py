"""ReLU in the frequency domain: half the input, even harmonics, and a constant that speaks of the input.

    relu(x) = (x + |x|) / 2,      |x| = sqrt(1 + (x^2 - 1)) = sum_n binom(1/2, n) (x^2 - 1)^n,     |x| <= sqrt 2
    relu(A cos t) = A [1/pi + cos(t)/2 + (2/pi) sum_{n>=1} (-1)^{n+1} cos(2nt) / (4n^2 - 1)]

A product of signals is a convolution of spectra, so the series says what each frequency puts where.

Paper: "DC is all you need: describing ReLU from a signal processing standpoint" (2024), Sections II and III.
"""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most, below
from workingpapers.papers.theory._movement import probe_accuracy, small_cnn, train_until, weight_movement
from workingpapers.papers.theory._textures import photograph_row, textures
from workingpapers.surgery.choose import Modules
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, initialise


def convolve(a: Tensor, b: Tensor) -> Tensor:
    """Return the circular convolution of two spectra of one shape, over all their dimensions."""
    product: Tensor = torch.fft.fftn(torch.fft.ifftn(a) * torch.fft.ifftn(b)) * a.numel()
    return product


def predicted_spectrum(x: Tensor, order: int = 40) -> Tensor:
    """Return the spectrum (coefficients of exp, so that [0] is the mean) of relu(x) by the series up to `order`.

    `x` is a real signal of any number of dimensions, taken as periodic and scaled to a largest size of 1 within.
    """
    scale = x.abs().max()
    spectrum = torch.fft.fftn((x / scale).double()) / x.numel()
    one = torch.zeros_like(spectrum)
    one.view(-1)[0] = 1
    below_one = convolve(spectrum, spectrum) - one  # of x^2 - 1
    power, size, coefficient = one, torch.zeros_like(spectrum), 1.0
    for n in range(order + 1):
        size = size + coefficient * power
        power = convolve(power, below_one)
        coefficient *= (0.5 - n) / (n + 1)
    rectified: Tensor = scale.double() * (spectrum + size) / 2
    return rectified


def cosine_harmonics(count: int, amplitude: float = 1.0) -> list[float]:
    """Return the mean and the amplitudes of cos(t) to cos(count t) in relu(amplitude cos t)."""
    found = [1 / math.pi, 0.5]
    for k in range(2, count + 1):
        n = k // 2
        found.append(0.0 if k % 2 else (2 / math.pi) * (-1) ** (n + 1) / (4 * n * n - 1))
    return [amplitude * value for value in found[: count + 1]]


def _signal(generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(64, generator=generator),)


@paper(
    "relu_dc",
    example=_signal,
    invariances={
        "scale": lambda x: (3.7 * x,),
        "shift": lambda x: (x.roll(5),),
        "mirror": lambda x: (x.flip(0),),
    },
)
def relu_spectrum(x: Tensor, order: int = 40) -> Finding:
    """Compare the series with the spectrum of relu(x), for a real signal or image taken as periodic.

    The numbers are the relative error of the spectrum, the constant that ReLU adds and the predicted one, and
    the share of the power at other frequencies than x has, all relative to the signal's size.

    Raises:
        WorkingPapersError: where `x` is no floating tensor with values other than 0, or the order is negative.
    """
    if not x.is_floating_point() or not x.any():
        raise WorkingPapersError("a spectrum is of a floating tensor that is not 0 throughout")
    if order < 0:
        raise WorkingPapersError(f"the order of the series is at least 0; got {order}")
    true = torch.fft.fftn(torch.relu(x).double()) / x.numel()
    found = predicted_spectrum(x, order)
    own = torch.fft.fftn(x.double()) / x.numel()
    size = float(x.double().abs().max())
    added = (true - own / 2).abs().square()
    numbers = {
        "relative error": float((found - true).abs().square().sum() / true.abs().square().sum()) ** 0.5,
        "constant added": float((true - own / 2).reshape(-1)[0].real) / size,
        "constant predicted": float((found - own / 2).reshape(-1)[0].real) / size,
        "share of the added power that is constant": float(added.reshape(-1)[0] / added.sum()),
    }
    constant = numbers["share of the added power that is constant"]
    reading = (
        f"The series of order {order} is off by {numbers['relative error']:.2%} of the spectrum's norm, and "
        f"{constant:.0%} of what ReLU adds to half the signal is constant."
    )
    return Finding(numbers, reading, details={"true": true, "predicted": found})


_IMAGES: dict[str, Any] = {
    "example": lambda batch, g: torch.randn(batch, 3, 5, 4, generator=g),
    "elementwise": False,
}


@paper("relu_dc", part="no_dc", kind="activation", positively_homogeneous=True, zero_at_zero=True, **_IMAGES)
class ReLUNoDC(nn.Module):
    """ReLU without its mean over space: (B, C, ...) with one or more dimensions of space -> the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(x) minus its mean over space for each example and channel."""
        y = torch.relu(x)
        return y - y.mean(_space(x), keepdim=True)


@paper(
    "relu_dc", part="only_dc", kind="activation", positively_homogeneous=True, zero_at_zero=True, **_IMAGES
)
class ReLUOnlyDC(nn.Module):
    """The mean over space of ReLU, everywhere: (B, C, ...) with dimensions of space -> the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of relu(x) over space for each example and channel, at every place."""
        return torch.relu(x).mean(_space(x), keepdim=True).expand_as(x).contiguous()


def _space(x: Tensor) -> list[int]:
    if x.ndim < 3:
        raise WorkingPapersError(
            f"the mean is over space, in (B, C, ...) of 3 or more dimensions; got {x.ndim}"
        )
    return list(range(2, x.ndim))


def dc_share(y: Tensor) -> float:
    """Return the mean square of the channels' means over space, over the mean square of `y` (B, C, ...)."""
    means = y.double().flatten(2).mean(2)
    return float(means.square().mean() / y.double().square().mean().clamp(min=1e-300))


def radial_spectrum(y: Tensor) -> Tensor:
    """Return the mean power of `y` (B, C, H, W) at each whole distance from frequency 0, to half the size."""
    power = (torch.fft.fft2(y.double()).abs() / (y.shape[-2] * y.shape[-1])).square().mean((0, 1))
    rows, columns = (torch.fft.fftfreq(n).mul(min(power.shape)) for n in power.shape)
    distance = (rows[:, None] ** 2 + columns**2).sqrt().round().long()
    count = min(power.shape) // 2 + 1
    inside = distance < count
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, distance[inside], power[inside])
    return total / torch.bincount(distance[inside], minlength=count).clamp(min=1)


def _net(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return small_cnn(nn.ReLU, classes=4), torch.randn(2, 1, 16, 16, generator=generator)


@paper("relu_dc", part="layers", kind="analysis", example=_net)
def layer_spectra(model: nn.Module, image: Tensor, modules: Modules = nn.ReLU) -> Finding:
    """Return what each ReLU does to the spectra of its channels, for images (B, C, H, W).

    The numbers are the constant's share of the power before and after it, and the share of the upper half of
    the frequencies; the radial spectra are in the details and the figure.
    """
    sides = {"before": collect(model, image, modules, side="input"), "after": collect(model, image, modules)}
    spectra = {(name, side): radial_spectrum(y) for side, found in sides.items() for name, y in found.items()}
    numbers = {}
    for (name, side), spectrum in spectra.items():
        numbers[f"{name} constant {side}"] = dc_share(sides[side][name])
        upper = spectrum[len(spectrum) // 2 :].sum() / spectrum[1:].sum().clamp(min=1e-300)
        numbers[f"{name} upper half {side}"] = float(upper)
    before, after = (
        sum(v for name, v in numbers.items() if name.endswith(f"constant {side}")) / len(sides[side])
        for side in ("before", "after")
    )
    reading = f"On average {before:.0%} of the power is constant before a ReLU and {after:.0%} after it."

    def figure() -> Any:
        from matplotlib import pyplot

        drawn, axes = pyplot.subplots(
            1, len(sides["after"]), figsize=(3 * len(sides["after"]), 3), squeeze=False
        )
        for axis, name in zip(axes[0], sides["after"], strict=True):
            for side in sides:
                axis.semilogy(spectra[name, side].clamp(min=1e-12), label=side)
            axis.set(title=name, xlabel="frequency")
        axes[0][0].legend()
        return drawn

    return Finding(numbers, reading, figure, details={"spectra": spectra})


@claim(
    "relu_dc",
    "ReLU adds higher-frequency oscillations and a constant term to a signal, as its series expansion predicts and "
    "numerical checks confirm.",
    seeds=5,
    holds=all_of(
        at_most(0.02, of="tone", by="every"),
        at_most(0.04, of="two_tones", by="every"),
        at_most(0.11, of="noise", by="every"),
        below(1.0, of="growth", by="every"),
        at_most(1e-3, of="harmonics", by="every"),
    ),
)
def series_predicts_the_spectrum(budget: Budget, seed: int) -> Evidence:
    """Relative error of the spectrum at order 40 for 1,024 points of tones, noise and a row of a photograph.

    `growth` is the largest ratio of an error to that at the order before, of 5, 10, 20 and 40; `harmonics` the
    largest distance of a tone's harmonics from the closed form.
    """
    generator, t = np.random.default_rng(seed), 2 * math.pi * np.arange(1024) / 1024
    one, two, three = generator.choice(np.arange(3, 60), 3, replace=False)
    phases = generator.uniform(0, 2 * math.pi, 3)
    signals = {
        "tone": np.cos(one * t + phases[0]),
        "two_tones": np.cos(two * t + phases[1]) + np.cos(three * t + phases[2]),
        "noise": generator.standard_normal(1024),
        "row": photograph_row(1024, seed),
    }
    found, growth = {}, 0.0
    for name, signal in signals.items():
        x = torch.from_numpy(signal)
        errors = [relu_spectrum(x, n).numbers["relative error"] for n in (5, 10, 20, 40)]
        growth = max(growth, *(b / a for a, b in pairwise(errors)))
        found[name] = errors[-1]
    spectrum = torch.fft.fft(torch.cos(torch.from_numpy(t)).relu()).real / 1024
    measured = [float(spectrum[0]), *(2 * float(v) for v in spectrum[1:9])]
    wrong = max(abs(a - b) for a, b in zip(measured, cosine_harmonics(8), strict=True))
    return Evidence(**found, growth=growth, harmonics=wrong)


@claim(
    "relu_dc",
    "The added constant helps extract features tied to input frequency and leads to final weights close to the "
    "random starting ones.",
    seeds=5,
    holds=all_of(
        at_most(0.85, of="movement"), at_least(0.95, of="accuracy", by="every"), at_least(0.8, of="probe")
    ),
)
def constant_keeps_weights(budget: Budget, seed: int) -> Evidence:
    """How far weights move until 95 % of the training data are right, over how far without the constant.

    On textures of four bands of frequencies in noise; `mnist` the same on digits.  `probe` is the test accuracy
    of logistic regression on the means over space of all channels of a random net.
    """
    sets = {"textures": textures(budget.pick(quick=1000, full=5000), seed)}
    split = images("mnist", train=budget.pick(quick=2000, full=5000), test=10, size=14, seed=seed)
    sets["mnist"] = (split.x_train, split.y_train)
    movement, reached = {}, []
    for name, (x, y) in sets.items():
        for activation in (nn.ReLU, ReLUNoDC):
            build = partial(small_cnn, activation, 10, size=x.shape[-1])
            start, net = initialise(build, seed), initialise(build, seed)
            reached.append(train_until(net, x, y, 0.95, seed))
            movement[name, activation] = weight_movement(net, start)[0]
    x, y = sets["textures"]
    found = collect(initialise(partial(small_cnn, nn.ReLU, 10), seed), x, nn.ReLU)
    features, cut = torch.cat([channels.mean((2, 3)) for channels in found.values()], 1), len(x) // 2
    return Evidence(
        movement=movement["textures", nn.ReLU] / movement["textures", ReLUNoDC],
        mnist=movement["mnist", nn.ReLU] / movement["mnist", ReLUNoDC],
        accuracy=min(reached),
        probe=probe_accuracy(features[:cut], y[:cut], features[cut:], y[cut:]),
    )
