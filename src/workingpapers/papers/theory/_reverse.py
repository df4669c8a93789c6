"""Backpropagation as a diagram: the reverse of a term takes its inputs and a gradient, and gives gradients."""

from typing import Any

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._primitives import einsum, elementwise
from workingpapers.papers.theory._terms import (
    Beside,
    Broadcast,
    Op,
    Sequence_,
    Term,
    Type,
    Wires,
    arrays,
    columns,
    compose,
    identity,
)


def reverse(term: Term) -> Term:
    """Return the term from the source's arrays and the target's gradients to the source's gradients.

        R(f ; g) = copy the input, run f, R(g) on what came and the gradient, R(f) on the input and that

    A chain is bracketed to the right first, so that each part runs forward once: then the FLOPs are at most those
    of the term and of each part's own reverse, whatever the depth.
    """
    if isinstance(term, Sequence_):
        first, *rest = columns(term)
        after = compose(*rest)
        return _composed(first, after)
    if isinstance(term, Beside):
        return _beside(term)
    if isinstance(term, Broadcast):
        return Broadcast(reverse(term.term), term.axis)
    if isinstance(term, Wires):
        return _added(term)
    if isinstance(term, Op):
        return _operation(term)
    raise WorkingPapersError(f"a {type(term).__name__} has no reverse")


def _composed(first: Term, after: Term) -> Term:
    a, c = first.source, after.target
    count = len(a)
    copied = Wires(a + c, (*range(count), *range(count), *range(count, count + len(c))))
    forward = identity(a) @ (first @ identity(c))
    return compose(copied, forward, identity(a) @ reverse(after), reverse(first))


def _beside(term: Beside) -> Term:
    """Bring each part's gradients beside its inputs."""
    a, b, c, d = (
        len(t) for t in (term.first.source, term.second.source, term.first.target, term.second.target)
    )
    order = (*range(a), *range(a + b, a + b + c), *range(a, a + b), *range(a + b + c, a + b + c + d))
    sorted_ = Wires(term.source + term.target, order)
    return sorted_ >> (reverse(term.first) @ reverse(term.second))


def _added(term: Wires) -> Term:
    """Gradients of copies are added; those of deleted arrays are zero."""
    count = len(term.source)

    def gradients(*values: Tensor) -> tuple[Tensor, ...]:
        inputs, grads = values[:count], values[count:]
        found = []
        for k, x in enumerate(inputs):
            own = [g for g, pick in zip(grads, term.picks, strict=True) if pick == k]
            found.append(torch.stack(own).sum(0) if len(own) > 1 else own[0] if own else torch.zeros_like(x))
        return tuple(found)

    return Op("+", gradients, term.source + term.target, term.source, view=True)


def _operation(op: Op) -> Op:
    count = len(op.source)

    def gradients(*values: Tensor) -> tuple[Any, ...]:
        inputs, grads = values[:count], values[count:]
        if op.transposed:
            return tuple(back(inputs, grads[0]) for back in op.transposed)
        pull = torch.func.vjp(op.function, *inputs)[1]
        found: tuple[Any, ...] = pull(grads if len(grads) > 1 else grads[0])
        return found

    cost = op.flops * max(len(op.transposed), 1)
    return Op(f"{op.name}ᵀ", gradients, op.source + op.target, op.source, cost)


def chain(depth: int, batch: int = 8, width: int = 16) -> Term:
    """Return a perceptron of `depth` layers as a diagram whose weights are wires: x, W1 ... W_depth -> output."""
    layer = einsum(f"n:{batch} i:{width} | i:{width} o:{width}", f"n:{batch} o:{width}")
    x, y = arrays(f"n:{batch} i:{width}"), arrays(f"n:{batch} o:{width}")
    w = arrays(f"i:{width} o:{width}")
    terms: list[Term] = []
    for k in range(depth):
        rest: Type = w * (depth - 1 - k)
        renamed = Op("relu", torch.relu, y, x if k < depth - 1 else y, batch * width)
        step: Term = layer >> renamed
        terms += [part @ identity(rest) for part in columns(step)] if rest else columns(step)
    return compose(*terms) if len(terms) > 1 else elementwise("id", lambda t: t, x)
