"""The version of a function's code, so that a changed experiment is run anew and a reformatted one is not.

A function of an importable module has the version of its whole file: the syntax tree without docstrings
(comments and layout are not in it).  A function of a script or a notebook has the version of its own
bytecode and of all that it names there: functions, classes, values.  So a script may ask for more seeds,
or a notebook be restarted, and the runs made before still count.
"""

import ast
import dis
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_PLAIN = (int, float, complex, str, bytes, type(None), type(...))
_CLASS_NOISE = {
    "__doc__",
    "__module__",
    "__dict__",
    "__weakref__",
    "__firstlineno__",
    "__static_attributes__",
    "__abstractmethods__",
    "_abc_impl",
}
_TAKES_ARGUMENTS_OR_YIELDS = 0x04 | 0x08 | 0x20  # the flags of a code object that change what it does


def code_version(*functions: Callable[..., Any]) -> str:
    """Return a hash of the code of `functions`, with what they close over; comments do not count.

    Of the modules that an importable file imports nothing is counted: name their functions here as well
    where they decide the result.
    """
    parts = [_Reader().read(function, told=True) for function in functions]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class _Reader:
    """Turns objects into nested tuples that are the same in every process exactly if the objects are.

    `told` marks what the caller named: its file counts even where it belongs to an installed library.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, Any]] = {}  # keeps the objects too, or their ids would be given anew

    def read(self, value: Any, told: bool = False) -> Any:
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, tuple):
            return ("tuple", [self.read(item) for item in value])
        if isinstance(value, set | frozenset):
            return ("set", sorted(repr(self.read(item)) for item in value))
        if id(value) in self._seen:  # functions may name each other
            return ("again", self._seen[id(value)][0])
        self._seen[id(value)] = (len(self._seen), value)
        for kinds, reader in (
            (functools.partial, self._partial),
            (types.MethodType, self._method),
            (types.FunctionType, self._function),
            (types.ModuleType, self._module),
            (type, self._class),
        ):
            if isinstance(value, kinds):
                return reader(value, told)
        if isinstance(value, types.CodeType):
            return self._bytecode(value)
        return self._data(value, told)

    def _partial(self, value: Any, told: bool) -> Any:
        return ("partial", self.read(value.func, told), self.read(value.args), self.read(value.keywords))

    def _method(self, value: Any, told: bool) -> Any:
        return ("method", self.read(value.__func__, told), self.read(value.__self__, told))

    def _module(self, value: Any, told: bool) -> Any:
        return ("module", value.__name__, _own_tree(getattr(value, "__file__", None), told))

    def _function(self, function: Any, told: bool) -> Any:
        closed = [self.read(cell.cell_contents, told) for cell in function.__closure__ or () if _filled(cell)]
        path = function.__code__.co_filename
        if function.__module__ != "__main__":
            name = (function.__module__, function.__qualname__)
            if is_library(path) and not told:
                return ("library", *name)
            if tree := _tree(path):
                return ("file", *name, tree, closed)
        scope = function.__globals__
        named = [
            (name, self.read(scope[name])) for name in sorted(_names(function.__code__)) if name in scope
        ]
        defaults = self.read((function.__defaults__, function.__kwdefaults__))
        return ("code", self._bytecode(function.__code__), closed, defaults, named)

    def _class(self, cls: Any, told: bool) -> Any:
        name = (cls.__module__, cls.__qualname__)
        module = sys.modules.get(cls.__module__)
        if cls.__module__ != "__main__" and module is not None:
            return ("class", *name, _own_tree(getattr(module, "__file__", None), told))
        body = [(key, self.read(item)) for key, item in sorted(vars(cls).items()) if key not in _CLASS_NOISE]
        return ("class", *name, self.read(cls.__bases__), body)

    def _bytecode(self, code: types.CodeType) -> Any:
        """Return the instructions with their arguments spelled out.

        Positions in the table of constants would not do: they move when a docstring comes or goes.
        """
        steps = [(step.opname, self.read(step.argval)) for step in dis.get_instructions(code)]
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return (arguments, code.co_flags & _TAKES_ARGUMENTS_OR_YIELDS, steps, code.co_exceptiontable)

    def _data(self, value: Any, told: bool) -> Any:
        if isinstance(value, Mapping):
            items = [(repr(self.read(key)), self.read(item)) for key, item in value.items()]
            return ("dict", sorted(items, key=lambda item: item[0]))
        if isinstance(value, list):
            return ("list", [self.read(item) for item in value])
        if isinstance(value, property):
            return ("property", self.read((value.fget, value.fset, value.fdel)))
        if hasattr(value, "__wrapped__"):  # a cached function, a static or class method
            return ("wrapped", self.read(value.__wrapped__, told))
        if type(value).__module__ == "torch" and hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        if hasattr(value, "tobytes") and hasattr(value, "dtype"):
            return ("array", str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest())
        name = (
            getattr(value, "__module__", ""),
            getattr(value, "__qualname__", getattr(value, "__name__", "")),
        )
        kind = type(value)
        home = getattr(sys.modules.get(kind.__module__), "__file__", None) or "<frozen"
        state = getattr(value, "__dict__", None) if told or not is_library(home) else None
        return ("object", name, self.read(kind, told), self.read(state))


def _names(code: types.CodeType) -> set[str]:
    """Return the names that `code`, or a function inside it, may look up globally."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a name that is assigned later
        return False
    return True


@functools.lru_cache(maxsize=1)
def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def is_library(path: str) -> bool:
    """Tell whether the file at `path` belongs to Python or an installed package other than this one."""
    ours = str(Path(__file__).parents[1])
    return path.startswith(("<frozen", *_library_folders())) and not path.startswith(ours)


def _own_tree(path: str | None, told: bool) -> str | None:
    """Return the tree of a file that belongs to the user, None for a library's (unless the caller named it)."""
    return None if not path or (is_library(path) and not told) else _tree(path)


def _tree(path: str) -> str | None:
    """Return the hash of the syntax tree of the file at `path`, None where there is no such Python file."""
    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        return None
    source = file.read_bytes()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # changed on the disk since it was imported
        return hashlib.sha256(source).hexdigest()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
