"""Canonical forms of ReLU perceptrons: the same for networks that differ by order and positive scale of neurons."""

import copy
from typing import cast

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from workingpapers.engines.regions import Plane, partition
from workingpapers.errors import WorkingPapersError

Layers = list[tuple[Tensor, Tensor]]
SMALL = 1e-9  # relative: what is nearer counts as equal


def read_layers(model: nn.Module | Layers) -> Layers:
    """Return the weights and biases of nn.Linear layers with nn.ReLU between them, in double precision.

    Raises:
        WorkingPapersError: for another module, but nn.Flatten, nn.Identity and nn.Dropout, or another order.
    """
    if isinstance(model, list):
        return [(w.double(), b.double()) for w, b in model]
    parts = [m for m in model.modules() if not isinstance(m, nn.Flatten | nn.Identity | nn.Dropout)]
    parts = [m for m in parts if not isinstance(m, nn.Sequential)]
    layers = parts[::2]
    fits = all(isinstance(m, nn.Linear) for m in layers) and all(isinstance(m, nn.ReLU) for m in parts[1::2])
    if len(parts) % 2 == 0 or not fits:
        raise WorkingPapersError(
            "symmetries are known of nn.Linear and nn.ReLU in turns, the first and last linear; got "
            + ", ".join(type(m).__name__ for m in parts)
        )
    return [
        (
            m.weight.detach().double(),
            (m.weight.new_zeros(len(m.weight)) if m.bias is None else m.bias.detach()).double(),
        )
        for m in cast(list[nn.Linear], layers)
    ]


def canonical(model: nn.Module | Layers) -> Layers:
    """Return the layers of the same function in a form of their own.

    Weights into each hidden neuron have norm 1, and neurons stand in the order of these.  Neurons that are
    constant, never on as the signs of their weights show, or not read by the next layer are gone; those of one
    layer with the same half-space are one.  Those of opposite half-spaces, and what needs a look at regions, stay.
    """
    layers = read_layers(model)
    while True:
        for depth in range(len(layers) - 1):
            layers = _tidied(layers, depth)
        if all(_settled(layers, depth) for depth in range(len(layers) - 1)):
            return layers


def _settled(layers: Layers, depth: int) -> bool:
    """Return whether a second pass would find nothing left to remove."""
    weight = layers[depth][0]
    out = layers[depth + 1][0]
    return bool((weight.norm(dim=1) > 0.5).all()) and bool((out.norm(dim=0) > SMALL * _largest(out)).all())


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _tidied(layers: Layers, depth: int) -> Layers:
    (weight, bias), (out, out_bias) = layers[depth], layers[depth + 1]
    size = weight.norm(dim=1)
    constant = size <= SMALL * _largest(size)
    out_bias = out_bias + out[:, constant] @ bias[constant].clamp(min=0)
    never = (weight <= 0).all(1) & (bias <= 0) if depth else torch.zeros_like(constant)
    unread = out.norm(dim=0) <= SMALL * _largest(out)
    kept = ~(constant | never | unread)
    rows = torch.cat([weight, bias[:, None]], 1)[kept] / size[kept, None]
    out = out[:, kept] * size[kept]
    rows, out = _merged(rows, out)
    keys = (rows / SMALL**0.5).round()
    order = sorted(range(len(rows)), key=lambda i: keys[i].tolist())
    rows, out = rows[order], out[:, order]
    changed = [(rows[:, :-1], rows[:, -1]), (out, out_bias)]
    return [*layers[:depth], *changed, *layers[depth + 2 :]]


def _merged(rows: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Put neurons with the same half-space together: their outgoing weights are added."""
    near = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") <= SMALL * rows.norm(
        dim=1
    ).clamp(min=1)
    first = near.to(torch.uint8).argmax(1) if len(rows) else torch.zeros(0, dtype=torch.long)
    kept = first.unique()
    summed = out.new_zeros(out.shape[0], len(rows)).index_add(1, first, out)
    return rows[kept], summed[:, kept]


def same_function(one: nn.Module | Layers, other: nn.Module | Layers, tolerance: float = 1e-6) -> bool:
    """Return whether two perceptrons are one function by order, scale, repetition and idle neurons alone.

    Canonical forms are matched neuron by neuron, weights up to `tolerance` of the largest.  What is found the same
    is the same function everywhere; functions may be the same by hidden symmetries that this does not find: see
    `largest_difference`.
    """
    ours, theirs = canonical(one), canonical(other)
    if [w.shape for w, _ in ours] != [w.shape for w, _ in theirs]:
        return False
    order = torch.arange(theirs[0][0].shape[1])
    for depth, ((w, b), (v, c)) in enumerate(zip(ours, theirs, strict=True)):
        rows, found = torch.cat([w, b[:, None]], 1), torch.cat([v[:, order], c[:, None]], 1)
        chosen = torch.arange(len(rows))
        if depth < len(ours) - 1:
            apart = torch.cdist(rows, found, compute_mode="donot_use_mm_for_euclid_dist")
            chosen = torch.from_numpy(linear_sum_assignment(apart.numpy())[1])
        if _largest(rows - found[chosen]) > tolerance * max(_largest(rows), 1e-300):
            return False
        order = chosen
    return True


class _Difference(nn.Module):
    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = copy.deepcopy(one).double(), copy.deepcopy(other).double()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.one(x) - self.other(x))


def largest_difference(one: nn.Module, other: nn.Module, domain: Tensor, plane: Plane | None = None) -> float:
    """Return the largest difference of outputs of two piecewise-linear networks on a polygon of a plane, exactly.

    It is reached at a corner of a region of their difference.  0 but for rounding says that they are one function
    there, by whatever symmetry.  Arguments as for `engines.regions.partition`.
    """
    largest = 0.0
    for regions in partition(_Difference(one, other), domain, plane):
        values = torch.einsum("rvi,roi->rvo", regions.corners, regions.maps[..., :2])
        largest = max(largest, _largest(values + regions.maps[:, None, :, 2]))
    return largest
