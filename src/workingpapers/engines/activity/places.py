"""The places of a network whose values are watched: layers with weights, norms and activations, called or held."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from workingpapers.surgery.activations import FUNCTIONS, call_named, module_named
from workingpapers.surgery.running import channels_last

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

# what a place is, its name, the module that it belongs to, its activation's name, what it read, what it gave, and
# whether its units are the last dimension
Seen = Callable[[str, str, nn.Module, str | None, Tensor | None, Tensor, bool], None]


def kind_of(module: nn.Module) -> str | None:
    """Return "norm", "layer" for a module without parts that has a weight matrix or filters, or None."""
    if isinstance(module, NORMS) or type(module).__name__.endswith(("RMSNorm", "LayerNorm")):
        return "norm"
    weight = getattr(module, "weight", None)
    bare = not any(module.children()) and isinstance(weight, Tensor) and weight.ndim >= 2
    return "layer" if bare and not isinstance(module, nn.Embedding) else None


class _Watching(TorchFunctionMode):
    """Follows which module runs, and tells of its layers, norms and activations in the order in which they ran."""

    def __init__(self, model: nn.Module, seen: Seen) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.activations = {module: module_named(module, name) for name, module in model.named_modules()}
        self.kinds = {module: kind_of(module) for module in self.names}
        self.seen = seen
        self.stack: list[nn.Module] = []
        self.runs: Counter[str] = Counter()
        self.last: bool | None = None  # whether channels are last behind the layer that ran before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = call_named(func, args, kwargs) if func in FUNCTIONS else None
        if name is None or not self.stack or any(self.activations.get(m) for m in self.stack[-2:]):
            return func(*args, **kwargs)
        x = args[0] if args else kwargs.get("input")
        before = x.clone() if _in_place(func, kwargs) and isinstance(x, Tensor) else x
        y = func(*args, **kwargs)
        if isinstance(y, Tensor) and isinstance(before, Tensor) and y.is_floating_point() and y.ndim > 1:
            owner = self.stack[-1]
            where = f"{self.names.get(owner, '')}:{name}"
            self._tell("activation", where, owner, name, before, y)
        return y

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.stack.append(module)
        held = self.activations.get(module)
        if held and getattr(module, "inplace", False) and args and isinstance(args[0], Tensor):
            module.__dict__[_BEFORE] = args[0].clone()

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.stack and self.stack[-1] is module:
            self.stack.pop()
        if module not in self.names:
            return
        before = module.__dict__.pop(_BEFORE, args[0] if args else None)
        if module._parameters or channels_last(module) is not None:
            self.last = channels_last(module)
        name, held, kind = self.names[module], self.activations[module], self.kinds[module]
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim < 2:
            return
        if held and held != "identity":
            if not any(self.activations.get(outer) for outer in self.stack):
                self._tell("activation", name, module, held, before, output)
        elif kind:
            self._tell(kind, name, module, None, args[0] if args and kind == "layer" else None, output)

    def _tell(
        self, kind: str, name: str, module: nn.Module, held: str | None, before: Any, output: Tensor
    ) -> None:
        self.runs[name] += 1
        name = name if self.runs[name] == 1 else f"{name}#{self.runs[name]}"
        last = output.ndim == 3 if self.last is None else self.last
        read = isinstance(before, Tensor) and before.is_floating_point() and before.ndim == output.ndim
        before = before if read else None
        self.seen(kind, name, module, held, before, output, last or output.ndim == 2)


_BEFORE = "workingpapers_before"


def _in_place(func: Any, kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("inplace")) or FUNCTIONS[func][1]


@contextmanager
def watching(model: nn.Module, seen: Seen) -> Iterator[Callable[[], None]]:
    """Tell `seen` of every place that runs; what is given begins a new pass, in which names start anew.

    Modes and the generator are as before afterwards; the model runs in evaluation mode, eagerly.
    """
    mode = _Watching(model, seen)

    def begin() -> None:
        mode.runs.clear()
        mode.stack.clear()
        mode.last = None

    handles = [
        hooks.register_module_forward_pre_hook(mode.enter),
        hooks.register_module_forward_hook(mode.leave, always_call=True),
    ]
    modes = {module: module.training for module in model.modules()}
    state = torch.get_rng_state()
    try:
        model.eval()
        with torch.compiler.set_stance("force_eager"), mode:
            yield begin
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
            module.__dict__.pop(_BEFORE, None)
        torch.set_rng_state(state)
