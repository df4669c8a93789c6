"""Dead outputs: rectifiers that give 0, for an example (a rate), or for every one (a unit), and why."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.engines.activity.batches import batches_of, device_of
from workingpapers.engines.activity.observe import Activity, Place
from workingpapers.engines.activity.places import watching
from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.changes import note_changes
from workingpapers.surgery.running import call
from workingpapers.surgery.units import incoming, units_of

RECTIFIERS = ("relu", "relu6", "relu2", "clipped_sparse_act")  # never below 0, and 0 on a half-line


@dataclass(frozen=True)
class Dead:
    """Shares of a layer's outputs, or of all: that are 0 (`total`), and 0 in units without incoming weights."""

    total: float
    static: float

    @property
    def dynamic(self) -> float:
        """The share of outputs that are 0 for this input, not for want of weights: the dynamic dead neuron rate."""
        return self.total - self.static


@dataclass(frozen=True)
class DeadRates(Dead):
    """The rates of all outputs, with those of each rectifier by its place."""

    layers: Mapping[str, Dead]


def cut_off(layer: Any) -> Tensor:
    """Return which units of a layer have no incoming weight left, (units,) bool."""
    weight = layer.weight.detach() * getattr(layer, "mask", 1)
    units = weight.movedim(1 if hasattr(layer, "nf") else 0, 0).flatten(1)
    found: Tensor = ~units.any(1).cpu()
    return found


@torch.no_grad()
def dnr(model: nn.Module, data: Any, batch: int = 256) -> DeadRates:
    """Return the dead rates of a model's rectifiers: shares of outputs (units, or places of maps) that are 0.

    Averaged over examples.  Static ones are 0 in units of which all incoming weights are 0: those of the layer of
    as many units that ran last before.

    Args:
        model: any model whose ReLUs are modules or calls; it stays as it is and runs in evaluation mode.
        data: a tensor (N, ...), or as `observe` takes it.
        batch: examples at a time.

    Raises:
        WorkingPapersError: where no ReLU runs.
    """
    sums: dict[str, Tensor] = {}
    latest: dict[int, Tensor] = {}
    gone = {name: cut_off(m) for name, m in model.named_modules() if _weighs(m)}

    def seen(
        kind: str, name: str, module: nn.Module, held: str | None, before: Any, output: Tensor, last: bool
    ) -> None:
        rows = output.flatten(0, -2) if last else output.flatten(2).transpose(1, 2).flatten(0, 1)
        units = rows.shape[1]
        if kind == "layer":
            latest[units] = gone.get(name.split("#")[0], torch.zeros(units, dtype=torch.bool))
        elif kind == "activation" and held in RECTIFIERS:
            zero = (rows == 0).sum(0).cpu()
            static = zero[latest[units]].sum() if units in latest else torch.tensor(0)
            found = torch.stack([zero.sum(), static, torch.tensor(rows.numel())])
            sums[name] = sums.get(name, torch.zeros(3, dtype=torch.long)) + found

    device = device_of(model)
    with watching(model, seen) as begin:
        for part in batches_of(data, batch):
            begin()
            latest.clear()
            moved = part.to(device)
            call(model, dict(moved.named) if moved.named else moved.arguments)
    if not sums:
        raise WorkingPapersError(f"{type(model).__name__} runs no ReLU, so nothing of it is dead")
    layers = {name: _shares(found) for name, found in sums.items()}
    whole = _shares(torch.stack(list(sums.values())).sum(0))
    return DeadRates(whole.total, whole.static, layers)


def _shares(sums: Tensor) -> Dead:
    zero, static, count = sums.tolist()
    return Dead(zero / count, static / count)


def _weighs(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim >= 2 and not isinstance(module, nn.Embedding)


@dataclass(frozen=True)
class Silent:
    """What a sweep shows of one rectifier: dead rate of each unit, which are cut off, and which never fire."""

    rates: Tensor
    cut: Tensor
    never: Tensor
    outputs: float


def silent(activity: Activity) -> dict[str, Silent]:
    """Return what a sweep shows of each hidden rectifier by its place; maps by at most 256 of their places."""
    places = list(activity.places.values())
    ends = [i for i, place in enumerate(places) if place.kind == "layer"]
    found = {}
    for i, place in enumerate(places[: ends[-1]] if ends else []):
        moments = place.output.moments
        if place.kind != "activation" or place.activation not in RECTIFIERS or not moments.count:
            continue
        feeding = _feeding(places[:i], place)
        cut = cut_off(feeding.module) if feeding else torch.zeros(place.output.units, dtype=torch.bool)
        outputs = moments.count / max(activity.examples, 1) * place.output.units
        found[place.name] = Silent(1 - moments.positive, cut, moments.largest == 0, outputs)
    return found


def _feeding(before: list[Place], place: Place) -> Place | None:
    layers = [p for p in before if p.kind == "layer" and p.output.units == place.output.units]
    return layers[-1] if layers else None


@torch.no_grad()
def unburdened(model: nn.Module, inputs: Any, places: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of which units of activations lose their negative incoming weights, which hold them below 0.

    Args:
        model: any model.
        inputs: arguments on which it runs once, so that the layer before each activation is found.
        places: activation -> (units,) bool.

    Raises:
        WorkingPapersError: where no layer is found before the activations.
    """
    fresh = copy.deepcopy(model)
    sentences = []
    for name, found in units_of(fresh, inputs).items():
        mask = torch.zeros(found.count, dtype=torch.bool)
        for place in found.activations:
            if place.name in places:
                mask[place.start : place.start + place.count] |= places[place.name].cpu()
        if bool(mask.any()):
            weight: Any = found.layer.weight
            gone = incoming(found.layer, mask) & (weight < 0)
            weight.masked_fill_(gone, 0)
            sentences.append(
                f"{name}: {int(gone.sum())} negative weights into {int(mask.sum())} units are 0."
            )
    if not sentences:
        raise WorkingPapersError(f"no layer is found right before {', '.join(places)}")
    changed: nn.Module = note_changes(fresh, sentences)
    return changed
