"""What masked convolutions cost and how well their masks are foreseen."""

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.data import Split
from workingpapers.errors import unknown
from workingpapers.papers.sparsity._masked_convs import masked_convs, recording


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of convolutions and linear layers for one example.

    Attributes:
        dense: without masks and predictors.
        spent: mean over the examples, with both.
        kept: share of the filters that run, by layer.
    """

    dense: float
    spent: float
    kept: dict[str, float] = field(repr=False)

    @property
    def cut(self) -> float:
        """The share that is saved."""
        return 1 - self.spent / self.dense


def multiply_adds(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Return each convolution's and linear layer's multiply-adds for one example, all filters computed."""
    found: Counter[str] = Counter()

    def note(name: str, layer: Any, output: Tensor) -> None:
        found[name] += layer.weight.numel() * (output.numel() // len(output) // len(layer.weight))

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [m.register_forward_hook(lambda m, _, y, n=n: note(n, m, y)) for n, m in layers]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return dict(found)


@torch.no_grad()
def cost(model: nn.Module, x: Tensor, by: str = "mask", batch: int = 500) -> Cost:
    """Return what a masked model costs on images (N, C, H, W), in evaluation mode.

    A layer's multiply-adds shrink by the share of its filters that run, and, where its input channels are another
    masked layer's filters, by the share of those.

    Args:
        model: from `ftwt`.
        x: the images.
        by: "mask" counts the filters that the predictors choose, "target" those of the targets.
        batch: images at a time.
    """
    if by not in ("mask", "target"):
        raise unknown("way to count", by, ("mask", "target"))
    training = model.training
    model.eval()
    try:
        with recording(model) as records:
            whole = multiply_adds(model, x[:1])
            for pairs in records.values():
                pairs.clear()
            for part in x.split(batch):
                model(part)
    finally:
        model.train(training)
    shares = {
        name: torch.cat([(p > 0) if by == "mask" else wanted for p, wanted in pairs]).double().mean(1)
        for name, pairs in records.items()
    }
    layers = masked_convs(model)
    predictors = sum(n for name, n in whole.items() if ".predictor." in f".{name}.")
    dense = sum(whole.values()) - predictors
    spent = torch.full((len(x),), dense + (predictors if by == "mask" else 0.0), dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    for name, conv in layers.items():
        run = shares[name] * shares.get(conv.source or "", one)
        spent -= whole[f"{name}.conv".lstrip(".")] * (1 - run)
    return Cost(dense, float(spent.mean()), {name: float(share.mean()) for name, share in shares.items()})


@torch.no_grad()
def mask_accuracy(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Return by layer the share of filters whose predictor agrees with the target, on images in evaluation mode."""
    training = model.training
    model.eval()
    try:
        with recording(model) as records:
            model(x)
    finally:
        model.train(training)
    return {
        name: float(torch.cat([(p > 0) == wanted for p, wanted in pairs]).double().mean())
        for name, pairs in records.items()
    }


def keep_strongest(model: nn.Module, x: Tensor, spent: float) -> nn.Module:
    """Return a copy that keeps the same filters for all images, in each layer a share with the largest L1 norms.

    The share is as large as it can be at a cost of `spent` of the dense one; `x` is an example image (1, C, H, W).
    """
    low, high, fixed = 0.0, 1.0, copy.deepcopy(model)
    for _ in range(8):
        share = (low + high) / 2
        trial = _keeping(model, share)
        counted = cost(trial, x)
        if counted.spent <= spent * counted.dense:
            low, fixed = share, trial
        else:
            high = share
    return fixed


@torch.no_grad()
def _keeping(model: nn.Module, share: float) -> nn.Module:
    changed = copy.deepcopy(model)
    for layer in masked_convs(changed).values():
        norms = layer.conv.weight.abs().sum((1, 2, 3))
        chosen = norms.topk(max(1, round(share * len(norms)))).indices
        layer.predictor.read.weight.zero_()  # type: ignore[operator,union-attr]
        layer.predictor.read.bias.fill_(-1.0)[chosen] = 1.0  # type: ignore[operator,union-attr]
    return changed


class _Shuffled(nn.Module):
    """The logits of a predictor in an order drawn anew for each image."""

    def __init__(self, predictor: nn.Module, seed: int) -> None:
        super().__init__()
        self.predictor, self.generator = predictor, torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, D)."""
        logits: Tensor = self.predictor(x)
        order = torch.rand(logits.shape, generator=self.generator).argsort(1)
        return logits.gather(1, order.to(x.device))


def shuffled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy with as many filters for each image, but drawn at random."""
    changed = copy.deepcopy(model)
    for i, layer in enumerate(masked_convs(changed).values()):
        layer.predictor = _Shuffled(layer.predictor, 1000 * seed + i)
    return changed


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Return the test accuracy."""
    guesses = torch.cat([model.eval()(x).argmax(1) for x in split.x_test.split(500)])
    return float((guesses == split.y_test).double().mean())
