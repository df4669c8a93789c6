"""Elementwise functions as functions of one real number: values, slopes, places where they are not smooth."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown

Activation = str | nn.Module | Callable[[Tensor], Tensor]

NAMED: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "abs": torch.abs,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "exp": torch.exp,
    "gaussian": lambda x: torch.exp(-x * x),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
}
EDGES = np.linspace(-10.0, 10.0, 321)
REACH, STEP = 40.0, 1 / 256
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(8)


@dataclass(frozen=True)
class Kink:
    """A place where a function is not smooth, and by how much its value and first four derivatives jump there."""

    place: float
    jumps: tuple[float, ...]


class Scalar:
    """An elementwise activation in float64; a module is copied, put into evaluation mode and left alone otherwise.

    `activation` is a module, a function of tensors, or one of the names in `NAMED`.

    Raises:
        WorkingPapersError: where the function does not keep the shape of points (N, 1), or an output depends on
            other inputs than its own.
    """

    def __init__(self, activation: Activation) -> None:
        if isinstance(activation, str):
            if activation not in NAMED:
                raise unknown("activation known here by name", activation, NAMED)
            activation = NAMED[activation]
        self.given = activation
        own = activation
        if isinstance(activation, nn.Module):
            own = copy.deepcopy(activation).cpu().double().eval().requires_grad_(False)
        self._function = own
        probe = torch.tensor([-1.3, 0.4, 2.0], dtype=torch.float64)
        values = self(probe)
        if not torch.allclose(values, torch.cat([self(x[None]) for x in probe]), atol=1e-9, equal_nan=True):
            raise WorkingPapersError(
                "limits of width need an elementwise activation; this one mixes its inputs"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Return the values at the points `x`, float64 of any shape."""
        found = self._function(x.detach().reshape(-1, 1).clone())
        if not isinstance(found, Tensor) or found.numel() != x.numel():
            raise WorkingPapersError("limits of width need an activation that keeps the shape of its input")
        return found.detach().double().reshape(x.shape)

    def slope(self, x: Tensor) -> Tensor:
        """Return the derivatives at the points `x`, as autograd takes them."""
        with torch.enable_grad():
            point = x.detach().reshape(-1, 1).clone().requires_grad_()
            value = self._function(point.clone())  # some work in place
            if not value.requires_grad:
                return torch.zeros_like(x)
            found = torch.autograd.grad(value.sum(), point, materialize_grads=True)[0]
        return found.reshape(x.shape)

    def mean(self, function: Callable[[Tensor], Tensor], variance: float) -> float:
        """Return E function(z) for z of N(0, variance), by quadrature between the kinks of the activation."""
        sigma = max(variance, 0.0) ** 0.5
        if not sigma:
            return float(function(torch.zeros(1, dtype=torch.float64)))
        cuts = [k.place / sigma for k in self.kinks]
        x, w = rule(np.unique([*EDGES, *[c for c in cuts if abs(c) < 10]]))
        return float(function(sigma * x) @ w)

    @cached_property
    def kinks(self) -> list[Kink]:
        """All places up to 40 from zero where value, slope or second derivative jump, with higher jumps there."""
        grid = torch.arange(-REACH, REACH + STEP / 2, STEP, dtype=torch.float64)
        size, bent = _fourth(self(grid))
        limit = 1e-8 * (1 + size.abs()).clamp(max=10) + 1e-13 * size.abs()
        bent = torch.where(bent > limit, bent, torch.zeros_like(bent)).nan_to_num()
        around = F.max_pool1d(bent[None, None], 5, 1, 2)[0, 0]
        peaks = ((bent == around) & (bent > 0)).nonzero()[:, 0]
        peaks = peaks[bent[peaks].argsort(descending=True)][:64]
        places: list[tuple[float, float]] = []
        for peak in peaks.tolist():
            place, width = self._zoom(float(grid[2:-2][peak]), STEP)
            if all(abs(place - other) > 1e-6 for other, _ in places):
                places.append((place, width))
        found = []
        for place, width in sorted(places):
            gap = min((abs(place - p) for p, _ in places if p != place), default=1.0)
            jumps = self._jumps(place, width, gap)
            if any(jumps):
                found.append(Kink(place, jumps))
        return found

    def _zoom(self, place: float, step: float) -> tuple[float, float]:
        """Return the place of the kink nearest to a coarse one, and how far off that may be."""
        while step > 1e-12 * (1 + abs(place)):
            fine = step / 8
            grid = place + fine * torch.arange(-18, 19, dtype=torch.float64)
            size, bent = _fourth(self(grid))
            top = int(bent.argmax())
            if float(bent[top]) < 100 * torch.finfo(torch.float64).eps * float(size.abs().max()) + 1e-300:
                break
            place, step = float(grid[2:-2][top]), fine
        rounded = round(place, 6)
        return (rounded if abs(rounded - place) <= 8 * step else place) + 0.0, 4 * step

    def _jumps(self, place: float, width: float, gap: float) -> tuple[float, ...]:
        for reach in (0.1, 0.02, 0.005, 0.001):
            reach = min(reach, 0.4 * gap)
            right, rough = self._side(place, width, reach)
            left, other = self._side(place, -width, -reach)
            if max(rough, other) < 1e-12:
                break
        jumps = right - left
        scale = 1 + max(abs(right[0]), abs(left[0]))
        noise = scale * np.array([1e-10, 1e-14 / reach, 1e-11 / reach**2, 1e-11 / reach**3, 1e-10 / reach**4])
        jumps[np.abs(jumps) < np.maximum(noise, scale * np.array([0, 1e-8, 1e-6, 1e-4, 1e-2]))] = 0.0
        return tuple(jumps.tolist()) if jumps[:3].any() else ()

    def _side(self, place: float, width: float, reach: float) -> tuple[np.ndarray, float]:
        """Return value and four derivatives on one side, and how badly a polynomial fits there."""
        t = (1 - np.cos(np.linspace(0.1, np.pi, 24))) / 2
        y = self(torch.from_numpy(place + width + reach * t)).numpy()
        powers = np.vander(t + width / reach, 11, increasing=True)
        c = np.linalg.lstsq(powers, y, rcond=None)[0]
        rough = float(np.abs(powers @ c - y).max() / (1 + np.abs(y).max()))
        return c[:5] * np.array([1, 1, 2, 6, 24]) / reach ** np.arange(5), rough


def _fourth(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inner values and the sizes of their fourth differences."""
    d = values[4:] - 4 * values[3:-1] + 6 * values[2:-2] - 4 * values[1:-3] + values[:-4]
    return values[2:-2], d.abs()


def rule(edges: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return points and weights of an integral over the standard normal, Gauss-Legendre between the edges."""
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    x = (middle[:, None] + half[:, None] * POINTS).reshape(-1)
    w = (half[:, None] * WEIGHTS).reshape(-1) * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    return torch.from_numpy(x), torch.from_numpy(w)
