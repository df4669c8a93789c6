"""A layer of two networks, unit by unit: correlations in one pass, and what recurs singly or as a subspace."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.interpret._mappings import PENALTIES, Prediction, sparse_prediction
from workingpapers.papers.interpret._matching import (
    Matching,
    Matrix,
    Moments,
    bipartite_matching,
    correlation,
    correlations_of,
    semi_matching,
)
from workingpapers.surgery.collect import collect
from workingpapers.surgery.running import channels_last


def unit_rows(module: nn.Module, y: Tensor) -> Tensor:
    """Return a layer's output as rows (n, units): a row for each example and each position of a map.

    Units are channels: dimension 1 of maps (N, C, H, W), the last of sequences (N, T, D), unless the class of the
    module says otherwise.
    """
    last = channels_last(module)
    if y.ndim < 2:
        raise WorkingPapersError(f"a layer's output is (N, units, ...); got the shape {tuple(y.shape)}")
    first = y.ndim > 3 if last is None else not last
    return (y.movedim(1, -1) if first else y).reshape(-1, y.shape[1 if first else -1])


@dataclass(frozen=True)
class Pair:
    """The same layer of two networks: correlations among all units, and a sample of rows of each.

    Attributes:
        joint: correlations (units of a and b, units of a and b), a first.
        units_a: how many are of a.
        dead: units, counted through both, that do not vary.
        rows_a, rows_b: activations (n, units) on the same examples and positions.
    """

    joint: Matrix
    units_a: int
    dead: list[int]
    rows_a: Tensor
    rows_b: Tensor

    @property
    def between(self) -> Matrix:
        """Correlations (units of a, units of b)."""
        return self.joint[: self.units_a, self.units_a :]

    @property
    def within(self) -> Matrix:
        """Correlations among the units of a."""
        return self.joint[: self.units_a, : self.units_a]

    @property
    def live(self) -> list[int]:
        """The units of a that vary."""
        return [i for i in range(self.units_a) if i not in self.dead]

    def curves(self) -> tuple[Matrix, Matrix]:
        """Return the correlations of a's live units, best first: with the best unit of b, and one to one."""
        semi, one = semi_matching(self.between), bipartite_matching(self.between)
        return -np.sort(-semi.value[self.live]), -np.sort(-one.value[self.live])

    def prediction(self, penalties: Sequence[float] = PENALTIES) -> Prediction:
        """Return the sparse prediction of the units of b from those of a."""
        return sparse_prediction(self.within, self.between, penalties)


def pair_up(
    model_a: nn.Module,
    model_b: nn.Module,
    x: Tensor,
    layer_a: str,
    layer_b: str | None = None,
    sample: int = 10_000,
    batch: int = 200,
    seed: int = 0,
) -> Pair:
    """Run both networks on `x` (N, ...) and correlate a layer's units, in one pass and little memory.

    Args:
        layer_a, layer_b: names as in `named_modules`; b's is a's by default.
        sample: how many rows are kept, drawn evenly by `seed`.
        batch: inputs at a time.
    """
    moments, generator = Moments(), torch.Generator().manual_seed(seed)
    kept, keys, units = torch.empty(0), torch.empty(0), 0
    for piece in x.split(batch):
        a, b = (
            collect(model, piece, [layer], keep=unit_rows)[layer].cpu()
            for model, layer in ((model_a, layer_a), (model_b, layer_b or layer_a))
        )
        if len(a) != len(b):
            raise WorkingPapersError(
                f"the layers have {len(a)} and {len(b)} positions for the same inputs; compare maps of one size"
            )
        rows, units = torch.cat([a, b], 1), a.shape[1]
        moments.add(rows)
        drawn = torch.rand(len(rows), generator=generator)
        keys, kept = torch.cat([keys, drawn]), torch.cat([kept, rows]) if len(kept) else rows
        keys, place = keys.topk(min(sample, len(keys)))
        kept = kept[place]
    found = correlations_of(moments)
    return Pair(found.matrix, units, found.dead_a, kept[:, :units], kept[:, units:])


def chance(pair: Pair, seed: int = 0) -> float:
    """Return the mean one-to-one correlation after the rows of b were shuffled, so that nothing recurs."""
    order = torch.randperm(len(pair.rows_b), generator=torch.Generator().manual_seed(seed))
    matrix = correlation(pair.rows_a, pair.rows_b[order]).matrix
    return float(bipartite_matching(matrix).value[pair.live].mean())


def quarters(curve: Matrix) -> dict[str, float]:
    """Return the means of the first and the last quarter of a falling curve."""
    quarter = max(1, len(curve) // 4)
    return {"top_quarter": float(curve[:quarter].mean()), "bottom_quarter": float(curve[-quarter:].mean())}


def losses(semi: Matrix, one: Matrix) -> dict[str, float]:
    """Return what one-to-one matching loses in the best half and in the worst quarter of two falling curves."""
    lost, n = semi - one, len(semi)
    return {
        "best_half_loss": float(lost[: max(1, n // 2)].mean()),
        "worst_quarter_loss": float(lost[-max(1, n // 4) :].mean()),
    }


def span_over_match(pair: Pair) -> float:
    """Return how much more variance all units of a explain of a unit of b than its one-to-one match does.

    The mean over the worse matched half of b's live units: what recurs as a subspace, but not as a unit.
    """
    matched = bipartite_matching(pair.between.T).value
    explained = 1 - pair.prediction(()).loss[0]
    live = [j for j in range(len(matched)) if pair.units_a + j not in pair.dead]
    worse = sorted(live, key=lambda j: matched[j])[: max(1, len(live) // 2)]
    return float(np.mean([explained[j] - matched[j] ** 2 for j in worse]))


def draw(pair: Pair, one: Matching, curves: tuple[Matrix, Matrix]) -> Any:
    """Draw the correlations before and after matching, and both matchings' curves."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3), layout="constrained")
    rest = np.setdiff1d(np.arange(pair.between.shape[1]), one.partner)
    columns = np.concatenate([one.partner[one.partner >= 0], rest])
    for axis, matrix, title in (
        (axes[0], pair.between, "as they come"),
        (axes[1], pair.between[:, columns], "matched one to one"),
    ):
        image = axis.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
        axis.set(xlabel="units of b", ylabel="units of a", title=title)
    figure.colorbar(image, ax=axes[1], label="correlation")
    for curve, label in zip(curves, ("best unit", "one to one"), strict=True):
        axes[2].plot(curve, label=label)
    axes[2].set(xlabel="units of a, best first", ylabel="correlation", ylim=(None, 1.02))
    axes[2].legend()
    return figure


def draw_filters(layer_a: nn.Module, layer_b: nn.Module, matched: Matching, most: int = 16) -> Any:
    """Draw the weights of matched convolutional filters side by side, those of a above, the best matched first.

    Filters (C, h, w) are averaged over their C input channels.
    """
    from matplotlib import pyplot

    weights = [getattr(layer, "weight", None) for layer in (layer_a, layer_b)]
    if not all(isinstance(w, Tensor) and w.ndim == 4 for w in weights):
        raise WorkingPapersError("filters are drawn of two layers with weights (units, C, h, w)")
    one, other = (w.detach().mean(1).cpu().numpy() for w in weights if isinstance(w, Tensor))
    order = [i for i in np.argsort(-matched.value) if matched.partner[i] >= 0][:most]
    figure, axes = pyplot.subplots(
        2, len(order), figsize=(len(order), 2.4), squeeze=False, layout="constrained"
    )
    for column, i in enumerate(order):
        for axis, picture in zip(axes[:, column], (one[i], other[matched.partner[i]]), strict=True):
            size = float(np.abs(picture).max())
            axis.imshow(picture, vmin=-size, vmax=size, cmap="RdBu_r")
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(f"{matched.value[i]:.2f}", fontsize=8)
    return figure
