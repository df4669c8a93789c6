"""Following units through one run: marks on tensors, and which operations pass them on."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from workingpapers.surgery._unit_moves import Held, moved
from workingpapers.surgery.activations import FUNCTIONS, call_named, module_named

MARK = "workingpapers_units"
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

MULTIPLYING = {"mul", "rmul", "imul", "multiply"}
DIVIDING = {"div", "truediv", "itruediv", "true_divide"}
ADDING = {"add", "radd", "iadd", "sub", "rsub", "isub", "subtract"}
CUTTING = {"chunk", "split", "tensor_split", "unbind"}


@dataclass
class Path:
    """What was found of one layer's units."""

    count: int
    readers: dict[tuple[str, int, int, int], None] = field(default_factory=dict)
    norms: dict[tuple[str, int, int], nn.Module] = field(default_factory=dict)
    activations: dict[tuple[str, int, int], nn.Module] = field(default_factory=dict)
    partners: dict[str, None] = field(default_factory=dict)
    open: bool = False


def transposed(layer: nn.Module) -> bool:
    """Say whether a layer keeps its weight as (in, out), as GPT-2's does in Hugging Face's code."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def is_layer(module: nn.Module) -> bool:
    """Say whether a module is a layer whose units are followed."""
    return isinstance(module, LAYERS) or transposed(module)


def is_norm(module: nn.Module) -> bool:
    """Say whether a module normalises."""
    return isinstance(module, NORMS) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))


class Tracing(TorchFunctionMode):
    """Watches one run; `found` has what reads the units of each layer by the layer's name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.modules = dict(model.named_modules())
        self.names = {module: name for name, module in self.modules.items()}
        self.activations = {module: module_named(module, name) for name, module in self.modules.items()}
        self.found: dict[str, Path] = {}
        self.stack: list[nn.Module] = []
        self.runs: Counter[str] = Counter()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs inside."""
        handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def mark(value: Tensor, held: Held | None) -> None:
        """Note what a tensor holds."""
        if held is not None or MARK in value.__dict__:
            setattr(value, MARK, held)

    @staticmethod
    def held(value: Any) -> Held | None:
        """Return what a tensor holds, if that is known."""
        found: Held | None = value.__dict__.get(MARK) if isinstance(value, Tensor) else None
        return found

    def leaves_by(self, output: Any) -> None:
        """Take the model's output: units in it reach more than layers."""
        tensors = [v for v in pytree.tree_leaves(_plain(output)) if isinstance(v, Tensor)]
        self._open(tensors)

    def _open(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            held = self.held(tensor)
            for name, _ in held.sources if held else ():
                self.found[name].open = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inner = any(self._whole(module) for module in self.stack[-3:])
        tensors = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        marked = [] if inner else [(v, h) for v in tensors if (h := self.held(v)) is not None]
        shape = tuple(marked[0][0].shape) if marked else ()
        result = func(*args, **kwargs)
        if marked:
            self._pass(func, args, kwargs, tensors, marked, shape, result)
        return result

    def _whole(self, module: nn.Module) -> bool:
        """Say whether a module is taken as a whole, so that its own calls do not matter."""
        return is_layer(module) or is_norm(module) or bool(self.activations.get(module))

    def _pass(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        tensors: list[Tensor],
        marked: list[tuple[Tensor, Held]],
        shape: tuple[int, ...],
        result: Any,
    ) -> None:
        out = [v for v in pytree.tree_leaves(result) if isinstance(v, Tensor)]
        if not out:
            return
        name = str(getattr(func, "__name__", "")).strip("_")
        activation = call_named(func, args, kwargs) if func in FUNCTIONS else None
        held: Held | None = None
        if activation is not None and marked[0][0] is (args[0] if args else kwargs.get("input")):
            held = marked[0][1]
            owner = self.stack[-1] if self.stack else nn.Identity()
            self._note(held, f"{self.names.get(owner, '')}:{activation}", owner)
        elif name in CUTTING and len(tensors) == 1:
            self._cut(marked[0][1], shape, result)
            return
        elif name in MULTIPLYING or name in DIVIDING:
            held = self._product(name, args, marked)
        elif name in ADDING:
            rest = [v for v in tensors if v is not marked[0][0]]
            held = marked[0][1] if all(v.ndim == 0 or isinstance(v, nn.Parameter) for v in rest) else None
        elif len(marked) == 1 and tensors and tensors[0] is marked[0][0]:
            held = moved(name, marked[0][1], shape, tuple(out[0].shape), args, kwargs)
        if held is None or out[0].ndim <= held.dim or out[0].shape[held.dim] != held.count * held.block:
            held = None
            self._open([v for v, _ in marked] + tensors)
        for v in out:
            self.mark(v, held)

    def _product(self, name: str, args: Any, marked: list[tuple[Tensor, Held]]) -> Held | None:
        first = marked[0][1]
        if len(marked) == 1:
            return first if name in MULTIPLYING or (args and args[0] is marked[0][0]) else None
        second = marked[1][1]
        alike = (first.dim, first.count, first.block) == (second.dim, second.count, second.block)
        if not alike or name not in MULTIPLYING:
            return None
        for one, other in ((first, second), (second, first)):
            for source, _ in one.sources:
                self.found[source].partners |= {n: None for n, _ in other.sources if n != source}
        return replace(first, sources=tuple(dict.fromkeys(first.sources + second.sources)))

    def _cut(self, held: Held, shape: tuple[int, ...], result: Any) -> None:
        """Follow the parts of a tensor that is cut along the units, as fused gated layers are."""
        at = 0
        for part in result:
            same = held.block == 1 and part.ndim == len(shape)
            if same and part.shape[held.dim] != shape[held.dim]:
                sources = tuple((name, start + at) for name, start in held.sources)
                at += part.shape[held.dim]
                self.mark(part, replace(held, sources=sources, count=part.shape[held.dim]))
            elif same:
                self.mark(part, held)
            else:
                for name, _ in held.sources:
                    self.found[name].open = True
                self.mark(part, None)

    def _note(self, held: Held, name: str, module: nn.Module) -> None:
        self.runs[name] += 1
        name = name if self.runs[name] == 1 else f"{name}#{self.runs[name]}"
        for source, start in held.sources:
            self.found[source].activations[name, start, held.count] = module

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.stack.append(module)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.stack and self.stack[-1] is module:
            self.stack.pop()
        outer = any(self._whole(m) for m in self.stack[-3:])
        if module not in self.names or outer or not self._whole(module) or not isinstance(output, Tensor):
            return
        held = self.held(args[0]) if args else None
        if is_layer(module):
            self._layer(module, args[0], held, output)
        elif held is not None and is_norm(module):
            fits = held.block == 1 and held.dim == (output.ndim - 1 if _over_last(module) else 1)
            for source, start in held.sources if fits else ():
                self.found[source].norms[self.names[module], start, held.count] = module
            if not fits:
                self._open([args[0]])
            self.mark(output, held if fits else None)
        elif held is not None:
            if self.activations[module] != "identity":
                self._note(held, self.names[module], module)
            self.mark(output, held)

    def _layer(self, layer: Any, x: Tensor, held: Held | None, output: Tensor) -> None:
        linear = isinstance(layer, nn.Linear) or transposed(layer)
        dim = -1 if linear else -layer.weight.ndim + 1
        if held is not None:
            if held.dim == x.ndim + dim and x.shape[dim] == held.count * held.block:
                for source, start in held.sources:
                    self.found[source].readers[self.names[layer], start, held.count, held.block] = None
            else:
                self._open([x])
        name, count = self.names[layer], output.shape[dim]
        self.found.setdefault(name, Path(count))
        self.mark(output, Held(((name, 0),), output.ndim + dim, count))


def _over_last(norm: nn.Module) -> bool:
    return not isinstance(norm, nn.modules.batchnorm._NormBase | nn.GroupNorm)


def _plain(output: Any) -> Any:
    """Return what a model gives as containers that can be searched."""
    return (
        dict(output)
        if hasattr(output, "keys")
        else getattr(output, "__dict__", output)
        if not isinstance(output, Tensor | list | tuple)
        else output
    )
