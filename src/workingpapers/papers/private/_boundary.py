"""How far points lie from a classifier's boundary, how steep and how curved it is there: means over a
group."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.spectra.stability import sharpness
from workingpapers.papers.private._learning import frozen


@dataclass(frozen=True)
class Geometry:
    """Means over a group of points.

    Attributes:
        margin: logit of the label less the largest other one.
        distance: L2 length of DeepFool's step to another class; 0 where the label is missed already.
        gradient: norm of the gradient of the group's mean loss by the weights.
        curvature: largest eigenvalue of that loss's Hessian.
        slope: Frobenius norm of the derivative of the logits by the input, the local linear map.
    """

    margin: float
    distance: float
    gradient: float
    curvature: float
    slope: float


def jacobian(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) and their derivatives by the inputs (N, K, features), in the model's mode."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = model(x)
        rows = [torch.autograd.grad(out[:, k].sum(), x, retain_graph=True)[0] for k in range(out.shape[1])]
    return out.detach(), torch.stack([row.flatten(1) for row in rows], 1)


def deepfool(model: nn.Module, x: Tensor, y: Tensor, steps: int = 20, overshoot: float = 0.02) -> Tensor:
    """Return the length (N,) of DeepFool's perturbation of each input: to the nearest boundary of the
    linearised model.

    For an affine classifier it is the distance to the boundary.  Points that the model misses have 0.

    Source: Moosavi-Dezfooli et al., "DeepFool" (2016), Algorithm 2.
    """
    model = frozen(model)
    moved = torch.zeros_like(x).flatten(1)
    open_ = model(x).argmax(1) == y
    for _ in range(steps):
        if not open_.any():
            break
        at = (x.flatten(1) + (1 + overshoot) * moved)[open_].reshape(-1, *x.shape[1:])
        out, slopes = jacobian(model, at)
        label = y[open_]
        rows = torch.arange(len(label))
        lead = out - out[rows, label][:, None]
        rise = slopes - slopes[rows, label][:, None]
        length = rise.norm(dim=2).clamp_min(1e-12)
        reach = (lead.abs() / length).scatter(1, label[:, None], float("inf"))
        nearest = reach.argmin(1)
        step = (reach[rows, nearest] / length[rows, nearest])[:, None] * rise[rows, nearest]
        moved[open_] = moved[open_] + step
        with torch.no_grad():
            now = model((x.flatten(1) + (1 + overshoot) * moved).reshape(x.shape)).argmax(1)
        open_ = open_ & (now == y)
    lengths: Tensor = moved.norm(dim=1)
    return lengths


def geometry(model: nn.Module, x: Tensor, y: Tensor, eigenvalue: bool = True) -> Geometry:
    """Return the geometry of a classifier at inputs x with labels y, all of one group, in evaluation mode."""
    still = frozen(model)
    out, slopes = jacobian(still, x)
    own = out.gather(1, y[:, None])[:, 0]
    others = out.scatter(1, y[:, None], float("-inf")).amax(1)
    learning = still.requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(learning(x), y)
        parts = torch.autograd.grad(
            loss, [p for p in learning.parameters() if p.requires_grad], allow_unused=True
        )
    norm = sum(float(p.square().sum()) for p in parts if p is not None) ** 0.5
    top = sharpness(learning, F.cross_entropy, [(x, y)], tolerance=1e-2, most=30) if eigenvalue else 0.0
    return Geometry(
        float((own - others).mean()),
        float(deepfool(model, x, y).mean()),
        norm,
        top,
        float(slopes.flatten(1).norm(dim=1).mean()),
    )
