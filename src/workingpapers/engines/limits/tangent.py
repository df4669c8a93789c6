"""The tangent kernel of a finite network: inner products of the gradients of its outputs.

theta(x, x')[a, b] = <d f_a(x) / dw, d f_b(x') / dw>
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from workingpapers.errors import WorkingPapersError, unknown

MODES = ("full", "trace")
Values = dict[str, Tensor]


def empirical_ntk(
    model: nn.Module,
    x: Tensor,
    other: Tensor | None = None,
    mode: str = "trace",
    *,
    names: Sequence[str] | None = None,
    chunk: int = 32,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the tangent kernel of `model` between inputs `x` (N1, ...) and `other` (N2, ...), `x` by default.

    Args:
        model: any module that treats examples apart in evaluation mode; it stays as it is.
        mode: "full" for (N1, N2, C, C) with C outputs, or "trace" for its mean over a = b, (N1, N2).
        names: parameters to differentiate by; all that require a gradient by default.
        chunk: inputs whose Jacobians (chunk, C, P) are held at a time, twice.
        dtype: evaluate in this dtype instead of the model's own.
    """
    if mode not in MODES:
        raise unknown("mode of a tangent kernel", mode, MODES)
    output, moving = _function(model, names, dtype)
    with _evaluation(model):

        def rows(part: Tensor) -> list[Tensor]:
            """Return the Jacobian by each parameter, (n, C, its size)."""
            found = vmap(jacrev(output), in_dims=(None, 0))(moving, part)
            return [j.detach().flatten(2) for j in found.values()]

        pieces = list(_cast(x, moving).split(chunk))
        others = pieces if other is None else list(_cast(other, moving).split(chunk))
        table: list[list[Tensor]] = [[] for _ in pieces]
        for i, part in enumerate(pieces):
            left = rows(part)
            for j, that in enumerate(others):
                if other is None and j < i:  # the kernel is symmetric
                    known = table[j][i]
                    table[i].append(known.transpose(0, 1) if mode == "trace" else known.permute(1, 0, 3, 2))
                    continue
                right = left if other is None and i == j else rows(that)
                table[i].append(_contract(left, right, mode))
    return torch.cat([torch.cat(row, 1) for row in table])


def sketched_ntk(
    model: nn.Module,
    x: Tensor,
    other: Tensor | None = None,
    mode: str = "trace",
    *,
    directions: int = 256,
    seed: int = 0,
    chunk: int = 128,
) -> Tensor:
    """Return an unbiased estimate of `empirical_ntk` by derivatives along random directions of weights.

    Never holds a Jacobian: one pass forward for each of `directions` vectors of random signs, whose products are
    averaged.  The relative error falls as 1 / sqrt(directions).
    """
    if mode not in MODES:
        raise unknown("mode of a tangent kernel", mode, MODES)
    if directions < 1:
        raise WorkingPapersError(f"a sketch has at least one direction; got {directions}")
    output, moving = _function(model, None, None)
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | None = None
    with _evaluation(model):
        for _ in range(directions):
            signs = {
                n: (2 * torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8) - 1).to(p)
                for n, p in moving.items()
            }

            def along(inputs: Tensor, signs: Values = signs) -> Tensor:
                """Return the derivatives (N, C) along the direction."""
                parts = [
                    jvp(lambda w, part=part: vmap(output, in_dims=(None, 0))(w, part), (moving,), (signs,))[1]
                    for part in _cast(inputs, moving).split(chunk)
                ]
                return torch.cat(parts).detach()

            left = along(x)
            right = left if other is None else along(other)
            if mode == "trace":
                own = left @ right.T / left.shape[1]
            else:
                own = torch.einsum("na,mb->nmab", left, right)
            total = own if total is None else total + own
    assert total is not None
    return total / directions


def linearise(model: nn.Module) -> Callable[[Values, Tensor], Tensor]:
    """Return f_lin(change, x) = f(x) + J(x) change at the weights that `model` has now, a copy of which is kept.

    `change` maps names of parameters to tensors of their shapes; those left out do not change.  The function may be
    differentiated by its change; outputs are those of evaluation mode.
    """
    own = {n: p.detach().clone() for n, p in model.named_parameters()}
    buffers = {n: b.detach().clone() for n, b in model.named_buffers()}

    def function(change: Values, x: Tensor) -> Tensor:
        for name in change:
            if name not in own:
                raise unknown("parameter", name, own)
        shift = {n: change.get(n, torch.zeros_like(p)) for n, p in own.items()}
        with _evaluation(model):
            both = jvp(lambda w: functional_call(model, {**w, **buffers}, (x,)), (own,), (shift,))
        found: Tensor = both[0] + both[1]
        return found

    return function


def _function(
    model: nn.Module, names: Sequence[str] | None, dtype: torch.dtype | None
) -> tuple[Callable[[Values, Tensor], Tensor], Values]:
    """Return the flat outputs (C,) for one input as a function of the moving parameters, and those."""
    every = dict(model.named_parameters())
    for name in names or ():
        if name not in every:
            raise unknown("parameter", name, every)
    chosen = [n for n, p in every.items() if (p.requires_grad if names is None else n in names)]
    if not chosen:
        raise WorkingPapersError(f"{type(model).__name__} has no parameters that require a gradient")

    def cast(t: Tensor) -> Tensor:
        return t.detach().to(dtype) if dtype is not None and t.is_floating_point() else t.detach()

    rest = {n: cast(t) for n, t in [*every.items(), *model.named_buffers()] if n not in chosen}

    def output(values: Values, one: Tensor) -> Tensor:
        found = functional_call(model, {**values, **rest}, (one[None],))
        if not isinstance(found, Tensor):
            raise WorkingPapersError(
                f"a tangent kernel is of a tensor of outputs; the model gives a {type(found).__name__}"
            )
        return found.reshape(-1)

    return output, {n: cast(every[n]) for n in chosen}


def _cast(x: Tensor, moving: Values) -> Tensor:
    first = next(iter(moving.values()))
    return x.to(first.device, first.dtype if x.is_floating_point() else None)


def _contract(left: list[Tensor], right: list[Tensor], mode: str) -> Tensor:
    if mode == "full":
        parts = [torch.einsum("nap,mbp->nmab", a, b) for a, b in zip(left, right, strict=True)]
    else:
        parts = [a.flatten(1) @ b.flatten(1).T / a.shape[1] for a, b in zip(left, right, strict=True)]
    return torch.stack(parts).sum(0)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a stretch, with attention that every kind of derivative goes through."""
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode
