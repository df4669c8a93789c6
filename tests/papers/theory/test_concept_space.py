"""Concept space: discs read back, signals, flows by hand, elicitation that is nothing at its neutral strength."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from workingpapers.catalog import claims, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._discs import CORNERS, SHOWN, Discs, noiseless, trained_reader
from workingpapers.papers.theory._elicit import (
    accuracies,
    curves,
    elicited,
    latent_change,
    over_prompt,
    patched,
    prompts,
)
from workingpapers.papers.theory._flows import Velocity, logarithmic, sample, trained
from workingpapers.papers.theory.concept_space import Track, track, turn
from workingpapers.tasks import initialise

# discs


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("side", [12, 32])
@pytest.mark.parametrize("background", [0.0, 0.1])
def test_colour_and_area_are_read_back(square: bool, side: int, background: float) -> None:
    world = Discs(0.6, 0.3, side, square=square, background=background)
    generator = torch.Generator().manual_seed(0)
    for corner in CORNERS:
        moved = 0.02 * torch.randn(2, 30, generator=generator)
        moved = torch.stack([moved[0], 0 * moved[0], -moved[0], moved[1]], 1)
        condition = world.conditions(corner) + moved
        centres = 2 * torch.rand(30, 2, generator=generator) - 1
        colours, area = world.read(world.render(condition, centres))
        wanted = condition[:, :3] + torch.tensor([0.5, 0.25, 0.5])
        assert float((colours - wanted).abs().max()) < 0.02
        true = math.pi * (world.radius * (1 + condition[:, 3])).square()
        assert float((area / true - 1).abs().max()) < 0.05


def test_corners_show_their_concepts_also_with_noise() -> None:
    world = Discs()
    generator = torch.Generator().manual_seed(1)
    for corner in CORNERS:
        x, given = world.draw(corner, 200, generator)
        assert (x.shape, given.shape) == ((200, 3, 12, 12), (200, 4))
        assert accuracies(world, x, corner)[2] > 0.97
        assert accuracies(world, x, (1 - corner[0], corner[1]))[2] == pytest.approx(0, abs=0.02)
        assert float((given.mean(0) - world.conditions(corner)).abs().max()) < 0.01
        wanted = torch.tensor([math.hypot(0.02, 0.01), 0.01, math.hypot(0.02, 0.01), math.hypot(0.02, 0.01)])
        torch.testing.assert_close(given.std(0), wanted, rtol=0.25, atol=0)


def test_shares_right() -> None:
    world = noiseless(Discs())
    x = torch.cat([world.render(world.conditions(c)[None]) for c in ((0, 0), (0, 1), (1, 1), (1, 1))])
    assert accuracies(world, x, (1, 1)) == (0.5, 0.75, 0.5)
    assert accuracies(world, x, (0, 1)) == (0.5, 0.75, 0.25)


def test_signals() -> None:
    world = Discs(0.4, 0.3)
    assert Discs(0.0, 0.3).signal("colour") == 0
    assert Discs(0.3, 0.0).signal("size") == 0
    assert replace(world, colour_gap=0.8).signal("colour") == pytest.approx(
        2 * world.signal("colour"), rel=1e-5
    )
    assert Discs(0.3, 0.6).signal("size") > Discs(0.3, 0.3).signal("size")
    one, other = (world.render(world.conditions(c)[None]) for c in ((0, 0), (1, 0)))
    large = float((one - other).norm())
    one, other = (world.render(world.conditions(c)[None]) for c in ((1, 1), (0, 1)))  # the other way round
    assert world.signal("colour") == pytest.approx((large + float((one - other).norm())) / 2, rel=1e-6)
    with pytest.raises(WorkingPapersError, match="a concept is one of colour, size"):
        world.signal("shape")


def test_a_trained_reader_agrees_with_the_closed_form() -> None:
    world = Discs(0.5, 0.4)
    read = trained_reader(world, count=150, steps=100)
    generator = torch.Generator().manual_seed(9)
    for corner in CORNERS:
        x = world.draw(corner, 50, generator)[0]
        assert float((read(x) == world.bits(x)).double().mean()) > 0.95


def test_refusals() -> None:
    for bad in ({"colour_gap": 1.5}, {"size_gap": 0.9}, {"side": 4}):
        with pytest.raises(WorkingPapersError, match="discs need a colour gap"):
            Discs(**bad)
    with pytest.raises(WorkingPapersError, match="no concept is named 'hue'"):
        over_prompt(torch.zeros(1, 4), "hue", 2.0)
    with pytest.raises(WorkingPapersError, match="no concept is named"):
        latent_change(small(), Discs(side=6), "hue", 1.0)
    with pytest.raises(WorkingPapersError, match="no way to elicit"):
        elicited(small(), Discs(side=6), (1, 1), ("beg", "size", 1.0), 2)


# flows


def small(unet: bool = False, seed: int = 0) -> Velocity:
    return initialise(lambda: Velocity(6, 8, 2, unet), seed).eval()


class Straight(Velocity):
    """The exact velocity towards one image: (image - x) / (1 - t)."""

    def __init__(self, target: Tensor) -> None:
        super().__init__(6, 8, 1)
        self.target = target

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, change: object = None) -> Tensor:
        return (self.target - x) / (1 - t[:, None, None, None])


def test_the_exact_velocity_ends_at_the_image() -> None:
    target = torch.randn(3, 6, 6)
    found = sample(Straight(target), torch.zeros(4, 4), 6, seed=1, steps=7)
    torch.testing.assert_close(found, target.expand(4, 3, 6, 6), atol=1e-5, rtol=0)


def test_samples_start_from_fixed_noise() -> None:
    model, condition = small(), torch.zeros(3, 4)
    assert torch.equal(sample(model, condition, 6, 1), sample(model, condition, 6, 1))
    assert not torch.equal(sample(model, condition, 6, 1), sample(model, condition, 6, 2))


@pytest.mark.parametrize("unet", [False, True])
def test_velocities_depend_on_all_they_are_given(unet: bool) -> None:
    model = small(unet)
    x, t, condition = torch.randn(2, 3, 6, 6), torch.tensor([0.2, 0.7]), torch.randn(2, 4)
    out = model(x, t, condition)
    assert out.shape == x.shape
    for other in (model(x + 1, t, condition), model(x, t + 0.1, condition), model(x, t, condition + 1)):
        assert not torch.allclose(other, out)
    assert torch.equal(model(x, t, condition, lambda latent: latent), out)
    torch.testing.assert_close(model(x, t, condition)[:1], model(x[:1], t[:1], condition[:1]))


def test_training_lowers_the_loss_and_checkpoints_are_copies() -> None:
    world = Discs(side=6)
    saved = dict(trained(world, [0, 1, 60], batch=32, lr=1e-2, width=32, depth=2))
    assert list(saved) == [0, 1, 60]
    again = dict(trained(world, [0, 60], batch=32, lr=1e-2, width=32, depth=2))
    for name, value in saved[60].state_dict().items():
        torch.testing.assert_close(value, again[60].state_dict()[name])
    generator = torch.Generator().manual_seed(3)
    x, condition = world.draw(SHOWN[0], 200, generator)
    noise, t = torch.randn(x.shape, generator=generator), torch.full((200,), 0.5)

    def loss(model: Velocity) -> float:
        return float((model((x + noise) / 2, t, condition) - (x - noise)).square().mean().detach())

    assert loss(saved[60]) < 0.95 * loss(saved[0])


def test_logarithmic_steps() -> None:
    steps = logarithmic(1000, 12)
    assert (steps[0], steps[1], steps[-1]) == (0, 10, 1000)
    ratios = [b / a for a, b in pairwise(steps[1:])]
    assert max(ratios) - min(ratios) < 0.15
    assert logarithmic(5, 4) == [0, 5]


# elicitation


def test_neutral_strengths_are_the_plain_prompt() -> None:
    model, world = small(), Discs(side=6)
    plain = sample(model, prompts(world, (1, 1), 5), 6, seed=4)
    for concept in ("colour", "size"):
        assert torch.equal(elicited(model, world, (1, 1), ("prompt", concept, 1.0), 5, 4), plain)
        assert torch.equal(elicited(model, world, (1, 1), ("latent", concept, 0.0), 5, 4), plain)
        assert not torch.equal(elicited(model, world, (1, 1), ("prompt", concept, 3.0), 5, 4), plain)


def test_stronger_prompts_move_one_concept() -> None:
    condition = torch.tensor([[0.1, 0.2, -0.3, 0.4]])
    assert over_prompt(condition, "colour", 2.0).tolist()[0] == pytest.approx([0.2, 0.4, -0.6, 0.4])
    assert over_prompt(condition, "size", 3.0).tolist()[0] == pytest.approx([0.1, 0.2, -0.3, 1.2])
    assert condition.tolist()[0] == pytest.approx([0.1, 0.2, -0.3, 0.4])


def test_the_latent_way_goes_between_concept_means() -> None:
    """Colour is 1 at one shown corner and 0 at two."""
    model, world = small(), Discs(side=6)
    h = {c: model.embed(world.conditions(c)[None])[0].detach() for c in SHOWN}
    moved = latent_change(model, world, "colour", 1.5)(torch.zeros(64))
    torch.testing.assert_close(moved, 1.5 * (h[1, 0] - (h[0, 0] + h[0, 1]) / 2))
    moved = latent_change(model, world, "size", 1.0)(torch.ones(64))
    torch.testing.assert_close(moved, 1 + h[0, 1] - (h[0, 0] + h[1, 0]) / 2)


def test_patching_takes_the_embedding_alone() -> None:
    early, later = small(seed=1), small(seed=2)
    mixed = patched(early, later)
    for name, value in mixed.state_dict().items():
        source = later if name.startswith("embed") else early
        assert torch.equal(value, source.state_dict()[name])
    assert torch.equal(patched(early, early).embed[0].weight, early.embed[0].weight)


# tracks


class Painter(Velocity):
    """Ends at the disc that its prompt asks for."""

    def __init__(self, world: Discs) -> None:
        super().__init__(world.side, 8, 1)
        self.world = world

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, change: object = None) -> Tensor:
        return (self.world.render(condition) - x) / (1 - t[:, None, None, None])


def test_a_perfect_painter_is_tracked_to_the_corners() -> None:
    world = Discs(0.6, 0.3)
    found = track(world, {0: small_for(world), 7: Painter(world)}, count=4)
    assert found.accuracy.shape == (2, 4, 3)
    assert bool((found.accuracy[1] == 1).all())
    wanted = torch.tensor([[-0.6, 1.15], [-0.6, 0.85], [0.6, 1.15], [0.6, 0.85]])
    torch.testing.assert_close(found.means[1], wanted, atol=0.02, rtol=0)
    assert found.learnt("colour") == 7
    curve = curves(world, {0: Painter(world)}, (("prompt", "size", 2.0),), 4)
    assert curve["prompt", "size", 2.0] == [1.0]


def small_for(world: Discs) -> Velocity:
    return initialise(lambda: Velocity(world.side, 8, 1), 0).eval()


def test_the_step_of_learning_looks_at_shown_corners_alone() -> None:
    accuracy = torch.zeros(3, 4, 3)
    accuracy[1, 3] = 1  # the held-out corner counts for nothing
    accuracy[2, :3, 0] = 0.9
    found = Track([0, 10, 40], accuracy, torch.zeros(3, 4, 2))
    assert found.learnt("colour") == 40
    assert math.isinf(found.learnt("size"))


def test_the_sharpest_turn() -> None:
    path = torch.tensor([[0.0, 0], [1, 0.1], [2, 0], [2, 1], [2, 2]])
    assert turn([0, 10, 20, 30, 40], path) == 20
    assert turn([0, 1, 2, 3], torch.tensor([[0.0, 0], [0, 0], [1, 1], [0, 0]])) == 2
    with pytest.raises(WorkingPapersError, match="at least 3 points"):
        turn([0, 1], path[:2])


def test_claims_say_what_the_record_says() -> None:
    said = {c["says"] if isinstance(c, dict) else c.says for c in record("concept_space").claims}
    assert {c.says for c in claims("concept_space").values()} == said
