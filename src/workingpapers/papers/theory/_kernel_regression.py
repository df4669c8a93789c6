"""Training by gradient flow in function space: what a fixed kernel makes of data, mode by mode."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError


class NTKRegression:
    """Gradient flow on 1/2 sum (f - y)^2 with the kernel Theta of training inputs (n, n), one output or several.

        f_t(x) = f_0(x) + Theta(x, X) Theta^-1 (I - exp(-lr t Theta)) (y - f_0(X))

    Args:
        kernel: Theta between the training inputs, symmetric and positive.
        y: targets (n,) or (n, outputs).
        start: outputs f_0(X) of y's shape; zero by default.
        ridge: added to the kernel's diagonal, which pulls f to f_0 by weight decay.

    Raises:
        WorkingPapersError: for shapes that do not fit.
    """

    def __init__(self, kernel: Tensor, y: Tensor, start: Tensor | None = None, ridge: float = 0.0) -> None:
        n = len(y)
        if kernel.shape != (n, n) or (start is not None and start.shape != y.shape):
            raise WorkingPapersError(
                f"regression on {n} targets needs a kernel ({n}, {n}) and a start like y; got "
                f"{tuple(kernel.shape)} and {None if start is None else tuple(start.shape)}"
            )
        own = kernel.double()
        self.values, self.vectors = torch.linalg.eigh((own + own.T) / 2)
        self.values, self.vectors = self.values.flip(0), self.vectors.flip(1)  # the largest first
        self.ridge = ridge
        self.residual = (y.double() - (0 if start is None else start.double())).reshape(n, -1)
        self.shape = y.shape[1:]

    def modes(self, times: Sequence[float] | Tensor, lr: float = 1.0) -> Tensor:
        """Return the residual y - f_t along each eigenvector, largest eigenvalue first, (times, n, outputs)."""
        t = torch.as_tensor(times, dtype=torch.float64)
        left = (-lr * t[:, None] * (self.values + self.ridge)).exp()
        shrunk = (self.ridge + self.values * left) / (self.values + self.ridge) if self.ridge else left
        found: Tensor = shrunk[..., None] * (self.vectors.T @ self.residual)
        return found

    def predict(
        self, cross: Tensor, time: float = float("inf"), lr: float = 1.0, start: Tensor | None = None
    ) -> Tensor:
        """Return f_t at inputs with the kernel `cross` (m, n) to the training inputs and outputs `start` at first.

        Directions in which the kernel is zero to rounding (1e-12 of its largest eigenvalue) are not learned.
        """
        values = self.values + self.ridge
        done = torch.ones_like(values) if time == float("inf") else -torch.expm1(-lr * time * values)
        live = values > 1e-12 * values[0]
        weight = torch.where(live, done / torch.where(live, values, 1), torch.zeros_like(values))
        change: Tensor = cross.double() @ (
            self.vectors @ (weight[:, None] * (self.vectors.T @ self.residual))
        )
        change = change.reshape(-1, *self.shape)
        return change if start is None else start.double() + change

    def posterior(self, cross: Tensor, prior: Tensor, noise: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return mean (m, ...) and variance (m,) of the Gaussian process with this kernel.

        `prior` (m,) is the kernel of each input with itself, `noise` the variance of the targets' noise.
        """
        values = self.values + noise
        live = values > 1e-12 * values[0]
        inverse = torch.where(live, 1 / torch.where(live, values, 1), torch.zeros_like(values))
        along = cross.double() @ self.vectors
        mean = (along * inverse) @ (self.vectors.T @ self.residual)
        return mean.reshape(-1, *self.shape), prior.double() - (along.square() * inverse).sum(1)

    def early_stopping(
        self,
        cross: Tensor,
        targets: Tensor,
        times: Sequence[float],
        lr: float = 1.0,
        start: Tensor | None = None,
    ) -> tuple[float, list[float]]:
        """Return the time of the smallest mean squared error on new `targets`, and the error at each time."""
        errors = [
            float((self.predict(cross, t, lr, start) - targets.double()).square().mean()) for t in times
        ]
        return float(times[errors.index(min(errors))]), errors


def fitted_rate(sizes: Tensor, floor: float = 0.2) -> float:
    """Return the rate at which `sizes` (steps,) decay, by least squares on logarithms down to `floor` of them."""
    low = (sizes < floor * sizes[0]).nonzero()
    count = max(int(low[0]) if len(low) else len(sizes), 2)
    t = torch.arange(count, dtype=torch.float64)
    y = sizes[:count].double().clamp(min=1e-300).log()
    return float(-((t - t.mean()) * (y - y.mean())).sum() / (t - t.mean()).square().sum())
