"""A small decoder and text for the contracts of what makes decoders sparse."""

import torch
from torch import Tensor, nn

from workingpapers.papers.sparsity._small_decoders import decoder


def tiny_decoder(
    generator: torch.Generator, dim: int = 16, width: int = 24, depth: int = 2
) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a decoder, its inputs (2, 8), and a text to calibrate on (4, 8)."""
    model = decoder(11, 8, dim, depth, width, nn.SiLU, gated=True)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 1.2 / dim**0.5)
    tokens = torch.randint(0, 11, (6, 8), generator=generator)
    return model, tokens[:2], tokens[2:]
