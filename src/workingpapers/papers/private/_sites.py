"""Sites: what stands wherever a model applies ReLU, one unit for each time that it runs in a pass.

ReLUs are found as modules, as functions held by modules and as calls inside `forward`; one module or one
`forward` that applies several in a pass gets several units, taken in turns.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from workingpapers.errors import unknown
from workingpapers.surgery.activations import MARK
from workingpapers.surgery.edits import device_and_dtype
from workingpapers.surgery.fitted import Overwriting, Recipe
from workingpapers.surgery.places import find, wanted
from workingpapers.surgery.running import call, reads_overwritten
from workingpapers.surgery.swapping import Swap, plan

Shape = tuple[int, ...]
Build = Callable[[str, Shape], nn.Module]
"""Makes the unit for a site from its name and the shape of one example there."""


@runtime_checkable
class Counted(Protocol):
    """A unit that knows how many of its entries are nonlinear."""

    def kept(self) -> int:
        """Return how many."""
        ...


class Sites(nn.Module):
    """The units of one ReLU, in the order in which they run; without units it is a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.ModuleList()
        self.names: tuple[str, ...] = ()
        self.shapes: tuple[Shape, ...] = ()
        self.turn = 0
        self.recording: list[Shape] | None = None
        self.__dict__[MARK] = "sites"

    def forward(self, x: Tensor) -> Tensor:
        """Return what the unit whose turn it is makes of `x`."""
        if self.recording is not None:
            self.recording.append(tuple(x.shape[1:]))
            return x.relu()
        if not self.units:
            return x.relu()
        unit = self.units[self.turn]
        if len(self.units) > 1:
            self.turn = (self.turn + 1) % len(self.units)
        out: Tensor = unit(x)
        return out

    @property
    def last(self) -> int:
        """Which unit ran last."""
        return (self.turn - 1) % len(self.units)


class _Restart:
    """Lets every pass of a model begin with the first units, also after one that broke off."""

    def __call__(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        for module in model.modules():
            if isinstance(module, Sites):
                module.turn = 0


def sites(model: nn.Module) -> dict[str, tuple[nn.Module, Shape]]:
    """Return the units of a model by the names of their sites, each with the shape of one example there."""
    return {
        name: (unit, shape)
        for m in model.modules()
        if isinstance(m, Sites)
        for name, unit, shape in zip(m.names, m.units, m.shapes, strict=True)
    }


def with_sites(model: nn.Module, inputs: Any, build: Build) -> nn.Module:
    """Return a copy of `model` with a unit in the place of every ReLU that runs on `inputs`.

    Units that stand there already are replaced too, and names of sites stay the same.  The copy is in the
    mode of the model.

    Raises:
        WorkingPapersError: where the model has no ReLU, or does not run on the inputs.
    """
    changed = _placed(model, inputs)
    held = [m for m in changed.modules() if isinstance(m, Sites)]
    for module in held:
        module.recording = []
    try:
        with _evaluating(changed):
            call(changed, inputs)
        device, dtype = device_and_dtype(changed)
        for module in held:
            _fill(module, build)
            module.units.to(device=device, dtype=dtype)
    finally:
        for module in held:
            module.recording = None
    if any(len(m.units) > 1 for m in held) and not _restarts(changed):
        changed.register_forward_pre_hook(_Restart())
    return changed


def replace_units(model: nn.Module, units: dict[str, nn.Module]) -> None:
    """Put units at sites of a model by their names, in place."""
    known = sites(model)
    for name in units:
        if name not in known:
            raise unknown("ReLU of the model", name, known)
    for module in [m for m in model.modules() if isinstance(m, Sites)]:
        for at, name in enumerate(module.names):
            if name in units:
                module.units[at] = units[name].train(module.training)


def _restarts(model: nn.Module) -> bool:
    return any(isinstance(hook, _Restart) for hook in model._forward_pre_hooks.values())


def _fill(module: Sites, build: Build) -> None:
    """Build the units of one ReLU from what its runs were."""
    shapes = tuple(module.recording or ())
    first = module.names[0] if module.names else "relu"
    module.names = tuple(first if at == 0 else f"{first}#{at + 1}" for at in range(len(shapes))) or (first,)
    module.shapes, module.turn = shapes, 0
    units = [build(name, shape) for name, shape in zip(module.names, shapes, strict=False)]
    module.units = nn.ModuleList(units).train(module.training)
    if not shapes:
        module.names = ()


def _placed(model: nn.Module, inputs: Any) -> nn.Module:
    """Return a copy with empty sites for ReLUs, beside the sites that there are."""
    copied = copy.deepcopy(model)
    if isinstance(copied, Sites):
        return copied
    places = [p for p in find(copied, wanted("relu")) if not any(isinstance(m, Sites) for m in p.inside)]
    chosen = [p for p in places if p.activation == "relu" and not p.why]
    if not chosen:
        if not any(isinstance(m, Sites) for m in copied.modules()):
            plan(copied, "relu")  # says what is there instead
        return copied
    work = Swap(copied, Recipe(Sites), None, None)
    inplace = [p.held for p in chosen if p.how == "module" and getattr(p.held, "inplace", False)]
    work.writes = bool(inplace) and reads_overwritten(copied, inputs, inplace)
    for place in chosen:
        key = place.held if place.how == "module" else place
        work.apply(place)
        made: Any = work.made[key]
        new = made.activation if isinstance(made, Overwriting) else made
        if not new.names:
            new.names = (f"{place.name}:relu" if place.how == "call" else place.name or "relu",)
    work.shield()
    return work.model


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode without gradients, and leave modes and the generator as they were."""
    modes = {module: module.training for module in model.modules()}
    state = torch.get_rng_state()
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        torch.set_rng_state(state)
        for module, mode in modes.items():
            module.training = mode
