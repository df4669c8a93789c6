"""Swapping one activation of a model for another, and listing where that would be."""

import inspect
from collections import Counter
from typing import Any

import torch
from torch import fx, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.activations import MARK, module_named
from workingpapers.surgery.edits import Edit, Editor, device_and_dtype
from workingpapers.surgery.fitted import Overwriting, PerChannel, Recipe
from workingpapers.surgery.intercept import CALLS, Replacement, replaced_calls, replacing, shielded
from workingpapers.surgery.places import (
    CONTAINERS,
    Place,
    Wanted,
    call_place,
    find,
    plain,
    read_calls,
    select,
    wanted,
)
from workingpapers.surgery.running import Run, Seen, channels_last

HOOKS = [
    key for key in nn.Identity().__dict__ if key.endswith(("_hooks", "_hooks_with_kwargs", "_always_called"))
]
PARALLEL = ("DistributedDataParallel", "FullyShardedDataParallel")


class Plan(list[Place]):
    """The places that a swap would change, and those that it would leave with the reason."""

    def __str__(self) -> str:
        return "\n".join(str(place) for place in self)


def plan(model: nn.Module, old: Any, where: Any = None, run: Run | None = None) -> Plan:
    """Return the chosen places of the activation `old`.

    Raises:
        WorkingPapersError: where the model has none, none is chosen, or none of these can be swapped.
    """
    asked = wanted(old)
    every = find(model, asked)
    if run is not None:
        every += _seen_only(model, every, run)
    found = [p for p in every if _fits(p, asked)]
    if not found:
        raise WorkingPapersError(_nothing(model, asked, every))
    chosen = select(found, where)
    if not chosen:
        some = ", ".join(plain(p.name) or "the model" for p in found[:4])
        raise WorkingPapersError(
            f"where={where!r} chooses none of the {len(found)} places of {asked.words}, such as {some}"
        )
    if all(p.why for p in chosen):
        raise WorkingPapersError(f"{asked.words} cannot be swapped here: {_reasons(chosen)}")
    return Plan(chosen)


def _fits(place: Place, asked: Wanted) -> bool:
    if place.how == "module" and not place.why:
        return asked.module(place.held, place.activation)
    if place.how == "attribute":
        return asked.function(place.held, place.activation)
    return place.activation in asked.called or place.activation in asked.names


def _seen_only(model: nn.Module, every: list[Place], run: Run) -> list[Place]:
    """Return places of calls that the run showed and no reading of the code."""
    known = {(p.holder, p.activation) for p in every if p.how != "module"}
    known |= {(p.held, p.activation) for p in every if p.how == "module"}
    names = {m: n for n, m in model.named_modules()}
    return [
        call_place(
            names[m], m, activation, [], tuple(a for n, a in model.named_modules() if _above(n, names[m]))
        )
        for m, activation in run.calls
        if (m, activation) not in known
        and m in names
        and activation not in replaced_calls(m)
        and module_named(m) is None
    ]


def _above(name: str, below: str) -> bool:
    return name in ("", below) or below.startswith(f"{name}.")


def _nothing(model: nn.Module, asked: Wanted, every: list[Place]) -> str:
    counts = Counter(p.activation for p in every if p.activation != "identity" and not p.why)
    having = ", ".join(f"{name} ({n} {'place' if n == 1 else 'places'})" for name, n in counts.most_common())
    return f"{type(model).__name__} has no {asked.words}; its activations are {having or 'none that we know'}"


def _reasons(places: list[Place]) -> str:
    shown = "; ".join(f"{plain(p.name) or 'the model'}: {p.why}" for p in places[:5])
    return shown + (f"; and {len(places) - 5} more" if len(places) > 5 else "")


def _takes_one(function: Any) -> bool:
    """Say whether a function takes the tensor alone, and no further arguments such as `inplace`."""
    try:
        return len(inspect.signature(function).parameters) == 1
    except (TypeError, ValueError):  # a function written in C
        return False


def _first_only(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave the arguments out that only the function of before takes."""
    return (args[:1] or (kwargs["input"],)), {}


def _before(place: Place) -> list[Seen]:
    """Return a shape with the width of the layer before a place in an `nn.Sequential`, where there is one."""
    if place.how != "module" or not isinstance(place.holder, nn.Sequential):
        return []
    children = list(place.holder._modules.items())
    at = [key for key, _ in children].index(place.key)
    for _, layer in reversed(children[:at]):
        if layer is None or isinstance(layer, nn.Identity | nn.Dropout) or module_named(layer):
            continue
        last = channels_last(layer)
        shape = getattr(layer, "normalized_shape", (0,))
        sizes = [getattr(layer, name, None) for name in ("out_channels", "out_features", "num_features")]
        width = next((w for w in [*sizes, shape[-1]] if isinstance(w, int) and w), None)
        if width is None or last is None:
            return []
        return [((1, 1, width) if last else (1, width, 1), last)]
    return []


class Swap:
    """One swap of a model: what is built where."""

    def __init__(self, model: nn.Module, recipe: Recipe, channels: int | str | None, run: Run | None) -> None:
        self.model, self.recipe, self.channels, self.run = model, recipe, channels, run
        self.editor = Editor()
        self.made: dict[Any, nn.Module] = {}
        self.writes = False

    def sized(self, place: Place) -> tuple[list[int] | None, bool | None]:
        """Return the widths that the new activation is built for, and whether channels are last.

        An empty list where channels do not matter; None where only the first run will tell.
        """
        if isinstance(self.channels, int) and not isinstance(self.channels, bool):
            return [self.channels], None
        if self.channels is None and not self.recipe.needs_channels:
            return [], None
        asked = {"first": False, "last": True}.get(str(self.channels))
        seen = self._seen(place) or [(s, last) for s, last in _before(place) if asked in (None, last)]
        if not seen:
            return None, asked
        axes = {last for shape, last in seen if len(shape) > 2} if asked is None else {asked}
        widths = [
            shape[-1 if len(shape) < 2 or (last if asked is None else asked) else 1] if shape else 1
            for shape, last in seen
        ]
        return list(dict.fromkeys(widths)), axes.pop() if len(axes) == 1 else None

    def _seen(self, place: Place) -> list[Seen]:
        if self.run is None:
            return []
        if place.how == "module":
            return list(self.run.modules.get(place.held, ()))
        return list(self.run.calls.get((place.holder, place.activation), ()))

    def build(self, place: Place) -> nn.Module:
        """Return the new activation for a place, with device, dtype and mode of what surrounds it."""
        widths, last = self.sized(place)
        device, dtype = device_and_dtype(*reversed(place.inside), self.model)
        if widths == []:
            new = self.recipe.build()
        elif isinstance(self.channels, int) and widths:
            new = self.recipe.build(widths[0])
        else:
            like = torch.empty(0, device=device, dtype=dtype)
            new = PerChannel(self.recipe, like, widths, last)
        old = place.held if place.how == "module" else None
        if self.writes and getattr(old, "inplace", False):
            new = Overwriting(new)
        new = new.to(device=device, dtype=dtype).train((old if old is not None else place.holder).training)
        new.__dict__[MARK] = self.recipe.name
        for key in HOOKS if old is not None else ():
            if old.__dict__[key]:
                new.__dict__[key] = old.__dict__[
                    key
                ]  # the same dictionary, so that handles still remove them
        return new

    def apply(self, place: Place) -> None:
        """Put the new activation into one place."""
        shared = place.held if place.how == "module" else place
        if shared not in self.made:
            self.made[shared] = self.build(place)
        new = self.made[shared]
        if place.how == "call":
            self._answer(place, new)
        elif place.key:
            if place.how == "attribute" and not _takes_one(self.editor.drop(place.holder, place.key)):
                new.register_forward_pre_hook(_first_only, with_kwargs=True)
            self.editor.module(place.holder, place.key, new)
            if isinstance(place.holder, nn.TransformerEncoderLayer):
                self._leave_fused_path(place)
        else:
            self.editor.edits.append(Edit("model", new, "", True, self.model))
            self.model = new

    def _leave_fused_path(self, place: Place) -> None:
        """Keep a transformer's evaluation off the fused kernel, which has its own ReLU and GELU."""
        self.editor.attribute(place.holder, "activation_relu_or_gelu", 0)
        for module in place.inside:
            if isinstance(module, nn.TransformerEncoder) and module.__dict__.get("use_nested_tensor"):
                self.editor.attribute(module, "use_nested_tensor", False)  # made for that kernel alone

    def _answer(self, place: Place, new: nn.Module) -> None:
        owner = place.holder
        host = next((m for m in reversed(place.inside) if not isinstance(m, CONTAINERS)), None)
        if host is None:
            raise WorkingPapersError(
                f"{place} cannot be swapped: no module can hold the new one; wrap the model"
            )
        key = f"swapped_{place.activation}"
        while key in host._modules or hasattr(host, key):
            key += "_"
        self.editor.module(host, key, new)
        if isinstance(owner, fx.GraphModule):
            self.editor.graph(owner, {place.activation: key})
            return
        methods = any(r.spelt.startswith(".") for r in read_calls(owner) if r.activation == place.activation)
        child = host is owner
        answer = Replacement(key if child else "", None if child else new, self.writes, methods)
        self.redirect(owner, place.activation, answer)

    def redirect(self, owner: nn.Module, activation: str, answer: Replacement) -> None:
        """Let `answer` reply to the calls that `owner` makes of an activation."""
        self.editor.attribute(owner, CALLS, {**replaced_calls(owner), activation: answer})
        cls: Any = type(owner)
        if cls.__dict__.get("workingpapers_make") is not replacing:
            self.editor.convert(owner, replacing(cls))

    def shield(self) -> None:
        """Keep the calls of modules inside a caller from being answered by what answers the caller's own."""
        for caller in list(self.model.modules()):
            names = {n for n, r in replaced_calls(caller).items() if r.key or r.module is not None}
            own = {r.of(caller) for r in replaced_calls(caller).values()}
            for module in caller.modules() if names else ():
                if module is caller or module in own:
                    continue
                cls: Any = type(module)
                if module_named(module):
                    if cls.__dict__.get("workingpapers_make") is not shielded:
                        self.editor.convert(module, shielded(cls))
                else:
                    for name in names & {r.activation for r in read_calls(module)}:
                        self.redirect(module, name, Replacement(""))
