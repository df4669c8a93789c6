"""Inputs that hold several binary features, independent and balanced, of different complexity: bits and images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError, unknown

KINDS = ("linear", "sum", "parity")


@dataclass(frozen=True)
class Feature:
    """A binary feature and the inputs that hold it.

    `kind` is "linear" (one bit is the feature), "sum" (whether most of `bits` bits, an odd number, are on) or
    "parity" (of `bits` bits; 2 make XOR).  `present` is the share of inputs that hold the feature at all.
    """

    kind: str = "linear"
    bits: int = 1
    present: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no feature."""
        if self.kind not in KINDS:
            raise unknown("kind of feature", self.kind, KINDS)
        fits = {"linear": self.bits == 1, "sum": self.bits % 2 == 1, "parity": self.bits >= 2}
        if self.bits < 1 or not fits[self.kind] or not 0 < self.present <= 1:
            raise WorkingPapersError(
                "a linear feature has 1 bit, a sum an odd number, a parity at least 2, and a feature is present "
                f"in a share above 0 up to 1; got {self}"
            )

    def draw(self, value: Tensor, generator: torch.Generator) -> Tensor:
        """Return bits (n, bits) of 0 and 1 that make the feature have the `value` (n,), at random otherwise."""
        found = torch.randint(2, (len(value), self.bits), generator=generator)
        if self.kind == "sum":
            wrong = (2 * found.sum(1) > self.bits).long() != value
            return torch.where(wrong[:, None], 1 - found, found)
        found[:, -1] = (found[:, :-1].sum(1) + value) % 2
        return found


EASY, XOR = Feature(), Feature("parity", 2)


def balanced(count: int, features: int, generator: torch.Generator) -> Tensor:
    """Return values (count, features) of 0 and 1, each feature half of the time 1, each in an order of its own."""
    half = (torch.arange(count) % 2)[:, None]
    return torch.cat([half[torch.randperm(count, generator=generator)] for _ in range(features)], 1)


def bit_inputs(
    features: Sequence[Feature], count: int, generator: torch.Generator, units: int = 32, noise: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Return inputs (count, units x features) and values (count, features) of 0, 1, or nan where absent.

    Each feature has `units` inputs of its own: its bits as +-1, repeated in turn, with Gaussian noise of deviation
    `noise`; 0 and noise where it is absent.
    """
    if units < max(f.bits for f in features):
        raise WorkingPapersError(f"{units} units cannot hold {max(f.bits for f in features)} bits")
    values = balanced(count, len(features), generator)
    groups, shown = [], values.float()
    for i, feature in enumerate(features):
        bits = 2.0 * feature.draw(values[:, i], generator) - 1
        group = bits[:, torch.arange(units) % feature.bits]
        absent = torch.rand(count, generator=generator) >= feature.present
        group[absent], shown[absent, i] = 0.0, torch.nan
        groups.append(group + noise * torch.randn(count, units, generator=generator))
    return torch.cat(groups, 1), shown


def image_inputs(
    count: int, generator: torch.Generator, size: int = 64, noise: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Return images (count, 3, size, size) and values (count, 3): shape, texture and colour of one object.

    Shape is a square or a disc, texture horizontal or upright stripes, colour red or blue; place and size of the
    object, the phase of the stripes and the noise are random.
    """
    values = balanced(count, 3, generator)
    shape, texture, colour = (values[:, i, None, None].bool() for i in range(3))
    place = torch.linspace(-1, 1, size)
    centre = 0.6 * torch.rand(count, 2, 1, 1, generator=generator) - 0.3
    half = 0.35 + 0.2 * torch.rand(count, 1, 1, generator=generator)
    down, across = place[:, None] - centre[:, 0], place[None, :] - centre[:, 1]
    disc = down.square() + across.square() <= (half * 1.128) ** 2  # as large as the square
    inside = torch.where(shape, disc, torch.maximum(down.abs(), across.abs()) <= half)
    phase = 6.283 * torch.rand(count, 1, 1, generator=generator)
    wave = 0.7 + 0.3 * torch.sin(14 * torch.where(texture, across, down) + phase).sign()
    light = torch.where(inside, wave, 0.0)
    images = torch.stack([torch.where(colour, 0.0, light), 0.3 * light, torch.where(colour, light, 0.0)], 1)
    return images + noise * torch.randn(images.shape, generator=generator), values.float()


def token_inputs(
    features: Sequence[Feature], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return tokens (count, bits + features - 1) and values (count, features), for a decoder.

    The tokens are the bits of all features (0 and 1) and then the values in their order but for the last one, which
    the decoder reads as it writes them.
    """
    values = balanced(count, len(features), generator)
    bits = [f.draw(values[:, i], generator) for i, f in enumerate(features)]
    return torch.cat([*bits, values[:, :-1]], 1), values.float()
