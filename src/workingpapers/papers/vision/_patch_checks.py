"""What patch classifiers are held against: a perceptron across tokens, shuffled patches, cost and speed."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from workingpapers.data import Split, images
from workingpapers.tasks import Budget, fit, initialise, vit


class AcrossTokens(nn.Sequential):
    """A perceptron over the T tokens of each feature, (B, T, D) -> (B, T, D), as in MLP-Mixer."""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__(nn.Linear(tokens, hidden), nn.GELU(), nn.Linear(hidden, tokens))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to the transposed tokens."""
        out: Tensor = super().forward(x.mT)
        return out.mT


def flops(model: nn.Module, x: Tensor) -> float:
    """Return the floating-point operations of one pass over `x` in products of matrices, per example."""
    # attention in one piece is not counted, its plain products are
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    return float(counter.get_total_flops()) / len(x)


def shuffled_patches(x: Tensor, patch: int, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W) whose patches are permuted, in each image its own way."""
    rows, columns = x.shape[2] // patch, x.shape[3] // patch
    patches = x.unflatten(2, (rows, patch)).unflatten(4, (columns, patch)).permute(0, 2, 4, 1, 3, 5)
    flat = patches.flatten(1, 2)  # (B, T, C, p, p)
    order = torch.rand(flat.shape[:2], generator=generator).argsort(1)
    mixed: Tensor = flat[torch.arange(len(x))[:, None], order].unflatten(1, (rows, columns))
    return mixed.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def times_faster(module: nn.Module, than: nn.Module, x: Tensor, runs: int = 9) -> float:
    """Return the time of `than` over that of `module`, forward on `x`, medians of runs in turns."""
    times: dict[nn.Module, list[float]] = {module: [], than: []}
    with torch.no_grad():
        for _ in range(runs):
            for each in (than, module):
                times[each].append(Timer("f(x)", globals={"f": each.eval(), "x": x}).timeit(2).mean)
    own, other = (sorted(found)[runs // 2] for found in times.values())
    return other / own


def classifiers(activator: Any, channels: int, dim: int, depth: int) -> dict[str, Any]:
    """Return factories of the compared classifiers of 16x16 images, of one width and depth; `activator` is ours."""
    sizes: dict[str, Any] = {
        "img_size": 16,
        "in_channels": channels,
        "dim": dim,
        "hidden_dim": 2 * dim,
        "depth": depth,
    }
    return {
        "block_a": lambda: activator(**sizes),
        "block_b": lambda: activator(**sizes, mlp=False),
        "across": lambda: activator(**sizes, axis="token"),
        "vit": lambda: vit(channels, 16, 4, 10, dim, depth),
        "mixer": lambda: vit(channels, 16, 4, 10, dim, depth, mixer=lambda d, h: AcrossTokens(16, 32)),
    }


def pictures(name: str, budget: Budget, seed: int) -> Split:
    """Return small images of one data set, the choice by `seed`."""
    train, test = budget.pick(quick=(1500, 1000), full=(20000, 5000))
    return images(name, train=train, test=test, size=16, seed=seed)


def trained(build: Any, split: Split, budget: Budget, seed: int) -> tuple[nn.Module, float]:
    """Train a classifier by Adam at 2e-3, for all the same; return it and its accuracy, 0 if it diverged."""
    model = initialise(build, seed)
    epochs, batch = budget.pick(quick=(6, 64), full=(100, 128))
    done = fit(model, split, epochs=epochs, batch=batch, every=10**9, lr=2e-3, seed=seed)
    return model, 0.0 if done.diverged else done.metrics["accuracy"]
