"""Clipped thresholds: activations that set most units to zero, and the initialisation that lets deep nets train.

    crelu(x; tau, m) = min(max(x - tau, 0), m)          cst(x; tau, m) = sign(x) min(max(|x| - tau, 0), m)

tau sets the sparsity, Phi(tau) or 2 Phi(tau) - 1 where pre-activations have variance q = 1.  There weights
N(0, sw2 / fan_in) and biases N(0, sb2) put the net at the edge of chaos: V(q) = q, chi(q) = 1.  Without the clip
(m = inf) also V'(q) = 1, and V'' > 0, so the variance runs away from above; an m with V'(q) < 1 brings it back.

Paper: "Deep Neural Network Initialization with Sparsity Inducing Activations" (2024), Sections 2 and 3.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least
from workingpapers.kernels import pointwise
from workingpapers.papers.sparsity._variance_map import EdgeOfChaos, Thresholded, choose_clip, draw, threshold
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, fit, initialise


@pointwise
def clipped_relu(x: Tensor, tau: float = 1.0, m: float = 1.0) -> Tensor:
    """Return min(max(x - tau, 0), m) of `x` (any shape, floating)."""
    return (x - tau).clamp(0.0, m)


@pointwise
def clipped_soft_threshold(x: Tensor, tau: float = 1.0, m: float = 1.0) -> Tensor:
    """Return sign(x) min(max(|x| - tau, 0), m) of `x` (any shape, floating)."""
    return (x - x.clamp(-tau, tau)).clamp(-m, m)


class _Clipped(nn.Module):
    soft = False

    def __init__(self, tau: float = 1.0, m: float = 1.0) -> None:
        super().__init__()
        if not (0 <= tau < math.inf and m > 0):
            raise WorkingPapersError(
                f"{type(self).__name__} takes a threshold tau >= 0 and a clip m > 0; got tau={tau}, m={m}"
            )
        self.tau, self.m = float(tau), float(m)

    @property
    def theory(self) -> Thresholded:
        """Its moments under a normal input."""
        return Thresholded(self.tau, self.m, self.soft)

    def extra_repr(self) -> str:
        """Name threshold and clip."""
        return f"tau={self.tau:g}, m={self.m:g}"


@paper(
    "clipped_sparse_act",
    smooth=False,
    monotone=True,
    lipschitz=1.0,
    zero_at_zero=True,
    variants=[{"tau": 0.3, "m": 2.0}, {"tau": 0.0, "m": 100.0}],
)
class ClippedReLU(_Clipped):
    """Apply `clipped_relu` to a tensor of any shape.

    Args:
        tau: threshold, at least 0; see `sparse` for one that gives a wanted sparsity.
        m: largest output; inf for the shifted ReLU of old.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return clipped_relu(x, self.tau, self.m)


@paper(
    "clipped_sparse_act",
    part="soft",
    smooth=False,
    monotone=True,
    odd=True,
    lipschitz=1.0,
    zero_at_zero=True,
    variants=[{"tau": 0.3, "m": 2.0}, {"tau": 0.3, "m": 100.0}],
)
class ClippedSoftThreshold(_Clipped):
    """Apply `clipped_soft_threshold` to a tensor of any shape.

    Args:
        tau: threshold, at least 0; see `sparse` for one that gives a wanted sparsity.
        m: largest size of outputs; inf for the usual soft threshold.
    """

    soft = True

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return clipped_soft_threshold(x, self.tau, self.m)


def sparse(sparsity: float, slope: float | None = 0.7, q: float = 1.0, soft: bool = False) -> _Clipped:
    """Return the activation that sets the share `sparsity` to zero, clipped where V'(q) = `slope`.

    Args:
        sparsity: share of zeros under N(0, q): 0.5 to 1, or with `soft` 0 to 1.
        slope: of the variance map at its fixed point, in (0, 1); None leaves out the clip.
        q: variance of the pre-activations.
        soft: take the soft threshold in place of the ReLU.
    """
    tau = threshold(sparsity, q, soft)
    m = math.inf if slope is None else choose_clip(sparsity, slope, q, soft)
    return ClippedSoftThreshold(tau, m) if soft else ClippedReLU(tau, m)


def _example(generator: torch.Generator) -> tuple[nn.Module, _Clipped]:
    layers = nn.Sequential(nn.Linear(400, 600), nn.Linear(600, 500), nn.Conv2d(40, 60, 3))
    return layers, sparse(0.8)


def _promise(model: nn.Module, activation: _Clipped) -> dict[str, tuple[float, float, float]]:
    edge = EdgeOfChaos.at(activation.theory)
    var = {name: float(p.var()) for name, p in model.named_parameters()}
    found = {
        "first layer's variance": (var["0.weight"] * 400 + var["0.bias"], 1.0, 0.15),
        "sw2 of a linear layer": (var["1.weight"] * 600, edge.sw2, 0.05),
        "sw2 of a convolution": (var["2.weight"] * 360, edge.sw2, 0.1),
        "sb2": (var["1.bias"], edge.sb2, 0.25),
    }
    return {n: (v, wanted * (1 - r), wanted * (1 + r)) for n, (v, wanted, r) in found.items()}


@paper("clipped_sparse_act", part="init", kind="initializer", example=_example, promise=_promise)
@torch.no_grad()
def edge_of_chaos_(
    model: nn.Module,
    activation: _Clipped | None = None,
    q: float = 1.0,
    input_moment: float = 1.0,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Draw all linear and convolution layers of `model` in place at the edge of chaos of its activation; return it.

    Args:
        model: any model; the first of its layers is taken for the one that sees the data.
        activation: the one behind the layers; by default the first clipped one found in the model.
        q: variance of the pre-activations that is to be kept.
        input_moment: mean square of the data, 1 where they are standardised; the first layer's weights are scaled
            so that its outputs have variance q.
        generator: for the draws; torch's global one by default.

    Raises:
        WorkingPapersError: where the model has no such activation or layer, or the bias variance were negative.
    """
    if activation is None:
        activation = next((m for m in model.modules() if isinstance(m, _Clipped)), None)
        if activation is None:
            raise WorkingPapersError(f"{type(model).__name__} has no clipped activation to initialise for")
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    if not layers:
        raise WorkingPapersError(f"{type(model).__name__} has no linear or convolution layer to initialise")
    edge = EdgeOfChaos.at(activation.theory, q)
    for i, layer in enumerate(layers):
        scale = edge.sw2 if i else (q - edge.sb2) / input_moment
        fan_in = nn.init._calculate_fan_in_and_fan_out(layer.weight)[0]
        layer.weight.normal_(0, math.sqrt(scale / fan_in), generator=generator)
        if layer.bias is not None:
            layer.bias.normal_(0, math.sqrt(edge.sb2), generator=generator)
    return model


def make_mlp(
    inputs: int, outputs: int, activation: Callable[[], _Clipped], depth: int = 100, width: int = 300
) -> nn.Sequential:
    """Build a perceptron with `depth` hidden layers of `width`, (B, ...) -> (B, outputs), at the edge of chaos."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise([inputs, *[width] * depth]):
        layers += [nn.Linear(width_in, width_out), activation()]
    net = nn.Sequential(*layers, nn.Linear(width, outputs))
    edge_of_chaos_(net)
    return net


def make_cnn(
    channels: int, outputs: int, activation: Callable[[], _Clipped], depth: int = 50, width: int = 100
) -> nn.Sequential:
    """Build `depth` 3x3 convolutions of `width` channels, wrapped around at the edges, and a linear read-out.

    (B, channels, H, W) -> (B, outputs), at the edge of chaos; the read-out sees the mean over places.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise([channels, *[width] * depth]):
        layers += [nn.Conv2d(width_in, width_out, 3, padding=1, padding_mode="circular"), activation()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs))
    edge_of_chaos_(net)
    return net


@torch.no_grad()
def simulate(
    activation: _Clipped, depth: int = 100, width: int = 300, q: float = 1.0, seed: int = 0
) -> Tensor:
    """Return the mean square of the pre-activations of a random net, layer by layer (depth,), float64.

    The first layer's are drawn from N(0, q); an overflow shows as inf or nan.
    """
    edge = EdgeOfChaos.at(activation.theory, q)
    generator = torch.Generator().manual_seed(seed)
    h = math.sqrt(q) * torch.randn(width, generator=generator)
    found = [h.double().square().mean()]
    for _ in range(depth - 1):
        weight = torch.randn(width, width, generator=generator) * math.sqrt(edge.sw2 / width)
        h = weight @ activation(h) + math.sqrt(edge.sb2) * torch.randn(width, generator=generator)
        found.append(h.double().square().mean())
    return torch.stack(found)


@paper("clipped_sparse_act", part="maps", kind="analysis", example=lambda g: (sparse(0.85),))
def maps(activation: _Clipped, q: float = 1.0) -> Finding:
    """Return the edge of chaos at variance `q`: weights, fixed point, slopes, and the two maps as a figure."""
    edge = EdgeOfChaos.at(activation.theory, q)
    step = 1e-4 * q
    bend = (edge.slope(q + step) - edge.slope(q - step)) / (2 * step)
    numbers = {"sw2": edge.sw2, "sb2": edge.sb2, "chi": edge.chi(q), "V'": edge.slope(q), "V''": bend}
    stable = "comes back" if numbers["V'"] < 1 - 1e-9 else "does not come back"
    return Finding(numbers, f"A variance moved above {q:g} {stable} with depth.", partial(draw, edge))


@claim(
    "clipped_sparse_act",
    "Shifted ReLU and soft thresholding cause a training instability at depth, and clipping their magnitude at a "
    "level set by the variance map removes it.",
    seeds=5,
    holds=all_of(at_least(0.6, of="unclipped_outside"), at_least(0.95, of="clipped_inside")),
)
def variance_at_depth(budget: Budget, seed: int) -> Evidence:
    """Shares of random nets, 100 layers of 300, whose last variance left, or kept to, 10^-0.5 to 10^0.5.

    The smallest share over sparsities of 0.7 and 0.85, ReLU and soft threshold; clipped where V' is 0.7, the ReLU
    also where it is 0.9 (the soft threshold's map then has a second stable point, at 5.3 for a sparsity of 0.85).
    """
    nets = budget.pick(quick=10, full=50)

    def inside(activation: _Clipped) -> float:
        last = torch.stack([simulate(activation, seed=nets * seed + n)[-1] for n in range(nets)])
        return float((last.log10().abs() <= 0.5).double().mean())

    kinds = [(s, soft) for s in (0.7, 0.85) for soft in (False, True)]
    free = [inside(sparse(s, None, soft=soft)) for s, soft in kinds]
    clipped = [inside(sparse(s, slope, soft=soft)) for s, soft in kinds for slope in (0.7, 0.9)[: 2 - soft]]
    return Evidence(unclipped_outside=1 - max(free), clipped_inside=min(clipped))


def trained(activation: Callable[[], _Clipped], split: Split, epochs: int, seed: int) -> tuple[float, float]:
    """Train the claim's deep perceptron at the better of two rates; return accuracy and share of hidden zeros."""
    found = []
    for lr in (3e-4, 1e-3):
        model = initialise(partial(make_mlp, split.x_train[0].numel(), 10, activation, 30, 150), seed)
        accuracy = fit(model, split, epochs=epochs, optimizer="sgd", lr=lr, seed=seed).metrics["accuracy"]
        zeros = collect(model, split.x_test[:500], _Clipped, keep=lambda m, y: (y == 0).double())
        share = torch.stack([z.mean() for z in zeros.values()]).mean()
        found.append((0.1 if math.isnan(accuracy) else accuracy, float(share)))
    return max(found)


@claim(
    "clipped_sparse_act",
    "With clipping, deep nets keep most hidden units at zero while staying near full accuracy.",
    figure="fractional sparsity up to 85%",
    seeds=5,
    holds=all_of(
        at_least(0.8, of="accuracy"),
        at_least(-0.1, of="over_reference"),
        at_least(0.78, of="sparsity"),
        at_least(0.2, of="over_unclipped"),
    ),
)
def deep_and_sparse(budget: Budget, seed: int) -> Evidence:
    """Test accuracy on MNIST of 30 hidden layers of 150: s = 0.85 clipped, unclipped, and s = 0.5 clipped.

    Each at the better of two rates; a run that diverged counts as chance, 0.1.
    """
    split = images("mnist", train=budget.pick(quick=5000, full=60_000), test=2000, seed=seed)
    epochs = budget.pick(quick=5, full=20)
    accuracy, sparsity = trained(lambda: sparse(0.85), split, epochs, seed)
    free = trained(lambda: sparse(0.85, None), split, epochs, seed)[0]
    reference = trained(lambda: sparse(0.5), split, epochs, seed)[0]
    gains = {"over_reference": accuracy - reference, "over_unclipped": accuracy - free}
    return Evidence(accuracy=accuracy, sparsity=sparsity, **gains)
