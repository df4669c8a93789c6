"""Shifts of images in five strengths that keep or lower their contrast: blur, contrast, fog, patches, noise, turns.

Images are (N, C, H, W) in any units.  Strengths are counted 0 (the image itself) to 5 and were chosen by us.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown

LEVELS = 5


def blur(x: Tensor, sigma: float) -> Tensor:
    """Blur by a Gaussian of `sigma` pixels whose weights are made to sum to 1 within the image."""

    def weights(size: int) -> Tensor:
        place = torch.arange(size, dtype=x.dtype, device=x.device)
        gaussian = (-(place[:, None] - place).square() / (2 * sigma**2)).exp()
        return gaussian / gaussian.sum(1, keepdim=True)

    return weights(x.shape[2]) @ x @ weights(x.shape[3]).T


def contrast(x: Tensor, factor: float) -> Tensor:
    """Scale each channel of each image about its mean."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


def fog(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Blend each image with a smooth random field between the middle and the top of the values in `x`."""
    side = max(x.shape[2:])
    coarse = [torch.rand(len(x), 1, k, k, generator=generator) / k for k in (2, 4, 8) if k <= max(side, 2)]
    field = sum(
        F.interpolate(c.to(x), size=x.shape[2:], mode="bilinear", align_corners=False) for c in coarse
    )
    if not isinstance(field, Tensor):  # `coarse` has at least the grid of 2 x 2
        raise WorkingPapersError("images have no pixels")
    low, high = field.amin((1, 2, 3), keepdim=True), field.amax((1, 2, 3), keepdim=True)
    brightness = (1 + (field - low) / (high - low).clamp_min(1e-12)) / 2  # 1/2 to 1
    bottom, top = x.amin(), x.amax()
    return (1 - share) * x + share * (bottom + (top - bottom) * brightness)


def patch_shuffle(x: Tensor, pieces: int, generator: torch.Generator) -> Tensor:
    """Cut each image into `pieces` x `pieces` equal patches and put them in a random order of its own."""
    n, c, h, w = x.shape
    if h % pieces or w % pieces:
        raise WorkingPapersError(f"{pieces} patches a side need image sides divisible by that; got {h} x {w}")
    patches = x.reshape(n, c, pieces, h // pieces, pieces, w // pieces).permute(0, 2, 4, 1, 3, 5)
    order = torch.rand(n, pieces**2, generator=generator).argsort(1).to(x.device)
    moved = patches.flatten(1, 2)[torch.arange(n, device=x.device)[:, None], order]
    rows: Tensor = moved.unflatten(1, (pieces, pieces)).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(n, c, h, w)


def noise(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of `amount` times each image's deviation, and restore the image's mean and deviation."""
    mean, std = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True, correction=0)
    noisy = x + amount * std * torch.randn(x.shape, generator=generator).to(x)
    noisy = noisy - noisy.mean((1, 2, 3), keepdim=True)
    own = noisy.std((1, 2, 3), keepdim=True, correction=0)
    return mean + std * noisy / own.clamp_min(1e-12)


def rotation(x: Tensor, degrees: float) -> Tensor:
    """Turn images about their centre, against the clock; what lies outside repeats the border."""
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    grid = F.affine_grid(turn.to(x).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _pieces(x: Tensor, level: int) -> int:
    """Return the number of patches a side: the common divisors of the sides above 1, spread over the levels."""
    common = math.gcd(x.shape[2], x.shape[3])
    divisors = [d for d in range(2, common + 1) if common % d == 0] or [1]
    return divisors[round((level - 1) / (LEVELS - 1) * (len(divisors) - 1))]


Shift = Callable[[Tensor, int, torch.Generator], Tensor]
SHIFTS: dict[str, Shift] = {
    "blur": lambda x, k, g: blur(x, (0.02, 0.04, 0.07, 0.13, 0.25)[k - 1] * max(x.shape[2:])),
    "contrast": lambda x, k, g: contrast(x, (0.7, 0.5, 0.3, 0.15, 0.05)[k - 1]),
    "fog": lambda x, k, g: fog(x, (0.2, 0.35, 0.5, 0.7, 0.9)[k - 1], g),
    "patch_shuffle": lambda x, k, g: patch_shuffle(x, _pieces(x, k), g),
    "noise": lambda x, k, g: noise(x, (0.25, 0.5, 1.0, 2.0, 4.0)[k - 1], g),
    "rotation": lambda x, k, g: rotation(x, (15.0, 30.0, 45.0, 60.0, 90.0)[k - 1]),
}


def shifted(x: Tensor, name: str, level: int, seed: int = 0) -> Tensor:
    """Return the images (N, C, H, W) under the shift `name` in the strength `level`, 0 (none) to 5.

    What is random follows from `seed`.  Fog's brightness goes by the range of values in `x`.
    """
    if name not in SHIFTS:
        raise unknown("shift of images", name, SHIFTS)
    if x.ndim != 4 or not x.is_floating_point():
        raise WorkingPapersError(
            f"shifts take floating images (N, C, H, W); got {x.dtype} of shape {tuple(x.shape)}"
        )
    if not 0 <= level <= LEVELS:
        raise WorkingPapersError(f"a shift's level is from 0 to {LEVELS}; got {level}")
    if level == 0:
        return x.clone()
    return SHIFTS[name](x, level, torch.Generator().manual_seed(seed))
