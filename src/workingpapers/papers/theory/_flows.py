"""Conditional flow matching: velocity networks that embed conditions, training in checkpoints, sampling."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.papers.theory._discs import SHOWN, Discs
from workingpapers.tasks import initialise

Change = Callable[[Tensor], Tensor]


class Velocity(nn.Module):
    """The velocity of images (N, 3, S, S) at times (N,) under conditions (N, 4): a perceptron, or a U-Net.

    `embed` turns conditions into latent vectors (N, 64); `forward` takes a function that changes them.
    """

    def __init__(self, side: int, width: int = 512, depth: int = 3, unet: bool = False) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64))
        self.net: nn.Module = _UNet(width, 96) if unet else _Perceptron(3 * side * side, width, depth, 96)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, change: Change | None = None) -> Tensor:
        """Return the velocity (N, 3, S, S)."""
        latent = self.embed(condition)
        if change is not None:
            latent = change(latent)
        frequencies = (math.pi * 2.0 ** torch.arange(8, device=t.device)) / 4
        waves = torch.cat([(t[:, None] * frequencies).sin(), (t[:, None] * frequencies).cos()], 1)
        waves = torch.cat([waves, waves.square()], 1)  # (N, 32)
        out: Tensor = self.net(x, torch.cat([latent, waves], 1))
        return out


class _Perceptron(nn.Module):
    """`depth` hidden layers of `width` on flattened pixels and the context."""

    def __init__(self, pixels: int, width: int, depth: int, context: int) -> None:
        super().__init__()
        sizes = [pixels + context, *[width] * depth]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(sizes)])
        self.out = nn.Linear(width, pixels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = torch.cat([x.flatten(1), context], 1)
        for layer in self.layers:
            h = F.silu(layer(h))
        out: Tensor = self.out(h)
        return out.reshape(x.shape)


class _UNet(nn.Module):
    """Two resolutions with a skip connection; the context scales and shifts the channels of each stage."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.into = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(3 * width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 3, 3, padding=1)
        self.film = nn.ModuleList([nn.Linear(context, 2 * c) for c in (width, 2 * width, 2 * width, width)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        def stage(i: int, h: Tensor) -> Tensor:
            scale, shift = self.film[i](context)[:, :, None, None].chunk(2, 1)
            return F.silu(h * (1 + scale) + shift)

        first = stage(0, self.into(x))
        h = stage(2, self.middle(stage(1, self.down(first))))
        h = F.interpolate(h, size=first.shape[2:], mode="nearest")
        out: Tensor = self.out(stage(3, self.up(torch.cat([h, first], 1))))
        return out


@torch.no_grad()
def sample(
    model: Velocity,
    condition: Tensor,
    side: int,
    seed: int = 0,
    steps: int = 16,
    change: Change | None = None,
) -> Tensor:
    """Return images (N, 3, side, side) for conditions (N, 4), from noise fixed by `seed`, in Euler steps."""
    x = torch.randn(len(condition), 3, side, side, generator=torch.Generator().manual_seed(seed))
    for k in range(steps):
        x = x + model(x, torch.full((len(x),), k / steps), condition, change) / steps
    return x


def logarithmic(steps: int, count: int) -> list[int]:
    """Return up to `count` whole numbers from 0 to `steps`: 0, then evenly spaced in their logarithm from 10."""
    first = min(10, steps)
    spaced = [round(first * (steps / first) ** (k / max(count - 2, 1))) for k in range(count - 1)]
    return sorted({0, *spaced, steps})


def trained(
    world: Discs,
    checkpoints: Sequence[int],
    seed: int = 0,
    batch: int = 128,
    lr: float = 1e-3,
    width: int = 512,
    depth: int = 3,
    unet: bool = False,
) -> Iterator[tuple[int, Velocity]]:
    """Train on the three shown corners by flow matching with Adam, and give a copy of the model at each checkpoint.

    x_t = (1 - t) noise + t image, t uniform; the model learns image - noise.
    """
    model = initialise(lambda: Velocity(world.side, width, depth, unet), seed)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    generator = torch.Generator().manual_seed(seed)
    pool = [world.draw(corner, 2000, generator) for corner in SHOWN]
    x, condition = (torch.cat(parts) for parts in zip(*pool, strict=True))
    for step in range(max(checkpoints) + 1):
        if step in checkpoints:
            yield step, copy.deepcopy(model).eval()
        chosen = torch.randint(len(x), (batch,), generator=generator)
        t, noise = (
            torch.rand(batch, generator=generator),
            torch.randn(batch, *x.shape[1:], generator=generator),
        )
        part = t[:, None, None, None]
        guess = model((1 - part) * noise + part * x[chosen], t, condition[chosen])
        loss = F.mse_loss(guess, x[chosen] - noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
