"""Small activations, layers, mixers and a model that keep every promise of their kind."""

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from cases import Case
from torch import Tensor, nn
from torch.nn import functional as F


class Slope(nn.Module):
    """Leaky ReLU with a trained slope per instance, and its inverse."""

    def __init__(self, slope: float = 0.25) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.start = slope

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)

    def inverse(self, y: Tensor) -> Tensor:
        return torch.where(y > 0, y, y / self.slope)

    def extra_repr(self) -> str:
        return f"slope={self.start}"


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


class MaxMin(nn.Module):
    """Sort neighbouring pairs of features."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(-1, (-1, 2))
        return torch.stack([pairs.amin(-1), pairs.amax(-1)], dim=-1).flatten(-2)


class Centre(nn.Module):
    """Subtract from every feature its mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clone()


class Sign(nn.Module):
    """Sign with the straight-through gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return _StraightThrough.apply(x)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


def doubled(x: Tensor) -> Tensor:
    """Return `x`, with twice its gradient."""
    return _Doubled.apply(x)


class Noisy(nn.Module):
    """Dropout at all times."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Dense(nn.Linear):
    pass


class DoubledDense(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return doubled(super().forward(x))


class Convolution(nn.Conv2d):
    pass


class Gate(nn.Module):
    """A layer of no torch layer's shape: one input gates the other."""

    def __init__(self, features: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(features, features, bias)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * torch.sigmoid(self.linear(gate))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int = 2, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.inward, self.outward = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.inward(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        seen = torch.ones(t, t, dtype=torch.bool, device=x.device)
        seen = (seen.tril() if self.causal else seen)[None, None]
        if mask is not None:
            seen = seen & (mask[:, None, None] | torch.eye(t, dtype=torch.bool, device=x.device))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.outward(y.transpose(1, 2).reshape(b, t, d))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, causal={self.causal}"


class Average(nn.Module):
    """Running mean of projected tokens: causal, with a step."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        weight = torch.ones_like(x[..., :1]) if mask is None else mask[..., None].to(x.dtype)
        return (self.linear(x) * weight).cumsum(1) / weight.cumsum(1).clamp_min(1)

    def step(self, x: Tensor, state: tuple[Tensor, int] | None) -> tuple[Tensor, tuple[Tensor, int]]:
        total, count = state or (torch.zeros_like(x), 0)
        total, count = total + self.linear(x), count + 1
        return total / count, (total, count)


class DoubledAverage(Average):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return doubled(super().forward(x, mask))


class Classifier(nn.Module):
    presets: ClassVar = {"tiny": {"width": 16}, "usual": {"width": 256, "norm": True}}

    def __init__(self, width: int = 256, norm: bool = False) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, width), nn.BatchNorm1d(width) if norm else nn.Identity()
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


class DoubledClassifier(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return doubled(super().forward(x))


def classes(batch: int, generator: torch.Generator) -> SimpleNamespace:
    x, y = torch.randn(batch, 5, generator=generator), torch.randint(3, (batch,), generator=generator)
    return SimpleNamespace(inputs=(x,), targets=y, loss=F.cross_entropy)


def two_inputs(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 6, generator=generator), torch.randn(batch, 6, generator=generator)


SLOPE = Case(
    "activation",
    Slope,
    {
        "smooth": False,
        "monotone": True,
        "odd": False,
        "even": False,
        "lipschitz": 1.0,
        "positively_homogeneous": True,
        "zero_at_zero": True,
        "inverse": True,
    },
)
DENSE = Case("layer", Dense, {"replaces": "Linear"})
AVERAGE = Case("mixer", Average, {"causal": True, "step": True})
CLASSIFIER = Case("model", Classifier, {"example": classes})

GOOD_MODULES = [
    SLOPE,
    Case(
        "activation",
        nn.Tanh,
        {
            "smooth": True,
            "monotone": True,
            "odd": True,
            "bounded": (-1.0, 1.0),
            "positively_homogeneous": False,
            "inverse": False,
        },
    ),
    Case("activation", nn.Sigmoid, {"zero_at_zero": False, "lipschitz": 0.25}),
    Case("activation", nn.GELU, {"monotone": False, "bounded": False}),
    Case("activation", Square, {"smooth": True, "even": True, "lipschitz": False, "bounded": False}),
    Case("activation", MaxMin, {"elementwise": False, "lipschitz": 1.0, "positively_homogeneous": True}),
    Case("activation", Centre, {"elementwise": False, "batch_independent": False, "odd": True}),
    Case("activation", Sign, {"surrogate_gradient": True, "smooth": False, "odd": False}),
    Case("activation", Noisy, {"deterministic": False, "zero_at_zero": True}),
    Case(
        "activation",
        nn.PReLU,
        {
            "options": {"num_parameters": 7},
            "monotone": True,
            "known_failures": {"repr": "torch's PReLU does not print init"},
        },
    ),
    DENSE,
    Case("layer", Convolution, {"replaces": "Conv2d"}),
    Case("layer", nn.BatchNorm1d, {"replaces": "BatchNorm1d"}),
    Case("layer", Gate, {"arguments": (6,), "example": two_inputs}),
    Case("layer", nn.Bilinear, {"replaces": "Bilinear", "arguments": (6, 6, 3), "example": two_inputs}),
    Case("mixer", Attention, {"causal": "option"}),
    Case("mixer", Attention, {"dim": 8, "options": {"heads": 4}}),
    AVERAGE,
    CLASSIFIER,
    Case("layer", DoubledDense, {**DENSE.properties, "surrogate_gradient": True}),
    Case("mixer", DoubledAverage, {**AVERAGE.properties, "surrogate_gradient": True}),
    Case("model", DoubledClassifier, {**CLASSIFIER.properties, "surrogate_gradient": True}),
    Case("model", Classifier, {"example": classes, "options": {"norm": True}}),
]
