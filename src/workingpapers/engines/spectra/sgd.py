"""Stability of SGD at a minimum where every example is fitted, exactly in second moments.

Around such a minimum of L = 1/(2n) sum_i |f(x_i) - y_i|^2 a step on the batch b is w - w* -> (I - lr H_b)(w - w*)
with H_b the mean over b of A_i = J_i' J_i.  The second moment M = E (w - w*)(w - w*)' goes on by

    M -> M - lr (H M + M H) + lr^2 (c_1 H M H + c_2 mean_i A_i M A_i),

a self-adjoint map that keeps cones, so it is stable where its largest eigenvalue is at most 1.  Nothing moves along
directions that no example sees, so all is computed in the span of the Jacobians' rows.

Source: "The Implicit Regularization of Dynamical Stability in SGD" (2023), Section 2; the map itself is elementary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from workingpapers.engines.spectra.extremes import extremes
from workingpapers.engines.spectra.operator import Operator
from workingpapers.errors import WorkingPapersError

EXACT = 24  # dimensions of the span up to which the map is written out as a matrix


def jacobians(model: nn.Module, x: Tensor, chunk: int = 16) -> Tensor:
    """Return the Jacobian of each output by all parameters that require a gradient, (n, outputs, P) float64.

    The model is evaluated in float64 and evaluation mode on a copy of its weights; it stays as it is.
    """
    named = dict(model.named_parameters())
    moving = {n: p.detach().double() for n, p in named.items() if p.requires_grad}
    rest = {n: t.detach() for n, t in [*named.items(), *model.named_buffers()] if n not in moving}
    rest = {n: t.double() if t.is_floating_point() else t for n, t in rest.items()}
    if not moving:
        raise WorkingPapersError(f"{type(model).__name__} has no parameters that require a gradient")

    def output(values: dict[str, Tensor], one: Tensor) -> Tensor:
        found: Tensor = functional_call(model, {**values, **rest}, (one[None],))
        return found.reshape(-1)

    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with sdpa_kernel(SDPBackend.MATH):
            parts = vmap(jacrev(output), in_dims=(None, 0), chunk_size=chunk)(moving, x.double())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat([part.detach().flatten(2) for part in parts.values()], 2)


@dataclass(frozen=True)
class Rates:
    """Largest learning rates at which SGD is stable at a minimum.

    Attributes:
        exact: where the second moment stops shrinking.
        sufficient: 2 / max_i |A_i|; below it every single step shrinks.
        moment: 2 tr H / E tr H_b^2; no rate above it is stable.
        trace: 2 / tr H; with batches of one, no rate above it is stable.
        gradient_descent: 2 / lambda_max(H), the limit for full batches.
    """

    exact: float
    sufficient: float
    moment: float
    trace: float
    gradient_descent: float


class SecondMoments:
    """The map of second moments of SGD with batches of `batch` out of the examples of `jacobians` (n, outputs, P).

    Batches are drawn without replacement, as an epoch does, unless `replace` is set.
    """

    def __init__(self, jacobians: Tensor, batch: int = 1, replace: bool = False) -> None:
        n, outputs = jacobians.shape[:2]
        if not 1 <= batch <= n:
            raise WorkingPapersError(f"a batch has between 1 and all {n} examples; got {batch}")
        rows = jacobians.double().cpu().reshape(n * outputs, -1)
        left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
        if not sizes.any():
            raise WorkingPapersError("all gradients are zero here, so every learning rate is stable")
        kept = sizes > 1e-9 * sizes[0]
        self.rows = (left[:, kept] * sizes[kept]).view(n, outputs, -1)  # in the basis of H's eigenvectors
        self.values = sizes[kept].square() / n  # eigenvalues of H
        whole = (batch - 1) / batch if replace or n == 1 else (batch - 1) / batch * n / (n - 1)
        self.whole, self.single = (
            whole,
            1 - whole if replace else 1 / batch * (1 - (batch - 1) / max(n - 1, 1)),
        )

    @property
    def size(self) -> int:
        """The dimension of the span."""
        return len(self.values)

    def squared(self, m: Tensor) -> Tensor:
        """Return E H_b M H_b for a symmetric M (size, size)."""
        rows, n = self.rows, len(self.rows)
        inner = rows @ m @ rows.transpose(1, 2)
        each = torch.einsum("ioa,iop,ipb->ab", rows, inner, rows) / n
        total: Tensor = self.whole * self.values[:, None] * m * self.values + self.single * each
        return total

    def step(self, m: Tensor, lr: float) -> Tensor:
        """Return the second moment after a step from `m` (size, size)."""
        return m - lr * self._sums * m + lr * lr * self.squared(m)

    def radius(self, lr: float) -> float:
        """Return the factor by which second moments grow a step in the end; stable up to 1."""
        return self._top(lambda m: self.step(m, lr))

    def critical(self) -> float:
        """Return the learning rate at which the radius is 1."""
        root = self._sums.sqrt()
        return 1 / self._top(lambda m: self.squared(m / root) / root)

    def rates(self) -> Rates:
        """Return the exact limit of the learning rate and the simple bounds on it."""
        total = float(self.values.sum())
        gram = self.rows @ self.rows.transpose(1, 2)
        fourth = float(gram.square().sum((1, 2)).mean())
        moment = self.whole * float(self.values.square().sum()) + self.single * fourth
        largest = float(torch.linalg.eigvalsh(gram).amax())
        return Rates(
            self.critical(), 2 / largest, 2 * total / moment, 2 / total, 2 / float(self.values.amax())
        )

    @property
    def _sums(self) -> Tensor:
        sums: Tensor = self.values[:, None] + self.values
        return sums

    def _top(self, apply: Callable[[Tensor], Tensor]) -> float:
        """Return the largest eigenvalue of a map of matrices, among the symmetric ones."""
        r = self.size

        def flat(v: Tensor) -> Tensor:
            m = v.view(r, r)
            found = apply((m + m.T) / 2)
            return ((found + found.T) / 2).reshape(-1)

        operator = Operator(flat, r * r)
        if r <= EXACT:
            return float(torch.linalg.eigvalsh(operator.dense())[-1])
        return float(extremes(operator, 1, tolerance=1e-6, most=2000).top[0])
