"""Hidden structures of sparse networks: schemes of pruning, networks made of random graphs, growth, and a search.

    class-blind: W <- W * 1[|W| > t], one t over all layers;  class-uniform: the same percent of each layer
    class-distribution: t = lambda * std(layer), one lambda;  obd: 0.5 h w^2 > t, h the Hessian's diagonal

"Classes" are layers (See et al., 2016).  Graphs become feed-forward (`GraphNet`) or recurrent networks
(`sparse_rnn_study`); what is predicted from a graph's measures alone guides a genetic search over cells.

Paper: "Experiments on Properties of Hidden Structures of Sparse Neural Networks" (2021), Sections 3 to 6; networks
and genomes are our own choice.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least
from workingpapers.papers.sparsity._compressing import (
    Compressed,
    Grow,
    accuracy,
    masks_by,
    prune,
    run_pruning,
)
from workingpapers.papers.sparsity._genomes import CellNet, CellSpace, Genome, genetic_search
from workingpapers.papers.sparsity._structures import predict_performance
from workingpapers.papers.sparsity._unit_graphs import GraphNet, structure
from workingpapers.papers.sparsity.sparse_rnn_study import wired
from workingpapers.tasks import Budget, fit, initialise, mlp

__all__ = [
    "CellNet",
    "CellSpace",
    "Compressed",
    "GraphNet",
    "Grow",
    "genetic_search",
    "hidden_structure_sparse",
    "masks_by",
    "predict_performance",
    "prune",
    "run_pruning",
    "structure",
]


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    y = torch.arange(40) % 3
    x = torch.randn(40, 5, generator=generator) + y[:, None]
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    return model, Split(x, y, x, y, 3, "example"), (50.0, 80.0), ("class-blind", "obd"), 2, 1


@paper("hidden_structure_sparse", example=_example)
def hidden_structure_sparse(
    model: nn.Module,
    split: Split,
    percents: Sequence[float] = (20.0, 40.0, 60.0, 80.0, 90.0, 95.0),
    schemes: Sequence[str] = ("class-blind", "class-uniform", "class-distribution", "random"),
    rounds: int = 1,
    epochs: int = 2,
    lr: float = 1e-3,
    seed: int = 0,
) -> Finding:
    """Compare schemes of pruning on a trained classifier, each followed by retraining.

    Args:
        model: the trained network.
        split: data to retrain and test on.
        percents: how many percent of all weights go.
        schemes: see `prune`.
        rounds: 1 prunes in one shot; more retrain in between.
        epochs: of retraining, in each round.
        lr: learning rate of Adam.
        seed: of the data's order and of random scores.

    The numbers: `dense` accuracy, `class-blind 80` after retraining and `class-blind 80 before` it, and so on;
    `details["compressed"]` has the results by scheme.
    """
    if not percents or not schemes:
        raise WorkingPapersError("the study compares at least one scheme at one percentage; got none")
    modes = {module: module.training for module in model.modules()}
    numbers = {"dense": accuracy(model, split)}
    for module, mode in modes.items():
        module.training = mode
    found = {s: run_pruning(model, split, percents, s, rounds, epochs, lr, seed) for s in schemes}
    for scheme, results in found.items():
        for one in results:
            numbers |= {
                f"{scheme} {one.percent:g}": one.after,
                f"{scheme} {one.percent:g} before": one.before,
            }
    last = max(percents)
    best = max(schemes, key=lambda s: numbers[f"{s} {last:g}"])
    return Finding(
        numbers,
        f"Without {last:g} % of the weights {best} pruning keeps most, {numbers[f'{best} {last:g}']:.1%} accuracy "
        f"of {numbers['dense']:.1%}.",
        partial(_draw, numbers, list(percents), list(schemes)),
        {"compressed": found},
    )


def _draw(numbers: dict[str, float], percents: list[float], schemes: list[str]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for scheme in schemes:
        axis.plot(percents, [numbers[f"{scheme} {p:g}"] for p in percents], "o-", label=scheme)
    axis.axhline(numbers["dense"], color="grey", label="dense")
    axis.set(xlabel="percent of weights pruned", ylabel="test accuracy after retraining")
    axis.legend(fontsize=7)
    return figure


@claim(
    "hidden_structure_sparse",
    "Class-blind magnitude pruning with retraining can even improve accuracy, while class-uniform pruning is "
    "clearly worse.",
    figure="97.5% MNIST at 80% compression, 0.5 points above no compression",
    seeds=5,
    holds=all_of(at_least(-0.01, of="blind_over_dense"), at_least(0.01, of="blind_over_uniform")),
)
def blind_and_uniform(budget: Budget, seed: int) -> Evidence:
    """MLP 784-300-100-10 on MNIST, 2 epochs of retraining: class-blind at 80 % over dense, over uniform at 95 %."""
    train, test, epochs = budget.pick(quick=(3000, 1000, 5), full=(5000, 10_000, 20))
    split = images("mnist", train=train, test=test, seed=seed)
    model = initialise(partial(mlp, [784, 300, 100, 10]), seed)
    fit(model, split, epochs=epochs, every=10**9, seed=seed)
    found = hidden_structure_sparse(
        model, split, (80.0, 95.0), ("class-blind", "class-uniform"), seed=seed
    ).numbers
    return Evidence(
        blind_over_dense=found["class-blind 80"] - found["dense"],
        blind_over_uniform=found["class-blind 95"] - found["class-uniform 95"],
        dense=found["dense"],
    )


@claim(
    "hidden_structure_sparse",
    "Structural information alone predicts how recurrent nets perform on the Reber grammar.",
    figure="R^2 up to 0.81",
    seeds=5,
    holds=all_of(at_least(0.2, of="r2"), at_least(0.2, of="over_control")),
)
def structure_predicts(budget: Budget, seed: int) -> Evidence:
    """R^2 on graphs held out, the better of a random forest and AdaBoost, alone and over shuffled accuracies."""
    found = wired(budget, seed, ("forest", "adaboost")).numbers
    best = max(("forest", "adaboost"), key=lambda name: found[f"r2 {name}"])
    return Evidence(r2=found[f"r2 {best}"], over_control=found[f"r2 {best}"] - found[f"control {best}"])


def reached(values: Sequence[float], goal: float) -> int:
    """Return after how many evaluations the best value was at least `goal`; one more than all where never."""
    return next((i + 1 for i, v in enumerate(values) if v >= goal), len(values) + 1)


@claim(
    "hidden_structure_sparse",
    "A genetic search enhanced by performance prediction finds good image nets.",
    figure="82.4% on CIFAR10",
    seeds=5,
    holds=all_of(at_least(-0.005, of="gain"), at_least(0.0, of="evaluations_saved")),
)
def predicted_search(budget: Budget, seed: int) -> Evidence:
    """Cells for digits: best validation accuracy with the predictor over that without, at equal evaluations.

    `evaluations_saved` is how many fewer it takes with the predictor to reach 95 % of the best of both.
    """
    split = images("digits", seed=seed)
    cut = 800
    inner = replace(
        split,
        x_train=split.x_train[:cut],
        y_train=split.y_train[:cut],
        x_test=split.x_train[cut:],
        y_test=split.y_train[cut:],
    )
    epochs = budget.pick(quick=2, full=10)

    def objective(genome: Genome) -> float:
        model = initialise(partial(CellNet, genome), seed)
        return fit(model, inner, epochs=epochs, lr=5e-3, every=10**9, seed=seed).metrics["accuracy"]

    evaluations = budget.pick(quick=24, full=40)
    values = {
        name: [t.value for t in genetic_search(CellSpace(5), objective, evaluations, seed, predictor=name)]
        for name in ("forest", None)
    }
    best = {name: max(v) for name, v in values.items()}
    goal = 0.95 * max(best.values())
    return Evidence(
        gain=best["forest"] - best[None],
        evaluations_saved=reached(values[None], goal) - reached(values["forest"], goal),
        best=best["forest"],
    )
