"""What tells how curved functions of a network are: its degree, the dimension of its functions, rings, spirals."""

import copy
import math

import torch
from torch import Tensor, nn

from workingpapers.data import Split


class Square(nn.Module):
    """The quadratic activation, x * x."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the squares."""
        return x * x


def degree(model: nn.Module, features: int, most: int = 32, seed: int = 0) -> int:
    """Return the degree of a polynomial network, features -> 1, of at most `most`: that along a random line."""
    generator = torch.Generator().manual_seed(seed)
    start, way = torch.randn(2, features, generator=generator, dtype=torch.float64)
    angles = math.pi * (torch.arange(most + 1, dtype=torch.float64) + 0.5) / (most + 1)
    with torch.no_grad():
        points = start + 10 * angles.cos()[:, None] * way  # far out, where the highest power leads
        values = copy.deepcopy(model).double()(points).flatten()
    chebyshev = torch.cos(torch.arange(most + 1, dtype=torch.float64)[:, None] * angles) @ values
    return int((chebyshev.abs() > 1e-11 * chebyshev.abs().max()).nonzero().max())


def algebraic_dimension(model: nn.Module, features: int, seed: int = 0) -> int:
    """Return the dimension of the set of functions, features -> 1, that a polynomial network's weights give.

    It is the rank of the Jacobian of the outputs at random inputs by the weights, which are random here.
    """
    generator = torch.Generator().manual_seed(seed)
    network = copy.deepcopy(model).double()
    parameters = list(network.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(generator=generator)
    count = 2 * sum(p.numel() for p in parameters)
    y = network(torch.randn(count, features, generator=generator, dtype=torch.float64)).flatten()
    rows = [torch.autograd.grad(one, parameters, retain_graph=True) for one in y]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    jacobian = jacobian / jacobian.norm(dim=1, keepdim=True)
    return int(torch.linalg.matrix_rank(jacobian, rtol=1e-10))


def rings(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw points (count, 2) near circles of radius 1 and 2, with noise of deviation 0.1, and the circle."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    radius = 1 + y + 0.1 * torch.randn(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y


def spirals(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw points (count, 2) on two interleaved spirals of one turn, with noise of deviation 0.05, and the arm."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    along = torch.rand(count, generator=generator).sqrt()
    angle = 2 * math.pi * along + math.pi * y
    x = torch.stack([2 * along * angle.cos(), 2 * along * angle.sin()], 1)
    return x + 0.05 * torch.randn(x.shape, generator=generator), y


def problem(name: str, seed: int) -> Split:
    """Return 500 points to train on and 1,000 to test of "rings" or "spirals"."""
    draw = {"rings": rings, "spirals": spirals}[name]
    return Split(*draw(500, 2 * seed), *draw(1000, 2 * seed + 1), 2, name)
