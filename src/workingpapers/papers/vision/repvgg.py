"""RepVGG: train each 3x3 convolution with parallel branches, then fold the branches into it.

    y = relu(BN(W3 * x) + BN(W1 * x) + BN(x))  =  relu(W * x + b)
    W = g3/s3 W3 + pad(g1/s1 W1) + g0/s0 I,    b = sum of beta - g mean / s,    s = sqrt(var + eps)

I is the 3x3 kernel with a 1 at the centre of each channel's own input.  The two sides are equal in
evaluation mode, where batch normalisation is linear.

Paper: "RepVGG: Making VGG-style ConvNets Great Again" (2021), Section 3; sizes from Table 2 and the authors' code.
"""

import copy
import statistics
import timeit
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.vision._folding import merge
from workingpapers.surgery import note_changes
from workingpapers.tasks import Budget, examples, fit, initialise


class Branches(nn.ModuleDict):
    """Parallel branches whose outputs are added, by name; `fuse` folds them into one convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branches' outputs."""
        first, *others = self.values()
        out: Tensor = first(x)
        for branch in others:
            out = out + branch(x)
        return out


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int) -> nn.Sequential:
    """Build a convolution that keeps the size (at stride 1), without bias, and its batch normalisation."""
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


@paper(
    "repvgg",
    part="block",
    kind="layer",
    arguments=(4, 4),
    example=lambda batch, g: torch.randn(batch, 4, 7, 6, generator=g),
)
class RepVGGBlock(nn.Module):
    """A block (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride) of up to three branches.

    Args:
        in_channels, out_channels, stride, groups: of its 3x3 convolution.
        identity: have the branch of batch normalisation alone, which exists where input and output have the
            same shape.
        pointwise: have the 1x1 branch; without both the block is convolution, normalisation and relu.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        groups: int = 1,
        identity: bool = True,
        pointwise: bool = True,
    ) -> None:
        super().__init__()
        branches: dict[str, nn.Module] = {"dense": conv_bn(in_channels, out_channels, 3, stride, groups)}
        if pointwise:
            branches["pointwise"] = conv_bn(in_channels, out_channels, 1, stride, groups)
        if identity and in_channels == out_channels and stride == 1:
            branches["identity"] = nn.BatchNorm2d(in_channels)
        self.branches: nn.Module = Branches(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu of the sum of the branches, or of the convolution that they were folded into."""
        out: Tensor = self.branches(x).relu()
        return out


def equivalent_decay(model: nn.Module) -> Tensor:
    """Return the L2 penalty on what the kernels of all unfused blocks amount to, in place of weight decay on them.

    It is |W3 without its centre|^2 + |a3 W3 centre + a1 W1|^2 / (a3^2 + a1^2), a = gamma / std, as in the
    authors' code: weights, not scales, carry the gradient.
    """
    total = torch.zeros(())
    for block in model.modules():
        if not isinstance(block, Branches) or not {"dense", "pointwise"} <= set(block):
            continue
        pairs: Any = block
        (dense, norm3), (pointwise, norm1) = pairs["dense"], pairs["pointwise"]
        a3, a1 = (
            (n.weight / (n.running_var + n.eps).sqrt()).detach().view(-1, 1, 1, 1) for n in (norm3, norm1)
        )
        centre = dense.weight[:, :, 1:2, 1:2]
        around = dense.weight.square().sum() - centre.square().sum()
        total = total + around + ((a3 * centre + a1 * pointwise.weight) ** 2 / (a3**2 + a1**2)).sum()
    return total


def _small_net(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    net = RepVGG(**RepVGG.presets["tiny"])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for statistic in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                assert statistic is not None
                statistic.uniform_(0.5, 1.5, generator=generator)
    return net, torch.randn(3, 3, 16, 16, generator=generator)


@paper("repvgg", example=_small_net, preserves=1e-4)
def fuse(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which every block's branches are one convolution, for inference.

    Folded are all `Branches`, of RepVGG's blocks or one's own (see `merge` for what they may hold), and the
    blocks of the authors' code, known by their attributes rbr_dense, rbr_1x1 and rbr_identity.
    """
    found: list[str] = []
    done: dict[nn.Module, nn.Module] = {}  # a module that stands in two places is folded once

    def visit(module: nn.Module, place: str) -> nn.Module:
        if isinstance(module, Branches):
            found.append(f"The {len(module)} branches of {place or 'the model'} are one convolution now.")
            return merge(list(module.values())).train(module.training)
        if hasattr(module, "rbr_dense") and hasattr(module, "rbr_1x1"):
            branches = [module.rbr_dense, module.rbr_1x1, getattr(module, "rbr_identity", None)]
            found.append(f"The branches of {place or 'the model'} are one convolution now.")
            conv = merge([branch for branch in branches if isinstance(branch, nn.Module)])
            behind = [getattr(module, name, nn.Identity()) for name in ("se", "nonlinearity")]
            return nn.Sequential(conv, *behind).train(module.training)
        for name, child in module._modules.items():
            if child is not None:
                done[child] = done.get(child) or visit(child, f"{place}.{name}".lstrip("."))
                module._modules[name] = done[child]
        return module

    fused: nn.Module = note_changes(visit(copy.deepcopy(model), ""), found)
    return fused


_A, _B = (2, 4, 14, 1), (4, 6, 16, 1)


def _size(depths: Sequence[int], a: float, b: float, groups: int = 1) -> dict[str, Any]:
    widths = (int(64 * a), int(128 * a), int(256 * a), int(512 * b))
    return {"depths": tuple(depths), "widths": widths, "groups": groups}


@paper("repvgg", part="net", kind="model", example=examples.images(3, 16, 4))
class RepVGG(nn.Module):
    """Classify images (B, in_channels, H, W) -> logits (B, num_classes): blocks, average pooling, a linear layer.

    Args:
        depths, widths: how many blocks each stage has, and of how many channels; before them stands one block
            of min(64, widths[0]) channels.
        num_classes, in_channels: what comes out and in.
        groups: of every second block, as in the sizes called g2 and g4.
        strides: of the block before the stages, and of each stage's first block; default 2 throughout.
        identity, pointwise: as for `RepVGGBlock`.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"depths": (2, 1), "widths": (8, 16), "num_classes": 4, "strides": (1, 2, 2)},
        "a0": _size(_A, 0.75, 2.5),
        "a1": _size(_A, 1, 2.5),
        "a2": _size(_A, 1.5, 2.75),
        "b0": _size(_B, 1, 2.5),
        **{f"b1{suffix}": _size(_B, 2, 4, g) for suffix, g in (("", 1), ("g2", 2), ("g4", 4))},
        **{f"b2{suffix}": _size(_B, 2.5, 5, g) for suffix, g in (("", 1), ("g2", 2), ("g4", 4))},
        **{f"b3{suffix}": _size(_B, 3, 5, g) for suffix, g in (("", 1), ("g2", 2), ("g4", 4))},
    }

    def __init__(
        self,
        depths: Sequence[int] = _A,
        widths: Sequence[int] = (48, 96, 192, 1280),
        num_classes: int = 1000,
        in_channels: int = 3,
        groups: int = 1,
        strides: Sequence[int] | None = None,
        identity: bool = True,
        pointwise: bool = True,
    ) -> None:
        super().__init__()
        strides = (2,) * (len(depths) + 1) if strides is None else strides
        if not len(depths) == len(widths) == len(strides) - 1:
            raise WorkingPapersError(
                f"each stage has a depth, a width and a stride, and the first block a stride; got {len(depths)} "
                f"depths, {len(widths)} widths and {len(strides)} strides"
            )
        width = min(64, widths[0])
        blocks = [RepVGGBlock(in_channels, width, strides[0], 1, identity, pointwise)]
        for depth, out, stride in zip(depths, widths, strides[1:], strict=True):
            for first in (True, *[False] * (depth - 1)):
                g = groups if len(blocks) % 2 == 0 else 1
                blocks.append(RepVGGBlock(width, out, stride if first else 1, g, identity, pointwise))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return logits


@claim(
    "repvgg",
    "A plain stack trained with parallel branches reaches high accuracy.",
    holds=all_of(
        at_least(0.005, of="over_plain"),
        at_least(-0.01, of="over_no_identity"),
        at_least(0.38, of="accuracy"),
    ),
)
def branches_help(budget: Budget, seed: int) -> Evidence:
    """Accuracy on CIFAR-10 at 16x16 of an eight-layer net over that without branches, and without identities."""
    train, test = budget.pick(quick=(4000, 2000), full=(20000, 5000))
    split = images("cifar10", train=train, test=test, size=16, seed=seed)
    epochs = budget.pick(quick=6, full=60)

    def accuracy(**options: bool) -> float:
        net = initialise(lambda: RepVGG((2, 3, 2), (16, 32, 64), 10, strides=(1, 1, 2, 2), **options), seed)
        result = fit(net, split, epochs=epochs, lr=2e-3, schedule="cosine", seed=seed)
        return 0.0 if result.diverged else result.metrics["accuracy"]

    full = accuracy()
    plain, no_identity = accuracy(identity=False, pointwise=False), accuracy(identity=False)
    return Evidence(accuracy=full, over_plain=full - plain, over_no_identity=full - no_identity)


@claim(
    "repvgg",
    "After merging branches the network is a fast stack of 3x3 convolutions and ReLU.",
    holds=all_of(
        at_most(1e-4, of="difference", by="every"),
        at_most(0.7, of="time_of_1", by="mean"),
        at_most(0.7, of="time_of_32", by="mean"),
    ),
)
def fused_is_faster(budget: Budget, seed: int) -> Evidence:
    """RepVGG-A0 on the CPU, fused over unfused: the time for 1 and 32 images of 64x64, the median of 20 runs each.

    The images are CIFAR-10's, enlarged, and the running statistics theirs; `difference` is the largest of
    the logits over the largest logit.
    """
    split = images("cifar10", train=64, test=32, seed=seed)
    x_train, x = (F.interpolate(t, size=64, mode="bilinear") for t in (split.x_train, split.x_test))
    net = initialise(lambda: RepVGG(**RepVGG.presets[budget.pick(quick="a0", full="b1")]), seed)
    with torch.no_grad():
        for part in x_train.split(16):
            net.train()(part)
        forms = [net.eval(), fuse(net)]
        outputs = [form(x) for form in forms]
        ratios = {}
        for size in (1, 32):
            runs = [partial(form, x[:size]) for form in forms]
            rounds = [[timeit.timeit(run, number=1) for run in runs] for _ in range(21)][1:]  # taking turns
            unfused, fused = (statistics.median(times) for times in zip(*rounds, strict=True))
            ratios[f"time_of_{size}"] = fused / unfused
    return Evidence(
        difference=float((outputs[1] - outputs[0]).abs().max() / outputs[0].abs().max()), **ratios
    )
