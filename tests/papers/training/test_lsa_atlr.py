"""LSA and AT-LR: the measure by hand and its invariances, attacks within their box, the loss's parts, refusals."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.training._attacks import Watch, accuracy, fgsm, pgd, shifts
from workingpapers.papers.training._sustainability import (
    comparison_measures,
    computing_layers,
    lsa,
    vulnerable,
)
from workingpapers.papers.training.lsa_atlr import ATLR, moons, robustness
from workingpapers.tasks import cnn, mlp


def batch(count: int = 40, width: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(count, width), torch.arange(count) % 3


def towards_ones(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """An attack that is known: everything moves by 0.3."""
    return x + 0.3


def test_the_measure_by_hand_at_every_layer() -> None:
    model, (x, y) = mlp([4, 6, 3]), batch()
    first, last = model[1], model[3]
    runs = []
    with torch.no_grad():
        for inputs in (x, x + 0.3):
            z = first(inputs)
            runs.append({"1": z, "2": z.relu(), "3": last(z.relu())})
    found = comparison_measures(model, x, y, towards_ones)
    assert list(found) == ["1", "2", "3"]
    for name, values in found.items():
        clean, moved = runs[0][name], runs[1][name]
        torch.testing.assert_close(values, (moved - clean).norm(dim=1) / (clean.norm(dim=1) + 1e-8))
    assert lsa(model, x, y, towards_ones).numbers["2"] == pytest.approx(float(found["2"].mean()))


def test_images_count_as_a_whole() -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.randn(5, 1, 6, 6)
    found = comparison_measures(model, x, torch.zeros(5).long(), towards_ones)["0"]
    with torch.no_grad():
        a, b = model[0](x).flatten(1), model[0](x + 0.3).flatten(1)
    torch.testing.assert_close(found, (b - a).norm(dim=1) / a.norm(dim=1))


def test_nothing_moves_without_an_attack_and_scale_does_not_count() -> None:
    model, (x, y) = mlp([4, 6, 3]), batch()
    with torch.no_grad():
        model[1].bias.add_(
            2.0
        )  # no input turns every unit off, where a shift has nothing to be measured against
    assert set(lsa(model, x, y, pgd(0.0)).numbers.values()) == {0.0}
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for p in (scaled[1].weight, scaled[1].bias, scaled[3].bias):
            p.mul_(8.0)
    one, other = (lsa(m, x, y, towards_ones).numbers for m in (model, scaled))
    assert other == pytest.approx(one, rel=1e-5)


def test_an_orthogonal_layer_moves_as_its_input() -> None:
    layer, (x, y) = nn.Linear(4, 4, bias=False), batch()
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.qr(torch.randn(4, 4))[0])
    found = comparison_measures(nn.Sequential(layer), x, y, towards_ones)["0"]
    torch.testing.assert_close(found, 0.3 * 2 / x.norm(dim=1))


def test_thresholds() -> None:
    means = {"a": 0.1, "b": 0.5, "c": 0.2, "d": 1.2}
    assert vulnerable(means) == ["d"]  # mean 0.5, which b does not exceed
    assert vulnerable({**means, "b": 0.6}) == ["d", "b"]
    assert vulnerable({**means, "b": 0.6}, "mean+std") == ["d"]
    assert vulnerable(means, 3) == ["d", "b", "c"]


def test_layers_that_compute_something() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 4), nn.Dropout(), nn.Sequential(nn.ReLU(), nn.Identity()), nn.Linear(4, 2)
    )
    assert computing_layers(model) == ["1", "3.0", "4"]


@pytest.mark.parametrize("attack", [pgd(0.25), pgd(0.25, 3, clip=(-0.5, 0.5)), fgsm(0.25)])
def test_attacks_stay_in_their_box_and_raise_the_loss(attack: Any) -> None:
    torch.manual_seed(0)
    model, (x, y) = mlp([4, 20, 3]), batch(200)
    x = x.clamp(-0.5, 0.5)
    before = {n: p.grad for n, p in model.named_parameters()}
    moved = attack(model.train(), x, y)
    assert float((moved - x).abs().max()) <= 0.25 + 1e-6
    assert model.training
    assert {n: p.grad for n, p in model.named_parameters()} == before
    with torch.no_grad():
        noise = x + 0.25 * torch.randn_like(x).sign()
        losses = [float(F.cross_entropy(model(inputs), y)) for inputs in (x, noise, moved)]
    assert losses[2] > max(losses[:2])
    if attack is not None and float(moved.abs().max()) > 0.5:
        torch.testing.assert_close(fgsm(0.0)(model, x, y), x)


def test_on_a_linear_model_the_attack_is_known() -> None:
    model, x, y = nn.Linear(3, 2), torch.zeros(2, 3), torch.tensor([0, 1])
    apart = (model.weight[1] - model.weight[0]).detach().sign()
    wanted = torch.stack([apart, -apart]) * 0.1
    torch.testing.assert_close(fgsm(0.1)(model, x, y), wanted)
    torch.testing.assert_close(pgd(0.1)(model, x, y), wanted)


@pytest.mark.parametrize("base", ["at", "trades"])
def test_the_loss_has_the_parts_of_the_equation(base: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = mlp([4, 6, 3]), batch()
    moved = x + 0.3
    trainer = ATLR(gamma=0.7, layers=["1", "3"], base=base)
    trainer.chosen = trainer.choose(model, x, y)
    found = trainer.loss(model, x, y, moved)
    measure = comparison_measures(model, x, y, towards_ones)
    penalty = 0.7 * (measure["1"].mean() + measure["3"].mean())
    plain, attacked = model(x).detach(), model(moved).detach()
    wanted = F.cross_entropy(attacked, y)
    if base == "trades":
        p, q = plain.softmax(1), attacked.softmax(1)
        wanted = F.cross_entropy(plain, y) + 6 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(found.detach(), wanted + penalty)
    trainer.gamma = 0.0
    trainer.chosen = trainer.choose(model, x, y)
    if base == "at":
        torch.testing.assert_close(trainer.loss(model, x, y, moved).detach(), F.cross_entropy(attacked, y))


def test_without_weight_it_is_plain_adversarial_training() -> None:
    start, (x, y) = mlp([4, 8, 3]), batch()
    losses = {}
    for layers, gamma in (("vulnerable", 0.0), ("none", 0.5), ("vulnerable", 0.5)):
        model = copy.deepcopy(start)
        losses[layers, gamma] = ATLR(gamma=gamma, layers=layers, lr=0.01).fit(model, x, y, steps=5)
    assert losses["vulnerable", 0.0] == losses["none", 0.5]
    assert losses["vulnerable", 0.5][0] > losses["none", 0.5][0]


def test_the_penalty_reaches_the_layers_through_both_runs() -> None:
    model, (x, y) = mlp([4, 6, 3]).double(), batch()
    x = x.double()
    with Watch(model, ["2"]) as moved:
        model(x + 0.3)
    with Watch(model, ["2"]) as clean:
        model(x)
    value = shifts(clean, moved)["2"].mean()
    (slope,) = torch.autograd.grad(value, model[1].weight)
    step = torch.randn_like(slope) * 1e-6
    values = []
    for sign in (1, -1):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[1].weight.add_(sign * step)
        values.append(float(comparison_measures(other, x, y, towards_ones)["2"].mean()))
    assert float((slope * step).sum()) == pytest.approx((values[0] - values[1]) / 2, rel=1e-3)
    assert not model[2]._forward_hooks


def test_dead_representations_have_a_gradient() -> None:
    same = torch.zeros(3, 4, requires_grad=True)
    value = shifts({"a": same}, {"a": same * 1})["a"].sum()
    (slope,) = torch.autograd.grad(value, same)
    assert value == 0
    assert torch.equal(slope, torch.zeros(3, 4))


def test_choices_of_layers() -> None:
    torch.manual_seed(1)
    model, (x, y) = mlp([4, 10, 10, 3]), batch()
    chosen = {
        c: ATLR(layers=c, attack=towards_ones).choose(model, x, y) for c in ("vulnerable", "least", "all")
    }
    means = lsa(model, x, y, towards_ones).numbers
    assert chosen["vulnerable"] == vulnerable(means)
    mvl, least = chosen["vulnerable"], chosen["least"]
    assert len(least) == min(len(mvl), len(means) - len(mvl)) > 0
    assert max(means[n] for n in least) < min(means[n] for n in mvl)
    assert set(chosen["all"]) == set(means)
    drawn = [ATLR(layers="random", attack=towards_ones, seed=s).choose(model, x, y) for s in range(6)]
    assert {len(d) for d in drawn} == {len(chosen["vulnerable"])}
    assert len({tuple(d) for d in drawn}) > 1
    assert drawn[3] == ATLR(layers="random", attack=towards_ones, seed=3).choose(model, x, y)


def test_training_under_attack_makes_two_moons_robust() -> None:
    split = moons(200, 0)
    torch.manual_seed(0)
    model = mlp([2, 40, 2])
    before = robustness(model, split.x_test, split.y_test, (0.0, 0.1))
    trainer = make("lsa_atlr", eps=0.1, gamma=0.05, lr=0.01)
    trainer.fit(model, split.x_train, split.y_train, steps=150)
    after = robustness(model, split.x_test, split.y_test, (0.0, 0.1, 0.5))
    assert after[0.0] > 0.8
    assert after[0.1] > max(0.7, before[0.1])
    assert after[0.5] < after[0.1] <= after[0.0]
    assert accuracy(model, split.x_test, split.y_test) == after[0.0]


def test_layers_are_chosen_anew_when_asked() -> None:
    x, y = batch()
    trainer = ATLR(refresh=2, layers="vulnerable")
    seen = []
    trainer.choose = lambda model, x, y: seen.append(trainer.done) or []  # type: ignore[assignment,func-returns-value]
    trainer.fit(mlp([4, 5, 3]), x, y, steps=5)
    assert seen == [0, 2, 4]


def test_convolutions_train_with_the_penalty() -> None:
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 2
    losses = ATLR(layers="all", attack="fgsm", lr=0.01).fit(cnn(1, 2, (4,), size=8), x, y, steps=15)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ATLR(layers="vulnerabel"), "'vulnerable'"),
        (lambda: ATLR(base="mart"), "no base loss"),
        (lambda: ATLR(attack="pgdd"), "'pgd'"),
        (lambda: pgd(-0.1), "eps=-0.1"),
        (lambda: pgd(0.1, steps=0), "at least 1 step"),
        (lambda: vulnerable({"a": 1.0}, "median"), "no threshold rule"),
        (lambda: lsa(nn.Flatten(), *batch(), attack=towards_ones), "no layers that are modules"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, words: str) -> None:
    with pytest.raises(WorkingPapersError) as caught:
        call()
    assert words in str(caught.value), str(caught.value)


def test_the_claims_are_the_records() -> None:
    own, known = claims("lsa_atlr").values(), record("lsa_atlr").claims
    assert [c.says for c in own] == [c["says"] for c in known]
    assert [c.figure for c in own] == [c["figure"] for c in known]
