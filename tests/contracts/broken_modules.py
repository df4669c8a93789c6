"""For every check of activations, layers, mixers and models, a component that fails exactly that check."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from cases import Case
from good_modules import (
    AVERAGE,
    CLASSIFIER,
    DENSE,
    SLOPE,
    Attention,
    Average,
    Classifier,
    Dense,
    MaxMin,
    Slope,
    doubled,
)
from torch import Tensor, nn

Forward = Callable[[Any, Tensor], Tensor]


def bent(base: type, bend: Callable[[nn.Module, Tensor, Tensor], Tensor], **members: Any) -> type:
    """Return a subclass whose output is `bend(module, output, input)`."""

    def forward(self: Any, x: Tensor, *args: Any, **named: Any) -> Tensor:
        return bend(self, base.forward(self, x, *args, **named), x)  # type: ignore[attr-defined]

    return type(f"Bent{base.__name__}", (base,), {"forward": forward, **members})


def with_attribute(base: type, name: str, make: Callable[[], Any]) -> dict[str, Any]:
    """Return a constructor that sets one attribute more."""

    def __init__(self: Any, *args: Any, **named: Any) -> None:
        base.__init__(self, *args, **named)  # type: ignore[misc]
        setattr(self, name, make())

    return {"__init__": __init__}


def tail_lost(module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """Zero the last example of an odd number of them, as a kernel of an even block size might."""
    return torch.cat([y[:-1], 0 * y[-1:]]) if len(y) > 1 and len(y) % 2 else y


def reads_flat(base: type) -> type:
    """Return a subclass that reads the memory of its input without heed to its strides."""

    def forward(self: Any, x: Tensor, *args: Any, **named: Any) -> Tensor:
        sizes = [x[0].numel(), *(x.shape[i:].numel() for i in range(2, x.ndim)), 1]
        return base.forward(self, x.as_strided(x.shape, sizes), *args, **named)  # type: ignore[attr-defined]

    return type(f"Flat{base.__name__}", (base,), {"forward": forward})


def writes_input(module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    x.data.add_(1)
    return y


def refuses_empty(module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    return y + 0 * x.max()


def draws(module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    torch.rand(1)
    return y


def branches(module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    return y if x.sum() > 0 else y.clone()


def grumbles(module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    warnings.warn("it is late", stacklevel=2)
    return y


def keep(module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    return y


def takes_anything(base: type) -> type:
    def __init__(self: Any, *args: Any, no_such_option: int = 0, **named: Any) -> None:
        base.__init__(self, *args, **named)  # type: ignore[misc]

    return type(f"Lax{base.__name__}", (base,), {"__init__": __init__})


SHARED: dict[str, Callable[[type], type]] = {
    "gradients": lambda base: bent(base, lambda m, y, x: doubled(y)),
    "surrogate gradient": lambda base: base,
    "gradients reach parameters": lambda base: bent(
        base, keep, **with_attribute(base, "idle", lambda: nn.Parameter(torch.ones(1)))
    ),
    "dtypes": lambda base: bent(base, lambda m, y, x: y.float()),
    "large inputs": lambda base: bent(base, lambda m, y, x: y + 0 * x.pow(20).sum()),
    "strided inputs": reads_flat,
    "inputs untouched": lambda base: bent(base, writes_input),
    "empty batch": lambda base: bent(base, refuses_empty),
    "batch of one": lambda base: bent(base, lambda m, y, x: y.squeeze(0)),
    "odd sizes": lambda base: bent(base, tail_lost),
    "batch independence": lambda base: bent(base, lambda m, y, x: y + x.mean()),
    "determinism": lambda base: bent(base, lambda m, y, x: y + torch.rand(())),
    "global generators": lambda base: bent(base, draws),
    "state_dict": lambda base: bent(
        base, lambda m, y, x: y + m.secret, **with_attribute(base, "secret", lambda: torch.rand(1))
    ),
    "deepcopy": lambda base: bent(base, keep, __deepcopy__=lambda self, memo: self),
    "pickle": lambda base: bent(base, keep, **with_attribute(base, "helper", lambda: lambda: None)),
    "compile": lambda base: bent(base, branches),
    "export": lambda base: bent(base, branches),
    "device moves": lambda base: bent(
        base, lambda m, y, x: y * m.one, **with_attribute(base, "one", lambda: torch.ones(1))
    ),
    "casts": lambda base: bent(base, keep, _apply=lambda self, function, recurse=True: self),
    "repr": lambda base: bent(base, keep, __repr__=lambda self: "a module"),
    "clear errors": takes_anything,
    "no warnings": lambda base: bent(base, grumbles),
}


class Steep(nn.Module):
    """Softplus whose gradient is wrong far to the right."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 15, doubled(x), torch.nn.functional.softplus(x))


class Once(torch.autograd.Function):
    """Softplus whose gradient is right and cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.softplus(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].detach().sigmoid()


class OnceSoftplus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten()


class Forgetful(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()

    def inverse(self, y: Tensor) -> Tensor:
        return y


class Triples(nn.Linear):
    """A linear layer that knows no fourth argument, nor a flag for its bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)


class Merged(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(0, -2)


class Lost(Dense):
    """A layer that is saved only where it is the outermost module."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not prefix:
            super()._save_to_state_dict(destination, prefix, keep_vars)


class Tolerant(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., : self.in_features])


class Short(Average):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x[:, :10], None if mask is None else mask[:, :10])


class Counting(Average):
    """Causal, but it reckons with the length of the whole."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * x.shape[1]


class Alone(Average):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.linear(x)


class Blind(Attention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Stateless(Average):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, None]:
        return self.linear(x), None


class Misnamed(Classifier):
    presets: ClassVar = {"tiny": {"width": 16}, "usual": {"breadth": 256}}


class Stuck(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return 1e-6 * super().forward(x)


class Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Step(nn.Module):
    """The identity with a jump of 0.01 at 3, where the slope has none."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * (x > 3)


def activation(target: Any, **properties: Any) -> Case:
    return Case("activation", target, properties)


OWN = {
    "same shape": activation(Flat),
    "finite at extremes": activation(Exponential),
    "slopes on a grid": activation(Steep),
    "double backward": activation(OnceSoftplus),
    "elementwise": activation(nn.Softmax, options={"dim": -1}),
    "smooth": activation(nn.ReLU, smooth=True),
    "monotone": activation(nn.GELU, monotone=True),
    "odd": activation(nn.GELU, odd=True),
    "even": activation(nn.GELU, even=True),
    "bounded": activation(nn.Tanh, bounded=(-0.99, 1.0)),
    "lipschitz": activation(nn.GELU, lipschitz=1.0),
    "positively homogeneous": activation(nn.SiLU, positively_homogeneous=True),
    "zero at zero": activation(nn.Sigmoid, zero_at_zero=True),
    "inverse": activation(Forgetful, inverse=True),
}

UNTRUE = [
    ("smooth", activation(nn.Tanh, smooth=False)),
    ("smooth", activation(nn.Hardswish, smooth=True)),
    ("smooth", activation(nn.SELU, smooth=True)),
    ("smooth", activation(Step, smooth=True)),
    ("monotone", activation(nn.Tanh, monotone=False)),
    ("odd", activation(nn.Tanh, odd=False)),
    ("even", activation(Absolute, even=False)),
    ("bounded", activation(nn.Tanhshrink, bounded=(-1.0, 1.0))),
    ("bounded", activation(nn.Tanh, bounded=False)),
    ("lipschitz", activation(nn.Tanh, lipschitz=2.0)),
    ("lipschitz", activation(nn.Tanh, lipschitz=False)),
    ("positively homogeneous", activation(nn.ReLU, positively_homogeneous=False)),
    ("zero at zero", activation(nn.ReLU, zero_at_zero=False)),
    ("elementwise", activation(nn.ReLU, elementwise=False)),
    ("inverse", activation(nn.ReLU, inverse=True)),
    ("inverse", activation(Slope, inverse=False)),
    ("lipschitz", activation(MaxMin, elementwise=False, lipschitz=0.9)),
    ("smooth", activation(MaxMin, elementwise=False, smooth=True)),
    ("monotone", activation(MaxMin, elementwise=False, monotone=True)),
    ("batch independence", activation(nn.ReLU, batch_independent=False)),
    ("determinism", activation(nn.ReLU, deterministic=False)),
]


class WrongParameter(Slope):
    """Leaky ReLU with the right gradient by its input and a wrong one by its slope."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, doubled(self.slope) * x)


class SinglePrecision(Slope):
    """Compute in float32, whatever comes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class Hoarder(Slope):
    def __init__(self) -> None:
        super().__init__()
        self.tables = {"one": [torch.ones(1)]}


class Stray(Slope):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.ones(x.shape[-1:] or 1, dtype=x.dtype)


class Wasteful(nn.ReLU):
    def __init__(self) -> None:
        super().__init__()
        torch.rand(1)


class Leaking(Dense):
    """Normalise over the batch, in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x.mean()


class Peeking(Average):
    """Add a thousandth of the next token."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) + 1e-3 * torch.cat([x[:, 1:], x[:, -1:]], dim=1)


class HalfMasked(Average):
    """Leave padding out of the sum, and count it."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        weight = torch.ones_like(x[..., :1]) if mask is None else mask[..., None].to(x.dtype)
        return (self.linear(x) * weight).cumsum(1) / torch.ones_like(weight).cumsum(1) + x.mean(
            1, keepdim=True
        )


SUBTLE = [
    ("gradients", activation(WrongParameter)),
    ("gradients", activation(SinglePrecision)),
    ("device moves", activation(Hoarder)),
    ("device moves", activation(Stray)),
    ("global generators", activation(Wasteful)),
    ("batch independence", Case("layer", Leaking, DENSE.properties)),
    ("causality", Case("mixer", Peeking, AVERAGE.properties)),
    ("mask", Case("mixer", HalfMasked, {"causal": False})),
]

BROKEN_MODULES: dict[tuple[str, str], Case] = {
    **{("activation", check): case for check, case in OWN.items()},
    ("layer", "arguments"): Case("layer", Triples, DENSE.properties),
    ("layer", "shapes"): Case("layer", Merged, DENSE.properties),
    ("layer", "in a sequence"): Case("layer", Lost, DENSE.properties),
    ("layer", "wrong sizes"): Case("layer", Tolerant, DENSE.properties),
    ("mixer", "same shape"): Case("mixer", Short, AVERAGE.properties),
    ("mixer", "causality"): Case("mixer", Attention, {"causal": True}),
    ("mixer", "prefixes"): Case("mixer", Counting, AVERAGE.properties),
    ("mixer", "sees later tokens"): Case("mixer", Average, {"causal": False}),
    ("mixer", "sees earlier tokens"): Case("mixer", Alone, AVERAGE.properties),
    ("mixer", "mask"): Case("mixer", Blind, {"causal": False}),
    ("mixer", "step"): Case("mixer", Stateless, AVERAGE.properties),
    ("model", "presets"): Case("model", Misnamed, CLASSIFIER.properties),
    ("model", "trains"): Case("model", Stuck, CLASSIFIER.properties),
}

for good in (SLOPE, DENSE, AVERAGE, CLASSIFIER):
    for check, breaking in SHARED.items():
        surrogate = {"surrogate_gradient": True} if check == "surrogate gradient" else {}
        BROKEN_MODULES[good.kind, check] = Case(
            good.kind, breaking(good.target), {**good.properties, **surrogate}
        )
