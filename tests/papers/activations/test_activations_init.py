"""What initialisations read off a model: neighbours in order of registration, and fans."""

import pytest
import torch
from torch import nn

from workingpapers.papers.activations._init import fans, placed_layers


def is_relu(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU | nn.LeakyReLU)


def test_layers_know_their_activations() -> None:
    first, last = nn.ReLU(), nn.LeakyReLU()
    block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), first, nn.Conv2d(4, 4, 1), nn.Tanh())
    model = nn.Sequential(nn.Conv2d(3, 4, 1), block, nn.Flatten(), nn.Linear(4, 4), last, nn.Linear(4, 2))
    found = list(placed_layers(model, is_relu))
    assert [p.name for p in found] == ["0", "1.0", "1.3", "3", "5"]
    assert [p.before for p in found] == [None, None, first, first, last]
    assert [p.after for p in found] == [first, first, last, last, None]


def test_shared_parts_are_met_where_they_stand() -> None:
    relu, shared = nn.ReLU(), nn.Linear(2, 2)
    model = nn.Sequential(shared, relu, nn.Linear(2, 2), relu, shared, nn.Linear(2, 1))
    found = list(placed_layers(model, is_relu))
    assert [p.name for p in found] == [
        "0",
        "2",
        "5",
    ]  # the shared layer once, the shared activation each time
    assert [p.after for p in found] == [relu, relu, None]
    assert [p.before for p in found] == [None, relu, relu]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(7, 5), (7, 5)),
        (nn.Conv1d(6, 4, 5), (30, 20)),
        (nn.Conv2d(6, 4, (3, 2), groups=2), (18, 12)),
        (nn.Conv3d(2, 3, 2), (16, 24)),
        (nn.ConvTranspose2d(6, 4, 3), (54, 36)),
    ],
)
def test_fans_count_terms_and_uses(layer: nn.Module, expected: tuple[int, int]) -> None:
    assert fans(layer) == expected
    if not isinstance(layer, nn.Linear):  # count the terms in the middle of an image of ones
        with torch.no_grad():
            layer.weight.fill_(1)
            layer.bias.zero_()
        image = torch.ones(1, layer.in_channels, *[9] * (layer.weight.ndim - 2), requires_grad=True)
        y = layer(image)
        assert float(y.detach().max()) == expected[0]
        assert float(torch.autograd.grad(y.sum(), image)[0].max()) == expected[1]


def test_fans_are_those_of_layers() -> None:
    with pytest.raises(TypeError, match="got ReLU"):
        fans(nn.ReLU())
