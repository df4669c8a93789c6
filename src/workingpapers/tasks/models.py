"""Plain networks with exchangeable parts: a perceptron and two convolutional networks.

`activation` is always a factory without arguments, called once for every place.  Whatever it gives, all
other weights start the same under the same seed, so variants differ in the activation alone.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.tasks.randomness import apart

Factory = Callable[[], nn.Module]


def mlp(
    sizes: Sequence[int],
    activation: Factory = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build a multilayer perceptron (B, ...) -> (B, sizes[-1]) with the layer widths `sizes`.

    Inputs are flattened to (B, sizes[0]).  `norm` maps a width to a module that stands before each
    activation, such as nn.BatchNorm1d; dropout stands behind each activation.
    """
    if len(sizes) < 2:
        raise WorkingPapersError(f"an mlp has at least an input and an output size; got {list(sizes)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width in pairwise(sizes[:-1]):
        layers.append(nn.Linear(width_in, width))
        if norm is not None:
            layers.append(norm(width))
        layers.append(apart(activation))
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def cnn(
    channels: int,
    num_classes: int,
    widths: Sequence[int] = (16, 32),
    activation: Factory = nn.ReLU,
    size: int = 28,
) -> nn.Sequential:
    """Build a plain convolutional network (B, channels, size, size) -> (B, num_classes).

    Each of `widths` is a 3x3 convolution, an activation and a 2x2 max-pooling; a linear layer reads them out.
    """
    side = size >> len(widths)
    if side < 1:
        raise WorkingPapersError(
            f"{len(widths)} poolings leave nothing of a {size}x{size} image; give fewer widths"
        )
    layers: list[nn.Module] = []
    for width_in, width in pairwise([channels, *widths]):
        layers += [nn.Conv2d(width_in, width, 3, padding=1), apart(activation), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side * side, num_classes))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them: (B, C, H, W) -> (B, D, H / stride, W / stride)."""

    def __init__(self, width_in: int, width: int, stride: int, activation: Factory, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=not norm)
        self.norm1 = _norm(width, norm)
        self.activation1 = apart(activation)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=not norm)
        self.norm2 = _norm(width, norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=not norm), _norm(width, norm)
            )
        self.activation2 = apart(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return activation(shortcut(x) + residual(x))."""
        residual = self.norm2(self.conv2(self.activation1(self.norm1(self.conv1(x)))))
        out: Tensor = self.activation2(self.shortcut(x) + residual)
        return out


def residual_cnn(
    in_channels: int,
    num_classes: int,
    widths: Sequence[int] = (16, 32, 64),
    blocks_per_stage: int = 1,
    activation: Factory = nn.ReLU,
    norm: bool = True,
) -> nn.Sequential:
    """Build a residual network for small images, (B, in_channels, H, W) -> (B, num_classes) for any H and W.

    A 3x3 stem, a stage for each of `widths` (each but the first halves the resolution), global average
    pooling, a linear layer (He et al., 2016, Section 4.2).  `norm=False` leaves batch normalisation out.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=not norm),
        _norm(widths[0], norm),
        apart(activation),
    ]
    width_in = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks_per_stage):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ResidualBlock(width_in, width, stride, activation, norm))
            width_in = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, num_classes))


def _norm(width: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(width) if norm else nn.Identity()
