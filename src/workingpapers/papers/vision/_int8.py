"""Simulated int8 inference of linear layers and perceptrons: symmetric scales, int32 sums, exact requantising.

    x_q = clamp(round(x / s), -128, 127),  acc = x_q W_q (integers),  y = acc s_x s_w
    requantise(acc) = clamp(round(acc m), -128, 127)

Weights have a scale for each output, inputs one for the tensor.  Rounding is half to even.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery import replace_modules
from workingpapers.surgery.collect import collect


def quantise(x: Tensor, scale: Tensor) -> Tensor:
    """Return x / scale as integers from -128 to 127, kept in the dtype of `x`."""
    return torch.round(x / scale).clamp(-128, 127)


def requantise(acc: Tensor, multiplier: Tensor) -> Tensor:
    """Return integer sums times a positive multiplier as integers from -128 to 127, kept in their dtype."""
    return torch.round(acc * multiplier).clamp(-128, 127)


def requantise_relu(acc: Tensor, multiplier: Tensor) -> Tensor:
    """Return relu of `requantise`, which costs nothing: the clamp begins at 0."""
    return torch.round(acc * multiplier).clamp(0, 127)


class _Integers(nn.Module):
    """int8 weights of a linear layer with a scale for each output, and its bias in units of the sums."""

    def __init__(self, linear: nn.Linear, input_scale: Tensor) -> None:
        super().__init__()
        w = linear.weight.detach()
        scale = (w.abs().amax(1) / 127).clamp(min=torch.finfo(w.dtype).tiny)
        self.unit: Tensor
        self.weight: Tensor
        self.offset: Tensor
        self.register_buffer("unit", scale * input_scale)
        self.register_buffer("weight", quantise(w, scale[:, None]).to(torch.int8))
        bias = torch.zeros_like(scale) if linear.bias is None else linear.bias.detach()
        self.register_buffer("offset", torch.round(bias / self.unit))

    def forward(self, codes: Tensor) -> Tensor:
        """Return the sums of integer inputs, bias included; in float64 every int32 is exact."""
        found: Tensor = codes.double() @ self.weight.double().T + self.offset.double()
        return found


class QuantLinear(nn.Module):
    """A linear layer in int8 between floats: quantise, integer sums, dequantise."""

    nodes = 2  # conversions between float and int8

    def __init__(self, linear: nn.Linear, input_scale: Tensor) -> None:
        super().__init__()
        self.input_scale: Tensor
        self.register_buffer("input_scale", input_scale)
        self.integers = _Integers(linear, input_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the linear layer returns, rounded as int8 rounds."""
        acc: Tensor = self.integers(quantise(x, self.input_scale))
        return (acc * self.integers.unit).to(x.dtype)


class QuantMLP(nn.Module):
    """A perceptron in int8 between floats; a ReLU stays in integers, another activation goes through floats."""

    def __init__(self, mlp: nn.Sequential, input_scale: Tensor, hidden_scale: Tensor) -> None:
        super().__init__()
        first, activation, last = mlp_parts(mlp)
        self.input_scale: Tensor
        self.hidden_scale: Tensor
        self.register_buffer("input_scale", input_scale)
        self.register_buffer("hidden_scale", hidden_scale)
        self.first, self.last = _Integers(first, input_scale), _Integers(last, hidden_scale)
        self.activation = None if isinstance(activation, nn.ReLU) else activation
        self.nodes = 2 if self.activation is None else 4

    def hidden(self, acc: Tensor) -> Tensor:
        """Return the hidden layer's int8 codes from its integer sums: the element-wise stage."""
        if self.activation is None:
            return requantise_relu(acc, self.first.unit / self.hidden_scale)
        return quantise(self.activation((acc * self.first.unit).float()), self.hidden_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the perceptron returns, rounded as int8 rounds."""
        acc: Tensor = self.last(self.hidden(self.first(quantise(x, self.input_scale))))
        return (acc * self.last.unit).to(x.dtype)


def mlp_parts(module: nn.Module) -> tuple[nn.Linear, nn.Module, nn.Linear]:
    """Return first layer, activation and last layer of a perceptron, dropout left out; raise where it is none."""
    parts = [m for m in module.children() if not isinstance(m, (nn.Dropout, nn.Identity))]
    if not isinstance(module, nn.Sequential) or [isinstance(m, nn.Linear) for m in parts] != [
        True,
        False,
        True,
    ]:
        raise WorkingPapersError("a perceptron is a sequence of linear layer, activation and linear layer")
    return parts[0], parts[1], parts[2]  # type: ignore[return-value]


def is_mlp(module: nn.Module) -> bool:
    """Tell whether `mlp_parts` finds its parts."""
    parts = [m for m in module.children() if not isinstance(m, (nn.Dropout, nn.Identity))]
    return isinstance(module, nn.Sequential) and [isinstance(m, nn.Linear) for m in parts] == [
        True,
        False,
        True,
    ]


def quantise_model(model: nn.Module, x: Tensor, percentile: float = 100.0) -> nn.Module:
    """Return a copy of `model` whose perceptrons and other linear layers are computed in int8.

    Scales come from the inputs `x`: the largest size of what flows, or a `percentile` of it (batch by batch).
    A linear layer that `model` does not call as a module stays in floating point, as does all else.
    """

    def largest(_: nn.Module, z: Tensor) -> Tensor:
        sizes = z.abs().flatten()
        top = sizes.max() if percentile >= 100 else torch.quantile(sizes[:10_000_000], percentile / 100)
        return top.view(1)

    every = dict(model.named_modules())
    mlps = {name: m for name, m in every.items() if is_mlp(m)}
    inside = {id(part) for m in mlps.values() for part in mlp_parts(m)}
    lone = [n for n, m in every.items() if isinstance(m, nn.Linear) and id(m) not in inside]
    inner = {id(mlp_parts(m)[1]): name for name, m in mlps.items()}
    acts = [name for name, m in every.items() if id(m) in inner]
    tops: dict[str, Tensor] = {}
    if mlps or lone:
        tops = collect(model, x, [*mlps, *lone], side="input", keep=largest)
    hidden = collect(model, x, acts, keep=largest) if acts else {}
    scale: Callable[[Tensor], Tensor] = lambda top: (top.max() / 127).clamp(min=1e-12)  # noqa: E731
    scales = {id(every[n]): scale(top) for n, top in tops.items()}
    hidden_scales = {inner[id(every[n])]: scale(top) for n, top in hidden.items()}
    built = {n: QuantMLP(m, scales[id(m)], hidden_scales[n]) for n, m in mlps.items()}  # type: ignore[arg-type]
    linears = {n: QuantLinear(every[n], scales[id(every[n])]) for n in lone if id(every[n]) in scales}  # type: ignore[arg-type]
    order = iter([{**built, **linears}[n] for n in [*mlps, *linears]])
    old = (QuantLinear, QuantMLP)
    names = [*mlps, *linears] or [n for n, m in every.items() if isinstance(m, old)]
    return replace_modules(model, names, lambda m: None if isinstance(m, old) else next(order))


def conversions(model: nn.Module) -> int:
    """Return how many conversions between float and int8 a pass through `model` makes."""
    return sum(m.nodes for m in model.modules() if isinstance(m, (QuantLinear, QuantMLP)))
