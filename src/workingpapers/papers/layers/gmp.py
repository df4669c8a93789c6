"""GmP: a neuron's weight stored as angles, radius and offset, so that noise cannot flip its boundary.

    y = r * relu(u(theta) . x + lambda)
    u_1 = cos t_1,  u_2 = sin t_1 cos t_2,  ...,  u_n = sin t_1 sin t_2 ... sin t_{n-1}

The neuron switches on at the hyperplane u . x = -lambda.  The metric of the sphere,
du . du = dt_1^2 + sin^2 t_1 dt_2^2 + ..., is never above that of the angles, so a change of the angles by
epsilon turns the hyperplane by at most |epsilon|, however small the weight is.

Paper: "ReLU Characteristic Activation Analysis" (2023), later "Neural Characteristic Activation Analysis and
Geometric Parameterization for ReLU Networks" (NeurIPS 2024), Section 4; the initial values and the case of
one input follow the authors' code.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.layers._parameterisations import compare
from workingpapers.papers.layers._spherical import Spherical, angle_between, angles, unit_vectors
from workingpapers.tasks import Budget

CONV_OPTIONS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)  # fmt: skip
Layer = nn.Linear | nn.Conv2d | Spherical


@paper("gmp", replaces="Linear")
class GmPLinear(Spherical):
    """A linear layer (..., in_features) -> (..., out_features) in geometric parameters.

    Args:
        in_features, out_features, bias: as for nn.Linear; without bias lambda is 0.
        relu: give r * relu(u . x + lambda), the paper's neuron, instead of r * (u . x + lambda).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, relu: bool = False) -> None:
        super().__init__(out_features, (in_features,), bias, relu)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.linear(x, self.direction(), self.lam))

    @classmethod
    def from_linear(cls, linear: nn.Linear, relu: bool = False) -> "GmPLinear":
        """Return the same function of x (or its relu) in geometric parameters."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, relu).to(linear.weight)
        layer.set_weight(linear.weight, linear.bias)
        return layer

    def to_linear(self) -> nn.Linear:
        """Return the nn.Linear with the same weight and bias; a relu, if any, is left to its user."""
        linear = nn.Linear(self.in_features, self.out_features, self.lam is not None, device="meta")
        linear = linear.to_empty(device=self.r.device).to(self.r.dtype)
        self.write(linear)
        return linear

    def extra_repr(self) -> str:
        bias = self.lam is not None
        return f"{self.in_features}, {self.out_features}, bias={bias}, relu={self.relu}"


@paper("gmp", part="conv2d", replaces="Conv2d")
class GmPConv2d(Spherical):
    """A convolution (B, C, H, W) -> (B, D, H', W') whose flattened kernels stand in geometric parameters.

    Args:
        in_channels ... padding_mode: as for nn.Conv2d.
        relu: give r * relu(z) instead of r * z.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        relu: bool = False,
    ) -> None:
        # a weightless layer of torch checks the arguments and knows how to pad
        shell = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            "meta",
        )
        super().__init__(out_channels, tuple(shell.weight.shape[1:]), bias, relu)
        self.options: dict[str, Any] = {name: getattr(shell, name) for name in CONV_OPTIONS}
        self.around = None if padding_mode == "zeros" else list(shell._reversed_padding_repeated_twice)

    def forward(self, x: Tensor) -> Tensor:
        o = self.options
        padding = o["padding"]
        if self.around is not None:
            x, padding = F.pad(x, self.around, mode=o["padding_mode"]), 0
        return self.output(
            F.conv2d(x, self.direction(), self.lam, o["stride"], padding, o["dilation"], o["groups"])
        )

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, relu: bool = False) -> "GmPConv2d":
        """Return the same function of x (or its relu) in geometric parameters."""
        options: dict[str, Any] = {name: getattr(conv, name) for name in CONV_OPTIONS}
        layer = cls(**options, bias=conv.bias is not None, relu=relu).to(conv.weight)
        layer.set_weight(conv.weight, conv.bias)
        return layer

    def to_conv2d(self) -> nn.Conv2d:
        """Return the nn.Conv2d with the same weight and bias; a relu, if any, is left to its user."""
        conv = nn.Conv2d(**self.options, bias=self.lam is not None, device="meta")
        conv = conv.to_empty(device=self.r.device).to(self.r.dtype)
        self.write(conv)
        return conv

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{options}, bias={self.lam is not None}, relu={self.relu}"


@paper(
    "gmp",
    part="mean_norm",
    kind="layer",
    arguments=(6,),
    example=lambda b, g: torch.randn(b, 6, 5, generator=g),
)
class MeanNorm(nn.Module):
    """Subtract each channel's mean, (B, C, ...) -> same shape, so that boundaries stay near the data.

    Nothing is scaled.  In training the mean is the batch's, in evaluation the running one, as nn.BatchNorm
    keeps it; the paper puts it between geometric layers.  `momentum` is the weight of the newest batch,
    0.01 in the authors' code.
    """

    running_mean: Tensor

    def __init__(self, num_features: int, momentum: float = 0.01) -> None:
        super().__init__()
        self.num_features, self.momentum = num_features, momentum
        self.register_buffer("running_mean", torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != self.num_features:
            raise WorkingPapersError(
                f"MeanNorm({self.num_features}) takes (B, {self.num_features}, ...); got {tuple(x.shape)}"
            )
        mean = self.running_mean
        if self.training and x.shape[0]:
            mean = x.transpose(0, 1).flatten(1).mean(1)
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        return x - mean.view(-1, *[1] * (x.ndim - 2))

    def extra_repr(self) -> str:
        return f"{self.num_features}, momentum={self.momentum}"


def boundary_directions(layer: Layer) -> Tensor:
    """Return the unit normals (units, n) of the boundaries of a geometric, linear or convolution layer."""
    if isinstance(layer, Spherical):
        return layer.direction().detach().flatten(1)
    return F.normalize(layer.weight.detach().flatten(1), dim=1, eps=0.0)


def characteristic_points(layer: Layer) -> Tensor:
    """Return the point of each boundary nearest to the origin, -lambda u (units, n); nan where there is none."""
    if isinstance(layer, Spherical):
        offset = torch.zeros_like(layer.r) if layer.lam is None else layer.lam.detach()
    else:
        norm = torch.linalg.vector_norm(layer.weight.detach().flatten(1), dim=1)
        offset = (torch.zeros_like(norm) if layer.bias is None else layer.bias.detach()) / norm
    return -offset.unsqueeze(1) * boundary_directions(layer)


def angular_change(before: Layer, after: Layer) -> Tensor:
    """Return by how many radians each neuron's boundary turned between two states of a layer, (units,)."""
    return angle_between(boundary_directions(before), boundary_directions(after))


def noise_turns(weight: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Return by how many radians (N,) the same noise turns the boundary in each of four parameterisations.

    weight: (N, n), n >= 2.  noise: (N, n + 1): n numbers on the weight and one on the bias (standard, "sp"),
    on the length g (weight normalisation, "wn") or on the scale, 1 (batch normalisation, "bn"); n - 1 on the
    angles and two on lambda and r ("gmp").  A length or scale that turns negative flips the boundary; a
    negative r does not, because it stands outside the relu.
    """
    moved, last = weight + noise[:, :-1], noise[:, -1:]
    length = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    after = {
        "sp": moved,
        "wn": moved * (length + last).sign(),
        "bn": moved * (1 + last).sign(),
        "gmp": unit_vectors(angles(weight) + noise[:, :-2]),
    }
    return {name: angle_between(weight, direction) for name, direction in after.items()}


@claim(
    "gmp",
    "In this parameterisation small parameter noise turns activation boundaries only slightly, whereas usual forms "
    "are unstable.",
    holds=all_of(
        at_most(0.0, of="gmp_above_noise", by="every"),
        at_least(0.2, of="sp_above_noise", by="every"),
        at_least(0.2, of="wn_above_noise", by="every"),
    ),
)
def stable_boundaries(budget: Budget, seed: int) -> Evidence:
    """Share of 10,000 random neurons, 2 to 64 inputs, whose boundary turns by more radians than the noise is long.

    Weights have norms from 1e-3 to 1 and the noise 1e-3 to 1e-1, both log-uniform.  The usual forms are counted
    over weights of norm below 0.1; a flip is a turn of more than 90 degrees.
    """
    generator = torch.Generator().manual_seed(seed)

    def vectors(n: int, low: float, high: float) -> Tensor:
        norm = low * (high / low) ** torch.rand(159, 1, generator=generator, dtype=torch.float64)
        return norm * F.normalize(torch.randn(159, n, generator=generator, dtype=torch.float64), dim=1)

    above: dict[str, list[Tensor]] = {"sp": [], "wn": [], "bn": [], "gmp": [], "sp_flips": []}
    for n in range(2, 65):
        weight, noise = vectors(n, 1e-3, 1.0), vectors(n + 1, 1e-3, 1e-1)
        small = torch.linalg.vector_norm(weight, dim=1) < 0.1
        limit = torch.linalg.vector_norm(noise, dim=1) * (1 + 1e-6)
        turns = noise_turns(weight, noise)
        for name, turn in turns.items():
            above[name].append((turn > limit)[small if name != "gmp" else slice(None)])
        above["sp_flips"].append((turns["sp"] > math.pi / 2)[small])
    shares = {name: float(torch.cat(found).double().mean()) for name, found in above.items()}
    flips = shares.pop("sp_flips")
    return Evidence(**{f"{name}_above_noise": share for name, share in shares.items()}, sp_flips=flips)


def geometric(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Return a linear or convolution layer and its relu in geometric form, a convolution with `MeanNorm` behind."""
    if isinstance(layer, nn.Conv2d):
        return nn.Sequential(
            GmPConv2d.from_conv2d(layer, relu=True), MeanNorm(layer.out_channels, momentum=0.1)
        )
    return GmPLinear.from_linear(layer, relu=True)


@claim(
    "gmp",
    "Training is more stable and faster and generalises better in experiments.",
    holds=all_of(
        at_least(3, of="tasks_among_best_two"),
        *(at_most(1.05, of=f"{task}_error_over_sp") for task in ("levy", "diabetes", "concrete", "cifar10")),
        at_most(1.0, of="training_loss_over_sp"),
        at_most(0, of="diverged_alone", by="every"),
    ),
)
def training(budget: Budget, seed: int) -> Evidence:
    """Test error of GmP against standard weights, weight and batch normalisation on four tasks.

    A noisy Levy function, diabetes, concrete and CIFAR-10; for every method the best of three learning rates
    by a validation part.  A task counts as among the best two where at most one other method's test error is
    lower; `training_loss_over_sp` is the geometric mean, over the tasks, of the mean training loss along the
    run; `diverged_alone` counts tasks where at the largest rate GmP diverged and standard weights did not.
    """
    return Evidence(**compare(geometric, budget, seed))
