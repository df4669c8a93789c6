"""Sharpness of a model's loss, and the sharpness at which gradient descent stops being stable."""

from torch import nn

from workingpapers.engines.spectra.extremes import extremes
from workingpapers.engines.spectra.hessian import Batches, Loss, hessian
from workingpapers.errors import WorkingPapersError


def sharpness(
    model: nn.Module, loss: Loss, batches: Batches, *, tolerance: float = 1e-3, most: int = 100, seed: int = 0
) -> float:
    """Return the largest eigenvalue of the Hessian of the mean loss over `batches`; arguments as of `hessian`."""
    found = extremes(hessian(model, loss, batches), 1, tolerance=tolerance, most=most, seed=seed)
    return float(found.top[0])


def smallest(
    model: nn.Module, loss: Loss, batches: Batches, *, tolerance: float = 1e-3, most: int = 200, seed: int = 0
) -> float:
    """Return the smallest eigenvalue of the Hessian, negative where the loss curves down somewhere."""
    found = extremes(hessian(model, loss, batches), 0, 1, tolerance=tolerance, most=most, seed=seed)
    return float(found.bottom[0])


def stability_limit(lr: float, momentum: float = 0.0, *, nesterov: bool = False) -> float:
    """Return the largest eigenvalue at which full-batch gradient descent with these settings is stable.

        2 / lr plain,   2 (1 + m) / lr heavy ball,   2 (1 + m) / ((1 + 2 m) lr) Nesterov

    On a quadratic with a larger eigenvalue the iterates grow without end.  Source: "Gradient Descent on Neural
    Networks Typically Occurs at the Edge of Stability" (2021), Section 2 and Appendix B.
    """
    if lr <= 0 or not 0 <= momentum < 1:
        raise WorkingPapersError(
            f"a stability limit needs lr > 0 and 0 <= momentum < 1; got lr={lr} and momentum={momentum}"
        )
    limit = 2 * (1 + momentum) / lr
    return limit / (1 + 2 * momentum) if nesterov else limit
