"""Random features that part a layer's input from its weights: f(w . x + b) = E[psi(w, b) phi(x)].

    exp(u . v) = E[L_g(u) L_g(v)] for g ~ N(0, I) and any A <= 0,
    L_g(z) = (1 - 4 A)^(d/4) exp(A |g|^2 + sqrt(1 - 4 A) g . z - z . z / 2)

so with f(z) = Re E[c exp(s z)], the Fourier transform of f as a density of s with factors c, it follows that
phi(x) = L_g(x) and psi(w, b) = Re(c exp(s b) L_g(s w)).  The rectifier has no such transform; its features
relu(g . x) give the arc-cosine kernel of order 1 instead.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown

# draws for m features the growth, the frequency (together s) and the phase of c, whose size is 1
Spectrum = Callable[[int], tuple[Tensor, Tensor, Tensor]]


def _delta(growth: float, frequency: float, phase: float) -> Spectrum:
    return lambda m: (torch.full((m,), growth), torch.full((m,), frequency), torch.full((m,), phase))


SPECTRA: dict[str, Spectrum] = {
    "cos": _delta(0.0, 1.0, 0.0),
    "sin": _delta(0.0, 1.0, -torch.pi / 2),
    "exp": _delta(1.0, 0.0, 0.0),
    "gaussian": lambda m: (torch.zeros(m), torch.randn(m), torch.zeros(m)),  # exp(-z^2 / 2)
}
KINDS = ("relu", *SPECTRA)


def gaussian_rows(m: int, d: int, orthogonal: bool) -> Tensor:
    """Draw m standard normal rows (m, d), orthogonal within each block of d rows if so asked."""
    if not orthogonal:
        return torch.randn(m, d)
    blocks = [torch.linalg.qr(torch.randn(d, d))[0] for _ in range(-(-m // d))]
    rows: Tensor = torch.cat(blocks)[:m] * torch.randn(m, d).norm(dim=1, keepdim=True)
    return rows


class Features(nn.Module):
    """The map phi of inputs (..., d) to m features, and psi of weights to as many.

    Args:
        d, m: how many inputs and features.
        kind: "relu", or which function f the products stand for: "sin", "cos", "exp" or "gaussian".
        bias: let the weights have an offset; the inputs of "relu" get a 1 appended for it.
        orthogonal: draw the random directions orthogonal, d at a time.
        a: A of the formula, at most 0.
    """

    directions: Tensor
    growth: Tensor
    frequency: Tensor
    phase: Tensor

    def __init__(
        self, d: int, m: int, kind: str = "relu", bias: bool = True, orthogonal: bool = False, a: float = 0.0
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise unknown("kind of features", kind, KINDS)
        if a > 0:
            raise WorkingPapersError(f"A is at most 0; got {a}")
        self.d, self.m, self.kind, self.bias, self.orthogonal, self.a = d, m, kind, bias, orthogonal, a
        self.augmented = bias and kind == "relu"
        self.register_buffer("directions", gaussian_rows(m, d + self.augmented, orthogonal))
        for name, numbers in zip(("growth", "frequency", "phase"), self._spectrum(), strict=True):
            self.register_buffer(name, numbers)

    def _spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.kind == "relu":
            return torch.zeros(0), torch.zeros(0), torch.zeros(0)
        return SPECTRA[self.kind](self.m)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (..., m) of inputs (..., d)."""
        exact = exactly(x)
        return in_dtype_of(x, self.activated(self.project(exact), exact.square().sum(-1, keepdim=True)))

    def project(self, x: Tensor) -> Tensor:
        """Return the products of inputs (..., d), with the 1 if there is one, with the random directions."""
        g = exactly(self.directions)
        return F.linear(x, g[:, : self.d], g[:, self.d] if self.augmented else None)

    def activated(self, projected: Tensor, squared: Tensor) -> Tensor:
        """Return phi from g . x (..., m) and |x|^2 (..., 1)."""
        if self.kind == "relu":
            features = projected.relu()
        else:
            features = self._scale() * torch.exp((1 - 4 * self.a) ** 0.5 * projected - squared / 2)
        found: Tensor = features / self.m**0.5
        return found

    def weights(self, w: Tensor, b: Tensor | None = None) -> Tensor:
        """Return psi (..., m) for weights (..., d) and offsets (...)."""
        exact = exactly(w)
        offset = exact.new_zeros(exact.shape[:-1]) if b is None else exactly(b)
        if self.kind == "relu":
            if self.augmented:
                exact = torch.cat([exact, offset.unsqueeze(-1)], -1)
            kernel: Tensor = F.linear(exact, exactly(self.directions)).relu() / self.m**0.5
            return kernel
        rise, turn, phase = (exactly(part) for part in (self.growth, self.frequency, self.phase))
        along = (1 - 4 * self.a) ** 0.5 * F.linear(exact, exactly(self.directions)) + offset.unsqueeze(-1)
        squared = exact.square().sum(-1, keepdim=True)
        size = torch.exp(rise * along - (rise**2 - turn**2) * squared / 2)  # s z - s^2 z.z / 2, real part
        wave = torch.cos(phase + turn * along - rise * turn * squared)
        found: Tensor = self._scale() * size * wave / self.m**0.5
        return found

    def _scale(self) -> Tensor:
        g = exactly(self.directions)
        scale: Tensor = (1 - 4 * self.a) ** (self.d / 4) * torch.exp(self.a * g.square().sum(-1))
        return scale

    def extra_repr(self) -> str:
        options = f"kind={self.kind!r}, bias={self.bias}, orthogonal={self.orthogonal}, a={self.a}"
        return f"{self.d}, {self.m}, {options}"


def exactly(x: Tensor) -> Tensor:
    """Return `x` in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def in_dtype_of(x: Tensor, y: Tensor) -> Tensor:
    """Return `y` in the dtype of `x` where that is a floating one."""
    return y.to(x.dtype) if x.is_floating_point() else y


def arc_cosine(x: Tensor, w: Tensor) -> Tensor:
    """Return E[relu(g . x) relu(g . w)] for rows (..., d): |x| |w| (sin t + (pi - t) cos t) / (2 pi)."""
    lengths = x.norm(dim=-1) * w.norm(dim=-1)
    cosine = ((x * w).sum(-1) / lengths.clamp(min=torch.finfo(x.dtype).tiny)).clamp(-1, 1)
    t = torch.arccos(cosine)
    kernel: Tensor = lengths * (torch.sin(t) + (torch.pi - t) * cosine) / (2 * torch.pi)
    return kernel


def estimation_errors(
    kind: str, d: int, sizes: Sequence[int], pairs: int, draws: int, seed: int
) -> dict[int, float]:
    """Return the root mean square error of psi(w) . phi(x) over random pairs, for each number of features.

    Inputs and weights have d numbers and a length uniform in [0, 1].  Features are drawn `draws` times, more
    often where they are few, since the products have heavy tails.  The truth is the function of w . x, or
    the arc-cosine kernel for "relu".
    """
    truths: dict[str, Callable[[Tensor], Tensor]] = {
        "sin": torch.sin,
        "cos": torch.cos,
        "exp": torch.exp,
        "gaussian": lambda z: torch.exp(-z * z / 2),
    }
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x, w = (F.normalize(torch.randn(pairs, d), dim=1) * torch.rand(pairs, 1) for _ in range(2))
        truth = arc_cosine(x, w) if kind == "relu" else truths[kind]((x * w).sum(-1))
        for m in sizes:
            squares = []
            for _ in range(draws * max(1, 512 // m)):
                features = Features(d, m, kind, bias=False)
                squares.append(((features.weights(w) * features(x)).sum(-1) - truth).square().mean())
            found[m] = float(torch.stack(squares).mean().sqrt())
    return found


def error_slope(kind: str, d: int, sizes: Sequence[int], pairs: int, draws: int, seed: int) -> float:
    """Return the slope of log error against log number of features; the arguments are `estimation_errors`'s."""
    errors = estimation_errors(kind, d, sizes, pairs, draws, seed)
    logs = torch.tensor(list(errors.items()), dtype=torch.float64).log()
    size, error = (logs - logs.mean(0)).unbind(1)
    return float(size @ error / (size @ size))


def ridge(features: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Return the weights (K, m) and offsets (K,) of least squares (N, m) -> (N, K) with `penalty` |W|^2."""
    phi, y = features.double(), targets.double()
    centre, mean = phi.mean(0), y.mean(0)
    phi, y = phi - centre, y - mean
    gram = phi.T @ phi + penalty * torch.eye(phi.shape[1], dtype=torch.float64)
    weight: Tensor = torch.linalg.solve(gram, phi.T @ y).T
    return weight, mean - weight @ centre


def irls(features: Tensor, labels: Tensor, num_classes: int, penalty: float, steps: int = 100) -> Tensor:
    """Return the weights (K, m) of the least cross-entropy (summed) plus `penalty` |W|^2 / 2.

    Every step solves a weighted least squares; for the weights stands their bound 1/2 (Boehning, 1992), so
    that the matrix is one for all steps and classes and the loss never rises.
    """
    phi = features.double()
    y = F.one_hot(labels, num_classes).double()
    gram = phi.T @ phi / 2 + penalty * torch.eye(phi.shape[1], dtype=torch.float64)
    root = torch.linalg.cholesky(gram)
    weight = phi.new_zeros(num_classes, phi.shape[1])
    for _ in range(steps):
        slope = (y - (phi @ weight.T).softmax(1)).T @ phi - penalty * weight
        weight = weight + torch.cholesky_solve(slope.T, root).T
    return weight
