"""Signals in random networks of finite width and any depth: recursions of the effective theory, and exact draws.

z_1 = W x + b,  z_(l+1) = skip z_l + b + W phi(z_l),   Var W = C_W / n,  Var b = C_b
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from workingpapers.engines.limits import Activation, Scalar, expectations, second_moment, susceptibilities
from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import mlp


def pair_flow(
    activation: Activation,
    depth: int,
    weight_var: float,
    bias_var: float,
    start: tuple[float, float, float],
) -> list[tuple[float, float]]:
    """Return correlation and mean squared distance of two inputs' pre-activations at layers 1 to `depth`.

    `start` has the variances of both and their covariance at layer 1.
    """
    phi = activation
    state = torch.tensor(start, dtype=torch.float64)
    found = []
    for _ in range(depth):
        one, two, both = state.tolist()
        found.append((both / (one * two) ** 0.5, one + two - 2 * both))
        pairs = torch.tensor([[one, one, one], [two, two, two], [one, two, both]], dtype=torch.float64)
        state = bias_var + weight_var * expectations(phi, pairs[:, 0], pairs[:, 1], pairs[:, 2])[0]
    return found


def four_point(
    activation: Activation,
    widths: Sequence[int],
    weight_var: float,
    bias_var: float = 0.0,
    start: float = 1.0,
) -> list[float]:
    """Return cov(z_i^2, z_j^2) / K^2 (i != j) at layers 1, 2, ... to leading order in one over the widths.

    `widths` are those of layers 1, 2, ...; the layer behind the last of them is the last in the list.

        V_(l+1) = chi_par^2 V_l n_l / n_(l-1) + C_W^2 (E phi^4 - (E phi^2)^2),   cov = V_(l+1) / n_l
    """
    phi = Scalar(activation)
    k, covariance, found = start, 0.0, [0.0]
    for width in widths:
        if width < 1:
            raise WorkingPapersError(f"a layer has at least one neuron; got a width of {width}")
        fourth = phi.mean(lambda z: phi(z) ** 4, k)
        second = second_moment(phi, k)
        along = susceptibilities(phi, k, weight_var)[0]
        covariance = along**2 * covariance + weight_var**2 * (fourth - second**2) / width
        k = bias_var + weight_var * second
        found.append(covariance / k**2)
    return found


def ntk_flow(
    activation: Activation,
    depth: int,
    weight_var: float,
    bias_var: float = 0.0,
    rates: Sequence[tuple[float, float]] | None = None,
    start: float = 1.0,
) -> list[float]:
    """Return the mean tangent kernel of one input at layers 1 to `depth`: T_(l+1) = r_b + r_W g + chi_perp T_l.

    Args:
        rates: learning rates (r_b, r_W) of each layer's biases and of its weights times fan-in; 1 by default.
        start: K_1; of it K_1 - C_b comes by the weights, whose share of T_1 is r_W (K_1 - C_b) / C_W.
    """
    phi, k, found = Scalar(activation), start, []
    every = list(rates) if rates is not None else [(1.0, 1.0)] * depth
    kernel = every[0][0] + every[0][1] * (k - bias_var) / weight_var
    for layer in range(1, depth + 1):
        found.append(kernel)
        if layer < depth:
            second, across = second_moment(phi, k), susceptibilities(phi, k, weight_var)[1]
            kernel = every[layer][0] + every[layer][1] * second + across * kernel
            k = bias_var + weight_var * second
    return found


def equivalent_rates(
    activation: Activation, depth: int, weight_var: float, bias_var: float = 0.0, start: float = 1.0
) -> list[tuple[float, float]]:
    """Return learning rates (r_b, r_W) of each layer by which all layers add the same to the last one's kernel.

    The equivalence principle: biases add 1 / depth a layer and weights as much.  For scale-invariant activations
    the rates are the same in all layers; for tanh those of the biases fall as one over the layer.
    """
    phi, k = Scalar(activation), start
    sizes, factors = [(k - bias_var) / weight_var], [1.0]
    for _ in range(depth - 1):
        second = second_moment(phi, k)
        sizes.append(second)
        factors.append(susceptibilities(phi, k, weight_var)[1])
        k = bias_var + weight_var * second
    left = (
        torch.tensor([*factors[1:], 1.0]).double().flip(0).cumprod(0).flip(0).tolist()
    )  # from a layer to the end
    return [(1 / (depth * f), 1 / (depth * f * s)) for f, s in zip(left, sizes, strict=True)]


def draw_layers(
    activation: Activation,
    widths: Sequence[int],
    draws: int,
    weight_var: float,
    bias_var: float = 0.0,
    start: float = 1.0,
    seed: int = 0,
    skip: float = 0.0,
) -> list[Tensor]:
    """Draw one input's pre-activations (draws, width) at every layer of random networks, exactly in law.

    Given one layer, the next one's sums of weights are independent normals of variance C_b + C_W |phi|^2 / n, so no
    weights are drawn.  `skip` keeps so much of the layer before, which then has the same width.
    """
    phi = Scalar(activation)
    generator = torch.Generator().manual_seed(seed)
    z = start**0.5 * torch.randn(draws, widths[0], generator=generator, dtype=torch.float64)
    found = [z]
    for width in widths[1:]:
        variance = bias_var + weight_var * phi(z).square().mean(1, keepdim=True)
        fresh = variance.sqrt() * torch.randn(draws, width, generator=generator, dtype=torch.float64)
        z = fresh + skip * z if skip else fresh
        found.append(z)
    return found


def squares_covariance(z: Tensor) -> float:
    """Return cov(z_i^2, z_j^2) / (E z^2)^2 over draws, the mean over pairs i != j, from (draws, width)."""
    squares = z.square()
    n = z.shape[1]
    both = (squares.sum(1).square() - squares.square().sum(1)) / (n * (n - 1))
    return float(both.mean() / squares.mean().square() - 1)


def scaled_mlp(
    activation: Callable[[], nn.Module], depth: int, width: int, weight_var: float
) -> nn.Sequential:
    """Build a perceptron 64 -> `width` ... -> 10 of `depth` layers, weights N(0, weight_var / fan-in), biases 0."""
    model = mlp([64, *[width] * (depth - 1), 10], activation=activation)
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
            layer.weight.normal_(0, math.sqrt(weight_var / layer.in_features))
            layer.bias.zero_()
    return model


def power_of_layer(values: list[float], first: int) -> float:
    """Return the exponent p of values ~ layer^p from layer `first` (counted from 1) on."""
    layers = torch.arange(first, len(values) + 1, dtype=torch.float64).log()
    y = torch.tensor(values[first - 1 :], dtype=torch.float64).log()
    layers, y = layers - layers.mean(), y - y.mean()
    return float((layers * y).sum() / layers.square().sum())
