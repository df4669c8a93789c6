"""KArAt's mixer: learned functions of each row of scores, low-rank or full, and softmax to compare with."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import paper
from workingpapers.engines.bases import Basis, BSpline, Chebyshev, Fourier, MexicanHat, Rational
from workingpapers.engines.bases.products import basis_product
from workingpapers.errors import WorkingPapersError, unknown

BASES: dict[str, Callable[[int, int], Basis]] = {  # N, G -> basis
    "fourier": Fourier,
    "bspline": lambda tokens, size: BSpline(tokens, max(size - 3, 1), 3, (-4.0, 4.0)),
    "chebyshev": lambda tokens, size: Chebyshev(tokens, size - 1),
    "wavelet": lambda tokens, size: MexicanHat(tokens, size, (-4.0, 4.0)),
    "rational": lambda tokens, size: Rational(tokens, size - 1, max(size - 1, 1)),
}


def _identity(scores: Tensor) -> Tensor:
    return scores


# all are 0 at 0, where the scores of padding are put
BASE_TERMS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "silu": F.silu,
    "identity": _identity,
}
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
        self.base = BASE_TERMS[base]
        self.base_weight = None if self.base is None else nn.Parameter(torch.empty(heads, tokens, out))
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
        if self.base is not None and self.base_weight is not None:
            out = out + self.base(rows) @ self.base_weight[head]
        out = out.reshape(*scores.shape[:2], out.shape[-1])
        if real is not None:  # take away what the functions have at 0
            zero = self.basis(scores.new_zeros(1, self.tokens))[0]
            out = out - (~real).to(out.dtype).unsqueeze(1) @ torch.einsum("pg,pgr->pr", zero, coefficients)
        return out


@paper("karat", variants=[{"basis": "rational", "base": "identity"}])
class KArAt(nn.Module):
    """Self-attention whose scores go through learned functions, (B, T, D) -> (B, T, D) for T up to `tokens`.

    Args:
        dim, heads: width D, and over how many heads it is shared evenly.
        tokens: N, the number of tokens that the functions are made for; fewer are padded.
        rank: r of the low-rank form; None for the full one.
        size: G, frequencies of the Fourier basis, functions of the others.
        basis: fourier, bspline, chebyshev, wavelet, or rational: P(x) / (1 + |Q(x)|), of degrees G - 1, Q(0) = 0,
            where each function has a P of its own, and all functions of a token the same Q.
        base: none, or silu or identity for a term W_b silu(a) or W_b a beside each function.
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
            ("base term", base, list(BASE_TERMS)),
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
