"""Feed-forward blocks of half a step: the module, and two of them from the hidden units of one block."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import initialise

LAYOUTS = (  # norm, first linear, activation, second linear of the feed-forward part of a pre-norm block
    ("norm2", "expand", "activation", "contract"),
    ("ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj"),
)


class FeedForward(nn.Module):
    """W2 act(W1 x) with dropout behind the activation and at the end, (..., D) -> (..., D)."""

    def __init__(
        self, up: nn.Linear, down: nn.Linear, activation: Callable[[Tensor], Tensor], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up, self.down, self.activation = up, down, activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, without shortcut."""
        out: Tensor = self.dropout(self.down(self.dropout(self.activation(self.up(x)))))
        return out


class Scaled(nn.Sequential):
    """What the one module inside gives, times `factor`."""

    def __init__(self, module: nn.Module, factor: float) -> None:
        super().__init__(module)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return factor * module(x)."""
        out: Tensor = self.factor * self[0](x)
        return out


class MacaronBlock(nn.Module):
    """Half a feed-forward step, then a pre-norm block whose own feed-forward part takes the other half."""

    def __init__(self, norm: nn.Module, first: FeedForward, block: nn.Module, factor: float) -> None:
        super().__init__()
        self.norm, self.first, self.block, self.factor = norm, first, block, factor

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Return what the block gives for the particles moved by half a step."""
        return self.block(x + self.factor * self.first(self.norm(x)), *args, **options)


def halves(up: nn.Module, down: nn.Module, factor: float) -> list[tuple[nn.Linear, nn.Linear]]:
    """Return two pairs of linear layers, of half the width each, from the hidden units of one pair.

    Their outputs times `factor` add up to what `down` gives.  The width is rounded to a multiple of 8: units
    that find no place are dropped, and in empty places new units wait with the output weight 0.  The layers may
    be those of Hugging Face's GPT-2 (`Conv1D`), whose weights are transposed.
    """
    first, second = (m.weight if isinstance(m, nn.Linear) else m.weight.T for m in (up, down))
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    dim, old = second.shape
    width = max(round(old / 16) * 8, 8)
    pairs = []

    def fresh() -> nn.ModuleList:
        return nn.ModuleList([nn.Linear(dim, width), nn.Linear(width, dim)])

    for start in (0, min(width, old // 2)):
        chosen = slice(start, start + min(width, old if start else old // 2))
        kept = len(range(*chosen.indices(old)))
        ends: Any = initialise(fresh, 0).to(first)
        with torch.no_grad():
            ends[1].weight.zero_()
            ends[1].bias.zero_()
            ends[0].weight[:kept] = first[chosen]
            ends[1].weight[:, :kept] = second[:, chosen] / factor
            if isinstance(up.bias, Tensor):
                ends[0].bias[:kept] = up.bias[chosen]
            if isinstance(down.bias, Tensor):
                ends[1].bias.copy_(down.bias / (2 * factor))
        pairs.append((ends[0], ends[1]))
    return pairs


def layout_of(block: nn.Module) -> tuple[str, str, str, str] | None:
    """Return the names of a pre-norm block's feed-forward parts, or None where they have no known form."""
    names = {name for name, _ in block.named_modules()}
    return next((layout for layout in LAYOUTS if names.issuperset(layout)), None)


def half_step_block(block: nn.Module, factor: float) -> MacaronBlock:
    """Return a pre-norm block (which is changed) in the macaron form; raise where its form is not known."""
    layout = layout_of(block)
    if layout is None:
        raise WorkingPapersError(
            f"a {type(block).__name__} has no feed-forward part of a known form; known are "
            f"nn.TransformerEncoderLayer and blocks with {' or '.join(', '.join(one) for one in LAYOUTS)}"
        )
    norm, up, activation, down = layout
    (up1, down1), (up2, down2) = halves(block.get_submodule(up), block.get_submodule(down), factor)
    first = FeedForward(up1, down1, copy.deepcopy(block.get_submodule(activation)))
    moved = copy.deepcopy(block.get_submodule(norm))
    block.set_submodule(up, up2)
    block.set_submodule(down, Scaled(down2, factor))
    return MacaronBlock(moved, first, block, factor)
