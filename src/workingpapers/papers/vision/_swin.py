"""A small Swin transformer: attention within windows, shifted in every second block (Liu et al., 2021)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError


class WindowAttention(nn.Module):
    """Attention among the tokens of each window, (B, H, W, D) -> same shape, with a bias for relative places.

    Windows are `window` wide, or as wide as the image where that is smaller; `shift` of them by half a window
    joins neighbours, and what the shift brings together from opposite ends does not see each other.
    """

    places: Tensor

    def __init__(self, dim: int, heads: int, window: int, shift: bool) -> None:
        super().__init__()
        if dim % heads:
            raise WorkingPapersError(f"the heads share the width evenly; {dim} is no multiple of {heads}")
        self.heads, self.window, self.shift = heads, window, window // 2 if shift else 0
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        apart = (
            torch.stack([axis.flatten()[:, None] - axis.flatten() for axis in (rows, columns)]) + window - 1
        )
        self.register_buffer("places", apart[0] * (2 * window - 1) + apart[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of each window."""
        _, height, width, _ = x.shape
        s = self.shift if min(height, width) > self.window else 0
        parts = self._windows(torch.roll(x, (-s, -s), (1, 2)))  # (B, windows, T, D)
        q, k, v = self.qkv(parts).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        bias = self.bias[self.places].permute(2, 0, 1)
        if s:
            bias = bias + self._apart(height, width, s, x).unsqueeze(1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        y = self._image(self.out(mixed.transpose(2, 3).flatten(3)), height, width)
        return torch.roll(y, (s, s), (1, 2))

    def _windows(self, x: Tensor) -> Tensor:
        n = self.window
        parts: Tensor = x.unflatten(2, (-1, n)).unflatten(1, (-1, n)).transpose(2, 3)
        return parts.flatten(3, 4).flatten(1, 2)

    def _image(self, parts: Tensor, height: int, width: int) -> Tensor:
        n = self.window
        whole: Tensor = parts.unflatten(2, (n, n)).unflatten(1, (height // n, width // n)).transpose(2, 3)
        return whole.flatten(3, 4).flatten(1, 2)

    def _apart(self, height: int, width: int, s: int, like: Tensor) -> Tensor:
        """Return -1e4 for pairs of a window that lay apart before the shift, else 0: (windows, T, T)."""

        def region(size: int) -> Tensor:
            place = torch.arange(size, device=like.device)
            return (place >= size - self.window).long() + (place >= size - s)

        label = (3 * region(height)[:, None] + region(width)).view(1, height, width, 1)
        label = self._windows(label)[0, :, :, 0]
        return torch.where(label[:, :, None] == label[:, None], 0.0, -1e4)


class SwinBlock(nn.Module):
    """Window attention and a perceptron, each behind a layer norm and with a shortcut, (B, H, W, D) -> same."""

    def __init__(
        self, dim: int, heads: int, window: int, shift: bool, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, window, shift)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), activation(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what attention and perceptron add."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Merge(nn.Module):
    """Join each 2x2 tokens into one of twice the width, (B, H, W, D) -> (B, H / 2, W / 2, 2 D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined tokens."""
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)
        out: Tensor = self.reduce(self.norm(x))
        return out


class Swin(nn.Module):
    """Classify images (B, in_channels, S, S) -> logits; S is a multiple of patch * window * 2^(stages - 1)."""

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        dim: int = 32,
        depths: Sequence[int] = (2, 2),
        heads: Sequence[int] = (2, 4),
        patch: int = 2,
        window: int = 4,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(in_channels, dim, patch, patch), nn.LayerNorm(dim)
        self.unit = patch * window * 2 ** (len(depths) - 1)
        layers: list[nn.Module] = []
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            layers += [Merge(dim // 2)] if stage else []
            layers += [SwinBlock(dim, count, window, bool(i % 2), activation) for i in range(depth)]
            dim *= 2
        self.layers = nn.Sequential(*layers)
        self.last, self.head = nn.LayerNorm(dim // 2), nn.Linear(dim // 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        if x.shape[-1] % self.unit or x.shape[-2] % self.unit:
            raise WorkingPapersError(f"image sides are multiples of {self.unit}; got {tuple(x.shape[-2:])}")
        x = self.norm(self.embed(x).permute(0, 2, 3, 1))
        logits: Tensor = self.head(self.last(self.layers(x)).mean((1, 2)))
        return logits
