"""Other distances of networks by their weights alone, and what a distance is good for: memory and influence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.training._function_distance import METRICS, Summary, fsd

Tensors = Mapping[str, Tensor]
Penalty = Callable[[nn.Module], Tensor]
DENSE = 5000  # parameters up to which a curvature is formed and factorised


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's parameters by name, without gradients; they follow the model."""
    return {name: p.detach() for name, p in model.named_parameters()}


def flat(tensors: Tensors) -> Tensor:
    """Return tensors by name as one vector."""
    return torch.cat([t.flatten() for t in tensors.values()])


def unflat(vector: Tensor, like: Tensors) -> dict[str, Tensor]:
    """Return a vector as tensors of the names and shapes of `like`."""
    pieces = vector.split([t.numel() for t in like.values()])
    return {name: piece.reshape(t.shape) for (name, t), piece in zip(like.items(), pieces, strict=True)}


def squared_length(zero: nn.Module, one: nn.Module) -> Tensor:
    """Return half the squared distance of the parameters."""
    old = parameters_of(zero)
    total: Tensor = sum(((p - old[n]) ** 2).sum() for n, p in one.named_parameters()) / 2  # type: ignore[assignment]
    return total


@dataclass(frozen=True)
class Fisher:
    """The diagonal Gauss-Newton curvature of the function distance at a network, the memory of EWC."""

    old: dict[str, Tensor]
    curvature: dict[str, Tensor]

    def __call__(self, model: nn.Module) -> Tensor:
        """Return half the weighted squared distance of the parameters of `model`."""
        parts = [(self.curvature[n] * (p - self.old[n]) ** 2).sum() for n, p in model.named_parameters()]
        return torch.stack(parts).sum() / 2


def diagonal_fisher(model: nn.Module, x: Tensor, metric: str = "squared", chunk: int = 20) -> Fisher:
    """Return the diagonal of E[J^T metric J] of a network's outputs over `x` (N, ...), all outputs exactly."""
    old = {name: p.clone() for name, p in parameters_of(model).items()}  # the model may train on
    buffers = {name: b.detach() for name, b in model.named_buffers()}
    total = {name: torch.zeros_like(p) for name, p in old.items()}

    def outputs(parameters: Tensors, one: Tensor) -> Tensor:
        found: Tensor = functional_call(model, ({**parameters}, buffers), (one[None],))[0]
        return found

    def squares(one: Tensor) -> dict[str, Tensor]:
        y, back, *_ = vjp(lambda p: outputs(p, one), old)
        roots = torch.diag(y.softmax(0).sqrt()) if metric == "softmax" else torch.eye(len(y)).to(y)
        if metric == "softmax":  # rows of a root of diag(p) - p p^T
            roots = roots - y.softmax(0).sqrt()[:, None] * y.softmax(0)
        (rows,) = vmap(back)(roots)
        return {name: (row**2).sum(0) for name, row in rows.items()}

    mode = model.training
    model.eval()
    try:
        for piece in x.split(chunk):
            for name, value in vmap(squares)(piece).items():
                total[name] += value.sum(0)
    finally:
        model.train(mode)
    return Fisher(old, {name: value / len(x) for name, value in total.items()})


def penalised(
    loss: Callable[[Tensor, Tensor], Tensor], model: nn.Module, penalties: list[Penalty], weight: float
) -> Any:
    """Return a loss (outputs, targets) that adds `weight` times the penalties of the model as it is then.

    A penalty is a function of the model: a `Fisher`, or `lambda m: fsd(summary, m)` for an old task.
    """

    def total(outputs: Tensor, targets: Tensor) -> Tensor:
        found = loss(outputs, targets)
        if not model.training:
            return found
        for penalty in penalties:
            found = found + weight * penalty(model)
        return found

    return total


def curvature_product(summary: Summary, vectors: Tensor) -> Tensor:
    """Return the Hessian of the estimated distance, at the old weights, times each of `vectors` (k, parameters)."""
    names = [name for name, t in summary.tensors.items() if t.is_floating_point() and not _buffer(name)]
    old = {name: summary.tensors[name] for name in names}

    def slope(parameters: Tensors) -> dict[str, Tensor]:
        found: dict[str, Tensor] = grad(lambda p: fsd(summary, {**summary.tensors, **p}))(parameters)
        return found

    def product(vector: Tensor) -> Tensor:
        found: Tensor = flat(jvp(slope, (old,), (unflat(vector, old),))[1])
        return found

    return torch.cat([vmap(product)(part) for part in vectors.split(200)])


def _buffer(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def influence(summary: Summary, gradients: Tensor, damping: float = 1e-3, rounds: int = 100) -> Tensor:
    """Solve the proximal response: how the weights move for each gradient (k, parameters) of an example's loss.

    The minimum over a step s of <gradient, s> + estimated distance + damping / 2 |s|^2 is
    -(H + damping)^-1 gradient; it is returned without the minus.  Up to 5,000 parameters H is factorised, beyond,
    conjugate gradients take `rounds` steps at most.
    """
    if not damping > 0:
        raise WorkingPapersError(f"the damping is above 0; got {damping}")
    count = gradients.shape[1]
    if count <= DENSE:
        matrix = curvature_product(summary, torch.eye(count).to(gradients))
        matrix = (matrix + matrix.T) / 2 + damping * torch.eye(count).to(gradients)
        solved: Tensor = torch.linalg.solve(matrix, gradients.T).T
        return solved
    return conjugate_gradients(lambda v: curvature_product(summary, v) + damping * v, gradients, rounds)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, rounds: int, tolerance: float = 1e-5
) -> Tensor:
    """Solve product(x) = right for rows (k, n), product a positive definite linear map of rows."""
    x, residual = torch.zeros_like(right), right.clone()
    way, size = residual, (residual**2).sum(1, keepdim=True)
    first = size.clamp(min=1e-30)
    for _ in range(rounds):
        if bool((size <= tolerance**2 * first).all()):
            break
        image = product(way)
        step = size / (way * image).sum(1, keepdim=True).clamp(min=1e-30)
        x, residual = x + step * way, residual - step * image
        new = (residual**2).sum(1, keepdim=True)
        way, size = residual + new / size.clamp(min=1e-30) * way, new
    return x


def example_gradients(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return the gradient of each example's loss in all parameters, (N, parameters)."""
    parameters, buffers = parameters_of(model), {n: b.detach() for n, b in model.named_buffers()}

    def one(p: Tensors, a: Tensor, b: Tensor) -> Tensor:
        return loss(functional_call(model, ({**p}, buffers), (a[None],)), b[None])

    mode = model.training
    model.eval()
    try:
        found = vmap(grad(one), (None, 0, 0))(parameters, x, y)
    finally:
        model.train(mode)
    return torch.cat([g.flatten(1) for g in found.values()], 1)


def self_influence(gradients: Tensor, responses: Tensor) -> Tensor:
    """Return how much each example's own response would change its loss, (k,): a score of mislabelling."""
    return (gradients * responses).sum(1)


def exact_curvature(model: nn.Module, x: Tensor, metric: str = "squared", chunk: int = 100) -> Tensor:
    """Return E[J^T metric J] over `x` (N, ...) itself, (parameters, parameters): small networks only."""
    if metric not in METRICS:
        raise WorkingPapersError(f"the metric is one of {METRICS}; got {metric!r}")
    parameters, buffers = parameters_of(model), {n: b.detach() for n, b in model.named_buffers()}

    def rows(one: Tensor) -> Tensor:
        y, back, *_ = vjp(lambda p: functional_call(model, ({**p}, buffers), (one[None],))[0], parameters)
        (found,) = vmap(back)(torch.eye(len(y)).to(y))
        jacobian = torch.cat([v.flatten(1) for v in found.values()], 1)
        if metric == "squared":
            return jacobian
        p = y.softmax(0)
        root: Tensor = p.sqrt()[:, None] * (jacobian - p @ jacobian)
        return root

    count = sum(p.numel() for p in parameters.values())
    total = torch.zeros(count, count).to(x)
    for piece in x.split(chunk):
        j = vmap(rows)(piece).flatten(0, 1)
        total += j.T @ j
    return total / len(x)
