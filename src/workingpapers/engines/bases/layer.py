"""A Kolmogorov-Arnold layer: on every edge a function of one variable, in any family of bases."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workingpapers.engines.bases.families import Basis, BSpline, basis
from workingpapers.engines.bases.products import basis_product
from workingpapers.engines.bases.splines import adapted_points, extended_knots, finer_points, refit
from workingpapers.errors import WorkingPapersError

SPLINE_SCALE = 0.1  # of the bases' part at the start, beside a base term


class BasisLinear(nn.Module):
    """y_j = sum_i m_ji (sum_b c_ibj phi_b(x_i) + w_ji base(x_i)) + bias_j, (..., I) -> (..., O).

    `coefficients` are (in_features, basis.size, out_features), `base_weight` and the mask m of edges that are
    not pruned (out_features, in_features).

    Args:
        functions: the family of bases, or its name for the family's own defaults ("bspline": grid 5, order 3).
        base: the function of the base term; None leaves the term out.
        bias: whether a bias is added.
    """

    mask: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        functions: Basis | str = "bspline",
        base: nn.Module | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.basis = basis(functions, in_features) if isinstance(functions, str) else functions
        if self.basis.in_features != in_features:
            raise WorkingPapersError(
                f"the basis is made for {self.basis.in_features} inputs; the layer has {in_features}"
            )
        self.base = base
        self.coefficients = nn.Parameter(torch.empty(in_features, self.basis.size, out_features))
        shape = (out_features, in_features)
        self.base_weight = None if base is None else nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.register_buffer("mask", torch.ones(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw normal coefficients of variance 1 / (inputs * bases), a hundredth of it beside a base term.

        The weights of the base term are drawn as nn.Linear's.
        """
        scale = 1.0 if self.base is None else SPLINE_SCALE
        nn.init.normal_(self.coefficients, std=scale / math.sqrt(self.in_features * self.basis.size))
        if self.base_weight is not None:
            nn.init.kaiming_uniform_(self.base_weight, a=math.sqrt(5))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Sum the edges' functions of x (..., in_features)."""
        self._check(x)
        rows = x.reshape(-1, self.in_features)
        out = basis_product(self.basis, rows, self.coefficients * self.mask.T.unsqueeze(1))
        if self.base is not None and self.base_weight is not None:
            out = out + nn.functional.linear(self.base(rows), self.base_weight * self.mask)
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)

    def edges(self, x: Tensor) -> Tensor:
        """Return what every edge gives for x (N, in_features), (N, out_features, in_features): for few x."""
        self._check(x)
        found = torch.einsum("nib,ibo->noi", self.basis(x), self.coefficients)
        if self.base is not None and self.base_weight is not None:
            found = found + self.base(x).unsqueeze(1) * self.base_weight
        return found * self.mask

    @torch.no_grad()
    def update_grid(self, x: Tensor, adaptivity: float = 0.98) -> None:
        """Move the spline's grid to where the samples x (N, in_features) lie, and fit the functions there anew.

        `adaptivity` 1 puts the grid's points at the samples' quantiles, 0 evenly from least to largest.  A
        function is kept as well as the new grid can, by least squares over samples and grid; new optimizer
        states are not needed, since no shape changes.
        """
        spline = self._spline()
        if not 0 <= adaptivity <= 1:
            raise WorkingPapersError(f"adaptivity lies between 0 and 1; got {adaptivity}")
        self._check(x)
        rows = x.reshape(-1, self.in_features).to(spline.knots)
        new = extended_knots(adapted_points(rows, spline.grid, adaptivity), spline.order)
        self.coefficients.copy_(refit(self.coefficients, spline.knots, new, spline.order, rows))
        spline.knots.copy_(new)

    @torch.no_grad()
    def extend_grid(self, grid: int) -> None:
        """Refine the spline's grid to `grid` intervals; the functions inside the grid stay what they are.

        Exactly so where `grid` is a multiple of the old one, else by interpolation.  `coefficients` becomes a
        new parameter: make a new optimizer.
        """
        spline = self._spline()
        if grid < spline.grid:
            raise WorkingPapersError(f"a grid of {spline.grid} intervals is extended to more; got {grid}")
        new = extended_knots(finer_points(spline.points, grid), spline.order)
        finer = refit(self.coefficients, spline.knots, new, spline.order)
        self.coefficients = nn.Parameter(finer, requires_grad=self.coefficients.requires_grad)
        spline.knots, spline.size = new, grid + spline.order

    @torch.no_grad()
    def select(self, inputs: Sequence[int], outputs: Sequence[int]) -> "BasisLinear":
        """Return a smaller layer with the edges between these inputs and outputs."""
        rows, columns = list(inputs), list(outputs)
        small = copy.deepcopy(self)
        small.in_features, small.out_features = len(rows), len(columns)
        small.basis = self.basis.select(rows)
        small.coefficients = nn.Parameter(self.coefficients[rows][:, :, columns].clone())
        small.mask = self.mask[columns][:, rows].clone()
        if self.base_weight is not None:
            small.base_weight = nn.Parameter(self.base_weight[columns][:, rows].clone())
        if self.bias is not None:
            small.bias = nn.Parameter(self.bias[columns].clone())
        return small

    def _spline(self) -> BSpline:
        if not isinstance(self.basis, BSpline):
            raise WorkingPapersError(
                f"only a B-spline has a grid; this layer has {type(self.basis).__name__}"
            )
        return self.basis

    def _check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise WorkingPapersError(f"the layer takes floating-point numbers; got {x.dtype}")
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise WorkingPapersError(
                f"the layer takes {self.in_features} features in the last dimension; got {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
