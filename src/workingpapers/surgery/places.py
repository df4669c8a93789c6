"""Places of a model where an activation stands: modules, callables held as attributes, calls in `forward`."""

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx, nn

from workingpapers.catalog import component
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.surgery.activations import CLASSES, FORMS, class_of, function_named, module_named
from workingpapers.surgery.intercept import node_named, replaced_calls
from workingpapers.surgery.reading import Read, calls

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
INSIDE_KERNELS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.LSTM: ("tanh", "sigmoid"),
    nn.GRU: ("tanh", "sigmoid"),
    nn.LSTMCell: ("tanh", "sigmoid"),
    nn.GRUCell: ("tanh", "sigmoid"),
}


@dataclass(frozen=True, eq=False)
class Place:
    """One place of a model where an activation stands.

    Attributes:
        name: of the module or attribute, or of the module whose `forward` makes the call.
        how: "module", "attribute" or "call".
        activation: its name, such as "relu".
        detail: what stands there.
        why: why it cannot be swapped; None where it can.
        holder: the module that holds it, or makes the call.
        key: under which name.
        inside: the modules from the model down to the holder.
        channels: for how many channels the new activation is built; () where it does not matter, (0,) where
            the first run tells.
    """

    name: str
    how: str
    activation: str
    detail: str
    why: str | None = None
    holder: nn.Module = field(default_factory=nn.Identity, repr=False)
    key: str = field(default="", repr=False)
    inside: tuple[nn.Module, ...] = field(default=(), repr=False)
    channels: tuple[int, ...] = ()

    @property
    def held(self) -> Any:
        """The module or callable that stands there; None for a call and for the model itself."""
        if self.how == "module":
            return self.holder._modules[self.key] if self.key else self.holder
        return self.holder.__dict__[self.key] if self.how == "attribute" else None

    def __str__(self) -> str:
        line = f"{self.name or '(the model)'}: {self.activation}, {self.how}, {self.detail}"
        if self.channels:
            line += f", channels {' and '.join(str(c or 'at the first run') for c in self.channels)}"
        return f"{line}; stays: {self.why}" if self.why else line


@dataclass(frozen=True)
class Wanted:
    """What is looked for: names of activations, classes of modules, and functions."""

    names: frozenset[str]
    classes: tuple[type[nn.Module], ...] = ()
    functions: tuple[Any, ...] = ()
    called: frozenset[str] = frozenset()

    def module(self, module: nn.Module, name: str | None) -> bool:
        """Say whether this module, known as `name`, is wanted."""
        own = class_of(module)
        same = (c is own if own in CLASSES else isinstance(module, c) for c in self.classes)
        return name in self.names or any(same)

    def function(self, value: Any, name: str | None) -> bool:
        """Say whether this function, known as `name`, is wanted."""
        return name in self.called or any(value is f for f in self.functions)

    @property
    def words(self) -> str:
        """What is wanted, in words."""
        named = [*self.names, *self.called - self.names, *(c.__name__ for c in self.classes)]
        return " or ".join([*named, *(getattr(f, "__name__", repr(f)) for f in self.functions)])


def wanted(old: Any) -> Wanted:
    """Return what `old` asks for: a name means every form, a class modules, a function attributes and calls.

    Raises:
        WorkingPapersError: for an unknown name, or what is none of the three.
    """
    if isinstance(old, list | tuple | set | frozenset) and old:
        parts = [wanted(o) for o in old]
        return Wanted(
            frozenset().union(*(p.names for p in parts)),
            tuple(c for p in parts for c in p.classes),
            tuple(f for p in parts for f in p.functions),
            frozenset().union(*(p.called for p in parts)),
        )
    if isinstance(old, str):
        if old not in FORMS:
            try:
                found = component(old)
            except LookupError:
                raise unknown("activation", old, FORMS) from None
            if found.kind != "activation":
                raise WorkingPapersError(f"swap takes out activations, and {old!r} is a {found.kind}")
        return Wanted(frozenset({old}), called=frozenset({old}))
    if inspect.isclass(old) and issubclass(old, nn.Module):
        return Wanted(frozenset(), classes=(old,))
    if isinstance(old, nn.Module) or not callable(old):
        raise WorkingPapersError(
            f"what is swapped is an activation's name, a module class or a function; got {type(old).__name__}"
        )
    name = function_named(old)
    return Wanted(frozenset(), functions=(old,), called=frozenset({name} if name else ()))


def find(model: nn.Module, asked: Wanted) -> list[Place]:
    """Return every place of `model` where an activation stands, in the order of its modules.

    A module that stands in several places is listed at each.  Calls are found by reading the code of each
    module's `forward`; a run may show more.  What has the name of an activation asked for and is not that, or
    cannot be exchanged, is listed with the reason.
    """
    found: list[Place] = []
    known: dict[nn.Module, str | None] = {model: module_named(model)}
    above: dict[nn.Module, tuple[nn.Module, ...]] = {model: ()}
    if known[model] or any(isinstance(model, c) for c in asked.classes):
        return [Place("", "module", known[model] or class_of(model).__name__, repr(model), None, model)]
    for name, module in model.named_modules():
        inside = (*above[module], module)
        for key, child in module._modules.items():
            if child is None:
                continue
            above.setdefault(child, inside)
            if child not in known:
                known[child] = module_named(child, key)
            activation, why = known[child], _fixed(module, child)
            if activation is None and any(isinstance(child, c) for c in asked.classes):
                activation = class_of(child).__name__
            if activation is None:
                activation = _like(child, asked)
                why = f"{type(child).__name__} has the name, but other values or none that can be read"
            if activation:
                detail = type(child).__name__ if any(child.children()) else repr(child)
                found.append(Place(_join(name, key), "module", activation, detail, why, module, key, inside))
        if not known.get(module) and not any(known.get(m) for m in above[module]):
            found += _own(name, module, inside, asked)
    return found


def _own(name: str, module: nn.Module, inside: tuple[nn.Module, ...], asked: Wanted) -> Iterator[Place]:
    """Give the callables that a module holds, the calls that it makes, and what its kernels compute."""
    for key, value in module.__dict__.items():
        if key.startswith("_") or not callable(value):
            continue
        activation, why = function_named(value), None
        if any(value is f for f in asked.functions):
            activation = activation or getattr(value, "__name__", repr(value))
        elif activation is None and isinstance(value, torch.jit.ScriptFunction):
            activation = next((n for n in asked.called if n in str(getattr(value, "name", ""))), None)
            why = "it is a compiled TorchScript function, which cannot be read"
        if activation:
            spelt = getattr(value, "__name__", repr(value))
            yield Place(_join(name, key), "attribute", activation, spelt, why, module, key, inside)
    for activation, reads in _grouped(read_calls(module)).items():
        yield call_place(name, module, activation, reads, inside)
    for activation in _kernels(module):
        why = f"{type(module).__name__} computes it inside a kernel"
        yield Place(name, "call", activation, type(module).__name__, why, module, "", inside)


def _like(module: nn.Module, asked: Wanted) -> str | None:
    """Return the wanted name that the class of a leaf has: the longest name of an activation in it."""
    if any(module.children()) or module._parameters or _kernels(module) or read_calls(module):
        return None
    cls = str(getattr(module, "original_name", class_of(module).__name__)).lower()
    names = [name for name in FORMS if name.replace("_", "") in cls]
    longest = [
        n for n in names if not any(n != o and n.replace("_", "") in o.replace("_", "") for o in names)
    ]
    return next((n for n in longest if n in asked.names), None)


def call_place(
    name: str, module: nn.Module, activation: str, reads: list[Read], inside: tuple[nn.Module, ...]
) -> Place:
    """Return the place of calls that a module makes of one activation."""
    spelt = ", ".join(dict.fromkeys(r.spelt for r in reads)) or "seen in a run"
    lines = ", ".join(f"{r.file}:{r.line}" for r in reads)
    detail = f"{type(module).__name__}.forward calls {spelt}" + (f" ({lines})" if lines else "")
    return Place(name, "call", activation, detail, _unwrappable(module), module, "", inside)


def read_calls(module: nn.Module) -> list[Read]:
    """Return what reading finds of calls in a user's module that are not replaced already."""
    if isinstance(module, fx.GraphModule):
        nodes = [(node_named(n), n.name, at) for at, n in enumerate(module.graph.nodes)]
        return [Read(name, spelt, "graph node", at) for name, spelt, at in nodes if name]
    if type(module).__module__.startswith("torch.") or isinstance(module, torch.jit.ScriptModule):
        return []
    return [r for r in calls(module) if r.activation not in replaced_calls(module)]


def _grouped(reads: list[Read]) -> dict[str, list[Read]]:
    return {
        name: [r for r in reads if r.activation == name]
        for name in dict.fromkeys(r.activation for r in reads)
    }


def _kernels(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.RNN | nn.RNNCell):
        return (str(module.nonlinearity),)
    if isinstance(module, torch.jit.ScriptModule):
        return ()
    shown = any(type(child) in CLASSES for child in module.children())
    fused = "relu" if "ReLU" in type(module).__name__ and _quantised(module) and not shown else None
    return (fused,) if fused else INSIDE_KERNELS.get(type(module), ())


def _quantised(module: nn.Module) -> bool:
    return ".ao.nn." in type(module).__module__ or ".nn.quantized" in type(module).__module__


def _fixed(holder: nn.Module, child: nn.Module) -> str | None:
    """Say why a child of `holder` cannot be exchanged, or None where it can."""
    if "activation_post_process" in child._modules:
        return "it is prepared for quantisation; swap first"
    if isinstance(holder, torch.jit.ScriptModule):
        return "it is in a compiled TorchScript module"
    if _quantised(holder):
        return f"{type(holder).__name__} is fused for quantisation; swap first"
    return None


def _unwrappable(module: nn.Module) -> str | None:
    if "forward" in module.__dict__:
        return "its forward is set on the instance, not on the class"
    return None


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def select(places: list[Place], where: Any) -> list[Place]:
    """Return the places that `where` chooses: a glob or several, a class, a position, a slice, or a function.

    Raises:
        WorkingPapersError: where it is none of these.
    """
    if where is None:
        return places
    known = isinstance(where, str | int | slice | list | tuple) and not isinstance(where, bool)
    if not known and not callable(where):
        raise WorkingPapersError(
            "where is a name pattern or several, a module class, a position, a slice or a function of the place; "
            f"got {where!r}"
        )
    if inspect.isclass(where):
        return [p for p in places if any(isinstance(m, where) for m in (*p.inside, p.held))]
    if callable(where):
        return [p for p in places if where(p)]
    if isinstance(where, slice):
        return places[where]
    parts = list(where) if isinstance(where, list | tuple) else [where]
    positions = {at % len(places) for at in parts if isinstance(at, int) and -len(places) <= at < len(places)}
    patterns = [part for part in parts if isinstance(part, str)]
    return [
        p
        for at, p in enumerate(places)
        if at in positions
        or any(fnmatchcase(name, pattern) for name in (p.name, plain(p.name)) for pattern in patterns)
    ]


@functools.cache
def plain(name: str) -> str:
    """Return a module's name without the prefixes that torch.compile and DistributedDataParallel add."""
    wrappers = ("_orig_mod", "_fsdp_wrapped_module")
    return ".".join(part for part in name.split(".") if part not in wrappers)
