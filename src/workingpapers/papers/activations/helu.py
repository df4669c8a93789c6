"""HeLU: a ReLU whose gradient reaches a little below zero, so that units that just went silent can come back.

    forward    relu(x)
    backward   grad_in = grad_out where x > -alpha, else 0         alpha = 0.05

The thresholds of the two passes differ, a hysteresis; inference is that of plain ReLU, to which `export` goes
back.  At alpha = 0 the gradient is ReLU's.  A byte an element is kept for the backward pass, not the input.

Paper: "Hysteresis Activation Function for Efficient Inference" (2024), checked against the authors' code, whose
alpha is fixed.  A threshold in units of the input's deviation and one that decays are additions of ours.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.activations._fashion import Factory, plain_sgd
from workingpapers.surgery import replace_modules
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, fit, initialise, mlp

Kinds = type[nn.Module] | tuple[type[nn.Module], ...]


class _Hysteresis(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x), x > threshold

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (passed,) = ctx.saved_tensors
        return torch.where(passed, grads[0], 0), None


def helu(x: Tensor, alpha: float | Tensor = 0.05) -> Tensor:
    """Return relu(x), whose gradient passes wherever x > -alpha; no gradient goes to `alpha`."""
    found: Tensor = _Hysteresis.apply(x, -alpha)[0]
    return found


@paper(
    "helu",
    surrogate_gradient=True,
    smooth=False,
    monotone=True,
    positively_homogeneous=True,
    zero_at_zero=True,
    example=lambda batch, generator: 0.1 * torch.randn(batch, 7, generator=generator),  # many in the band
    variants=[{"alpha": 1.0, "relative": True}],
)
class HeLU(nn.Module):
    """Apply `helu` to a tensor of any shape.

    Args:
        alpha: how far below zero gradients pass, at least 0; 0.05 in the paper.  See `set_alpha` to change it.
        relative: count alpha in standard deviations of the input tensor (ours, not the paper's).
    """

    def __init__(self, alpha: float = 0.05, relative: bool = False) -> None:
        super().__init__()
        self.alpha, self.relative = _checked(alpha), relative

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(x), same shape."""
        if self.relative and x.numel() > 1:
            return helu(x, self.alpha * x.detach().std())
        return helu(x, self.alpha)

    def extra_repr(self) -> str:
        """Name alpha, and its unit where that is not 1."""
        return f"alpha={self.alpha:g}" + (", relative=True" if self.relative else "")


def _checked(alpha: float) -> float:
    if not alpha >= 0:
        raise WorkingPapersError(f"HeLU's gradient reaches alpha >= 0 below zero; got {alpha}")
    return float(alpha)


def set_alpha(model: nn.Module, alpha: float) -> None:
    """Set alpha in every HeLU of `model`, to let it decay over training, say; 0 is the gradient of ReLU."""
    for module in model.modules():
        if isinstance(module, HeLU):
            module.alpha = _checked(alpha)


def _small_net(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        return mlp([6, 16, 16, 3], HeLU), torch.randn(20, 6, generator=generator)


@paper("helu", part="export", kind="transform", example=_small_net, preserves=0.0)
def export(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with plain ReLUs in place of all HeLUs; its outputs are the same bit for bit."""
    if not any(isinstance(module, HeLU) for module in model.modules()):
        return copy.deepcopy(model)
    return replace_modules(model, HeLU, lambda module: nn.ReLU())


def dead_units(model: nn.Module, x: Tensor, kinds: Kinds) -> dict[str, Tensor]:
    """Tell by module of the given `kinds` which of its units (channels, where outputs have space) never fire.

    A unit, dimension 1 of the outputs, is dead where its output is positive for no example of `x` (N, ...).
    """
    fired = collect(
        model, x, kinds, keep=lambda module, y: (y > 0).flatten(2).any(-1) if y.ndim > 2 else y > 0
    )
    return {name: ~found.any(0) for name, found in fired.items()}


def dead_share(model: nn.Module, x: Tensor, kinds: Kinds) -> float:
    """Return the share of dead units among all units of `model`, see `dead_units`."""
    return float(torch.cat(list(dead_units(model, x, kinds).values())).double().mean())


def silent_layer(
    activation: Factory, low: float, high: float, *, units: int = 200, seed: int = 0
) -> tuple[nn.Sequential, Split]:
    """Build a regression net whose hidden pre-activations all lie in (low, high), and the data of its inputs.

    Inputs are 512 uniform points of the square [-1, 1]^2, the target is |x_1| + |x_2|.  Biases lie in the
    middle half of the interval, and weights add at most a quarter of it.
    """
    if not low < high:
        raise WorkingPapersError(f"pre-activations lie between low < high; got {low} and {high}")
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(512, 2, generator=generator) * 2 - 1
    y = x.abs().sum(1, keepdim=True)
    model = initialise(lambda: mlp([2, units, 1], activation), seed)
    hidden = next(layer for layer in model if isinstance(layer, nn.Linear))
    with torch.no_grad():
        hidden.weight.uniform_(-1, 1, generator=generator).mul_((high - low) / 8)
        hidden.bias.uniform_(low + (high - low) / 4, high - (high - low) / 4, generator=generator)
    return model, Split(x, y, x, y, 0, "square")


def biased_mlp(activation: Factory, bias: float | None) -> nn.Sequential:
    """Build the perceptron 784-256x4-10, all biases `bias` at first (None: torch's own), no normalisation."""
    model = mlp([784, 256, 256, 256, 256, 10], activation)
    if bias is not None:
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.constant_(layer.bias, bias)
    return model


@claim(
    "helu",
    "A shifted threshold in backpropagation counters dying ReLU and lets the simple unit generalise like more "
    "complex ones, at unchanged inference.",
    seeds=5,
    holds=all_of(at_most(0.8, of="dead_over_relu"), at_least(-0.01, of="accuracy_over_relu")),
    calibrated="dead units are counted over all settings, biases of -0.05 at first among them: in the others ReLU "
    "had fewer than 5 % dead",
)
def fewer_dead_units(budget: Budget, seed: int) -> Evidence:
    """Perceptrons on Fashion-MNIST by plain SGD at 0.1 and 0.3, biases at first as usual, -0.02 and -0.05.

    `dead_over_relu` and `accuracy_over_relu` are over all six settings; leaky ReLU and GELU run in the usual one.
    """
    train, test = budget.pick(quick=(3000, 2000), full=(5000, 10000))
    split: Split = images("fashion_mnist", train=train, test=test, seed=seed)
    dead: dict[str, list[float]] = {}
    accuracy: dict[str, list[float]] = {}
    usual = {"leaky_relu": nn.LeakyReLU, "gelu": nn.GELU}
    for bias in (None, -0.02, -0.05):
        for name, kind in {"relu": nn.ReLU, "helu": HeLU, **(usual if bias is None else {})}.items():
            for lr in (0.1, 0.3):
                model = initialise(partial(biased_mlp, kind, bias), seed)
                found = fit(model, split, epochs=5, every=10**6, lr=lr, optimizer=plain_sgd, seed=seed)
                dead.setdefault(name, []).append(dead_share(model, split.x_test, kind))
                accuracy.setdefault(name, []).append(found.metrics["accuracy"])
    mean = {name: sum(values) / len(values) for name, values in accuracy.items()}
    return Evidence(
        dead_over_relu=sum(dead["helu"]) / sum(dead["relu"]),
        dead_of_relu=sum(dead["relu"]) / len(dead["relu"]),
        accuracy_over_relu=mean["helu"] - mean["relu"],
        accuracy_over_gelu=sum(accuracy["helu"][:2]) / 2 - mean["gelu"],
        accuracy_over_leaky_relu=sum(accuracy["helu"][:2]) / 2 - mean["leaky_relu"],
    )


@claim(
    "helu",
    "The relaxed threshold refines gradients so that slightly inactive neurons are not cut off from learning.",
    seeds=5,
    holds=all_of(
        at_least(0.3, of="helu_near"),
        at_most(0.0, of="relu_near", by="every"),
        at_most(0.0, of="helu_far", by="every"),
        at_most(0.0, of="relu_far", by="every"),
    ),
)
def recovery(budget: Budget, seed: int) -> Evidence:
    """Share of 200 silent units that fire after 200 steps, from (-0.04, 0) `near` and from (-0.5, -0.2) `far`."""
    fired = {}
    for place, (low, high) in {"near": (-0.04, 0.0), "far": (-0.5, -0.2)}.items():
        for name, kind in {"helu": HeLU, "relu": nn.ReLU}.items():
            model, split = silent_layer(kind, low, high, seed=seed)
            fit(model, split, steps=200, lr=0.1, optimizer=plain_sgd, seed=seed)
            fired[f"{name}_{place}"] = 1 - dead_share(model, split.x_train, kind)
    return Evidence(**fired)
