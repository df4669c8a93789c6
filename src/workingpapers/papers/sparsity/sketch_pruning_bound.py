"""A bound on the generalisation error of a perceptron after magnitude pruning, from what its weights cost to store.

    |f(x) - f_pruned(x)| <= sum_l |Delta_l| prod_{i<l} |W_i| prod_{i>l} |W_i pruned| |x|
    error <= R_margin + sqrt((q ln r + ln(1 / delta)) / (2 n))

Weights below a threshold are removed.  What is left of a layer needs q numbers of r levels: a sketch of m^2,
Y = A W B^T, from which the sparse matrix is recovered; or its non-zeros with their places, where they cost less.

Paper: "Generalization Bounds for Magnitude-Based Pruning via Sparse Matrix Sketching" (2023), arXiv 2305.18789.
Reconstructed: the constants are those of a counting bound that holds as it stands (a prefix code for the pruned and
rounded weights, a union over all that is chosen after a look at the data), not the paper's theorem.
"""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.engines.masks import apply_masks, masks_of
from workingpapers.experiments import Evidence, Finding, above, all_of, at_least, at_most
from workingpapers.papers.sparsity._chains import RIVALS, chain_of, inputs_of, linear_layers, margins, run
from workingpapers.papers.sparsity._code_bound import KEEPS, Bound, bound
from workingpapers.papers.sparsity._magnitude import output_gap, prune, removed, small_example
from workingpapers.papers.sparsity._sketching import Sketch, distributed_sparse, same, sketch_size
from workingpapers.tasks import Budget, fit, initialise


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of examples that a perceptron gets right."""
    chain, rows = [w.to(x) for w in chain_of(model)], inputs_of(model, x).to(x)
    return float((run(chain, rows)[-1].argmax(1) == y).double().mean())


def sparsest(model: nn.Module, x: Tensor, y: Tensor, loss: float = 0.01) -> nn.Module:
    """Return the model pruned to the smallest of KEEPS that costs at most `loss` of the accuracy."""
    dense = accuracy(model, x, y)
    return next(p for k in KEEPS if accuracy(p := prune(model, k), x, y) >= dense - loss or k == KEEPS[-1])


def iterative(
    model: nn.Module, train: Callable[[nn.Module], object], rounds: int = 3, keep: float = 0.7
) -> nn.Module:
    """Prune in rounds from an untrained model: train, prune to `keep` of what is left, rewind; train at the end.

    `train` trains a model in place; the model given stays as it is.
    """
    masks: Mapping[str, Tensor] = {}
    for number in range(1, rounds + 1):
        trained = apply_masks(copy.deepcopy(model), masks)
        train(trained)
        masks = masks_of(prune(trained, keep**number))
    ticket = apply_masks(copy.deepcopy(model), masks)
    train(ticket)
    return ticket


def complexities(model: nn.Module, found: Bound, x: Tensor, delta: float = 0.05) -> dict[str, float]:
    """Return the complexity terms of the classical bounds of the dense model, at the margin of `found`."""
    chain = chain_of(model)
    rows = inputs_of(model, x)
    rest = math.sqrt(math.log(1 / delta) / (2 * len(rows)))
    return {name: rival(chain, rows, found.margin) + rest for name, rival in RIVALS.items()}


def _shuffled(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Any, ...]:
    order = torch.arange(len(x)).flip(0)
    return model, x[order], y[order]


def _renumbered(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Any, ...]:
    other = copy.deepcopy(model)
    first, second = linear_layers(other)[:2]
    order = torch.arange(len(first.weight)).flip(0)
    first.weight.data, second.weight.data = first.weight.data[order], second.weight.data[:, order]
    return other, x, y


@paper(
    "sketch_pruning_bound",
    example=small_example,
    invariances={"order of examples": _shuffled, "order of hidden units": _renumbered},
)
def bound_report(
    model: nn.Module, x: Tensor, y: Tensor, keep: float | None = None, delta: float = 0.05, c: float = 1.0
) -> Finding:
    """Prune a trained perceptron, bound its error by its training examples, and compare with classical bounds.

    Args:
        model: nn.Sequential of Linear layers with ReLU between.
        x, y: the examples that it was trained on, (N, ...) and (N,).
        keep: share of each layer's weights that stays; by default the smallest tenth that costs at most 1 % of the
            training accuracy.
        delta: probability that a bound fails.
        c: factor in the sketch's size.
    """
    pruned = sparsest(model, x, y) if keep is None else prune(model, keep)
    found = bound(pruned, x, y, delta, c)
    others = complexities(model, found, x, delta)
    numbers = {"bound": found.value, "margin loss": found.margin_loss, "complexity": found.complexity}
    numbers |= {"margin": found.margin, "sparsity": found.sparsity, "numbers": float(found.numbers)}
    numbers |= {"levels": float(found.levels)} | {f"complexity of {n}": v for n, v in others.items()}
    return Finding(
        numbers,
        f"Without {found.sparsity:.0%} of its weights the network's error is at most {found.value:.3g} with "
        f"probability {1 - delta:g}, and the best of the other complexity terms is {min(others.values()):.3g}.",
        partial(_bars, {"pruned": found.complexity, **others}),
        {"bound": found, "pruned": pruned},
    )


def _bars(terms: Mapping[str, float]) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    axes.bar(list(terms), list(terms.values()))
    axes.set(yscale="log", ylabel="complexity term")
    return figure


def perceptron(widths: list[int]) -> nn.Sequential:
    """Build a perceptron without biases, (B, ...) -> (B, widths[-1])."""
    parts: list[nn.Module] = [nn.Flatten()]
    for width_in, width in pairwise(widths):
        parts += [nn.Linear(width_in, width, bias=False), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def _trained(budget: Budget, seed: int, widths: list[int]) -> tuple[nn.Module, nn.Module, Split]:
    """Return a perceptron before and after five epochs on MNIST, and the data."""
    split = images("mnist", train=budget.pick(quick=5000, full=20000), test=1000, seed=seed)
    start = initialise(partial(perceptron, widths), seed)
    model = copy.deepcopy(start)
    fit(model, split, epochs=5, every=10**9, seed=seed)
    return start, model, split


@claim(
    "sketch_pruning_bound",
    "Combining pruning error with a sketched parameter count gives a tighter generalisation bound than many "
    "earlier ones, and it extends to iterative pruning.",
    seeds=3,
    holds=all_of(above(0.0, of="below_all", by="every"), at_least(1.0, of="below_norms", by="every")),
)
def tighter(budget: Budget, seed: int) -> Evidence:
    """Decades by which the complexity term is below the smallest of four others, and of the three from norms.

    MNIST, the worse of 784-256-256-10 and 784-512-512-512-10; `iterative` is the smaller net's after three rounds
    of pruning and rewinding.
    """
    gains, figures = [], {}
    for widths in ([784, 256, 256, 10], [784, 512, 512, 512, 10]):
        start, model, split = _trained(budget, seed, widths)
        x, y = split.x_train, split.y_train
        found = bound(sparsest(model, x, y), x, y)
        logs = {n: math.log10(v / found.complexity) for n, v in complexities(model, found, x).items()}
        gains.append(logs)
        figures[f"complexity_{len(widths) - 1}"] = found.complexity
        if len(widths) == 4:
            train = partial(fit, split=split, epochs=5, every=10**9, seed=seed)
            figures["iterative"] = bound(iterative(start, train), x, y).complexity
    norms = [g for logs in gains for n, g in logs.items() if n != "Arora"]
    least = min(g for logs in gains for g in logs.values())
    return Evidence(below_all=least, below_norms=min(norms), **figures)


@claim(
    "sketch_pruning_bound",
    "With high probability the magnitude-pruned network stays close to the original function.",
    seeds=5,
    holds=all_of(at_least(-0.01, of="accuracy_kept"), at_least(1.0, of="covered", by="every")),
)
def close(budget: Budget, seed: int) -> Evidence:
    """At 60 % sparsity: training accuracy less the dense one; share of 1,000 test outputs within the predicted gap.

    Predicted from the Gaussian model of the weights.  `certified` is the sparsity, in twentieths, to which the
    bound on the gap stays below the median margin of the training examples.
    """
    _, model, split = _trained(budget, seed, [784, 256, 256, 10])
    x, y, few = split.x_train, split.y_train, split.x_test[:1000]
    pruned = prune(model, 0.4)
    measured, promised = output_gap(model, pruned, few, errors=[r.predicted for r in removed(model, pruned)])
    chain = chain_of(model)
    margin = float(margins(run(chain, inputs_of(model, x))[-1], y).median())
    shares = [k / 20 for k in range(1, 20)]
    certified = [
        s for s in shares if float(output_gap(model, prune(model, 1 - s), x, "lengths")[1].max()) < margin
    ]
    return Evidence(
        accuracy_kept=accuracy(pruned, x, y) - accuracy(model, x, y),
        covered=float((measured <= promised).double().mean()),
        largest_share_of_predicted=float((measured / promised).max()),
        certified=max(certified, default=0.0),
    )


@claim(
    "sketch_pruning_bound",
    "Sparse pruned matrices can be represented without loss in much smaller dense matrices.",
    seeds=3,
    holds=all_of(at_least(18, of="recovered", by="every"), at_most(5, of="from_too_small", by="every")),
    calibrated="28 x 28 gave back 17 of 20 on seed 1000: the size is now that of the formula with c = 1.",
)
def recoverable(budget: Budget, seed: int) -> Evidence:
    """How many of 20 matrices, 40 x 40 with 2 non-zeros a row and column, 33 x 33 sketches give back; 8 x 8."""
    size = sketch_size(40, 2)
    return Evidence(recovered=recovered(size, seed), from_too_small=recovered(8, seed), size=size)


def recovered(m: int, seed: int, trials: int = 20, p: int = 40, j: int = 2) -> int:
    """Return how many random sparse matrices are the same after sketching to m x m and decoding."""
    count = 0
    for trial in range(trials):
        matrix = distributed_sparse(p, j, 1000 * seed + trial)
        sketch = Sketch.draw((p, p), (m, m), 1000 * seed + trial)
        count += same(sketch.decode(sketch(matrix)), matrix)
    return count
