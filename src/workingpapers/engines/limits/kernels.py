"""Kernels of infinitely wide networks: of their outputs at initialisation (NNGP) and of their training (NTK).

    dense:  z = s_w / sqrt(n) W phi + s_b b,   convolution:  z = s_w / sqrt(k^2 n) W * phi + s_b b,   W, b ~ N(0, 1)
    S_1 = s_w^2 <x, x'> / d + s_b^2,  S_(l+1) = s_w^2 A(K) + s_b^2,  T_1 = S_1,  T_(l+1) = s_w^2 A(T_l dK) + S_(l+1)

with K, dK of `duals` under S_l, and A the mean over a patch (dense layers: one place).  Read-outs are dense: of all
places (flatten), which sees pairs of the same place only, or of the mean over places (pool), which sees all pairs.

Sources: "Neural Tangent Kernel" (2018), Section 4; "On Exact Computation with an Infinitely Wide Neural Net"
(2019), Sections 3 and 4.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.engines.limits.duals import Dual, dual
from workingpapers.engines.limits.scalars import Activation
from workingpapers.errors import WorkingPapersError, unknown

BLOCK = 2**16  # pairs at a time
READOUTS, PADDINGS = ("flatten", "pool"), ("same", "valid", "circular")


@dataclass(frozen=True)
class Limit:
    """Covariance of the outputs at initialisation and tangent kernel, (N1, N2) float64 each."""

    nngp: Tensor
    ntk: Tensor


def dense_limit(
    x: Tensor,
    other: Tensor | None = None,
    activation: Activation = "relu",
    depth: int = 3,
    sigma_w: float = 2**0.5,
    sigma_b: float = 0.0,
) -> Limit:
    """Return the kernels between inputs `x` (N1, ...) and `other` (N2, ...) of a dense network of infinite width.

    Args:
        other: `x` by default.
        activation: module, function or name (`dual`), behind every layer but the last.
        depth: layers with weights, at least 1.
        sigma_w, sigma_b: deviations of weights times sqrt(inputs), and of biases.
    """
    one, two = _pair_of(x.flatten(1), other if other is None else other.flatten(1))
    _check(depth, sigma_w)
    form, w, b = dual(activation), sigma_w**2, sigma_b**2
    size = one.shape[1]
    variances = [w / size * t.square().sum(1) + b for t in (one, two)]
    layers = _features(form, variances, depth - 1, lambda k: w * k + b)
    found = torch.empty(2, len(one), len(two), dtype=torch.float64)
    for rows in _slices(len(one), max(1, BLOCK // len(two))):
        s = torch.addmm(torch.full((), b, dtype=torch.float64), one[rows], two.T, alpha=w / size)
        t = s.clone()
        for left, right in layers:
            k, slope = form.pair(
                tuple(f[rows].unsqueeze(1) for f in left), tuple(f.unsqueeze(0) for f in right), s
            )
            s = k.mul_(w).add_(b)
            t.mul_(slope.mul_(w)).add_(s)
        found[0, rows], found[1, rows] = s, t
    return Limit(found[0], found[1])


def conv_limit(
    x: Tensor,
    other: Tensor | None = None,
    activation: Activation = "relu",
    depth: int = 2,
    kernel: int = 3,
    sigma_w: float = 2**0.5,
    sigma_b: float = 0.0,
    readout: str = "flatten",
    padding: str = "same",
) -> Limit:
    """Return the kernels between images `x` (N1, C, H, W) and `other` of a convolutional network of infinite width.

    The network has `depth` convolutions (kernel x kernel, stride 1) with an activation behind each, and a dense
    layer on all places ("flatten") or on the mean over places ("pool").  `padding` is "same" (zeros), "valid" or
    "circular".  With "pool" memory and time grow with the square of the number of places.
    """
    one, two = _pair_of(x, other)
    _check(depth, sigma_w)
    if one.ndim != 4:
        raise WorkingPapersError(f"a convolutional limit is of images (N, C, H, W); got {tuple(one.shape)}")
    for what, name, valid in (("read-out", readout, READOUTS), ("padding", padding, PADDINGS)):
        if name not in valid:
            raise unknown(what, name, valid)
    net = _Conv(dual(activation), depth, kernel, sigma_w**2, sigma_b**2, readout == "pool", padding)
    sides = [net.variances(t) for t in (one, two)]
    layers = _features(net.form, sides, depth, net.layer)
    found = torch.empty(2, len(one), len(two), dtype=torch.float64)
    places = one.shape[2] * one.shape[3]
    step = max(1, int((8 * BLOCK / (places**2 if net.pool else places)) ** 0.5))
    for rows in _slices(len(one), step):
        for columns in _slices(len(two), step):
            found[:, rows, columns] = net.block(one, two, rows, columns, layers)
    return Limit(found[0], found[1])


@dataclass(frozen=True)
class _Conv:
    """The recursion of a convolutional network; covariances (N1, N2, H, W), with `pool` (N1, N2, H, W, H, W)."""

    form: Dual
    depth: int
    kernel: int
    w: float
    b: float
    pool: bool
    padding: str

    def layer(self, k: Tensor) -> Tensor:
        """Return the covariance behind a convolution from that of its inputs."""
        return self.w * self.patches(k) + self.b

    def patches(self, k: Tensor) -> Tensor:
        """Return the mean over patches of (N..., H, W) or, for two places, (N1, N2, H, W, H, W)."""
        pairs = k.ndim // 6 + 1
        near = self.kernel // 2
        if self.padding == "circular":
            for dim in range(-2 * pairs, 0):
                ends = k.narrow(dim, k.shape[dim] - near, near), k, k.narrow(dim, 0, near)
                k = torch.cat(ends, dim)
        elif self.padding == "same":
            k = F.pad(k, [near, near] * (2 * pairs))
        sizes = [n - self.kernel + 1 for n in k.shape[-2 * pairs :]]
        if min(sizes) < 1:
            raise WorkingPapersError(f"a {self.kernel}x{self.kernel} kernel leaves nothing of the image")
        total = torch.zeros(*k.shape[: -2 * pairs], *sizes, dtype=k.dtype)
        for i in range(self.kernel):
            for j in range(self.kernel):
                part = k
                for dim, start in zip(range(-2 * pairs, 0), [i, j] * pairs, strict=True):
                    part = part.narrow(dim, start, sizes[dim])
                total += part
        return total / self.kernel**2

    def variances(self, x: Tensor) -> Tensor:
        """Return the variances (N, H, W) behind the first convolution."""
        return self.layer(x.square().mean(1))

    def block(
        self,
        one: Tensor,
        two: Tensor,
        rows: slice,
        columns: slice,
        layers: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]],
    ) -> Tensor:
        """Return both kernels (2, rows, columns)."""
        a, b = one[rows], two[columns]
        products = "nchw,mcij->nmhwij" if self.pool else "nchw,mchw->nmhw"
        s = self.layer(torch.einsum(products, a, b) / a.shape[1])
        t = s.clone()
        for i, (left, right) in enumerate(layers):
            k, slope = self.form.pair(
                tuple(self._lead(f[rows], True) for f in left),
                tuple(self._lead(f[columns], False) for f in right),
                s,
            )
            t = t * slope
            if i < self.depth - 1:
                s = self.layer(k)
                t = self.w * self.patches(t) + s
        k, t = k.flatten(2).mean(2), t.flatten(2).mean(2)
        s = self.w * k + self.b
        return torch.stack([s, self.w * t + s])

    def _lead(self, feature: Tensor, first: bool) -> Tensor:
        """Give (n, H, W, ...) the dimensions that broadcast with covariances."""
        n, height, width, *rest = feature.shape
        lead = [n, 1, height, width] if first else [1, n, height, width]
        if self.pool:
            lead = [n, 1, height, width, 1, 1] if first else [1, n, 1, 1, height, width]
        return feature.reshape(*lead, *rest)


def _features(
    form: Dual, variances: list[Tensor], activations: int, layer: Callable[[Tensor], Tensor]
) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Return for each activation the features of both sides' variances, which go through `layer` behind it."""
    found = []
    for i in range(activations):
        order = form.order(torch.cat([v.reshape(-1) for v in variances]))
        sides = [form.features(v, order) for v in variances]
        found.append((sides[0], sides[1]))
        if i < activations - 1:
            variances = [layer(form.pair(f, f, v.clone())[0]) for f, v in zip(sides, variances, strict=True)]
    return found


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _pair_of(x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
    one = x.detach().double().cpu()
    two = one if other is None else other.detach().double().cpu()
    if one.shape[1:] != two.shape[1:] or not len(one) or not len(two):
        raise WorkingPapersError(
            f"kernels are between inputs of one shape, at least one each; got {tuple(one.shape)} and "
            f"{tuple(two.shape)}"
        )
    return one, two


def _check(depth: int, sigma_w: float) -> None:
    if depth < 1 or sigma_w <= 0:
        raise WorkingPapersError(f"a network has depth >= 1 and sigma_w > 0; got {depth} and {sigma_w}")
