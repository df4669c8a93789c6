"""DoReFa-Net: layers with few-bit weights, activations and gradients, and their products by bit operations.

    quantize_k(r) = round((2^k - 1) r) / (2^k - 1), r in [0, 1]
    weights       2 quantize_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1;  for k = 1: sign(w) mean|w|
    activations   quantize_k(clip(x, 0, 1))
    gradients     2 M (quantize_k(dr / (2 M) + 1/2 + sigma / (2^k - 1)) - 1/2), M = max|dr| of the sample,
                  sigma uniform in (-1/2, 1/2)

Rounding and sign pass gradients straight through.  The noise makes the quantised gradient unbiased.

Paper: "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients" (2016),
Section 2; the order of operations follows the authors' code in tensorpack, but sign(0) is +1, a bit.
"""

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, above, all_of, any_of, at_least, at_most
from workingpapers.kernels import bits
from workingpapers.papers.layers._lowbit_bench import (
    accuracy_of,
    fashion,
    output_gradients,
    packed_against_float,
    plain_cnn,
    relative_error,
)
from workingpapers.papers.layers._packed import Layer, Packed, convert_layers
from workingpapers.papers.layers._rounding import (
    FULL_PRECISION,
    biases,
    gradient_in_bits,
    quantize_activation,
    quantize_gradient,
    quantize_weight,
    squashed,
)
from workingpapers.surgery import replace_modules
from workingpapers.tasks import Budget, fit


class _LowBit(nn.Module):
    """How many bits weights, activations and gradients of a layer have."""

    def _set_bits(self, w_bits: int, a_bits: int, g_bits: int, noise: bool) -> None:
        for name, k in (("w_bits", w_bits), ("a_bits", a_bits), ("g_bits", g_bits)):
            if k not in range(1, 17) and k != FULL_PRECISION:
                raise WorkingPapersError(f"{name} is 1 to 16, or 32 for full precision; got {k}")
        self.w_bits, self.a_bits, self.g_bits, self.noise = w_bits, a_bits, g_bits, noise

    def _backward_in_bits(self, y: Tensor) -> Tensor:
        return y if self.g_bits == FULL_PRECISION else gradient_in_bits(y, self.g_bits, self.noise)

    def extra_repr(self) -> str:
        bits = f"w_bits={self.w_bits}, a_bits={self.a_bits}, g_bits={self.g_bits}, noise={self.noise}"
        return f"{super().extra_repr()}, {bits}"


@paper("dorefa", replaces="Linear", surrogate_gradient=True)
class DoReFaLinear(_LowBit, nn.Linear):
    """A linear layer (..., in_features) -> (..., out_features) of few bits; its input is clipped to [0, 1].

    Args:
        in_features, out_features, bias: as for nn.Linear.
        w_bits, a_bits, g_bits: of weights, inputs and the output's gradient, 1 to 16, or 32 to leave them.
        noise: add noise to the gradient before it is rounded, as the paper does.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        w_bits: int = 1,
        a_bits: int = 2,
        g_bits: int = 6,
        noise: bool = True,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self._set_bits(w_bits, a_bits, g_bits, noise)

    def forward(self, x: Tensor) -> Tensor:
        weight = quantize_weight(self.weight, self.w_bits)
        return self._backward_in_bits(F.linear(quantize_activation(x, self.a_bits), weight, self.bias))


@paper("dorefa", part="conv2d", replaces="Conv2d", surrogate_gradient=True)
class DoReFaConv2d(_LowBit, nn.Conv2d):
    """A convolution (B, C, H, W) -> (B, D, H', W') of few bits; its input is clipped to [0, 1].

    Args:
        in_channels ... padding_mode: as for nn.Conv2d.
        w_bits, a_bits, g_bits, noise: as for `DoReFaLinear`.
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
        w_bits: int = 1,
        a_bits: int = 2,
        g_bits: int = 6,
        noise: bool = True,
    ) -> None:
        layout: Any = (stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(in_channels, out_channels, kernel_size, *layout)
        self._set_bits(w_bits, a_bits, g_bits, noise)

    def forward(self, x: Tensor) -> Tensor:
        weight = quantize_weight(self.weight, self.w_bits)
        x = quantize_activation(x, self.a_bits)
        return self._backward_in_bits(self._conv_forward(x, weight, self.bias))


def _small_net(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(54, 5), nn.ReLU(), nn.Linear(5, 3))
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return net, torch.randn(3, 2, 8, 8, generator=generator)


@paper("dorefa", part="convert", kind="transform", example=_small_net, preserves=None)
def convert(
    model: nn.Module, w_bits: int = 1, a_bits: int = 2, g_bits: int = 6, skip_first_last: bool = True
) -> nn.Module:
    """Return a copy of `model` with low-bit layers for its nn.Linear and nn.Conv2d, the weights kept.

    The first and the last of them stay in full precision by default, as in the paper.
    """
    options = {"w_bits": w_bits, "a_bits": a_bits, "g_bits": g_bits}
    return convert_layers(model, DoReFaLinear, DoReFaConv2d, options, skip_first_last)


class PackedDoReFa(Packed):
    """A low-bit layer for inference: weights as packed bit planes, sums by AND and popcount."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        k, self.a_bits = (getattr(layer, name, FULL_PRECISION) for name in ("w_bits", "a_bits"))
        if FULL_PRECISION in (k, self.a_bits):
            raise WorkingPapersError("only weights and activations of 1 to 16 bits can be packed; got 32")
        with torch.no_grad():
            w = layer.weight.flatten(1)
            codes = w >= 0 if k == 1 else torch.round(squashed(w) * (2**k - 1))
            scale = w.double().abs().mean() if k == 1 else torch.ones((), dtype=torch.double)
        self.w_bits = int(k)
        self.register_buffer("weight", bits.pack(codes, self.w_bits))  # (k, outputs, words)
        self.register_buffer("scale", scale.to(layer.weight.device))

    def prepare(self, x: Tensor) -> Tensor:
        """Return the codes of the inputs."""
        exact = x if x.dtype == torch.float64 else x.float()
        return torch.round(exact.clamp(0, 1) * (2**self.a_bits - 1))

    def products(self, rows: Tensor) -> Tensor:
        """Return the sums; w = scale (2 code / (2^k - 1) - 1), so each needs the sum of its inputs' codes, too."""
        kernels = self.weight.unflatten(1, (self.groups, -1))
        dots = torch.stack(
            [bits.code_products(bits.pack(r, self.a_bits), kernels[:, g]) for g, r in enumerate(rows)]
        )
        steps, levels = 2**self.w_bits - 1, 2**self.a_bits - 1
        sums = rows.double().sum(-1, keepdim=True)
        found: Tensor = self.scale.double() / levels * (2 * dots.double() / steps - sums)
        return found


def _converted_net(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    net, x = _small_net(generator)
    return convert(net, w_bits=2), x


@paper("dorefa", part="pack", kind="transform", example=_converted_net, preserves=1e-4)
def pack(model: nn.Module) -> nn.Module:
    """Return a copy of `model` for inference whose low-bit layers are computed on packed bits."""
    return replace_modules(
        model,
        (DoReFaLinear, DoReFaConv2d, PackedDoReFa),
        lambda old: None if isinstance(old, PackedDoReFa) else PackedDoReFa(old),  # type: ignore[arg-type]
    )


def _trained(
    budget: Budget, seed: int, w: int, a: int, g: int, noise: bool = True
) -> tuple[nn.Module, float]:
    """Train four convolutions of width 32, the inner ones of few bits, and return them and the test accuracy."""
    split = fashion(*budget.pick(quick=(4000, 2000), full=(60000, 10000)), seed)
    model = convert(plain_cnn((32, 32, 32, 32), nn.ReLU, seed), w, a, g)
    for module in model.modules():
        if isinstance(module, _LowBit):
            module.noise = noise
    result = fit(model, split, epochs=budget.pick(quick=4, full=20), lr=1e-3, seed=seed)
    return model, accuracy_of(result)


@claim(
    "dorefa",
    "Networks with very few bits in weights, activations and gradients train from scratch to accuracy comparable "
    "with full precision.",
    figure="AlexNet, 1-bit weights, 2-bit activations, 6-bit gradients: 46.1% ImageNet top-1",
    holds=all_of(
        at_most(0.04, of="lost_by_126"),
        above(0.0, of="lost_from_126_to_122"),
        at_most(2, of="weight_values", by="every"),
        at_most(64, of="gradient_values", by="every"),
    ),
)
def trains_from_scratch(budget: Budget, seed: int) -> Evidence:
    """Accuracy on Fashion-MNIST at bits (1, 2, 6) against 32, and at (1, 2, 2) and (1, 1, 32).

    `weight_values` and `gradient_values` are the most distinct numbers in a quantised weight, and in a
    sample's quantised gradient at the output of a layer.
    """
    settings = {"full": (32, 32, 32), "126": (1, 2, 6), "122": (1, 2, 2), "1132": (1, 1, 32)}
    runs = {name: _trained(budget, seed, *setting) for name, setting in settings.items()}
    accuracy = {name: found for name, (_, found) in runs.items()}
    split = fashion(100, 100, seed)
    gradients = output_gradients(runs["126"][0], _LowBit, split.x_train, split.y_train)
    generator = torch.Generator().manual_seed(seed)
    values = [
        len(sample.unique())
        for _, gradient in gradients
        for sample in quantize_gradient(gradient, 6, generator=generator)
    ]
    weights = [len(quantize_weight(getattr(m, "weight").detach(), 1).unique()) for m, _ in gradients]  # noqa: B009
    return Evidence(
        lost_by_126=accuracy["full"] - accuracy["126"],
        lost_from_126_to_122=accuracy["126"] - accuracy["122"],
        lost_by_1132=accuracy["full"] - accuracy["1132"],
        weight_values=max(weights),
        gradient_values=max(values),
    )


@claim(
    "dorefa",
    "Quantising gradients stochastically is what makes low-bit backward passes workable.",
    holds=any_of(at_least(0.01, of="gain_of_noise"), at_least(20, of="bias_ratio")),
)
def noise_is_needed(budget: Budget, seed: int) -> Evidence:
    """Accuracy with noise over that without, at bits (1, 2, 4), and the bias of rounding real gradients to 4 bits.

    `bias_ratio` compares the rounding without noise to the mean of 2,000 draws with it, over the layers.
    """
    model, noisy = _trained(budget, seed, 1, 2, 4)
    _, plain = _trained(budget, seed, 1, 2, 4, noise=False)
    split = fashion(20, 100, seed)
    generator = torch.Generator().manual_seed(seed)
    gradients = output_gradients(model, _LowBit, split.x_train, split.y_train)
    found = [biases(gradient, 4, 2000, generator) for _, gradient in gradients]
    without, with_noise = (sum(each) for each in zip(*found, strict=True))
    return Evidence(gain_of_noise=noisy - plain, bias_ratio=without / with_noise)


@claim(
    "dorefa",
    "Low-bit convolutions can run as bit kernels on CPU, FPGA, ASIC and GPU, in training and inference alike.",
    seeds=3,
    holds=at_most(1e-4, of="relative_error", by="every"),
)
def bit_kernels_are_exact(budget: Budget, seed: int) -> Evidence:
    """Largest relative error of packed layers against the float simulation, over all pairs of 1 to 4 bits.

    A linear layer 1024 -> 256 for 64 rows and a 3x3 convolution 64 -> 64; `time_ratio` is the time of the
    packed product of signs, 1 bit by 1 bit, over that of a float32 product of the same size on this CPU.
    """
    torch.manual_seed(seed)
    side = budget.pick(quick=6, full=28)
    error = 0.0
    for w, a in product(range(1, 5), repeat=2):
        linear, conv = (
            DoReFaLinear(1024, 256, True, w, a),
            DoReFaConv2d(64, 64, 3, padding=1, w_bits=w, a_bits=a),
        )
        for layer, x in ((linear, torch.rand(64, 1024)), (conv, torch.rand(4, 64, side, side))):
            with torch.no_grad():
                error = max(error, relative_error(pack(layer)(x), layer(x)))
    return Evidence(relative_error=error, time_ratio=packed_against_float(seed, 64, 1024, 256)["time_ratio"])
