"""Watching one run of a model: which module calls which activation, and on what shapes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.activations import FUNCTIONS, call_named

FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.modules.linear.NonDynamicallyQuantizableLinear)


Seen = tuple[tuple[int, ...], bool]  # the shape of an input, and whether its channels are last


def channels_last(layer: nn.Module) -> bool | None:
    """Say whether a layer's channels are its last dimension (True), the second (False), or that is unknown."""
    if isinstance(layer, FIRST) or "2d" in type(layer).__name__.lower():
        return False
    return True if isinstance(layer, LAST) else None


@dataclass
class Run:
    """What one run showed of every input: its shape, and whether its channels are last.

    Attributes:
        modules: for each module.
        calls: for each activation that a module calls itself.
        in_place: the calls that asked for it by an argument.
    """

    modules: dict[nn.Module, dict[Seen, None]] = field(default_factory=lambda: defaultdict(dict))
    calls: dict[tuple[nn.Module, str], dict[Seen, None]] = field(default_factory=lambda: defaultdict(dict))
    in_place: set[tuple[nn.Module, str]] = field(default_factory=set)


class _Watch(TorchFunctionMode):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.stack: list[nn.Module] = []
        self.last: bool | None = None  # whether channels are last behind the layer that ran before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = call_named(func, args, kwargs) if func in FUNCTIONS else None
        x = args[0] if args else kwargs.get("input")
        if name and self.stack and isinstance(x, Tensor):
            self.run.calls[self.stack[-1], name][self._seen(x)] = None
            if kwargs.get("inplace"):
                self.run.in_place.add((self.stack[-1], name))
        return func(*args, **kwargs)

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.stack.append(module)
        if args and isinstance(args[0], Tensor):
            self.run.modules[module][self._seen(args[0])] = None

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.stack and self.stack[-1] is module:
            self.stack.pop()
        if module._parameters or isinstance(module, FIRST + LAST):
            self.last = channels_last(module)

    def _seen(self, x: Tensor) -> Seen:
        return tuple(x.shape), x.ndim == 3 if self.last is None else self.last


def watch(model: nn.Module, inputs: Any) -> Run:
    """Run `model` once in evaluation mode and return what was seen.

    `inputs` is the argument, a tuple of arguments, or a mapping of arguments by name.
    """
    run = Run()
    mode = _Watch(run)
    handles = [
        hooks.register_module_forward_pre_hook(mode.enter),
        hooks.register_module_forward_hook(mode.leave, always_call=True),
    ]
    try:
        with _evaluating(model), mode:
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return run


def call(model: nn.Module, inputs: Any) -> Any:
    """Call `model` on `inputs`; a failure is one sentence.

    Raises:
        WorkingPapersError: where the model does not take the inputs.
    """
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise WorkingPapersError(f"{type(model).__name__} does not run on these inputs: {said[0]}") from error


class _OutOfPlace(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in FUNCTIONS and kwargs.get("inplace"):
            kwargs["inplace"] = False
        return func(*args, **kwargs)


def reads_overwritten(model: nn.Module, inputs: Any, modules: list[nn.Module]) -> bool:
    """Say whether the model's outputs change when these activations, in place before, leave their input alone."""
    with _evaluating(model):
        expected = call(model, pytree.tree_map(_clone, inputs))
        for module in modules:
            module.inplace = False  # type: ignore[assignment]
        try:
            with _OutOfPlace():
                found = call(model, pytree.tree_map(_clone, inputs))
        finally:
            for module in modules:
                module.inplace = True  # type: ignore[assignment]
    pairs = zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True)
    return not all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


def _clone(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode, eagerly, without gradients, and leave modes and the generator as they were."""
    modes = {module: module.training for module in model.modules()}
    state = torch.get_rng_state()
    try:
        model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.set_rng_state(state)
        for module, mode in modes.items():
            module.training = mode
