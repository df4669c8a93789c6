"""Small transformers with exchangeable activation and mixer: a language model and an image classifier."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.tasks.models import Factory
from workingpapers.tasks.randomness import apart

Mixer = Callable[[int, int], nn.Module]  # (dim, heads) -> module from (B, T, D) to (B, T, D)


class Attention(nn.Module):
    """Softmax attention with several heads, (B, T, D) -> (B, T, D); `causal` hides later tokens."""

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        if dim % heads:
            raise WorkingPapersError(f"the heads share the width evenly; {dim} is no multiple of {heads}")
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D / H)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """A mixer and a two-layer perceptron, each behind a layer norm and with a shortcut around it."""

    def __init__(self, dim: int, heads: int, activation: Factory, mixer: Mixer) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = apart(lambda: mixer(dim, heads))
        self.norm2 = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 4 * dim)
        self.activation = apart(activation)
        self.contract = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what the mixer and the perceptron add."""
        x = x + self.mixer(self.norm1(x))
        out: Tensor = x + self.contract(self.activation(self.expand(self.norm2(x))))
        return out


def _blocks(dim: int, depth: int, heads: int, activation: Factory, mixer: Mixer) -> nn.ModuleList:
    """Build `depth` blocks whose own branches start small, by 1 / sqrt(branches), as in GPT-2."""
    blocks = [Block(dim, heads, activation, mixer) for _ in range(depth)]
    for block in blocks:
        mixer_end = [block.mixer.out] if isinstance(block.mixer, Attention) else []
        for linear in [block.contract, *mixer_end]:
            nn.init.zeros_(linear.bias)
            linear.weight.data.mul_((2 * depth) ** -0.5)
    return nn.ModuleList(blocks)


class CharGPT(nn.Module):
    """A decoder of the GPT-2 form: tokens (B, T), T up to `context`, -> logits (B, T, vocab)."""

    def __init__(
        self, vocab: int, dim: int, depth: int, heads: int, context: int, activation: Factory, mixer: Mixer
    ) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocab, dim)
        self.positions = nn.Parameter(torch.empty(context, dim))
        self.blocks = _blocks(dim, depth, heads, activation, mixer)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)
        for weight in (self.tokens.weight, self.positions, self.head.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return for every position the logits of the token after it."""
        length = tokens.shape[1]
        if length > self.context:
            raise WorkingPapersError(f"the context is {self.context} tokens; got {length}")
        x = self.tokens(tokens) + self.positions[:length]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def char_gpt(
    vocab: int,
    dim: int = 64,
    depth: int = 2,
    heads: int = 4,
    context: int = 64,
    activation: Factory = nn.GELU,
    mixer: Mixer | None = None,
) -> CharGPT:
    """Build a small GPT; `mixer` (dim, heads) -> causal module (B, T, D) -> (B, T, D), default attention."""
    return CharGPT(vocab, dim, depth, heads, context, activation, mixer or _causal)


class ViT(nn.Module):
    """A vision transformer: (B, C, size, size) -> (B, num_classes), the mean over patches read out."""

    def __init__(
        self,
        in_channels: int,
        patches: int,
        patch: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        activation: Factory,
        mixer: Mixer,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, dim, patch, patch)
        self.positions = nn.Parameter(torch.empty(patches, dim))
        self.blocks = _blocks(dim, depth, heads, activation, mixer)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images."""
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions  # (B, T, D)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def vit(
    in_channels: int,
    size: int,
    patch: int,
    num_classes: int,
    dim: int = 64,
    depth: int = 2,
    heads: int = 4,
    activation: Factory = nn.GELU,
    mixer: Mixer | None = None,
) -> ViT:
    """Build a small vision transformer without class token; `mixer` (dim, heads) -> module, default attention."""
    if size % patch:
        raise WorkingPapersError(f"patches of {patch}x{patch} do not tile a {size}x{size} image")
    patches = (size // patch) ** 2
    return ViT(in_channels, patches, patch, num_classes, dim, depth, heads, activation, mixer or _everywhere)


def _causal(dim: int, heads: int) -> nn.Module:
    return Attention(dim, heads, causal=True)


def _everywhere(dim: int, heads: int) -> nn.Module:
    return Attention(dim, heads, causal=False)
