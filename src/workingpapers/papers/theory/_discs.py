"""Images of one disc whose colour and size are concepts, with readers that find both in an image in closed form."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import fit, initialise, mlp

CONCEPTS = ("colour", "size")
CORNERS = (
    (0, 0),
    (0, 1),
    (1, 0),
    (1, 1),
)  # (colour, size) = (red or blue, large or small); the last is held out
SHOWN = CORNERS[:3]
MIDDLE = (0.5, 0.25, 0.5)  # colour between red and blue
BRIGHTNESS = sum(MIDDLE)


@dataclass(frozen=True)
class Discs:
    """Discs at corners of concept space: red (0) or blue (1), large (0) or small (1).

    A condition is (R - 1/2, G - 1/4, B - 1/2, radius / middle radius - 1): (+-gap / 2, 0, -+gap / 2, +-gap / 2).

    Args:
        colour_gap, size_gap: distances of a concept's two values, in (0, 1] and (0, 0.8]; 0 makes them coincide.
        side: pixels; the middle radius is 0.28 of it.
        spread: standard deviation within a class, of the radius and of red, against blue.
        noise: standard deviation added to pixels, and to the conditions that are given.
        jitter: largest shift of the centre in pixels, each way.
        edge: standard deviation of the Gaussian edge in pixels.
        square: squares of the disc's area in place of discs.
        background: brightness there, in [0, 0.2).
    """

    colour_gap: float = 0.3
    size_gap: float = 0.3
    side: int = 12
    spread: float = 0.02
    noise: float = 0.01
    jitter: float = 1.0
    edge: float = 0.5
    square: bool = False
    background: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what could not be read back."""
        if not (0 <= self.colour_gap <= 1 and 0 <= self.size_gap <= 0.8 and self.side >= 6):
            raise WorkingPapersError(
                "discs need a colour gap in [0, 1], a size gap in [0, 0.8] and at least 6 pixels a side; got "
                f"{self.colour_gap}, {self.size_gap} and {self.side}"
            )

    @property
    def radius(self) -> float:
        """The radius in the middle of large and small, in pixels."""
        return 0.28 * self.side

    def conditions(self, corner: tuple[int, int]) -> Tensor:
        """Return the condition (4,) in the middle of a class."""
        colour, size = (1 - 2 * bit for bit in corner)
        half = self.colour_gap / 2
        return torch.tensor([colour * half, 0.0, -colour * half, size * self.size_gap / 2])

    def render(self, conditions: Tensor, centres: Tensor | None = None) -> Tensor:
        """Return images (N, 3, side, side), no noise, of conditions (N, 4), at `centres` (N, 2) off the middle."""
        radius = self.radius * (1 + conditions[:, 3, None, None])
        at = torch.arange(self.side) - (self.side - 1) / 2
        shift = torch.zeros(len(conditions), 2) if centres is None else centres
        across = [at - shift[:, i, None] for i in (0, 1)]  # rows, columns
        if self.square:
            half = radius * math.sqrt(math.pi) / 2
            mask = (
                self._inside(half[:, 0], across[0])[:, :, None] * self._inside(half[:, 0], across[1])[:, None]
            )
        else:
            distance = (across[0][:, :, None].square() + across[1][:, None].square()).sqrt()
            mask = torch.special.ndtr((radius - distance) / self.edge)
        colours = conditions[:, :3] + torch.tensor(MIDDLE)
        painted: Tensor = colours[:, :, None, None] * mask[:, None] + self.background * (1 - mask[:, None])
        return painted

    def _inside(self, half: Tensor, at: Tensor) -> Tensor:
        share: Tensor = torch.special.ndtr((half - at) / self.edge) * torch.special.ndtr(
            (half + at) / self.edge
        )
        return share

    def draw(self, corner: tuple[int, int], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return noisy images (count, 3, side, side) of a class, and the noisy conditions (count, 4) given."""
        colour, size = self.spread * torch.randn(2, count, generator=generator)
        true = self.conditions(corner) + torch.stack([colour, 0 * colour, -colour, size], 1)
        centres = self.jitter * (2 * torch.rand(count, 2, generator=generator) - 1)
        x = self.render(true, centres)
        x = x + self.noise * torch.randn(x.shape, generator=generator)
        return x, true + self.noise * torch.randn(true.shape, generator=generator)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the colours (N, 3) inside the discs of images and the discs' areas (N,) in pixels.

        All discs are equally bright, so sums over pixels give both in closed form, also where samples are noisy;
        areas are of the disc without its soft edge.
        """
        x = x - self.background
        full = BRIGHTNESS - 3 * self.background
        sums = x.sum((2, 3))  # (N, 3)
        total = sums.sum(1)
        least = 0.2 * full * math.pi * self.radius**2  # what is darker shows no disc
        colours = full * sums / total.clamp_min(least)[:, None] + self.background
        return colours, total / full - (0 if self.square else math.pi * self.edge**2)

    def bits(self, x: Tensor) -> Tensor:
        """Return the concepts (N, 2) that images show: bluer than red, and smaller than the middle; bool."""
        colours, area = self.read(x)
        return torch.stack([colours[:, 2] > colours[:, 0], area < math.pi * self.radius**2], 1)

    def signal(self, concept: str) -> float:
        """Return the norm of the pixels' change when only one concept moves, mean over the other's values."""
        if concept not in CONCEPTS:
            raise WorkingPapersError(f"a concept is one of {', '.join(CONCEPTS)}; got {concept!r}")
        pairs = [((0, k), (1, k)) if concept == "colour" else ((k, 0), (k, 1)) for k in (0, 1)]
        images = [self.render(torch.stack([self.conditions(c) for c in pair])) for pair in pairs]
        return float(sum((x[0] - x[1]).norm() for x in images) / 2)


def trained_reader(
    world: Discs, seed: int = 0, count: int = 500, steps: int = 200
) -> Callable[[Tensor], Tensor]:
    """Return a classifier, trained on rendered images of all corners, of the concepts (N, 2) that images show."""
    generator = torch.Generator().manual_seed(seed)
    parts = [world.draw(corner, count, generator)[0] for corner in CORNERS]
    x, y = torch.cat(parts), torch.arange(4).repeat_interleave(count)
    model = initialise(lambda: mlp([x[0].numel(), 64, 4]), seed)
    fit(model, Split(x, y, x[:8], y[:8], 4, "discs"), steps=steps, seed=seed, every=10**6)

    @torch.no_grad()
    def read(images: Tensor) -> Tensor:
        said = model(images).argmax(1)
        return torch.stack([said >= 2, said % 2 == 1], 1)

    return read


def noiseless(world: Discs) -> Discs:
    """Return the same world without variation within classes, noise or jitter."""
    return replace(world, spread=0.0, noise=0.0, jitter=0.0)
