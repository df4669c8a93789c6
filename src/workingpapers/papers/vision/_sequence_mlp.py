"""Sequence to sequence by linear layers across tokens: an encoder, and a causal decoder."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.vision._residual_mlp import Affine, Block, initial_weights, layer_scale


class SequenceMix(nn.Module):
    """A linear layer from up to `columns` tokens to up to `rows`, (B, S, D) -> (B, T, D).

    It is the same for all channels.  Shorter sequences use the first rows and columns, as if padded by zeros;
    `causal` hides later tokens.
    """

    def __init__(self, rows: int, columns: int, causal: bool = False) -> None:
        super().__init__()
        self.linear, self.causal = nn.Linear(columns, rows), causal

    def forward(self, x: Tensor, length: int | None = None) -> Tensor:
        """Mix the tokens into `length` ones, as many as there are by default."""
        length = x.shape[1] if length is None else length
        weight = self.linear.weight[:length, : x.shape[1]]
        return F.linear(x.mT, weight.tril() if self.causal else weight, self.linear.bias[:length]).mT


class DecoderBlock(nn.Module):
    """Causal mixing, mixing of the encoder's tokens, and a perceptron, each scaled and added."""

    def __init__(self, dim: int, length: int, scale: float) -> None:
        super().__init__()
        self.own = Block(dim, SequenceMix(length, length, causal=True), scale)
        self.norm, self.cross = Affine(dim), SequenceMix(length, length)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor, encoded: Tensor, keep: Tensor | None) -> Tensor:
        """Return the output for tokens (B, T, D) and the encoder's (B, S, D), those hidden where `keep` is 0."""
        source = self.norm(encoded) if keep is None else keep * self.norm(encoded)
        out: Tensor = self.own(x + self.scale * self.cross(source, x.shape[1]))
        return out


class ResMLPSeq2Seq(nn.Module):
    """Translate: source tokens (B, S) and target tokens so far (B, T) -> logits (B, T, vocab) of the next ones.

    As in the paper's Section 3.6 self-attention is a linear layer across tokens, triangular in the decoder, and
    cross-attention a linear layer from the encoder's tokens; S and T are at most `length`.  Where each mixing
    stands in the decoder is our reading: the paper gives no equations.

    Args:
        vocab: size of the common vocabulary.
        length: longest sentence, which fixes the mixing layers.
        dim, depth: width, and number of blocks of the encoder and of the decoder.
        padding: source token that adds nothing to others; None for none.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"vocab": 11, "length": 8, "dim": 16, "depth": 2}}

    def __init__(
        self, vocab: int, length: int, dim: int = 512, depth: int = 6, padding: int | None = None
    ) -> None:
        super().__init__()
        self.length, self.padding = length, padding
        scale = layer_scale(depth)
        self.tokens = nn.Embedding(vocab, dim)
        self.encoder = nn.ModuleList(Block(dim, SequenceMix(length, length), scale) for _ in range(depth))
        self.decoder = nn.ModuleList(DecoderBlock(dim, length, scale) for _ in range(depth))
        self.norm, self.head = Affine(dim), nn.Linear(dim, vocab)
        self.apply(initial_weights)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return for every target token the logits of the token after it."""
        for name, sentence in (("source", source), ("target", target)):
            if sentence.shape[1] > self.length:
                raise WorkingPapersError(
                    f"the mixing layers take up to {self.length} tokens; the {name} has {sentence.shape[1]}"
                )
        keep = None
        if self.padding is not None:
            keep = (source != self.padding).unsqueeze(-1).to(self.tokens.weight.dtype)
        encoded, x = self.tokens(source), self.tokens(target)
        for block in self.encoder:
            encoded = block(encoded, keep)
        for block in self.decoder:
            x = block(x, encoded, keep)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def extra_repr(self) -> str:
        return f"length={self.length}, padding={self.padding}"
