"""Trees that prescribe by hyperplane splits, and the exact way to them from networks of ReLUs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

Array = NDArray[np.float64]
Affine = tuple[Array, Array]  # rows and offsets of x -> rows x + offsets
MARGIN = 1e-9  # the least radius of a ball in a cell that counts


@dataclass(frozen=True)
class Leaf:
    """A cell in which all get one treatment."""

    treatment: int

    def prescribe(self, x: Array) -> NDArray[np.int64]:
        """Return the treatment of every row of x (N, d)."""
        return np.full(len(x), self.treatment, dtype=np.int64)

    def leaves(self) -> int:
        """Return how many leaves there are."""
        return 1

    def describe(self, names: Sequence[str] | None = None, indent: str = "") -> str:
        """Say the treatment."""
        return f"{indent}treatment {self.treatment}"


@dataclass(frozen=True)
class Split:
    """A hyperplane: on the side weights x + offset > 0 `above` decides, else `below`."""

    weights: tuple[float, ...]
    offset: float
    above: "Leaf | Split"
    below: "Leaf | Split"

    def prescribe(self, x: Array) -> NDArray[np.int64]:
        """Return the treatment of every row of x (N, d)."""
        side = np.asarray(x, np.float64) @ np.array(self.weights) + self.offset > 0
        found = np.empty(len(x), dtype=np.int64)
        found[side], found[~side] = self.above.prescribe(x[side]), self.below.prescribe(x[~side])
        return found

    def leaves(self) -> int:
        """Return how many leaves there are."""
        return self.above.leaves() + self.below.leaves()

    def describe(self, names: Sequence[str] | None = None, indent: str = "") -> str:
        """Say the splits and treatments in lines, with the features' names (x0, x1, ... by default)."""
        names = names or [f"x{i}" for i in range(len(self.weights))]
        terms = [f"{w:+.3g} {name}" for w, name in zip(self.weights, names, strict=True) if w]
        condition = f"{' '.join(terms)} > {0.0 - self.offset:.3g}"
        deeper = indent + "  "
        parts = (self.above.describe(names, deeper), self.below.describe(names, deeper))
        return f"{indent}if {condition}\n{parts[0]}\n{indent}else\n{parts[1]}"


Tree = Leaf | Split


def inner_point(cell: Affine) -> Array | None:
    """Return the centre of a ball of radius up to 1 in the cell rows x <= offsets, None where there is none."""
    rows, offsets = cell
    if not len(rows):
        return np.zeros(rows.shape[1])
    objective = np.zeros(rows.shape[1] + 1)
    objective[-1] = -1
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    bounds = [(None, None)] * rows.shape[1] + [(None, 1.0)]
    found = linprog(objective, np.hstack([rows, norms]), offsets, bounds=bounds, method="highs")
    return np.asarray(found.x[:-1]) if found.status == 0 and found.x[-1] > MARGIN else None


def tree_of(
    layers: Sequence[Affine], forbidden: Sequence[tuple[int, Array, float]] = (), features: int | None = None
) -> Tree:
    """Return the tree of a ReLU network's argmax over its outputs.

    `layers` are weights (out, in) and biases, with ReLU between them; `forbidden` are (treatment, w, c): that
    treatment is excluded where w x > c.  Branches that no ball fits in are left out, and siblings with the same
    treatment are one.  Ties go to the first treatment.
    """
    d = features or layers[0][0].shape[1]
    whole = (np.empty((0, d)), np.empty(0))
    grower = _Grower(layers, forbidden)
    return grower.neurons(whole, np.zeros(d), (np.eye(d), np.zeros(d)), 0, [])


@dataclass
class _Grower:
    layers: Sequence[Affine]
    forbidden: Sequence[tuple[int, Array, float]]

    def split(self, cell: Affine, inside: Array, w: Array, b: float, grow: Any) -> Tree:
        """Split a cell that holds the point `inside` by w x + b > 0; `grow` (cell, point, side) grows a side."""
        size = float(np.linalg.norm(w))
        if size < 1e-12:  # constant: no hyperplane
            return grow(cell, inside, b > 0)  # type: ignore[no-any-return]
        w, b = w / size, b / size
        subtrees = {}
        for side, sign in ((True, -1.0), (False, 1.0)):  # w x + b > 0 is -w x <= b
            part = (np.vstack([cell[0], sign * w]), np.append(cell[1], -sign * b))
            point = inside if -sign * (w @ inside + b) > MARGIN else inner_point(part)
            if point is not None:
                subtrees[side] = grow(part, point, side)
        if len(subtrees) == 1:
            return next(iter(subtrees.values()))  # type: ignore[no-any-return]
        above, below = subtrees[True], subtrees[False]
        return above if above == below else Split(tuple(w.tolist()), float(b), above, below)

    def neurons(self, cell: Affine, inside: Array, inputs: Affine, layer: int, states: list[bool]) -> Tree:
        """Decide the next neuron of `layer`, whose inputs are affine in the cell, given those decided before."""
        weights, biases = self.layers[layer]
        rows, offsets = weights @ inputs[0], weights @ inputs[1] + biases
        if layer == len(self.layers) - 1:
            return self.constraints(cell, inside, (rows, offsets), 0, frozenset())
        if len(states) == len(rows):
            on = np.array(states, dtype=float)
            return self.neurons(cell, inside, (on[:, None] * rows, on * offsets), layer + 1, [])
        j = len(states)
        return self.split(
            cell,
            inside,
            rows[j],
            float(offsets[j]),
            lambda c, p, side: self.neurons(c, p, inputs, layer, [*states, side]),
        )

    def constraints(
        self, cell: Affine, inside: Array, outputs: Affine, number: int, out: frozenset[int]
    ) -> Tree:
        """Decide on which side of each constraint the cell lies, then between the treatments left."""
        if number == len(self.forbidden):
            left = [t for t in range(len(outputs[1])) if t not in out]
            return self.best(cell, inside, outputs, left[0], left[1:])
        treatment, w, c = self.forbidden[number]
        return self.split(
            cell,
            inside,
            np.asarray(w, float),
            -c,
            lambda cl, p, side: self.constraints(
                cl, p, outputs, number + 1, out | {treatment} if side else out
            ),
        )

    def best(self, cell: Affine, inside: Array, outputs: Affine, first: int, rest: list[int]) -> Tree:
        """Decide between the best treatment so far and the next."""
        if not rest:
            return Leaf(first)
        other, *later = rest
        rows, offsets = outputs
        return self.split(
            cell,
            inside,
            rows[other] - rows[first],
            float(offsets[other] - offsets[first]),
            lambda c, p, side: self.best(c, p, outputs, other if side else first, later),
        )


def splits_of(tree: Tree) -> Iterator[Split]:
    """Give every split of a tree."""
    if isinstance(tree, Split):
        yield tree
        yield from splits_of(tree.above)
        yield from splits_of(tree.below)
