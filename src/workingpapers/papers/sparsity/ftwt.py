"""Fire together, wire together: filters that will not fire for an image are foreseen and skipped.

    s_j = max over positions of |filter j's output|,   keep the strongest while the sum of s_j / sum(s) <= r
    p = W softmax(pool(x)) + b,   filter j runs where sigmoid(p_j) > 0.5
    loss = cross-entropy + mean over layers of sum_j BCE(p_j, kept_j)

Every convolution has its own small predictor p of its input x, which learns from the targets alone ("decoupled").
How many filters the targets keep can be seen in the network as it is, before any training.

Paper: "Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask Prediction" (2021);
targets, predictors, loss and schedule follow the authors' code, where no gradient passes through the masks.
"""

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.sparsity._conv_places import conv_places
from workingpapers.papers.sparsity._filter_costs import (
    Cost,
    accuracy,
    cost,
    keep_strongest,
    mask_accuracy,
    shuffled,
)
from workingpapers.papers.sparsity._mask_training import finetune, mask_loss
from workingpapers.papers.sparsity._masked_convs import (
    CRITERIA,
    INITS,
    MODES,
    ConvWithMask,
    Predictor,
    SkippingConv,
    masked_convs,
)
from workingpapers.surgery import note_changes
from workingpapers.surgery.choose import Modules, choose
from workingpapers.tasks import Budget, fit, initialise

__all__ = [
    "accuracy",
    "cost",
    "finetune",
    "forecast",
    "ftwt",
    "keep_strongest",
    "mask_accuracy",
    "mask_loss",
    "shuffled",
    "skipping",
]


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten()
    )
    model.append(nn.Linear(20, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.randn(4, 2, 6, 6, generator=generator)
    return model, x, x


@paper("ftwt", example=_example)
def ftwt(
    model: nn.Module,
    inputs: Any,
    mass: float = 0.9,
    criterion: str = "mass",
    mode: str = "decoupled",
    features: int | None = None,
    softmax: bool = True,
    init: str = "random",
    modules: Modules | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of `model` whose convolutions compute for each image the filters that their predictors foresee.

    Train it with `finetune` before use: random predictors drop half of the filters.

    Args:
        model: a trained network; batch norms join the convolutions that they follow.
        inputs: an example of what it takes, to see which layers meet.
        mass: r, the share of the responses that the targets keep; 1 drops only filters that do not fire.
        criterion: "mass", or "uniform", which keeps the share `mass` of the filters of every layer.
        mode: "decoupled", or "joint", in which the predictors' loss trains the layers before them as well.
        features: about how many pooled values a predictor reads; by default one for each channel.
        softmax: whether they go through a softmax.
        init: of predictors: "random", or "ones", which keeps all filters and so the function until they learn.
        modules: which convolutions; by default all before an activation and the last ones of residual blocks.
        seed: of the predictors.

    Raises:
        WorkingPapersError: where no convolution can be masked, or a chosen one cannot.
    """
    if not 0 < mass <= 1:
        raise WorkingPapersError(f"the mass to keep is a share above 0 and up to 1; got {mass}")
    for what, name, valid in (
        ("criterion", criterion, CRITERIA),
        ("mode", mode, MODES),
        ("init", init, INITS),
    ):
        if name not in valid:
            raise unknown(what, name, valid)
    changed = copy.deepcopy(model)
    if any(isinstance(m, ConvWithMask) for m in changed.modules()):
        return changed  # its masks are there
    places = {place.name: place for place in conv_places(model, inputs)}
    if modules is not None:
        wanted = dict(choose(model, modules))
        if odd := next((name for name in wanted if name not in places), None):
            raise WorkingPapersError(f"the filters of {odd!r} cannot be masked; those of {list(places)} can")
        places = {name: place for name, place in places.items() if name in wanted}
    if not places:
        raise WorkingPapersError(
            f"{type(model).__name__} has no 2d convolution whose filters could be masked"
        )
    named = dict(changed.named_modules())
    for i, (name, place) in enumerate(places.items()):
        conv: Any = named[name]
        predictor = initialise(
            partial(Predictor, conv.in_channels, conv.out_channels, features, softmax), seed + i
        )
        if init == "ones":
            nn.init.zeros_(predictor.read.weight)
            nn.init.ones_(predictor.read.bias)
        norm = named[place.norm] if place.norm else nn.Identity()
        source = place.source if place.source in places else None
        new = ConvWithMask(
            conv, norm, place.activation, predictor.to(conv.weight), mass, criterion, mode, source
        )
        changed.set_submodule(name, new.train(conv.training))
        if place.norm:
            changed.set_submodule(place.norm, nn.Identity().train(norm.training))
    said = [f"{name} computes the filters that a predictor chooses for each image." for name in places]
    result: nn.Module = note_changes(changed, said)
    return result


def _masked(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    model, x, _ = _example(generator)
    return ftwt(model, x), x


@paper("ftwt", part="skipping", kind="transform", example=_masked, preserves=1e-4)
def skipping(model: nn.Module) -> nn.Module:
    """Return a copy that in evaluation, without gradients, computes only the filters that are kept, not all.

    Raises:
        WorkingPapersError: where `model` has no masked convolutions.
    """
    changed = copy.deepcopy(model)
    said = []
    for name, layer in masked_convs(changed).items():
        if not isinstance(layer, SkippingConv):
            layer.__class__ = SkippingConv
            said.append(f"{name} leaves out the filters that its mask drops.")
    result: nn.Module = note_changes(changed, said)
    return result


def forecast(model: nn.Module, x: Tensor, mass: float = 0.9, **options: Any) -> Cost:
    """Return what `ftwt` with this mass would cost by the responses of the network as it is, without training.

    `x` are images (N, C, H, W) to judge by; `options` are those of `ftwt`.
    """
    return cost(ftwt(model, x[:2], mass, **{**options, "init": "ones"}), x, by="target")


def vgg(widths: tuple[int, int, int], classes: int = 10) -> nn.Module:
    """Build six convolutions, two of each width, with norms and pooling: (B, 3, H, W) -> (B, classes)."""
    layers: list[nn.Module] = []
    before = 3
    for i, width in enumerate(widths):
        for _ in range(2):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2) if i < 2 else nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, classes))


@dataclass(frozen=True)
class _Case:
    """A trained network and its data."""

    model: nn.Module
    split: Split
    accuracy: float
    epochs: int = field(default=4)

    def tuned(self, model: nn.Module, seed: int, cooldown: float = 0.5) -> float:
        """Fine-tune and return the test accuracy."""
        found = finetune(model, self.split, self.epochs, cooldown=cooldown, batch=64, seed=seed)
        return found.metrics["accuracy"]


def _trained(budget: Budget, seed: int) -> _Case:
    train, test, size = budget.pick(quick=(2000, 1000, 16), full=(10_000, 2000, 32))
    split = images("cifar10", train=train, test=test, size=size, seed=seed)
    widths = budget.pick(quick=(16, 32, 64), full=(64, 128, 256))
    model = initialise(partial(vgg, widths), seed)
    done = fit(model, split, epochs=8, lr=2e-3, every=10**9, seed=seed)
    return _Case(model, split, done.metrics["accuracy"], budget.pick(quick=10, full=8))


@claim(
    "ftwt",
    "Input-dependent filter skipping cuts much of the computation at about the accuracy of the dense network.",
    figure="CIFAR: 15% and 24% higher FLOPs reduction than SOTA at similar accuracy; VGG16-BN 93.55% at 65% FLOPs "
    "cut vs 93.82",
    seeds=5,
    holds=all_of(
        at_least(0.35, of="cut"),
        at_least(-0.02, of="over_dense"),
        at_least(0.1, of="over_random"),
        at_least(-0.005, of="over_static"),
    ),
)
def skipped_filters(budget: Budget, seed: int) -> Evidence:
    """Multiply-adds saved at r = 0.9 by a six-layer VGG on CIFAR-10, and its accuracy over three others'.

    The dense network before; the same network with as many filters, drawn anew for each image; filters of the
    smallest L1 norm pruned once, at equal cost and with equal fine-tuning.
    """
    case = _trained(budget, seed)
    model = ftwt(case.model, case.split.x_test[:2], 0.9, seed=seed)
    reached = case.tuned(model, seed)
    cut = cost(model, case.split.x_test).cut
    static = keep_strongest(ftwt(case.model, case.split.x_test[:2]), case.split.x_test[:1], 1 - cut)
    return Evidence(
        cut=cut,
        over_dense=reached - case.accuracy,
        over_random=reached - accuracy(shuffled(model, seed), case.split),
        over_static=reached - case.tuned(static, seed, cooldown=0.0),
        accuracy=reached,
    )


@claim(
    "ftwt",
    "The expected saving can be estimated from the dense model's statistics before any pruned training.",
    seeds=5,
    holds=all_of(*(at_most(0.08, of=f"error_{name}") for name in ("80", "90", "95"))),
)
def foreseen_saving(budget: Budget, seed: int) -> Evidence:
    """Share of the multiply-adds at r = 0.8, 0.9 and 0.95 after fine-tuning, against the forecast before it."""
    case = _trained(budget, seed)
    figures: dict[str, float] = {}
    for mass in (0.8, 0.9, 0.95):
        before = forecast(case.model, case.split.x_train[:1000], mass).cut
        model = ftwt(case.model, case.split.x_test[:2], mass, seed=seed)
        case.tuned(model, seed)
        after = cost(model, case.split.x_test).cut
        figures |= {f"error_{100 * mass:.0f}": abs(after - before), f"cut_{100 * mass:.0f}": after}
    return Evidence(**figures)
