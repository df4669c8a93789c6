"""Lyapunov noise pruning (LNP): a random recurrent spiking network made sparse before any training.

    J C + C J^T = -sigma^2 I,    J = diag(1 / tau) (-I + W)
    p_ij ~ L_ij |W_ij| (C_ii + C_jj - 2 C_ij) for excitation, + for inhibition

Four steps, none of which sees a task: synapses are kept by chance, p_ij of them, and made stronger in turn, L_ij
being the harmonic mean of the local Lyapunov exponents around; neurons of low betweenness go; weak synapses spread
the leading eigenvectors out; the time constants left are tuned for the dense network's Lyapunov spectrum.

Paper: "Sparse Spiking Neural Network: Exploiting Heterogeneity in Timescales for Pruning Recurrent SNN" (2024),
arXiv 2403.03409.  Reconstructed: the text was not at hand, so the Lyapunov matrix, the eigenvector step and what
tunes the time constants are as remembered.
"""

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.experiments import Evidence, above, all_of, at_least, at_most, below
from workingpapers.papers.sparsity._noise_pruning import (
    Array,
    as_array,
    bayesian,
    central,
    chances,
    covariance,
    delocalised,
    exponents,
    jacobian,
    largest,
    sampled,
    scores,
    similarity,
)
from workingpapers.papers.sparsity._spiking import HRSNN
from workingpapers.papers.sparsity._spiking_runs import (
    WAYS,
    Digits,
    MackeyGlass,
    kept,
    ported,
    pruned,
    wanted,
)
from workingpapers.surgery import note_changes
from workingpapers.tasks import Budget, initialise


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    seed = int(torch.randint(1000, (), generator=generator))
    model = initialise(lambda: HRSNN(3, 2, neurons=24, connectivity=0.5), seed)
    return model, torch.randn(2, 5, 3, generator=generator)


@paper(
    "lnp",
    example=_example,
    options={"keep_edges": 0.5, "keep_nodes": 0.5, "evaluations": 3},
    variants=[{"evaluations": 0}],
)
@torch.no_grad()
def lnp(
    model: nn.Module,
    keep_edges: float = 0.1,
    keep_nodes: float = 0.3,
    sigma: float = 1.0,
    spread: float = 0.1,
    evaluations: int = 12,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of a recurrent spiking network with few synapses and neurons.

    Args:
        model: an `HRSNN`, trained or not.
        keep_edges: share of the synapses that sampling keeps, on the average.
        keep_nodes: share of the neurons that stay, with the synapses among them.
        sigma: size of the noise of which the covariance is taken.
        spread: inverse participation ratio of the leading eigenvectors to come down to.
        evaluations: of the Bayesian optimisation of the time constants; 0 leaves them as they are.
        seed: decides what is drawn.
    """
    dense, count = wanted(model, keep_edges, keep_nodes)
    weight, inhibits = as_array(dense.weight * dense.mask), np.asarray((dense.weight * dense.mask).sum(0) < 0)
    spectrum = exponents(dense, seed=seed)
    c = covariance(jacobian(weight, as_array(dense.tau)), sigma)
    edges = int((weight != 0).sum())
    sparse = sampled(weight, chances(scores(weight, c, spectrum), keep_edges * edges), seed)
    neurons = central(sparse, count)
    inner = delocalised(sparse[np.ix_(neurons, neurons)], inhibits[neurons], spread, seed)
    sparse[np.ix_(neurons, neurons)] = inner
    smaller = kept(dense, neurons, sparse)
    if evaluations and float(smaller.tau.max()) > 0:
        smaller.tau = retuned(smaller, spectrum, evaluations, seed)
    said = [
        f"{int((inner != 0).sum())} of {edges} synapses are left, made stronger by what their chances were.",
        f"{count} of {len(weight)} neurons are left, those on most shortest paths.",
        f"The mean time constant is {float(smaller.tau.mean()):.1f} ms, {float(dense.tau.mean()):.1f} before.",
    ]
    return note_changes(smaller, said)  # type: ignore[no-any-return]


def changed_times(tau: Tensor, point: Array) -> Tensor:
    """Return m 2^a (tau / m)^(2^b) for a point (a, b) in [-1, 1]^2, m the mean, not below 1 ms."""
    mean = tau.mean()
    return (mean * 2 ** float(point[0]) * (tau / mean) ** (2 ** float(point[1]))).clamp_min(1.0)


def retuned(model: HRSNN, spectrum: Array, evaluations: int, seed: int = 0) -> Tensor:
    """Return time constants whose Lyapunov spectrum is most like `spectrum`, its largest exponent near 0.

    Their level and their spread are tuned: all of them by one factor, and their ratios to the mean by one power.
    """
    trial = copy.deepcopy(model)

    def objective(point: Array) -> float:
        trial.tau = changed_times(model.tau, point)
        return similarity(exponents(trial, seed=seed), spectrum)

    return changed_times(model.tau, bayesian(objective, np.zeros(2), evaluations, seed))


def _network(budget: Budget, seed: int, heterogeneous: bool = True) -> HRSNN:
    neurons = budget.pick(quick=400, full=1000)
    return initialise(partial(HRSNN, 1, 1, neurons=neurons, heterogeneous=heterogeneous), seed)


def _synapses(model: nn.Module) -> int:
    return int(model.get_buffer("mask").sum())


def _series(budget: Budget, seed: int) -> MackeyGlass:
    return MackeyGlass(budget.pick(quick=3000, full=10000), seed)


@claim(
    "lnp",
    "Networks pruned without seeing a task use fewer neurons and synapses, yet predict better than trained "
    "networks pruned by activity.",
    seeds=5,
    holds=all_of(
        at_least(0.02, of="over_random"),
        at_least(-0.01, of="over_activity"),
        at_most(0.95, of="error_to_random"),
    ),
)
def untrained(budget: Budget, seed: int) -> Evidence:
    """Digits: accuracy over random and over activity pruning; Mackey-Glass: error over random pruning's.

    400 neurons to 120, a tenth of the synapses sampled; the others keep as many.  Activity pruning looks at the
    task with the dense readout; at last all are fitted to each task.
    """
    dense = _network(budget, seed)
    train, test = budget.pick(quick=(1000, 350), full=(1437, 360))
    digits, series = Digits(train, test, 30, seed), _series(budget, seed)
    sparse = lnp(dense, seed=seed)
    count, edges = len(sparse.get_buffer("tau")), _synapses(sparse)
    found: dict[str, tuple[float, float]] = {}
    for by in ("lnp", *WAYS):
        scores_ = []
        for task, shape in ((digits, (64, 10, seed, 5.0)), (series, (1, 1, seed, 3.0))):
            model = sparse
            if by != "lnp":
                whole = ported(dense, *shape)
                if by == "activity":
                    task.fitted(whole)
                heard = digits.x[:300] if task is digits else series.series[None, :1000, None]
                model = pruned(whole, edges, count, by, heard, seed)
            scores_.append(task.fitted(ported(model, *shape)))  # type: ignore[arg-type]
        found[by] = (scores_[0], scores_[1])
    accuracy = {by: value for by, (value, _) in found.items()}
    errors = {f"error_{by}": value for by, (_, value) in found.items()}
    return Evidence(
        over_random=accuracy["lnp"] - accuracy["random"],
        over_activity=accuracy["lnp"] - accuracy["activity"],
        over_magnitude=accuracy["lnp"] - accuracy["magnitude"],
        error_to_random=errors["error_lnp"] / errors["error_random"],
        accuracy=accuracy["lnp"],
        synapses=float(edges),
        **errors,
    )


@claim(
    "lnp",
    "Diversity in neuron time constants is exploited to design the sparse model.",
    seeds=5,
    holds=below(1.0, of="ratio"),
)
def diverse(budget: Budget, seed: int) -> Evidence:
    """Error on Mackey-Glass of the pruned network with diverse time constants, over that with equal ones."""
    series = _series(budget, seed)
    errors = []
    for heterogeneous in (True, False):
        sparse: Any = lnp(_network(budget, seed, heterogeneous), seed=seed)
        errors.append(series.fitted(ported(sparse, 1, 1, seed, 3.0)))
    return Evidence(ratio=errors[0] / errors[1], diverse=errors[0], equal=errors[1])


@claim(
    "lnp", "The pruning is built to yield a stable recurrent network.", seeds=5, holds=above(0.0, of="nearer")
)
def stable(budget: Budget, seed: int) -> Evidence:
    """By how much less than under random pruning the largest Lyapunov exponent (1/ms) moves."""
    dense = _network(budget, seed)
    sparse: Any = lnp(dense, seed=seed)
    chance = pruned(dense, _synapses(sparse), len(sparse.tau), "random", seed=seed)
    before, after, other = (largest(m, seed) for m in (dense, sparse, chance))
    return Evidence(nearer=abs(other - before) - abs(after - before), dense=before, lnp=after, random=other)
