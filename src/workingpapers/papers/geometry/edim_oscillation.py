"""Layerwise effective dimension: what becomes of the rank of a batch in a random ReLU network of finite width.

    H_{l+1} = act(H_l W_l),   EDim(l) = rank of H_l (m, n),   stated: E EDim(l) = m [1 - (1 - 2/pi)^l]

with revivals at l_k = (k + 1/2) pi / log(1/rho) of height (1 - exp(-pi/2)) m.  In wide networks the correlation of
two inputs only grows with depth (`next_correlation`), so soft ranks fall and do not come back.

Paper: "Some Theoretical Results on Layerwise Effective Dimension Oscillations in Finite Width ReLU Networks"
(2025), arXiv 2507.07675, abstract; it does not say which rank or rho is meant: `engines.ranks` are all measured.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.engines.ranks import rank_notions
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, Finding, all_of, at_least
from workingpapers.papers.geometry._edim_theory import (
    correlation_curve,
    revival_depths,
    revival_height,
    stated_rank,
)
from workingpapers.surgery.choose import Modules
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, mlp

Curves = dict[str, NDArray[np.float64]]
WEIGHTS = ("gaussian", "orthogonal")
CLOSE = 0.05  # of m: how near a curve must be to the formula, and how far it must rise, to reproduce them


def random_weight(rows: int, columns: int, weights: str, generator: torch.Generator) -> Tensor:
    """Return W (rows, columns) in float64: Gaussian of variance 2 / rows, or sqrt 2 times (semi-)orthogonal."""
    if weights not in WEIGHTS:
        raise unknown("choice of weights", weights, WEIGHTS)
    drawn = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    if weights == "gaussian":
        return drawn * math.sqrt(2 / rows)
    q, r = torch.linalg.qr(drawn if rows >= columns else drawn.T)
    q = q * r.diagonal().sign()  # so that it is uniform over orthogonal matrices
    w: Tensor = math.sqrt(2) * (q if rows >= columns else q.T)
    return w


def random_features(
    x: Tensor, width: int, depth: int, slope: float, weights: str, generator: torch.Generator
) -> list[Tensor]:
    """Return the batch x (m, d) and what `depth` random layers make of it, (m, width) each, in float64.

    `slope` is that of the activation below 0: 0 for ReLU, 1 for none.
    """
    found = [x.double()]
    for _ in range(depth):
        w = random_weight(found[-1].shape[1], width, weights, generator)
        found.append(nn.functional.leaky_relu(found[-1] @ w, slope))
    return found


def rank_curves(layers: Sequence[Tensor], centre: bool = False) -> Curves:
    """Return every notion of rank by name, each (len(layers),), of activations (m, ...) of successive layers."""
    rows = [rank_notions(h, centre=centre) for h in layers]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def mean_cosine(rows: Tensor) -> float:
    """Return the mean cosine of the pairs of rows (m, units), m > 1; rows of zeros have cosine 0."""
    unit = nn.functional.normalize(rows.double().flatten(1), eps=1e-300)
    m = len(unit)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / max(1, m * (m - 1)))


def deviation(curve: NDArray[np.float64], m: int, layers: int = 8) -> float:
    """Return how far a mean curve, from layer 0, is from the formula over layers 1 to `layers`, in shares of m."""
    last = min(layers, len(curve) - 1)
    return float(max(abs(curve[i] - stated_rank(i, m)) for i in range(1, last + 1))) / m


def revivals(curve: NDArray[np.float64], m: int) -> tuple[float, int]:
    """Return how far a mean curve rises over an earlier layer, in shares of m, and its interior local maxima.

    Both from layer 1, as a wider layer may raise the inputs' soft ranks; maxima of at least `CLOSE` m.
    """
    from scipy.signal import find_peaks

    layers = curve[1:]
    rise = float((layers - np.minimum.accumulate(layers)).max()) / m
    return rise, len(find_peaks(layers, prominence=CLOSE * m)[0])


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    return 8, 12, 4, 6, 0.1, "gaussian", 3


@paper("edim_oscillation", example=_example)
def edim_oscillation(
    m: int = 64,
    width: int = 256,
    depth: int = 20,
    inputs: int = 64,
    slope: float = 0.0,
    weights: str = "gaussian",
    networks: int = 20,
    centre: bool = False,
    seed: int = 0,
) -> Finding:
    """Measure ranks layer by layer in random networks, and judge the paper's formula and its revivals.

    Args:
        m: how many Gaussian inputs, the most that a rank can be with m <= inputs and width.
        width, depth, inputs: of the networks, and the dimension of the inputs.
        slope: of the activation below 0.
        weights: "gaussian" of variance 2 / fan-in, or "orthogonal" times sqrt 2.
        networks: how many, over which curves are averaged; each has inputs of its own.
        centre: subtract each unit's mean over the batch first.

    The numbers for each notion: its mean at layer 1 and at the last, `deviation` from the formula over layers 1 to
    8 and `rise` over an earlier layer, both in shares of m, and `maxima` between; and the mean cosine of two inputs
    at the last layer, with that of wide networks.  `details` has `mean` and `std` (depth + 1,) by notion, from
    layer 0, `formula`, `cosine` and `cosine_predicted` with it, `revival_depths`, and `verdicts`.
    """
    if min(m, width, depth, inputs, networks) < 1:
        raise WorkingPapersError("inputs, widths, depth and networks are counted from 1")
    generator = torch.Generator().manual_seed(seed)
    runs, cosines = [], []
    for _ in range(networks):
        x = torch.randn(m, inputs, dtype=torch.float64, generator=generator)
        layers = random_features(x, width, depth, slope, weights, generator)
        runs.append(rank_curves(layers, centre))
        cosines.append([mean_cosine(h) for h in layers])
    stacked = {name: np.stack([run[name] for run in runs]) for name in runs[0]}
    mean = {name: found.mean(0) for name, found in stacked.items()}
    cosine, predicted = np.mean(cosines, axis=0), correlation_curve(depth, slope)
    numbers = {f"cosine at {depth}": float(cosine[-1]), "cosine predicted": predicted[-1]}
    verdicts = {}
    for name, curve in mean.items():
        rise, maxima = revivals(curve, m)
        gap = deviation(curve, m)
        values = (float(curve[1]), float(curve[-1]), gap, rise, float(maxima))
        names = ("at 1", f"at {depth}", "deviation", "rise", "maxima")
        numbers |= {f"{name} {what}": value for what, value in zip(names, values, strict=True)}
        verdicts[name] = {"formula": gap <= CLOSE, "revivals": rise >= CLOSE}
    formula = np.array([stated_rank(i, m) for i in range(depth + 1)])
    both = [name for name, verdict in verdicts.items() if all(verdict.values())]
    return Finding(
        numbers,
        f"Formula and revivals are {'reproduced by ' + ', '.join(both) if both else 'not reproduced by any rank'}: "
        f"the exact rank is {mean['exact'][1]:.3g} of {m} at layer 1 and {mean['exact'][-1]:.3g} at {depth}, the "
        f"stable rank {mean['stable'][1]:.3g} and {mean['stable'][-1]:.3g}.",
        lambda: _draw({**mean, "formula": formula}),
        {
            "mean": mean, "std": {name: found.std(0) for name, found in stacked.items()}, "formula": formula,
            "revival_depths": revival_depths(3), "revival_height": revival_height(m), "verdicts": verdicts,
            "cosine": cosine, "cosine_predicted": np.array(predicted),
        },
    )  # fmt: skip


def _model_example(generator: torch.Generator) -> tuple[Any, ...]:
    model = mlp([6, 12, 9, 4])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model, torch.randn(10, 6, generator=generator)


def _in_training(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    return model.train(), x


def _reordered(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    return model, x.flip(0)


@paper(
    "edim_oscillation",
    part="model",
    kind="analysis",
    example=_model_example,
    invariances={"training mode": _in_training, "order of the examples": _reordered},
)
def effective_dimensions(
    model: nn.Module, x: Tensor, modules: Modules | None = None, centre: bool = False
) -> Finding:
    """Measure the ranks of a model's activations, layer by layer, on a batch.

    Args:
        model: any model (m, ...) -> outputs.
        x: the batch (m, ...); no rank is above m, so take as many examples as the widest layer has units.
        modules: whose outputs, as in `surgery.collect`; by default every module without parts of its own.
        centre: subtract each unit's mean over the batch first.

    The numbers are the stable and the exact rank by module, and `lowest`, the least share of the inputs' stable
    rank that a module has.  `details["ranks"]` has every notion by module, as they ran, `inputs` first.
    """
    layers = {"inputs": x, **collect(model, x, modules)}
    ranks = {name: rank_notions(h.flatten(1), centre=centre) for name, h in layers.items() if h.ndim > 1}
    shares = {name: found["stable"] / max(ranks["inputs"]["stable"], 1.0) for name, found in ranks.items()}
    lowest = min(shares, key=lambda name: shares[name])
    return Finding(
        {
            **{
                f"{what} {name}": found[what] for what in ("stable", "exact") for name, found in ranks.items()
            },
            "lowest": shares[lowest],
        },
        f"The stable rank is lowest in {lowest!r}: {ranks[lowest]['stable']:.3g}, of "
        f"{ranks['inputs']['stable']:.3g} in the inputs.",
        lambda: _draw({what: np.array([r[what] for r in ranks.values()]) for what in ranks["inputs"]}),
        {"ranks": ranks},
    )


def _draw(curves: Curves) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(curve, "k--" if name == "formula" else "o-", markersize=3, label=name)
    axes.set(xlabel="layer (0: inputs)", ylabel="rank", ylim=(0, None))
    axes.legend(fontsize="small")
    return figure


@claim(
    "edim_oscillation",
    "Expected activation rank follows a closed form with geometric decay of its deficit, and revives at certain "
    "depths.",
    figure="E[EDim(l)] = m[1-(1-2/pi)^l]; ratio approx 0.3634; peak height approx 0.79 m",
    seeds=3,
    holds=at_least(1, of="reproduced", by="every"),
)
def formula_and_revivals(budget: Budget, seed: int) -> Evidence:
    """Networks of widths 64, 96, 256 on 64 inputs of dimension 64 and 512: how many notions show both.

    `deviation` is the least of all notions from the formula, `rise` the largest over an earlier layer.
    """
    m, networks = 64, budget.pick(quick=20, full=200)
    found = [
        edim_oscillation(m, width, 20, inputs, networks=networks, centre=centre, seed=seed)
        for width in (64, 96, 256)
        for inputs in (64, 512)
        for centre in (False, True)
    ]
    gaps, rises = (
        [v for f in found for name, v in f.numbers.items() if name.endswith(what)]
        for what in (" deviation", " rise")
    )
    return Evidence(
        reproduced=sum(all(v.values()) for f in found for v in f.details["verdicts"].values()),
        deviation=min(gaps),
        rise=max(rises),
        exact_at_1=float(np.mean([f.numbers["exact at 1"] for f in found])) / m,
    )


@claim(
    "edim_oscillation",
    "Orthogonal weights or a strong leaky slope keep the rank nearly full, so oscillation is a finite-width "
    "effect.",
    seeds=3,
    holds=all_of(
        at_least(0.95, of="leaky", by="every"),
        at_least(0.95, of="orthogonal", by="every"),
        at_least(0.0, of="leaky_over_relu", by="every"),
    ),
)
def kept_by_slope_or_orthogonality(budget: Budget, seed: int) -> Evidence:
    """Width 256, 64 inputs, singular values above 1 % of the largest, in shares of 64, at layer 10.

    `leaky` has slope 0.5, `orthogonal` goes with ReLU; `leaky_over_relu` is a difference at layer 20.
    """
    m, networks = 64, budget.pick(quick=20, full=200)
    choices = {"relu": (0.0, "gaussian"), "leaky": (0.5, "gaussian"), "orthogonal": (0.0, "orthogonal")}
    curves = {
        name: edim_oscillation(m, 256, 20, m, slope, weights, networks, seed=seed).details["mean"][
            "above 0.01"
        ]
        / m
        for name, (slope, weights) in choices.items()
    }
    shares = {name: float(curve[10]) for name, curve in curves.items()}
    deeper = {f"{name}_at_20": float(curve[20]) for name, curve in curves.items()}
    return Evidence(**shares, **deeper, leaky_over_relu=float(curves["leaky"][20] - curves["relu"][20]))
