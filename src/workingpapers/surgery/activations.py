"""Recognising activations: modules, functions and methods of torch by name, others by what they compute."""

import functools
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workingpapers.catalog import available, load

# name -> (class in torch.nn, name of the function or method); "" where there is none
FORMS: dict[str, tuple[str, str]] = {
    "relu": ("ReLU", "relu"),
    "relu6": ("ReLU6", "relu6"),
    "leaky_relu": ("LeakyReLU", "leaky_relu"),
    "prelu": ("PReLU", "prelu"),
    "rrelu": ("RReLU", "rrelu"),
    "elu": ("ELU", "elu"),
    "celu": ("CELU", "celu"),
    "selu": ("SELU", "selu"),
    "gelu": ("GELU", "gelu"),
    "gelu_tanh": ("", ""),  # gelu with approximate="tanh"
    "silu": ("SiLU", "silu"),
    "mish": ("Mish", "mish"),
    "softplus": ("Softplus", "softplus"),
    "softsign": ("Softsign", "softsign"),
    "hardswish": ("Hardswish", "hardswish"),
    "hardsigmoid": ("Hardsigmoid", "hardsigmoid"),
    "hardtanh": ("Hardtanh", "hardtanh"),
    "tanh": ("Tanh", "tanh"),
    "sigmoid": ("Sigmoid", "sigmoid"),
    "logsigmoid": ("LogSigmoid", "logsigmoid"),
    "tanhshrink": ("Tanhshrink", "tanhshrink"),
    "hardshrink": ("Hardshrink", "hardshrink"),
    "softshrink": ("Softshrink", "softshrink"),
    "threshold": ("Threshold", "threshold"),
    "identity": ("Identity", ""),
    "relu2": ("", ""),
    "quick_gelu": ("", ""),
}

CLASSES: dict[type[nn.Module], str] = {getattr(nn, c): name for name, (c, _) in FORMS.items() if c}

# what a module without parameters computes, where its class is not torch's: tried in this order
FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: getattr(functional, f)
        for name, (_, f) in FORMS.items()
        if f and name not in ("prelu", "rrelu", "threshold")
    },
    "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
    "relu2": lambda x: functional.relu(x) ** 2,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "identity": lambda x: x,
}

MARK = "workingpapers_activation"  # the name of an activation that swap put in

HINT = re.compile(
    r"act|lu(?![a-z])|relu|gelu|silu|swish|mish|tanh|sigm|softplus|softsign|hard", re.IGNORECASE
)


def _functions() -> dict[Any, tuple[str, bool]]:
    found: dict[Any, tuple[str, bool]] = {}
    for name, (_, base) in FORMS.items():
        for spelt, in_place in ((base, False), (f"{base}_", True)):
            for home in (torch, functional, Tensor) if base else ():
                if callable(getattr(home, spelt, None)):
                    found[getattr(home, spelt)] = (name, in_place)
            operator = {"logsigmoid": "log_sigmoid"}.get(base, base) + "_" * in_place
            packet = getattr(torch.ops.aten, operator, None) if base else None
            if packet is not None:
                found[packet] = found[packet.default] = (name, in_place)
    return found


# every function and method of torch that computes an activation -> (its name, whether it works in place)
FUNCTIONS: dict[Any, tuple[str, bool]] = _functions()
SPELLINGS = {f"{base}{end}": name for name, (_, base) in FORMS.items() if base for end in ("", "_")}


def call_named(
    function: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> str | None:
    """Return the name of the activation that this call computes, or None where it is none."""
    if function not in FUNCTIONS:
        return None
    name = FUNCTIONS[function][0]
    if name == "gelu" and kwargs and kwargs.get("approximate", "none") == "tanh":
        return "gelu_tanh"
    return name


def underscored(function: Any) -> bool:
    """Say whether the function is spelt with an underscore, so that its result may be thrown away."""
    return FUNCTIONS[function][1]


def function_named(value: Any) -> str | None:
    """Return the name of the activation that a function held by a model computes, or None."""
    if isinstance(value, functools.partial):
        return call_named(value.func, value.args, value.keywords) if _hashable(value.func) else None
    return call_named(value) if _hashable(value) else None


def _hashable(value: Any) -> bool:
    return isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodDescriptorType) or (
        type(value) is not type
        and type(value).__module__.startswith("torch.")
        and callable(value)
        and not isinstance(value, nn.Module)
    )


def has_tensors(module: nn.Module) -> bool:
    """Say whether a module holds parameters or buffers, itself or further in."""
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return the module's class without what `surgery.intercept` put on it."""
    cls = type(module)
    while "workingpapers_base" in cls.__dict__:
        cls = cls.__dict__["workingpapers_base"]
    return cls


@torch.no_grad()
def module_named(module: nn.Module, key: str = "") -> str | None:
    """Return the name of the activation that `module` is, or None where it is none that we know.

    Torch's classes and those of the catalogue are known; another module without parameters whose class, or
    whose place `key`, has the name of an activation is known by its values on a grid.
    """
    if MARK in module.__dict__:
        return str(module.__dict__[MARK])
    cls = class_of(module)
    if cls is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    if cls in CLASSES:
        return CLASSES[cls]
    if cls.__module__.startswith("torch.nn.") or isinstance(module, torch.jit.ScriptModule):
        return None
    listed = _listed(cls)
    if listed:
        return listed
    for base, name in CLASSES.items():
        if issubclass(cls, base) and cls.forward is base.forward:
            return name
    if has_tensors(module) or not HINT.search(f"{cls.__name__} {key}"):
        return None
    return _by_values(module)


def _listed(cls: type) -> str | None:
    """Return the component of the catalogue whose class this is."""
    path = cls.__module__.split(".")
    id = path[-1]
    if len(path) < 3 or id not in _written():
        return None
    for name, component in load(id).items():
        if component.kind == "activation" and component.target is cls:
            return name
    return None


@functools.lru_cache(maxsize=1)
def _written() -> frozenset[str]:
    return frozenset(available())


def _by_values(module: nn.Module) -> str | None:
    grid = torch.cat([torch.linspace(-5, 5, 41), torch.tensor([-60.0, -20.0, 20.0, 60.0])]).double()
    state = torch.get_rng_state()
    training = module.training
    try:
        found = module.eval()(grid.clone())
    except Exception:  # a module of the user's may raise anything on an input that it is not made for
        return None
    finally:
        module.train(training)
        torch.set_rng_state(state)
    if not isinstance(found, Tensor) or found.shape != grid.shape or found.dtype != grid.dtype:
        return None
    for name, formula in FORMULAS.items():
        if torch.allclose(found, formula(grid), rtol=1e-6, atol=1e-6):
            return name
    return None
