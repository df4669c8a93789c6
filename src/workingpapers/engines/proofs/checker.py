"""Check a certificate of `certificate.py`, with numpy alone: every bound is computed anew, nothing is believed.

The claim that is checked: no input of a region's box brings all of the region's rows to 0 or below.  Numbers of the
network and the property stand for themselves, and the claim is about real arithmetic: all that is computed in
float64 carries a margin.  A number computed here is a sum of at most `terms` products; what rounding changes in
it is below `terms` units in the last place of the sum of the products' sizes, which is computed beside it.
A certificate names boxes, slopes and weights; if they are wrong, less is proved, never something false.
"""

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from workingpapers.engines.proofs.chain import Array, Layer, Rejected, read_layers, require

Known = list[Array] | None
Added = dict[int, Array]

EPS = 2.0**-52  # twice the unit roundoff
AT_A_TIME = 2**24  # numbers of one array
MOST_OPEN = 16  # ReLUs whose signs are enumerated


@dataclass(frozen=True)
class Forms:
    """Linear forms of the input (boxes, rows, inputs), constants, and the sizes of all that was summed for them."""

    form: Array
    constant: Array
    size: Array


class Network:
    """The layers over boxes from `low` to `high` (boxes, inputs): bounds of what each gives before its ReLU.

    `known` bounds hold already; `tilt` (boxes, ReLUs) is the slope, 0 or 1, of the lines below ReLUs.
    """

    def __init__(self, layers: list[Layer], box: tuple[Array, Array], known: Known, tilt: Array) -> None:
        self.layers, (self.low, self.high) = layers, box
        self.terms = 64 + 8 * len(layers) + 2 * max(max(layer.weight.shape) for layer in layers)
        self.bounds: list[Array] = []  # of each layer (2, boxes, out)
        self.reads: list[Array] = []  # the sizes of what each layer sums up
        self.planes: list[tuple[Array, Array, Array, Array]] = []  # slopes below and above, offset, size
        tilts = np.split(tilt, np.cumsum([len(n.bias) * n.relu for n in layers])[:-1], axis=1)
        for place, layer in enumerate(layers):
            a, b = self.bounds[-1] if place else box
            if place and layers[place - 1].relu:
                a, b = np.maximum(a, 0), np.maximum(b, 0)
            plus, minus = np.maximum(layer.weight, 0).T, np.minimum(layer.weight, 0).T
            reads = np.maximum(abs(a), abs(b)) @ abs(layer.weight).T + abs(layer.bias)
            self.reads.append(reads)
            ends = a @ plus + b @ minus + layer.bias, b @ plus + a @ minus + layer.bias
            made = np.stack([ends[0] - self.margin(reads), ends[1] + self.margin(reads)])
            made = cut(made, known[place]) if known else made
            if place:  # once more, backwards
                unit = np.eye(len(layer.bias))
                found = self.least(self.back(np.concatenate([unit, -unit])[None], place))
                made = cut(made, np.stack(np.split(found * np.repeat([1, -1], len(unit)), 2, 1)))
            self.bounds.append(made)
            self.planes.append(planes(made, tilts[place] if layer.relu else np.ones_like(made[0])))

    def margin(self, size: Array) -> Array:
        """Return what rounding may change in sums of this size; nothing where all is 0."""
        return np.where(size == 0, 0.0, self.terms * EPS * np.maximum(size, 1e-270))

    def back(self, form: Array, last: int, through: bool = False, added: Added | None = None) -> Forms:
        """Return forms of the input that lie below forms (boxes or 1, rows, out) of what layer `last` gives.

        `through` its ReLU or before it; `added` are forms of what layers give before their ReLUs.
        """
        constant: Any = 0.0
        size: Any = 0.0
        for place in range(last, -1, -1):
            layer = self.layers[place]
            if layer.relu and (through or place < last):
                below, above, offset, felt = (t[:, None] for t in self.planes[place])
                positive, negative = np.maximum(form, 0), np.minimum(form, 0)
                constant = constant + (negative * offset).sum(2)
                size = size + (abs(form) * felt).sum(2)
                form = positive * below + negative * above
            if added and place in added:
                form = form + added[place]
            constant = constant + form @ layer.bias
            size = size + (abs(form) @ self.reads[place][..., None])[..., 0]
            form = form @ layer.weight
        return Forms(form, constant, size)

    def least(self, forms: Forms, at: Any = slice(None)) -> Array:
        """Return lower bounds (boxes, rows) of forms over the boxes, or over some."""
        low, high = self.low[at][:, None], self.high[at][:, None]
        value = (np.maximum(forms.form, 0) * low + np.minimum(forms.form, 0) * high).sum(2)
        size = forms.size + (abs(forms.form) * np.maximum(abs(low), abs(high))).sum(2)
        return np.asarray(value + forms.constant - self.margin(size + abs(forms.constant)))

    def together(self, forms: Forms, at: Array, weights: Array) -> Array:
        """Return lower bounds (n,) of the sums of the forms of boxes `at` with weights (n, rows)."""
        require(weights.shape[1] <= self.terms, "the property has too many rows for the checker's margins")
        form, constant, size = (part[at] for part in (forms.form, forms.constant, forms.size))
        reach = np.maximum(abs(self.low[at]), abs(self.high[at]))
        size = size + (abs(form) * reach[:, None]).sum(2) + abs(constant)
        joint = (weights[..., None] * form).sum(1, keepdims=True)
        sums = [(weights * part).sum(1, keepdims=True) for part in (constant, size)]
        return self.least(Forms(joint, *sums), at)[:, 0]

    def pieces(self, at: Array, places: Array, signs: Array, rows: int) -> tuple["Network", Added]:
        """Return the network over boxes where some ReLUs have signs (n, most), and forms at most 0 just there."""
        made = copy(self)
        made.low, made.high, made.planes = self.low[at], self.high[at], []
        made.reads = [reads[at] for reads in self.reads]
        added, start = {}, 0
        for place, layer in enumerate(self.layers):
            below, above, offset, felt = (t[at] for t in self.planes[place])
            if layer.relu:
                here, slot = np.nonzero((places >= start) & (places < start + len(layer.bias)))
                number, on = places[here, slot] - start, signs[here, slot]
                below[here, number] = above[here, number] = on
                offset[here, number] = 0.0
                added[place] = np.zeros((len(at), rows + places.shape[1], len(layer.bias)))
                added[place][here, rows + slot, number] = 1 - 2 * on  # z <= 0, or -z <= 0 where it is on
                start += len(layer.bias)
            made.planes.append((below, above, offset, felt))
        return made, added

    def rows(self, rows: Array, offsets: Array, added: Added | None = None) -> Forms:
        """Return forms below the property's rows, and below as many more as are added on the way."""
        inputs = self.low.shape[1]
        made = self.back(rows[None, :, inputs:], len(self.layers) - 1, True, added)
        size = made.size + abs(offsets) + np.maximum(abs(self.low), abs(self.high)) @ abs(rows[:, :inputs]).T
        return Forms(made.form + rows[:, :inputs], made.constant + offsets, size)


def cut(one: Array, other: Array) -> Array:
    """Return what lies inside both bounds (2, ...)."""
    return np.stack([np.maximum(one[0], other[0]), np.minimum(one[1], other[1])])


def planes(bounds: Array, tilt: Array) -> tuple[Array, Array, Array, Array]:
    """Return slopes of lines below and above a ReLU, the offset of that above, and the sizes of its numbers."""
    low, high = bounds
    bent = (low < 0) & (high > 0)
    above = np.where(bent, np.clip(high / np.where(bent, high - low, 1.0), 0, 1), low >= 0)
    # a line of any slope from 0 to 1 lies above where it does at both ends
    offset = np.where(bent, np.maximum(-above * low, (1 - above) * high) * (1 + 8 * EPS), 0.0)
    return np.where(bent, tilt, above), above, offset, np.maximum(abs(low), abs(high)) + offset


class Tree:
    """One root box, the boxes it was cut into, and what is to be excluded there."""

    def __init__(self, held: dict[str, Array]) -> None:
        self.parent, self.low, self.high = held["parent"].astype(np.int64), held["lower"], held["upper"]
        self.rows, self.offsets, self.groups = held["rows"], held["offsets"], held["groups"].astype(bool)
        count, none = len(self.parent), np.zeros(0, np.int64)
        require(
            (self.parent < np.arange(count)).all() and (self.parent[1:] >= 0).all(), "the boxes are no tree"
        )
        children = np.bincount(self.parent[1:], minlength=count)
        require(np.isin(children, (0, 2)).all(), "one half of a box is missing")
        self.halves = np.full((count, 2), -1)
        self.halves[children == 2] = 1 + np.argsort(self.parent[1:], kind="stable").reshape(-1, 2)
        weights = [held.get(f"{kind}_weights", np.zeros((0, len(self.rows)))) for kind in ("joint", "piece")]
        self.joint_weights, self.piece_weights = (w.astype(np.float64) for w in weights)
        self.joint = np.stack([held.get(f"joint_{name}", none) for name in ("box", "group")])
        self.piece = np.stack([held.get(f"piece_{name}", none) for name in ("box", "group", "pattern")])
        self.open = np.full((count, self.piece_weights.shape[1] - len(self.rows)), -1)
        self.open[held.get("leaf_box", none)] = held.get("leaf_open", self.open[:0])
        self.tilt, self.alive = held["tilt"], np.ones((count, len(self.groups)), bool)
        for array in (self.low, self.high, self.rows, self.offsets, *weights):
            require(np.isfinite(array).all(), "a number of the certificate is not finite")
        require(all((w >= 0).all() for w in weights), "a weight is negative")
        require((self.low <= self.high).all() and self.low.shape == self.high.shape, "a box is empty")

    def covers(self, low: Array, high: Array, rows: Array, offsets: Array) -> bool:
        """Return whether a region lies in the root box, and some group's rows are all among its own."""
        same = np.column_stack([rows, offsets]) == np.column_stack([self.rows, self.offsets])[:, None]
        inside = low.shape == self.low[0].shape and ((self.low[0] <= low) & (self.high[0] >= high)).all()
        return bool(inside and (same.all(2).any(1) | ~self.groups).all(1).any())

    def prove(self, layers: list[Layer]) -> None:
        """Prove every leaf, from the root down: what a box inherits holds in the larger one that it lies in."""
        here, known = np.zeros(1, np.int64), None
        widest = max(max(layer.weight.shape) for layer in layers)
        step = min(256, max(1, AT_A_TIME // (2 * widest**2)))
        while len(here):
            parts = [slice(start, start + step) for start in range(0, len(here), step)]
            found = [self._prove(layers, here[part], known and [k[:, part] for k in known]) for part in parts]
            after = np.flatnonzero(np.isin(self.parent, here))
            places = np.searchsorted(here, self.parent[after])
            known = [np.concatenate(bounds, 1)[:, places] for bounds in zip(*found, strict=True)]
            here = after

    def _prove(self, layers: list[Layer], boxes: Array, known: Known) -> list[Array]:
        count = sum(len(layer.bias) for layer in layers if layer.relu)
        require(self.tilt.shape[1] == -(-count // 8), "the certificate is of a network with other ReLUs")
        tilt = np.unpackbits(self.tilt[boxes], axis=1, count=count).astype(np.float64)
        network = Network(layers, (self.low[boxes], self.high[boxes]), known, tilt)
        forms = network.rows(self.rows, self.offsets)
        lower = network.least(forms)
        out = ((lower > 0)[:, None] & self.groups).any(2)
        chosen = np.flatnonzero(np.isin(self.joint[0], boxes))
        place, group = np.searchsorted(boxes, self.joint[0, chosen]), self.joint[1, chosen]
        proved = network.together(forms, place, self.joint_weights[chosen] * self.groups[group]) > 0
        out[place[proved], group[proved]] = True
        alive = (
            (self.alive[self.parent[boxes]] | (boxes == 0)[:, None]) & ~out & ~self._by_pieces(network, boxes)
        )
        halved = self.halves[boxes, 0] >= 0
        require((halved | ~alive.any(1)).all(), "a leaf is not proved")
        self.alive[boxes] = alive
        self._check_halves(boxes[halved], forms.form[halved], lower[halved])
        return network.bounds

    def _by_pieces(self, network: Network, boxes: Array) -> Array:
        """Return which groups (boxes, groups) are excluded for all patterns of the signs of some ReLUs."""
        chosen = np.flatnonzero(np.isin(self.piece[0], boxes))
        most, count = int((self.open[boxes] >= 0).sum(1).max()), len(self.rows)
        require(most <= MOST_OPEN, f"a leaf has {most} open ReLUs, more than {MOST_OPEN}")
        places = self.open[boxes, :most]
        bits = np.arange(2**most)[:, None] >> np.arange(most) & 1
        idle = np.asarray((bits[None] * (places < 0)[:, None]).any(2))  # a bit of no ReLU
        done = idle[..., None].repeat(len(self.groups), 2)
        step = max(1, AT_A_TIME // ((count + most) * network.terms))
        for some in np.split(chosen, range(step, len(chosen), step)):
            box, group, pattern = self.piece[:, some]
            place = np.searchsorted(boxes, box)
            (at, signs), unit = np.unique(np.stack([place, pattern]), axis=1, return_inverse=True)
            piece, added = network.pieces(at, places[at], bits[signs], count)
            forms = piece.rows(np.pad(self.rows, ((0, most), (0, 0))), np.pad(self.offsets, (0, most)), added)
            weights = self.piece_weights[some, : count + most]
            weights[:, :count] *= self.groups[group]
            proved = piece.together(forms, unit.ravel(), weights) > 0
            done[place[proved], pattern[proved], group[proved]] = True
        return np.asarray(done.all(1))

    def _check_halves(self, boxes: Array, form: Array, lower: Array) -> None:
        """Require that the halves of boxes leave out only slabs at their sides in which every group is excluded."""
        one, other = self.halves[boxes].T
        low, high = np.minimum(self.low[one], self.low[other]), np.maximum(self.high[one], self.high[other])
        inside = (low >= self.low[boxes]) & (high <= self.high[boxes])
        meet = np.maximum(self.low[one], self.low[other]) <= np.minimum(self.high[one], self.high[other])
        apart = (self.low[one] != self.low[other]) | (self.high[one] != self.high[other])
        require((inside & meet).all() and (apart.sum(1) <= 1).all(), "the halves of a box do not cover it")
        gains = (np.maximum(form, 0) * (high - self.low[boxes])[:, None], high < self.high[boxes])
        losses = (np.maximum(-form, 0) * (self.high[boxes] - low)[:, None], low > self.low[boxes])
        for reach, there in (gains, losses):
            positive = lower[..., None] + reach > 8 * EPS * (abs(lower)[..., None] + reach)
            out = (positive[:, None] & self.groups[..., None]).any(2) | ~self.alive[boxes][..., None]
            require((out.all(1) | ~there).all(), "a part of a box that was cut off is not proved")


def check(network: Path, regions: list[tuple[Array, Array, Array, Array]], certificate: Path) -> int:
    """Return from how many boxes a property follows, given by its regions (lower, upper, rows, offsets).

    Raises:
        Rejected: where it does not, or the network or the certificate cannot be checked.
    """
    layers = read_layers(network)
    try:
        with np.load(certificate, allow_pickle=False) as file:
            held = dict(file)
        names = [[k for k in held if k.startswith(f"{t}/")] for t in range(int(held["trees"]))]
        trees = [Tree({name.split("/")[1]: held[name] for name in own}) for own in names]
        for tree in trees:
            tree.prove(layers)
        covered = all(any(tree.covers(*region) for tree in trees) for region in regions)
    except (OSError, ValueError, KeyError, IndexError, TypeError, BadZipFile) as error:
        raise Rejected(f"the certificate does not fit: {error}") from None
    require(covered, "no tree of the certificate is about a region of the property")
    return sum(len(tree.parent) for tree in trees)
