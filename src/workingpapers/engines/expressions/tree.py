"""Expressions of one input: core units b(u(h), v(x)) in a chain, h the output of the core before (x at first)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workingpapers.engines.expressions.pieces import BINARY, UNARY, Beta
from workingpapers.errors import WorkingPapersError, unknown


def expression_space(cores: int = 1) -> dict[str, list[str]]:
    """Return the choices that make an expression of so many cores: "u1", "v1", "b1", "u2" and so on."""
    if cores < 1:
        raise WorkingPapersError(f"an expression has at least one core unit; got {cores}")
    space: dict[str, list[str]] = {}
    for core in range(1, cores + 1):
        space |= {f"u{core}": list(UNARY), f"v{core}": list(UNARY), f"b{core}": list(BINARY)}
    return space


@dataclass(frozen=True)
class Expression:
    """A chain of cores, each the names (u, v, b) of two unary pieces and a binary one.

    >>> str(Expression((("{x}", "{x}", "sigmoid({a})*{b}"),)))
    'sigmoid(x)*x'
    """

    cores: tuple[tuple[str, str, str], ...]

    def __post_init__(self) -> None:
        if not self.cores:
            raise WorkingPapersError("an expression has at least one core unit; got none")
        for u, v, b in self.cores:
            for name, what, known in ((u, "unary", UNARY), (v, "unary", UNARY), (b, "binary", BINARY)):
                if name not in known:
                    raise unknown(f"{what} piece", name, known)

    @classmethod
    def of(cls, point: Mapping[str, str]) -> "Expression":
        """Return the expression of a point of `expression_space`."""
        count = len(point) // 3
        names = {f"{kind}{core}" for core in range(1, count + 1) for kind in "uvb"}
        if not point or set(point) != names:
            raise WorkingPapersError(
                f"a point has the choices u1, v1, b1 and so on for each core; got {', '.join(point) or 'none'}"
            )
        return cls(tuple((point[f"u{i}"], point[f"v{i}"], point[f"b{i}"]) for i in range(1, count + 1)))

    @property
    def betas(self) -> int:
        """How many parameters beta there are: one for each piece that looks at one."""
        return sum(p.learns for u, v, b in self.cores for p in (UNARY[u], UNARY[v], BINARY[b]))

    def __call__(self, x: Tensor, betas: Sequence[Beta] | Tensor = ()) -> Tensor:
        """Return the value at every entry of `x` (any shape); `betas` in the order u, v, b, core by core."""
        if len(betas) != self.betas:
            raise WorkingPapersError(f"{self} has {self.betas} parameters beta; got {len(betas)}")
        given = iter(betas)
        h = x
        for names in self.cores:
            u, v, b = UNARY[names[0]], UNARY[names[1]], BINARY[names[2]]
            left = u.apply(h, next(given) if u.learns else 1.0)
            right = v.apply(x, next(given) if v.learns else 1.0)
            h = b.apply(left, right, next(given) if b.learns else 1.0)
        return h

    def __str__(self) -> str:
        text = "x"
        for u, v, b in self.cores:
            text = BINARY[b].text.format(a=UNARY[u].text.format(x=text), b=UNARY[v].text.format(x="x"))
        return text

    def fingerprint(self) -> bytes:
        """Return the same bytes for expressions that agree, to six digits, on a grid from -4 to 4.

        The parameters beta take unlike values there, so x and beta*x count as two functions.
        """
        grid = torch.linspace(-4, 4, 41, dtype=torch.float64) + 0.0123
        values = self(grid, [0.7 + 0.13 * i for i in range(self.betas)])
        scaled = values.nan_to_num(nan=1e30, posinf=2e30, neginf=-2e30)
        digits = 10.0 ** (scaled.abs().clamp(min=1e-6).log10().floor() - 6)
        rounded = (scaled / digits).round() * digits
        return bytes((rounded.float() + 0.0).numpy().tobytes())
