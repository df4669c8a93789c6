"""Vectors in hyperspherical coordinates, and the parameters of neurons whose weights are stored so."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError


def _wide(x: Tensor) -> Tensor:
    """Return `x` in at least float32: products of many sines and sums of many squares need it."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def unit_vectors(theta: Tensor) -> Tensor:
    """Map angles (..., n - 1) to unit vectors (..., n): u_k = sin t_1 ... sin t_{k-1} cos t_k, no cosine in u_n."""
    wide = _wide(theta)
    one = torch.ones_like(wide[..., :1])
    sines = torch.cumprod(torch.cat([one, wide.sin()], dim=-1), dim=-1)
    return (sines * torch.cat([wide.cos(), one], dim=-1)).to(theta.dtype)


def angles(w: Tensor) -> Tensor:
    """Map vectors (..., n), n >= 2, to angles (..., n - 1): the last in (-pi, pi], the others in [0, pi]."""
    wide = _wide(w)
    wide = wide / wide.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)
    tails = wide.square().flip(-1).cumsum(-1).flip(-1).sqrt()  # norm of (w_k, ..., w_n)
    theta = torch.atan2(torch.cat([tails[..., 1:-1], wide[..., -1:]], dim=-1), wide[..., :-1])
    return theta.to(w.dtype)


def angle_between(u: Tensor, v: Tensor) -> Tensor:
    """Return the angle in radians between vectors (..., n), exact for small ones too; nan for a zero vector."""
    u, v = F.normalize(u, dim=-1, eps=0.0), F.normalize(v, dim=-1, eps=0.0)
    return 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=-1), torch.linalg.vector_norm(u + v, dim=-1))


class Spherical(nn.Module):
    """The parameters of `units` neurons with weights of shape `shape`: theta (units, n - 1), r and lambda (units,).

    `weight` and `bias` are computed as r u and r lambda.  With one input there is no angle: the sign of the
    weight stays as it was drawn, and r and lambda are learnt.  `relu` puts r outside a relu of the rest.
    """

    theta: Tensor | None
    sign: Tensor | None
    lam: Tensor | None

    def __init__(self, units: int, shape: tuple[int, ...], bias: bool, relu: bool) -> None:
        super().__init__()
        self.shape, self.relu = shape, relu
        n = math.prod(shape)
        if n < 1 or units < 1:
            raise WorkingPapersError(
                f"a neuron has at least one input; got weights of shape {(units, *shape)}"
            )
        self.register_parameter("theta", nn.Parameter(torch.empty(units, n - 1)) if n > 1 else None)
        self.register_buffer("sign", torch.ones(units, 1) if n == 1 else None)
        self.r = nn.Parameter(torch.empty(units))
        self.register_parameter("lam", nn.Parameter(torch.empty(units)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from Glorot's uniform law (n inputs, `units` outputs) and convert them; biases are 0."""
        n, units = math.prod(self.shape), len(self.r)
        bound = math.sqrt(6 / (n + units))
        self.set_weight(torch.empty(units, n, device=self.r.device).uniform_(-bound, bound))

    @torch.no_grad()
    def set_weight(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take over a Cartesian weight (units, ...) and bias (units,), None for zeros.

        Raises:
            WorkingPapersError: where a neuron has no weight but a bias: it is constant and has no boundary.
        """
        flat = _wide(weight.flatten(1))
        radius = torch.linalg.vector_norm(flat, dim=1)
        offset = (
            torch.zeros_like(radius) if bias is None else torch.where(bias == 0, 0.0, _wide(bias) / radius)
        )
        if not bool(offset.isfinite().all()):
            neuron = int((~offset.isfinite()).nonzero()[0])
            raise WorkingPapersError(
                f"neuron {neuron} has zero weight and a bias: it has no activation boundary"
            )
        self.r.copy_(radius)
        if self.lam is not None:
            self.lam.copy_(offset)
        if self.theta is not None:
            self.theta.copy_(angles(flat))
        if self.sign is not None:
            self.sign.copy_(torch.where(flat < 0, -1.0, 1.0))

    def direction(self) -> Tensor:
        """Return u, (units, *shape), of norm 1 per unit."""
        u = self.sign if self.theta is None else unit_vectors(self.theta)
        return u.reshape(-1, *self.shape)  # type: ignore[union-attr]  # one of the two is there

    @property
    def weight(self) -> Tensor:
        """The Cartesian weight r u, (units, *shape)."""
        return self.r.view(-1, *[1] * len(self.shape)) * self.direction()

    @property
    def bias(self) -> Tensor | None:
        """The Cartesian bias r lambda, (units,), or None."""
        return None if self.lam is None else self.r * self.lam

    def output(self, z: Tensor) -> Tensor:
        """Return r z or r relu(z) for z = u . x + lambda, whose axis of units precedes those of space."""
        return self.r.view(-1, *[1] * (len(self.shape) - 1)) * (z.relu() if self.relu else z)

    @torch.no_grad()
    def write(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Write `weight` and `bias` into a torch layer of the same shapes.

        Raises:
            WorkingPapersError: where r relu(z) with a negative r is no relu of what the layer computes.
        """
        if self.relu and bool((self.r < 0).any()):
            raise WorkingPapersError(
                f"neuron {int((self.r < 0).nonzero()[0])} has a negative radius r: r * relu(z) is no relu of r * z"
            )
        layer.weight.copy_(self.weight)
        if self.bias is not None and layer.bias is not None:
            layer.bias.copy_(self.bias)
