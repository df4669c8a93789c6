"""What there is to see of arguments, so that a check can tell whether anything about them changed."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Snapshot = Mapping[str, Any]


def snapshot(arguments: Any, identity: bool = True) -> Snapshot:
    """Return all that can be seen of nested arguments: modules, tensors, arrays and plain values.

    With `identity` it matters also which objects the modules and parameters are, not only how they look.
    """
    seen: dict[str, Any] = {}
    for number, leaf in enumerate(pytree.tree_leaves(arguments)):
        place = f"argument {number}"
        if isinstance(leaf, nn.Module):
            seen.update(_module(leaf, place, identity))
        elif isinstance(leaf, Tensor):
            seen.update(_tensor(leaf, place))
        elif isinstance(leaf, numpy.ndarray):
            seen[place] = leaf.copy()
        elif isinstance(leaf, bool | int | float | str | None):
            seen[place] = leaf
    return seen


def changes(before: Snapshot, after: Snapshot) -> list[str]:
    """Return what differs between two snapshots, in the words of their entries."""
    return [what for what in {**before, **after} if not _same(before.get(what), after.get(what))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same_type = one.dtype == other.dtype and one.shape == other.shape
        return same_type and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    if isinstance(one, numpy.ndarray) and isinstance(other, numpy.ndarray):
        return numpy.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    return type(one) is type(other) and bool(one == other)


def _tensor(tensor: Tensor, place: str) -> Iterator[tuple[str, Any]]:
    yield f"the value of {place}", tensor.detach().clone()
    yield f"requires_grad of {place}", tensor.requires_grad
    grad = tensor.grad if tensor.is_leaf else None
    yield f"the gradient of {place}", None if grad is None else grad.clone()


def _module(module: nn.Module, place: str, identity: bool) -> Iterator[tuple[str, Any]]:
    for name, part in module.named_modules():
        where = f"{place}.{name}" if name else place
        yield f"the class of {where}", type(part)
        yield f"the mode (training or evaluation) of {where}", part.training
        yield f"the hooks of {where}", [len(v) for k, v in vars(part).items() if k.endswith("_hooks")]
        plain = {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float | str | None)}
        yield f"the attributes of {where}", {k: v for k, v in plain.items() if k != "training"}
        own = {k: v for k, v in vars(part).items() if callable(v) and not isinstance(v, nn.Module)}
        yield f"the overridden methods of {where}", sorted(own)
        if identity:
            yield f"the identity of {where}", id(part)
            yield f"the methods of {where}", {k: id(v) for k, v in own.items()}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        yield from _tensor(tensor, f"{place}.{name}")
        if identity:
            yield f"the identity of {place}.{name}", id(tensor)
