"""The usual mixture of experts: each token's k most probable ones, with a loss that evens their loads.

p = softmax(x W_r),  y = sum over the k largest p_e of p_e FFN_e(x),
balance = E / (k T^2) sum over e of (tokens of e) (sum over tokens of p_te)
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from workingpapers.catalog import paper
from workingpapers.engines.experts import Experts
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._expert_layers import MoE, Router, TrainingWatch


def _example(batch: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch, 3, 6, generator=generator)


@paper("remoe", part="topk", kind="layer", arguments=(6, 4, 2, 8), example=_example)
class TopKMoE(MoE):
    """Experts of which each token takes the k most probable, weighted by their probabilities: (..., dim) -> same.

    Args:
        dim: width in and out.
        num_experts: how many experts.
        k: how many each token takes.
        width: hidden units of an expert (default 4 dim).
        gated: SwiGLU experts; else two layers.
        activation: factory of the experts' activation.
        normalise: let the k weights sum to 1.
        evaluation: "grouped", "union" or "dense", see `engines.experts`.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int = 8,
        k: int = 1,
        width: int | None = None,
        gated: bool = True,
        activation: Callable[[], nn.Module] = nn.SiLU,
        normalise: bool = False,
        evaluation: str = "grouped",
    ) -> None:
        super().__init__()
        if not 1 <= k <= num_experts:
            raise WorkingPapersError(f"a token takes 1 to {num_experts} of {num_experts} experts; got k={k}")
        self.k, self.normalise = k, normalise
        self.router = Router(dim, num_experts)
        self.experts = Experts(num_experts, dim, width or 4 * dim, activation, gated, evaluation=evaluation)

    def gates(self, logits: Tensor) -> Tensor:
        """Return the k largest probabilities, 0 elsewhere."""
        p = logits.softmax(-1)
        best = p.topk(self.k, -1)
        kept = torch.zeros_like(p).scatter(-1, best.indices, best.values)
        return kept / kept.sum(-1, keepdim=True) if self.normalise else kept

    def extra_repr(self) -> str:
        """Name the options."""
        return f"k={self.k}, normalise={self.normalise}"


def balance_loss(logits: Tensor, k: int) -> Tensor:
    """Return the Switch transformer's load-balancing loss of logits (..., experts): 1 for even loads."""
    p = logits.reshape(-1, logits.shape[-1]).softmax(-1)
    chosen = torch.zeros_like(p).scatter(-1, p.topk(k, -1).indices, 1.0).detach()
    return p.shape[1] / k * (chosen.mean(0) * p.mean(0)).sum()


class Balance:
    """Gives the load-balancing loss of a model's top-k layers, summed, for the passes since it was last asked.

    Args:
        model: has `TopKMoE` layers.
        strength: factor of the loss; 0.01 is usual.
    """

    def __init__(self, model: nn.Module, strength: float = 0.01) -> None:
        self.watch, self.strength = TrainingWatch(model, TopKMoE), strength

    def loss(self) -> Tensor:
        """Return the loss, and forget the passes."""
        found = [
            balance_loss(logits, layer.k)  # type: ignore[arg-type]
            for name, layer in self.watch.layers.items()
            for logits in self.watch.logits[name]
        ]
        self.watch.clear()
        return self.strength * torch.stack(found).sum() if found else torch.zeros(())
