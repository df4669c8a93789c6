"""The weighted sum of experts, y_t = sum over e of w_te FFN_e(x_t), computed for the weights that are not 0.

    dense    all experts for all tokens, two products: the reference
    grouped  tokens sorted by expert, one segment an expert, of its own length: nothing is padded
    union    all tokens through each expert that any of them chose: for the few tokens of one chunk

All three agree in values and gradients, but for rounding.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown

EVALUATIONS = ("grouped", "union", "dense")


class Experts(nn.Module):
    """Two-layer perceptrons of one shape, summed with weights: x (n, dim), weights (n, num) -> (n, dim).

    An expert is down(activation(up x)), or down(activation(gate x) * up x) where gated.  Their weights are stacked,
    (num, width, dim), a hidden unit one contiguous row in `up`, `gate` and `down` alike.

    Args:
        num: how many experts.
        dim: width in and out.
        width: hidden units of each.
        activation: factory of the activation.
        gated: with a gate branch.
        bias: with biases on all branches; an expert's down bias is weighted with it.
        evaluation: "grouped", "union" or "dense"; what compilers look at is always dense.
    """

    def __init__(
        self,
        num: int,
        dim: int,
        width: int,
        activation: Callable[[], nn.Module] = nn.SiLU,
        gated: bool = False,
        bias: bool = False,
        evaluation: str = "grouped",
    ) -> None:
        super().__init__()
        if min(num, dim, width) < 1:
            raise WorkingPapersError(
                f"experts are at least one, of width 1 and more; got {num} of {dim} x {width}"
            )
        if evaluation not in EVALUATIONS:
            raise unknown("way to evaluate experts", evaluation, EVALUATIONS)
        self.evaluation, self.activation = evaluation, activation()
        self.up = nn.Parameter(torch.empty(num, width, dim))
        self.gate = nn.Parameter(torch.empty(num, width, dim)) if gated else None
        self.down = nn.Parameter(torch.empty(num, width, dim))
        self.up_bias = nn.Parameter(torch.empty(num, width)) if bias else None
        self.gate_bias = nn.Parameter(torch.empty(num, width)) if bias and gated else None
        self.down_bias = nn.Parameter(torch.empty(num, dim)) if bias else None
        for name, parameter in self.named_parameters(recurse=False):
            bound = (width if name.startswith("down") else dim) ** -0.5  # as nn.Linear's
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sums (n, dim)."""
        if not x.is_floating_point():
            raise WorkingPapersError(f"experts take floating inputs; got {x.dtype}")
        if torch.compiler.is_compiling() or x.is_meta or self.evaluation == "dense":
            return self.dense(x, weights)
        return self.union(x, weights) if self.evaluation == "union" else self.grouped(x, weights)

    def dense(self, x: Tensor, weights: Tensor) -> Tensor:
        """Compute all experts for all tokens."""
        up, gate, down = (None if w is None else w.flatten(0, 1) for w in (self.up, self.gate, self.down))
        biases = (None if b is None else b.flatten() for b in (self.up_bias, self.gate_bias))
        hidden = self._hidden(x, up, gate, *biases).unflatten(-1, self.up.shape[:2])  # (n, num, width)
        y: Tensor = (hidden * weights.unsqueeze(-1)).flatten(1) @ down
        return y if self.down_bias is None else y + weights @ self.down_bias

    def grouped(self, x: Tensor, weights: Tensor) -> Tensor:
        """Compute for each expert the tokens whose weight is not 0."""
        chosen, tokens = weights.T.nonzero(as_tuple=True)  # sorted by expert
        lengths = torch.bincount(chosen, minlength=len(self.up)).tolist()
        segments = zip(x[tokens].split(lengths), self._each(), strict=True)
        outputs = torch.cat([self._one(rows, *own) for rows, own in segments])
        return torch.zeros_like(x).index_add(0, tokens, outputs * weights[tokens, chosen].unsqueeze(-1))

    def union(self, x: Tensor, weights: Tensor) -> Tensor:
        """Compute all tokens with each expert that one of them chose.

        Experts are read in place: gathering their weights first would copy them all once more.
        """
        chosen = set((weights != 0).any(0).nonzero().flatten().tolist())
        y = weights @ torch.zeros_like(
            self.down[:, 0]
        )  # zeros that carry gradients where no expert is chosen
        for number, (up, gate, down, up_bias, gate_bias, down_bias) in enumerate(self._each()):
            if number in chosen:
                weight = weights[:, number, None]
                y = torch.addmm(y, self._hidden(x, up, gate, up_bias, gate_bias) * weight, down)
                y = y if down_bias is None else y + weight * down_bias
        return y

    def _each(self) -> Iterator[tuple[Tensor, ...]]:
        """Give each expert's weights; by unbinding, so that the backward pass stacks them only once."""
        parts = (self.up, self.gate, self.down, self.up_bias, self.gate_bias, self.down_bias)
        return zip(*([None] * len(self.up) if p is None else p.unbind() for p in parts), strict=True)

    def _one(
        self,
        x: Tensor,
        up: Tensor,
        gate: Tensor | None,
        down: Tensor,
        up_bias: Tensor | None,
        gate_bias: Tensor | None,
        down_bias: Tensor | None,
    ) -> Tensor:
        y = self._hidden(x, up, gate, up_bias, gate_bias) @ down
        return y if down_bias is None else y + down_bias

    def _hidden(
        self,
        x: Tensor,
        up: Tensor | None,
        gate: Tensor | None = None,
        up_bias: Tensor | None = None,
        gate_bias: Tensor | None = None,
    ) -> Tensor:
        """Return what enters the down products."""
        value = F.linear(x, up, up_bias)  # type: ignore[arg-type]
        if gate is None:
            hidden: Tensor = self.activation(value)
            return hidden
        gated: Tensor = self.activation(F.linear(x, gate, gate_bias)) * value
        return gated

    def extra_repr(self) -> str:
        """Name the sizes."""
        num, width, dim = self.up.shape
        gated = f"gated={self.gate is not None}, bias={self.up_bias is not None}"
        return f"{num} x {dim}-{width}-{dim}, {gated}, {self.evaluation}"
