"""What papers on low-bit layers measure by: a small network on Fashion-MNIST, its gradients, packed products."""

import statistics
import timeit
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split, images
from workingpapers.kernels import bits
from workingpapers.tasks import initialise


def fashion(train: int, test: int, seed: int) -> Split:
    """Return Fashion-MNIST pooled to 14x14, the choice of images by `seed`."""
    return images("fashion_mnist", train=train, test=test, size=14, seed=seed)


def plain_cnn(widths: Sequence[int], activation: Callable[[], nn.Module], seed: int) -> nn.Sequential:
    """Build 3x3 convolutions, each with batch norm and `activation`, and a linear layer, for 14x14 images.

    The first two are followed by 2x2 max-pooling, so the linear layer reads 3x3 places.
    """

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip([1, *widths], widths, strict=False)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), activation()]
            layers += [nn.MaxPool2d(2)] if i < 2 else []
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 9, 10))

    return initialise(build, seed)


def output_gradients(
    model: nn.Module, kind: type[nn.Module], x: Tensor, y: Tensor
) -> list[tuple[nn.Module, Tensor]]:
    """Return each module of a `kind` and the gradient of the cross-entropy with regard to its output."""
    kept: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        output.retain_grad()
        kept.append((module, output))

    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, kind)]
    try:
        F.cross_entropy(model.train()(x), y).backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    return [(module, output.grad) for module, output in kept if output.grad is not None]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the largest of the wanted numbers."""
    return float((found - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
def packed_against_float(seed: int, rows: int, length: int, columns: int) -> dict[str, float]:
    """Time the product of random signs (rows, length) and (columns, length), packed and in float32.

    `difference` is the largest between the two, `time_ratio` that of the medians of 15 runs taking turns; the
    signs of the left side are packed anew in each run, as a layer has to.
    """
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randint(0, 2, (n, length), generator=generator) * 2.0 - 1 for n in (rows, columns))
    ready, mask = bits.pack(w > 0)[0], bits.pack(torch.ones(rows, length))[0]

    def by_bits() -> Tensor:
        return bits.sign_products(bits.pack(x > 0)[0], ready, mask)

    runs: list[Callable[[], Tensor]] = [by_bits, partial(F.linear, x, w)]
    rounds = [[timeit.timeit(run, number=1) for run in runs] for _ in range(16)][1:]
    packed, usual = (statistics.median(times) for times in zip(*rounds, strict=True))
    difference = float((by_bits() - F.linear(x, w)).abs().max())
    return {"difference": difference, "time_ratio": packed / usual}
