"""Ways to ask a conditional generative model for more than a plain prompt gives: stronger prompts, latent moves."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from workingpapers.errors import unknown
from workingpapers.papers.theory._discs import CONCEPTS, CORNERS, SHOWN, Discs
from workingpapers.papers.theory._flows import Change, Velocity, sample

ENTRIES = {"colour": (0, 1, 2), "size": (3,)}  # of a concept in a condition
Setting = tuple[str, str, float]  # "prompt" or "latent", concept, strength


def prompts(world: Discs, corner: tuple[int, int], count: int) -> Tensor:
    """Return the plain prompt for a corner, (count, 4)."""
    return world.conditions(corner).expand(count, 4).clone()


def over_prompt(condition: Tensor, concept: str, factor: float) -> Tensor:
    """Scale a concept's offset from the middle of its two values, which is 0, in conditions (N, 4)."""
    if concept not in ENTRIES:
        raise unknown("concept", concept, ENTRIES)
    scaled = condition.clone()
    scaled[:, list(ENTRIES[concept])] *= factor
    return scaled


@torch.no_grad()
def latent_change(model: Velocity, world: Discs, concept: str, strength: float) -> Change:
    """Return the intervention that adds `strength` times the way from a concept's value 0 to 1 to the latent
    vector.

    The way is the difference of mean embeddings over the shown corners with the value 1 and with 0.
    """
    if concept not in ENTRIES:
        raise unknown("concept", concept, ENTRIES)
    place = CONCEPTS.index(concept)
    means = [
        torch.stack([model.embed(world.conditions(c)[None])[0] for c in SHOWN if c[place] == bit]).mean(0)
        for bit in (0, 1)
    ]
    way = strength * (means[1] - means[0])
    return lambda latent: latent + way


def patched(model: Velocity, later: Velocity) -> Velocity:
    """Return a copy of the model whose embedding of conditions is that of a later checkpoint."""
    mixed = copy.deepcopy(model)
    mixed.embed.load_state_dict(later.embed.state_dict())
    return mixed


def elicited(
    model: Velocity, world: Discs, corner: tuple[int, int], setting: Setting, count: int = 100, seed: int = 0
) -> Tensor:
    """Return images (count, 3, S, S) for a corner under a setting.

    ("prompt", concept, factor) prompts more strongly (1 is the plain prompt), ("latent", concept, strength) moves
    the latent vector (0 is the plain prompt).
    """
    how, concept, strength = setting
    plain = prompts(world, corner, count)
    if how == "prompt":
        return sample(model, over_prompt(plain, concept, strength), world.side, seed)
    if how != "latent":
        raise unknown("way to elicit", how, ("prompt", "latent"))
    return sample(model, plain, world.side, seed, change=latent_change(model, world, concept, strength))


def accuracies(world: Discs, x: Tensor, corner: tuple[int, int]) -> tuple[float, float, float]:
    """Return the shares of images that show a corner's colour, its size, and both."""
    right = world.bits(x) == torch.tensor(corner, dtype=torch.bool)
    colour, size = (float(v) for v in right.double().mean(0))
    return colour, size, float(right.all(1).double().mean())


SETTINGS: tuple[Setting, ...] = tuple(
    (how, concept, strength)
    for concept in CONCEPTS
    for how, strengths in (("prompt", (2.0, 3.0, 4.0)), ("latent", (0.5, 1.0, 2.0)))
    for strength in strengths
)


def curves(
    world: Discs, checkpoints: Mapping[int, Velocity], settings: Sequence[Setting], count: int, seed: int = 0
) -> dict[Setting, list[float]]:
    """Return the joint accuracy at the held-out corner at each checkpoint, by setting."""
    corner = CORNERS[-1]
    return {
        setting: [
            accuracies(world, elicited(m, world, corner, setting, count, seed), corner)[2]
            for m in checkpoints.values()
        ]
        for setting in settings
    }
