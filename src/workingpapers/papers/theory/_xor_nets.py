"""Two-layer networks on the hypercube with derivatives of each example in closed form, and descent on them.

    plain: f(x) = a . relu(W x),   bias: a . relu(W x + b),   norm: a . h / max(|h|, eps), h = relu(W x + b)

All that depends on an example goes through z = W x + b, so a step that is taken along one example's own gradient
changes its z_j by (|x|^2 + 1) df/dz_j, and per-example perturbations cost no more than one pass over (n, neurons).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError, unknown

KINDS = ("plain", "bias", "norm")
OPTIMISERS = ("sam", "label_noise", "gd")
EPS = 1e-6


@dataclass(frozen=True)
class Net:
    """A network of one of the `KINDS`: read-out a (m,), weights w (m, d), biases b (m,), zero for "plain"."""

    kind: str
    a: Tensor
    w: Tensor
    b: Tensor

    def hidden(self, x: Tensor) -> Tensor:
        """Return z (n, m) of inputs (n, d)."""
        return torch.addmm(self.b, x, self.w.T)

    def outputs(self, x: Tensor) -> Tensor:
        """Return f (n,)."""
        return derivatives(self.kind, self.a, self.hidden(x))[0]

    def weight(self, x: Tensor) -> Tensor:
        """Return |x|^2, plus 1 with biases: what a change along dz adds to z itself, (n, 1)."""
        return x.square().sum(1, keepdim=True) + float(self.kind != "plain")

    def gradient_squares(self, x: Tensor) -> Tensor:
        """Return |grad f(x_i)|^2 of each input (n,)."""
        _, da, dz = derivatives(self.kind, self.a, self.hidden(x))
        return da.square().sum(1) + dz.square().sum(1) * self.weight(x)[:, 0]

    def trace(self, x: Tensor) -> float:
        """Return mean_i |grad f(x_i)|^2, the Hessian's trace of 1/(2n) sum (f - y)^2 where all x are fitted."""
        return float(self.gradient_squares(x).mean())


def derivatives(kind: str, a: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return f (n,), df/da and df/dz (n, m) for z (n, m) and read-outs a, (m,) or one for each example (n, m)."""
    h = z.clamp(min=0)
    if kind != "norm":
        return (h * a).sum(1), h, torch.where(z > 0, a, 0.0)
    size = h.norm(dim=1, keepdim=True)
    u = h / size.clamp(min=EPS)
    f = (u * a).sum(1, keepdim=True)
    inner = torch.where(size > EPS, a - f * u, a) / size.clamp(min=EPS)
    return f[:, 0], u, torch.where(z > 0, inner, 0.0)


def start(kind: str, d: int, neurons: int, seed: int) -> Net:
    """Return a network with weights N(0, 1/d), read-outs N(0, 1/neurons) and zero biases."""
    if kind not in KINDS:
        raise unknown("architecture", kind, KINDS)
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(neurons, generator=generator) / neurons**0.5
    return Net(kind, a, torch.randn(neurons, d, generator=generator) / d**0.5, torch.zeros(neurons))


def train(
    net: Net, x: Tensor, y: Tensor, optimiser: str = "sam", steps: int = 30_000, lr: float = 0.02,
    size: float = 0.3, seed: int = 0,
) -> Net:  # fmt: skip
    """Return the network after full-batch steps on 1/(2n) sum (f - y)^2.

    Args:
        optimiser: "sam" takes the gradient of each example's loss after an ascent of length `size` along it
            (1-SAM); "label_noise" adds normal noise of deviation `size` to the labels at every step; "gd" is plain.
    """
    if optimiser not in OPTIMISERS:
        raise unknown("optimiser", optimiser, OPTIMISERS)
    generator = torch.Generator().manual_seed(seed)
    a, w, b = net.a.clone(), net.w.clone(), net.b.clone()
    weight, n, biased = net.weight(x), len(x), net.kind != "plain"
    for _ in range(steps):
        z = torch.addmm(b, x, w.T)
        f, da, dz = derivatives(net.kind, a, z)
        labels = y
        if optimiser == "label_noise":
            labels = y + size * torch.randn(n, generator=generator, dtype=y.dtype)
        elif optimiser == "sam":
            length = (da.square().sum(1, keepdim=True) + dz.square().sum(1, keepdim=True) * weight).sqrt()
            move = size * torch.sign(f - y)[:, None] / length.clamp(min=1e-12)
            f, da, dz = derivatives(net.kind, a + move * da, z + move * weight * dz)
        left = (f - labels) * (lr / n)
        pull = left[:, None] * dz
        a -= left @ da
        w -= pull.T @ x
        if biased:
            b -= pull.sum(0)
    return replace(net, a=a, w=w, b=b)


def xor_data(d: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return n points of {-1, 1}^d (n, d), no two alike, and y = x_1 x_2 (n,), in float32."""
    if d < 2 or not 1 <= n <= 2**d // 2:
        raise WorkingPapersError(f"XOR needs d >= 2 and at most half of all 2^d points; got d={d} and n={n}")
    generator = torch.Generator().manual_seed(seed)
    x = torch.empty(0, d)
    while len(x) < n:
        more = 2.0 * torch.randint(0, 2, (2 * n, d), generator=generator) - 1
        found: dict[bytes, Tensor] = {row.numpy().tobytes(): row for row in torch.cat([x, more])}
        x = torch.stack(list(found.values()))[:n]
    return x, x[:, 0] * x[:, 1]


def make_memoriser(kind: str, x: Tensor, y: Tensor, c: float | None = None) -> Net:
    """Return the network whose neurons fire on one example each: w = c x_j, b = -c (d - 1), a = y_j / c.

    With "norm" a = y_j.  By default c is where the trace is least, (d + 1)^(1/4).

    Raises:
        WorkingPapersError: for "plain", whose neurons have no bias to fire on one point alone.
    """
    if kind not in ("bias", "norm"):
        raise WorkingPapersError(f"a memoriser has biases, so its kind is 'bias' or 'norm'; got {kind!r}")
    d = x.shape[1]
    scale = (d + 1) ** 0.25 if c is None else c
    return Net(
        kind, y / scale if kind == "bias" else y.clone(), scale * x, torch.full((len(x),), -scale * (d - 1))
    )


def make_generaliser(kind: str, d: int, c: float | None = None) -> Net:
    """Return the four neurons that compute x_1 x_2: w = c (+-1, +-1, 0, ...), b = 0, a = +-1 / (2c).

    With "norm" a = +-1.  By default c is where the trace is least, half of (d + bias)^(1/4).
    """
    if kind not in KINDS:
        raise unknown("architecture", kind, KINDS)
    scale = (d + (kind != "plain")) ** 0.25 / 2 if c is None else c
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    w = torch.zeros(4, d)
    w[:, :2] = scale * corners
    a = corners.prod(1) / (1.0 if kind == "norm" else 2 * scale)
    return Net(kind, a, w, torch.zeros(4))
