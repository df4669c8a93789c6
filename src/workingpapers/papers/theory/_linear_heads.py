"""Linear layers at the end of a classifier, and what claims on them train with."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.collect import collect

PASSED = (nn.Dropout, nn.Identity, nn.Flatten)  # what may stand between linear layers of one head


def linear_head(model: nn.Module, x: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Return the linear layers that end a model with nothing between: name, features (n, units), weights.

    The weights (classes, units) are those of the layer times those of the layers behind it; what runs behind the
    last nn.Linear, such as a softmax, is left out.

    Raises:
        WorkingPapersError: where no nn.Linear runs.
    """
    parts: dict[str, Any] = dict(model.named_modules())
    ran = list(collect(model, x[:1], keep=lambda module, z: z.reshape(len(z), -1)[:, :0]))
    names = [name for name in ran if isinstance(parts.get(name), (nn.Linear, *PASSED))]
    last = max((i for i, n in enumerate(ran) if n in names and isinstance(parts[n], nn.Linear)), default=-1)
    if last < 0:
        raise WorkingPapersError(
            f"{type(model).__name__} runs no nn.Linear, so it has no classifier to look at"
        )
    head = [ran[last]]
    for name in reversed(ran[:last]):
        if name not in names or (
            isinstance(parts[name], nn.Linear) and parts[name].out_features != parts[head[0]].in_features
        ):
            break
        head = [name, *head] if isinstance(parts[name], nn.Linear) else head
    features = collect(model, x, head, side="input")
    found: list[tuple[str, Tensor, Tensor]] = []
    product: Tensor | None = None
    for name in reversed(head):
        weight = parts[name].weight.detach()
        product = weight if product is None else product @ weight
        found.insert(0, (name, features[name].reshape(len(x), -1), product))
    return found


def with_sizes(split: Split, sizes: Sequence[int]) -> Split:
    """Return a split with the first `sizes` training examples of the first classes, and their test examples."""
    chosen = torch.cat([(split.y_train == k).nonzero()[:n, 0] for k, n in enumerate(sizes)])
    test = split.y_test < len(sizes)
    return replace(
        split,
        x_train=split.x_train[chosen],
        y_train=split.y_train[chosen],
        x_test=split.x_test[test],
        y_test=split.y_test[test],
        num_classes=len(sizes),
    )


def one_hot_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return half the mean squared distance of outputs (N, K) to one-hot labels (N,)."""
    return (outputs - F.one_hot(labels, outputs.shape[1])).square().sum(1).mean() / 2
