"""How much of a feed-forward layer's output its weak neurons make, and what is left without them.

    s_i = |a_i| ||W_i||,   CETT(t) = mean over tokens of ||sum of a_i W_i over s_i <= t|| / ||sum of all a_i W_i||

a_i is the input i of the down projection, W_i its column: for gated layers a is the gated product.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.collect import collect
from workingpapers.surgery.units import units_of

CANDIDATES = 65_536
Keep = Callable[
    [str, Tensor], Tensor
]  # name of the down projection, its input (..., m) -> mask of what stays


def sizes(a: Tensor, weight: Tensor) -> Tensor:
    """Return the size of each neuron's output, (..., m) for activations (..., m) and columns of weight (d, m)."""
    found: Tensor = a.abs() * weight.norm(dim=0)
    return found


def cett(a: Tensor, weight: Tensor, threshold: float) -> float:
    """Return the share of the output that neurons up to a threshold make: a (n, m), weight (d, m).

    Tokens whose whole output is 0 count as 0.
    """
    tail = torch.where(sizes(a, weight) <= threshold, a, 0) @ weight.T
    whole = (a @ weight.T).norm(dim=1)
    share = torch.where(whole > 0, tail.norm(dim=1) / whole.clamp_min(torch.finfo(a.dtype).tiny), 0)
    return float(share.mean())


def threshold_for(a: Tensor, weight: Tensor, level: float) -> float:
    """Return the largest of 65,536 evenly spaced thresholds whose CETT is at most `level`.

    They lie between the smallest size and its 0.99 quantile.  Where even the first one is too large nothing but
    neurons of size 0 may go, and the threshold is 0.
    """
    if not 0 <= level <= 1:
        raise WorkingPapersError(f"a level of CETT lies between 0 and 1; got {level}")
    s = sizes(a, weight).flatten()
    start = float(s.min())
    end = float(s.kthvalue(max(1, round(0.99 * len(s)))).values)
    if cett(a, weight, start) > level:
        return 0.0
    low, high = 0, CANDIDATES  # the first complies, one behind the last counts as too large
    while high - low > 1:
        middle = (low + high) // 2
        at = start + (end - start) * middle / (CANDIDATES - 1)
        low, high = (middle, high) if cett(a, weight, at) <= level else (low, middle)
    return start + (end - start) * low / (CANDIDATES - 1)


def down_weight(layer: Any) -> Tensor:
    """Return the weight (d, m) of a linear layer, however it keeps it."""
    weight: Tensor = layer.weight.detach()
    return weight.T if hasattr(layer, "nf") else weight


def downs_of(model: nn.Module, inputs: Any) -> dict[str, nn.Module]:
    """Return the down projections of a model: linear layers that read the units behind an activation, by name.

    Plain and gated feed-forward layers are found by one run on `inputs`, whatever the architecture.

    Raises:
        WorkingPapersError: where there is none.
    """
    found: dict[str, nn.Module] = {}
    for units in units_of(model, inputs).values():
        starts = {place.start for place in units.activations}
        for reader in units.readers:
            linear = isinstance(reader.layer, nn.Linear) or hasattr(reader.layer, "nf")
            if linear and reader.block == 1 and reader.start in starts:
                found[reader.name] = reader.layer
    if not found:
        raise WorkingPapersError(f"{type(model).__name__} has no linear layer right behind an activation")
    return found


def activations_into(
    model: nn.Module, inputs: Tensor, downs: Mapping[str, nn.Module], batch: int = 64
) -> dict[str, Tensor]:
    """Return what enters each down projection, one row (tokens, m) for each token."""
    found = collect(model, inputs, list(downs), side="input", batch=batch)
    return {name: found[name].flatten(0, -2) for name in downs}


def thresholds_for_cett(model: nn.Module, inputs: Tensor, level: float, rows: int = 1024) -> dict[str, float]:
    """Return the threshold of each down projection at a level of CETT, by at most so many evenly spaced tokens."""
    downs = downs_of(model, inputs[:1])
    return thresholds_of(activations_into(model, inputs, downs), downs, level, rows)


def thresholds_of(
    activations: Mapping[str, Tensor], downs: Mapping[str, nn.Module], level: float, rows: int = 1024
) -> dict[str, float]:
    """Return the thresholds from activations that were collected."""
    found = {}
    for name, a in activations.items():
        step = -(-len(a) // rows)
        found[name] = threshold_for(a[::step], down_weight(downs[name]), level)
    return found


@contextmanager
def keeping(downs: Mapping[str, nn.Module], keep: Keep) -> Iterator[None]:
    """Let down projections see only the entries that `keep` chooses."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda module, args: (torch.where(keep(name, args[0]), args[0], 0), *args[1:])

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in downs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def above_thresholds(downs: Mapping[str, nn.Module], thresholds: Mapping[str, float]) -> Keep:
    """Keep neurons whose output is larger than their layer's threshold."""
    weights = {name: down_weight(layer) for name, layer in downs.items()}
    return lambda name, a: sizes(a, weights[name]) > thresholds[name]


def top_share(share: float) -> Keep:
    """Keep the same share of each layer's neurons for every token, those of the largest |a| (Top-k)."""

    def keep(name: str, a: Tensor) -> Tensor:
        places = a.abs().topk(max(1, round(share * a.shape[-1])), -1).indices
        return torch.zeros_like(a, dtype=torch.bool).scatter(-1, places, True)

    return keep


def beyond(epsilon: float) -> Keep:
    """Keep neurons of |a| above one number for all layers (FAT-epsilon)."""
    return lambda name, a: a.abs() > epsilon


def ratios(activations: Mapping[str, Tensor], keep: Keep) -> dict[str, Tensor]:
    """Return the share of neurons kept for each token (tokens,), by down projection."""
    return {name: keep(name, a).double().mean(-1) for name, a in activations.items()}
