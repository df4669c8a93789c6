"""Task structure and nonlinearity: a hidden layer keeps the geometry of its inputs, or takes that of its targets.

    Z = phi(W X + b),     CKA(Z Z', Y Y') against CKA(Z Z', X X') of conditions' mean activity, inputs and targets

Tanh units tend to copy the targets.  ReLU units fall silent on one side, so that each comes to serve a region of
the inputs, and what the inputs looked like stays visible.

Paper: "Task structure and nonlinearity jointly determine learned representational geometry" (2024), Sections 2 to
4.  The family of tasks here, corners of a hypercube blended with unrelated means, stands in for the paper's own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.engines.ranks import participation_ratio
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, below
from workingpapers.papers.theory import _conditions as tasks
from workingpapers.papers.theory._alignment import cka
from workingpapers.papers.theory._one_hidden import Trained, train
from workingpapers.surgery.choose import Modules
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget
from workingpapers.tasks.randomness import stream


def geometry(
    rows: Tensor, inputs: Tensor, values: Tensor, condition: Tensor, probes: bool = True, seed: int = 0
) -> dict[str, float]:
    """Return the geometry of activations by condition.

    Args:
        rows: activations (n, units).
        inputs: (n, ...), of the same examples.
        values: target values (n, outputs), or integer labels (n,).
        condition: (n,) integers, at least 2 different.
        probes: train linear classifiers too.
        seed: decides the halves that they are trained on.

    Of mean activity by condition: `target` and `input`, centred kernel alignments to mean targets and inputs, and
    `dimension`, the participation ratio.  For an even number of conditions `parallelism`, and with `probes`
    `cross_condition` of the first target, where that is a balanced dichotomy, and `separability`, the share of
    balanced dichotomies that a linear classifier gets right on rows that it has not seen, on average (of up to
    35).
    """
    if not len(rows) == len(inputs) == len(values) == len(condition):
        raise WorkingPapersError(
            f"activations, inputs, targets and conditions are of the same examples; got {len(rows)}, "
            f"{len(inputs)}, {len(values)} and {len(condition)}"
        )
    known, index = condition.unique(return_inverse=True)
    flat = values if values.ndim > 1 else F.one_hot(values.long())
    z, x, y = (tasks.condition_means(v.reshape(len(v), -1), index) for v in (rows, inputs, flat))
    numbers = {"target": cka(z, y), "input": cka(z, x), "dimension": participation_ratio(z, centre=True)}
    first = (y[:, 0] - y[:, 0].mean()).sign()
    if len(known) >= 4 and len(known) <= 12 and abs(int(first.sum())) == 0 and bool((first != 0).all()):
        numbers["parallelism"] = tasks.parallelism(z, first)
        if probes:
            numbers["cross_condition"] = tasks.cross_condition(rows, index, first, seed=seed)
    if probes and len(known) % 2 == 0 and len(known) <= 8:
        sides = list(tasks.dichotomies(len(known)))
        numbers["separability"] = float(np.mean([tasks.separability(rows, index, s, seed) for s in sides]))
    return numbers


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    seed = int(torch.randint(100, (), generator=generator))
    return ("tanh", "relu"), (0.0, 1.0), "single", 2, 12, seed, True, 0.95


@paper("task_geometry", example=_example)
def task_geometry(
    activations: Sequence[str] = ("tanh", "relu"),
    deltas: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    target: str = "single",
    bits: int = 2,
    each: int = 100,
    seed: int = 0,
    probes: bool = True,
    accuracy: float | None = None,
) -> Finding:
    """Train networks of one hidden layer on tasks from structured to unstructured inputs and compare geometries.

    Args:
        activations: of `ACTIVATIONS`; all start from the same weights.
        deltas: 0, inputs on a hypercube of the latents, to 1, unrelated inputs.
        target: "single" latent, "xor", "all" latents or a "random" dichotomy.
        bits: binary latents, so 2^bits conditions.
        each: trials of each condition.
        seed: decides inputs, targets and weights.
        probes: as for `geometry`.
        accuracy: stop training there; by default it goes on for 600 steps.

    The numbers: "MEASURE ACTIVATION DELTA", measures as in `geometry`; `conditions_per_unit`, how many conditions
    a hidden unit stands for, small where units specialise.  `details["networks"]` has the trained networks.
    """
    numbers: dict[str, float] = {}
    networks: dict[tuple[str, float], Trained] = {}
    for delta in deltas:
        data = tasks.trials(
            bits, delta, target, each, torch.Generator().manual_seed(stream(seed, f"{delta}"))
        )
        for name in activations:
            net = networks[name, delta] = train(data, name, accuracy=accuracy, seed=seed)
            found = geometry(net.hidden, data.x, data.y, data.condition, probes, seed)
            readout: Any = net.model[2]
            z = tasks.condition_means(net.hidden, data.condition)
            found["conditions_per_unit"] = tasks.conditions_per_unit(z, readout.weight.detach())
            numbers |= {f"{what} {name} {delta:g}": value for what, value in found.items()}
    means = {
        (what, name): float(np.mean([numbers[f"{what} {name} {d:g}"] for d in deltas]))
        for what in ("target", "input")
        for name in activations
    }
    copying = max(activations, key=lambda name: means["target", name])
    return Finding(
        numbers,
        f"On average the hidden layer of {copying} is nearest to the targets, with an alignment of "
        f"{means['target', copying]:.2f} to them and {means['input', copying]:.2f} to the inputs.",
        lambda: _draw(numbers, activations, deltas),
        {"networks": networks},
    )


def _draw(numbers: dict[str, float], activations: Sequence[str], deltas: Sequence[float]) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(9, 3), layout="constrained")
    words = ("alignment to targets", "alignment to inputs", "dimension")
    for ax, what, label in zip(axes, ("target", "input", "dimension"), words, strict=True):
        for name in activations:
            ax.plot(list(deltas), [numbers[f"{what} {name} {d:g}"] for d in deltas], "o-", label=name)
        ax.set(xlabel="delta (0 structured, 1 not)", ylabel=label)
    axes[0].legend()
    return figure


def _report_example(generator: torch.Generator) -> tuple[Any, ...]:
    data = tasks.trials(2, 0.3, "single", 15, generator, dim=6)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model, data.x, data.condition, data.y


def _in_training(model: nn.Module, *rest: Any) -> tuple[Any, ...]:
    return model.train(), *rest


@paper(
    "task_geometry",
    part="report",
    kind="analysis",
    example=_report_example,
    invariances={"training mode": _in_training},
)
def geometry_report(
    model: nn.Module,
    x: Tensor,
    condition: Tensor,
    values: Tensor,
    layers: Modules | None = None,
    probes: bool = True,
) -> Finding:
    """Measure in each layer of any model whether conditions lie as in the inputs or as in the targets.

    Args:
        model, x: the model and inputs (n, ...).
        condition: which condition, such as a class, each input belongs to, integers (n,).
        values: target values (n, outputs), or labels (n,).
        layers: modules whose outputs are measured; by default every module without parts.
        probes: as for `geometry`.

    The numbers: those of `geometry`, with the layer's name behind.
    """
    collected = collect(model, x, layers)
    numbers: dict[str, float] = {}
    for name, rows in collected.items():
        found = geometry(rows.reshape(len(rows), -1), x, values, condition, probes)
        numbers |= {f"{what} {name}": value for what, value in found.items()}
    last = list(collected)[-1]
    return Finding(
        numbers,
        f"Layer {last or 'output'} is aligned {numbers[f'target {last}']:.2f} to the targets and "
        f"{numbers[f'input {last}']:.2f} to the inputs.",
    )


@claim(
    "task_geometry",
    "Over a whole family of tasks, hidden layers with tanh reflect the target structure, while ReLU hidden layers "
    "keep more of the raw input structure.",
    seeds=5,
    holds=all_of(
        at_least(0.8, of="target_wins"), at_least(0.05, of="target_gap"), at_least(0.7, of="input_wins")
    ),
    calibrated="After seed 1000 networks train for all 600 steps, where they stopped at an accuracy of 99%: that "
    "came after 30 to 80 steps, when the hidden layer had hardly moved from its start (mean gap 0.006).",
)
def tanh_takes_targets_relu_keeps_inputs(budget: Budget, seed: int) -> Evidence:
    """Fifteen tasks (five deltas; a latent, XOR, a random dichotomy), two latents; tanh and ReLU from one start.

    `target_wins`: share of tasks where tanh is the nearer to the targets; `input_wins`: where ReLU is the nearer
    to the inputs; the gaps are mean differences, tanh less ReLU and ReLU less tanh.
    """
    pairs = []
    for target in ("single", "xor", "random"):
        found = task_geometry(
            target=target, each=budget.pick(quick=100, full=500), seed=seed, probes=False
        ).numbers
        pairs += [
            [
                found[f"{what} tanh {delta:g}"] - found[f"{what} relu {delta:g}"]
                for what in ("target", "input")
            ]
            for delta in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]
    gaps = np.array(pairs)
    return Evidence(
        target_wins=(gaps[:, 0] > 0).mean(),
        target_gap=gaps[:, 0].mean(),
        input_wins=(gaps[:, 1] < 0).mean(),
        input_gap=-gaps[:, 1].mean(),
    )


@claim(
    "task_geometry",
    "For low-dimensional targets, tanh yields more disentangled hidden representations than ReLU.",
    seeds=5,
    holds=all_of(
        below(1, of="dimension_ratio", by="median"), at_least(0, of="parallelism_gain", by="median")
    ),
    calibrated="Networks train for all 600 steps, as for the first claim, where they stopped at 99% accuracy.",
)
def tanh_is_lower_dimensional(budget: Budget, seed: int) -> Evidence:
    """One latent as the target, delta 0.25, means over six draws of the task: dimension and abstraction.

    `dimension_ratio`, participation ratio of tanh over ReLU's; `parallelism_gain` and `cross_condition_gain`,
    tanh less ReLU.
    """
    rows = []
    for draw in range(budget.pick(quick=6, full=20)):
        found = task_geometry(deltas=(0.25,), seed=stream(seed, f"draw {draw}")).numbers
        names = ("dimension", "parallelism", "cross_condition")
        rows.append([[found[f"{n} {a} 0.25"] for n in names] for a in ("tanh", "relu")])
    (dimension, parallel, cross), other = np.array(rows).mean(0)
    return Evidence(
        dimension_ratio=dimension / other[0],
        parallelism_gain=parallel - other[1],
        cross_condition_gain=cross - other[2],
    )
