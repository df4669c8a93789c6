"""Masks: exact counts, solved densities, gradients that stay off, and layers that stay themselves."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from workingpapers.engines.masks import (
    apply_masks,
    density,
    keep_by_score,
    layer_densities,
    masked,
    masks_of,
    n_of_m,
    prunable,
    random_masks,
    remove_masks,
    shuffled,
    weights_of,
)
from workingpapers.errors import UnknownName, WorkingPapersError

SHAPES = {"conv": (32, 16, 3, 3), "narrow": (4, 3, 3, 3), "wide": (300, 784), "out": (10, 300)}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


@pytest.mark.parametrize("way", ["uniform", "er", "erk"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.95, 1.0])
def test_the_total_density_is_the_one_asked_for(way: str, share: float) -> None:
    sizes = {n: math.prod(s) for n, s in SHAPES.items()}
    found = layer_densities(SHAPES, share, way)
    assert sum(found[n] * sizes[n] for n in SHAPES) == pytest.approx(share * sum(sizes.values()))
    assert all(0 < d <= 1 for d in found.values())
    weights = {n: torch.zeros(s) for n, s in SHAPES.items()}
    masks = random_masks(weights, share, torch.Generator().manual_seed(0), way)
    kept = sum(int(m.sum()) for m in masks.values())
    assert abs(kept - share * sum(sizes.values())) <= len(SHAPES)


def test_erdos_renyi_by_the_formula() -> None:
    er, erk = (layer_densities(SHAPES, 0.02, way) for way in ("er", "erk"))
    open_er = [n for n in SHAPES if er[n] < 1]
    eps = {n: er[n] / ((SHAPES[n][0] + SHAPES[n][1]) / (SHAPES[n][0] * SHAPES[n][1])) for n in open_er}
    assert len(open_er) > 1
    assert max(eps.values()) == pytest.approx(min(eps.values()))
    eps = {n: erk[n] / (sum(SHAPES[n]) / math.prod(SHAPES[n])) for n in SHAPES if erk[n] < 1}
    assert len(eps) > 1
    assert max(eps.values()) == pytest.approx(min(eps.values()))


def test_the_largest_scores_stay() -> None:
    scores = {"a": torch.tensor([[5.0, 1.0]]), "b": torch.tensor([[4.0, 3.0], [2.0, 0.0]])}
    found = keep_by_score(scores, 0.5)
    assert found["a"].tolist() == [[1, 0]]
    assert found["b"].tolist() == [[1, 1], [0, 0]]
    own = keep_by_score(scores, 0.5, "uniform")
    assert (own["a"].tolist(), own["b"].tolist()) == ([[1, 0]], [[1, 1], [0, 0]])
    ties = keep_by_score({"a": torch.ones(3, 7)}, 10 / 21)
    assert int(ties["a"].sum()) == 10


@pytest.mark.parametrize("shape", [(5, 8), (3, 8, 3, 3)])
def test_two_of_four_along_the_inputs(shape: tuple[int, ...]) -> None:
    scores = torch.rand(shape)
    mask = n_of_m(scores)
    groups = mask.movedim(1, -1).reshape(-1, 4)
    assert groups.sum(1).unique().tolist() == [2.0]
    values = scores.movedim(1, -1).reshape(-1, 4)
    assert bool(((values + 9 * (1 - groups)).amin(1) >= (values * (1 - groups)).amax(1)).all())
    with pytest.raises(WorkingPapersError, match="2:4 masks take"):
        n_of_m(torch.rand(2, 6))


def test_a_masked_layer_computes_with_the_weights_that_are_on() -> None:
    model, x = network(), torch.randn(3, 2, 4, 4)
    masks = random_masks(weights_of(model), 0.5, torch.Generator().manual_seed(0))
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in prunable(reference).items():
            layer.weight.mul_(masks[name])
    torch.testing.assert_close(apply_masks(model, masks)(x), reference(x))
    assert density(model) == pytest.approx(sum(float(m.sum()) for m in masks.values()) / (72 + 80))
    assert isinstance(model[3], nn.Linear)
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(copied(x), model(x))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    for name, layer in prunable(model).items():
        assert bool((layer.weight[masks[name] == 0] == 0).all())
        assert bool((layer.weight[masks[name] == 1] != 0).all())
    after = model(x)
    assert torch.equal(remove_masks(model)(x), after)
    assert not masked(model)
    assert type(model[3]) is nn.Linear


def test_straight_through_gradients_ignore_the_mask() -> None:
    model, x = nn.Sequential(nn.Linear(4, 2)), torch.randn(5, 4)
    mask = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]])
    apply_masks(model, {"0": mask})
    model[0].straight_through = True
    model(x).sum().backward()
    torch.testing.assert_close(model[0].weight.grad, x.sum(0).expand(2, 4))
    model[0].weight.grad = None
    model[0].straight_through = False
    model(x).sum().backward()
    torch.testing.assert_close(model[0].weight.grad, x.sum(0).expand(2, 4) * mask)


def test_shuffling_keeps_each_layers_count() -> None:
    masks = random_masks(
        {n: torch.zeros(s) for n, s in SHAPES.items()}, 0.1, torch.Generator().manual_seed(0)
    )
    mixed = shuffled(masks, torch.Generator().manual_seed(1))
    assert {n: int(m.sum()) for n, m in mixed.items()} == {n: int(m.sum()) for n, m in masks.items()}
    assert not torch.equal(mixed["wide"], masks["wide"])


def test_bad_input_is_named() -> None:
    with pytest.raises(WorkingPapersError, match="no Linear or Conv2d"):
        prunable(nn.ReLU())
    with pytest.raises(WorkingPapersError, match="shape of its weight"):
        apply_masks(network(), {"0": torch.ones(2, 2)})
    with pytest.raises(UnknownName, match="layer that can be masked"):
        apply_masks(network(), {"9": torch.ones(2, 2)})
    with pytest.raises(UnknownName, match="allocation"):
        layer_densities(SHAPES, 0.1, "erq")
    with pytest.raises(WorkingPapersError, match="above 0 and at most at 1"):
        layer_densities(SHAPES, 0.0)
    assert masks_of(network()) == {}
