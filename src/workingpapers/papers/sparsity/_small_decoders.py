"""Small character decoders whose feed-forward layers have any width and activation, gated or not."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from workingpapers.tasks import char_gpt
from workingpapers.tasks.transformers import CharGPT


class HalfGate(nn.Module):
    """The activation of one half of the features times the other half: (..., 2 width) -> (..., width)."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated features."""
        first, second = x.tensor_split(2, -1)
        gated: Tensor = self.activation(first) * second
        return gated


def decoder(
    vocab: int,
    context: int,
    dim: int,
    depth: int,
    width: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    gated: bool = False,
) -> CharGPT:
    """Build a character GPT with 4 heads and `width` features in its feed-forward layers.

    Under one seed all activations start from the same weights.
    """
    model = char_gpt(vocab, dim, depth, 4, context, nn.Identity)
    for block in cast(Any, model.blocks):
        block.expand = nn.Linear(dim, 2 * width if gated else width)
        block.activation = HalfGate(activation()) if gated else activation()
        block.contract = nn.Linear(width, dim)
        with torch.no_grad():
            block.contract.weight.mul_((2 * depth) ** -0.5)
            block.contract.bias.zero_()
    return model
