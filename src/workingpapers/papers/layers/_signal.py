"""Signal propagation plots: mean and variance of the channels behind every block of a network."""

from typing import Any

from torch import Tensor, nn

from workingpapers.experiments import Finding
from workingpapers.surgery.choose import Modules
from workingpapers.surgery.collect import collect


def _channels_first(y: Tensor) -> Tensor:
    return y.double().transpose(0, 1).flatten(1)


def _squared_mean(y: Tensor) -> float:
    return float(_channels_first(y).mean(1).square().mean())


def _variance(y: Tensor) -> float:
    return float(_channels_first(y).var(1, correction=0).mean())


def signal_propagation(
    model: nn.Module, x: Tensor, blocks: Modules, branches: Modules | None = None, training: bool = False
) -> Finding:
    """Return the average squared mean and the average variance of the channels behind every block.

    Args:
        model: any network of images; it is as before afterwards.
        x: images (B, C, H, W), usually standard normal.
        blocks: the modules whose outputs are looked at, as in `surgery.choose`: a class, names, a function.
        branches: the modules at the end of each residual branch; their variances are added.
        training: let batch normalisation take the statistics of `x`.

    The numbers are named by the module, such as "blocks.3 variance"; the figure shows both in turn.
    """
    found = _collected(model, x, blocks, training)
    numbers: dict[str, float] = {}
    for name, y in found.items():
        numbers[f"{name} squared mean"] = _squared_mean(y)
        numbers[f"{name} variance"] = _variance(y)
    if branches is not None:
        ends = _collected(model, x, branches, training)
        numbers |= {f"{name} branch variance": _variance(y) for name, y in ends.items()}
    last = list(found)[-1]
    reading = (
        f"Behind the last of {len(found)} blocks the squared mean is "
        f"{numbers[f'{last} squared mean'] / max(numbers[f'{last} variance'], 1e-300):.3g} of the variance, "
        f"which is {numbers[f'{last} variance']:.3g}."
    )
    return Finding(numbers, reading, lambda: _figure(numbers, list(found)))


def _collected(model: nn.Module, x: Tensor, modules: Modules, training: bool) -> dict[str, Tensor]:
    """Collect in one batch; with `training`, normalisation by the batch is simulated without touching its state."""
    if not training:
        return collect(model, x, modules, batch=len(x))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept: list[tuple[Any, Any]] = [(m.running_mean, m.running_var) for m in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None  # in evaluation mode it then normalises by the batch
        return collect(model, x, modules, batch=len(x))
    finally:
        for norm, (mean, var) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, var


def _figure(numbers: dict[str, float], blocks: list[str]) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3))
    for axis, what in zip(axes, ("squared mean", "variance"), strict=True):
        axis.plot(range(1, len(blocks) + 1), [numbers[f"{name} {what}"] for name in blocks], marker="o")
        axis.set(xlabel="block", ylabel=f"average {what} of the channels", ylim=(0, None))
    figure.tight_layout()
    return figure
