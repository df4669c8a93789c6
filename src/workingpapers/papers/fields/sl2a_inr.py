"""SL2A-INR: coordinates through one layer of learnt Chebyshev polynomials, then a ReLU network that it modulates.

    psi(x) = LN(sum_i sum_n C[i, :, n] T_n(tanh x_i)),     n = 0 to N,      T_n(u) = cos(n arccos u)
    z <- relu(W (psi * z) + b),  z = psi at first          W of low rank;   out = A (psi * z) + a

High degrees in one layer reach frequencies that a ReLU network alone would learn last.

Paper: "Single-Layer Learnable Activation for Implicit Neural Representation (SL2A-INR)" (2024), Section 3;
initialisation, the product before every layer and the last from the authors' code.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, above, all_of, at_least
from workingpapers.kernels.pointwise import LOW_PRECISION
from workingpapers.papers.fields._coordinates import matched, pixels, psnr, relu_encoded, siren
from workingpapers.papers.fields._photographs import photograph
from workingpapers.tasks import Budget, examples, fit, initialise

EDGE = 1 - 1e-6  # arccos has no slope at 1


def chebyshev(u: Tensor, degree: int) -> Tensor:
    """Return T_0(u) to T_degree(u) in a new last dimension, for `u` of any shape in [-1, 1]."""
    angle = torch.acos(u.clamp(-EDGE, EDGE))
    return torch.cos(angle[..., None] * torch.arange(degree + 1, device=u.device, dtype=u.dtype))


class ChebyshevLayer(nn.Module):
    """Map (..., in_features) to (..., out_features) by sum_i sum_n C[i, :, n] T_n(tanh x_i), then layer norm.

    The coefficients start uniform by Xavier, as in the authors' code; half-precision inputs are taken in float32.
    """

    def __init__(self, in_features: int, out_features: int, degree: int) -> None:
        super().__init__()
        if degree < 1:
            raise WorkingPapersError(f"the polynomials have a degree of at least 1; got {degree}")
        self.coefficients = nn.Parameter(torch.empty(in_features, out_features, degree + 1))
        nn.init.xavier_uniform_(self.coefficients)
        self.norm = nn.LayerNorm(out_features)

    def expand(self, x: Tensor) -> Tensor:
        """Return the sum before layer norm."""
        inputs, _, terms = self.coefficients.shape
        if x.shape[-1] != inputs:
            raise WorkingPapersError(f"points have {inputs} coordinates here; got {x.shape[-1]}")
        exact = x.float() if x.dtype in LOW_PRECISION else x
        basis = chebyshev(torch.tanh(exact), terms - 1).to(x.dtype)
        return torch.einsum("...in,ion->...o", basis, self.coefficients)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the points."""
        features: Tensor = self.norm(self.expand(x))
        return features

    def extra_repr(self) -> str:
        """Show the sizes and the degree."""
        inputs, outputs, terms = self.coefficients.shape
        return f"in_features={inputs}, out_features={outputs}, degree={terms - 1}"


class LowRankLinear(nn.Module):
    """A linear map of rank `rank`: (..., width) -> (..., width)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(width, rank))
        self.right = nn.Parameter(torch.empty(rank, width))
        self.bias = nn.Parameter(torch.empty(width))
        for weight in (self.left, self.right):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        nn.init.uniform_(self.bias, -(rank**-0.5), rank**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return x left right + bias."""
        return x @ self.left @ self.right + self.bias


@paper("sl2a_inr", kind="model", example=examples.vectors(2, 3))
class SL2A(nn.Module):
    """Give the value of a signal at points (..., in_features), within [-1, 1], as (..., out_features).

    Args:
        in_features, out_features: how many coordinates and values a point has.
        width: of all layers.
        depth: how many ReLU layers there are.
        degree: of the polynomials; 512 in the paper, 256 for its images.
        rank: of the ReLU layers' weights; None for full ones.
        fusion: multiply the input of every layer by the polynomial layer's output, or of none.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"width": 16, "depth": 2, "degree": 8, "rank": 8},
        "image": {"degree": 256, "rank": 128, "depth": 3},
    }

    def __init__(
        self,
        in_features: int = 2,
        out_features: int = 3,
        width: int = 256,
        depth: int = 3,
        degree: int = 512,
        rank: int | None = 32,
        fusion: bool = True,
    ) -> None:
        super().__init__()
        if rank is not None and not 1 <= rank <= width:
            raise WorkingPapersError(f"the rank lies between 1 and the width {width}; got {rank}")
        self.first = ChebyshevLayer(in_features, width, degree)
        layers = [
            nn.Linear(width, width) if rank is None else LowRankLinear(width, rank) for _ in range(depth)
        ]
        self.layers = nn.ModuleList(layers)
        self.last = nn.Linear(width, out_features)
        self.rank, self.fusion = rank, fusion

    def forward(self, x: Tensor) -> Tensor:
        """Return the values at the points."""
        psi = z = self.first(x)
        for layer in self.layers:
            z = torch.relu(layer(psi * z if self.fusion else z))
        out: Tensor = self.last(psi * z if self.fusion else z)
        return out

    def extra_repr(self) -> str:
        """Show rank and fusion."""
        return f"rank={self.rank}, fusion={self.fusion}"


def line_integrals(
    field: Callable[[Tensor], Tensor], angles: Tensor, offsets: Tensor, steps: int = 200
) -> Tensor:
    """Return the integrals of a field on [-1, 1]^2 along straight lines, as in tomography: (A, D, C).

    Line (a, d) is offsets[d] (cos a, sin a) + s (-sin a, cos a); where it leaves the unit disk the field counts
    as 0.  Differentiable in what the field has to learn.
    """
    s = (torch.arange(steps) + 0.5) / steps * 2 - 1
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    d = offsets[None, :, None]
    points = torch.stack([d * cos - s * sin, d * sin + s * cos], -1)  # (A, D, S, 2)
    inside = (points.square().sum(-1, keepdim=True) <= 1).to(points.dtype)
    return (field(points) * inside).sum(2) * (2 / steps)


def fitted(build: Callable[[], nn.Module], split: Split, steps: int, seed: int, batch: int) -> list[float]:
    """Return the PSNR on the test points after a quarter of the steps and at the end: Adam, cosine from 1e-3."""
    how: dict[str, Any] = {"lr": 1e-3, "schedule": "cosine", "every": steps // 4}
    result = fit(initialise(build, seed), split, steps=steps, batch=batch, seed=seed, **how)
    return [psnr(point["mse"]) for point in (result.curve[0], result.curve[-1])]


@claim(
    "sl2a_inr",
    "The hybrid fits signals more accurately and converges quicker than earlier coordinate networks.",
    figure="state of the art per the abstract; no number given",
    seeds=3,
    holds=all_of(at_least(1.0, of="over_relu_encoded"), at_least(-0.5, of="over_siren")),
)
def fits_a_photograph(budget: Budget, seed: int) -> Evidence:
    """PSNR in dB on the cameraman (256x256) over a SIREN and a ReLU network on encoded coordinates of equal size.

    After a fixed number of steps on 4,096 random pixels each; `early` is the same after a quarter of them, over
    the better of the two.  The baselines' widths give them SL2A's number of parameters.
    """
    coordinates, values = pixels(photograph("camera", 256))
    split = Split(coordinates, values, coordinates, values, 0, "camera")
    size: dict[str, Any] = budget.pick(
        quick={"width": 64, "depth": 2, "degree": 256, "rank": 32},
        full={"width": 256, "depth": 3, "degree": 256, "rank": 128},
    )
    build = partial(SL2A, out_features=1, **size)
    builds: dict[str, Callable[[], nn.Module]] = {
        "sl2a": build,
        "siren": matched(partial(siren, depth=size["depth"]), build()),
        "relu_encoded": matched(partial(relu_encoded, depth=size["depth"], frequencies=7), build()),
    }
    steps = budget.pick(quick=600, full=5000)
    found = {name: fitted(b, split, steps, seed, batch=4096) for name, b in builds.items()}
    early, own = found.pop("sl2a")
    return Evidence(
        psnr=own,
        early=early - max(other[0] for other in found.values()),
        **{f"over_{name}": own - other[1] for name, other in found.items()},
    )


@claim(
    "sl2a_inr",
    "It works on inverse and 3D tasks: inpainting, super-resolution, CT reconstruction, shapes and view synthesis.",
    seeds=3,
    holds=all_of(
        at_least(-0.2, of="inpainting_over_relu"),
        at_least(-0.2, of="super_resolution_over_relu"),
        above(0.0, of="best_over_interpolation"),
    ),
)
def solves_inverse_problems(budget: Budget, seed: int) -> Evidence:
    """PSNR in dB at 64x64 from 30 % of the pixels and from 32x32, over a ReLU network on encoded coordinates.

    The mean over the cameraman and the astronaut.  The degree, 32, is about what 32 pixels along a side can tell:
    more learns the known pixels by heart.  `best_over_interpolation` is the better of the two tasks
    over the nearest known pixel and over bicubic interpolation, respectively.
    """
    build = partial(SL2A, width=96, depth=2, degree=32, rank=32)
    steps, gains = budget.pick(quick=200, full=2000), []
    for name in ("camera", "astronaut"):
        image = photograph(name, 64)
        own = partial(build, out_features=len(image))
        other = matched(partial(relu_encoded, out_features=len(image), depth=2, frequencies=5), own())
        coordinates, values = pixels(image)
        known = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))[
            : len(values) * 3 // 10
        ]
        nearest = known[torch.cdist(coordinates, coordinates[known]).argmin(1)]
        small = F.avg_pool2d(image[None], 2)
        cubic = F.interpolate(small, scale_factor=2, mode="bicubic")[0]
        tasks = (
            (coordinates[known], values[known], values[nearest]),
            (*pixels(small[0]), pixels(cubic)[1]),
        )
        for x, y, plain in tasks:
            split = Split(x, y, coordinates, values, 0, name)
            a, b = (fitted(builder, split, steps, seed, batch=len(x))[1] for builder in (own, other))
            gains.append((a - b, a - psnr(float((plain - values).square().mean()))))
    inpainting, resolution = (torch.tensor(gains[i::2]).mean(0).tolist() for i in (0, 1))
    return Evidence(
        inpainting_over_relu=inpainting[0],
        super_resolution_over_relu=resolution[0],
        best_over_interpolation=max(inpainting[1], resolution[1]),
    )


@claim(
    "sl2a_inr",
    "One layer of learnable activation at the start is enough to make a ReLU network capture fine detail.",
    seeds=3,
    holds=at_least(2.0, of="over_degree_8"),
)
def high_degrees_bring_detail(budget: Budget, seed: int) -> Evidence:
    """PSNR in dB of degree 128 over that of degrees 8 and 32, on the cameraman at 64x64."""
    coordinates, values = pixels(photograph("camera", 64))
    split, steps = (
        Split(coordinates, values, coordinates, values, 0, "camera"),
        budget.pick(quick=250, full=2000),
    )
    found = {}
    for degree in (8, 32, 128):
        build = partial(SL2A, out_features=1, width=96, depth=2, degree=degree, rank=32)
        found[degree] = fitted(build, split, steps, seed, batch=4096)[1]
    return Evidence(
        psnr=found[128], over_degree_8=found[128] - found[8], over_degree_32=found[128] - found[32]
    )
