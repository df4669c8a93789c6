"""The unconstrained feature model: features and linear layers trained freely, and its minimisers in closed form.

f = W_M ... W_1 H,   loss + sum_m lambda_m / 2 |W_m|^2 + lambda_H / 2 |H|^2 (+ lambda_b / 2 |b|^2)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown

Decay = float | Sequence[float]


def decays(decay: Decay, depth: int) -> list[float]:
    """Return the penalties of the `depth` layers, one number standing for all."""
    found = [float(decay)] * depth if isinstance(decay, int | float) else [float(d) for d in decay]
    if len(found) != depth or min(found) <= 0:
        raise WorkingPapersError(
            f"{depth} layers need one positive penalty each or one for all; got {decay!r}"
        )
    return found


@dataclass(frozen=True)
class FreeFeatures:
    """A trained model: `weights` W_1 to W_M, `features` (N, dim) as rows, `bias`, labels, loss, largest slope."""

    weights: list[Tensor]
    features: Tensor
    bias: Tensor | None
    labels: Tensor
    loss: float
    slope: float

    @property
    def classifier(self) -> Tensor:
        """The product W_M ... W_1 (K, dim)."""
        return reduce(lambda product, w: w @ product, self.weights)

    @property
    def outputs(self) -> Tensor:
        """The outputs (N, K)."""
        out = self.features @ self.classifier.T
        return out if self.bias is None else out + self.bias

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Return for each linear layer the features (N, units) that it reads and the product of it and the rest."""
        found = []
        x = self.features
        for m, w in enumerate(self.weights):
            found.append((x, reduce(lambda product, v: v @ product, self.weights[m:])))
            x = x @ w.T
        return found


def free_features(
    sizes: Sequence[int],
    dim: int = 16,
    depth: int = 1,
    loss: str = "mse",
    bias: bool = False,
    decay: Decay = 5e-3,
    feature_decay: float = 5e-3,
    seed: int = 0,
    tolerance: float = 1e-8,
) -> FreeFeatures:
    """Train features and `depth` linear layers in float64 until the largest slope is at most `tolerance`.

    Args:
        sizes: examples per class.
        dim: width of the features and between the layers.
        loss: "mse", |f - Y|^2 / (2 N) with one-hot Y, or "ce", the mean cross-entropy.
        bias: a bias behind the last layer, without penalty.
        decay: penalty lambda of the layers, one number or one each, W_1 first.
        feature_decay: penalty of the features.
        seed: decides the start, Gaussian of variance 1 / dim.

    Quasi-Newton steps (L-BFGS) end in the stationary points of gradient descent; at most 20,000 of them.
    """
    if loss not in ("mse", "ce"):
        raise unknown("loss", loss, ("mse", "ce"))
    penalties, classes = decays(decay, depth), len(sizes)
    labels = torch.repeat_interleave(torch.arange(classes), torch.tensor(list(sizes)))
    shapes = [(dim, dim)] * (depth - 1) + [(classes, dim), (len(labels), dim)] + [(1, classes)] * bias
    target = F.one_hot(labels, classes).double()

    def parts(flat: NDArray[Any]) -> list[Tensor]:
        pieces = torch.from_numpy(flat.copy()).split([a * b for a, b in shapes])
        return [p.reshape(s).requires_grad_() for p, s in zip(pieces, shapes, strict=True)]

    def value(flat: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        tensors = parts(flat)
        weights, h = tensors[:depth], tensors[depth]
        out = reduce(lambda x, w: x @ w.T, weights, h) + (tensors[-1] if bias else 0)
        fit = (out - target).square().sum() / (2 * len(h)) if loss == "mse" else F.cross_entropy(out, labels)
        penalty = sum(p * w.square().sum() for p, w in zip(penalties, weights, strict=True))
        total = fit + penalty / 2 + feature_decay / 2 * h.square().sum()
        slopes = torch.autograd.grad(total, tensors)
        return float(total.detach()), torch.cat([s.flatten() for s in slopes]).numpy()

    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(s, generator=generator, dtype=torch.float64) / dim**0.5 for s in shapes]
    # steps stop where the value no longer falls in float64; a fresh start of the memory goes on from there
    options = {"maxiter": 5000, "maxfun": 10000, "ftol": 0.0, "gtol": tolerance, "maxcor": 30}
    flat = torch.cat([t.flatten() for t in start]).numpy()
    for _ in range(4):
        flat = minimize(value, flat, jac=True, method="L-BFGS-B", options=options).x
        total, slope = value(flat)
        if np.abs(slope).max() <= tolerance:
            break
    tensors = [t.detach() for t in parts(flat)]
    last = tensors[-1][0] if bias else None
    return FreeFeatures(tensors[:depth], tensors[depth], last, labels, total, float(np.abs(slope).max()))


def balance_gap(model: FreeFeatures, decay: Decay, feature_decay: float) -> float:
    """Return the largest |lambda' W'^T W' - lambda W W^T| of neighbours, with H the first; 0 where stationary."""
    penalties = [feature_decay, *decays(decay, len(model.weights))]
    chain = [model.features.T, *model.weights]
    gaps = [
        (q * b.T @ b - p * a @ a.T).abs().max()
        for (a, b), (p, q) in zip(pairwise(chain), pairwise(penalties), strict=True)
    ]
    return float(torch.stack(gaps).max())


@dataclass(frozen=True)
class Geometry:
    """The minimiser's class vectors, which are orthogonal: outputs `p` (K,) of their own class, and lengths (K,).

    `features` are the lengths of the class means, `classifier` those of the rows of W_M ... W_1.
    """

    p: Tensor
    features: Tensor
    classifier: Tensor


def predicted_geometry(
    sizes: Sequence[int], depth: int = 1, decay: Decay = 5e-3, feature_decay: float = 5e-3
) -> Geometry:
    """Return the global minimiser for squared error without a bias, any class sizes, widths of at least K.

    Each class has a singular value s of W_M ... W_1 H of its own, p = s / sqrt(n).  With the layers balanced it
    costs n (1 - p)^2 / (2 N) + (M + 1) / 2 (s^2 lambda_1 ... lambda_M lambda_H)^(1 / (M + 1)).  In u, the (M + 1)th
    root of s, its slope is a polynomial, whose roots are compared with u = 0.  For one layer

        p = max(0, 1 - N sqrt(lambda_W lambda_H / n)),  |h|^2 = p sqrt(lambda_W / (n lambda_H)),
        |w|^2 = p sqrt(n lambda_H / lambda_W),

    so classes of at most N^2 lambda_W lambda_H examples vanish.
    """
    total, penalties = sum(sizes), decays(decay, depth)
    power = depth + 1
    kappa = float(np.prod([*penalties, feature_decay])) ** (1 / power)
    rows = []
    for n in sizes:

        def cost(u: float, n: int = n) -> float:
            return float(n * (1 - u**power / n**0.5) ** 2 / (2 * total) + power * kappa * u**2 / 2)

        slope = np.zeros(2 * depth + 1)  # -u^2M / N + sqrt(n) u^(M-1) / N - kappa, highest power first
        slope[0] -= 1 / total
        slope[depth + 1] += n**0.5 / total
        slope[-1] -= kappa
        roots = [float(r.real) for r in np.roots(slope) if abs(r.imag) < 1e-9 * abs(r) and r.real > 0]
        u = min([0.0, *roots], key=cost)
        shared = kappa * u**2  # lambda_m w_m^2, the same for all layers and the features
        lengths = np.sqrt(shared / np.array(penalties)).prod()
        rows.append((u**power / n**0.5, np.sqrt(shared / feature_decay / n), lengths))
    return Geometry(*(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)))
