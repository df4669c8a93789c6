"""What the checks do with tensors: find them in nested outputs, cast, slice and compare them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from workingpapers.contracts._check import ContractFailure, expect

NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


def tensors(nested: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts, in order; complex ones as pairs of reals."""
    leaves = [leaf for leaf in pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]
    return [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in leaves]


def floating(nested: Any) -> list[Tensor]:
    """Return those of the tensors that hold floating-point numbers."""
    return [tensor for tensor in tensors(nested) if tensor.is_floating_point()]


def map_tensors(function: Callable[[Tensor], Tensor], nested: Any) -> Any:
    """Apply `function` to every tensor in a nested structure and keep all else."""
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, nested)


def map_floating(function: Callable[[Tensor], Tensor], nested: Any) -> Any:
    """Apply `function` to every floating-point tensor in a nested structure and keep all else."""
    return map_tensors(lambda tensor: function(tensor) if tensor.is_floating_point() else tensor, nested)


def cast(nested: Any, dtype: torch.dtype) -> Any:
    """Return the nested structure with its floating-point tensors in `dtype`."""
    return map_floating(lambda tensor: tensor.to(dtype), nested)


def with_gradients(nested: Any) -> Any:
    """Return copies of the nested tensors; the floating-point ones ask for gradients."""
    return map_tensors(lambda t: t.detach().clone().requires_grad_(t.is_floating_point()), nested)


def rows(nested: Any, batch: int, chosen: slice) -> Any:
    """Return the `chosen` examples of every tensor whose first dimension is the `batch`."""
    return map_tensors(lambda t: t[chosen] if t.ndim and t.shape[0] == batch else t, nested)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference over the norm of `wanted`, in float64; inf where one is not finite."""
    found, wanted = found.detach().double(), wanted.detach().double()
    if found.numel() == 0:
        return 0.0
    gap = torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted).clamp_min(1e-12)
    return float(torch.nan_to_num(gap, nan=torch.inf))


def expect_close(found: Any, wanted: Any, tolerance: float, what: str) -> None:
    """Raise unless the tensors in `found` have the shapes of those in `wanted` and differ by `tolerance` at most.

    `what` says which two things are compared, as in "the copy's outputs differ from the original's".
    """
    pairs = list(zip(tensors(found), tensors(wanted), strict=True))
    for one, other in pairs:
        expect(one.shape == other.shape, f"{what}: shape {tuple(one.shape)} against {tuple(other.shape)}")
        gap = distance(one, other)
        expect(gap <= tolerance, f"{what}: relative difference {gap:.2g}, at most {tolerance:.2g} is allowed")


def expect_finite(nested: Any, what: str) -> None:
    """Raise unless every number in the nested tensors is finite."""
    for tensor in tensors(nested):
        bad = tensor[~torch.isfinite(tensor)] if tensor.is_floating_point() else tensor[:0]
        expect(bad.numel() == 0, f"{bad.numel()} of {tensor.numel()} numbers in {what} are not finite")


def gradients(loss: Tensor, sources: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of `loss` for each of the sources, zeros where there is no path."""
    if not loss.requires_grad:
        raise ContractFailure("the outputs carry no gradient at all")
    found = torch.autograd.grad(loss, list(sources), allow_unused=True)
    return [torch.zeros_like(s) if g is None else g for s, g in zip(sources, found, strict=True)]


def weighted_sum(outputs: Any) -> Tensor:
    """Return a fixed random weighted sum of all floating-point outputs: a scalar to differentiate."""
    generator = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=torch.float64)
    found = floating(outputs)
    expect(bool(found), "the output holds no floating-point tensor")
    for output in found:
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        total = total + (output.double() * weights).sum()
    return total
