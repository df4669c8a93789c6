"""Geometry of conditions: alignment, dichotomies, parallelism, generalisation on codes by hand; tasks; training."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import claims, record
from workingpapers.engines.ranks import participation_ratio
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory import _conditions as tasks
from workingpapers.papers.theory._alignment import cka, dissimilarities, kernel_alignment, rsa
from workingpapers.papers.theory._one_hidden import ACTIVATIONS, train
from workingpapers.papers.theory.task_geometry import geometry, geometry_report, task_geometry


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# alignment


@pytest.mark.parametrize(("n", "one", "other"), [(9, 4, 6), (9, 40, 3), (50, 4, 6)])
def test_alignment_by_kernels_in_numpy(n: int, one: int, other: int) -> None:
    torch.manual_seed(n + one)
    a, b = torch.randn(n, one) + 3, torch.randn(n, other) - 1
    centre = np.eye(n) - 1 / n
    k, m = (centre @ (v @ v.T).double().numpy() @ centre for v in (a, b))
    wanted = float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
    assert cka(a, b) == pytest.approx(wanted, rel=1e-5)
    assert kernel_alignment(a @ a.T, b @ b.T) == pytest.approx(wanted, rel=1e-4)


def test_alignment_is_1_with_itself_however_turned_scaled_and_shifted() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(20, 5).double(), torch.randn(20, 7).double()
    turn = torch.linalg.qr(torch.randn(5, 5).double())[0]
    assert cka(a, a) == pytest.approx(1)
    assert cka(a, -3 * a @ turn + 2) == pytest.approx(1)
    assert cka(a @ turn, 4 * b + 1) == pytest.approx(cka(a, b))
    assert cka(a @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1]).double()), b) != pytest.approx(
        cka(a, b), rel=1e-3
    )
    assert 0 < cka(a, b) < 1
    assert cka(torch.ones(4, 3), torch.randn(4, 2)) == 0
    # perpendicular after centring
    assert cka(torch.tensor([[1.0], [1], [-1], [-1]]), torch.tensor([[1.0], [-1], [1], [-1]])) == 0


def test_dissimilarities_against_numpy() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(8, 5), torch.randn(8, 4)
    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8)]
    wanted = [float((a[i] - a[j]).norm()) for i, j in pairs]
    assert dissimilarities(a).tolist() == pytest.approx(wanted)
    wanted = [1 - float(np.corrcoef(a[i], a[j])[0, 1]) for i, j in pairs]
    assert dissimilarities(a, "correlation").tolist() == pytest.approx(wanted, abs=1e-6)
    found = spearmanr(dissimilarities(a).numpy(), dissimilarities(b).numpy()).statistic
    assert rsa(a, b) == pytest.approx(found)
    assert rsa(a, 2 * a) == pytest.approx(1)
    assert rsa(a, torch.ones(8, 2)) == 0


# conditions


def test_conditions_and_targets_of_two_and_three_latents() -> None:
    assert tasks.latents(2).tolist() == [[-1, -1], [-1, 1], [1, -1], [1, 1]]
    assert tasks.targets("single", 2, generator())[:, 0].tolist() == [-1, -1, 1, 1]
    assert tasks.targets("xor", 2, generator())[:, 0].tolist() == [1, -1, -1, 1]
    assert tasks.targets("xor", 3, generator()).T.tolist() == [[-1, 1, 1, -1, 1, -1, -1, 1]]
    assert torch.equal(tasks.targets("all", 3, generator()), tasks.latents(3))
    for bits in (2, 3):
        every = torch.stack(list(tasks.dichotomies(2**bits)))
        assert len(every) == math.comb(2**bits, 2 ** (bits - 1)) // 2
        assert bool((every.sum(1) == 0).all())
        assert len(torch.cat([every, -every]).unique(dim=0)) == 2 * len(every)
    drawn = tasks.targets("random", 3, generator(), count=4)
    assert drawn.shape == (8, 4)
    assert len(drawn.T.unique(dim=0)) == 4


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_structured_inputs_have_as_many_dimensions_as_latents(bits: int) -> None:
    means = tasks.input_means(bits, 0.0, 30, generator(bits)).double()
    values = torch.linalg.svdvals(means - means.mean(0))
    assert values[bits - 1] > 0.1
    assert float(values[bits:].max() if len(values) > bits else 0) < 1e-6
    assert participation_ratio(means, centre=True) == pytest.approx(bits, rel=1e-5)
    for delta in (0.0, 0.4, 1.0):
        mixed = tasks.input_means(bits, delta, 30, generator(bits))
        torch.testing.assert_close(mixed.norm(dim=1), torch.ones(2**bits))
    if bits > 1:
        full = torch.linalg.svdvals((mixed - mixed.mean(0)).double())
        assert float(full[2**bits - 2]) > 0.1


def test_trials_are_means_and_noise() -> None:
    data = tasks.trials(2, 0.5, "xor", 400, generator(1), dim=20, noise=0.3)
    assert data.condition.bincount().tolist() == [400] * 4
    found = tasks.condition_means(data.x, data.condition)
    torch.testing.assert_close(found.float(), data.means, atol=0.08, rtol=0)
    assert float((data.x - data.means[data.condition]).std()) == pytest.approx(0.3, rel=0.02)
    assert torch.equal(data.y, data.values[data.condition])
    assert data.values[:, 0].tolist() == [1, -1, -1, 1]


def test_participation_of_equal_axes_counts_them() -> None:
    rows = torch.cat([torch.eye(3), -torch.eye(3)]) @ torch.linalg.qr(torch.randn(8, 3))[0].T
    assert participation_ratio(rows, centre=True) == pytest.approx(3, rel=1e-5)


def test_parallelism_of_a_cube_and_of_codes_without_order() -> None:
    cube = tasks.latents(3) @ torch.linalg.qr(torch.randn(9, 3))[0].T
    for latent in range(3):
        assert tasks.parallelism(cube, tasks.latents(3)[:, latent]) == pytest.approx(1, abs=1e-6)
    square = tasks.latents(2)
    assert tasks.parallelism(square, square.prod(1)) == pytest.approx(-1, abs=1e-6)  # forth and back
    # four unrelated points: differences of either pairing have the cosine 0
    assert tasks.parallelism(torch.eye(4), torch.tensor([1.0, 1, -1, -1])) == pytest.approx(0, abs=1e-6)
    leaning = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 2]])  # (1, 0) and (1, 1), or (1, 2) and (1, -1)
    assert tasks.parallelism(leaning, torch.tensor([-1.0, -1, 1, 1])) == pytest.approx(math.sqrt(0.5))


def test_linear_classifiers_of_dichotomies() -> None:
    torch.manual_seed(0)
    condition = torch.arange(4).repeat(60)
    square = tasks.latents(2)
    rows = square[condition] + 0.05 * torch.randn(240, 2)
    single, xor = square[:, 0], square.prod(1)
    assert tasks.separability(rows, condition, single) == 1
    assert tasks.separability(rows, condition, xor) < 0.8
    assert tasks.cross_condition(rows * torch.tensor([3.0, 1.0]), condition, single) == 1
    assert tasks.cross_condition(rows, condition, xor) < 0.5  # what was learnt leads to the wrong side
    apart = torch.eye(4)[condition] + 0.05 * torch.randn(240, 4)
    assert tasks.separability(apart, condition, xor) == 1
    assert tasks.cross_condition(apart, condition, xor) == pytest.approx(0.5, abs=0.3)
    assert 0.4 < tasks.cross_condition(rows, condition, single) < 1  # pairs on the diagonals lead nowhere


def test_what_units_stand_for() -> None:
    one = torch.tensor([[0.0], [0], [0], [3]])
    two = torch.tensor([[-1.0], [-1], [1], [1]])
    assert tasks.conditions_per_unit(one, torch.ones(1, 1)) == pytest.approx(1)
    assert tasks.conditions_per_unit(two, torch.ones(1, 1)) == pytest.approx(2)
    both = torch.cat([one, two], 1)
    weights = torch.tensor([[1.0, 3.0]])  # (3 * 1)^2 against (2 * 3)^2
    assert tasks.conditions_per_unit(both, weights) == pytest.approx((9 * 1 + 36 * 2) / 45)
    assert tasks.conditions_per_unit(torch.ones(4, 2), weights) == 0
    inputs = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    angles = tasks.readout_angles(inputs, torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 5.0]]))
    assert angles.tolist() == [[-1, 1], [0, 0]]


# networks


def test_training_is_descent_from_a_start_that_activations_share() -> None:
    data = tasks.trials(2, 0.5, "single", 10, generator(), dim=6)
    nets = {name: train(data, name, 5, steps=0) for name in ("tanh", "relu")}
    for key, value in nets["tanh"].model.state_dict().items():
        assert torch.equal(value, nets["relu"].model.state_dict()[key])
    start = nets["tanh"].model
    out = start(data.x)
    (slope,) = torch.autograd.grad(torch.log1p(torch.exp(-data.y * out)).mean(), start[0].weight)
    stepped = train(data, "tanh", 5, optimizer="sgd", lr=0.1, steps=1).model
    torch.testing.assert_close(stepped[0].weight, start[0].weight - 0.1 * slope)
    (slope,) = torch.autograd.grad((start(data.x) - data.y).square().mean(), start[2].bias)
    stepped = train(data, "tanh", 5, loss="squared", optimizer="sgd", lr=0.1, steps=1).model
    torch.testing.assert_close(stepped[2].bias, start[2].bias - 0.1 * slope)
    big = train(tasks.trials(1, 0, "single", 1, generator(), dim=400), "relu", 300, steps=0).model
    assert float(big[0].weight.detach().var()) == pytest.approx(1 / 400, rel=0.03)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_learns_xor_and_stops_there(name: str) -> None:
    data = tasks.trials(2, 0.0, "xor", 30, generator(2), dim=8, noise=0.1)
    found = train(data, name, 32, accuracy=0.99)
    assert found.accuracy >= 0.99
    assert 0 < found.steps < 600
    right = (found.model(data.x).sign() == data.y).float().mean()
    assert float(right) == pytest.approx(found.accuracy)
    assert found.hidden.shape == (120, 32)


def test_geometry_of_copies_of_targets_and_of_inputs() -> None:
    data = tasks.trials(2, 0.2, "single", 50, generator(3), dim=12, noise=0.05)
    copy = geometry(data.y.repeat(1, 3) + 0.01 * torch.randn(200, 3), data.x, data.y, data.condition)
    assert copy["target"] == pytest.approx(1, abs=1e-3)
    assert copy["dimension"] == pytest.approx(1, abs=1e-2)
    assert copy["parallelism"] == pytest.approx(1, abs=0.05)
    assert copy["cross_condition"] == 1
    kept = geometry(data.x, data.x, data.y, data.condition)
    assert kept["input"] == pytest.approx(1)
    assert kept["target"] == pytest.approx(cka(data.means, data.values), abs=0.02)
    assert copy["input"] == pytest.approx(kept["target"], abs=0.02)
    assert kept["separability"] > copy["separability"] > 0.6  # one of three dichotomies is left
    assert set(geometry(data.x, data.x, data.y, data.condition, probes=False)) == {
        "target", "input", "dimension", "parallelism",
    }  # fmt: skip


def test_labels_are_read_as_one_hot_targets() -> None:
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    rows = torch.randn(60, 4)
    found = geometry(rows, rows, y, y)
    means = torch.stack([rows[y == k].mean(0) for k in range(3)])
    assert found["target"] == pytest.approx(cka(means, torch.eye(3)), rel=1e-5)
    assert "parallelism" not in found


def test_the_study_measures_the_networks_it_trains() -> None:
    found = task_geometry(("tanh", "relu"), (0.5,), "xor", 2, 20, seed=3, accuracy=0.99)
    for name in ("tanh", "relu"):
        net = found.details["networks"][name, 0.5]
        own = geometry(net.hidden, net.data.x, net.data.y, net.data.condition, seed=3)
        assert {k: found.numbers[f"{k} {name} 0.5"] for k in own} == pytest.approx(own)
    assert torch.equal(
        found.details["networks"]["tanh", 0.5].data.x, found.details["networks"]["relu", 0.5].data.x
    )


def test_the_report_reads_every_layer() -> None:
    data = tasks.trials(2, 0.3, "single", 10, generator(), dim=5)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    found = geometry_report(model, data.x, data.condition, data.y, [""], probes=False).numbers
    rows = model(data.x).detach()
    wanted = geometry(rows, data.x, data.y, data.condition, probes=False)
    assert found == pytest.approx({f"{k} ": v for k, v in wanted.items()})
    assert F.linear(rows, torch.ones(1, 1)).shape == (40, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cka(torch.ones(3, 2), torch.ones(4, 2)), "3 and 4"),
        (lambda: kernel_alignment(torch.ones(3, 2), torch.ones(3, 2)), "(3, 2)"),
        (lambda: dissimilarities(torch.ones(3, 2), "euclid"), "'euclidean'"),
        (lambda: tasks.targets("xnor", 2, generator()), "'xor'"),
        (lambda: tasks.targets("random", 2, generator(), 4), "have 3 dichotomies"),
        (lambda: tasks.input_means(2, 1.5, 10, generator()), "got 1.5, 10"),
        (lambda: tasks.input_means(3, 0.5, 2, generator()), "at least 3"),
        (lambda: tasks.parallelism(torch.eye(3), torch.tensor([1.0, 1, -1])), "got 2 and 1"),
        (lambda: tasks.cross_condition(torch.eye(2), torch.arange(2), torch.tensor([1.0, -1])), "at least 2"),
        (lambda: task_geometry(("tahn",)), "'tanh'"),
        (lambda: geometry(torch.ones(3, 1), torch.ones(3, 1), torch.ones(2), torch.ones(3)), "3, 3, 2 and 3"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, words: str) -> None:
    with pytest.raises(WorkingPapersError) as caught:
        call()
    assert words in str(caught.value), str(caught.value)


def test_the_claims_are_the_records() -> None:
    own, known = claims("task_geometry").values(), record("task_geometry").claims
    assert [c.says for c in own] == [c["says"] for c in known]
