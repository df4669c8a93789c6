"""Fusing a formula: TorchInductor makes one kernel of it, and one of its derivative, for CPUs and GPUs alike."""

import os
import types
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from inspect import Signature
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from workingpapers.kernels.layout import Layout, layout

LOW_PRECISION = (torch.bfloat16, torch.float16)
FUSED_FROM = {
    "cpu": 2**20,
    "cuda": 2**14,
}  # elements: below, compiling and its guards cost more than they save
MODES = ("auto", "always", "never")

VARIABLE = "WORKINGPAPERS_FUSING"
_usual = os.environ.get(VARIABLE, "auto")
if _usual not in MODES:
    raise ValueError(f"{VARIABLE} is one of {', '.join(MODES)}; got {_usual!r}")
_mode: ContextVar[str] = ContextVar("fusing", default=_usual)
_broken: set[tuple["Formula", str]] = set()  # formulas that no kernel could be made of, with the device type


@dataclass(frozen=True, eq=False)
class Formula:
    """A formula in torch operations; called, it is computed in float32 at least, operation by operation."""

    function: Callable[..., Tensor]
    signature: Signature
    elementwise: bool

    def __call__(self, x: Tensor, *parameters: Any, **named: Any) -> Tensor:
        if x.dtype in LOW_PRECISION:
            parameters = tuple(_in_float(p) for p in parameters)
            named = {name: _in_float(p) for name, p in named.items()}
            return self.function(x.float(), *parameters, **named).to(x.dtype)
        return self.function(x, *parameters, **named).to(x.dtype)


@contextmanager
def fusing(mode: str) -> Iterator[None]:
    """Set for the code inside when formulas are fused: "auto" (large tensors), "always" or "never".

    The environment variable WORKINGPAPERS_FUSING sets it for a whole process.
    """
    if mode not in MODES:
        raise ValueError(f"fusing is one of {', '.join(MODES)}; got {mode!r}")
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def compiles(device: str) -> bool:
    """Tell whether torch can make kernels for `device` ("cpu" or "cuda") here.

    For CPUs it hands the path of its own headers to a compiler unquoted, which fails where that has a blank.
    """
    return device == "cuda" or " " not in torch.__file__


def fuses(formula: Formula, x: Tensor) -> bool:
    """Tell whether `formula` of `x` is to be fused: `x` is large, and no other machinery looks on."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    device, mode = x.device.type, _mode.get()
    if mode == "never" or device not in FUSED_FROM or (formula, device) in _broken or not compiles(device):
        return False
    if x.numel() < (1 if mode == "always" else FUSED_FROM[device]):
        return False
    return not (
        type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or _get_current_dispatch_mode() is not None
    )


def fused(formula: Formula, x: Tensor, *parameters: Any, **named: Any) -> Tensor:
    """Compute `formula` by its fused kernels, or as it is where its arguments do not fit one."""
    arguments = formula.signature.bind(x, *parameters, **named).arguments
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    tensors = [arguments.pop(name) for name in names]
    form = layout(tensors, formula.elementwise)
    if form is None or any(t.device != x.device or not t.is_floating_point() for t in tensors):
        return formula(x, *parameters, **named)
    call = Call(formula, tuple(names), arguments, form)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        found: Tensor = _Fused.apply(call, *tensors)
        return found
    with torch.no_grad():
        return call.forward(tensors)


@dataclass(frozen=True)
class Call:
    """One call of a formula: which arguments are tensors and how these are laid out, and all other arguments."""

    formula: Formula
    names: tuple[str, ...]
    constants: dict[str, Any]
    form: Layout

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the formula's value in the shape, order and dtype of the first tensor."""
        device = tensors[0].device.type
        packed = self.form.pack(tensors)
        kernel = _forward_kernel(self.formula, self.names, device, self._variant(packed))
        try:
            return self.form.unpack(kernel(*packed, **self.constants))
        except _failures() as error:
            self._note(error, device)
            return self.reference(tensors)

    def backward(
        self, tensors: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the gradient of each tensor that is `needed`, all computed in one pass from the inputs."""
        device = tensors[0].device.type
        if (self.formula, device) in _broken:
            return self.differentiated(tensors, grad, needed)
        (seed,), packed = self.form.pack([grad]), self.form.pack(tensors, rows=True)
        kernel = _backward_kernel(self.formula, self.names, tuple(needed), device, self._variant(packed))
        try:
            found = iter(kernel(seed, *packed, **self.constants))
        except _failures() as error:
            self._note(error, device)
            return self.differentiated(tensors, grad, needed)
        return [
            self.form.unpack_gradient(next(found), t) if need else None
            for t, need in zip(tensors, needed, strict=True)
        ]

    def reference(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the formula's value operation by operation."""
        return self.formula(**dict(zip(self.names, tensors, strict=True)), **self.constants)

    def differentiated(
        self, tensors: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the needed gradients by autograd through the formula, themselves differentiable where asked."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            tensors = tensors if again else [t.detach().requires_grad_() for t in tensors]
            wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
            value = self.reference(tensors)
        found = iter(torch.autograd.grad(value, wanted, grad, create_graph=again))
        return [next(found) if need else None for need in needed]

    def _variant(self, packed: Sequence[Tensor]) -> Hashable:
        """Return all that a kernel is made for: dynamo gives up where one function is called in too many ways."""
        fixed = tuple((name, str(c)) for name, c in self.constants.items() if not isinstance(c, float))
        return fixed, tuple((t.dtype, t.is_contiguous(), *(size == 1 for size in t.shape)) for t in packed)

    def _note(self, error: Exception, device: str) -> None:
        _broken.add((self.formula, device))
        name, reason = self.formula.function.__name__, str(error).strip().splitlines()[0]
        warnings.warn(f"{name} is not fused on {device}, but computed as it is: {reason}", stacklevel=2)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return call.forward(tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        gradients = ctx.call.differentiated if torch.is_grad_enabled() else ctx.call.backward
        return None, *gradients(ctx.saved_tensors, grad, ctx.needs_input_grad[1:])


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors by which the compiler gives up; it is imported only once something went wrong."""
    from torch._dynamo import exc as dynamo
    from torch._inductor import exc as inductor

    homes = (
        (dynamo, "TorchDynamoException"),
        (dynamo, "FailOnRecompileLimitHit"),
        (inductor, "InductorError"),
    )
    return tuple(getattr(home, name) for home, name in homes if hasattr(home, name))


@cache
def _forward_kernel(
    formula: Formula, names: tuple[str, ...], device: str, variant: Hashable
) -> Callable[..., Tensor]:
    def forward(*tensors: Tensor, **constants: Any) -> Tensor:
        raised = [_raised(t, tensors[0]) for t in tensors]
        value = formula.function(**dict(zip(names, raised, strict=True)), **constants)
        return value.to(tensors[0].dtype)

    return _compiled(forward, formula, device)


@cache
def _backward_kernel(
    formula: Formula, names: tuple[str, ...], needed: tuple[bool, ...], device: str, variant: Hashable
) -> Callable[..., Sequence[Tensor]]:
    def backward(grad: Tensor, *tensors: Tensor, **constants: Any) -> tuple[Tensor, ...]:
        raised = [_raised(t, tensors[0]) for t in tensors]
        free = [i for i, need in enumerate(needed) if need]

        def function(*values: Tensor) -> Tensor:
            every = list(raised)
            for i, value in zip(free, values, strict=True):
                every[i] = value
            return formula.function(**dict(zip(names, every, strict=True)), **constants)

        vjp: Any = torch.func.vjp
        value, pull = vjp(function, *(raised[i] for i in free))
        found = pull(grad.to(value.dtype))
        # a gradient as large as the input is rounded here, in the pass; sums over rows stay exact until added up
        return tuple(
            g.to(tensors[i].dtype) if tensors[i].shape == grad.shape else g
            for i, g in zip(free, found, strict=True)
        )

    return _compiled(backward, formula, device)


def _in_float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in LOW_PRECISION else value


def _raised(t: Tensor, x: Tensor) -> Tensor:
    return t.float() if x.dtype in LOW_PRECISION else t.to(x.dtype)


def _compiled(function: Callable[..., Any], formula: Formula, device: str) -> Callable[..., Any]:
    """Compile `function` under a code object of its own, as dynamo counts recompilations by code object."""
    own = types.FunctionType(
        function.__code__.replace(co_name=f"{function.__name__}_{formula.function.__name__}"),
        function.__globals__,
        closure=function.__closure__,
    )
    return torch.compile(own, dynamic=True if device == "cpu" else None, fullgraph=True)
