"""Operations that diagrams are built of: functions of each number, linear maps by named axes, rearrangements."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._terms import Op, Type, arrays, numbers_in


def elementwise(name: str, function: Callable[[Tensor], Tensor], kind: Type, cost: int = 0) -> Op:
    """Return a function of every number of one array, with `cost` FLOPs for each."""
    return Op(name, function, kind, kind, cost * numbers_in(kind))


def einsum(source: str, target: str, scale: float = 1.0) -> Op:
    """Return the linear map that multiplies arrays and sums over the axes that the target lacks.

    >>> einsum("n:8 e:4 | m:6 e:4", "n:8 m:6").flops
    384
    """
    kinds, (out,) = arrays(source), arrays(target)
    sizes = {name: size for array in (*kinds, out) for name, size in array}
    letters = {name: chr(ord("a") + k) for k, name in enumerate(sizes)}
    words = ["".join(letters[name] for name, _ in array) for array in (*kinds, out)]
    inputs, result = words[:-1], words[-1]
    if any(sizes[name] != size for array in (*kinds, out) for name, size in array):
        raise WorkingPapersError(f"an axis has one size; got {source!r} -> {target!r}")
    if not set(result) <= set("".join(inputs)):
        raise WorkingPapersError(f"axes of the result come from the arguments; got {source!r} -> {target!r}")

    def product(*values: Tensor) -> Tensor:
        found = torch.einsum(",".join(inputs) + "->" + result, *values)
        return found if scale == 1.0 else found.mul_(scale)

    def back(k: int) -> Callable[..., Tensor]:
        others = [word for i, word in enumerate(inputs) if i != k]
        lost = set(inputs[k]) - set(result) - set("".join(others))

        def gradient(values: Sequence[Tensor], grad: Tensor) -> Tensor:
            rest = [v for i, v in enumerate(values) if i != k]
            kept = "".join(letter for letter in inputs[k] if letter not in lost)
            part = torch.einsum(",".join([result, *others]) + "->" + kept, grad, *rest)
            for place, letter in enumerate(inputs[k]):
                if letter in lost:
                    part = part.unsqueeze(place)
            return scale * part.expand(values[k].shape)

        return gradient

    contracted = set("".join(inputs)) - set(result)
    cost = 2 * math.prod(sizes.values()) if contracted and len(inputs) > 1 else 0
    return Op("Σ", product, kinds, (out,), cost, transposed=tuple(back(k) for k in range(len(kinds))))


def view(
    name: str, function: Callable[[Tensor], Tensor], source: str, target: str, copies: bool = False
) -> Op:
    """Return a linear rearrangement of one array's numbers, such as a transposition; `copies` where torch must."""
    kinds = arrays(source), arrays(target)
    if numbers_in(kinds[0]) != numbers_in(kinds[1]):
        raise WorkingPapersError(f"a view keeps the numbers; got {source!r} -> {target!r}")
    return Op(name, function, *kinds, view=not copies)
