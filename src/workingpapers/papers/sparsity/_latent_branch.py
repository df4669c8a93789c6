"""The classification branch of Dynamic Perceiver: latent tokens that read features, mix, and write back."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError


class CrossAttention(nn.Module):
    """Queries (B, N, D) that read (B, L, C): attention behind norms and a perceptron, both with shortcuts.

    Args:
        dim, source: D and C; None reads the queries themselves.
        inner: width of queries, keys and values; default D.
        heads: of the attention.
        positions: L, where keys learn a bias for each place; 0 is none.
        widening: of the perceptron's hidden layer.
        silent: let both branches begin with output zero.
    """

    def __init__(
        self,
        dim: int,
        source: int | None,
        inner: int | None = None,
        heads: int = 1,
        positions: int = 0,
        widening: int = 1,
        silent: bool = False,
    ) -> None:
        super().__init__()
        inner = inner or dim
        if inner % heads:
            raise WorkingPapersError(f"the heads share the width evenly; {inner} is no multiple of {heads}")
        self.heads = heads
        self.norm, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.norm_source = nn.Identity() if source is None else nn.LayerNorm(source)
        self.q, self.k, self.v = (
            nn.Linear(n, inner, bias=False) for n in (dim, source or dim, source or dim)
        )
        self.out = nn.Linear(inner, dim)
        self.positions = nn.Parameter(torch.zeros(positions, inner)) if positions else None
        self.expand, self.contract = nn.Linear(dim, widening * dim), nn.Linear(widening * dim, dim)
        for last in (self.out, self.contract) if silent else ():
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Return (B, N, D)."""
        queries = self.norm(x)
        read = queries if source is None else self.norm_source(source)
        keys = self.k(read) if self.positions is None else self.k(read) + self.positions
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(queries), keys, self.v(read))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, inner / H)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.contract(F.gelu(self.expand(self.norm_out(x))))
        return out


class Reading(nn.Module):
    """Latent tokens read a feature map: it is smoothed by a depthwise convolution, pooled, and attended to.

    Args:
        dim: of the tokens.
        channels: of the map.
        depth, heads: of the self-attention behind it.
        pool: side of the pooled map.
        widening: of the self-attention's perceptrons.
    """

    def __init__(
        self, dim: int, channels: int, depth: int, heads: int, pool: int = 7, widening: int = 4
    ) -> None:
        super().__init__()
        self.pool = pool
        self.smooth = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.read = CrossAttention(dim, channels, positions=pool**2)
        self.mix = nn.Sequential(
            *(CrossAttention(dim, None, heads=heads, widening=widening) for _ in range(depth))
        )

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the tokens (B, N, D) that have read x (B, C, H, W)."""
        seen = F.adaptive_avg_pool2d(x + self.smooth(x), self.pool)
        found: Tensor = self.mix(self.read(z, seen.flatten(2).transpose(1, 2)))
        return found

    def extra_repr(self) -> str:
        """Name the option."""
        return f"pool={self.pool}"


class Narrowing(nn.Module):
    """Fewer, wider tokens: (B, N, D) -> (B, M, E)."""

    def __init__(self, tokens: tuple[int, int], dims: tuple[int, int]) -> None:
        super().__init__()
        self.across = nn.Sequential(nn.LayerNorm(tokens[0]), nn.Linear(*tokens))
        self.within = nn.Sequential(nn.LayerNorm(dims[0]), nn.Linear(*dims))

    def forward(self, z: Tensor) -> Tensor:
        """Return the tokens."""
        found: Tensor = self.within(self.across(z.transpose(1, 2)).transpose(1, 2))
        return found


class Writing(nn.Module):
    """A feature map (B, C, H, W) reads latent tokens (B, N, D); at initialisation it stays as it is."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.read = CrossAttention(channels, dim, max(1, channels // 8), silent=True)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the map, same shape."""
        tokens = self.read(x.flatten(2).transpose(1, 2), z)
        out: Tensor = tokens.transpose(1, 2).unflatten(2, x.shape[2:])
        return out


class Shortcut(nn.Module):
    """What an exit's logits (B, K) tell the next exit: (B, D)."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.read, self.norm = nn.Linear(classes, dim), nn.BatchNorm1d(dim)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the features."""
        return F.relu(self.norm(self.read(logits)))


def halvings(tokens: int, times: int) -> list[int]:
    """Return `tokens`, halved again and again."""
    found = [tokens // 2**i for i in range(times)]
    if found[-1] < 1:
        raise WorkingPapersError(f"the latent tokens are halved {times - 1} times; {tokens} are too few")
    return found


def widths_for(channels: Sequence[int], dim: int | None) -> list[int]:
    """Return the width of the tokens at each stage: that of its features, or beginning with `dim` growing alike."""
    return [c if dim is None else max(1, round(dim * c / channels[0])) for c in channels]
