"""S-KAN's layers, dense and convolutional: sums over families of bases, weighed at every output node."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import paper
from workingpapers.engines.bases import (
    RBF,
    Basis,
    BasisLinear,
    BSpline,
    Chebyshev,
    Fourier,
    Gram,
    Linear,
    MexicanHat,
)
from workingpapers.errors import WorkingPapersError, unknown

Pool = Sequence[str]
FAMILIES: dict[str, Callable[[int, int, int], Basis]] = {  # inputs, grid, degree -> basis
    "bspline": lambda inputs, grid, degree: BSpline(inputs, grid, 3),
    "cheby": lambda inputs, grid, degree: Chebyshev(inputs, degree),
    "rbf": lambda inputs, grid, degree: RBF(inputs, 8),
    "fourier": lambda inputs, grid, degree: Fourier(inputs, 4, omega=math.pi),
    "wavelet": lambda inputs, grid, degree: MexicanHat(inputs, 4),
    "gram": lambda inputs, grid, degree: Gram(inputs, degree),
    "linear": lambda inputs, grid, degree: Linear(inputs),
}
SQUASHES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
}
POOL = tuple(FAMILIES)


@paper("s_kan", replaces="Linear")
class SKANLinear(nn.Module):
    """y_j = sum_f w_jf sum_i psi_f,ij(squash(x_i)) + bias_j, (..., in_features) -> (..., out_features).

    w_j = softmax(logits_j / temperature) over the families of the pool; after `choose` it is one-hot.

    Args:
        in_features, out_features, bias: as for nn.Linear.
        pool: names of families: bspline (order 3, with a SiLU term), cheby, rbf (8 Gaussians), fourier (4
            frequencies), wavelet (4 Mexican hats), gram, linear.
        grid: intervals of the B-splines.
        degree: of the Chebyshev and Gram polynomials.
        per: whether each "node" or the whole "layer" has its own weights of families.
        squash: how inputs come to [-1, 1] or near: tanh or layer_norm.
    """

    choice: Tensor
    chosen: Tensor
    temperature: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        pool: Pool = POOL,
        grid: int = 5,
        degree: int = 4,
        per: str = "node",
        squash: str = "tanh",
    ) -> None:
        super().__init__()
        if not pool or len(set(pool)) < len(pool):
            raise WorkingPapersError(f"a pool names at least one family, and none twice; got {list(pool)}")
        for name in pool:
            if name not in FAMILIES:
                raise unknown("family of functions", name, FAMILIES)
        if per not in ("node", "layer"):
            raise unknown("place of the selection (per)", per, ("node", "layer"))
        if squash not in SQUASHES:
            raise unknown("squash", squash, SQUASHES)
        self.in_features, self.out_features, self.pool = in_features, out_features, tuple(pool)
        self.per, self.squash = per, squash
        layers = {}
        for name in pool:
            base = nn.SiLU() if name == "bspline" else None
            layers[name] = BasisLinear(
                in_features, out_features, FAMILIES[name](in_features, grid, degree), base
            )
        self.families = nn.ModuleDict(layers)
        shape = (out_features if per == "node" else 1, len(pool))
        self.logits = nn.Parameter(torch.zeros(shape)) if len(pool) > 1 else None
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.register_buffer("choice", torch.zeros(shape))
        self.register_buffer("chosen", torch.tensor(0.0))
        self.register_buffer("temperature", torch.tensor(1.0))

    def weights(self) -> Tensor:
        """Return w, (nodes or 1, families): soft, or one-hot once chosen."""
        if self.logits is None:
            return torch.ones_like(self.choice)
        soft = torch.softmax(self.logits / self.temperature, dim=-1)
        found: Tensor = soft * (1 - self.chosen) + self.choice * self.chosen
        return found

    def entropy(self) -> Tensor:
        """Return the mean entropy of the nodes' weights."""
        mean: Tensor = torch.special.entr(self.weights()).sum(-1).mean()
        return mean

    @torch.no_grad()
    def choose(self) -> None:
        """Make every node keep only its strongest family, from now on."""
        if self.logits is not None:
            best = self.logits.argmax(-1)
            self.choice.copy_(F.one_hot(best, len(self.pool)))
        self.chosen.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Sum the families' functions of x (..., in_features)."""
        x, weights = SQUASHES[self.squash](x), self.weights()
        out = torch.zeros_like(x[..., :1]) if self.bias is None else self.bias
        for number, layer in enumerate(self.families.values()):
            out = out + weights[:, number] * layer(x)
        return out

    def names(self) -> list[str]:
        """Return the family that each node weighs most."""
        best = self.weights().argmax(-1).expand(self.out_features)
        return [self.pool[int(k)] for k in best]

    def pruned(self) -> tuple["PrunedSKAN", list[str]]:
        """Return a smaller module with every node's strongest family alone, and the names of these."""
        return PrunedSKAN(self), self.names()

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, pool={self.pool}, "
            f"per={self.per!r}, squash={self.squash!r}"
        )


class PrunedSKAN(nn.Module):
    """The chosen part of an SKANLinear: each family has coefficients for the nodes that chose it, and no others."""

    order: Tensor

    def __init__(self, layer: SKANLinear) -> None:
        super().__init__()
        names, every = layer.names(), range(layer.in_features)
        self.in_features, self.out_features, self.squash = layer.in_features, layer.out_features, layer.squash
        nodes = {f: [j for j, name in enumerate(names) if name == f] for f in layer.pool if f in names}
        kept = {f: _linear(layer.families[f]).select(every, js) for f, js in nodes.items()}
        self.families = nn.ModuleDict(kept)
        placed = torch.tensor([j for js in nodes.values() for j in js], device=layer.choice.device)
        self.register_buffer("order", placed.argsort())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Sum the chosen functions of x (..., in_features)."""
        x = SQUASHES[self.squash](x)
        out = torch.cat([layer(x) for layer in self.families.values()], dim=-1)[..., self.order]
        return out if self.bias is None else out + self.bias


def _linear(module: nn.Module) -> BasisLinear:
    assert isinstance(module, BasisLinear)
    return module


@paper("s_kan", part="conv2d", replaces="Conv2d", options={"pool": ("bspline", "cheby", "fourier")})
class SKANConv2d(nn.Module):
    """A convolution (B, C, H, W) -> (B, D, H', W') each of whose kernel taps is a function of its pixel.

    The first eight arguments are those of nn.Conv2d; `pool`, `grid` and `degree` those of SKANLinear.  Around the
    image, taps see 0.  The paper puts batch norm behind it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        pool: Pool = POOL,
        grid: int = 5,
        degree: int = 4,
    ) -> None:
        super().__init__()
        # a weightless layer of torch checks the arguments
        shell = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device="meta"
        )
        self.in_channels, self.groups = in_channels, groups
        self.kernel_size, self.options = shell.kernel_size, {}
        for name in ("dilation", "padding", "stride"):
            self.options[name] = getattr(shell, name)
        taps = in_channels // groups * math.prod(shell.kernel_size)
        options: dict[str, Any] = {"pool": pool, "grid": grid, "degree": degree}
        self.parts = nn.ModuleList(
            SKANLinear(taps, out_channels // groups, bias, **options) for _ in range(groups)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the images."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise WorkingPapersError(
                f"the layer takes images (B, {self.in_channels}, H, W); got {tuple(x.shape)}"
            )
        size = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                x.shape[2:],
                self.options["padding"],
                self.options["dilation"],
                self.kernel_size,
                self.options["stride"],
                strict=True,
            )
        ]
        patches = F.unfold(x, self.kernel_size, **self.options).mT  # (B, H' W', C taps)
        outs = [part(p) for part, p in zip(self.parts, patches.chunk(self.groups, dim=-1), strict=True)]
        found: Tensor = torch.cat(outs, dim=-1).mT.unflatten(-1, size)
        return found

    def extra_repr(self) -> str:
        pool = _skan(self.parts[0]).pool
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        out = self.groups * _skan(self.parts[0]).out_features
        return f"{self.in_channels}, {out}, {self.kernel_size}, {options}, groups={self.groups}, pool={pool}"


def _skan(module: nn.Module) -> SKANLinear:
    assert isinstance(module, SKANLinear)
    return module
