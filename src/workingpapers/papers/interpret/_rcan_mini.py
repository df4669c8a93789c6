"""A small residual channel attention network for super-resolution, trained on patches of photographs.

Blocks as in Zhang et al. (2018), "Image Super-Resolution Using Very Deep Residual Channel Attention Networks".
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import fit, initialise

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "coins")
MEAN = 0.45  # of grey pixels, taken off before and put back behind


def photograph(name: str) -> Tensor:
    """Return scikit-image's photograph `name` in grey, (1, 1, H, W) in [0, 1].

    Raises:
        WorkingPapersError: where scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise WorkingPapersError(
            "the photographs need scikit-image; `pip install workingpapers[images]` brings it"
        ) from error
    pixels = torch.from_numpy(getattr(data, name)().copy()).float() / 255
    return (pixels if pixels.ndim == 2 else pixels.mean(2))[None, None]


def halved(x: Tensor) -> Tensor:
    """Return images (N, C, H, W) at half their size, by antialiased bicubic interpolation."""
    return F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True, align_corners=False)


class ChannelAttention(nn.Module):
    """Scale every channel by a gate in (0, 1) that looks at the means of all channels."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x * gate(x), (N, C, H, W)."""
        found: Tensor = x * self.gate(x)
        return found


class Residual(nn.Module):
    """Add to the input what some modules make of it."""

    def __init__(self, *inside: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*inside)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + inside(x)."""
        found: Tensor = x + self.inside(x)
        return found


def _conv(channels_in: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, padding=1)


def _block(channels: int) -> Residual:
    return Residual(
        _conv(channels, channels), nn.ReLU(), _conv(channels, channels), ChannelAttention(channels)
    )


class RCANMini(nn.Module):
    """Double the size of grey images: (N, 1, H, W) -> (N, 1, 2 H, 2 W), residual blocks in residual groups."""

    def __init__(self, channels: int = 16, groups: int = 2, blocks: int = 2) -> None:
        super().__init__()
        self.head = _conv(1, channels)
        inside = [
            Residual(*[_block(channels) for _ in range(blocks)], _conv(channels, channels))
            for _ in range(groups)
        ]
        self.body = Residual(*inside, _conv(channels, channels))
        self.tail = nn.Sequential(_conv(channels, 4 * channels), nn.PixelShuffle(2), _conv(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the images at twice their size."""
        found: Tensor = self.tail(self.body(self.head(x - MEAN))) + MEAN
        return found


@dataclass(frozen=True)
class Trained:
    """A trained network, and its PSNR and that of bicubic interpolation on patches that it has not seen."""

    model: RCANMini
    psnr: float
    bicubic: float


def patches(count: int, size: int, seed: int) -> Tensor:
    """Return `count` patches (count, 1, size, size) of the photographs, at random places."""
    generator = torch.Generator().manual_seed(seed)
    pictures = [photograph(name) for name in PHOTOGRAPHS]
    found = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in picture.shape[2:])
        found.append(picture[:, :, top : top + size, left : left + size])
    return torch.cat(found)


def trained_rcan(steps: int, seed: int, count: int = 2000) -> Trained:
    """Train an `RCANMini` on `count` patches, 16x16 to 32x32 pixels, by the absolute error (Adam, 8 at a time)."""
    sharp = patches(count + 200, 32, seed)
    coarse = halved(sharp)
    split = Split(coarse[:count], sharp[:count], coarse[count:], sharp[count:], 0, "photographs")
    model = initialise(RCANMini, seed)
    fit(
        model,
        split,
        steps=steps,
        every=10**6,
        batch=16,
        lr=2e-3,
        schedule="cosine",
        loss=F.l1_loss,
        seed=seed,
    )
    with torch.no_grad():
        found = model(split.x_test)
    plain = F.interpolate(split.x_test, scale_factor=2, mode="bicubic", align_corners=False)

    def psnr(y: Tensor) -> float:
        return float(-10 * (y - split.y_test).square().mean().log10())

    return Trained(model, psnr(found), psnr(plain))
