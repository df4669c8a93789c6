"""Networks of spiking neurons without some of them, baselines of pruning, and two tasks to fit them to."""

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.sparsity._noise_pruning import Array, as_array
from workingpapers.papers.sparsity._spiking import HRSNN, fit_readout, mackey_glass, rate_coded

WAYS = ("random", "magnitude", "activity")


@torch.no_grad()
def kept(model: HRSNN, neurons: NDArray[np.int64], weight: Array) -> HRSNN:
    """Return a copy with some of the neurons and, among all as they were, the synapses `weight` (N, N)."""
    smaller = copy.deepcopy(model)
    chosen = torch.from_numpy(neurons)
    new = torch.from_numpy(weight).to(model.weight)[chosen][:, chosen]
    smaller.weight, smaller.inputs = nn.Parameter(new), nn.Parameter(model.inputs[chosen].clone())
    smaller.tau, smaller.current, smaller.mask = model.tau[chosen], model.current[chosen], new != 0
    readout = nn.Linear(len(chosen), model.readout.out_features)
    readout.weight.copy_(model.readout.weight[:, chosen])
    readout.bias.copy_(model.readout.bias)
    smaller.readout = readout.to(model.readout.weight)
    return smaller


def wanted(model: nn.Module, keep_edges: float, keep_nodes: float) -> tuple[HRSNN, int]:
    """Return the model as an HRSNN and how many neurons stay."""
    if not isinstance(model, HRSNN):
        raise WorkingPapersError(
            f"this prunes a recurrent spiking network, HRSNN; got {type(model).__name__}"
        )
    if not (0 < keep_edges <= 1 and 0 < keep_nodes <= 1):
        raise WorkingPapersError(
            f"shares of synapses and neurons to keep lie in (0, 1]; got {keep_edges} and {keep_nodes}"
        )
    return model, max(2, round(keep_nodes * len(model.tau)))


@torch.no_grad()
def pruned(
    model: nn.Module, edges: int, neurons: int, by: str = "random", x: Tensor | None = None, seed: int = 0
) -> HRSNN:
    """Prune as others do: return a copy with so many neurons and, at most, synapses among them; weights stay.

    Args:
        model: an `HRSNN`; for "activity" one whose readout is trained.
        edges, neurons: how many stay.
        by: "random"; "magnitude": neurons with the largest sums of weights, then the largest weights; "activity":
            neurons whose spikes reach the readout most, rate times its weights, then synapses by rate times weight.
        x: inputs (B, T, D), for "activity".
        seed: for "random".
    """
    dense, _ = wanted(model, 1.0, 1.0)
    weight, size = as_array(dense.weight * dense.mask), len(dense.tau)
    chance = np.random.default_rng(seed)
    if by == "random":
        value, worth = chance.random(size), chance.random(weight.shape)
    elif by == "magnitude":
        value, worth = np.abs(weight).sum(0) + np.abs(weight).sum(1), np.abs(weight)
    elif by == "activity":
        if x is None:
            raise WorkingPapersError("pruning by activity takes inputs x")
        rate = as_array(dense.run(x)[1].mean((0, 1)))
        value, worth = rate * as_array(dense.readout.weight.abs().sum(0)), np.abs(weight) * rate
    else:
        raise unknown("way to prune", by, WAYS)
    chosen = np.sort(np.argsort(-value, kind="stable")[:neurons])
    inside = np.zeros(weight.shape, bool)
    inside[np.ix_(chosen, chosen)] = True
    worth = np.where(inside & (weight != 0), worth, -1.0)
    order = np.argsort(-worth, axis=None, kind="stable")[:edges]
    left = np.zeros(weight.shape, bool)
    left.flat[order] = True
    return kept(dense, chosen, np.where(left & (worth >= 0), weight, 0.0))


class Digits:
    """Classifying digits as 30 ms of random spikes, by the last filtered spikes of a network."""

    def __init__(self, train: int, test: int, steps: int, seed: int) -> None:
        split = images("digits", train=train, test=test, seed=seed, normalise=False)
        self.x, self.x_test = (
            rate_coded(split.x_train, steps, seed),
            rate_coded(split.x_test, steps, seed + 1),
        )
        self.y, self.y_test = split.y_train, split.y_test

    @torch.no_grad()
    def fitted(self, model: HRSNN) -> float:
        """Fit the readout, in place, and return the test accuracy."""
        fit_readout(model, model.traces(self.x)[:, -1], F.one_hot(self.y, 10))
        return float((model(self.x_test).argmax(1) == self.y_test).double().mean())


class MackeyGlass:
    """Predicting the next value of a Mackey-Glass series from the filtered spikes of a network that hears it."""

    def __init__(self, count: int, seed: int) -> None:
        self.series = mackey_glass(count, seed=seed)
        self.cut = count * 2 // 3

    @torch.no_grad()
    def fitted(self, model: HRSNN) -> float:
        """Fit the readout, in place, and return the root mean square error over the deviation of the test part."""
        heard = model.traces(self.series[None, :-1, None])[0]
        wanted = self.series[1:, None]
        model.readout = nn.Linear(len(model.tau), 1)
        fit_readout(model, heard[100 : self.cut], wanted[100 : self.cut])
        error = model.readout(heard[self.cut :]) - wanted[self.cut :]
        return float(error.square().mean().sqrt() / wanted[self.cut :].std())


@torch.no_grad()
def ported(model: HRSNN, num_inputs: int, num_outputs: int, seed: int = 0, scale: float = 1.0) -> HRSNN:
    """Return a copy of a network with new input weights, times `scale`, and a new readout, for another task."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    drawn = scale * torch.randn(len(model.tau), num_inputs, generator=generator) / math.sqrt(num_inputs)
    other.inputs, other.readout = nn.Parameter(drawn), nn.Linear(len(model.tau), num_outputs)
    return other
