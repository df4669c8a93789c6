"""A model run twice: once as it is, noting every decision, then as the affine system of those decisions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.interpret._frozen import AFFINE, WITHOUT_CONSTANT, Answer, first, freezer, name_of


class Record(TorchFunctionMode):
    """While it is entered, nonlinear calls run as ever, and their decisions are kept, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[tuple[str, Answer, bool]] = []  # (name, answer, whether it works in place)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a call that torch makes."""
        kwargs = kwargs or {}
        freeze = freezer(func, args, kwargs) if isinstance(first(args, kwargs), Tensor) else None
        if freeze is None:
            return func(*args, **kwargs)
        value, answer = freeze(func, args, kwargs)
        here = isinstance(value, Tensor) and value.data_ptr() == first(args, kwargs).data_ptr()
        self.answers.append((name_of(func), answer, here and value.numel() > 0))
        return value


class Replay(TorchFunctionMode):
    """While it is entered, nonlinear calls get the answers of a record, one after the other.

    `modules` is the stack of the names of the modules that run; with `scales`, the constants that a call adds are
    multiplied by a number for each input, kept there by the name of the module and 1 at first.
    """

    def __init__(self, record: Record, scales: dict[str, Tensor] | None = None, inputs: int = 1) -> None:
        super().__init__()
        self.record, self.scales, self.inputs = record, scales, inputs
        self.modules: list[str] = []
        self.place = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a call that torch makes."""
        kwargs = kwargs or {}
        name = name_of(func)
        if not isinstance(first(args, kwargs), Tensor):
            return func(*args, **kwargs)
        if freezer(func, args, kwargs) is None:
            value = func(*args, **kwargs)
            return self._scaled(value, func, args, kwargs) if name in AFFINE else value
        if self.place == len(self.record.answers) or self.record.answers[self.place][0] != name:
            raise WorkingPapersError(
                f"the model called {name} in the replay where it did not on the first input: "
                "it decides by its values which way to go, and has no linear interpreter"
            )
        _, answer, here = self.record.answers[self.place]
        self.place += 1
        value = answer(*args, **kwargs)
        value = value if name in WITHOUT_CONSTANT else self._scaled(value, answer, args, kwargs)
        return first(args, kwargs).copy_(value) if here else value

    def _scaled(self, value: Any, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the value with the constant that the call adds multiplied by its module's scale."""
        if self.scales is None:
            return value
        zero = torch.zeros_like(first(args, kwargs))
        constant = call(zero, *args[1:], **kwargs) if args else call(**{**kwargs, "input": zero})
        if not bool(constant.any()):
            return value
        name = self.modules[-1] if self.modules else ""
        if name not in self.scales:
            self.scales[name] = torch.ones(
                self.inputs, dtype=value.dtype, device=value.device, requires_grad=True
            )
        rows = self.scales[name].repeat_interleave(len(value) // self.inputs)
        return value + (rows - 1).reshape(-1, *[1] * (value.ndim - 1)) * constant


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode and leave every module's mode as it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def naming(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep on `stack` the names of the modules of `model` that run."""
    handles = []

    def enter(name: str) -> Callable[..., None]:
        return lambda module, inputs: stack.append(name)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        stack.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
