"""Sparseland: scores against finite differences, counts that stay, schedules, tickets that are rewound."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import make, records
from workingpapers.data import Split
from workingpapers.engines.masks import density, masks_of, prunable
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.sparsity import _transforms
from workingpapers.papers.sparsity._questions import QUESTIONS, accuracy
from workingpapers.papers.sparsity._trainers import SET, Gradual, RigL, Static, TwoFour
from workingpapers.papers.sparsity.sparseland import METHODS, Sparseland

DOUBLE = torch.float64


def small() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(DOUBLE)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=DOUBLE))
    return model, torch.randn(20, 4, generator=generator, dtype=DOUBLE), torch.arange(20) % 3


def test_grasp_scores_are_the_change_of_the_squared_gradient_norm() -> None:
    model, x, y = small()

    def norm() -> float:
        return float(sum((g * g).sum() for g in _transforms.gradients(model, x, y)))

    scores = _transforms.grasp_scores(model, x, y)
    weight, step = model[0].weight, 1e-5
    for place in ((0, 0), (3, 2), (5, 1)):
        value = float(weight.detach()[place])
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] = value + sign * step
            ends.append(norm())
        with torch.no_grad():
            weight[place] = value
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(scores["0"][place]) == pytest.approx(-value * slope / 2, rel=1e-4)


def test_grasp_keeps_what_the_flow_needs() -> None:
    model, x, y = small()
    scores = torch.cat([s.flatten() for s in _transforms.grasp_scores(model, x, y).values()])
    masks = torch.cat(
        [m.flatten() for m in masks_of(make("sparseland.grasp", density=0.5)(model, x, y)).values()]
    )
    assert float(scores[masks].max()) <= float(scores[~masks].min())


def test_snip_keeps_the_weights_that_move_the_loss() -> None:
    model, x, y = small()
    weights = [model[0].weight, model[2].weight]
    found = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
    scores = torch.cat([(w * g).abs().flatten() for w, g in zip(weights, found, strict=True)]).detach()
    sparse = _transforms.snip(model, x, y, density=10 / 42)
    masks = torch.cat([m.flatten() for m in masks_of(sparse).values()])
    assert int(masks.sum()) == 10
    assert set(scores.topk(10).indices.tolist()) == set(masks.nonzero()[:, 0].tolist())


def test_synflow_conserves_flow_and_cuts_no_layer() -> None:
    model = nn.Sequential(
        nn.Linear(5, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 4, bias=False),
        nn.ReLU(),
        nn.Linear(4, 2, bias=False),
    )
    sums = [float(s.sum()) for s in _transforms.synflow_scores(model, torch.zeros(1, 5)).values()]
    first, second, third = (m.weight.detach().abs() for m in (model[0], model[2], model[4]))
    assert sums == pytest.approx([float((third @ second @ first).sum())] * 3, rel=1e-5)
    sparse = _transforms.synflow(model, torch.zeros(1, 5), density=0.06)
    assert min(int(m.sum()) for m in masks_of(sparse).values()) >= 1


def test_wanda_ranks_each_row_by_weight_times_input() -> None:
    model, x, _ = small()
    sparse = _transforms.wanda(model, x, 0.5)
    mask = masks_of(sparse)["0"]
    for row in range(6):
        scores = model[0].weight[row].abs() * x.square().sum(0).sqrt()
        assert set(mask[row].nonzero()[:, 0].tolist()) == set(scores.topk(2).indices.tolist())


def test_slimming_switches_channels_off() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, -2.0, 0.5, 1.0]))
        model[1].bias.fill_(1.0)
    out = _transforms.slimming(model, 0.5)(torch.randn(2, 1, 3, 3))
    assert [bool((out[:, c] == 0).all()) for c in (0, 2)] == [True, True]
    assert float(_transforms.slimming_penalty(model, 0.1).detach()) == pytest.approx(0.36)


def test_a_ticket_is_the_first_weights_under_the_last_masks() -> None:
    model, _, _ = small()

    def train(m: nn.Module) -> None:
        with torch.no_grad():
            for layer in prunable(m).values():
                layer.weight.add_(
                    torch.where(
                        layer.weight != 0,
                        5 * torch.arange(layer.weight.numel()).reshape(layer.weight.shape),
                        0,
                    )
                )

    found = _transforms.imp(model, train, density=0.25, rounds=2)
    assert density(found) == pytest.approx(0.25, abs=0.02)
    for name, layer in prunable(found).items():
        mask = masks_of(found)[name]
        assert torch.equal(layer.weight[mask], dict(model.named_modules())[name].weight[mask])
    last = masks_of(found)["0"].flatten()
    assert bool(last[12:].float().mean() > last[:12].float().mean())  # later weights grew most


@pytest.mark.parametrize("kind", [SET, RigL])
def test_moving_masks_keep_their_counts(kind: type[SET]) -> None:
    model, x, y = small()
    trainer = kind(density=0.4, total=100, seed=1)
    trainer.fit(model.float(), x.float(), y, steps=1)
    first = {n: m.clone() for n, m in trainer.masks.items()}
    for _ in range(8):
        trainer.fit(model, x.float(), y, steps=10)
        assert {n: int(m.sum()) for n, m in trainer.masks.items()} == {
            n: int(m.sum()) for n, m in first.items()
        }
        for name, layer in prunable(model).items():
            assert bool((layer.weight[trainer.masks[name] == 0] == 0).all())
    assert any(not torch.equal(trainer.masks[n], first[n]) for n in first)


def test_rigl_grows_by_gradient_and_drops_by_size() -> None:
    trainer = RigL(total=100)
    trainer.done = 10
    layer = nn.Linear(10, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[9.0, 8, 7, 0.1, 6, 5, 0, 0, 0, 0]]))
    layer.weight.grad = torch.tensor([[0.0, 0, 0, 99, 0, 0, 1, 4, 2, 3]])
    trainer.masks = {"0": torch.tensor([[1.0] * 6 + [0.0] * 4])}
    assert trainer.update({"0": layer})
    moved = round(trainer.fraction() * 6)
    assert moved == 2
    assert trainer.masks["0"].tolist() == [[1, 1, 1, 0, 1, 0, 0, 1, 0, 1]]
    trainer.done = 75
    assert trainer.fraction() == pytest.approx(0)
    assert not trainer.update({"0": layer})


def test_gradual_follows_the_cubic() -> None:
    trainer = Gradual(density=0.1, total=100)
    assert trainer.sparsity(0) == 0
    assert trainer.sparsity(75) == trainer.sparsity(100) == pytest.approx(0.9)
    assert trainer.sparsity(25) == pytest.approx(0.9 * (1 - (2 / 3) ** 3))
    model, x, y = small()
    trainer.fit(model.float(), x.float(), y, steps=100)
    assert sum(int(layer.weight.count_nonzero()) for layer in prunable(model).values()) == round(0.1 * 42)


def test_two_of_four_while_training() -> None:
    model, x, y = small()
    TwoFour(total=20, lr=0.05).fit(model.float(), x.float(), y, steps=20)
    assert model[0].weight.count_nonzero(dim=1).tolist() == [2] * 6
    assert int(model[2].weight.count_nonzero()) == 18  # six inputs: four does not divide them


def test_the_map_names_real_entries_and_its_own_parts() -> None:
    survey = Sparseland()
    for ids in survey.branches.values():
        assert all(id.split(".")[0] in records() for id in ids)
    assert all(make(id) is not None for id in METHODS)
    assert {"post-training", "during training", "before training", "N:M", "channel"} <= set(survey.branches)
    sparse = {r.id for r in records().values() if r.family == "sparsity"} - {"sparseland"}
    assert sparse <= {id for ids in survey.branches.values() for id in ids}


def blobs() -> Split:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    x = torch.randn(120, 8, generator=generator) + 2 * F.one_hot(y, 8)
    return Split(x[:80], y[:80], x[80:], y[80:], 3, "blobs")


def test_questions_answer_in_tables() -> None:
    assert len(QUESTIONS) == 10
    survey = Sparseland()
    table = survey.answer("layer collapse", blobs(), density=0.05)
    assert set(table) == {"snip", "grasp", "synflow", "magnitude"}
    assert 0 <= min(table.values()) <= 0.2
    assert survey.answer("FLOPs or wall time", blobs(), density=0.05)["FLOPs"] == pytest.approx(
        0.05, abs=1e-3
    )
    assert accuracy("static", blobs(), 0.1, 60, 0) > 0.6
    assert Static(density=0.1).density == 0.1


def test_bad_input_is_named() -> None:
    with pytest.raises(UnknownName, match="question"):
        Sparseland().answer("layer colapse", blobs())
    with pytest.raises(UnknownName, match="method"):
        accuracy("rgil", blobs(), 0.1, 1, 0)
    with pytest.raises(WorkingPapersError, match="above 0"):
        RigL(density=2.0)
    with pytest.raises(WorkingPapersError, match="no 2:4 mask fits"):
        _transforms.two_four(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(WorkingPapersError, match="no batch normalisation"):
        _transforms.slimming(nn.Sequential(nn.Linear(3, 2)))
