"""Which activations fire: shares of non-zeros, keeping the largest k, and what zeros save."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.activity.batches import batches_of, device_of
from workingpapers.engines.activity.places import watching
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.surgery.activations import module_named
from workingpapers.surgery.changes import note_changes
from workingpapers.surgery.choose import Modules, choose
from workingpapers.surgery.running import call
from workingpapers.surgery.units import Units


@torch.no_grad()
def nonzero_shares(model: nn.Module, data: Any, threshold: float = 0.0, batch: int = 64) -> dict[str, float]:
    """Return the share of entries of each hidden activation that are larger in size than a threshold.

    Means over tokens or examples, places of maps, and units.  Hidden are activations with a layer behind them;
    those that a function call makes count too.

    Args:
        model: any model; it stays as it is and runs in evaluation mode.
        data: a tensor (N, ...), or as `observe` takes it.
        threshold: 0 counts what is not exactly zero, for ReLU; smooth activations such as GELU need one above.
        batch: examples at a time.
    """
    sums: dict[str, Tensor] = {}
    open_ends: list[str] = []  # activations that no layer has followed yet
    hidden: set[str] = set()

    def seen(
        kind: str, name: str, module: nn.Module, held: str | None, before: Any, output: Tensor, last: bool
    ) -> None:
        if kind == "layer":
            hidden.update(open_ends)
            open_ends.clear()
        elif kind == "activation":
            open_ends.append(name)
            fired = (output.abs() > threshold).sum().cpu()
            found = torch.stack([fired, torch.tensor(output.numel())])
            sums[name] = sums.get(name, torch.zeros(2, dtype=torch.long)) + found

    device = device_of(model)
    with watching(model, seen) as begin:
        for part in batches_of(data, batch):
            begin()
            open_ends.clear()
            part = part.to(device)
            call(model, dict(part.named) if part.named else part.arguments)
    if not hidden:
        raise WorkingPapersError(f"{type(model).__name__} has no activation with a layer behind it")
    return {name: int(sums[name][0]) / int(sums[name][1]) for name in sums if name in hidden}


class KeepLargest(nn.Module):
    """Keep the `k` largest of the last dimension of (..., width) and set the others to 0; k >= width keeps all."""

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 0:
            raise WorkingPapersError(f"k counts entries that are kept, 0 or more; got {k}")
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with zeros."""
        if self.k >= x.shape[-1]:
            return x
        values, places = x.topk(self.k, -1)
        return torch.zeros_like(x).scatter(-1, places, values)

    def extra_repr(self) -> str:
        """Name k."""
        return f"k={self.k}"


def keeping_largest(model: nn.Module, k: int, modules: Modules | None = None) -> nn.Module:
    """Return a copy in which chosen activation modules keep the k largest of each token; see `topk_mlp`."""
    fresh = copy.deepcopy(model)
    known = {m for n, m in fresh.named_modules() if module_named(m, n) not in (None, "identity")}
    chosen = [m for _, m in choose(fresh, modules)] if modules is not None else list(known)
    if not chosen:
        raise WorkingPapersError(
            f"{type(model).__name__} holds no activation module; swap its called activations for modules first"
        )
    new: dict[nn.Module, nn.Module] = {m: nn.Sequential(m, KeepLargest(k)).train(m.training) for m in chosen}
    if fresh in new:
        return note_changes(new[fresh], [f"The model keeps the {k} largest."])  # type: ignore[no-any-return]
    done = []
    for name, holder in list(fresh.named_modules()):
        for child, module in holder._modules.items():
            if module in new and holder not in new.values():
                holder._modules[child] = new[module]
                done.append(f"{name}.{child}".lstrip("."))
    return note_changes(fresh, [f"{name} keeps the {k} largest of each token." for name in done])  # type: ignore[no-any-return]


def second_matrix_cost(
    units: Mapping[str, Units], shares: Mapping[str, float]
) -> dict[str, tuple[int, float]]:
    """Return for each activation the multiply-adds a token of the layers that read it: all, and without zeros.

    Args:
        units: of the model, as `surgery.units.units_of` gives them.
        shares: of non-zeros by activation.
    """
    found: dict[str, tuple[int, float]] = {}
    for layer in units.values():
        for place in layer.activations:
            if place.name not in shares or not layer.closed or place.name in found:
                continue
            read = [r for r in layer.readers if r.start == place.start]
            dense = sum(r.layer.weight.numel() for r in read if isinstance(r.layer.weight, Tensor))
            found[place.name] = (dense, dense * shares[place.name])
    return found


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error: the gap of confidence (n,) and accuracy in equal bins, by their sizes.

    Args:
        probabilities: (n, classes).
        labels: (n,).
        bins: how many of equal width.
    """
    sure, answer = probabilities.double().max(1)
    gap = (answer == labels).double() - sure
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, place.cpu(), gap.cpu())
    return float(sums.abs().sum() / len(labels))


def noisy_labels(y: Tensor, share: float, classes: int, generator: torch.Generator) -> Tensor:
    """Return labels of which a share is drawn anew from all classes."""
    drawn = torch.randint(classes, y.shape, generator=generator)
    return torch.where(torch.rand(y.shape, generator=generator) < share, drawn, y)


def corrupted(x: Tensor, how: str, strength: float, generator: torch.Generator) -> Tensor:
    """Return inputs with "gaussian" noise of a standard deviation, or "salt": a share of entries at an extreme."""
    if how == "gaussian":
        return x + strength * torch.randn(x.shape, generator=generator)
    if how != "salt":
        raise unknown("corruption", how, ("gaussian", "salt"))
    ends = torch.where(torch.rand(x.shape, generator=generator) < 0.5, x.min(), x.max())
    return torch.where(torch.rand(x.shape, generator=generator) < strength, ends, x)


def first_slopes(
    classes: int = 10,
    inputs: int = 20,
    width: int = 50,
    loss: str = "cross_entropy",
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return mean and standard error of <dL/da, a> over random f(x) = V a, a = relu(W x), V and W of mean 0.

    It is positive, so a step down the loss makes activations smaller: at the start all of them are.

    Args:
        classes, inputs, width: sizes; W has variance 2 / inputs, V 1 / width; x is normal, the label uniform.
        loss: "cross_entropy", or "mse" against a one-hot target.
        draws: how many networks with an example each.
        seed: of all draws.
    """
    if loss not in ("cross_entropy", "mse"):
        raise unknown("loss", loss, ("cross_entropy", "mse"))
    generator = torch.Generator().manual_seed(seed)
    x, w, v = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((draws, inputs, 1), (draws, width, inputs), (draws, classes, width))
    )
    a = (w @ x * math.sqrt(2 / inputs)).relu()[..., 0]
    labels = torch.randint(classes, (draws,), generator=generator)
    products = slopes_along(v / math.sqrt(width), a, labels, loss)
    return float(products.mean()), float(products.std() / math.sqrt(draws))


def slopes_along(v: Tensor, a: Tensor, labels: Tensor, loss: str) -> Tensor:
    """Return <dL/da, a> (n,) of losses of V a: v (n, classes, width), a (n, width), labels (n,)."""
    f = (v @ a[..., None])[..., 0]
    target = F.one_hot(labels, f.shape[1])
    slope = f.softmax(1) - target if loss == "cross_entropy" else f - target  # of mse: half the square
    return (slope * f).sum(1)  # <V' s, a> = <s, V a>
