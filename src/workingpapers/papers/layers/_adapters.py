"""Adapters compared: a vision transformer trained on Fashion-MNIST, frozen, is taught MNIST."""

import copy
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from workingpapers.data import images
from workingpapers.surgery import replace_modules
from workingpapers.tasks import Budget, fit, initialise, vit

Adapt = Callable[[nn.Module, list[str]], nn.Module]


class Bottleneck(nn.Module):
    """The usual adapter, x + up(relu(down(x))), (..., dim) -> same shape, which starts as the identity."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and what the bottleneck adds."""
        out: Tensor = x + self.up(self.down(x).relu())
        return out


def with_bottlenecks(model: nn.Module, places: list[str], width: int, seed: int) -> nn.Module:
    """Return a frozen copy of `model` with bottlenecks to learn behind the linear layers at `places`."""

    def build(old: nn.Module) -> nn.Module:
        assert isinstance(old, nn.Linear)
        return nn.Sequential(old, initialise(partial(Bottleneck, old.out_features, width), seed))

    adapted = replace_modules(model, places, build).requires_grad_(False)
    for module in adapted.modules():
        if isinstance(module, Bottleneck):
            module.requires_grad_(True)
    return adapted


def compare_adapters(
    adapt: Adapt, width: int, budget: Budget, seed: int
) -> tuple[dict[str, int], dict[str, float]]:
    """Return how many numbers were learned beside the head, and the accuracy, of three ways to adapt.

    "ours" by `adapt` (model, places), "bottleneck" of `width`, and "head_alone".  All get the same new head
    and train by Adam at 1e-2.
    """
    train, test = budget.pick(quick=(3000, 2000), full=(20000, 10000))
    first, second = (images(name, train, test, size=12, seed=seed) for name in ("fashion_mnist", "mnist"))
    host = initialise(lambda: vit(1, 12, 3, 10), seed)
    fit(host, first, epochs=budget.pick(quick=4, full=20), lr=2e-3, seed=seed)
    places = [name for name, _ in host.named_modules() if name.endswith(("mixer.out", "contract"))]
    models = {
        "ours": adapt(host, places),
        "bottleneck": with_bottlenecks(host, places, width, seed),
        "head_alone": copy.deepcopy(host).requires_grad_(False),
    }
    learned, accuracy = {}, {}
    for name, model in models.items():
        learned[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        model.head = initialise(partial(nn.Linear, 64, 10), seed)
        result = fit(model, second, epochs=budget.pick(quick=4, full=20), lr=1e-2, seed=seed)
        accuracy[name] = 0.0 if result.diverged else result.metrics["accuracy"]
    return learned, accuracy
