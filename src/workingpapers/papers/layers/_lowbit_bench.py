"""What papers on low-bit layers measure by: a small network on Fashion-MNIST, its gradients, packed products."""

import statistics
import timeit
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split, images
from workingpapers.kernels import bits, pointwise
from workingpapers.tasks import Result, initialise


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


def accuracy_of(result: Result) -> float:
    """Return the accuracy that training came to, 0 where it diverged."""
    return 0.0 if result.diverged else result.metrics["accuracy"]


@pointwise
def sign(x: Tensor) -> Tensor:
    """Return the sign of `x`, +1 at 0, same shape; the slope that gradients see is max(0, 2 - 2|x|)."""
    inside = x.clamp(-1, 1)
    soft = inside * (2 - inside.abs())
    return torch.where(x < 0, -1.0, 1.0).detach() + (soft - soft.detach())


def binary_input(x: Tensor, training: bool) -> Tensor:
    """Return the signs of inputs (B, ...), in training with the slope taken at x over its sample's deviation."""
    if training:
        axes = list(range(min(1, x.ndim - 1), x.ndim))
        several = x[:1].numel() > 1
        x = x / (x.var(axes, correction=int(several), keepdim=True) + 1e-5).sqrt()
    found: Tensor = sign(x)
    return found


class SignConv2d(nn.Conv2d):
    """The usual binary convolution: sign(w) mean|w| of each kernel, the gradient passed on where |w| <= 1.

    Its inputs are made binary as BiPer's are (XNOR-Net, Rastegari et al., 2016, for the weights).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the signs, scaled by the mean size of each kernel's weights."""
        w = self.weight
        straight = w.clamp(-1, 1)
        signs = torch.where(w < 0, -1.0, 1.0).to(w.dtype) + (straight - straight.detach())
        size = w.detach().abs().mean((1, 2, 3), keepdim=True)
        y: Tensor = self._conv_forward(binary_input(x, self.training), signs * size, self.bias)
        return y


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
