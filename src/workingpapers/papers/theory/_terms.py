"""Terms of neural circuit diagrams: typed operations on tuples of arrays, composed, put side by side, and
broadcast.

A type is a tuple of arrays, an array a tuple of named axes with sizes.  A term runs as torch code, and says how
many FLOPs it takes and how many numbers are alive at its widest place.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError

Axis = tuple[str, int]
Array = tuple[Axis, ...]
Type = tuple[Array, ...]


def arrays(text: str) -> Type:
    """Return the type that a text writes: axes as name:size, arrays parted by "|"; an empty array is a number.

    >>> arrays("n:8 d:16 | d:16")
    ((('n', 8), ('d', 16)), (('d', 16),))
    """
    parts = [[axis.split(":") for axis in part.split()] for part in text.split("|")]
    if not all(len(axis) == 2 and axis[1].isdigit() for part in parts for axis in part):
        raise WorkingPapersError(f"a type is written as in 'n:8 d:16 | d:16'; got {text!r}")
    return tuple(tuple((name, int(size)) for name, size in part) for part in parts)


def written(kind: Type) -> str:
    """Return a type as `arrays` reads it."""
    return " | ".join(" ".join(f"{name}:{size}" for name, size in array) for array in kind)


def numbers_in(kind: Type) -> int:
    """Return how many numbers the arrays of a type hold."""
    return sum(math.prod(size for _, size in array) for array in kind)


class Term:
    """What a diagram is made of: `source` and `target` types, `run`, `flops` and `peak`."""

    source: Type
    target: Type

    def run(self, values: list[Tensor]) -> list[Tensor]:
        """Take the arrays of the source, emptying the list so that they can be freed, and return the target's."""
        raise NotImplementedError

    @property
    def flops(self) -> int:
        """Two for each multiplication with addition, one for each elementwise result where an operation says so."""
        raise NotImplementedError

    @property
    def peak(self) -> int:
        """The numbers alive at the widest place, source and target included, as long as the term holds them."""
        raise NotImplementedError

    def __rshift__(self, other: "Term") -> "Sequence_":
        """Compose: first this, then the other."""
        return Sequence_(self, other)

    def __matmul__(self, other: "Term") -> "Beside":
        """Put this beside the other, its arrays first."""
        return Beside(self, other)


@dataclass(frozen=True)
class Op(Term):
    """An operation by a torch function of the source's tensors, which returns a tensor or a tuple of them.

    `view`: its results share the memory of its arguments.  `transposed` are, for an operation that is linear in
    each array, functions (arguments, gradient) -> gradient of one argument; others are differentiated by torch.
    `learned` names what it has learned, drawn bold.
    """

    name: str
    function: Callable[..., Any]
    source: Type
    target: Type
    flops: int = 0  # type: ignore[assignment]
    view: bool = False
    learned: bool = False
    transposed: tuple[Callable[..., Tensor], ...] = field(default=(), repr=False)

    def run(self, values: list[Tensor]) -> list[Tensor]:
        found = self.function(*values)
        values.clear()
        return list(found) if isinstance(found, tuple | list) else [found]

    @property
    def peak(self) -> int:
        return max(numbers_in(self.source), numbers_in(self.target)) + (
            0 if self.view else min(numbers_in(self.source), numbers_in(self.target))
        )


@dataclass(frozen=True)
class Wires(Term):
    """Copies, swaps and deletes arrays: the target has the picked arrays of the source, in that order."""

    source: Type
    picks: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse wires from nowhere."""
        if not all(0 <= k < len(self.source) for k in self.picks):
            raise WorkingPapersError(f"wires pick among {len(self.source)} arrays; got {self.picks}")

    @property
    def target(self) -> Type:  # type: ignore[override]
        return tuple(self.source[k] for k in self.picks)

    def run(self, values: list[Tensor]) -> list[Tensor]:
        found = [values[k] for k in self.picks]
        values.clear()
        return found

    @property
    def flops(self) -> int:
        return 0

    @property
    def peak(self) -> int:
        return numbers_in(self.source)  # copies share memory


def identity(kind: Type) -> Wires:
    """Return the term that gives its arrays as they are."""
    return Wires(kind, tuple(range(len(kind))))


@dataclass(frozen=True)
class Sequence_(Term):
    """One term after another; the types between must be the same, names and sizes."""

    first: Term
    second: Term

    def __post_init__(self) -> None:
        """Refuse types that do not fit."""
        if self.first.target != self.second.source:
            raise WorkingPapersError(
                f"terms compose where types are the same; got ({written(self.first.target)}) before "
                f"({written(self.second.source)})"
            )

    @property
    def source(self) -> Type:  # type: ignore[override]
        return self.first.source

    @property
    def target(self) -> Type:  # type: ignore[override]
        return self.second.target

    def run(self, values: list[Tensor]) -> list[Tensor]:
        return self.second.run(self.first.run(values))

    @property
    def flops(self) -> int:
        return self.first.flops + self.second.flops

    @property
    def peak(self) -> int:
        return max(part.peak for part in columns(self))


@dataclass(frozen=True)
class Beside(Term):
    """Two terms side by side, the first one's arrays before the second's; the first runs first."""

    first: Term
    second: Term

    @property
    def source(self) -> Type:  # type: ignore[override]
        return self.first.source + self.second.source

    @property
    def target(self) -> Type:  # type: ignore[override]
        return self.first.target + self.second.target

    def run(self, values: list[Tensor]) -> list[Tensor]:
        kept = values[len(self.first.source) :]
        del values[len(self.first.source) :]
        found = self.first.run(values)
        return found + self.second.run(kept)

    @property
    def flops(self) -> int:
        return self.first.flops + self.second.flops

    @property
    def peak(self) -> int:
        return max(
            self.first.peak + numbers_in(self.second.source), numbers_in(self.first.target) + self.second.peak
        )


@dataclass(frozen=True)
class Broadcast(Term):
    """A term lifted over a further axis, the first one of every array: the same for each index, by torch.vmap."""

    term: Term
    axis: Axis

    @property
    def source(self) -> Type:  # type: ignore[override]
        return tuple((self.axis, *array) for array in self.term.source)

    @property
    def target(self) -> Type:  # type: ignore[override]
        return tuple((self.axis, *array) for array in self.term.target)

    def run(self, values: list[Tensor]) -> list[Tensor]:
        if isinstance(self.term, Wires):
            return self.term.run(values)
        if isinstance(self.term, Beside):
            both = Beside(Broadcast(self.term.first, self.axis), Broadcast(self.term.second, self.axis))
            return both.run(values)
        if isinstance(
            self.term, Sequence_
        ):  # broadcasting a composition composes broadcasts, and frees in between
            for part in columns(self.term):
                values = Broadcast(part, self.axis).run(values)
            return values

        def lifted(*parts: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.term.run(list(parts)))

        found = torch.vmap(lifted)(*values)
        values.clear()
        return list(found)

    @property
    def flops(self) -> int:
        return self.axis[1] * self.term.flops

    @property
    def peak(self) -> int:
        return self.axis[1] * self.term.peak


def columns(term: Term) -> list[Term]:
    """Return the parts of a term that run one after another, however they were bracketed."""
    found: list[Term] = []
    left: list[Term] = [term]
    while left:
        part = left.pop()
        if isinstance(part, Sequence_):
            left += [part.second, part.first]
        else:
            found.append(part)
    return found


def compose(*terms: Term) -> Term:
    """Return terms one after another, bracketed to the right."""
    whole = terms[-1]
    for term in reversed(terms[:-1]):
        whole = Sequence_(term, whole)
    return whole


def over(term: Term, *axes: Axis) -> Term:
    """Return a term broadcast over axes, the first one outermost."""
    for axis in reversed(axes):
        term = Broadcast(term, axis)
    return term
