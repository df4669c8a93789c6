"""The small network that several activation papers share: its layers, its size, and weights of their own."""

import torch
from torch import nn

from workingpapers.papers.activations._fashion import four_convolutions
from workingpapers.tasks import initialise


def test_four_convolutions_of_the_stated_widths_and_two_poolings() -> None:
    for norm in (False, True):
        model = four_convolutions(nn.ReLU, norm)
        widths = [(m.in_channels, m.out_channels) for m in model if isinstance(m, nn.Conv2d)]
        assert widths == [(1, 16), (16, 16), (16, 32), (32, 32)]
        kinds = [type(m).__name__ for m in model]
        first = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] if norm else ["Conv2d", "ReLU", "MaxPool2d"]
        assert kinds[: len(first)] == first
        assert (kinds.count("MaxPool2d"), kinds.count("ReLU")) == (2, 4)
        assert model(torch.zeros(3, 1, 14, 14)).shape == (3, 10)


def test_weights_do_not_depend_on_the_activation() -> None:
    one, other = (
        [p for p in initialise(lambda a=a: four_convolutions(a), 5).parameters() if p.ndim > 1]
        for a in (nn.ReLU, lambda: nn.PReLU(init=float(torch.rand(()))))
    )
    assert len(one) == 5
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
