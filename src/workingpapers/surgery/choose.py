"""Choosing modules of a user's model: by class, by name, or by a function of both."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from workingpapers.errors import WorkingPapersError, unknown

Modules = type[nn.Module] | tuple[type[nn.Module], ...] | Sequence[str] | Callable[[str, nn.Module], bool]


def choose(model: nn.Module, modules: Modules | None) -> list[tuple[str, nn.Module]]:
    """Return the chosen modules of `model` with the name of each, a shared module once, by its first name.

    Args:
        model: any model.
        modules: a class or a tuple of classes, names as in `named_modules`, or a function of name and module;
            None chooses every module without parts of its own.

    Raises:
        WorkingPapersError: where a name is unknown or no module is of the chosen sort.
    """
    every = list(model.named_modules())
    chooser: Any = modules
    if chooser is None:
        found = [(n, m) for n, m in every if not any(m.children())]
    elif isinstance(chooser, type) or (
        isinstance(chooser, tuple) and all(isinstance(m, type) for m in chooser)
    ):
        found = [(n, m) for n, m in every if isinstance(m, chooser)]
    elif callable(chooser):
        found = [(n, m) for n, m in every if chooser(n, m)]
    else:
        known = dict(every)
        wanted = [chooser] if isinstance(chooser, str) else list(chooser)
        for name in wanted:
            if name not in known:
                raise unknown("module of the model", name, known)
        found = [(name, known[name]) for name in wanted]
    if not found:
        raise WorkingPapersError(f"{type(model).__name__} has no module of the chosen sort")
    return found
