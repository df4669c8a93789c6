"""Data of any usual form as batches that a model can be called on."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workingpapers.errors import WorkingPapersError

LABELS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Batch:
    """Arguments of one call, by place or by name, targets where there are some, and how many examples these are."""

    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    targets: Any
    size: int

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""

        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        parts = (self.arguments, dict(self.named), self.targets)
        arguments, named, targets = pytree.tree_map(move, parts)
        return Batch(arguments, named, targets, self.size)

    def __getitem__(self, part: slice) -> "Batch":
        """Return some of the examples."""

        def cut(value: Any) -> Any:
            return (
                value[part] if isinstance(value, Tensor) and value.ndim and len(value) == self.size else value
            )

        arguments, named, targets = pytree.tree_map(cut, (self.arguments, dict(self.named), self.targets))
        return Batch(arguments, named, targets, len(range(*part.indices(self.size))))

    @property
    def mask(self) -> Tensor | None:
        """Which tokens (size, length) are no padding, where the batch says so by the name Hugging Face uses."""
        mask = self.named.get("attention_mask")
        return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def batches_of(data: Any, batch: int = 64) -> Iterator[Batch]:
    """Give batches of a tensor, of a pair (inputs, targets), of a mapping by name, or of an iterable of such.

    Args:
        data: tensors (N, ...) are cut into slices of `batch`; each thing that an iterable (a DataLoader) gives
            is a batch.  A mapping is passed by name; "labels" in it (or "label", "target", "y") are targets.
        batch: examples at a time.

    Raises:
        WorkingPapersError: where data are of another form or empty.
    """
    if isinstance(data, Tensor | Mapping) or _is_pair(data):
        whole = _one(data)
        for start in range(0, whole.size, batch):
            yield whole[start : start + batch]
        if whole.size == 0:
            raise WorkingPapersError("the data hold no example")
        return
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise WorkingPapersError(
            "expected data as a tensor, a pair (inputs, targets), a mapping of tensors, or an iterable of such; "
            f"got {type(data).__name__}"
        )
    empty = True
    for part in data:
        empty = False
        yield _one(part)
    if empty:
        raise WorkingPapersError("the data hold no batch")


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and 1 <= len(data) <= 2 and all(isinstance(part, Tensor) for part in data)


def _one(data: Any) -> Batch:
    if isinstance(data, Mapping):
        named = {name: value for name, value in data.items() if name not in LABELS}
        targets = next((data[name] for name in LABELS if name in data), None)
        return Batch((), named, targets, _size(named))
    if isinstance(data, Tensor):
        return Batch((data,), {}, None, _size(data))
    if isinstance(data, tuple | list) and 1 <= len(data) <= 2:
        inputs, targets = data[0], data[1] if len(data) == 2 else None
        if isinstance(inputs, Mapping):
            return Batch((), dict(inputs), targets, _size(inputs))
        arguments = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        return Batch(arguments, {}, targets, _size(arguments))
    raise WorkingPapersError(
        f"expected a batch as a tensor, a pair (inputs, targets) or a mapping; got {type(data).__name__}"
    )


def _size(value: Any) -> int:
    for leaf in pytree.tree_leaves(dict(value) if isinstance(value, Mapping) else value):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise WorkingPapersError("a batch holds no tensor whose first dimension counts examples")


def device_of(model: nn.Module) -> torch.device:
    """Return where the first parameter or buffer of a model lies; the CPU where it has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
