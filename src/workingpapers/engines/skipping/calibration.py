"""What flows through layers on calibration data: activations of tokens that are no padding."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.engines.activity.batches import Batch, batches_of, device_of
from workingpapers.errors import WorkingPapersError

MOST = 1_000_000  # values a layer
FEWEST = 8  # tokens


class Sample:
    """A thinned sample of values: every 2^k-th, k growing as more come."""

    def __init__(self, most: int = MOST) -> None:
        self.most, self.step, self.parts = most, 1, []  # type: ignore[var-annotated]

    def add(self, values: Tensor) -> None:
        """Take in values of any shape."""
        self.parts.append(values.detach().flatten()[:: self.step].float().cpu())
        while sum(len(p) for p in self.parts) > 2 * self.most:
            self.parts, self.step = [torch.cat(self.parts)[::2]], 2 * self.step

    def values(self) -> Tensor:
        """Return the sample."""
        return torch.cat(self.parts)


def quantile(values: Tensor, share: float) -> float:
    """Return the threshold below which floor(share n) of n distinct values lie; 0 for none, inf for all."""
    count = int(share * len(values))
    if count == 0:
        return 0.0
    return float("inf") if count == len(values) else float(values.kthvalue(count + 1).values)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode inside, without gradients, and every module in its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def tokens_of(value: Tensor, batch: Batch) -> Tensor:
    """Return a layer's values (tokens, width) without those of padding: value (..., width)."""
    mask = batch.mask
    if mask is not None and value.shape[:-1] == mask.shape:
        return value[mask.to(value.device)]
    return value.reshape(-1, value.shape[-1])


def activations(
    model: nn.Module,
    data: Any,
    layers: Mapping[str, nn.Module],
    value: Callable[[str, Tensor, Tensor], Tensor],
    keep: Callable[[str, Tensor], None],
    fewest: int = FEWEST,
) -> int:
    """Run a model over calibration data in evaluation mode and give `keep` what `value` makes of each layer's
    run.

    Args:
        model: any model; it stays as it is.
        data: tokens (N, T), or what `batches_of` takes; entries masked out by "attention_mask" are left out.
        layers: modules by name.
        value: (name, input, output) -> (..., width).
        keep: gets the name and (tokens, width).
        fewest: tokens that are asked for.

    Returns:
        how many tokens each layer saw.

    Raises:
        WorkingPapersError: where there are fewer tokens, or a layer did not run.
    """
    current: list[Batch] = []
    seen: dict[str, int] = dict.fromkeys(layers, 0)

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found = tokens_of(value(name, args[0], output), current[-1])
            seen[name] += len(found)
            keep(name, found)

        return note

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        with evaluating(model):
            for batch in batches_of(data, 8):
                current[:] = [batch.to(device_of(model))]
                model(*current[0].arguments, **current[0].named)
    finally:
        for handle in handles:
            handle.remove()
    least = min(seen, key=seen.__getitem__)
    if seen[least] < fewest:
        raise WorkingPapersError(
            f"calibration needs at least {fewest} tokens in every layer; {least!r} saw {seen[least]}"
        )
    return seen[least]
