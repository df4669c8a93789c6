"""A deep thin network without normalisation, and the usual ways to draw its weights, to compare with."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def thin_net(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Build a thin network of 17 weight layers like FitNet-4 (B, 3, H, W) -> (B, 10): 5, 5 and 6 convolutions."""
    layers: list[nn.Module] = []
    width_in = 3
    for stage, (width, depth) in enumerate(((16, 5), (32, 5), (48, 6))):
        layers += [nn.MaxPool2d(2)] if stage else []
        for _ in range(depth):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), activation()]
            width_in = width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(width_in, 10))


def redraw_(model: nn.Module, draw: Callable[[Tensor], Any]) -> nn.Module:
    """Fill the weights of all linear and convolution layers by `draw`, set their biases to 0; return the model."""
    for layer in (m for m in model.modules() if isinstance(m, LAYERS)):
        for key, parameter in layer.named_parameters(recurse=False):
            (draw if key == "weight" else nn.init.zeros_)(parameter)
    return model


INITS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "default": lambda model: model,
    "he": partial(redraw_, draw=partial(nn.init.kaiming_normal_, nonlinearity="relu")),
    "xavier": partial(redraw_, draw=nn.init.xavier_normal_),
}
