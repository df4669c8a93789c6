"""Neural collapse with linear heads: class means in a frame, the classifier along them, small classes gone.

    min  |W_M ... W_1 H - Y|^2 / (2 N) + sum_m lambda_m / 2 |W_m|^2 + lambda_H / 2 |H|^2,   H free
    p_k = max(0, 1 - N sqrt(lambda_W lambda_H / n_k)),   |h_k|^2 = p_k sqrt(lambda_W / (n_k lambda_H))    for M = 1

Without a bias the class vectors are orthogonal, with one (or cross-entropy) they form a simplex frame, in every
layer.  With sizes that differ the classifier's rows grow with the class, while features of large classes are the
shorter ones, and classes of at most N^2 lambda_W lambda_H examples vanish.

Paper: "Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data" (2023), arXiv 2301.00437.
The formulas for M layers follow from the conditions of a minimum, see `_free_features.predicted_geometry`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most
from workingpapers.papers.theory import _collapse, _free_features
from workingpapers.papers.theory._linear_heads import linear_head, one_hot_loss, with_sizes
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, initialise, mlp
from workingpapers.tasks.randomness import stream
from workingpapers.tasks.training import Training, points


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = nn.Sequential(*mlp([4, 12, 6]), nn.Linear(6, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    y = torch.arange(60) % 3
    return model, torch.randn(60, 4, generator=generator) + 2 * y[:, None], y


def _rotated(model: Any, *rest: Any) -> tuple[Any, ...]:
    """Permute and flip the units between the linear layers."""
    with torch.no_grad():
        turn = torch.eye(6)[torch.tensor([3, 0, 5, 1, 4, 2])] * torch.tensor([1.0, -1, 1, 1, -1, 1])
        model[3].weight.copy_(turn @ model[3].weight)
        model[3].bias.copy_(turn @ model[3].bias)
        model[4].weight.copy_(model[4].weight @ turn.T)
    return model, *rest


def _in_training(model: nn.Module, *rest: Any) -> tuple[Any, ...]:
    return model.train(), *rest


@paper(
    "nc_linear",
    example=_example,
    invariances={"turned features": _rotated, "training mode": _in_training},
)
def nc_linear(model: nn.Module, x: Tensor, y: Tensor, frame: str = "etf") -> Finding:
    """Measure neural collapse in the linear layers that end a classifier.

    Args:
        model: a classifier whose last module with weights is an nn.Linear; several in a row are all looked at.
        x, y: inputs (n, ...) and labels (n,), as a rule the training data.
        frame: "etf", the simplex frame of centred class means (with a bias, or cross-entropy), or "orthogonal"
            (squared error without a bias).

    The numbers, of the last layer, as in `_collapse.collapse`: `nc1` to `nc4` are 0 at full collapse, `cosine`;
    `feature_ratio` and `classifier_ratio` of the longest to the shortest class vector.  `nc1 NAME` is that of each
    linear layer, and `details["layers"]` has all of them by name.
    """
    outputs = collect(model, x, [""])[""]
    layers = {
        name: _collapse.collapse(features, y, weights, outputs, frame)
        for name, features, weights in linear_head(model, x)
    }
    name, features, weights = linear_head(model, x)[-1]
    classes, means, _ = _collapse.class_means(features, y)
    means = means - means.mean(0) if frame == "etf" else means
    numbers = dict(layers[name])
    for what, vectors in (("feature", means), ("classifier", weights[classes].double())):
        lengths = vectors.norm(dim=1)
        numbers[f"{what}_ratio"] = float(lengths.max() / lengths.min().clamp_min(1e-12))
    numbers |= {f"nc1 {layer}": found["nc1"] for layer, found in layers.items()}
    return Finding(
        numbers,
        f"Features scatter {numbers['nc1']:.3g} as much within classes as between them, and the class means are "
        f"{numbers['nc2_means']:.3g} from the frame '{frame}' (0 is full collapse).",
        lambda: _draw(means, weights[classes]),
        {"layers": layers, "classes": classes, "means": means},
    )


def _draw(means: Tensor, rows: Tensor) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(9, 3), layout="constrained")
    for ax, vectors, title in zip(axes, (means, rows), ("class means", "classifier"), strict=False):
        unit = F.normalize(vectors.double(), dim=1).cpu()
        shown = ax.imshow((unit @ unit.T).numpy(), vmin=-1, vmax=1, cmap="RdBu")
        ax.set(title=f"cosines of {title}", xlabel="class", ylabel="class")
    figure.colorbar(shown, ax=axes[1])
    axes[2].plot(means.norm(dim=1).cpu().numpy(), "o-", label="class means")
    axes[2].plot(rows.norm(dim=1).cpu().numpy(), "s-", label="classifier")
    axes[2].set(xlabel="class", ylabel="length")
    axes[2].legend()
    return figure


@paper(
    "nc_linear", part="free_features", example=lambda generator: ((6, 4, 2), 4, 1, "mse", False, 0.02, 0.01)
)
def free_features(
    sizes: Sequence[int],
    dim: int = 16,
    depth: int = 1,
    loss: str = "mse",
    bias: bool = False,
    decay: float | Sequence[float] = 5e-3,
    feature_decay: float = 5e-3,
    seed: int = 0,
) -> Finding:
    """Train free features with linear layers (`_free_features.free_features`) and compare with the theory.

    The numbers: the largest over the layers of `nc1` to `nc3`, against the orthogonal frame for "mse" without a
    bias and the simplex frame else; the `slope` left and `balance`, the gap of neighbouring layers.  For "mse"
    without a bias also `p_error`, `feature_error` and `classifier_error`, the largest relative errors of the class
    vectors that should not vanish, `vanished`, the largest length of those that should over the longest, and
    `cosine`, the largest between class means.  `details` has the model and the `Geometry`.
    """
    found = _free_features.free_features(sizes, dim, depth, loss, bias, decay, feature_decay, seed)
    orthogonal = loss == "mse" and not bias
    rows = [
        _collapse.collapse(x, found.labels, w, name="orthogonal" if orthogonal else "etf")
        for x, w in found.layers()
    ]
    worst = {name: max(row[name] for row in rows) for name in rows[0] if name != "cosine"}
    numbers = worst | {
        "slope": found.slope,
        "balance": _free_features.balance_gap(found, decay, feature_decay),
    }
    theory = _free_features.predicted_geometry(sizes, depth, decay, feature_decay) if orthogonal else None
    if theory is not None:
        numbers |= against(found, theory)
    return Finding(
        numbers,
        f"The class means are {numbers['nc2_means']:.3g} from their frame and scatter {numbers['nc1']:.3g} as much "
        "within classes as between them.",
        lambda: _draw(_collapse.class_means(found.features, found.labels)[1], found.classifier),
        {"model": found, "theory": theory},
    )


def against(found: _free_features.FreeFeatures, theory: _free_features.Geometry) -> dict[str, float]:
    """Return errors of a trained model's class vectors against the minimiser, by name as in `free_features`."""
    means = _collapse.class_means(found.features, found.labels)[1]
    kept = theory.p > 0
    measured = {
        "p": (means * found.classifier).sum(1),
        "feature": means.norm(dim=1),
        "classifier": found.classifier.norm(dim=1),
    }
    wanted = {"p": theory.p, "feature": theory.features, "classifier": theory.classifier}
    numbers = {
        f"{name}_error": float((v / wanted[name] - 1).abs()[kept].max()) if bool(kept.any()) else 0.0
        for name, v in measured.items()
    }
    longest = measured["feature"].max().clamp_min(1e-300)
    numbers["vanished"] = float(measured["feature"][~kept].max() / longest) if bool((~kept).any()) else 0.0
    kept_means = means[kept]
    numbers["cosine"] = float(_collapse.cosines(kept_means).abs().max()) if len(kept_means) > 1 else 0.0
    return numbers


CASES = {"mse": ("mse", False), "mse_bias": ("mse", True), "ce": ("ce", False)}
DEPTHS = (1, 2, 3)


@claim(
    "nc_linear",
    "Global solutions of deep linear networks show collapse across the linear layers, for squared error and cross "
    "entropy.",
    seeds=3,
    holds=all_of(
        *[
            at_most(limit, of=f"{case}{depth}_{what}", by="every")
            for case in CASES
            for depth in DEPTHS
            for what, limit in (("nc1", 1e-3), ("frame", 0.02), ("duality", 0.02))
        ],
    ),
)
def collapse_of_free_features(budget: Budget, seed: int) -> Evidence:
    """Free features, 4 classes of 20, width 16, penalties 5e-3, 1 to 3 layers: the worst of the layers.

    Of several starts the one of the lowest loss counts, as the claim is of global solutions.  The frame is
    orthogonal for squared error without a bias, else the simplex; cross-entropy has no bias.  `frame` is the
    larger distance of class means and classifier.
    """
    figures: dict[str, float] = {}
    for case, (loss, bias) in CASES.items():
        for depth in DEPTHS:
            starts = [stream(seed, f"start {i}") for i in range(budget.pick(quick=4, full=10))]
            runs = [free_features([20] * 4, 16, depth, loss, bias, seed=start) for start in starts]
            best = min(runs, key=lambda run: run.details["model"].loss).numbers
            figures[f"{case}{depth}_nc1"] = best["nc1"]
            figures[f"{case}{depth}_frame"] = max(best["nc2_means"], best["nc2_classifier"])
            figures[f"{case}{depth}_duality"] = best["nc3"]
    return Evidence(**figures)


LAMBDAS = ((5e-3, 5e-3), (2e-2, 4e-3), (1e-2, 2e-2), (2e-2, 2e-2))  # the last makes 10 examples too few


@claim(
    "nc_linear",
    "With imbalanced, bias-free squared error, class vectors become orthogonal with lengths set by class size, and "
    "the smallest classes vanish.",
    seeds=3,
    holds=all_of(
        *[at_most(0.01, of=f"{what}_error", by="every") for what in ("p", "feature", "classifier")],
        at_most(0.01, of="cosine", by="every"),
        at_most(1e-3, of="vanished", by="every"),
        at_least(1, of="classes_vanished", by="every"),
    ),
)
def lengths_by_class_size(budget: Budget, seed: int) -> Evidence:
    """Free features of classes of 100, 60, 30 and 10, one layer, four pairs of penalties: the largest errors."""
    names = ("p_error", "feature_error", "classifier_error", "cosine", "vanished")
    runs = [free_features((100, 60, 30, 10), 16, 1, "mse", False, w, h, seed) for w, h in LAMBDAS]
    gone = max(int((run.details["theory"].p == 0).sum()) for run in runs)
    return Evidence(**{n: max(run.numbers[n] for run in runs) for n in names}, classes_vanished=gone)


@claim(
    "nc_linear",
    "Experiments on synthetic and practical networks support the analysis, balanced or not.",
    seeds=5,
    holds=all_of(
        at_most(0.2, of="balanced_nc1", by="every"),
        at_most(0.2, of="imbalanced_nc1", by="every"),
        at_most(0, of="out_of_order"),
    ),
    calibrated="After seed 1000 the learning rate falls as a cosine, where it was constant: 8% of the training "
    "images were still off the nearest mean at the end, so training had not come to the phase that is meant.",
)
def trained_networks(budget: Budget, seed: int) -> Evidence:
    """Fashion-MNIST, 5 classes, an MLP with two linear layers at its end, Adam with weight decay 5e-4, 60 epochs.

    `nc1` is over that after the first epoch: cross-entropy on 600 images a class, and squared error without
    biases on 1,000 to 100.  `out_of_order` counts pairs of neighbouring sizes of which the smaller class has the
    longer row of W_2 W_1: by the formula these lengths grow with the class, those of the features do not.
    """
    data = images("fashion_mnist", train=10 * 1000, test=500, size=14, seed=seed)
    epochs = budget.pick(quick=60, full=300)
    figures: dict[str, float] = {}
    for name, counts in {"balanced": (600,) * 5, "imbalanced": (1000, 562, 316, 178, 100)}.items():
        split = with_sizes(data, counts)
        first, last = _trained(split, name == "balanced", epochs, seed)
        figures[f"{name}_nc1"] = last["nc1"] / first["nc1"]
        figures |= {f"{name}_{n}": last[n] for n in ("nc2_means", "nc3", "nc4")}
    return Evidence(**figures, **{n: last[n] for n in ("out_of_order", "features_longer")})


def _trained(split: Split, entropy: bool, epochs: int, seed: int) -> list[dict[str, float]]:
    """Train (cross-entropy and biases, or squared error without); give collapse after the first and last epoch."""
    linear = partial(nn.Linear, bias=entropy)
    model = initialise(
        lambda: nn.Sequential(*mlp([196, 256, 128]), nn.ReLU(), linear(128, 64), linear(64, 5)), seed
    )
    loss = None if entropy else one_hot_loss
    how = Training(epochs=epochs, loss=loss, weight_decay=5e-4, schedule="cosine", seed=seed)
    seen = []
    for epoch, _ in enumerate(points(model, split, how), start=1):
        if epoch not in (1, epochs):
            continue
        found = nc_linear(model, split.x_train, split.y_train, "etf" if entropy else "orthogonal")
        rows = linear_head(model, split.x_train[:2])[0][2].norm(dim=1)
        means = found.details["means"].norm(dim=1)
        longer = {
            "out_of_order": float((rows.diff() > 0).sum()),
            "features_longer": float((means.diff() > 0).sum()),
        }
        seen.append({**found.numbers, **longer})
    return seen
