"""Pictures of what speaks for a class: gradients through soft, guided or plain gates, and the gates themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.interpret._replay import evaluating
from workingpapers.papers.interpret._soft_gates import Gates, checked, guided_relu, soft_gates


def _gradient(
    model: nn.Module, x: Tensor, target: Tensor, against: Tensor | None, mode: Gates | None
) -> Tensor:
    x = x.detach().clone().requires_grad_()
    with evaluating(model), torch.enable_grad():
        if mode is None:
            scores = model(x)
        else:
            with mode:
                scores = model(x)
        if scores.ndim != 2:
            raise WorkingPapersError(f"explanations are of scores (N, classes); got {tuple(scores.shape)}")
        chosen = scores.gather(1, target[:, None]).sum()
        if against is not None:
            chosen = chosen - scores.gather(1, against[:, None]).sum()
        (found,) = torch.autograd.grad(chosen, x)
    return found


def pullback(
    model: nn.Module, x: Tensor, target: Tensor, temperature: float = 1.0, against: Tensor | None = None
) -> Tensor:
    """Return the excitation pullback: the soft-gated gradient of the scores of `target` (N,) at `x` (N, ...).

    `against` (N,) takes the scores of other classes off.
    """
    return _gradient(model, x, target, against, soft_gates(checked(temperature)))


def smooth_gradient(
    model: nn.Module, x: Tensor, target: Tensor, samples: int = 16, noise: float = 0.15, seed: int = 0
) -> Tensor:
    """Return SmoothGrad: the mean gradient at noisy inputs, `noise` times each input's range."""
    generator = torch.Generator().manual_seed(seed)
    flat = x.flatten(1)
    size = noise * (flat.amax(1) - flat.amin(1)).reshape(-1, *[1] * (x.ndim - 1))
    total = torch.zeros_like(x)
    for _ in range(samples):
        drawn = torch.randn(x.shape, generator=generator).to(x)
        total += _gradient(model, x + size * drawn, target, None, None)
    return total / samples


METHODS: dict[str, Callable[..., Tensor]] = {
    "pullback": pullback,
    "gradient": lambda model, x, target: _gradient(model, x, target, None, None),
    "smooth_gradient": smooth_gradient,
    "guided": lambda model, x, target: _gradient(model, x, target, None, Gates(guided_relu)),
    "gradient_x_input": lambda model, x, target: x * _gradient(model, x, target, None, None),
}


def explain(model: nn.Module, x: Tensor, target: Tensor, method: str = "pullback", **options: Any) -> Tensor:
    """Return a picture (N, ...) of what speaks for the class `target` (N,), by a method of `METHODS`."""
    if method not in METHODS:
        raise unknown("way to explain", method, METHODS)
    return METHODS[method](model, x, target, **options)


def ascent(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    steps: int = 5,
    length: float = 20.0,
    method: str = "pullback",
    bounds: tuple[float, float] | None = None,
    **options: Any,
) -> Tensor:
    """Return `x` (N, ...) after some steps of an L2 `length` up the explanation; less `x` it explains the target.

    `bounds` are the least and the largest pixel.  The authors take steps of 20 for pixels of 224x224 in [-1, 1].
    """
    found = x.detach().clone()
    for _ in range(steps):
        step = explain(model, found, target, method, **options)
        norm = step.flatten(1).norm(dim=1).clamp(min=1e-20).reshape(-1, *[1] * (x.ndim - 1))
        found = found + length * step / norm
        found = found if bounds is None else found.clamp(*bounds)
    return found


@dataclass(frozen=True)
class LayerGates:
    """The gates of one ReLU for N inputs, (N, units): `hard` 1[z > 0] and `soft` sigmoid(z / T)."""

    hard: Tensor
    soft: Tensor

    @property
    def alignment(self) -> Tensor:
        """The cosine of soft and hard gates, (N,)."""
        return F.cosine_similarity(self.hard, self.soft)


@torch.no_grad()
def gate_vectors(model: nn.Module, x: Tensor, temperature: float = 1.0) -> list[LayerGates]:
    """Return the gates of every ReLU of `model` for the inputs `x` (N, ...), in the order in which they run."""
    found: list[LayerGates] = []

    def note(z: Tensor) -> Tensor:
        flat = z.flatten(1)
        found.append(LayerGates((flat > 0).to(z), torch.sigmoid(flat / checked(temperature))))
        return torch.relu(z)

    with evaluating(model), Gates(note):
        model(x)
    return found


def path_kernel(model: nn.Module, x: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
    """Return how much inputs share their paths, (N, M): over the layers, the product of mean products of gates."""
    found = torch.ones(len(x), len(y)).to(x)
    for a, b in zip(gate_vectors(model, x, temperature), gate_vectors(model, y, temperature), strict=True):
        found = found * (a.soft @ b.soft.T) / a.soft.shape[1]
    return found


def implied_scores(model: nn.Module, x: Tensor, classes: int, temperature: float = 1.0) -> Tensor:
    """Return the scores (N, classes) of the linear model that soft gates imply, <pullback of the class, x>."""
    columns = []
    for label in range(classes):
        target = torch.full((len(x),), label, device=x.device)
        columns.append((pullback(model, x, target, temperature) * x).flatten(1).sum(1))
    return torch.stack(columns, 1)
