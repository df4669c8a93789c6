"""Properties of an elementwise function, found numerically in float64 on a grid from -1e4 to 1e4."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor, nn

STEP = 0.0025
FINE = torch.arange(-4800, 4801, dtype=torch.float64) * STEP  # 0, where many have a corner, is a point
FAR = torch.logspace(math.log10(12.01), 4, 200, dtype=torch.float64)
GRID = torch.cat([-FAR.flip(0), FINE, FAR])
ROUNDING = 1e-9
TINY = 1e-12


@dataclass(frozen=True)
class Curve:
    """What was found of one function.

    Attributes:
        low, high: its range on the grid, infinite where it still grows at 1e4.
        lipschitz: the largest slope in size, infinite where it still grows at 1e4.
        zeros: where it crosses or touches zero, or the two ends of a stretch where it is zero.
        minimum: place and value of its lowest point, or None where it has none.
        monotone: never falling, or never rising.
        smooth: without corners and jumps.
        gain: what weights of variance gain^2 / fan-in have to be scaled by, so that a normal input of variance 1
            keeps its second moment: 1 / sqrt(E f(z)^2).
    """

    low: float
    high: float
    lipschitz: float
    zeros: tuple[float, ...]
    minimum: tuple[float, float] | None
    monotone: bool
    smooth: bool
    gain: float

    def as_dict(self) -> dict[str, Any]:
        """Return the properties by name."""
        return asdict(self)


def evaluated(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return values and slopes of an elementwise `function` at the points `x` (N,) in their dtype.

    A module is copied and put into evaluation mode; the points enter it as (N, 1).

    Raises:
        ValueError: where the output has another shape.
    """
    own = copy.deepcopy(function)
    if isinstance(own, nn.Module):
        own = own.eval().cpu().to(x.dtype)
    points = x.detach().reshape(-1, 1).requires_grad_()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        y = own(points)
        if y.shape != points.shape:
            raise ValueError("an elementwise function keeps its input's shape")
        slope = torch.autograd.grad(y.sum(), points)[0] if y.requires_grad else torch.zeros_like(points)
    return y.detach()[:, 0], slope[:, 0]


def measured(function: Callable[[Tensor], Tensor]) -> Curve:
    """Measure an elementwise `function` (a module, at its present parameters, or any callable)."""

    def value(x: float) -> float:
        return float(evaluated(function, torch.tensor([x], dtype=torch.float64))[0])

    y, slope = evaluated(function, GRID)
    size = slope.abs()
    steps = y.diff()
    noise = ROUNDING * y.abs().clamp(min=1)[1:]
    density = torch.exp(-FINE.square() / 2) / math.sqrt(2 * math.pi)
    power = torch.trapezoid(y[len(FAR) : -len(FAR)].square() * density, FINE)
    grows = max(size[0], size[-1]) > 1.001 * size[len(FAR) // 2 : -len(FAR) // 2].max()
    return Curve(
        low=-math.inf if _runs_away(-y) else float(y.min()),
        high=math.inf if _runs_away(y) else float(y.max()),
        lipschitz=math.inf if grows else float(size.max()),
        zeros=_zeros(value, y),
        minimum=_minimum(value, y),
        monotone=bool((steps >= -noise).all() or (steps <= noise).all()),
        smooth=_smooth(function, y, slope),
        gain=float(power.clamp(min=1e-300).rsqrt()),
    )


def _runs_away(y: Tensor) -> bool:
    """Tell whether `y` is highest at an end of the grid and still rising there."""
    inner = y[len(FAR) // 2 : -len(FAR) // 2].max()
    return bool(max(y[0], y[-1]) > inner + 0.01 * (1 + inner.abs()))


def _zeros(value: Callable[[float], float], y: Tensor) -> tuple[float, ...]:
    x = GRID.tolist()
    crossings = ((y[:-1] * y[1:]) < 0).nonzero()[:, 0].tolist()
    found = [brentq(value, x[i], x[i + 1]) for i in crossings if max(abs(y[i]), abs(y[i + 1])) > TINY]
    flat = [-2, *(y.abs() <= TINY).nonzero()[:, 0].tolist(), len(x) + 1]
    starts = [i for before, i in pairwise(flat[:-1]) if i != before + 1]
    ends = [i for i, after in pairwise(flat[1:]) if i != after - 1]
    for first, last in zip(starts, ends, strict=True):
        beside = [y[i].abs() for i in (first - 4, last + 4) if 0 <= i < len(x)]
        if min(beside, default=0) > TINY**0.75:  # else it is a tail that only fades away
            low = -math.inf if first == 0 else x[first]
            high = math.inf if last == len(x) - 1 else x[last]
            found += [low] if low == high else [low, high]
    return tuple(sorted(found))


def _minimum(value: Callable[[float], float], y: Tensor) -> tuple[float, float] | None:
    i = int(y.argmin())
    if i in (0, len(GRID) - 1) or float(y[i]) >= float(min(y[0], y[-1])) - ROUNDING:
        return None
    low, high = float(GRID[i - 1]), float(GRID[i + 1])
    found = minimize_scalar(value, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    return float(found.x), float(found.fun)


def _smooth(function: Callable[[Tensor], Tensor], y: Tensor, slope: Tensor) -> bool:
    """Tell whether the largest turn of the slope, and of the value, vanishes as the points move together."""
    for values, which in ((slope, 1), (y, 0)):
        jumps = values[len(FAR) : -len(FAR)].diff().abs()
        i = int(jumps.argmax())
        low, high = float(FINE[i]), float(FINE[i + 1])
        for _ in range(30):  # halve the interval towards the greater jump
            middle = (low + high) / 2
            at = evaluated(function, torch.tensor([low, middle, high], dtype=torch.float64))[which]
            low, high = (low, middle) if abs(at[1] - at[0]) >= abs(at[2] - at[1]) else (middle, high)
        at = evaluated(function, torch.tensor([low, high], dtype=torch.float64))[which]
        if abs(at[1] - at[0]) > 1e-3 * max(float(jumps[i]), 1e-6) and abs(at[1] - at[0]) > 1e-6:
            return False
    return True
