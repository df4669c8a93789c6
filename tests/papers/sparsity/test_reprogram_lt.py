"""Tickets' densities and rewinding, prompts pixel by pixel, label maps by brute force, calibration, the probe."""

import copy
from dataclasses import replace
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn

from workingpapers.catalog import claims, record
from workingpapers.data import Split
from workingpapers.engines.masks import masks_of, weights_of
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._firing import calibration_error
from workingpapers.papers.sparsity._prompting import (
    VisualPrompt,
    assigned,
    decayed,
    fit_prompt,
    frequencies,
    greedy,
)
from workingpapers.papers.sparsity._tickets import imp
from workingpapers.papers.sparsity.reprogram_lt import (
    Source,
    few_shot,
    interval,
    linear_probe,
    measured,
    reliability,
    reprogram_lt,
)
from workingpapers.tasks import fit, initialise, mlp


def data(count: int = 60, classes: int = 3, side: int = 5) -> Split:
    y = torch.arange(count) % classes
    x = 0.3 * torch.rand(count, 1, side, side)
    x[torch.arange(count), 0, y, y] = 1.0
    return Split(x, y, x, y, classes, "example")


def test_tickets_have_their_densities_and_begin_at_the_rewound_weights() -> None:
    split, build = data(), partial(mlp, [25, 20, 12, 3])
    found = imp(build, split, rounds=3, rate=0.3, rewind_step=2, epochs=4, seed=5)
    total = 25 * 20 + 20 * 12 + 12 * 3
    early = initialise(build, 5)
    fit(early, split, steps=2, lr=1e-3, seed=5)
    before = {n: w.abs().clone() for n, w in weights_of(found[0].model).items()}
    for number, ticket in enumerate(found):
        assert ticket.density == pytest.approx(0.7**number, abs=1 / total)
        nonzero = sum(int(w.count_nonzero()) for w in weights_of(ticket.model).values())
        assert nonzero / total == pytest.approx(0.7**number, abs=1 / total)
    first = masks_of(found[1].model)
    cut = np.sort(np.concatenate([w.numpy().ravel() for w in before.values()]))[total - round(0.7 * total)]
    assert all(torch.equal(first[n] != 0, before[n] >= float(cut)) for n in first)
    second = masks_of(found[2].model)
    assert all(bool((second[n] <= first[n]).all()) for n in first)
    again = copy.deepcopy(early)
    for name, layer in again.named_modules():
        if name in first:
            layer.register_forward_pre_hook(
                lambda m, a, k=first[name]: m.weight.data.mul_(k).sum() * 0 or None
            )
    fit(again, split, epochs=4, lr=1e-3, seed=5)
    for name, weight in weights_of(found[1].model).items():
        assert torch.allclose(weights_of(again)[name] * first[name], weight, atol=1e-6)


def test_a_prompt_pixel_by_pixel() -> None:
    prompt = VisualPrompt(3, 6, 2, mean=torch.tensor([0.5, 0.25]), std=2.0)
    nn.init.normal_(prompt.frame)
    x = torch.rand(2, 2, 3, 3)
    found = prompt(x)
    for c, mean in enumerate((0.5, 0.25)):
        for i in range(6):
            for j in range(6):
                inside = 2 <= i < 5 and 2 <= j < 5
                pixel = x[1, c, i - 2, j - 2] if inside else torch.sigmoid(prompt.frame[c, i, j])
                assert float(found[1, c, i, j].detach()) == pytest.approx(
                    (float(pixel.detach()) - mean) / 2, abs=1e-6
                )
    assert VisualPrompt(2, 4)(torch.ones(1, 1, 2, 2))[0, 0, 0, 0].item() == 0.5
    whole = VisualPrompt(3, 6, additive=True)
    nn.init.constant_(whole.frame, 0.25)
    assert torch.allclose(whole(torch.ones(1, 1, 3, 3)), torch.full((1, 1, 6, 6), 1.25))
    assert VisualPrompt(3, 6)(torch.rand(1, 1, 12, 12)).shape == (1, 1, 6, 6)


def test_black_frames_and_the_identity_map_are_the_source_model() -> None:
    split = data()
    source = Source(5, 8, 0.3, 0.7)
    model = initialise(partial(mlp, [64, 30, 3]), 1)
    framed = source.framed(split.x_train)
    inner = (nn.functional.pad(split.x_train, (2, 1, 2, 1)) - 0.3) / 0.7
    assert torch.allclose(framed, inner)
    fit(model, replace(split, x_train=framed, x_test=framed), epochs=30, lr=1e-2)
    prompt = source.prompt(1, "clamp")
    found = fit_prompt(model, prompt, split.x_train, split.y_train, 3, epochs=0)
    assert torch.equal(found(split.x_train), model(framed))
    mapped = fit_prompt(model, prompt, split.x_train, split.y_train, 3, epochs=1, lr=0.0)
    assert mapped.mapping.tolist() == [0, 1, 2]  # the trained source model predicts its own classes
    assert torch.equal(mapped(split.x_train), model(framed))


def test_label_maps() -> None:
    logits, labels = torch.randn(50, 5), torch.randint(3, (50,))
    counts = frequencies(logits, labels, 3)
    for t in range(3):
        for s in range(5):
            assert int(counts[t, s]) == int(((labels == t) & (logits.argmax(1) == s)).sum())
    counts = torch.tensor([[9, 8, 0], [7, 0, 0], [0, 3, 2]])
    assert greedy(counts).tolist() == [0, 2, 1]  # 9 first, then 3, and what is left
    best = max(permutations(range(3)), key=lambda p: sum(int(counts[t, s]) for t, s in enumerate(p)))
    assert assigned(counts).tolist() == list(best) == [1, 0, 2]
    wide = torch.randint(9, (4, 7))
    for way in (greedy, assigned):
        assert len(set(way(wide).tolist())) == 4
    assert greedy(torch.zeros(3, 4, dtype=torch.long)).tolist() == [0, 1, 2]


def test_training_a_prompt_learns_and_leaves_the_model_alone() -> None:
    split = data(90)
    other = replace(split, y_train=(split.y_train + 1) % 3)
    model = initialise(partial(mlp, [64, 30, 3]), 1)
    source = Source(5, 8)
    framed = source.framed(split.x_train)
    fit(model, replace(split, x_train=framed, x_test=framed), epochs=30, lr=1e-2)
    model.zero_grad()
    before = copy.deepcopy(model.state_dict())
    found = fit_prompt(model, source.prompt(1), split.x_train, other.y_train, 3, epochs=4, lr=0.1)
    assert found.mapping.tolist() == [2, 0, 1]
    assert float((found(split.x_train).argmax(1) == other.y_train).double().mean()) > 0.8
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert bool(found.prompt.frame.any())
    with pytest.raises(WorkingPapersError, match="4 classes cannot each have one of the model's 3"):
        fit_prompt(model, source.prompt(1), split.x_train, split.y_train, 4, epochs=1)


def test_calibration() -> None:
    chances = torch.full((40, 2), 0.25)
    chances[:20], chances[:20, 0], chances[20:, 0] = 0.0, 1.0, 0.75
    labels = torch.zeros(40, dtype=torch.long)
    labels[20:25] = 1  # of the 20 with confidence 0.75, 15 are right; the sure ones all
    chances[:20, 1] = 0.0
    assert calibration_error(chances, labels) == pytest.approx(0.0, abs=1e-12)
    rows = reliability(chances, labels)
    assert rows[14].tolist() == [1.0, 1.0, 0.5]
    assert rows[11].tolist() == [0.75, 0.75, 0.5]
    assert float(rows[:, 2].sum()) == 1.0
    drawn = torch.randn(200, 4).softmax(1)
    answers = torch.randint(4, (200,))
    rows = reliability(drawn, answers)
    assert float(((rows[:, 0] - rows[:, 1]).abs() * rows[:, 2]).sum()) == pytest.approx(
        calibration_error(drawn, answers)
    )


def test_the_probe_is_a_logistic_regression_on_frozen_features() -> None:
    split = data()
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 30), nn.ReLU(), nn.Linear(30, 7))
    before = copy.deepcopy(model.state_dict())
    found = linear_probe(model, split, epochs=60, lr=0.05)
    assert found(split.x_test).shape == (60, 3)
    assert torch.equal(found[1].weight, model[1].weight)
    assert float(measured(found, split.x_test, split.y_test)[0].double().mean()) > 0.9
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    with pytest.raises(WorkingPapersError, match="no linear layer"):
        linear_probe(nn.Flatten(), split)


def test_few_shots_intervals_and_the_rate() -> None:
    split = data(100, 4)
    few = few_shot(split, 3, seed=2)
    assert few.y_train.bincount().tolist() == [3, 3, 3, 3]
    assert len(few.x_test) == 100
    for x, y in zip(few.x_train, few.y_train, strict=True):
        assert bool(((split.x_train == x).flatten(1).all(1) & (split.y_train == y)).any())
    assert few_shot(split, None) is split
    values = torch.cat([torch.ones(300), torch.zeros(700)])
    mean, low, high = interval(values)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert mean == pytest.approx(0.3)
    assert (0.3 - low, high - 0.3) == pytest.approx((half, half), rel=0.2)
    assert [decayed(d) for d in (0.0, 0.49, 0.5, 0.71, 0.72, 1.0)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_the_study_compares_ticket_and_dense() -> None:
    split, source = data(30), Source(5, 6)
    dense = initialise(partial(mlp, [36, 20, 3]), 0)
    dead = copy.deepcopy(dense)
    with torch.no_grad():
        dead[1].weight.zero_()
        dead[1].bias.zero_()
    found = reprogram_lt(dense, {0.0: dead}, {"a": split}, source, (4, None), epochs=2)
    keys = [
        f"{m} {w} a {d} {n}"
        for m in ("accuracy", "ece")
        for w in ("lp", "vp")
        for d in (1, 0)
        for n in (4, "all")
    ]
    assert set(found.numbers) == set(keys)
    assert found.numbers["accuracy lp a 0 all"] == pytest.approx(1 / 3)
    gap = found.numbers["accuracy vp a 1 all"] - found.numbers["accuracy vp a 0 all"]
    assert found.details["differences"]["vp a 0 all"][0] == pytest.approx(gap)


def test_sentences() -> None:
    with pytest.raises(WorkingPapersError, match="side 9 does not stand in a canvas of side 8"):
        VisualPrompt(9, 8)
    with pytest.raises(WorkingPapersError, match="the nearest name is 'sigmoid'"):
        VisualPrompt(2, 4, squash="sigmoidal")
    with pytest.raises(WorkingPapersError, match="rate is in"):
        imp(partial(mlp, [25, 3]), data(), rate=1.0)
    with pytest.raises(WorkingPapersError, match="label mapping"):
        fit_prompt(
            nn.Flatten(), VisualPrompt(2, 4), torch.ones(1, 1, 2, 2), torch.zeros(1).long(), 1, mapping="best"
        )


def test_claims_are_those_of_the_record() -> None:
    assert [c.says for c in claims("reprogram_lt").values()] == [
        c["says"] for c in record("reprogram_lt").claims
    ]
