"""Early alignment: separated data, phases by hand, the flow against gradients and closed forms, reports."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import claims, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._two_layer import (
    Flow,
    alignment_times,
    flow,
    phases,
    separated,
    separated_part,
    separation,
    signs,
    start,
    velocity,
)
from workingpapers.papers.theory.early_alignment import (
    alignment_report,
    class_cosines,
    early_alignment,
)
from workingpapers.tasks import mlp


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# data and phases


@pytest.mark.parametrize(("count", "mu"), [(6, 0.3), (9, 0.8), (4, 0.0), (4, 1.0)])
def test_separated_data_have_their_cosines(count: int, mu: float) -> None:
    x, y = separated(count, mu, generator(count))
    gram = x @ x.T * y[:, None] * y
    torch.testing.assert_close(gram, mu + (1 - mu) * torch.eye(count).double())
    assert separation(x, y) == pytest.approx(mu)
    assert separation(5 * x, y) == pytest.approx(mu)
    assert abs(float(y.sum())) <= 1
    y[0] *= -1
    assert separation(x, y) == pytest.approx(-mu)


def test_points_go_until_the_rest_is_separated() -> None:
    x, y = separated(12, 0.4, generator(3))
    assert bool(separated_part(x, y, 0.39).all())
    spoilt = x.clone()
    spoilt[5], spoilt[8] = -x[5], x[8] + 4 * torch.randn(13, generator=generator(4)).double()
    assert separation(spoilt, y) < 0
    left = separated_part(spoilt, y, 0.2)
    assert (~left).nonzero().flatten().tolist() == [5, 8]
    assert separation(spoilt[left], y[left]) >= 0.2
    torch.manual_seed(0)
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    left = separated_part(x + 0.3 * (2 * y[:, None] - 1), y, 0.0)
    assert 2 < int(left.sum()) < 40


def test_labels_of_two_values() -> None:
    assert signs(torch.tensor([7, 3, 7])).tolist() == [1, -1, 1]


def test_the_start_is_balanced_and_small() -> None:
    w, v = start(400, 50, 1e-3, generator())
    torch.testing.assert_close(v.abs(), w.norm(dim=1))
    assert int((v > 0).sum()) == 200
    assert float(w.std()) == pytest.approx(1e-3, rel=0.02)


def test_phases_by_hand() -> None:
    y, v = torch.tensor([1.0, 1, -1]), torch.tensor([2.0, 2.0, -1.0, -1.0, -1.0, 3.0])
    on = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1.0]])
    aligned, dead = phases(on - 0.5, y, v)
    assert aligned.tolist() == [True, False, True, False, False, False]
    assert dead.tolist() == [False, False, False, False, True, False]
    loose, gone = phases(on - 0.5, y, v, tolerance=0.4)  # one of three points may differ
    assert loose.tolist() == [True, False, False, False, False, False]
    assert gone.tolist() == [False, True, True, False, True, True]
    edge, gone = phases(torch.zeros(3, 1), y, torch.ones(1))  # at 0 a neuron is off
    assert not bool(edge[0])
    assert bool(gone[0])


def test_cosines_to_the_classes() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    w = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    found = class_cosines(w, x, torch.tensor([1, 1, 0]))
    half = math.sqrt(0.5)
    assert found.flatten().tolist() == pytest.approx([1, 0, half, half])


# the flow


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
def test_one_step_is_gradient_descent(loss: str) -> None:
    x, y = (
        torch.randn(7, 4, generator=generator()).double(),
        torch.tensor([1.0, -1, 1, 1, -1, -1, 1]).double(),
    )
    w, v = start(5, 4, 0.7, generator(1))
    run = flow(x, y, w, v, loss, most=1)
    a, b = w.clone().requires_grad_(), v.clone().requires_grad_()
    margin = y * ((x @ a.T).relu() @ b)
    value = torch.exp(-margin).sum() if loss == "exponential" else 2 * F.softplus(-margin).sum()
    slopes = torch.autograd.grad(value, (a, b))
    dt = run.time[1]
    torch.testing.assert_close(run.w, w - dt * slopes[0])
    torch.testing.assert_close(run.v, v - dt * slopes[1])
    assert run.loss[0] == pytest.approx(float(value.detach()))
    assert dt > 0
    assert bool((w == start(5, 4, 0.7, generator(1))[0]).all())


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
def test_balance_is_kept_and_no_sign_changes(loss: str) -> None:
    x, y = separated(12, 0.3, generator(2))
    w, v = start(20, 13, 0.02, generator(3))
    v = v * 0.6  # what is conserved need not be 0
    run = flow(x, y, w, v, loss, until=0.1, step=0.003)
    assert run.loss[-1] < 0.1
    assert run.imbalance <= 1e-3
    assert run.sign_changes == 0
    gaps = (run.w.square().sum(1) - run.v.square()) - (w.square().sum(1) - v.square())
    assert run.imbalance == pytest.approx(float((gaps.abs() / run.w.square().sum(1)).max()))
    coarse = flow(x, y, w, v, loss, until=0.1, step=0.05)
    assert coarse.imbalance > run.imbalance


def test_early_directions_follow_their_equation() -> None:
    x, y = separated(10, 0.4, generator(4))
    w, v = start(16, 11, 1e-7, generator(5))
    run = flow(x, y, w, v, step=1e-4, most=1)
    moved = (F.normalize(run.w, dim=1) - F.normalize(w, dim=1)) / run.time[1]
    torch.testing.assert_close(moved, velocity(w, v, x, y), atol=1e-3, rtol=1e-3)
    assert float((velocity(w, v, x, y) * w).sum(1).abs().max()) < 1e-12
    torch.testing.assert_close(velocity(100 * w, 3 * v, x, y), velocity(w, v, x, y))
    torch.testing.assert_close(velocity(w, -v, x, y), -velocity(w, v, x, y))


def test_a_neuron_on_orthonormal_points_turns_to_their_sum() -> None:
    """With sign(v) > 0: w / |w| -> the normalised sum, while the weights are small."""
    points = torch.eye(5).double()[:3]
    x = torch.cat([points, -points.sum(0, keepdim=True)])  # one point of the other label, on which it is off
    y = torch.tensor([1.0, 1, 1, -1]).double()
    w = 1e-9 * torch.tensor([[3.0, 0.5, 1.0, 0.0, 0.0]]).double()
    run = flow(x, y, w, w.norm(dim=1), step=0.02, until=0.999 * 4)
    goal = points.sum(0) / math.sqrt(3)
    assert float(F.cosine_similarity(run.w[0], goal, dim=0)) == pytest.approx(1, abs=1e-4)
    assert run.aligned[-1] == 1


def test_a_network_of_one_point_against_quadrature() -> None:
    """With x = 1, w = v: dw/dt = w exp(-w^2), whose solution is by an integral."""
    from scipy.integrate import quad

    x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([1, -1])
    first = 0.01
    run = flow(x, y, torch.tensor([[first]]), torch.tensor([first]), until=1.2, step=0.002)
    last = float(run.v[0])
    assert float(run.w[0, 0]) == pytest.approx(last, rel=1e-3)
    wanted = quad(lambda w: math.exp(w**2) / w, first, last)[0]
    assert run.time[-1] == pytest.approx(wanted, rel=5e-3)
    assert run.loss[-1] == pytest.approx(1 + math.exp(-(last**2)), rel=5e-3)


def course(
    loss: list[float], aligned: list[float], dead: list[float], time: list[float] | None = None
) -> Flow:
    times = np.arange(len(loss)) * 1.0 if time is None else np.array(time)
    none = torch.zeros(1, 1)
    return Flow(times, np.array(loss), np.array(aligned), np.array(dead), none, none[0], [], 0.0, 0)


def test_readings_of_a_course() -> None:
    run = course([10, 9.8, 9.5, 9.0], [0, 1, 0.5, 0.5], [0, 0, 0.25, 0.5])
    assert run.alignment_time() == 3
    assert run.when_loss_fell(0.05) == 2
    assert run.when_loss_fell(0.5) == 3
    assert course([1, 1], [1, 1], [0, 0]).alignment_time() == 0
    assert run.decay() < 0  # time 0 has no logarithm and is left out
    assert course([1, 1], [1, 0.9], [0, 0]).alignment_time() == math.inf
    time = np.geomspace(1, 1e5, 60)
    slow = course((7 / time**0.8).tolist(), [1.0] * 60, [0.0] * 60, time.tolist())
    assert slow.decay() == pytest.approx(-0.8)
    bent = np.where(time < 1e3, 1.0, (time / 1e3) ** -1.5)  # only the last tenfold fall counts
    assert course(bent.tolist(), [1.0] * 60, [0.0] * 60, time.tolist()).decay() == pytest.approx(-1.5)


def test_separated_data_are_learnt_as_promised() -> None:
    x, y = separated(16, 0.5, generator(6))
    found = early_alignment(x, y, hidden=24, scale=1e-5, step=0.2)
    n = found.numbers
    assert n["aligned"] + n["dead"] == 1
    assert n["loss_when_aligned"] > 0.95
    assert 0 < n["alignment_time"] < math.log(16) / math.sqrt(0.5)
    assert n["decay"] == pytest.approx(-1, abs=0.25)
    assert 1 <= n["stable_rank"] <= 2.2
    assert n["loss"] <= 1e-3
    assert n["separation"] == pytest.approx(0.5)
    run = found.details["flow"]
    cosine = class_cosines(run.w, x, y)
    own = torch.where(run.v > 0, cosine[:, 0], cosine[:, 1])
    assert float(own[run.w.norm(dim=1) > 0.01].min()) > 0.95
    assert len(run.kept) <= 200


def test_times_are_of_each_count_and_separation() -> None:
    times = alignment_times((8, 16), (0.2, 0.8), seed=0)
    assert times.shape == (2, 2)
    assert bool((times > 0).all() and np.isfinite(times).all())
    assert bool((times[:, 0] > times[:, 1]).all())


# reports of models


def test_the_report_reads_any_two_layer_network() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0.1], [-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]]))
        model[3].weight.copy_(torch.tensor([[0.0, 2.0, 1.0, 0.0], [1.0, 0.0, 0.0, -1.0]]))
    x = torch.tensor([[[1.0, 0.2]], [[2.0, 0.5]], [[-1.0, 0.1]]])
    found = alignment_report(model, x, torch.tensor([1, 1, 0]))
    # on the first class and for it; on the second and for it; on for nothing; on the first class, against it
    assert found.details["aligned"].tolist() == [True, True, False, False]
    assert found.details["dead"].tolist() == [False, False, True, False]
    assert {k: found.numbers[k] for k in ("aligned", "dead", "neither")} == {
        "aligned": 0.5, "dead": 0.25, "neither": 0.25,
    }  # fmt: skip
    cosine = class_cosines(model[1].weight.detach(), x.flatten(1), torch.tensor([1, 1, 0]))
    wanted = float(torch.stack([cosine[0, 0], cosine[1, 1], cosine[3, 1]]).mean())
    assert found.numbers["cosine"] == pytest.approx(wanted)
    w2, v2 = torch.tensor([1.01, 1, 1, 2]), torch.tensor([1.0, 4, 1, 1])
    assert found.numbers["imbalance"] == pytest.approx(float((w2 - v2).abs().mean() / (w2 + v2).mean()))


def test_a_trained_run_looks_the_same_as_a_model() -> None:
    x, y = separated(10, 0.5, generator(7))
    run = early_alignment(x, y, hidden=8, scale=1e-4, step=0.2, until=0.1).details["flow"]
    model = nn.Sequential(nn.Linear(11, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(run.w)
        model[2].weight.copy_(run.v[None])
    found = alignment_report(model, x, y).numbers
    assert found["aligned"] == pytest.approx(run.aligned[-1])
    assert found["dead"] == pytest.approx(run.dead[-1])
    assert found["imbalance"] < 1e-3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: signs(torch.arange(3)), "two values"),
        (lambda: separated(10, 1.2, generator()), "got 10 and 1.2"),
        (lambda: early_alignment(*separated(4, 0.5, generator()), loss="hinge"), "no loss is named 'hinge'"),
        (lambda: alignment_report(mlp([2, 3, 3, 1]), torch.ones(2, 2), torch.arange(2)), "runs 3"),
        (lambda: alignment_report(mlp([2, 3, 5]), torch.ones(2, 2), torch.arange(2)), "5 outputs"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, words: str) -> None:
    with pytest.raises(WorkingPapersError) as caught:
        call()
    assert words in str(caught.value), str(caught.value)


def test_the_claims_are_the_records() -> None:
    own, known = claims("early_alignment").values(), record("early_alignment").claims
    assert [c.says for c in own] == [c["says"] for c in known]
