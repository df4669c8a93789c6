"""Families of functions of one variable, evaluated at every input at once: (N, I) -> (N, I, size)."""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from workingpapers.engines.bases.splines import (
    dense_bases,
    extended_knots,
    grid_points,
    uniform_points,
)
from workingpapers.errors import WorkingPapersError, unknown


class Basis(nn.Module):
    """`size` functions for each of `in_features` inputs; `evaluate` is a pure function of x and `tensors()`."""

    def __init__(self, in_features: int, size: int) -> None:
        super().__init__()
        if in_features < 1 or size < 1:
            raise WorkingPapersError(
                f"a basis has at least one input and one function; got {in_features} and {size}"
            )
        self.in_features, self.size = in_features, size

    def tensors(self) -> Sequence[Tensor]:
        """Return the parameters and buffers that `evaluate` takes after x."""
        return ()

    def evaluate(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """Return the functions at x (N, I), (N, I, size)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the functions at x (N, I), (N, I, size)."""
        return self.evaluate(x, *self.tensors())

    def select(self, features: Sequence[int]) -> "Basis":
        """Return a copy for these inputs alone."""
        small, rows = copy.deepcopy(self), list(features)
        small.in_features = len(rows)
        for name, parameter in list(small.named_parameters(recurse=False)):
            if parameter.ndim == 2:  # one row per input
                setattr(small, name, nn.Parameter(parameter.detach()[rows].clone()))
        for name, buffer in list(small.named_buffers(recurse=False)):
            if buffer.ndim == 2:
                setattr(small, name, buffer[rows].clone())
        return small

    def extra_repr(self) -> str:
        return f"{self.in_features}, size={self.size}"


class BSpline(Basis):
    """B-splines of `order` (3: cubic) on a grid of its own for each input, at first even over `span`."""

    knots: Tensor

    def __init__(
        self, in_features: int, grid: int = 5, order: int = 3, span: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        if order < 0:
            raise WorkingPapersError(f"the order of a spline is 0 or more; got {order}")
        points = uniform_points(in_features, grid, span)
        super().__init__(in_features, grid + order)
        self.order = order
        self.register_buffer("knots", extended_knots(points, order))

    @property
    def grid(self) -> int:
        """How many intervals the grid has."""
        return self.size - self.order

    @property
    def points(self) -> Tensor:
        """The grid's points (I, grid + 1)."""
        return grid_points(self.knots, self.order)

    def tensors(self) -> Sequence[Tensor]:
        return (self.knots,)

    def evaluate(self, x: Tensor, *tensors: Tensor) -> Tensor:
        return dense_bases(x, tensors[0], self.order)

    def extra_repr(self) -> str:
        return f"{self.in_features}, grid={self.grid}, order={self.order}"


class RBF(Basis):
    """Gaussians exp(-((x - c) / width)^2) at `size` even centres c over `span`, as wide as they are apart."""

    centres: Tensor

    def __init__(self, in_features: int, size: int = 8, span: tuple[float, float] = (-1.0, 1.0)) -> None:
        super().__init__(in_features, size)
        self.width = (span[1] - span[0]) / max(size - 1, 1)
        self.register_buffer("centres", torch.linspace(span[0], span[1], size))

    def tensors(self) -> Sequence[Tensor]:
        return (self.centres,)

    def evaluate(self, x: Tensor, *tensors: Tensor) -> Tensor:
        return torch.exp(-(((x.unsqueeze(-1) - tensors[0]) / self.width).square()))


class _Recurrence(Basis):
    """Polynomials p_0 = 1, p_1 = x, p_{n+1} = a x p_n - b_n p_{n-1}, times a factor each, up to a degree.

    `steps` has b_1, b_2, ...; `factors` those of p_0, p_1, ...
    """

    def __init__(self, in_features: int, a: float, steps: Sequence[float], factors: Sequence[float]) -> None:
        super().__init__(in_features, len(factors))
        self.a, self.steps, self.factors = a, list(steps), list(factors)

    def evaluate(self, x: Tensor, *tensors: Tensor) -> Tensor:
        found = [torch.ones_like(x), x]
        for b in self.steps:
            found.append(self.a * x * found[-1] - b * found[-2])
        return torch.stack([f * p for f, p in zip(self.factors, found, strict=False)], dim=-1)


def _check_degree(degree: int) -> None:
    if degree < 0:
        raise WorkingPapersError(f"the degree of a polynomial is 0 or more; got {degree}")


class Chebyshev(_Recurrence):
    """Chebyshev polynomials of the first kind, T_n(cos t) = cos(n t), n from 0 to `degree`."""

    def __init__(self, in_features: int, degree: int = 4) -> None:
        _check_degree(degree)
        super().__init__(in_features, 2.0, [1.0] * (degree - 1), [1.0] * (degree + 1))


class Gram(_Recurrence):
    """Gram polynomials, orthonormal over `points` even points of [-1, 1] (mean square 1), up to `degree`."""

    def __init__(self, in_features: int, degree: int = 4, points: int = 21) -> None:
        _check_degree(degree)
        if points <= degree:
            raise WorkingPapersError(
                f"{points} points carry orthogonal polynomials up to degree {points - 1}; got {degree}"
            )
        m = points
        b = [n**2 * (m**2 - n**2) / ((4 * n**2 - 1) * (m - 1) ** 2) for n in range(1, degree + 1)]
        # the squares of the monic polynomial of degree n average to b_1 ... b_n
        factors = [math.prod(b[:n]) ** -0.5 for n in range(degree + 1)]
        super().__init__(in_features, 1.0, b[: max(degree - 1, 0)], factors)


class Fourier(Basis):
    """cos(m omega x) for m = 1 to `frequencies`, then sin(m omega x)."""

    harmonics: Tensor

    def __init__(self, in_features: int, frequencies: int = 4, omega: float = 1.0) -> None:
        super().__init__(in_features, 2 * frequencies)
        self.register_buffer("harmonics", omega * torch.arange(1.0, frequencies + 1))

    def tensors(self) -> Sequence[Tensor]:
        return (self.harmonics,)

    def evaluate(self, x: Tensor, *tensors: Tensor) -> Tensor:
        angle = x.unsqueeze(-1) * tensors[0]
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


class ReLUPower(Basis):
    """Bumps (r relu(x - low) relu(high - x))^power of height 1 on `grid` + `order` trainable intervals.

    Interval j starts at j / grid of the span, j from -order to grid - 1, and is (order + 1) / grid long;
    r = 4 grid^2 / (order + 1)^2 on a span of length 1.  With power 2 the basis of ReLU-KAN.
    """

    def __init__(
        self,
        in_features: int,
        grid: int = 5,
        order: int = 3,
        power: int = 2,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(in_features, grid + order)
        if power < 1:
            raise WorkingPapersError(f"the power of a bump is at least 1; got {power}")
        step = (span[1] - span[0]) / grid
        low = (span[0] + step * torch.arange(-order, grid)).repeat(in_features, 1)
        self.power, self.scale = power, 4 / ((order + 1) * step) ** 2
        self.low, self.high = nn.Parameter(low), nn.Parameter(low + (order + 1) * step)

    def tensors(self) -> Sequence[Tensor]:
        return self.low, self.high

    def evaluate(self, x: Tensor, *tensors: Tensor) -> Tensor:
        low, high = tensors
        x = x.unsqueeze(-1)
        bump: Tensor = (self.scale * (x - low).relu() * (high - x).relu()) ** self.power
        return bump


class MexicanHat(Basis):
    """Mexican hats 2 / (sqrt(3) pi^(1/4)) (1 - u^2) exp(-u^2 / 2), u = (x - shift) / scale, trained per input."""

    def __init__(self, in_features: int, size: int = 4, span: tuple[float, float] = (-1.0, 1.0)) -> None:
        super().__init__(in_features, size)
        width = (span[1] - span[0]) / size
        centres = span[0] + width * (torch.arange(size) + 0.5)
        self.shift = nn.Parameter(centres.repeat(in_features, 1))
        self.log_scale = nn.Parameter(torch.full((in_features, size), math.log(width)))

    def tensors(self) -> Sequence[Tensor]:
        return self.shift, self.log_scale

    def evaluate(self, x: Tensor, *tensors: Tensor) -> Tensor:
        shift, log_scale = tensors
        squared = ((x.unsqueeze(-1) - shift) * torch.exp(-log_scale)).square()
        # beyond u^2 = 200 the exponential is 0 in float32, and inf * 0 would not be
        squared = squared.clamp_max(200.0)
        height = 2 / (math.sqrt(3) * math.pi**0.25)
        hat: Tensor = height * (1 - squared) * torch.exp(-squared / 2)
        return hat


class Rational(Basis):
    """x^k / (1 + |b_1 x + ... + b_n x^n|), k from 0 to m: rational functions without poles on the real line.

    Sums of them are the rational functions of degrees (m, n) with the denominator, trained per input, that all
    outputs share; with m <= n they stay bounded.  The slope jumps where b_1 x + ... + b_n x^n passes through 0.
    """

    def __init__(self, in_features: int, numerator: int = 5, denominator: int = 4) -> None:
        _check_degree(numerator)
        if denominator < 1:
            raise WorkingPapersError(f"the degree of a denominator is at least 1; got {denominator}")
        super().__init__(in_features, numerator + 1)
        self.b = nn.Parameter(torch.randn(in_features, denominator))

    def tensors(self) -> Sequence[Tensor]:
        return (self.b,)

    def evaluate(self, x: Tensor, *tensors: Tensor) -> Tensor:
        below = torch.zeros_like(x)
        for b in reversed(tensors[0].unbind(1)):
            below = (below + b) * x
        found = [1 / (1 + below.abs())]
        while len(found) < self.size:
            found.append(found[-1] * x)
        return torch.stack(found, dim=-1)


class Linear(Basis):
    """The one function x."""

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, 1)

    def evaluate(self, x: Tensor, *tensors: Tensor) -> Tensor:
        return x.unsqueeze(-1)


BASES: dict[str, Callable[..., Basis]] = {
    "bspline": BSpline,
    "rbf": RBF,
    "chebyshev": Chebyshev,
    "fourier": Fourier,
    "relu_power": ReLUPower,
    "wavelet": MexicanHat,
    "gram": Gram,
    "rational": Rational,
    "linear": Linear,
}


def basis(name: str, in_features: int, **options: int | float) -> Basis:
    """Build the family called `name` for `in_features` inputs."""
    if name not in BASES:
        raise unknown("basis", name, BASES)
    return BASES[name](in_features, **options)
