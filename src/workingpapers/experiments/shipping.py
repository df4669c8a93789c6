"""Sending a user's function to another process, whose modules are not the same.

A function of a script, a notebook or a file that was loaded by path goes by value, with all it names; one
of an importable module goes by name.  So the user's script is never run again in a worker.
"""

import contextlib
import importlib.machinery
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.versions import is_library

PACKAGE = "workingpapers"


def ship(run: Callable[..., Any], far: bool = False) -> bytes:
    """Pack the function `run` for other processes (`far`: on other machines, which lack the user's files).

    What cannot be packed raises one sentence.
    """
    import cloudpickle

    with _by_value(_unfindable(far)):
        try:
            return bytes(cloudpickle.dumps(run))
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError) as error:
            name = getattr(run, "__qualname__", type(run).__name__)
            raise WorkingPapersError(
                f"the function {name!r} cannot be sent to worker processes ({error}); make "
                "such objects inside it, or run in this process with workers=0"
            ) from None


def unpacked(payload: bytes) -> Callable[..., Any]:
    """Return the function that `ship` packed, unpacked anew at every call.

    So runs do not share what the function keeps in its globals, and their results cannot depend on which
    worker made which.
    """

    def run(**arguments: Any) -> Any:
        return pickle.loads(payload)(**arguments)

    return run


def _unfindable(far: bool) -> list[ModuleType]:
    """Return the loaded modules that another process could not import: files that were loaded by path.

    On another machine it is all that is not installed.
    """
    folders = {str(Path(folder or ".").resolve()) for folder in sys.path}
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if (
            "." in name
            or name in ("__main__", "__mp_main__")
            or not isinstance(file, str)
            or file.endswith(".so")
        ):
            continue
        path = Path(file)
        home = path.parent.parent if path.name == "__init__.py" else path.parent
        own_name = path.parent.name if path.name == "__init__.py" else path.stem
        missing = not (str(home) in folders and own_name == name) and not _known_to_finders(name)
        if missing or (far and name != PACKAGE and not is_library(file)):
            found.append(module)
    return found


def _known_to_finders(name: str) -> bool:
    """Tell whether an import of `name` would succeed; what is in `sys.modules` already does not count."""
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        return any(
            finder.find_spec(name, None)
            for finder in sys.meta_path
            if finder is not importlib.machinery.BuiltinImporter
        )
    return False


@contextlib.contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    import cloudpickle

    marked = [
        m
        for m in modules
        if m.__name__ in sys.modules and m.__name__ not in cloudpickle.list_registry_pickle_by_value()
    ]
    for module in marked:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in marked:
            cloudpickle.unregister_pickle_by_value(module)
