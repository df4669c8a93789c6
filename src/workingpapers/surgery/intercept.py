"""Replacing the activations that a module calls inside its own `forward`, and in none of the modules inside.

The module's class becomes a subclass of itself whose `forward` runs under a `TorchFunctionMode`: torch hands
it every call of a function or method, however it is spelt, and it answers those of the activation with the
new module.  torch.compile, torch.export and torch.fx trace through it; copies and pickles keep it.
"""

import copy
import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.activations import FORMS, FUNCTIONS, call_named, function_named, underscored

CALLS = "workingpapers_calls"


@dataclass(frozen=True)
class Replacement:
    """What answers the calls of one activation.

    Attributes:
        key: the child of that name; "" for `module`.
        module: where the new activation is no child of the caller; None with no key leaves the calls alone.
        writes: whether a call that asks for it by `inplace=True` has its result written into its input.
        methods: whether tensors' methods are among the calls, which torch.fx does not pass on when it traces.
    """

    key: str
    module: nn.Module | None = None
    writes: bool = False
    methods: bool = False

    def of(self, owner: nn.Module) -> nn.Module | None:
        """Return the new activation of `owner`; None where its calls are left alone."""
        return owner._modules[self.key] if self.key else self.module


def replaced_calls(module: nn.Module) -> Mapping[str, Replacement]:
    """Return which activations called by `module` are replaced already."""
    found: Mapping[str, Replacement] = module.__dict__.get(CALLS, {})
    return found


class Replacing(TorchFunctionMode):
    """While it is entered, calls of the owner's replaced activations go to what replaces them."""

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer a call that torch makes."""
        kwargs = kwargs or {}
        if func not in FUNCTIONS:
            return func(*args, **kwargs)
        replacement = self.owner.__dict__[CALLS].get(call_named(func, args, kwargs))
        if replacement is None:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        new = replacement.of(self.owner)
        if new is None:
            with torch._C.DisableTorchFunction():  # not for the replacements further out either
                return func(*args, **kwargs)
        if underscored(func) or (replacement.writes and kwargs.get("inplace")):
            return x.copy_(new(x.clone()))  # the result may be thrown away, and x read again
        return new(x)


@functools.cache
def replacing(base: Any) -> Any:
    """Return the subclass of `base` whose `forward` runs with the calls replaced."""

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        traced = any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values()))
        if traced and any(r.methods for r in replaced_calls(self).values()):
            raise WorkingPapersError(
                f"torch.fx cannot trace methods such as x.relu() that are swapped in {base.__name__}: "
                "trace the model first, then swap in what was traced"
            )
        with Replacing(self):
            return base.forward(self, *args, **kwargs)

    return subclass(base, forward, replacing)


@functools.cache
def shielded(base: Any) -> Any:
    """Return the subclass of `base` whose `forward` is left alone by what is replaced around it."""

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return base.forward(self, *args, **kwargs)

    return subclass(base, forward, shielded)


def subclass(base: Any, forward: Callable[..., Any], make: Callable[[Any], Any]) -> Any:
    """Return a subclass of a module's class with another `forward`, which copies and pickles by `make(base)`."""

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _new, (make, base), self.__getstate__()

    body = {
        "forward": forward,
        "__reduce_ex__": reduce,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "workingpapers_base": base,
        "workingpapers_make": make,
    }
    return type(base)(base.__name__, (base,), body)


def _new(make: Callable[[Any], Any], base: Any) -> Any:
    cls = make(base)
    return cls.__new__(cls)


def rewritten(graph: fx.Graph, names: Mapping[str, str]) -> fx.Graph:
    """Return a copy of `graph` that calls the module `names[activation]` where it calls an activation."""
    changed = copy.deepcopy(graph)
    for node in list(changed.nodes):
        key = names.get(node_named(node) or "")
        if key is None or not (node.args or "input" in node.kwargs):
            continue
        with changed.inserting_before(node):
            x = node.args[0] if node.args else node.kwargs["input"]
            reread = _underscored(node) and (not node.users or len(x.users) > 1)
            value = changed.call_module(key, (changed.call_method("clone", (x,)) if reread else x,))
            node.replace_all_uses_with(changed.call_method("copy_", (x, value)) if reread else value)
        changed.erase_node(node)
    changed.lint()
    return changed


def _underscored(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return underscored(node.target) or bool(node.kwargs.get("inplace"))


def node_named(node: fx.Node) -> str | None:
    """Return the name of the activation that a node of a graph computes, or None."""
    if node.op == "call_function":
        approximate = node.kwargs.get("approximate") == "tanh"
        name = function_named(node.target) if node.target is not operator.getitem else None
        return "gelu_tanh" if name == "gelu" and approximate else name
    if node.op == "call_method":
        name = str(node.target).rstrip("_")
        return name if name in FORMS else None
    return None
