"""Dormant units: which ones have almost stopped firing, and how they are recycled in place."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.engines.activity.observe import Activity, observe
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.surgery.changes import note_changes
from workingpapers.surgery.units import Between, Reader, Units, incoming, outgoing, units_of

Chosen = dict[str, Tensor]  # layer or place -> (units,) bool


def unit_scores(absolute: Tensor) -> Tensor:
    """Return each unit's mean size over the mean of its layer's; 0 for all where the whole layer is silent."""
    mean = absolute.mean()
    return absolute / mean if float(mean) > 0 else torch.zeros_like(absolute)


@dataclass(frozen=True)
class Dormancy:
    """Scores (units,) of the hidden units behind each activation, by the activation's place."""

    scores: Mapping[str, Tensor]

    def dormant(self, tau: float = 0.1) -> Chosen:
        """Return which units are tau-dormant: score at most tau."""
        return {name: s <= tau for name, s in self.scores.items()}

    def by_layer(self, tau: float = 0.1) -> dict[str, float]:
        """Return the share of dormant units of each layer."""
        return {name: float(mask.double().mean()) for name, mask in self.dormant(tau).items()}

    def share(self, tau: float = 0.1) -> float:
        """Return the share of dormant units of all layers together."""
        return float(torch.cat(list(self.dormant(tau).values())).double().mean())


def dormancy_of(activity: Activity) -> Dormancy:
    """Return the scores of a sweep's hidden units: activations with a layer before and another one behind them.

    So what the last layer gives is left out, with an activation on it or without, and so is what no activation
    follows.  Of maps the mean is over places too: a channel is a unit.

    Raises:
        WorkingPapersError: where the model has no hidden activation.
    """
    places = list(activity.places.values())
    at = [i for i, place in enumerate(places) if place.kind == "layer"]
    hidden = [p for p in places[at[0] : at[-1]] if p.kind == "activation"] if at else []
    scores = {p.name: unit_scores(p.output.moments.absolute) for p in hidden if p.output.moments.count}
    if not scores:
        raise WorkingPapersError(f"{type(activity.model).__name__} has no activation between two layers")
    return Dormancy(scores)


def dormancy(model: nn.Module, inputs: Any, batch: int = 512) -> Dormancy:
    """Return the scores of the model's hidden units on inputs (any data that `observe` takes).

    s_i = E|h_i| / mean over the layer's units of E|h_k|.  The model runs in evaluation mode and stays as it is.
    """
    return dormancy_of(observe(model, inputs, batch=batch, rows=1))


def overlap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the overlap of two sets of units, |A and B| / min(|A|, |B|); 0 where one is empty."""
    first, second = (torch.cat([masks[name] for name in one]) for masks in (one, other))
    least = min(int(first.sum()), int(second.sum()))
    return int((first & second).sum()) / least if least else 0.0


def layers_of(units: Mapping[str, Units], places: Mapping[str, Tensor]) -> Chosen:
    """Return the units of layers that lie behind chosen units of activations, of closed layers alone."""
    chosen: Chosen = {}
    for name, found in units.items():
        if not found.closed:
            continue
        mask = torch.zeros(found.count, dtype=torch.bool)
        for place in found.activations:
            if place.name in places:
                mask[place.start : place.start + place.count] |= places[place.name].cpu()
        if bool(mask.any()):
            chosen[name] = mask
    return chosen


@torch.no_grad()
def recycle(
    units: Mapping[str, Units],
    chosen: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    way_out: str = "zero",
    reset_moments: bool = True,
    generator: torch.Generator | None = None,
) -> None:
    """Recycle the chosen units of layers in place.

    Incoming weights and biases are drawn anew as the layer's `reset_parameters` does, outgoing ones become 0, norms
    on the way forget the units, and an optimizer's state of all these entries becomes 0.

    Args:
        units: of the model, as `units_of` gives them.
        chosen: layer -> (units,) bool, of closed layers.
        optimizer: of the model, where it has one.
        way_out: "zero", or "random" for outgoing weights drawn anew as well.
        reset_moments: False leaves the optimizer's state.
        generator: for the draws; torch's global one by default.

    Raises:
        WorkingPapersError: where a layer's units reach more than layers that read them.
    """
    if way_out not in ("zero", "random"):
        raise unknown("way to set outgoing weights", way_out, ("zero", "random"))
    touched: list[tuple[Tensor, Tensor]] = []
    for name, mask in chosen.items():
        found = units[name]
        if not found.closed:
            raise WorkingPapersError(f"the units of {name!r} reach more than layers that read them")
        touched += _enter_anew(found.layer, mask, generator)
        for norm in found.norms:
            touched += _forget(norm, mask)
        for reader in found.readers:
            touched += _leave_anew(reader, mask, way_out, generator)
    if optimizer is not None and reset_moments:
        for parameter, where in touched:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(where.to(value.device), 0)


def _drawn(layer: nn.Module, generator: torch.Generator | None) -> nn.Module:
    """Return a copy of a layer with fresh weights."""
    fresh = copy.deepcopy(layer)
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        reset = getattr(fresh, "reset_parameters", None)
        if callable(reset):
            reset()
        else:
            held: Any = fresh.weight
            held.copy_(torch.randn(held.shape).to(held) * held.std())
            if isinstance(fresh.bias, Tensor):
                fresh.bias.zero_()
    return fresh


def _enter_anew(layer: Any, mask: Tensor, generator: torch.Generator | None) -> list[tuple[Tensor, Tensor]]:
    fresh: Any = _drawn(layer, generator)
    where = incoming(layer, mask)
    layer.weight.copy_(torch.where(where, fresh.weight, layer.weight))
    touched = [(layer.weight, where)]
    if layer.bias is not None:
        own = mask.to(layer.bias.device)
        layer.bias.copy_(torch.where(own, fresh.bias, layer.bias))
        touched.append((layer.bias, own))
    return touched


def _forget(norm: Between, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    own = mask[norm.start : norm.start + norm.count]
    touched = []
    for name, value in (("running_mean", 0), ("running_var", 1), ("weight", 1), ("bias", 0)):
        tensor = getattr(norm.module, name, None)
        if isinstance(tensor, Tensor) and tensor.shape == own.shape:
            tensor.masked_fill_(own.to(tensor.device), value)
            touched.append((tensor, own))
    return touched


def _leave_anew(
    reader: Reader, mask: Tensor, way_out: str, generator: torch.Generator | None
) -> list[tuple[Tensor, Tensor]]:
    where = outgoing(reader, mask)
    weight: Any = reader.layer.weight
    if way_out == "zero":
        weight.masked_fill_(where, 0)
    else:
        fresh: Any = _drawn(reader.layer, generator)
        weight.copy_(torch.where(where, fresh.weight, weight))
    return [(weight, where)]


def recycled(model: nn.Module, inputs: Any, places: Mapping[str, Tensor], seed: int = 0) -> nn.Module:
    """Return a copy of the model with chosen units of activations recycled.

    Args:
        model: any model.
        inputs: arguments on which it runs once, so that the layers around each activation are found.
        places: activation -> (units,) bool.
        seed: of the fresh weights.

    Raises:
        WorkingPapersError: where none of the units can be recycled by themselves.
    """
    fresh = copy.deepcopy(model)
    units = units_of(fresh, inputs)
    chosen = layers_of(units, places)
    if not chosen:
        raise WorkingPapersError(
            f"the units behind {', '.join(places)} reach more than layers that read them, as a sum or the output"
        )
    recycle(units, chosen, generator=torch.Generator().manual_seed(seed))
    said = [f"{name}: {int(mask.sum())} of {len(mask)} units are recycled." for name, mask in chosen.items()]
    changed: nn.Module = note_changes(fresh, said)
    return changed


class Recycler:
    """ReDo in any training loop: call `step` after every update of the weights.

    Args:
        model: whose hidden units are recycled.
        optimizer: of its weights.
        tau: units with a score of at most this are dormant.
        every: updates between two checks.
        choose: "dormant", or "random" for as many units of each layer drawn blindly.
        way_out: outgoing weights become "zero" or "random".
        reset_moments: False leaves the optimizer's moments as they are.
        seed: of the draws.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        tau: float = 0.1,
        every: int = 1000,
        choose: str = "dormant",
        way_out: str = "zero",
        reset_moments: bool = True,
        seed: int = 0,
    ) -> None:
        if choose not in ("dormant", "random"):
            raise unknown("choice of units", choose, ("dormant", "random"))
        if not (tau >= 0 and every >= 1):
            raise WorkingPapersError(f"recycling takes tau >= 0 and every >= 1; got {tau} and {every}")
        self.model, self.optimizer, self.tau, self.every = model, optimizer, tau, every
        self.choose, self.way_out, self.reset_moments, self.seed = choose, way_out, reset_moments, seed
        self.updates = 0

    def step(self, inputs: Tensor) -> Dormancy | None:
        """Count an update; at each `every`-th recycle by a batch of inputs, and return the scores of before."""
        self.updates += 1
        return self.recycle(inputs) if self.updates % self.every == 0 else None

    def recycle(self, inputs: Tensor) -> Dormancy:
        """Recycle now, by a batch of inputs (n, ...); return the scores of before."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.updates)
        found = dormancy(self.model, inputs)
        places = found.dormant(self.tau)
        if self.choose == "random":
            orders = {n: torch.randperm(len(m), generator=generator).argsort() for n, m in places.items()}
            places = {name: orders[name] < int(mask.sum()) for name, mask in places.items()}
        if any(bool(mask.any()) for mask in places.values()):
            units = units_of(self.model, inputs[:2])
            recycle(
                units,
                layers_of(units, places),
                self.optimizer,
                way_out=self.way_out,
                reset_moments=self.reset_moments,
                generator=generator,
            )
        return found
