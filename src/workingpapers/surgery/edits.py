"""Edits of a model that can be taken back: every one keeps what stood there before."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.changes import ATTRIBUTE, changes
from workingpapers.surgery.intercept import rewritten

HISTORY = "workingpapers_edits"


@dataclass(frozen=True)
class Edit:
    """What stood at `key` of `holder` ("modules" or "attributes"), or its class, its graph, or the model."""

    kind: str
    holder: nn.Module
    key: str
    had: bool
    old: Any


class Editor:
    """Changes models and keeps the way back."""

    def __init__(self) -> None:
        self.edits: list[Edit] = []

    def module(self, holder: nn.Module, key: str, new: nn.Module) -> None:
        """Put `new` among the modules of `holder`, in place of what stands there."""
        self._put("modules", holder._modules, holder, key, new)

    def attribute(self, holder: nn.Module, key: str, new: Any) -> None:
        """Set an attribute that is no module."""
        self._put("attributes", holder.__dict__, holder, key, new)

    def drop(self, holder: nn.Module, key: str) -> Any:
        """Take an attribute that is no module away, and return it."""
        self.edits.append(Edit("attributes", holder, key, True, holder.__dict__.pop(key)))
        return self.edits[-1].old

    def convert(self, holder: nn.Module, cls: type[nn.Module]) -> None:
        """Give `holder` another class."""
        self.edits.append(Edit("class", holder, "", True, Base(type(holder))))
        holder.__class__ = cls

    def graph(self, holder: fx.GraphModule, names: Mapping[str, str]) -> None:
        """Let the graph call modules, by their names, in place of activations."""
        self.edits.append(Edit("graph", holder, "", True, holder.graph))
        holder.graph = rewritten(holder.graph, names)

    def _put(self, kind: str, store: dict[str, Any], holder: nn.Module, key: str, new: Any) -> None:
        self.edits.append(Edit(kind, holder, key, key in store, store.get(key)))
        store[key] = new

    def note(self, model: nn.Module, sentences: Iterable[str]) -> None:
        """Note on `model` what was changed, and keep the edits there for `undo`."""
        self.attribute(model, ATTRIBUTE, [*changes(model), *sentences])
        self.attribute(model, HISTORY, [*model.__dict__.get(HISTORY, []), self.edits])

    def take_back(self) -> None:
        """Undo all edits."""
        _undo(self.edits)


@dataclass(frozen=True)
class Base:
    """A class that copies and pickles by way of `make(base)` where it is one that we made."""

    cls: type[nn.Module]

    def __deepcopy__(self, memo: Any) -> "Base":
        return self

    def __reduce__(self) -> Any:
        made = self.cls.__dict__.get("workingpapers_make")
        return (Base, (self.cls,)) if made is None else (_remade, (made, self.cls.__bases__[0]))


def _remade(make: Any, base: type[nn.Module]) -> Base:
    return Base(make(base))


def undo(model: nn.Module) -> nn.Module:
    """Take the latest `swap` in `model` back: the very objects of before stand in their places again.

    Returns the model, or what it was where the model itself was an activation.  Called again, it takes back
    the swap before.

    Raises:
        WorkingPapersError: where nothing was swapped.
    """
    history = model.__dict__.get(HISTORY)
    if not history:
        raise WorkingPapersError(f"nothing was swapped in this {type(model).__name__}")
    return _undo(history[-1]) or model


def _undo(edits: list[Edit]) -> nn.Module | None:
    whole = None
    for edit in reversed(edits):
        if edit.kind == "model":
            whole = edit.old
        elif edit.kind == "graph":
            edit.holder.graph = edit.old
        elif edit.kind == "class":
            edit.holder.__class__ = edit.old.cls
        else:
            store = edit.holder._modules if edit.kind == "modules" else edit.holder.__dict__
            if isinstance(edit.old, nn.Module):
                _follow(edit.old, store.get(edit.key), edit.holder)
            if edit.had:
                store[edit.key] = edit.old
            else:
                del store[edit.key]
    return whole


def _follow(old: nn.Module, new: Any, holder: nn.Module) -> None:
    """Bring a module that stood aside to the mode and the device that the model has now."""
    if isinstance(new, nn.Module):
        old.train(new.training)
    device = device_and_dtype(new if isinstance(new, nn.Module) else holder, holder)[0]
    if any(t.device != device for t in [*old.parameters(), *old.buffers()]):
        old.to(device)


def device_and_dtype(*modules: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype of the first floating-point tensor of the first module that has any."""
    for module in modules:
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()
