"""New activations for the places of a model: built by name, class or function, sized by their channels."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import component
from workingpapers.catalog.registry import check_options
from workingpapers.errors import WorkingPapersError

CHANNELS = ("channels", "num_parameters", "num_channels", "num_features")  # how constructors call it


class Function(nn.Module):
    """A plain function of a tensor, as a module."""

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value."""
        return self.function(x, **self.options)

    def extra_repr(self) -> str:
        """Name the function and its options."""
        name = getattr(self.function, "__name__", repr(self.function))
        return ", ".join([name, *(f"{k}={v}" for k, v in self.options.items())])


class Overwriting(nn.Module):
    """An activation whose result is also written into its input, as an in-place one's is."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, which holds the result."""
        return x.copy_(self.activation(x.clone()))  # what is kept for backward must not be overwritten


@dataclass(frozen=True)
class Recipe:
    """How the new activation is built: a component's name, a class, a factory, an instance, or a function."""

    new: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name under which it goes in sentences."""
        if isinstance(self.new, str):
            return self.new
        return getattr(self.new, "__name__", type(self.new).__name__)

    @functools.cached_property
    def target(self) -> Callable[..., Any]:
        """What is called to build one.

        Raises:
            WorkingPapersError: where the name is unknown or is no activation's.
        """
        if not isinstance(self.new, str):
            return self.new  # type: ignore[no-any-return]
        found = component(self.new)
        if found.kind != "activation":
            raise WorkingPapersError(f"swap puts in activations, and {self.new!r} is a {found.kind}")
        return found.target

    @property
    def takes_channels(self) -> str | None:
        """The name of the option that is the number of channels, if there is one."""
        parameters = _parameters(self.target)
        return next((n for n in CHANNELS if n in parameters), None) if self.builds else None

    @property
    def needs_channels(self) -> bool:
        """Whether it cannot be built without the number of channels."""
        name = self.takes_channels
        return name is not None and _parameters(self.target)[name].default is inspect.Parameter.empty

    @property
    def builds(self) -> bool:
        """Whether `new` is called to build a module, and is not itself a module or a function of a tensor."""
        if isinstance(self.new, nn.Module):
            return False
        if isinstance(self.new, str):
            return True
        if inspect.isclass(self.new) or inspect.isclass(getattr(self.new, "func", None)):
            return True
        needed = [n for n, p in _parameters(self.new).items() if _required(p)]
        return _has_signature(self.new) and all(n in CHANNELS or n in self.options for n in needed)

    def build(self, channels: int | None = None) -> nn.Module:
        """Return a new module, for so many channels where that is asked for.

        Raises:
            WorkingPapersError: where options are unknown, or what is built is no module.
        """
        if isinstance(self.new, nn.Module):
            if self.options:
                raise WorkingPapersError(f"an instance of {self.name} takes no options; give its class")
            return copy.deepcopy(self.new)
        if not self.builds:
            return Function(self.new, **self.options)
        sized = {self.takes_channels: channels} if channels is not None and self.takes_channels else {}
        options = {**self.options, **sized}
        if _has_signature(self.target):
            check_options(self.name, self.target, {str(k): v for k, v in options.items()})
        built = self.target(**options)
        if not isinstance(built, nn.Module):
            raise WorkingPapersError(f"{self.name} builds a {type(built).__name__}, and no activation module")
        return built


class PerChannel(nn.Module):
    """An activation with parameters of its own for each channel, one module for each width that comes.

    Args:
        recipe: builds the module for a width.
        like: a tensor whose device and dtype the modules get.
        widths: those known beforehand; None where the first run tells, after which the widths stay.
        last: whether channels are the last dimension; None for that in inputs of three dimensions (batch,
            tokens, channels), and the second dimension in others.
    """

    def __init__(
        self, recipe: Recipe, like: Tensor, widths: Sequence[int] | None, last: bool | None = None
    ) -> None:
        super().__init__()
        self.recipe, self.last, self.open = recipe, last, widths is None
        self.by_width = nn.ModuleDict()
        self.like: Tensor
        self.register_buffer("like", like.new_empty(0), persistent=False)
        for width in widths or ():
            self._add(width)

    @property
    def widths(self) -> list[int]:
        """The widths that are known, in the order in which they came."""
        return [int(width) for width in self.by_width]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module for the width of `x`.

        Raises:
            WorkingPapersError: for a width that is not known, where they are known beforehand.
        """
        last = x.ndim == 3 if self.last is None else self.last
        activation = self._for(int(x.shape[-1 if last or x.ndim < 2 else 1]))
        if not last or x.ndim == 2:
            return activation(x)  # type: ignore[no-any-return]
        return activation(x.reshape(-1, x.shape[-1])).reshape(x.shape)  # type: ignore[no-any-return]

    def _for(self, width: int) -> nn.Module:
        for known, activation in self.by_width.items():
            if int(known) == width:
                return activation
        if not self.open:
            raise WorkingPapersError(
                f"this {self.recipe.name} is for {' or '.join(map(str, self.widths))} channels; got {width}"
            )
        if torch.compiler.is_compiling():
            raise WorkingPapersError(
                f"this {self.recipe.name} takes its channels at the first run: run the model once before compiling"
            )
        return self._add(width)

    def _add(self, width: int) -> nn.Module:
        made = self.recipe.build(width).to(self.like).train(self.training)
        self.by_width[str(width)] = made
        return made

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        start = f"{prefix}by_width."
        for width in {int(key[len(start) :].split(".")[0]) for key in state if key.startswith(start)}:
            if self.open and width not in self.widths:
                self._add(width)
        super()._load_from_state_dict(state, prefix, *args)

    def extra_repr(self) -> str:
        """Name the widths."""
        axis = {None: "", True: ", last dimension", False: ", second dimension"}[self.last]
        return f"{self.recipe.name}, channels={self.widths or 'at the first run'}{axis}"


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters if _has_signature(function) else {}


def _has_signature(function: Any) -> bool:
    try:
        inspect.signature(function)
    except (TypeError, ValueError):  # a function written in C
        return False
    return True


def _required(parameter: inspect.Parameter) -> bool:
    plain = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return plain and parameter.default is parameter.empty
