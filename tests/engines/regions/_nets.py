"""Piecewise-linear networks of every kind that regions are made of, and an enumeration of cells of its own."""

from collections import deque
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection
from torch import Tensor, nn


def shaken(model: nn.Module, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """Return the model in double precision and evaluation, with normal weights of about unit gain."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            fan = max(1, p[0].numel() if p.ndim > 1 else 4)
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype) / fan**0.5)
        for name, b in model.named_buffers():
            if "running" in name:
                b.copy_(torch.rand(b.shape, generator=generator, dtype=b.dtype) + 0.5)
    return model


def dense(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a perceptron."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


class Abs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Chosen(nn.Module):
    """Four straight parts by comparisons, a largest and an absolute number."""

    def forward(self, x: Tensor) -> Tensor:
        leaky = torch.where(x > 0, x, 0.25 * x)
        below = torch.minimum(leaky, x + 0.75)  # from -1 on downwards
        return below - 0.75 * ((x - 2).abs() + (x - 2))  # 1.5 (x - 2) less above 2


class Maxout(nn.Module):
    """The largest of each three numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 3)).amax(2)


class Joined(nn.Module):
    """Residual sums and concatenations, scalar functions of several parts, a difference of maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(14, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.one(x))
        g = torch.maximum(self.two(h), 0.3 * self.two(h) - 0.1) + h
        return self.three(torch.cat([g, torch.minimum(h, g), x], 1)).clamp(-0.5, 0.7)


def convolutional(rank: int) -> nn.Sequential:
    """Return a network with convolutions, normalisation, both sorts of pooling, on (1, 6, ...) inputs."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    largest = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
    mean = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
    return nn.Sequential(
        conv(1, 2, 3, padding=1), norm(2), nn.LeakyReLU(0.1), largest(2), conv(2, 2, 3, padding=1), nn.ReLU6(),
        mean(3), nn.Flatten(), nn.Linear(2, 3),
    )  # fmt: skip


def enumerated(model: nn.Sequential, half: float, start: Tensor) -> dict[bytes, float]:
    """Return the areas of the cells of a ReLU perceptron in [-half, half]^2 by the patterns of its neurons.

    Breadth first: from a cell across each of its facets, which linear programmes find, to the next.
    """
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in model if isinstance(m, nn.Linear)]
    pattern = tuple(tuple(bool(v) for v in h[0] > 0) for h in _activations(model, start[None]))
    seen, areas = {pattern}, {}
    queue = deque([pattern])
    while queue:
        pattern = queue.popleft()
        rows, owners = _halfspaces(layers, pattern, half)
        area = _area(rows)
        if area is None:
            continue
        areas[np.packbits(np.concatenate(pattern)).tobytes()] = area
        for k, owner in enumerate(owners):
            if owner is not None and _is_facet(rows, k):
                layer, unit = owner
                flipped = [list(p) for p in pattern]
                flipped[layer][unit] = not flipped[layer][unit]
                neighbour = tuple(tuple(p) for p in flipped)
                if neighbour not in seen:
                    seen.add(neighbour)
                    queue.append(neighbour)
    return areas


def _activations(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    found = []
    for module in model:
        x = module(x)
        if isinstance(module, nn.Linear):
            found.append(x.detach())
    return found[:-1]


def _halfspaces(layers, pattern, half):  # type: ignore[no-untyped-def]
    """Return rows (a, c), a x + c <= 0, of a cell, and the neuron that each is of."""
    rows = [np.array([s * (i == 0), s * (i == 1), -half]) for i in (0, 1) for s in (1.0, -1.0)]
    owners = [None] * 4
    a, c = np.eye(2), np.zeros(2)
    for depth, ((weight, bias), on) in enumerate(zip(layers[:-1], pattern, strict=True)):
        a, c = weight @ a, weight @ c + bias
        for unit, active in enumerate(on):
            rows.append((-1.0 if active else 1.0) * np.append(a[unit], c[unit]))
            owners.append((depth, unit))
        mask = np.array(on, dtype=float)
        a, c = a * mask[:, None], c * mask
    return np.array(rows), owners


def _area(rows):  # type: ignore[no-untyped-def]
    """Return the area of a cell, or None where it has no inside."""
    size = np.linalg.norm(rows[:, :2], axis=1)
    flat = size < 1e-13
    if (rows[flat, 2] > 1e-13).any():
        return None
    rows, size = rows[~flat], size[~flat]
    centre = linprog([0, 0, -1], np.column_stack([rows[:, :2], size]), -rows[:, 2], bounds=[(None, None)] * 3)
    if centre.status != 0 or centre.x[2] < 1e-9:
        return None
    return ConvexHull(HalfspaceIntersection(rows, centre.x[:2]).intersections).volume


def _is_facet(rows, k):  # type: ignore[no-untyped-def]
    """Return whether leaving out a row, up to a distance beyond it, makes the cell larger."""
    size = np.linalg.norm(rows[k, :2])
    if size < 1e-13:
        return False
    limit = -rows[:, 2].copy()
    limit[k] += size
    best = linprog(-rows[k, :2], rows[:, :2], limit, bounds=[(None, None)] * 2)
    return bool(best.status == 0 and (-best.fun + rows[k, 2]) / size > 1e-9)
