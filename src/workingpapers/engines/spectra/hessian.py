"""Products of vectors with the Hessian of a loss over batches of data, in the model's own parameters.

    H v = d/dw (dL/dw . v),      L = mean over all examples of the batches

Two backward passes a product.  The parameters enter as views of the model's own storage, so nothing of the
model is copied (in its own dtype) or changed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from workingpapers.engines.spectra.operator import Operator
from workingpapers.errors import WorkingPapersError, unknown

Loss = Callable[[Any, Any], Tensor]
Batches = Iterable[tuple[Any, Any]]


def parameter_vector(model: nn.Module, names: Sequence[str] | None = None) -> Tensor:
    """Return the parameters that a `Hessian` acts on, as one vector in its order."""
    return torch.cat([p.detach().reshape(-1) for p in _chosen(model, names).values()])


def hessian(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    names: Sequence[str] | None = None,
    training: bool = False,
    dtype: torch.dtype | None = None,
) -> "Hessian":
    """Return the Hessian of the mean loss over `batches` as an operator on parameter vectors.

    Args:
        model: any module; its weights, buffers, gradients and modes stay as they are.
        loss: (outputs, targets) -> scalar, the mean over the examples of a batch.
        batches: pairs of inputs and targets, such as a list or a DataLoader, gone through at every product.
            Inputs are a tensor, a tuple of positional or a mapping of named arguments.  A batch counts by
            the number of its targets.
        names: parameters to differentiate by, as in `named_parameters`; all that require a gradient by default.
        training: run the model in training mode (batch normalisation by the batch; dropout is an error) instead
            of evaluation mode.
        dtype: evaluate the model in this dtype instead of its own (copies the weights once).
    """
    return Hessian(model, loss, batches, names, training, dtype)


class Hessian(Operator):
    """The operator that `hessian` makes; `names` and `shapes` say what its vectors hold."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Batches,
        names: Sequence[str] | None = None,
        training: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        chosen = _chosen(model, names)
        first = next(iter(chosen.values()))
        super().__init__(
            self._product, sum(p.numel() for p in chosen.values()), dtype or first.dtype, first.device
        )
        self.model, self.loss, self.training = model, loss, training
        self.batches = list(batches) if isinstance(batches, Iterator) else batches
        self.names, self.shapes = tuple(chosen), tuple(p.shape for p in chosen.values())
        self._parameters = chosen
        self._kept: tuple[tuple[int, ...], tuple[list[Tensor], list[Tensor]]] | None = None

    def gradient(self) -> Tensor:
        """Return the gradient of the mean loss (size,)."""
        total, weight = torch.zeros(self.size, dtype=self.dtype, device=self.device), 0
        for inputs, targets in self.batches:
            gradients, _ = self._gradients(inputs, targets)
            total += count(inputs, targets) * _flat(gradients).detach()
            weight += count(inputs, targets)
        return total / max(weight, 1)

    def split(self, v: Tensor) -> dict[str, Tensor]:
        """Return views of a vector (size,) in the shapes of the parameters, by name."""
        parts = v.split([shape.numel() for shape in self.shapes])
        return {n: part.view(s) for n, part, s in zip(self.names, parts, self.shapes, strict=True)}

    def _product(self, v: Tensor) -> Tensor:
        total, weight = torch.zeros_like(v), 0
        directions = tuple(self.split(v.contiguous()).values())
        single = isinstance(self.batches, Sequence) and len(self.batches) == 1
        for inputs, targets in self.batches:
            gradients, leaves = self._once(inputs, targets) if single else self._gradients(inputs, targets)
            moving = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
            share = count(inputs, targets)
            weight += share
            if moving:  # else the loss is linear in the parameters
                found = torch.autograd.grad(
                    [g for g, _ in moving],
                    leaves,
                    [d for _, d in moving],
                    retain_graph=single,
                    materialize_grads=True,
                )
                total.add_(_flat(found), alpha=share)
        if not weight:
            raise WorkingPapersError("a Hessian is over at least one batch of examples; got none")
        return total.div_(weight)

    def _once(self, inputs: Any, targets: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Keep the graph of the only batch from one product to the next, while the weights are the same."""
        version = tuple(p._version for p in self._parameters.values())
        if self._kept is None or self._kept[0] != version:
            self._kept = version, self._gradients(inputs, targets)
        return self._kept[1]

    def _gradients(self, inputs: Any, targets: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradient by each parameter, with its graph, and the leaves that stand for the parameters."""
        move = self._to
        leaves = {n: move(p.detach()).requires_grad_() for n, p in self._parameters.items()}
        rest = {n: move(p.detach()) for n, p in self.model.named_parameters() if n not in leaves}
        buffers = {n: move(b.detach().clone()) for n, b in self.model.named_buffers()}
        args, kwargs = arguments(inputs)
        args, kwargs = tuple(move(a) for a in args), {k: move(a) for k, a in kwargs.items()}
        with torch.enable_grad(), _differentiable(self.model, self.training):
            output = functional_call(self.model, {**leaves, **rest, **buffers}, args, kwargs)
            loss = self.loss(output, move(targets))
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise WorkingPapersError(
                    "the loss of a Hessian is one number for a batch of outputs and targets"
                )
            found = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=True, materialize_grads=True
            )
        return list(found), list(leaves.values())

    def _to(self, value: Any) -> Any:
        """Return floating tensors in the operator's dtype, on its device."""
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.dtype if value.is_floating_point() else None)


def _chosen(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    every = dict(model.named_parameters())
    for name in names or ():
        if name not in every:
            raise unknown("parameter", name, every)
    found = {n: p for n, p in every.items() if (p.requires_grad if names is None else n in names)}
    if not found:
        raise WorkingPapersError(f"{type(model).__name__} has no parameters that require a gradient")
    return found


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and named arguments of a model from the inputs of a batch."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def count(inputs: Any, targets: Any) -> int:
    """Return how many examples a batch has: by its targets, else by its first input."""
    args, kwargs = arguments(inputs)
    for value in (targets, *args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
    return 1


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


@contextmanager
def _differentiable(model: nn.Module, training: bool) -> Iterator[None]:
    """Set the mode for a stretch, and attention that can be differentiated twice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    modes = {module: module.training for module in model.modules()}
    if training and any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in modes):
        raise WorkingPapersError("a Hessian in training mode needs a model without dropout")
    try:
        model.train(training)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
