"""LSUV: orthonormal weights, then every layer scaled until its output has unit variance on a batch.

    W <- an orthonormal matrix, b <- 0                         for every layer
    while |Var[W x] - 1| >= tol:  W <- W / sqrt(Var[W x])      layer by layer, from the first to the last

The variance is that over all outputs of the layer, before the activation, on one batch of data.  Residual
branches need a word: each adds its own variance to the sum, so `target_std` may scale their last layers down.

Paper: "All you need is a good init" (2015), Algorithm 1.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least, at_most, below
from workingpapers.papers.training._deep import INITS, LAYERS, TRANSPOSED, thin_net
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, cnn, fit, initialise, residual_cnn

SCALED = (*LAYERS, nn.MultiheadAttention)

Run = Callable[[], Tensor]
Batch = Tensor | tuple[Tensor, ...]


class Scaled(NamedTuple):
    """What the variance step did to a layer: how often it was divided, and its variance before and after."""

    name: str
    iterations: int
    before: float
    after: float


@torch.no_grad()
def orthonormal_(
    weight: Tensor, generator: torch.Generator | None = None, transposed: bool = False
) -> Tensor:
    """Fill `weight` (out, in, ...) with a matrix (out, in * ...) of orthonormal rows, or columns where it is tall.

    `transposed` says that the weight is (in, out, ...), as in transposed convolutions.  The matrix comes from the
    singular vectors of a Gaussian one (Saxe et al., 2014); `generator`: torch's global one by default.
    """
    view = weight.transpose(0, 1) if transposed else weight
    gaussian = torch.empty(len(view), view[0].numel(), dtype=torch.float64)
    u, _, v = torch.linalg.svd(gaussian.normal_(generator=generator), full_matrices=False)
    view.copy_((u if u.shape == gaussian.shape else v).view(view.shape))
    return weight


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    convolutions = [nn.Conv2d(3, 8, 3), nn.Tanh(), nn.ConvTranspose2d(8, 4, 3, stride=2), nn.ReLU()]
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Dropout(), nn.Linear(676, 20))
    return model, torch.randn(64, 3, 8, 8, generator=generator)


def _promise(model: nn.Module, batch: Tensor) -> dict[str, tuple[float, float, float]]:
    return {f"variance of layer {name}": (v, 0.9, 1.1) for name, v in check_variance(model, batch).items()}


@paper("lsuv", example=_example, promise=_promise)
def lsuv_(
    model: nn.Module,
    batch: Batch,
    tol: float = 0.1,
    max_iter: int = 10,
    target_std: float | Mapping[str, float] = 1.0,
    centre: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Initialise every linear, convolution and attention projection of `model` in place; return the model.

    Args:
        model: any model; its structure, modes and buffers stay as they are.
        batch: the inputs of one forward pass, which runs in evaluation mode.
        tol: how far the variance may be from the target's, as a share of it.
        max_iter: how often a layer is divided at most.
        target_std: the deviation to reach, or those of some layers by name (others 1), such as the last of
            each residual branch.
        centre: also move the biases so that each channel has mean 0.
        generator: for the orthonormal matrices; torch's global one by default.

    Raises:
        WorkingPapersError: where there is nothing to scale, a weight is parametrized, or an output does not vary.
    """
    orthonormalise_(model, generator)
    unit_variance_(model, batch, tol=tol, max_iter=max_iter, target_std=target_std, centre=centre)
    return model


def orthonormalise_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Make every weight of `model` orthonormal and every bias 0, in place: the first step of `lsuv_` alone."""
    for name, module in model.named_modules():
        if not isinstance(module, SCALED):
            continue
        if parametrize.is_parametrized(module):
            raise WorkingPapersError(
                f"{name!r} has parametrized weights, which cannot be set; remove that first"
            )
        for key, parameter in module.named_parameters(recurse=False):
            if "weight" not in key:
                nn.init.zeros_(parameter)
                continue
            # attention keeps three projections in one weight; each is made orthonormal for itself
            for part in parameter.detach().chunk(3) if key == "in_proj_weight" else (parameter,):
                orthonormal_(part, generator, transposed=isinstance(module, TRANSPOSED))
    return model


@torch.no_grad()
def unit_variance_(
    model: nn.Module,
    batch: Batch,
    *,
    tol: float = 0.1,
    max_iter: int = 10,
    target_std: float | Mapping[str, float] = 1.0,
    centre: bool = False,
) -> list[Scaled]:
    """Scale the layers of `model` in place, in the order in which they run, and return what was done to each.

    The second step of `lsuv_` alone, whose arguments it takes.  One forward pass suffices: a layer is settled
    when its input arrives, and hands on what it gives then.  A layer that runs several times is settled once.
    """
    if not (0 < tol < 1 and max_iter >= 1):
        raise WorkingPapersError(f"tol lies in (0, 1) and max_iter is at least 1; got {tol} and {max_iter}")
    names = dict(model.named_modules())
    targets = dict.fromkeys(names, 1.0 if isinstance(target_std, Mapping) else float(target_std))
    for name, std in target_std.items() if isinstance(target_std, Mapping) else ():
        if name not in names:
            raise unknown("layer of the model", name, names)
        targets[name] = float(std)
    step = _VarianceStep(tol, max_iter, centre, targets)
    with _hooked(model, step.hook):
        model(*(batch if isinstance(batch, tuple) else (batch,)))
    if not step.report:
        raise WorkingPapersError(
            f"{type(model).__name__} ran no linear or convolution layer that could be scaled"
        )
    return list(step.report.values())


class _VarianceStep:
    """Scales each layer from a hook, once, when it first runs."""

    def __init__(self, tol: float, max_iter: int, centre: bool, targets: Mapping[str, float]) -> None:
        self.tol, self.max_iter, self.centre, self.targets = tol, max_iter, centre, targets
        self.report: dict[str, Scaled] = {}

    def hook(self, name: str) -> Callable[..., Any]:
        """Return the hook of the layer `name`, which replaces the layer's output by that after scaling."""

        def arrived(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if name in self.report:
                return None
            if not isinstance(module, nn.MultiheadAttention):
                return self._settle(name, module, module.weight, lambda: module.forward(*args, **kwargs))
            for part, weight, x in _projections(module, args, kwargs):
                self._settle(name, None, weight, partial(F.linear, x, weight), f"{name}.{part}")
            last = module.out_proj
            self._settle(name, last, last.weight, lambda: module.forward(*args, **kwargs)[0])
            return module.forward(*args, **kwargs)

        return arrived

    def _settle(self, name: str, layer: Any, weight: Tensor, run: Run, entry: str | None = None) -> Tensor:
        before, target = None, self.targets[name]
        for iteration in range(self.max_iter + 1):
            output = run()
            if self.centre and getattr(layer, "bias", None) is not None:
                channels = output.ndim - 1 if isinstance(layer, nn.Linear) else 1
                layer.bias.sub_(output.transpose(0, channels).flatten(1).mean(1))
                output = run()
            variance = float(output.double().var(correction=0))
            if not 0 < variance < float("inf"):
                raise WorkingPapersError(f"the output of {name!r} has the variance {variance} on this batch")
            before = variance if before is None else before
            if abs(variance / target**2 - 1) < self.tol:
                break
            if iteration < self.max_iter:
                weight.div_(variance**0.5 / target)
        self.report[entry or name] = Scaled(entry or name, iteration, before or 0.0, variance)
        return output


def _projections(
    module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, weight and input of the three projections of an attention layer."""
    joint: Any = module.in_proj_weight
    names = ("query", "key", "value")
    weights = joint.chunk(3) if joint is not None else [getattr(module, f"{n[0]}_proj_weight") for n in names]
    for i, (name, weight) in enumerate(zip(names, weights, strict=True)):
        yield name, weight, args[i] if i < len(args) else kwargs[name]


@contextmanager
def _hooked(model: nn.Module, hook: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    """Put hooks on all layers and the model in evaluation mode; take both back afterwards."""
    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, SCALED)
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def check_variance(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Return the variance of the output of every linear and convolution layer on the batch, in running order."""
    return {n: float(y.double().var(correction=0)) for n, y in collect(model, batch, LAYERS).items()}


@claim(
    "lsuv",
    "Very deep nets train to accuracy equal to or better than standard methods, as fast as schemes such as FitNets "
    "and Highway.",
    seeds=5,
    holds=all_of(
        *(at_least(0.05, of=f"{name}_over_default") for name in ("relu", "tanh")),
        *(at_least(-0.02, of=f"{name}_over_best") for name in ("relu", "tanh")),
        *(at_least(0.25, of=name) for name in ("relu", "tanh")),
    ),
)
def thin_nets_train(budget: Budget, seed: int) -> Evidence:
    """Accuracy on CIFAR-10 of a 17-layer thin net by SGD, against He's and Xavier's weights and PyTorch's own.

    A baseline that diverges counts as chance; LSUV must not diverge.
    """
    train, test = budget.pick(quick=3000, full=20000), budget.pick(quick=2000, full=5000)
    split = images("cifar10", train=train, test=test, size=budget.pick(quick=8, full=32), seed=seed)
    inits = {**INITS, "lsuv": lambda model: lsuv_(model, split.x_train[:128])}
    epochs = budget.pick(quick=8, full=30)

    def accuracy(activation: Callable[[], nn.Module], how: str) -> float:
        model = initialise(lambda: inits[how](thin_net(activation)), seed)
        trained = fit(model, split, epochs=epochs, lr=0.02, optimizer="sgd", seed=seed)
        return 0.1 if trained.diverged and how != "lsuv" else trained.metrics["accuracy"]

    found = {}
    for name, activation in (("relu", nn.ReLU), ("tanh", nn.Tanh)):
        found[name] = accuracy(activation, "lsuv")
        found[f"{name}_over_default"] = found[name] - accuracy(activation, "default")
        found[f"{name}_over_best"] = found[name] - max(accuracy(activation, how) for how in ("he", "xavier"))
    return Evidence(**found)


@claim(
    "lsuv",
    "Going from first layer to last, each output variance is normalised to one with little effort.",
    seeds=5,
    holds=all_of(below(0.1, of="worst", by="every"), at_most(3, of="median_iterations", by="every")),
)
def unit_variance(budget: Budget, seed: int) -> Evidence:
    """Largest |variance - 1| over the layers of thin, plain and residual nets on CIFAR-10, and the iterations."""
    batch = images("cifar10", train=128, test=1, size=16, seed=seed).x_train
    builds: list[Callable[[], nn.Module]] = [
        partial(thin_net, nn.ReLU),
        partial(thin_net, nn.Tanh),
        partial(cnn, 3, 10, (32, 64, 128, 128), size=16),
        partial(residual_cnn, 3, 10, norm=False, blocks_per_stage=budget.pick(quick=2, full=8)),
    ]
    distances, iterations = [], []
    for build in builds:
        model = orthonormalise_(initialise(build, seed), torch.Generator().manual_seed(seed))
        iterations += [scaled.iterations for scaled in unit_variance_(model, batch)]
        distances += [abs(v - 1) for v in check_variance(model, batch).values()]
    return Evidence(
        worst=max(distances), median_iterations=median(iterations), most_iterations=max(iterations)
    )
