"""Scalar functions that are written in several steps, as straight parts: `where(x > 0, x, a * x)`, softshrink."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from workingpapers.engines.bounds.formula import Formula, Step
from workingpapers.engines.bounds.straight import Kinked, Steps

Line = tuple[float, float]  # slope, offset
JUMP = 1e-9  # relative: larger jumps are not taken for rounding


@dataclass(frozen=True)
class Parts:
    """A function that is lines[i] up to borders[i], the last line beyond all."""

    borders: tuple[float, ...]
    lines: tuple[Line, ...]

    def at(self, z: float) -> Line:
        """Return the line of the part that a number inside a part lies in."""
        return self.lines[sum(z > b for b in self.borders)]


_ZERO = Parts((), ((0.0, 0.0),))


def parts_of(formula: Formula) -> Kinked | None:
    """Return a formula of one number as a function of straight parts, or None where it is none or has jumps."""
    if not formula.uniform:
        return None
    values = [Parts((), ((1.0, 0.0),))]
    for step in formula.steps:
        given = [values[a] if isinstance(a, int) else _constant(a) for a in step.arguments]
        made = _step(step, given)
        if made is None:
            return None
        values.append(made)
    borders, lines = _simple(values[-1])
    for border, (s, o), (t, p) in zip(borders, lines[:-1], lines[1:], strict=True):
        if abs(s * border + o - t * border - p) > JUMP * (1 + abs(s * border) + abs(o)):
            return None
    return Kinked(formula.name, formula, tuple(borders), tuple(s for s, _ in lines))


def _constant(value: Tensor) -> Parts:
    return Parts((), ((0.0, float(value)),))


def _simple(parts: Parts) -> tuple[list[float], list[Line]]:
    """Return borders between different lines only."""
    borders: list[float] = []
    lines = [parts.lines[0]]
    for border, line in zip(parts.borders, parts.lines[1:], strict=True):
        if line != lines[-1]:
            borders.append(border)
            lines.append(line)
    return borders, lines


def _made(borders: set[float], line: Callable[[float], Line | None]) -> Parts | None:
    """Return the function with these borders whose line at points inside the parts is `line`."""
    ends = tuple(sorted(borders))
    inside = [(a + b) / 2 for a, b in pairwise(ends)]
    inside = [ends[0] - 1, *inside, ends[-1] + 1] if ends else [0.0]
    lines = [line(z) for z in inside]
    found = [x for x in lines if x is not None]
    return Parts(ends, tuple(found)) if len(found) == len(lines) else None


def _crossings(parts: Parts, other: Parts) -> set[float]:
    """Return where the lines of two functions cross, in the parts that they belong to."""
    ends = sorted({*parts.borders, *other.borders})
    found = set()
    for low, high in zip([-float("inf"), *ends], [*ends, float("inf")], strict=True):
        z = (low + high) / 2 if ends and low > -float("inf") and high < float("inf") else 0.0
        z = high - 1 if low == -float("inf") and ends else low + 1 if high == float("inf") and ends else z
        (s, o), (t, p) = parts.at(z), other.at(z)
        if s != t and low < (root := (p - o) / (s - t)) < high:
            found.add(root)
    return found


def _step(step: Step, given: list[Parts]) -> Parts | None:
    borders = {b for parts in given for b in parts.borders}
    if isinstance(step.operation, Kinked):
        return _bent(step.operation, given[0], borders)
    if isinstance(step.operation, Steps) and step.operation.name == "sign":
        return _made(
            borders | _crossings(given[0], _ZERO),
            lambda z: (0.0, math.copysign(1.0, _value(given[0].at(z), z))),
        )
    if step.operation in ("maximum", "minimum", "gt", "ge"):
        borders |= _crossings(*given)
    rules: dict[str, Callable[..., Line | None]] = {
        "add": lambda z, a, b: (a[0] + b[0], a[1] + b[1]),
        "sub": lambda z, a, b: (a[0] - b[0], a[1] - b[1]),
        "mul": _product,
        "maximum": lambda z, a, b: a if _value(a, z) >= _value(b, z) else b,
        "minimum": lambda z, a, b: b if _value(a, z) >= _value(b, z) else a,
        "gt": lambda z, a, b: (0.0, float(_value(a, z) > _value(b, z))),
        "ge": lambda z, a, b: (0.0, float(_value(a, z) >= _value(b, z))),
        "where": lambda z, c, a, b: a if c[1] else b,
    }
    rule = rules.get(step.operation) if isinstance(step.operation, str) else None
    return None if rule is None else _made(borders, lambda z: rule(z, *(parts.at(z) for parts in given)))


def _product(z: float, a: Line, b: Line) -> Line | None:
    if a[0] and b[0]:
        return None
    return (a[1] * b[0], a[1] * b[1]) if not a[0] else (b[1] * a[0], b[1] * a[1])


def _value(line: Line, z: float) -> float:
    return line[0] * z + line[1]


def _bent(kinked: Kinked, inner: Parts, borders: set[float]) -> Parts | None:
    slopes = [float(s) for s in kinked.slopes]
    for kink in kinked.kinks:
        borders = borders | _crossings(inner, Parts((), ((0.0, kink),)))

    def line(z: float) -> Line:
        s = inner.at(z)[0]
        value = _value(inner.at(z), z)
        slope = slopes[sum(value > kink for kink in kinked.kinks)]
        at = float(kinked(_number(value)))
        return slope * s, at - slope * s * z

    return _made(borders, line)


def _number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)
