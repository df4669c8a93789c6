"""How features of weighted layers change under a shift: their size, their subspace, and what stays without them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.collect import collect
from workingpapers.tasks import initialise


def _weighted(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def last_linear(model: nn.Module, x: Tensor) -> str:
    """Return the name of the linear layer that runs last; `x` is one input or more."""
    if not any(isinstance(m, nn.Linear) for m in model.modules()):
        raise WorkingPapersError(
            f"{type(model).__name__} has no linear layer whose features could be followed"
        )
    names = list(collect(model, x[:1], nn.Linear, keep=lambda m, z: z.flatten()[:1]))
    return names[-1].split("#")[0]


def features(model: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs (N, width) of the model's last linear layer: its penultimate features."""
    name = last_linear(model, x)
    return collect(model, x, [name], side="input")[name].flatten(1)


def _rows(module: nn.Module, z: Tensor) -> Tensor:
    """Return what the layer's weight matrix is applied to, (rows, inputs): features, or a convolution's patches."""
    if isinstance(module, nn.Linear):
        return z.reshape(-1, z.shape[-1])
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str):
        raise WorkingPapersError("only convolutions with padding in numbers can be followed")
    patches = F.unfold(
        z,
        module.kernel_size,
        module.dilation,
        module.padding,
        module.stride,  # type: ignore[arg-type]
    )
    return patches.transpose(1, 2).flatten(0, 1)


def second_moments(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return for each linear and convolutional layer the mean of phi phi' (inputs, inputs) over rows phi."""

    def keep(module: nn.Module, z: Tensor) -> Tensor:
        rows = _rows(module, z).double()
        return (rows.T @ rows)[None] * (len(z) / len(rows))

    found = collect(model, x, _weighted, side="input", keep=keep)
    return {name: parts.sum(0) / len(x) for name, parts in found.items() if "#" not in name}


@dataclass(frozen=True)
class LayerShift:
    """One layer under a shift, against the inputs without it; all are ratios of mean squares, roots taken.

    `norm` of phi(x); `signal` of W phi(x), the part that the input decides; `inside`, the share of phi(x)'s energy
    in the subspace of the training features, and `along_weights` in that of the largest singular values of W (both
    hold the given share of their own energy); `constant` is |b| / |W phi(x)|, the bias against the input.
    """

    norm: float
    signal: float
    inside: float
    along_weights: float
    constant: float


def _top(moment: Tensor, energy: float) -> Tensor:
    """Return the eigenvectors (inputs, k) of the largest eigenvalues that hold a share `energy` of the trace."""
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.clamp_min(0).flip(0), vectors.flip(1)
    count = int((values.cumsum(0) < energy * values.sum()).sum()) + 1
    kept: Tensor = vectors[:, :count]
    return kept


def layer_report(
    model: nn.Module, x_train: Tensor, inside: Tensor, levels: Sequence[Tensor], energy: float = 0.95
) -> dict[str, list[LayerShift]]:
    """Follow every linear and convolutional layer from `inside` inputs (N, ...) through each shifted batch.

    Subspaces are those of `x_train`'s features and of each weight matrix.  Grouped convolutions are left out.
    """
    train, start = second_moments(model, x_train), second_moments(model, inside)
    report: dict[str, list[LayerShift]] = {name: [] for name in start}
    modules = dict(model.named_modules())
    for x in levels:
        for name, moment in second_moments(model, x).items():
            weight = modules[name].get_parameter("weight").detach().flatten(1).double()
            bias = getattr(modules[name], "bias", None)

            def size(m: Tensor, weight: Tensor = weight) -> float:
                return float(torch.einsum("oi,ij,oj->", weight, m, weight)) + 1e-30

            def share(top: Tensor, m: Tensor = moment) -> float:
                return float(torch.einsum("ik,ij,jk->", top, m, top) / (m.trace() + 1e-30))

            report[name].append(
                LayerShift(
                    norm=float((moment.trace() / (start[name].trace() + 1e-30)).sqrt()),
                    signal=(size(moment) / size(start[name])) ** 0.5,
                    inside=share(_top(train[name], energy)),
                    along_weights=share(_top(weight.T @ weight, energy)),
                    constant=0.0
                    if bias is None
                    else float(bias.detach().double().norm()) / size(moment) ** 0.5,
                )
            )
    return report


def accumulated_constant(model: nn.Module, x: Tensor, layer: str) -> Tensor:
    """Return the output of the model where `layer` gives its bias alone, as if W phi(x) were 0; x is one batch.

    All that the input decides up to there is gone; the biases, and the layers after it, decide the output (N, ...).
    """
    module = dict(model.named_modules()).get(layer)
    if module is None or not _weighted(layer, module):
        raise WorkingPapersError(f"{layer!r} is no linear or convolutional layer of the model")
    bias: Tensor | None = module.bias  # type: ignore[assignment]

    def only_bias(own: nn.Module, args: object, output: Tensor) -> Tensor:
        if bias is None:
            return torch.zeros_like(output)
        shape = [1, -1, 1, 1] if isinstance(own, nn.Conv2d) else [-1]
        return bias.detach().reshape(shape).expand_as(output)

    handle = module.register_forward_hook(only_bias)
    try:
        return collect(model, x, [""])[""]
    finally:
        handle.remove()


def homogeneous_mlp(sizes: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Return a ReLU network with a bias in its last layer alone: what is before the bias is 1-homogeneous."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for width_in, width in pairwise(sizes[:-1]):
            layers += [nn.Linear(width_in, width, bias=False), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))

    return initialise(build, seed)


def off_subspace(
    model: nn.Module, x: Tensor, basis: Tensor, angles: Sequence[float], seed: int = 0
) -> Mapping[float, float]:
    """Turn inputs (N, D) of a subspace out of it by `angles` (radians), and return how much is left of the output.

    `basis` (D, k) spans the subspace, orthonormal; norms stay.  Returned is, by angle, the mean norm of the output
    less its value at 0 (the bias, for `homogeneous_mlp`) over that at angle 0.
    """
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    away = drawn - drawn @ basis @ basis.T
    away = away / away.norm(dim=1, keepdim=True) * x.norm(dim=1, keepdim=True)
    zero = collect(model, torch.zeros_like(x[:1]), [""])[""]

    def size(angle: float) -> float:
        turned = math.cos(angle) * x + math.sin(angle) * away
        return float((collect(model, turned, [""])[""] - zero).norm(dim=1).mean())

    start = size(0.0)
    return {angle: size(angle) / max(start, 1e-30) for angle in angles}
