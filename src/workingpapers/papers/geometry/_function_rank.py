"""The rank of a ReLU network's Jacobian by its parameters, over all regions that inputs come from."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from workingpapers.engines.regions import along_path, box, partition, perceptron
from workingpapers.papers.geometry._canonical import Layers

TOLERANCE = 1e-8  # of the largest singular value: what is smaller counts as 0
REACH = 1000.0  # inputs up to here are looked at
ENTRIES = 2_000_000  # of Jacobians that are held at a time
ROUNDS = 3  # of four times as many inputs, for three and more of them


def parameters(layers: Layers) -> int:
    """Return how many weights and biases there are."""
    return sum(w.numel() + b.numel() for w, b in layers)


def bound(layers: Layers) -> int:
    """Return the largest functional dimension that widths allow: parameters less one for each hidden neuron."""
    return parameters(layers) - sum(len(b) for _, b in layers[:-1])


def balanced(layers: Layers) -> Layers:
    """Return the same function with weights and bias into each hidden neuron of norm 1; its rank is the same."""
    found = list(layers)
    for depth in range(len(found) - 1):
        (w, b), (out, shift) = found[depth], found[depth + 1]
        size = torch.cat([w, b[:, None]], 1).norm(dim=1)
        size = torch.where(size > 0, size, 1.0)
        found[depth], found[depth + 1] = (w / size[:, None], b / size), (out * size, shift)
    return found


def patterns(layers: Layers, x: Tensor) -> list[Tensor]:
    """Return which neurons of each hidden layer are on (N, width) for inputs (N, n)."""
    found, h = [], x
    for w, b in layers[:-1]:
        z = h @ w.T + b
        found.append(z > 0)
        h = z.clamp(min=0)
    return found


def region_frames(layers: Layers, x: Tensor) -> list[Tensor]:
    """Return what layers read in the regions of inputs (N, n): values there and derivatives, (N, 1 + n, width)."""
    unit = torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
    frames = [torch.cat([x[:, None], unit], 1)]
    for w, b in layers[:-1]:
        z = frames[-1] @ w.T
        z[:, 0] += b
        frames.append(z * (z[:, :1] > 0))
    return frames


def jacobian(layers: Layers, x: Tensor) -> Tensor:
    """Return rows that span the derivatives by the parameters over the whole regions of inputs (N, n).

    In a region these derivatives are affine in the input, so each input gives its own row and one for each
    direction: (N * (1 + n) * outputs, parameters), layer by layer weights and then biases.
    """
    frames, on = region_frames(layers, x), patterns(layers, x)
    outputs = len(layers[-1][1])
    back = torch.eye(outputs, dtype=x.dtype).expand(len(x), -1, -1)  # of outputs by what the layer gives
    ones = torch.zeros(x.shape[1] + 1, dtype=x.dtype)
    ones[0] = 1
    blocks: list[Tensor] = []
    for depth in range(len(layers) - 1, -1, -1):
        given = frames[depth]
        by_weight = torch.einsum("noi,npj->npoij", back, given).flatten(3)
        by_bias = torch.einsum("noi,p->npoi", back, ones)
        blocks = [by_weight, by_bias, *blocks]
        back = back @ layers[depth][0]
        if depth:
            back = back * on[depth - 1][:, None]
    return torch.cat(blocks, 3).flatten(0, 2)


class Rows:
    """The rank of rows (K, D) that come in blocks, of which no more than D rows are kept."""

    def __init__(self) -> None:
        self.held: Tensor | None = None

    def add(self, block: Tensor) -> "Rows":
        """Take in more rows; each is scaled to norm 1, which keeps the rank."""
        rows = _scaled(block, 1)
        held = rows if self.held is None else torch.cat([self.held, rows])
        self.held = torch.linalg.qr(held, mode="r").R if len(held) > held.shape[1] else held
        return self

    def rank(self, tolerance: float = TOLERANCE) -> int:
        """Return how many singular values exceed `tolerance` of the largest, with columns scaled to norm 1."""
        if self.held is None or not bool(self.held.any()):
            return 0
        values = torch.linalg.svdvals(_scaled(self.held, 0))
        return int((values > tolerance * values[0]).sum())


def _scaled(rows: Tensor, dim: int) -> Tensor:
    size = rows.norm(dim=dim, keepdim=True)
    return rows / torch.where(size > 0, size, 1.0)


def probes(layers: Layers, count: int, generator: torch.Generator) -> Tensor:
    """Return inputs (N, n) from many regions: from every one within `REACH` for one and two inputs.

    Else half of `count` are normal, of scales from 0.1 to 10, and as many lie in pieces of lines between such:
    these also come from small and bounded regions.
    """
    network, inputs = perceptron(layers), layers[0][0].shape[1]
    if inputs == 2:
        return torch.cat([r.middles for r in partition(network, box(-REACH, REACH))])
    ends = torch.tensor([[-REACH], [REACH]], dtype=torch.float64)
    if inputs > 2:
        drawn = torch.randn(count // 2, inputs, generator=generator, dtype=torch.float64)
        drawn *= 10 ** (2 * torch.rand(count // 2, 1, generator=generator, dtype=torch.float64) - 1)
        ends = drawn[: 2 + count // (4 * sum(len(b) for _, b in layers))]
    path = along_path(network, ends)
    inner = path.inputs((path.t[1:] + path.t[:-1]) / 2)
    return inner if inputs == 1 else torch.cat([drawn, inner])


def dimension(layers: Layers, seed: int = 0, tolerance: float = TOLERANCE) -> tuple[int, Tensor]:
    """Return the functional dimension and the inputs (N, n) that it was found with.

    Exact up to the tolerance for one and two inputs.  Else inputs are drawn, four times as many each time, until
    the rank grows no more: what is found is never too large.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = balanced(layers)
    count, rows, seen, rank = max(500, 2 * parameters(layers)), Rows(), [], -1
    block = max(1, ENTRIES // (parameters(layers) * (1 + layers[0][0].shape[1]) * len(layers[-1][1])))
    for _ in range(ROUNDS):
        seen.append(probes(layers, count, generator))
        for part in seen[-1].split(block):
            rows.add(jacobian(layers, part))
        before, rank = rank, rows.rank(tolerance)
        if rank in (before, bound(layers)) or layers[0][0].shape[1] <= 2:
            break
        count *= 4
    return rank, torch.cat(seen)


def jacobian_rank(model: nn.Module, x: Tensor, tolerance: float = TOLERANCE) -> int:
    """Return the rank of the Jacobian of outputs at inputs `x` (N, ...) by the parameters of any module.

    A lower bound on its functional dimension; the module computes in evaluation mode, in its own precision.
    """
    weights = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    modes = [(m, m.training) for m in model.modules()]

    def output(given: dict[str, Tensor], row: Tensor) -> Tensor:
        found: Tensor = functional_call(model, {**given, **buffers}, (row[None],))
        return found.flatten()

    try:
        model.eval()
        parts = vmap(jacrev(output), in_dims=(None, 0))(weights, x)
    finally:
        for module, mode in modes:
            module.training = mode
    rows = torch.cat([p.flatten(2) for p in parts.values()], 2).flatten(0, 1).double()
    return Rows().add(rows).rank(tolerance)


def mechanisms(layers: Layers, x: Tensor) -> dict[str, list[tuple[int, ...]]]:
    """Return what may hide symmetries, as the regions of inputs (N, n) show it, by name.

    Layers and neurons count from 0: `inactive` and `active` neurons (layer, neuron) are off or on in all regions;
    `coincident` (layer, neuron, neuron) have one hyperplane; `unmet` (layer, neuron, neuron of the next layer) have
    bent hyperplanes that do not cross; `collapsed` (layer,) gives an image of too low dimension in every region.
    """
    on = patterns(layers, x)
    found: dict[str, list[tuple[int, ...]]] = {
        name: [] for name in ("inactive", "active", "coincident", "unmet", "collapsed")
    }
    for depth, active in enumerate(on):
        found["inactive"] += [(depth, int(i)) for i in (~active).all(0).nonzero()]
        found["active"] += [(depth, int(i)) for i in active.all(0).nonzero()]
        w, b = layers[depth]
        rows = torch.cat([w, b[:, None]], 1)
        rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)
        same = (torch.linalg.norm(rows[:, None] - rows, dim=2) < TOLERANCE) | (
            torch.linalg.norm(rows[:, None] + rows, dim=2) < TOLERANCE
        )
        found["coincident"] += [(depth, int(i), int(j)) for i, j in same.triu(1).nonzero()]
    for depth, (one, other) in enumerate(pairwise(on)):
        open_one, open_other = (a.any(0) & ~a.all(0) for a in (one, other))
        seen = torch.ones(one.shape[1], other.shape[1], dtype=torch.bool)
        for a in (one, ~one):
            for b in (other, ~other):
                seen &= (a.double().T @ b.double()) > 0
        missing = ~seen & open_one[:, None] & open_other
        found["unmet"] += [(depth, int(i), int(j)) for i, j in missing.nonzero()]
    found["collapsed"] = [(depth,) for depth in _collapsed(layers, x)]
    return found


def _collapsed(layers: Layers, x: Tensor) -> Sequence[int]:
    most, found = x.shape[1], []
    for depth, frames in enumerate(region_frames(layers, x)[1:]):
        most = min(most, frames.shape[2])
        slopes = frames[:, 1:]
        size = slopes.flatten(1).norm(dim=1).clamp(min=1e-300)
        if int(torch.linalg.matrix_rank(slopes / size[:, None, None], atol=TOLERANCE).max()) < most:
            found.append(depth)
    return found
