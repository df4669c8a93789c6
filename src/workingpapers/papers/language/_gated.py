"""A small character model with gated feed-forward layers, whatever activation gates them."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from workingpapers.tasks import char_gpt
from workingpapers.tasks.transformers import CharGPT


class Gated(nn.Module):
    """The activation of the first half of the features, times the second half: (..., 2 H) -> (..., H)."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated features."""
        gate, value = x.chunk(2, -1)
        return cast(Tensor, self.act(gate)) * value


def gated_gpt(vocab: int, context: int, activation: Callable[[], nn.Module]) -> CharGPT:
    """Build a character GPT of 2 layers and width 64 with gated feed-forward layers of 256 features."""
    model = char_gpt(vocab, 64, 2, 4, context, nn.Identity)
    for block in cast(Any, model.blocks):
        block.expand, block.activation = nn.Linear(64, 512), Gated(activation())
    return model
