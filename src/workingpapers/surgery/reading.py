"""Reading a module's own code, as Python compiled it, for calls of activations."""

import builtins
import dis
import functools
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from workingpapers.surgery.activations import FORMS, FUNCTIONS, SPELLINGS, function_named

UNKNOWN = object()  # a value that only a run would tell
SELF = object()
TRANSPARENT = ("PUSH_NULL", "CACHE", "NOP", "COPY", "EXTENDED_ARG", "RESUME", "PRECALL", "KW_NAMES")
FOREIGN = ("torch", "numpy", "builtins", "einops", "functools", "typing", "collections", "math")


@dataclass(frozen=True)
class Read:
    """A call that the code makes: of which activation, how it is spelt, and where."""

    activation: str
    spelt: str
    file: str
    line: int


def calls(module: nn.Module) -> list[Read]:
    """Return the calls of torch's activations that `module` makes in its own `forward` and what that calls.

    Followed are its methods, functions of the user's that are called by name, and functions that the module
    holds in lists and dictionaries; not the modules inside, which have code of their own.
    """
    reader = _Reader(module)
    for function in _forwards(module):
        reader.read(function, method=True)
    return reader.found


def _forwards(module: nn.Module) -> list[Any]:
    """Return every `forward` of the module's classes: a later one may be reached by super()."""
    return [
        c.__dict__["forward"] for c in type(module).__mro__ if "forward" in c.__dict__ and c is not nn.Module
    ]


class _Reader:
    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.found: list[Read] = []
        self.seen: set[Any] = set()

    def read(self, function: Any, *, method: bool) -> None:
        """Read a function, below its decorators."""
        if isinstance(function, staticmethod | classmethod):
            function = function.__func__
        if isinstance(function, functools.partial):
            function = function.func
        inner = inspect.unwrap(function) if callable(function) else function
        inner = getattr(inner, "__func__", inner)
        if isinstance(inner, types.FunctionType) and inner.__code__ not in self.seen:
            cells = {
                n: _cell(c) for n, c in zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True)
            }
            names = inner.__code__.co_varnames
            self._code(inner.__code__, inner.__globals__, cells, names[0] if method and names else "")

    def _code(self, code: types.CodeType, scope: dict[str, Any], cells: dict[str, Any], own: str) -> None:
        self.seen.add(code)
        steps = list(dis.get_instructions(code))
        value, line = UNKNOWN, code.co_firstlineno
        for at, step in enumerate(steps):
            line = (step.positions.lineno if step.positions else None) or line
            if step.opname in TRANSPARENT:
                continue
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                value = self._attribute(value, step.argval)
            elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                value = scope.get(step.argval, getattr(builtins, step.argval, UNKNOWN))
            elif step.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF")):
                names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
                value = SELF if own and names[-1] == own else cells.get(names[-1], UNKNOWN)
            else:
                value = UNKNOWN
            self._note(value, step, _approximate(steps[at : at + 15]), code, line)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType) and constant not in self.seen:
                self._code(constant, scope, cells, own)

    def _attribute(self, value: Any, name: str) -> Any:
        if value is SELF:
            return self._own(name)
        if value is UNKNOWN:
            return _Method(name) if name in SPELLINGS else UNKNOWN
        if isinstance(value, nn.Module):
            return value._modules.get(name) or value.__dict__.get(name, UNKNOWN)
        if isinstance(value, types.ModuleType | type) or value in _TORCH_OPS:
            return getattr(value, name, UNKNOWN)
        return UNKNOWN

    def _own(self, name: str) -> Any:
        m = self.module
        for store in (m._modules, m.__dict__):
            if name in store:
                return store[name]
        found = inspect.getattr_static(type(m), name, UNKNOWN)
        return found.__func__ if isinstance(found, staticmethod) else found

    def _note(self, value: Any, step: dis.Instruction, tanh: bool, code: types.CodeType, line: int) -> None:
        held = self.module.__dict__.get(str(step.argval), UNKNOWN)
        if held is value and function_named(value):
            return  # an attribute, which is replaced itself
        for item in _contents(value):
            name = None
            if isinstance(item, _Method):
                name, spelt = SPELLINGS[item.name], f".{item.name}()"
            elif _is_function(item) and item in FUNCTIONS:
                name, spelt = FUNCTIONS[item][0], getattr(item, "__name__", str(item))
            if name:
                name = "gelu_tanh" if name == "gelu" and tanh else name
                read = Read(name, spelt, Path(code.co_filename).name, line)
                None if read in self.found else self.found.append(read)
            elif not isinstance(item, nn.Module | type) and _is_users(_called(item)):
                self.read(_called(item), method=False)
            elif _is_users(item):
                method = getattr(type(self.module), getattr(item, "__name__", ""), None) is item
                self.read(item, method=method)


class _Method(str):
    """The name of a method that is called on something known only in a run, such as a tensor."""

    @property
    def name(self) -> str:
        return str(self)


def _contents(value: Any) -> Iterator[Any]:
    """Give the value, or what a list, tuple or dictionary that a module holds contains."""
    if isinstance(value, dict):
        yield from (v for v in value.values() if len(value) < 100)
    elif isinstance(value, list | tuple):
        yield from value[:100]
    elif isinstance(value, functools.partial):
        yield value.func
    else:
        yield value


def _is_function(value: Any) -> bool:
    kinds = types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType
    return isinstance(value, kinds) or type(value).__module__ == "torch._ops"


def _is_users(value: Any) -> bool:
    """Say whether this is a Python function that is not a library's."""
    function = value.__func__ if isinstance(value, types.MethodType | staticmethod | classmethod) else value
    if not isinstance(function, types.FunctionType):
        return False
    return (function.__module__ or "").split(".")[0] not in FOREIGN


def _called(value: Any) -> Any:
    """Return what runs when an object is called, if its class says so."""
    return inspect.getattr_static(type(value), "__call__", None)


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return UNKNOWN


def _approximate(steps: list[dis.Instruction]) -> bool:
    """Say whether a call of gelu that begins here asks for its tanh formula."""
    return any(s.argval == "tanh" and s.opname == "LOAD_CONST" for s in steps)


def _torch_ops() -> tuple[Any, ...]:
    import torch

    packets = (getattr(torch.ops.aten, base, None) for _, base in FORMS.values() if base)
    return (torch.ops, torch.ops.aten, *(p for p in packets if p is not None))


_TORCH_OPS = _torch_ops()
