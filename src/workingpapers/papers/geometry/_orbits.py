"""Networks on the plane under rotations: how features vary along orbits, and a penalty to make them turn."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from workingpapers.tasks import initialise

STILL, PAIRS = 16, 8  # features that shall be invariant, and pairs of features that shall turn with the input


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Turn rows x (n, 2) by angles (n,), or all by one."""
    c, s = angles.cos(), angles.sin()
    return torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], 1)


def moved(h: Tensor, angles: Tensor) -> Tensor:
    """Apply the representation to features (n, STILL + 2 PAIRS): the first stay, each pair after them turns."""
    pairs = h[:, STILL:].reshape(len(h), PAIRS, 2)
    turned = rotated(pairs.reshape(-1, 2), angles.repeat_interleave(PAIRS))
    return torch.cat([h[:, :STILL], turned.reshape(len(h), -1)], 1)


def relative_error(layer: Callable[[Tensor], Tensor], x: Tensor, angles: Tensor) -> Tensor:
    """Return E ||h(R x) - rho(R) h(x)||^2 / E ||h(x)||^2, a scalar."""
    h = layer(x)
    gap = layer(rotated(x, angles)) - moved(h, angles)
    return gap.square().sum(1).mean() / h.square().sum(1).mean().clamp_min(1e-12)


def orbit_share(layer: Callable[[Tensor], Tensor], x: Tensor, angles: int = 32) -> float:
    """Return the variance of features h along the orbits of rows x (n, 2), beside their mean square, in [0, 1]."""
    with torch.no_grad():
        every = [layer(rotated(x, torch.tensor(2 * math.pi * i / angles))) for i in range(angles)]
    h = torch.stack(every)
    total = float(h.square().sum(2).mean())
    return float((h - h.mean(0)).square().sum(2).mean()) / max(total, 1e-12)


def collapse(weight: float, steps: int, seed: int) -> dict[str, float]:
    """Train two ReLU layers to turn x into ||x|| x turned by 45 degrees, and both to be equivariant.

    The loss is the mean square error plus `weight` times the sum of the layers' `relative_error`; Adam's rate is
    0.003.  Returned of fresh points: the worse layer's `error`, `orbit_share`, and `turning`, the share of the mean
    square in the pairs; and the `loss` without penalty.
    """
    width = STILL + 2 * PAIRS
    model = initialise(
        lambda: nn.Sequential(
            nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        ),
        seed,
    )
    layers = (model[:2], model[:4])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss_at(x: Tensor) -> Tensor:
        wanted = x.norm(dim=1, keepdim=True) * rotated(x, torch.tensor(math.pi / 4))
        loss: Tensor = (model(x) - wanted).square().sum(1).mean()
        return loss

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, 2, generator=generator), 2 * math.pi * torch.rand(
            count, generator=generator
        )

    for _ in range(steps):
        x, angles = drawn(256)
        loss = loss_at(x) + weight * sum(relative_error(layer, x, angles) for layer in layers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, angles = drawn(1000)
    with torch.no_grad():
        features = [layer(x) for layer in layers]
        return {
            "error": max(float(relative_error(layer, x, angles)) for layer in layers),
            "orbit_share": max(orbit_share(layer, x) for layer in layers),
            "turning": max(float(h[:, STILL:].square().sum() / h.square().sum()) for h in features),
            "loss": float(loss_at(x)),
        }
