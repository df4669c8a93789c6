"""Criticality: variances of weights and biases at which signals neither grow nor fade with depth.

    K_(l+1) = C_b + C_W g(K_l),   g(K) = E phi(z)^2,  z ~ N(0, K);     Var W = C_W / fan-in, Var b = C_b
    chi_par = C_W g'(K) = C_W / (2 K^2) E phi^2 (z^2 - K),   chi_perp = C_W E phi'(z)^2

chi_par is the factor a layer puts on a change of a signal's size, chi_perp on one of its direction.  A network is
critical at a fixed point K* where both are 1.

Source: "The Principles of Deep Learning Theory" (2021), Chapters 3 and 5.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.engines.limits.scalars import Activation, Scalar
from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.activations import module_named
from workingpapers.surgery.collect import collect

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NEAR_ZERO = 1e-20  # variance at which limits at zero are taken
GRID = np.logspace(-4, 4, 81)


@dataclass(frozen=True)
class Criticality:
    """Where an activation is critical.

    Attributes:
        kind: "scale-invariant" (every K is a fixed point, as for ReLU), "zero" (K* = 0, to which signals fall by a
            power of depth, as for tanh), "half-stable" (K* > 0, as for GELU), "unstable" (K* = 0, from which
            signals grow) or "none" (NaN throughout).
        weight_var, bias_var: C_W and C_b.
        fixed_point: K*, NaN where any is.
        chi_par, chi_perp: at the fixed point; 1 where there is criticality.
    """

    kind: str
    weight_var: float
    bias_var: float
    fixed_point: float
    chi_par: float
    chi_perp: float


def second_moment(activation: Activation | Scalar, variance: float) -> float:
    """Return g(K) = E phi(z)^2 for z ~ N(0, K)."""
    phi = _scalar(activation)
    return phi.mean(lambda z: phi(z).square(), variance)


def susceptibilities(
    activation: Activation | Scalar, variance: float, weight_var: float = 1.0
) -> tuple[float, float]:
    """Return chi_par and chi_perp at a variance above 0; kinks count by the slopes beside them."""
    if not variance > 0:
        raise WorkingPapersError(f"susceptibilities are at a variance above 0; got {variance}")
    phi = _scalar(activation)
    along = phi.mean(lambda z: phi(z).square() * (z.square() - variance), variance) / (2 * variance**2)
    across = phi.mean(lambda z: phi.slope(z).square(), variance)
    return weight_var * along, weight_var * across


def variance_flow(
    activation: Activation | Scalar, depth: int, weight_var: float, bias_var: float = 0.0, start: float = 1.0
) -> list[float]:
    """Return K_1 = `start`, K_2, ... K_depth."""
    phi, found = _scalar(activation), [start]
    for _ in range(depth - 1):
        found.append(bias_var + weight_var * second_moment(phi, found[-1]))
    return found


def criticality(activation: Activation) -> Criticality:
    """Return the initialisation that makes networks of this activation critical, and of which kind it is."""
    phi = _scalar(activation)
    gaps = [_gap(phi, k) for k in GRID]
    slopes = [susceptibilities(phi, k)[1] for k in (1e-2, 1.0, 1e2)]
    if all(abs(gap) < 1e-6 for gap in gaps) and max(slopes) - min(slopes) < 1e-9 * max(slopes):
        return _at(phi, "scale-invariant", 1.0, 1 / slopes[1], 0.0)
    slope = susceptibilities(phi, NEAR_ZERO)[1]
    from_zero = abs(float(phi(torch.zeros(1, dtype=torch.float64)))) < 1e-12 and slope > 1e-9
    grows = second_moment(phi, 1e-3) / (slope * 1e-3) > 1 if from_zero else True
    if from_zero and not grows:
        return Criticality("zero", 1 / slope, 0.0, 0.0, 1.0, 1.0)
    found = _half_stable(phi, gaps)
    if found is not None:
        return found
    if from_zero:
        return Criticality("unstable", 1 / slope, 0.0, 0.0, 1.0, 1.0)
    return Criticality("none", *[float("nan")] * 5)


def _half_stable(phi: Scalar, gaps: list[float]) -> Criticality | None:
    """Return the first fixed point above 0 with chi_par = chi_perp and a bias variance that is not negative."""
    from scipy.optimize import brentq

    for i in range(len(GRID) - 1):
        if gaps[i] * gaps[i + 1] < 0:
            k = float(brentq(lambda v: _gap(phi, v), GRID[i], GRID[i + 1], xtol=1e-12, rtol=1e-12))
            weight = 1 / susceptibilities(phi, k)[1]
            bias = k - weight * second_moment(phi, k)
            if bias > -1e-9 * k:
                return _at(phi, "half-stable", k, weight, max(bias, 0.0))
    return None


def _at(phi: Scalar, kind: str, variance: float, weight: float, bias: float) -> Criticality:
    along, across = susceptibilities(phi, variance, weight)
    return Criticality(
        kind, weight, bias, float("nan") if kind == "scale-invariant" else variance, along, across
    )


def _gap(phi: Scalar, variance: float) -> float:
    """Return (chi_par - chi_perp) / chi_perp."""
    along, across = susceptibilities(phi, variance)
    ends = phi(10 * variance**0.5 * torch.tensor([-1.0, 1.0], dtype=torch.float64))
    beyond = float(ends.square().amax()) * np.exp(-50.0) > 1e-9 * second_moment(phi, variance)
    if beyond or not np.isfinite(along) or not across > 1e-300:
        return float("nan")  # the integrals reach further than the quadrature, or there is no slope
    return along / across - 1


def _scalar(activation: Activation | Scalar) -> Scalar:
    return activation if isinstance(activation, Scalar) else Scalar(activation)


@dataclass(frozen=True)
class Layer:
    """How one layer of a model, with the activation before it, treats signals.

    Attributes:
        name, activation: of the layer with weights and of the activation module before it.
        weight_var, bias_var: C_W (fan-in times mean square weight) and C_b of the layer as it is.
        variance: K, the mean square of what enters the activation.
        chi_par: by the formula, for normal pre-activations of variance K.
        chi_perp: C_W times the mean of phi'^2 over the data.
        normalised: whether a normalisation stands between the two layers with weights, which resets signals.
    """

    name: str
    activation: str
    weight_var: float
    bias_var: float
    variance: float
    chi_par: float
    chi_perp: float
    normalised: bool


def layer_criticality(model: nn.Module, x: Tensor | tuple[Tensor, ...], batch: int = 256) -> list[Layer]:
    """Return how each layer with weights that an activation module feeds treats signals, in the order of running.

    Args:
        model: any model of Linear or Conv layers and elementwise activation modules; it stays as it is.
        x: inputs (N, ...), or a tuple of such.

    Raises:
        WorkingPapersError: where no layer with weights runs behind an activation module.
    """
    names = {n: module_named(m, n) for n, m in model.named_modules() if not any(m.children())}
    modules = dict(model.named_modules())

    def wanted(name: str, module: nn.Module) -> bool:
        return isinstance(module, WEIGHTED + NORMS) or names.get(name) is not None

    def keep(module: nn.Module, z: Tensor) -> Tensor:
        size = z.flatten(1).double().square().mean(1)
        if isinstance(module, WEIGHTED + NORMS):
            return torch.stack([size, size], 1)
        return torch.stack([size, _squared_slope(module, z).flatten(1).mean(1)], 1)

    found: list[Layer] = []
    waiting: tuple[str, float, float] | None = None
    normalised = False
    for name, value in collect(model, x, wanted, side="input", keep=keep, batch=batch).items():
        module = modules[name.split("#")[0]]
        if isinstance(module, NORMS):
            normalised = True
        elif not isinstance(module, WEIGHTED):
            size, slope = value.mean(0).tolist()
            waiting = name, size, slope
        else:
            if waiting is not None:
                found.append(_layer(name, module, modules, waiting, normalised))
            waiting, normalised = None, False
    if not found:
        raise WorkingPapersError(
            f"{type(model).__name__} has no layer with weights behind an activation module"
        )
    return found


def _layer(
    name: str,
    module: nn.Module,
    modules: dict[str, nn.Module],
    fed: tuple[str, float, float],
    normalised: bool,
) -> Layer:
    activation, variance, slope = fed
    weight, bias = weight_variances(module)
    phi = modules[activation.split("#")[0]]
    along = susceptibilities(_first(phi), max(variance, 1e-12), weight)[0]
    return Layer(name, activation, weight, bias, variance, along, weight * slope, normalised)


def _first(phi: nn.Module) -> Activation:
    """Return a function of points (N, 1) for an activation that may have a parameter for each channel."""
    if isinstance(phi, nn.PReLU) and phi.weight.numel() > 1:
        return nn.LeakyReLU(float(phi.weight.detach().square().mean().sqrt()))
    return phi


def weight_variances(layer: nn.Module) -> tuple[float, float]:
    """Return C_W = fan-in times the mean square weight, and C_b, the mean square bias, of a layer."""
    weight = layer.get_parameter("weight").detach().double()
    bias = getattr(layer, "bias", None)
    own = float(bias.detach().double().square().mean()) if isinstance(bias, Tensor) else 0.0
    return float(weight[0].numel() * weight.square().mean()), own


def _squared_slope(phi: nn.Module, z: Tensor) -> Tensor:
    with torch.enable_grad():
        point = z.detach().clone().requires_grad_()
        value = phi.forward(point.clone())  # past the hooks; a copy, for activations that work in place
        if not value.requires_grad:
            return torch.zeros_like(z, dtype=torch.float64)
        found = torch.autograd.grad(value.sum(), point)[0]
    return found.double().square()
