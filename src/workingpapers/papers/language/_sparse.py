"""Feed-forward layers whose hidden features are mostly zero: only what the non-zero ones meet is read."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError


class SparseDown(nn.Module):
    """A linear layer (..., H) -> (..., D) that adds up the columns of its weight at the inputs that are not zero.

    The weight lies transposed, (H, D), so that each of those columns is one stretch of memory.  It gathers where
    no gradient is asked for and at most `most` of the inputs are not zero, and multiplies densely elsewhere.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, most: float = 0.3) -> None:
        super().__init__()
        self.columns = nn.Parameter(weight.detach().t().contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs."""
        dense = torch.is_grad_enabled() and (x.requires_grad or self.columns.requires_grad)
        if dense or torch.count_nonzero(x) > self.most * x.numel():
            return F.linear(x, self.columns.t(), self.bias)
        rows = x.reshape(-1, x.shape[-1])
        token, feature = rows.nonzero(as_tuple=True)
        starts = torch.searchsorted(token, torch.arange(len(rows), device=x.device))
        summed = F.embedding_bag(
            feature, self.columns, starts, mode="sum", per_sample_weights=rows[token, feature]
        )
        return (summed if self.bias is None else summed + self.bias).view(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"{self.columns.shape[0]}, {self.columns.shape[1]}, most={self.most:g}"


def sparse_down(layer: Any, most: float) -> SparseDown:
    """Return the gathering form of an nn.Linear, or of GPT-2's Conv1D, whose weight is transposed already."""
    if isinstance(layer, nn.Linear):
        return SparseDown(layer.weight, layer.bias, most)
    if type(layer).__name__ == "Conv1D":
        return SparseDown(layer.weight.t(), layer.bias, most)
    raise WorkingPapersError(f"a down projection is a Linear or a Conv1D; got {type(layer).__name__}")


DOWN = {"down_proj", "c_proj", "fc2", "contract"}  # as in Llama and Mistral, GPT-2, OPT, and here


def down_projections(
    model: nn.Module, is_activation: Callable[[str, nn.Module], bool]
) -> Callable[[str, nn.Module], bool]:
    """Return what tells whether a module of `model` is a down projection: by its name, or by the activation that
    stands before it in an nn.Sequential.
    """
    behind = {
        two
        for m in model.modules()
        if isinstance(m, nn.Sequential)
        for one, two in pairwise(m)
        if is_activation("", one) and isinstance(two, nn.Linear)
    }
    places = {name for name, m in model.named_modules() if m in behind}

    def is_down(name: str, module: nn.Module) -> bool:
        named = name.rpartition(".")[2] in DOWN and ".attn." not in f".{name}"
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        return name in places or (named and linear)

    return is_down


def sparse_feed_forward(x: Tensor, gate: Tensor, up: Tensor, columns: Tensor) -> Tensor:
    """Return down(relu(gate x) * up x) for tokens (N, D), touching `up` (H, D) and `columns` (H, D) where relu > 0.

    `gate` (H, D) is multiplied densely; `columns` is the transpose of the down projection's weight.
    """
    hidden = F.linear(x, gate).relu()  # (N, H)
    out = []
    for token, features in zip(x, hidden, strict=True):
        at = features.nonzero()[:, 0]
        value = features[at] * (up[at] @ token)
        out.append(value @ columns[at])
    return torch.stack(out)
