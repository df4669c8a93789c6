"""Excitation pullbacks: gradients of a pretrained network through soft gates, which show what it looks for.

    backward of relu(z)     g * sigmoid(z / T)                    in place of g * 1[z > 0]
    backward of max-pool    that of sum_i softmax(x / T)_i x_i    in place of g at the largest

The forward pass is untouched.  T -> 0 is the ordinary gradient, T -> infinity that of a linear network.

Paper: "Tapping into the Black Box: Uncovering Aligned Representations in Pretrained Neural Networks" (2025), arXiv
2507.22832; backward passes and ascent as in the authors' code, whose classes have T = 1, its demonstration T = 0.3.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.interpret._explanations import (
    ascent,
    explain,
    gate_vectors,
    implied_scores,
    path_kernel,
    pullback,
)
from workingpapers.papers.interpret._soft_gates import (
    TEMPERATURE,
    checked,
    gated,
    soft_gate_max_pool2d,
    soft_gate_relu,
)
from workingpapers.surgery import note_changes, replace_modules
from workingpapers.tasks import Budget, cnn, fit, initialise


class SoftGateReLU(nn.Module):
    """ReLU whose backward pass multiplies by sigmoid(z / temperature)."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = checked(temperature)

    def forward(self, z: Tensor) -> Tensor:
        """Return relu(z), same shape."""
        return soft_gate_relu(z, self.temperature)

    def extra_repr(self) -> str:
        """Name the temperature."""
        return f"temperature={self.temperature:g}"


class SoftGateMaxPool2d(nn.MaxPool2d):
    """Max-pooling whose backward pass is that of a softmax-weighted pool; arguments as nn.MaxPool2d's."""

    def __init__(self, *args: Any, temperature: float = 1.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.temperature = checked(temperature)

    def forward(self, x: Tensor) -> Any:
        """Return the largest value of every window."""
        return soft_gate_max_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices,
            temperature=self.temperature,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Name the windows and the temperature."""
        return f"{super().extra_repr()}, temperature={self.temperature:g}"


def _small_net(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    return initialise(lambda: cnn(1, 3, (4, 5), size=8), 0), torch.randn(6, 1, 8, 8, generator=generator)


@paper("excitation_pullback", example=_small_net, preserves=0.0)
def convert(model: nn.Module, temperature: float = 1.0) -> nn.Module:
    """Return a copy of `model` with soft gates in the backward passes of ReLU and max-pooling; outputs stay.

    Args:
        model: any model; put it into evaluation mode, so that batch normalisation is affine.
        temperature: how soft the gates are, above 0.

    Modules nn.ReLU and nn.MaxPool2d are replaced; other calls of relu and max_pool2d, by functions or methods, are
    answered while the copy's `forward` runs.
    """
    temperature = checked(temperature)

    def build(old: nn.Module) -> nn.Module:
        if isinstance(old, nn.MaxPool2d):
            given = (
                old.kernel_size,
                old.stride,
                old.padding,
                old.dilation,
                old.return_indices,
                old.ceil_mode,
            )
            return SoftGateMaxPool2d(*given, temperature=temperature)
        return SoftGateReLU(temperature)

    either = (nn.ReLU, SoftGateReLU, nn.MaxPool2d)
    chosen: Any = lambda name, module: isinstance(module, either) or not name  # noqa: E731
    found = replace_modules(model, chosen, lambda old: build(old) if isinstance(old, either) else None)
    if isinstance(found, either):
        return found
    if TEMPERATURE not in found.__dict__:
        cls: Any = type(found)
        found.__class__ = gated(cls)
    found.__dict__[TEMPERATURE] = temperature
    sentence = (
        f"Relu and max_pool2d called as functions have soft gates of temperature {temperature:g} as well."
    )
    changed: nn.Module = note_changes(found, [sentence])
    return changed


def alignment(pictures: Tensor, means: Tensor, source: Tensor, target: Tensor) -> float:
    """Return the mean cosine of pictures (N, ...) with the target's mean image less the source's, (K, ...)."""
    wanted = (means[target] - means[source]).flatten(1)
    return float(F.cosine_similarity(pictures.flatten(1), wanted).mean())


def agreement(pictures: Tensor, labels: Tensor) -> float:
    """Return the mean cosine of every two pictures (N, ...) of one label (N,), over the labels."""
    unit = F.normalize(pictures.flatten(1).double())
    found = []
    for label in labels.unique():
        own = unit[labels == label]
        if len(own) > 1:
            found.append(float((own.sum(0).square().sum() - len(own)) / (len(own) * (len(own) - 1))))
    return sum(found) / len(found)


def _network() -> nn.Module:
    """Build a CNN of five convolutions with batch normalisation for 28x28 images."""
    layers: list[nn.Module] = []
    for i, (before, width) in enumerate(((1, 12), (12, 12), (12, 24), (24, 24), (24, 24))):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in (1, 3) else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 49, 10))


def _trained(name: str, budget: Budget, seed: int, networks: int = 1) -> tuple[list[nn.Module], Split]:
    """Return networks trained from different seeds, and the data, pixels in [0, 1]."""
    train, epochs = budget.pick(quick=(5000, 4), full=(60_000, 10))
    split = images(name, train=train, test=500, seed=seed, normalise=False)
    models = [initialise(_network, 100 * seed + i) for i in range(networks)]
    for i, model in enumerate(models):
        fit(model, split, epochs=epochs, every=10**6, seed=100 * seed + i)
    return models, split


def _targets(split: Split, seed: int) -> Tensor:
    """Return for each test image a class at random that is not its own."""
    generator = torch.Generator().manual_seed(seed)
    return (split.y_test + torch.randint(1, 10, split.y_test.shape, generator=generator)) % 10


@claim(
    "excitation_pullback",
    "Soft-gated backward passes reveal high-resolution, class-specific input features that look meaningful to "
    "people, on several pretrained networks.",
    seeds=5,
    holds=all_of(
        at_least(0.0, of="aligned_margin"),
        at_least(0.0, of="agreeing_margin"),
        at_least(-0.02, of="over_smooth_gradient"),
        at_most(0.0, of="moved", by="every"),
    ),
)
def class_specific(budget: Budget, seed: int) -> Evidence:
    """Five convolutions with BatchNorm on Fashion-MNIST and MNIST, 500 test images, the worse of the two.

    `aligned_margin`: mean cosine of the pullback for a random other class with that class's mean image less the
    own class's, less 1.5 times the plain gradient's; `agreeing_margin` the same of the mean cosine of explanations
    of the own class between images of a class; `moved` is the largest change of an output.
    """
    figures: list[dict[str, float]] = []
    for name in ("fashion_mnist", "mnist"):
        (model,), split = _trained(name, budget, seed)
        x, own, other = split.x_test, split.y_test, _targets(split, seed)
        means = torch.stack([split.x_train[split.y_train == label].mean(0) for label in range(10)])
        methods = ("pullback", "gradient", "smooth_gradient")
        aligned = {m: alignment(explain(model, x, other, m), means, own, other) for m in methods}
        agreeing = {m: agreement(explain(model, x, own, m), own) for m in methods[:2]}
        with torch.no_grad():
            moved = float((convert(model).eval()(x) - model.eval()(x)).abs().max())
        figures.append(
            {
                "aligned_margin": aligned["pullback"] - 1.5 * aligned["gradient"],
                "agreeing_margin": agreeing["pullback"] - 1.5 * agreeing["gradient"],
                "over_smooth_gradient": aligned["pullback"] - aligned["smooth_gradient"],
                "aligned": aligned["pullback"],
                "agreeing": agreeing["pullback"],
                "still": -moved,
            }
        )
    worst = {name: min(f[name] for f in figures) for name in figures[0]}
    return Evidence(moved=-worst.pop("still"), **worst)


@claim(
    "excitation_pullback",
    "Networks contain an implicit linear model whose decision boundary can be pulled back approximately to the "
    "input space.",
    seeds=5,
    holds=at_least(0.05, of="transfer_over_gradient"),
)
def ascent_transfers(budget: Budget, seed: int) -> Evidence:
    """Five steps of length 0.5 towards a random class on Fashion-MNIST: how often another network sees that class.

    `success` and `gradient_success` are of the network itself, `transfer` of one trained from another seed.
    """
    (model, other), split = _trained("fashion_mnist", budget, seed, networks=2)
    target = _targets(split, seed)
    figures = {}
    for method in ("pullback", "gradient"):
        moved = ascent(model, split.x_test, target, 5, 0.5, method, bounds=(0.0, 1.0))
        with torch.no_grad():
            figures[method], figures[f"{method}_transfer"] = (
                float((net.eval()(moved).argmax(1) == target).float().mean()) for net in (model, other)
            )
    return Evidence(
        transfer_over_gradient=figures["pullback_transfer"] - figures["gradient_transfer"],
        transfer=figures["pullback_transfer"],
        success=figures["pullback"],
        gradient_success=figures["gradient"],
    )


__all__ = [
    "SoftGateMaxPool2d",
    "SoftGateReLU",
    "ascent",
    "convert",
    "explain",
    "gate_vectors",
    "implied_scores",
    "path_kernel",
    "pullback",
]
