"""Where the convolutions of a model can be masked: what normalises and activates each one's output, in one run."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from workingpapers.surgery.activations import CLASSES, call_named, module_named
from workingpapers.surgery.running import call
from workingpapers.surgery.units import units_of

NAMED = {name: cls for cls, name in CLASSES.items()}


@dataclass(frozen=True)
class ConvPlace:
    """A convolution whose filters can be skipped.

    Attributes:
        name: of the convolution.
        norm: name of the batch norm that alone reads its output, or None.
        activation: what alone reads that, as a module of its own; nn.Identity where it is something else.
        source: name of the convolution whose filters are this one's input channels, or None.
    """

    name: str
    norm: str | None
    activation: nn.Module
    source: str | None


@dataclass
class _Value:
    """A tensor of the run, and the calls that read it."""

    readers: list["_Call"] = field(default_factory=list)


@dataclass
class _Call:
    """A call in the run: the activation that it computes, if any, and the module that made it."""

    activation: str | None
    owner: nn.Module | None
    result: _Value


class _Readers(TorchFunctionMode):
    """Follows which calls read which tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[nn.Module] = []
        self.current: dict[int, _Value] = {}
        self.kept: list[Tensor] = []  # as long as a tensor lives no other has its id
        self.given: dict[nn.Module, list[_Value]] = defaultdict(list)
        self.taken: dict[nn.Module, list[_Value]] = defaultdict(list)

    def value(self, tensor: Tensor) -> _Value:
        """Return what is known of a tensor."""
        self.kept.append(tensor)
        return self.current.setdefault(id(tensor), _Value())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [self.value(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        result = func(*args, **kwargs)
        found = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]
        if found:
            made = _Call(call_named(func, args, kwargs), self.stack[-1] if self.stack else None, _Value())
            for value in read:
                value.readers.append(made)
            for tensor in found:  # one that is overwritten has new readers from here on
                self.kept.append(tensor)
                self.current[id(tensor)] = made.result
        return result

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.stack.append(module)
        if args and isinstance(args[0], Tensor):
            self.taken[module].append(self.value(args[0]))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.stack and self.stack[-1] is module:
            self.stack.pop()
        if isinstance(output, Tensor):
            self.given[module].append(self.value(output))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs inside."""
        handles = [
            hooks.register_module_forward_pre_hook(self.enter),
            hooks.register_module_forward_hook(self.leave, always_call=True),
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def conv_places(model: nn.Module, inputs: Any) -> list[ConvPlace]:
    """Run a copy of `model` and return the places of 2d convolutions with filters to skip, in the order they ran.

    Those that run once, have several filters, are not the last layer, and stand before an activation, or alone
    read their input (the last one of a residual block does, the shortcut beside it does not).
    """
    model = copy.deepcopy(model).eval()
    run = _Readers()
    with run.watching():
        call(model, inputs)
    names = {module: name for name, module in model.named_modules()}
    layers = [m for m in run.given if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    units = units_of(model, inputs)
    sources = {r.name: name for name, unit in units.items() for r in unit.readers if r.block == 1}
    found = []
    for conv in layers[:-1]:
        if not isinstance(conv, nn.Conv2d) or len(run.given[conv]) != 1 or conv.out_channels < 2:
            continue
        value, norm = run.given[conv][0], None
        reader = value.readers[0].owner if len(value.readers) == 1 else None
        if isinstance(reader, nn.modules.batchnorm._BatchNorm) and len(run.given[reader]) == 1:
            value, norm = run.given[reader][0], names[reader]
        activation = _activation(value, names)
        alone = len(run.taken[conv][0].readers) == 1 and bool(value.readers)
        if alone or not isinstance(activation, nn.Identity):
            found.append(ConvPlace(names[conv], norm, activation, sources.get(names[conv])))
    return found


def _activation(value: _Value, names: dict[nn.Module, str]) -> nn.Module:
    """Return the activation that alone reads a value, without a trace of the model, or nn.Identity."""
    reader = value.readers[0] if len(value.readers) == 1 else None
    if reader is None or reader.activation not in NAMED:
        return nn.Identity()
    owner = reader.owner
    if owner is not None and module_named(owner, names.get(owner, "")) and not [*owner.parameters()]:
        own = copy.deepcopy(owner)
        if hasattr(own, "inplace"):
            own.inplace = False  # type: ignore[assignment]
        return own
    held = NAMED[reader.activation]()
    return nn.Identity() if [*held.parameters()] else held
