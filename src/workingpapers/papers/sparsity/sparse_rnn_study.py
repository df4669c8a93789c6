"""Sparse recurrent networks, made by pruning and made from random graphs, on strings of the Reber grammar.

    W <- W * 1[|W| above the p-th percentile of |W|],  for input-to-hidden, hidden-to-hidden or both matrices
    random graph -> edges from lower to higher nodes -> layers by longest path -> stacked masked recurrent layers

What pruning costs, how many epochs bring the accuracy back, and how much of the accuracy of randomly wired networks
their graphs' measures predict.

Paper: "Investigating Sparsity in Recurrent Neural Networks" (2024, a thesis of 2020); sizes and graphs are read
from the author's code.
"""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least
from workingpapers.papers.sparsity._reber import reber
from workingpapers.papers.sparsity._recurrent import CELLS, RecurrentClassifier, SparseRecurrent, prune_rnn
from workingpapers.papers.sparsity._structures import (
    correlations,
    measures,
    predict_performance,
    random_graph,
)
from workingpapers.tasks import Budget, fit, initialise

__all__ = [
    "RecurrentClassifier",
    "SparseRecurrent",
    "prune_rnn",
    "pruning",
    "random_graphs",
    "sparse_rnn_study",
]


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the test accuracy."""
    right = [
        (model(x).argmax(1) == y)
        for x, y in zip(split.x_test.split(500), split.y_test.split(500), strict=True)
    ]
    return float(torch.cat(right).double().mean())


def _strings(generator: torch.Generator) -> Split:
    return reber(40, 20, seed=int(torch.randint(1000, (), generator=generator)), longest=12)


def _pruning_example(generator: torch.Generator) -> tuple[Any, ...]:
    return _strings(generator), "gru", (50, 90), "both", 2, 1, 6


@paper("sparse_rnn_study", part="pruning", kind="study", example=_pruning_example)
def pruning(
    split: Split,
    cell: str = "lstm",
    percents: Sequence[float] = tuple(range(10, 91, 10)),
    which: str = "both",
    epochs: int = 50,
    most: int = 10,
    hidden: int = 50,
    seed: int = 0,
) -> Finding:
    """Train a recurrent classifier, prune it to several degrees, and retrain each until its accuracy is back.

    Args:
        split: strings as `reber` gives them.
        cell: "tanh", "relu", "lstm" or "gru".
        percents: how many percent of each matrix go.
        which: "input", "hidden" or "both" sorts of recurrent matrices.
        epochs: of the dense training, Adam at 3e-3 in batches of 32.
        most: epochs of retraining at most.
        hidden: units of the layer.
        seed: of initialisation and data.

    The numbers: `dense` accuracy; for each percent `pruned 90`, `retrained 90` (the best), and `epochs 90` until
    the accuracy was that of the dense network (most + 1 where it never was).
    """
    train = partial(fit, split=split, lr=3e-3, batch=32, seed=seed)
    dense = initialise(partial(RecurrentClassifier, cell, hidden), seed)
    numbers = {"dense": train(dense, epochs=epochs, every=10**9).metrics["accuracy"]}
    for percent in percents:
        model = prune_rnn(dense, percent, which)
        before = accuracy(model.eval(), split)
        curve = [point["accuracy"] for point in train(model, epochs=most).curve] if most else []
        back = [i for i, a in enumerate([before, *curve]) if a >= numbers["dense"]]
        numbers |= {f"pruned {percent:g}": before, f"retrained {percent:g}": max([before, *curve])}
        numbers[f"epochs {percent:g}"] = float(back[0] if back else most + 1)
    worst = f"{max(percents):g}"
    return Finding(
        numbers,
        f"Without {worst} % of its {which} weights the {cell} network keeps {numbers[f'pruned {worst}']:.1%} of "
        f"{numbers['dense']:.1%} accuracy, and retraining gives {numbers[f'retrained {worst}']:.1%}.",
        partial(_draw_pruning, numbers, list(percents)),
    )


def _draw_pruning(numbers: dict[str, float], percents: list[float]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for name in ("pruned", "retrained"):
        axis.plot(percents, [numbers[f"{name} {p:g}"] for p in percents], "o-", label=name)
    axis.axhline(numbers["dense"], color="grey", label="dense")
    axis.set(xlabel="percent of weights pruned", ylabel="test accuracy")
    axis.legend()
    return figure


def random_graphs(count: int, nodes: tuple[int, int] = (10, 50), seed: int = 0) -> list[Any]:
    """Return random graphs, Barabasi-Albert and Watts-Strogatz in turns, of a number of nodes in the range."""
    chance = random.Random(seed)
    kinds = ("barabasi_albert", "watts_strogatz")
    return [random_graph(kinds[i % 2], chance.randint(*nodes), chance.randrange(2**31)) for i in range(count)]


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    return _strings(generator), random_graphs(6, (5, 8)), "tanh", 1, 0, ("linear",), 2, 1


@paper("sparse_rnn_study", example=_example)
def sparse_rnn_study(
    split: Split,
    graphs: Sequence[Any],
    cell: str = "tanh",
    epochs: int = 15,
    seed: int = 0,
    regressors: Sequence[str] = ("forest", "adaboost"),
    folds: int = 5,
    repeats: int = 3,
) -> Finding:
    """Train a recurrent network wired as each graph, and predict its accuracy from the graph's measures.

    Args:
        split: strings as `reber` gives them.
        graphs: networkx graphs, see `random_graphs`.
        cell: "tanh", "relu", "lstm" or "gru".
        epochs: of Adam at 1e-2 in batches of 32.
        seed: of initialisation and data.
        regressors: of scikit-learn: "forest", "adaboost", "mlp", "linear".
        folds: of the cross-validation.
        repeats: of it, with other folds.

    The numbers: `accuracy` and its `deviation` over graphs; for each regressor `r2 forest` on graphs held out, and
    `control forest` with shuffled accuracies.  `details`: `table` of measures, `accuracies`, `correlations`.
    """
    if len(graphs) < folds:
        raise WorkingPapersError(f"{folds} folds need as many graphs; got {len(graphs)}")
    found = []
    for graph in graphs:
        model = initialise(partial(SparseRecurrent, graph, cell), seed)
        found.append(
            fit(model, split, epochs=epochs, lr=1e-2, batch=32, seed=seed, every=10**9).metrics["accuracy"]
        )
    values = [a if a == a else 0.5 for a in found]  # a diverged network knows no more than chance
    table = [measures(graph) for graph in graphs]
    spread = torch.tensor(values, dtype=torch.float64)
    numbers = {"accuracy": float(spread.mean()), "deviation": float(spread.std(correction=0))}
    for name in regressors:
        own, control = predict_performance(table, values, name, folds, repeats, seed)
        numbers |= {f"r2 {name}": own, f"control {name}": control}
    related = correlations(table, values)
    best = max(related, key=lambda name: abs(related[name]))
    return Finding(
        numbers,
        f"Measures of {len(graphs)} graphs predict accuracy with an R^2 of {numbers[f'r2 {regressors[0]}']:.2f}, "
        f"and {best} goes with it best (r = {related[best]:.2f}).",
        partial(_draw, table, values, best),
        {"table": table, "accuracies": values, "correlations": related},
    )


def _draw(table: list[dict[str, float]], values: list[float], best: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([row[best] for row in table], values, "o")
    axis.set(xlabel=best, ylabel="test accuracy")
    return figure


@claim(
    "sparse_rnn_study",
    "Recurrent nets withstand magnitude pruning and regain accuracy in some epochs, measured separately for tanh, "
    "ReLU, GRU and LSTM cells.",
    seeds=5,
    holds=all_of(
        at_least(-0.02, of="lstm_recovered"),
        at_least(-0.02, of="gru_recovered"),
        at_least(0.05, of="drop_at_90"),
    ),
)
def withstand_pruning(budget: Budget, seed: int) -> Evidence:
    """LSTM and GRU: best accuracy at 60 % after up to 2 epochs, less the dense one's; all: mean drop at 90 %."""
    split = reber(*budget.pick(quick=(2000, 1000), full=(18_750, 6250)), seed=seed)
    epochs, drops, figures = budget.pick(quick=6, full=50), [], {}
    for cell in CELLS:
        gated = cell in ("lstm", "gru")
        percents, most = ((60, 90), 2) if gated else ((90,), 0)
        found = pruning(split, cell, percents, "both", epochs, most, 50, seed).numbers
        drops.append(found["dense"] - found["pruned 90"])
        figures[f"{cell}_dense"] = found["dense"]
        if gated:
            figures[f"{cell}_recovered"] = found["retrained 60"] - found["dense"]
    return Evidence(**figures, drop_at_90=sum(drops) / len(drops))


def wired(budget: Budget, seed: int, regressors: Sequence[str]) -> Finding:
    """Return the study of networks of tanh cells wired by graphs, on strings of up to 16 symbols (full: 24)."""
    train, test, longest = budget.pick(quick=(1000, 500, 16), full=(18_750, 6250, 24))
    split = reber(train, test, seed, longest)
    count, nodes = budget.pick(quick=(24, (8, 26)), full=(200, (10, 50)))
    graphs = random_graphs(count, nodes, seed)
    return sparse_rnn_study(split, graphs, "tanh", budget.pick(quick=5, full=15), seed, regressors)


@claim(
    "sparse_rnn_study",
    "Performance of recurrent nets built from random graphs relates to properties of the underlying graph.",
    seeds=5,
    holds=at_least(0.2, of="over_control"),
)
def graphs_predict(budget: Budget, seed: int) -> Evidence:
    """R^2 of a random forest on graphs held out, over the same with shuffled accuracies; tanh cells."""
    found = wired(budget, seed, ("forest",)).numbers
    r2, control = found["r2 forest"], found["control forest"]
    return Evidence(
        over_control=r2 - control, r2=r2, accuracy=found["accuracy"], deviation=found["deviation"]
    )
