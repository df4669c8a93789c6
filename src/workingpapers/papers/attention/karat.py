"""KArAt: each row of attention scores goes through learned functions of one variable instead of softmax.

    a = q_i K^T / sqrt(d_h) in R^N,    s_k = sum_p phi_kp(a_p), k = 1..r,    A_i = W s in R^N,    output_i = A_i V
    phi(x) = sum_{m=1..G} a_m cos(m x) + b_m sin(m x)        (Fourier-KArAt)

The rows of A are neither positive nor sum to one, and A has rank r at most.  With r = None the N x N functions
stand alone, without W.

Paper: "Kolmogorov-Arnold Attention: Is Learnable Attention Better For Vision Transformers?" (2025), Section 4;
reconstructed: the scale at the start and the order of W and the functions are from memory of the preprint.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.engines.bases import Basis, BSpline, Chebyshev, Fourier, MexicanHat
from workingpapers.engines.bases.products import basis_product
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, Finding, at_least, at_most
from workingpapers.tasks import Budget, fit, initialise, vit

BASES: dict[str, Callable[[int, int], Basis]] = {  # N, G -> basis
    "fourier": Fourier,
    "bspline": lambda tokens, size: BSpline(tokens, max(size - 3, 1), 3, (-4.0, 4.0)),
    "chebyshev": lambda tokens, size: Chebyshev(tokens, size - 1),
    "wavelet": lambda tokens, size: MexicanHat(tokens, size, (-4.0, 4.0)),
}
BASE_TERMS = ("none", "silu")
PROJECTIONS = ("none", "l1", "simplex", "softmax")


def onto_simplex(x: Tensor, total: float | Tensor = 1.0) -> Tensor:
    """Return the nearest point of each row (..., N) that is nowhere negative and sums to `total`."""
    falling = x.sort(dim=-1, descending=True).values
    beyond = falling.cumsum(-1) - total
    number = torch.arange(1, x.shape[-1] + 1, device=x.device)
    last = (falling * number > beyond).sum(-1, keepdim=True).clamp_min(1)
    return (x - beyond.gather(-1, last - 1) / last).relu()


def onto_l1_ball(x: Tensor) -> Tensor:
    """Return the nearest point of each row (..., N) whose absolute values sum to at most 1."""
    inside = x.abs().sum(-1, keepdim=True) <= 1
    return torch.where(inside, x, x.sign() * onto_simplex(x.abs()))


class ScoreOperator(nn.Module):
    """Phi for every head: scores (B, H, L, N) -> rows of attention (B, H, L, N), N fixed.

    `coefficients` are (H, N, bases, r), for Fourier 2 G bases; `up` is W, (H, N, r).
    """

    def __init__(self, heads: int, tokens: int, rank: int | None, size: int, basis: str, base: str) -> None:
        super().__init__()
        self.tokens, out = tokens, tokens if rank is None else rank
        self.basis = BASES[basis](tokens, size)
        self.coefficients = nn.Parameter(torch.empty(heads, tokens, self.basis.size, out))
        self.base_weight = nn.Parameter(torch.empty(heads, tokens, out)) if base == "silu" else None
        self.up = None if rank is None else nn.Parameter(torch.empty(heads, tokens, rank))
        nn.init.normal_(self.coefficients, std=1 / math.sqrt(tokens * size))
        for weight in (self.base_weight, self.up):
            if weight is not None:
                for head in weight:
                    nn.init.xavier_uniform_(head)

    def forward(self, scores: Tensor, real: Tensor | None = None) -> Tensor:
        """Apply it; scores of tokens that are not `real` (B, N) add nothing."""
        if real is not None:
            scores = scores.masked_fill(~real[:, None, None], 0.0)
        hidden = torch.stack([self._head(h, part, real) for h, part in enumerate(scores.unbind(1))], dim=1)
        return hidden if self.up is None else hidden @ self.up.mT  # (B, H, L, N) from (B, H, L, r)

    def _head(self, head: int, scores: Tensor, real: Tensor | None) -> Tensor:
        coefficients = self.coefficients[head]
        rows = scores.reshape(-1, self.tokens)
        out = basis_product(self.basis, rows, coefficients)
        if self.base_weight is not None:
            out = out + F.silu(rows) @ self.base_weight[head]
        out = out.reshape(*scores.shape[:2], out.shape[-1])
        if real is not None:  # take away what the functions have at 0
            zero = self.basis(scores.new_zeros(1, self.tokens))[0]
            out = out - (~real).to(out.dtype).unsqueeze(1) @ torch.einsum("pg,pgr->pr", zero, coefficients)
        return out


@paper("karat")
class KArAt(nn.Module):
    """Self-attention whose scores go through learned functions, (B, T, D) -> (B, T, D) for T up to `tokens`.

    Args:
        dim, heads: width D, and over how many heads it is shared evenly.
        tokens: N, the number of tokens that the functions are made for; fewer are padded.
        rank: r of the low-rank form; None for the full one.
        size: G, frequencies of the Fourier basis, functions of the others.
        basis: fourier, bspline, chebyshev or wavelet.
        base: none, or silu for a term W_b silu(a) beside each function.
        project: what is done to the rows after: none, l1 (onto the ball), simplex or softmax.
        operator: functions shared with other layers ("universal"); default a set of its own ("blockwise").
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        tokens: int = 65,
        rank: int | None = 12,
        size: int = 3,
        basis: str = "fourier",
        base: str = "none",
        project: str = "none",
        operator: ScoreOperator | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise WorkingPapersError(f"the heads share the width evenly; {dim} is no multiple of {heads}")
        if tokens < 1 or size < 1 or (rank is not None and rank < 1):
            raise WorkingPapersError(f"tokens, rank and size are at least 1; got {tokens}, {rank} and {size}")
        for what, name, valid in (
            ("basis", basis, list(BASES)),
            ("base term", base, BASE_TERMS),
            ("projection", project, PROJECTIONS),
        ):
            if name not in valid:
                raise unknown(what, name, valid)
        self.heads, self.tokens, self.project, self.form = heads, tokens, project, (rank, size, basis, base)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.phi = operator if operator is not None else ScoreOperator(heads, tokens, rank, size, basis, base)

    def attention(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the weights (B, H, T, T) of tokens (B, T, D)."""
        q, k, _ = self._projected(x)
        return self._weights(q, k, mask)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens; `mask` (B, T) bool is True for real ones, others take no part."""
        q, k, v = self._projected(x)
        mixed = self._weights(q, k, mask) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, d)
        return q, k, v

    def _weights(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        length = q.shape[-2]
        if length > self.tokens:
            raise WorkingPapersError(f"the functions are made for {self.tokens} tokens at most; got {length}")
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if length < self.tokens:  # what is missing is padding like any other
            real = mask if mask is not None else torch.ones(len(q), length, dtype=torch.bool, device=q.device)
            scores, mask = (F.pad(t, (0, self.tokens - length)) for t in (scores, real))
        weights = self.phi(scores, mask)
        if mask is not None:
            seen = mask[:, None, None]
            far = torch.finfo(weights.dtype).min / 4 if self.project in ("simplex", "softmax") else 0.0
            weights = weights.masked_fill(~seen, far)
        weights = self._onto(weights)
        if mask is not None:
            weights = weights.masked_fill(~seen, 0.0)
        return weights[..., :length]

    def _onto(self, weights: Tensor) -> Tensor:
        if self.project == "none":
            return weights
        if self.project == "softmax":
            return torch.softmax(weights, dim=-1)
        return onto_l1_ball(weights) if self.project == "l1" else onto_simplex(weights)

    def extra_repr(self) -> str:
        rank, size, basis, base = self.form
        return (
            f"heads={self.heads}, tokens={self.tokens}, rank={rank}, size={size}, basis={basis!r}, base={base!r}, "
            f"project={self.project!r}"
        )


class SoftmaxAttention(nn.Module):
    """Softmax attention with the same projections, which the claims compare with."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def attention(self, x: Tensor) -> Tensor:
        """Return the weights (B, H, T, T)."""
        q, k, _ = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        v = self.qkv(x).chunk(3, dim=-1)[2].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out: Tensor = self.out((self.attention(x) @ v).transpose(1, 2).flatten(2))
        return out


def universal(operator: ScoreOperator) -> Callable[[int, int], KArAt]:
    """Return a mixer factory (dim, heads) -> KArAt whose layers all apply the one `operator`."""
    return lambda dim, heads: KArAt(dim, heads, operator.tokens, operator=operator)


@torch.no_grad()
def spectrum(weights: Tensor, energy: float = 0.9) -> Finding:
    """Return how many singular values of attention matrices (..., N, N) hold a share `energy` of all squares.

    Numbers are the mean over matrices and the largest; `details` has the mean singular values, largest first.
    """
    values = torch.linalg.svdvals(weights.flatten(0, -3).double())
    share = values.square().cumsum(-1) / values.square().sum(-1, keepdim=True)
    rank = 1 + (share < energy - 1e-12).sum(-1).clamp_max(values.shape[-1] - 1)
    mean = float(rank.double().mean())
    return Finding(
        {"effective_rank": mean, "largest": float(rank.max())},
        f"{mean:.1f} of {values.shape[-1]} singular values hold {energy:.0%} of an attention matrix's energy.",
        details={"singular_values": values.mean(0)},
    )


def _images(budget: Budget, seed: int) -> Split:
    train, test = budget.pick(quick=(1000, 1000), full=(10000, 2000))
    return images("cifar10", train=train, test=test, size=budget.pick(quick=16, full=32), seed=seed)


def _trained(mixer: Callable[..., Any], split: Split, budget: Budget, seed: int) -> tuple[nn.Module, float]:
    dim, depth = budget.pick(quick=(48, 2), full=(96, 4))
    side = split.x_train.shape[-1]
    model = initialise(
        lambda: vit(3, side, budget.pick(quick=2, full=4), 10, dim, depth, 3, mixer=mixer), seed
    )
    how: dict[str, Any] = {"optimizer": "adamw", "schedule": "warmup_cosine", "lr": 1e-3, "seed": seed}
    result = fit(model, split, epochs=budget.pick(quick=3, full=10), **how)
    return model, 0.0 if result.diverged else result.metrics["accuracy"]


@claim(
    "karat",
    "Learnable Fourier attention outperforms or matches plain vision transformers on small and large image sets.",
    seeds=3,
    holds=at_least(-0.01, of="over_softmax"),
)
def image_accuracy(budget: Budget, seed: int) -> Evidence:
    """CIFAR-10 accuracy of the better of blockwise and universal Fourier-KArAt (r = 12, G = 3), less softmax's."""
    split = _images(budget, seed)
    softmax = _trained(SoftmaxAttention, split, budget, seed)[1]
    blockwise = _trained(partial(KArAt, tokens=64), split, budget, seed)[1]
    operator = initialise(lambda: ScoreOperator(3, 64, 12, 3, "fourier", "none"), seed)
    shared = _trained(universal(operator), split, budget, seed)[1]
    best = max(blockwise, shared)
    return Evidence(over_softmax=best - softmax, softmax=softmax, blockwise=blockwise, universal=shared)


def _note(seen: list[Tensor], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    seen.append(inputs[0])


@claim(
    "karat",
    "Spectral behaviour, loss landscapes and attention maps of learnable attention differ from the vanilla model's "
    "and are compared.",
    seeds=3,
    holds=at_most(1.05, of="rank_ratio"),
)
def attention_spectrum(budget: Budget, seed: int) -> Evidence:
    """Singular values that hold 90 % of the last layer's attention on 100 images, over as many of softmax's."""
    split, ranks = _images(budget, seed), {}
    mixers: dict[str, Any] = {"karat": partial(KArAt, tokens=64), "softmax": SoftmaxAttention}
    for name, mixer in mixers.items():
        model = _trained(mixer, split, budget, seed)[0]
        layer = [m for m in model.modules() if isinstance(m, KArAt | SoftmaxAttention)][-1]
        seen: list[Tensor] = []
        hook = layer.register_forward_pre_hook(partial(_note, seen))
        with torch.no_grad():
            model(split.x_test[:100])
        hook.remove()
        ranks[name] = spectrum(layer.attention(seen[0])).numbers["effective_rank"]
    return Evidence(rank_ratio=ranks["karat"] / ranks["softmax"], **ranks)
