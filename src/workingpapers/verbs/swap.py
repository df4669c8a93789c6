"""swap: put one activation of a model in the place of another, in every form in which models have them."""

import copy
import warnings
from dataclasses import replace
from typing import Any

from torch import nn

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery import undo
from workingpapers.surgery.activations import has_tensors
from workingpapers.surgery.fitted import Recipe
from workingpapers.surgery.places import Place, plain
from workingpapers.surgery.running import Run, reads_overwritten, watch
from workingpapers.surgery.swapping import PARALLEL, Plan, Swap, plan
from workingpapers.verbs.compare import load_function

__all__ = ["Place", "Plan", "listed", "swap", "undo"]


def swap(
    model: nn.Module,
    old: Any,
    new: Any,
    *,
    where: Any = None,
    inputs: Any = None,
    channels: int | str | None = None,
    inplace: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> Any:
    """Return a copy of `model` with the activation `old` swapped for `new`; the model itself stays as it is.

    Swapped are modules, callables held as attributes, and the functions and methods that a module calls in
    its own `forward` (`F.relu(x)`, `torch.relu(x)`, `x.relu_()`).  A module that stands in several places is
    swapped for one that stands in all of them; the calls of one `forward` share one new activation.  The result
    trains, compiles, exports, copies and pickles as before; `undo` takes the swap back.

    Args:
        model: any model; one wrapped by `torch.compile` too.
        old: an activation's name, such as "relu", for every form of it; a module class, for its modules alone;
            a function, such as `F.relu`, for attributes and calls alone; or a list of these.
        new: the name of an activation of the catalogue or a reference; a module class or a function that
            builds a module; a module, copied to each place; or a function of a tensor.
        where: which places: a pattern of names such as "layer1.*" or several, a class of modules that they are
            in, a position or slice in the list that `dry_run` gives, or a function of the `Place`.
        inputs: example inputs (a tensor, a tuple of arguments, or a mapping by name).  The model runs on them
            once in evaluation mode, which finds calls that its code does not show, sizes `channels`, and keeps
            the writing of in-place activations where an output depends on it.
        channels: a number, or "auto" for parameters by channel, of as many channels as each place has by
            `inputs` or the layer before it, or else by the first run, which then must come before the optimizer
            is built.  The second dimension is that of channels, the last one behind linear layers and norms over
            it; "first" and "last" say which it is.
        inplace: change `model` itself, and return it.
        dry_run: change nothing, and return the list of places.
        options: options of the new activation.

    Raises:
        WorkingPapersError: where nothing matches, naming the activations that the model has; where none of
            the matches can be swapped; where a name or an option is unknown.

    Warns of what has the activation's name, or computes it in a kernel, and stays as it is.
    """
    recipe = _recipe(new, options, channels)
    if not (inplace or dry_run):
        model = copy.deepcopy(model)
    run = watch(model, inputs) if inputs is not None else None
    places = plan(model, old, where, run)
    work = Swap(model, recipe, channels, run)
    if dry_run:
        return Plan(replace(p, channels=() if p.why else tuple(_widths(work, p))) for p in places)
    chosen = [p for p in places if not p.why]
    if inplace and not chosen[0].key and chosen[0].how == "module":
        raise WorkingPapersError(
            "the model itself is the activation: only a copy can be swapped (inplace=False)"
        )
    unsized = [p for p in chosen if work.sized(p)[0] is None]
    work.writes = _must_write(model, chosen, inputs, run)
    try:
        for place in chosen:
            work.apply(place)
        work.shield()
        _check_parallel(work)
    except BaseException:
        work.editor.take_back()
        raise
    sentences = [
        f"{plain(p.name) or 'The model'} is {recipe.name} now, in place of {p.activation}." for p in chosen
    ]
    work.editor.note(work.model, [*sentences, *(f"{plain(p.name)} stays: {p.why}." for p in places if p.why)])
    _warn([p for p in places if p.why], unsized)
    return work.model


def listed(model: str, old: str, new: str, where: list[str] | None = None) -> list[dict[str, str]]:
    """Return the places of a dry run as rows, for the model that 'file.py:function' builds."""
    built = load_function(model)()
    if not isinstance(built, nn.Module):
        raise WorkingPapersError(f"{model} builds a {type(built).__name__}, and no model")
    places = swap(built, old, new, where=where or None, dry_run=True)
    return [
        {
            "place": plain(p.name) or "(the model)",
            "how": p.how,
            "now": p.detail,
            "then": f"stays: {p.why}" if p.why else new,
        }
        for p in places
    ]


def _recipe(new: Any, options: dict[str, Any], channels: int | str | None) -> Recipe:
    """Return how the new activation is built, after building one on trial."""
    if not (isinstance(new, str | nn.Module) or callable(new)):
        raise WorkingPapersError(
            f"what is put in is a name, a module, its class, or a function; got {type(new).__name__}"
        )
    recipe = Recipe(new, options)
    if isinstance(channels, bool) or not (
        channels is None
        or channels in ("auto", "first", "last")
        or (isinstance(channels, int) and channels > 0)
    ):
        raise WorkingPapersError(f"channels is a number, 'auto', 'first' or 'last'; got {channels!r}")
    if channels is not None and recipe.takes_channels is None:
        raise WorkingPapersError(
            f"{recipe.name} has no parameters by channel; leave channels={channels!r} out"
        )
    recipe.build(None if channels is None and not recipe.needs_channels else 1)
    return recipe


def _widths(work: Swap, place: Place) -> list[int]:
    widths = work.sized(place)[0]
    return [0] if widths is None else widths


def _must_write(model: nn.Module, chosen: list[Place], inputs: Any, run: Run | None) -> bool:
    """Say whether an output depends on what in-place activations write into their inputs, where inputs tell."""
    if run is None:
        return False
    modules = [p.held for p in chosen if p.how == "module" and getattr(p.held, "inplace", False)]
    called = any((p.holder, p.activation) in run.in_place for p in chosen)
    return bool(modules or called) and reads_overwritten(model, inputs, modules)


def _check_parallel(work: Swap) -> None:
    wrapper = next((type(m).__name__ for m in work.model.modules() if type(m).__name__ in PARALLEL), None)
    old = [m for m in work.made if isinstance(m, nn.Module)]
    if wrapper and any(has_tensors(m) for m in [*work.made.values(), *old]):
        raise WorkingPapersError(
            f"{wrapper} fixed its parameters when it wrapped the model: swap in the model inside, and wrap again"
        )


def _warn(staying: list[Place], unsized: list[Place]) -> None:
    if staying:
        named = "; ".join(f"{plain(p.name) or 'the model'}: {p.why}" for p in staying)
        warnings.warn(f"{len(staying)} of the places stay as they are: {named}", stacklevel=3)
    if unsized:
        named = ", ".join(plain(p.name) or "the model" for p in unsized[:5])
        warnings.warn(
            f"{len(unsized)} places take their channels at the first run ({named}): run the model once, "
            "or give inputs=, before the optimizer is built",
            stacklevel=3,
        )
