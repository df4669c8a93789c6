"""Other backward passes for ReLU and max-pooling, whoever calls them: modules, functions or methods."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.activations import call_named, underscored

TEMPERATURE = "workingpapers_temperature"  # where a converted model keeps it
Window = int | tuple[int, ...]


class _SoftGate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, temperature: float) -> Tensor:
        return z.clamp_min(0)  # to the bit what relu computes, but no call of relu

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.temperature = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return grads[0] * torch.sigmoid(z / ctx.temperature), None


class _GuidedGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        y = z.clamp_min(0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.where(y > 0, grads[0].clamp(min=0), 0)


def soft_gate_relu(z: Tensor, temperature: float = 1.0) -> Tensor:
    """Return relu(z), whose backward pass multiplies by sigmoid(z / temperature) in place of 1[z > 0]."""
    found: Tensor = _SoftGate.apply(z, temperature)
    return found


def guided_relu(z: Tensor) -> Tensor:
    """Return relu(z), whose backward pass lets only positive gradients through (guided backpropagation)."""
    found: Tensor = _GuidedGate.apply(z)
    return found


def soft_gate_max_pool2d(
    x: Tensor,
    kernel_size: Window,
    stride: Window | None = None,
    padding: Window = 0,
    dilation: Window = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    temperature: float = 1.0,
) -> Any:
    """Return torch's max_pool2d, with the backward pass of a pool weighted by softmax(x / temperature).

    The gradient is that of sum_i w_i x_i in each window, w = softmax(x / temperature), weights included; padding
    has no weight.
    """
    kernel, step, pad, apart = (_two(v) for v in (kernel_size, stride or kernel_size, padding, dilation))
    # the operator itself, so that no mode answers this call again
    hard, places = torch.ops.aten.max_pool2d_with_indices.default(x, kernel, step, pad, apart, ceil_mode)
    sides = []
    for i in (1, 0):  # F.pad begins with the last dimension
        reach = (hard.shape[i - 2] - 1) * step[i] + apart[i] * (kernel[i] - 1) + 1
        sides += [pad[i], reach - x.shape[i - 2] - pad[i]]
    wide = F.pad(x, sides, value=-torch.inf)
    windows = F.unfold(wide.reshape(-1, 1, *wide.shape[-2:]), kernel, apart, 0, step)
    weights = torch.softmax(windows / temperature, 1)
    soft = (weights * torch.where(windows == -torch.inf, 0, windows)).sum(1).reshape(hard.shape)
    found = hard.detach() + (soft - soft.detach())
    return (found, places) if return_indices else found


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value * 2 if len(value) == 1 else tuple(value))


def checked(temperature: float) -> float:
    """Return the temperature, or raise one sentence where it is not above 0."""
    if not temperature > 0:
        raise WorkingPapersError(f"soft gates have a temperature above 0; got {temperature}")
    return float(temperature)


class Gates(TorchFunctionMode):
    """While it is entered, every relu is `relu`, and every max_pool2d is `pool` where one is given."""

    def __init__(self, relu: Callable[[Tensor], Tensor], pool: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.relu, self.pool = relu, pool

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a call that torch makes."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.pool is not None and name in ("max_pool2d", "max_pool2d_with_indices"):
            given = {"return_indices": True} if name.endswith("indices") else {}
            return self.pool(*args, **{**kwargs, **given})
        if call_named(func, args, kwargs) != "relu":
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        if underscored(func) or kwargs.get("inplace") or (len(args) > 1 and args[1]):
            return x.copy_(self.relu(x.clone()))
        return self.relu(x)


def soft_gates(temperature: float) -> Gates:
    """Return the mode in which ReLU and max-pooling have soft backward passes."""
    return Gates(
        functools.partial(soft_gate_relu, temperature=temperature),
        functools.partial(soft_gate_max_pool2d, temperature=temperature),
    )


@functools.cache
def gated(base: Any) -> Any:
    """Return the subclass of `base` whose `forward` runs with soft gates, at the temperature kept on the model."""

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with soft_gates(self.__dict__[TEMPERATURE]):
            return base.forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _bare, (base,), self.__getstate__()

    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    body = {**names, "forward": forward, "__reduce_ex__": reduce, "workingpapers_base": base}
    return type(base)(base.__name__, (base,), body)


def _bare(base: Any) -> Any:
    cls = gated(base)
    return cls.__new__(cls)
