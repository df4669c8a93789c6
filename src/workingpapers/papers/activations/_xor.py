"""XOR by one unit with a learned slope: the points, the loss in closed form, its flow, and parities beyond XOR."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError, unknown

CODINGS = {"signed": (-1.0, 1.0), "bits": (0.0, 1.0)}


def prelu(z: Tensor, a: float | Tensor) -> Tensor:
    """Return z where it is positive and a z elsewhere; `a` broadcasts."""
    return z.clamp(min=0) + a * z.clamp(max=0)


def points(coding: str = "signed", bits: int = 2) -> tuple[Tensor, Tensor]:
    """Return all inputs (2^bits, bits) in the coding, "signed" (-1, 1) or "bits" (0, 1), and their parities."""
    if coding not in CODINGS:
        raise unknown("coding", coding, CODINGS)
    ones = torch.cartesian_prod(*[torch.tensor([0, 1])] * bits).reshape(-1, bits)
    low, high = CODINGS[coding]
    return low + (high - low) * ones.double(), (ones.sum(1) % 2).double()


def loss_in_sums(u: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """Return the mean squared error of the unit on the points coded -1, 1; u = w1 + w2 and v = w1 - w2."""
    return (u**2 * (1 + a**2) + (v.abs() - 1) ** 2 + (a * v.abs() + 1) ** 2) / 4


def flow(u: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return du/dt, dv/dt and da/dt of gradient flow on w1, w2 and a, in closed form."""
    size = v.abs()
    pull = (size - 1) + a * (a * size + 1)
    return -u * (1 + a**2), -v.sign() * pull, -(a * u**2 + size * (a * size + 1)) / 2


def trajectory(w: Sequence[float], a: float = 0.25, lr: float = 0.05, steps: int = 400) -> Tensor:
    """Return (w1, w2, a) along gradient descent from `w` and `a`, (steps + 1, 3), by the closed form."""
    u, v, slope = (torch.tensor(float(n), dtype=torch.float64) for n in (w[0] + w[1], w[0] - w[1], a))
    path = []
    for _ in range(steps + 1):
        path.append(torch.stack([(u + v) / 2, (u - v) / 2, slope]))
        u, v, slope = (n + lr * d for n, d in zip((u, v, slope), flow(u, v, slope), strict=True))
    return torch.stack(path)


def strip(a: float) -> tuple[float, float]:
    """Return the interval of w . x in which the unit says 0: two parallel lines bound it where a < 0."""
    return (0.5 / a if a < 0 else -torch.inf), 0.5


def parity_accuracy(bits: int, draws: int = 2000, seed: int = 0) -> float:
    """Return the best share of the 2^bits parities, inputs coded -1 and 1, that any weights searched get right.

    One unit says 0 on an interval of w . x around 0 and 1 outside.  The search takes `draws` Gaussian
    directions and all with entries -1, 0, 1; for each the best interval is found exactly.
    """
    if not 1 <= bits <= 8:
        raise WorkingPapersError(f"the search over parity weights takes 1 to 8 bits; got {bits}")
    x, y = points("signed", bits)
    generator = torch.Generator().manual_seed(seed)
    few = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * bits).reshape(
        -1, bits
    )
    directions = torch.cat([few, torch.randn(draws, bits, generator=generator, dtype=torch.float64)])
    best = 0.0
    for z in directions @ x.T:
        right = float((y[z == 0] == 0).sum())
        for side in (z > 1e-12, z < -1e-12):
            size, label = z[side].abs(), y[side]
            bounds = torch.cat([size - 1e-9, torch.tensor([torch.inf], dtype=torch.float64)])
            agree = (size[None] > bounds[:, None]) == (label > 0.5)[None]
            right += float(agree.sum(1).max())
        best = max(best, right / len(y))
    return best
