"""Information of activations: entropies by counting, Gaussians with known answers, invariances, ensembles."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._information import (
    METHODS,
    compression,
    equal_bins,
    information,
    kernel_entropy,
    quantile_bins,
    row_entropy,
)
from workingpapers.papers.theory._small_ensembles import (
    Ensemble,
    adam_on_weights,
    member_accuracies,
    member_losses,
    side_by_side,
)
from workingpapers.papers.theory.adaptive_mi import (
    CentredSoftplus,
    adaptive_mi,
    scores,
    trained_together,
    twelve_bits,
)
from workingpapers.tasks import fit, mlp


def counted(rows: Tensor) -> float:
    p = np.array(list(Counter(map(tuple, rows.tolist())).values())) / len(rows)
    return float(-(p * np.log2(p)).sum())


def gaussian(count: int, covariance: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(count, len(covariance)).double() @ torch.linalg.cholesky(covariance.double()).T


# entropies


@pytest.mark.parametrize("units", [1, 3, 20])  # 20 columns of 31 values do not fit into 64 bits
def test_row_entropy_is_that_of_the_counts(units: int) -> None:
    torch.manual_seed(units)
    rows = torch.randint(0, 31, (20, units))[torch.randint(0, 20, (500,))]
    rows[0, 0] = 30
    assert row_entropy(rows) == pytest.approx(counted(rows))
    near = torch.zeros(4, 20, dtype=torch.long)
    near[1, 0], near[2, 19], near[3, 9] = 30, 30, 30  # rows that differ in one column alone
    assert row_entropy(near) == pytest.approx(2)


def test_quantile_bins_hold_equally_many_values() -> None:
    torch.manual_seed(0)
    t = torch.randn(100, 6).exp()
    codes = quantile_bins(t, 30)
    assert codes.unique().tolist() == list(range(30))
    assert codes.flatten().bincount().tolist() == [20] * 30
    assert bool((codes.flatten()[t.flatten().argsort()].diff() >= 0).all())
    heavy = torch.cat([t, t[:1].expand(500, -1)])  # repeated values weigh no more than others
    assert torch.equal(quantile_bins(heavy, 30)[:100], codes)


def test_a_shared_lowest_value_has_a_bin_to_itself() -> None:
    torch.manual_seed(0)
    t = torch.randn(400, 3).relu()
    codes = quantile_bins(t, 10)
    assert torch.equal(codes == 0, t == 0)
    counts = codes[codes > 0].bincount()[1:]
    assert len(counts) == 10
    assert int(counts.max() - counts.min()) <= 1
    assert quantile_bins(torch.ones(5, 2)).unique().tolist() == [0]
    assert quantile_bins(torch.eye(3)).tolist() == (1 * torch.eye(3).long()).tolist()


def test_equal_bins_by_hand() -> None:
    t = torch.tensor([[-7.0, -1.0, -0.5, -0.49, 0.99, 1.0, 9.0]])
    assert equal_bins(t, 4).tolist() == [[0, 0, 1, 1, 3, 3, 3]]
    assert equal_bins(t, 2, (0.0, 10.0)).tolist() == [[0, 0, 0, 0, 0, 0, 1]]


def test_no_more_than_the_inputs_hold_and_all_of_it_where_rows_differ() -> None:
    torch.manual_seed(0)
    y = torch.arange(4096) % 2
    assert information(torch.randn(4096, 10), y)[0] == pytest.approx(12)
    assert information(torch.randn(4096, 1), y)[0] == pytest.approx(math.log2(30), abs=1e-3)
    i_xt, i_ty = information(torch.randn(4096, 2), y)
    assert 0 <= i_ty <= 1
    assert i_xt <= 12
    assert information(torch.ones(64, 3), y[:64]) == (0, 0)


def test_increasing_maps_leave_adaptive_bins_alone_and_move_fixed_ones() -> None:
    torch.manual_seed(1)
    t, y = torch.randn(500, 3).double(), torch.arange(500) % 4
    for change in (torch.exp, lambda v: 5 * v + 2, lambda v: v**3):
        assert information(change(t), y) == information(t, y)
        assert abs(information(change(t), y, "binning")[0] - information(t, y, "binning")[0]) > 0.01
    assert information(-t, y) != information(
        t, y
    )  # equal values stay equal, but bins are cut from the other end


@pytest.mark.parametrize("method", METHODS)
def test_one_hot_activations_tell_the_label_and_nothing_more(method: str) -> None:
    y = torch.repeat_interleave(torch.arange(3), torch.tensor([50, 30, 20]))
    wanted = -sum(p * math.log2(p) for p in (0.5, 0.3, 0.2))
    i_xt, i_ty = information(torch.eye(3)[y], y, method)
    assert i_ty == pytest.approx(wanted, abs=1e-6)
    assert i_xt == pytest.approx(wanted, abs=1e-6)
    other = torch.arange(100) % 2
    assert information(torch.eye(2)[other], torch.arange(100) // 2 % 2, method)[1] == pytest.approx(
        0, abs=1e-6
    )


# Gaussians with known answers


@pytest.mark.parametrize("variance", [0.05, 0.5])
def test_kernel_bounds_on_gaussians(variance: float) -> None:
    """I(T; T + noise) is log2 det(1 + C / s) / 2; the bounds tend to expectations in closed form around it."""
    covariance = torch.tensor([[1.0, 0.6], [0.6, 2.0]])
    t = gaussian(4000, covariance)

    def closed(s: float) -> float:
        c, eye = covariance.double(), torch.eye(2).double()
        return float(
            (torch.logdet(eye + c / s) + torch.trace(c @ torch.linalg.inv(c + s * eye))) / (2 * math.log(2))
        )

    upper, lower = (kernel_entropy(t, variance, bound) for bound in ("upper", "lower"))
    assert upper == pytest.approx(closed(variance), abs=0.05)
    assert lower == pytest.approx(closed(4 * variance), abs=0.05)
    true = float(torch.logdet(torch.eye(2) + covariance / variance)) / (2 * math.log(2))
    assert lower < true < upper
    assert kernel_entropy(t, variance, block=37) == pytest.approx(upper)


def test_the_noise_follows_the_largest_activation() -> None:
    t, y = 40 * gaussian(300, torch.eye(2)), torch.arange(300) % 2
    assert information(t, y, "akde", noise=0.1)[0] == pytest.approx(
        kernel_entropy(t, 0.1 * float(t.abs().max()))
    )
    assert information(t, y, "kde", noise=0.1)[0] == pytest.approx(kernel_entropy(t, 0.1))
    assert information(t, y, "kde", bound="lower")[0] < information(t, y, "kde")[0]
    whole, parts = kernel_entropy(t, 0.1), [kernel_entropy(t[y == c], 0.1) for c in (0, 1)]
    assert information(t, y, "kde", noise=0.1)[1] == pytest.approx(whole - sum(parts) / 2)


def test_two_correlated_gaussians() -> None:
    """I = -log2(1 - rho^2) / 2; one of the two is made a label by its own quantiles."""
    rho = 0.8
    both = gaussian(60_000, torch.tensor([[1.0, rho], [rho, 1.0]]))
    label = quantile_bins(both[:, 1:], 30)[:, 0]
    true = -math.log2(1 - rho**2) / 2
    assert information(both[:, :1], label)[1] == pytest.approx(true, abs=0.03)
    few = both[:3000]
    found = information(few[:, :1], quantile_bins(few[:, 1:], 12)[:, 0], "kde", noise=0.01)[1]
    assert found == pytest.approx(true, abs=0.08)


def test_two_gaussian_classes() -> None:
    """T = +-m + noise: I(T;Y) is 1 less the mean entropy of the posterior, by quadrature."""
    torch.manual_seed(0)
    m, y = 1.2, torch.arange(40_000) % 2
    t = torch.randn(40_000, 1) + m * (2 * y[:, None] - 1)

    def doubt(z: float) -> float:
        p = 1 / (1 + math.exp(-2 * m * z))
        density = math.exp(-((z - m) ** 2) / 2) / math.sqrt(2 * math.pi)
        return -density * math.log2(p)

    true = 1 - quad(doubt, -12, 14)[0]
    assert information(t, y)[1] == pytest.approx(true, abs=0.015)
    assert information(t[:4000], y[:4000], "kde", noise=0.02)[1] == pytest.approx(true, abs=0.04)


def test_compression_by_hand() -> None:
    assert compression([1.0, 4.0, 3.0]) == 0.25
    assert compression([1.0, 2.0]) == 0
    assert compression([0.0, 0.0]) == 0
    courses = np.array([[[1.0, 2.0]], [[4.0, 1.0]], [[2.0, 1.5]]])  # 3 checkpoints, 1 layer, 2 networks
    assert scores(courses).tolist() == [[0.5, 0.25]]


# networks


def test_members_train_as_they_would_alone() -> None:
    split, sizes = twelve_bits(3), (12, 6, 4, 2)
    both = Ensemble(sizes, nn.Tanh, 2, seed=0)
    alone = [Ensemble(sizes, nn.Tanh, 1, seed=0) for _ in range(2)]
    for i, model in enumerate(alone):
        model.load_state_dict({k: v[i : i + 1].clone() for k, v in both.state_dict().items()})
    for model in (both, *alone):
        how = adam_on_weights(0.1)
        fit(model, side_by_side(split), steps=8, optimizer=how, batch=256, seed=5, every=100)
    for name, value in both.state_dict().items():
        for i, model in enumerate(alone):
            torch.testing.assert_close(value[i : i + 1], model.state_dict()[name], atol=1e-6, rtol=1e-5)
    x, y = split.x_test, split.y_test
    outputs = both(x).detach()
    for i, model in enumerate(alone):
        own = model(x)[:, 0].detach()
        assert float(member_losses(outputs, y)[i]) == pytest.approx(float(F.cross_entropy(own, y)), rel=1e-4)
        assert float(member_accuracies(outputs, y)[i]) == pytest.approx(
            float((own.argmax(1) == y).double().mean())
        )
    found = side_by_side(split).evaluate(both)
    assert found["loss"] == pytest.approx(float(member_losses(outputs, y).mean()))


def test_a_member_is_the_perceptron_of_its_weights() -> None:
    model, x = Ensemble((3, 5, 2), nn.ELU, 4, seed=1), torch.randn(7, 3)
    plain = mlp([3, 5, 2], nn.ELU)
    with torch.no_grad():
        for layer, (w, b) in zip(plain[1::2], zip(model.weights, model.biases, strict=True), strict=True):
            layer.weight.copy_(w[2].T)
            layer.bias.copy_(b[2, 0] + 0.3)
            b[2] += 0.3
    torch.testing.assert_close(model(x)[:, 2], plain(x))
    torch.testing.assert_close(model.hidden(x)[0][2], plain[:3](x))
    wide = Ensemble((400, 300, 2), nn.ELU, 2, seed=1).weights[0]
    assert float(wide.detach().var()) == pytest.approx(1 / 400, rel=0.05)


def test_the_penalty_is_on_weights_alone() -> None:
    model = Ensemble((3, 4, 2), nn.ReLU, 2, seed=0)
    groups = adam_on_weights(0.5)(model.parameters(), 0.01).param_groups
    by_id = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert {by_id[id(p)] for p in model.weights} == {0.5}
    assert {by_id[id(p)] for p in model.biases} == {0}
    assert {g["lr"] for g in groups} == {0.01}


def test_courses_of_training_start_before_it_and_measure_all_inputs() -> None:
    split = twelve_bits(1)
    found = trained_together("relu", split, 2, 4, seed=0)
    assert found["i_xt"].shape[1:] == (5, 2)
    again = trained_together("relu", split, 2, 4, seed=0, depth=2)
    np.testing.assert_array_equal(again["i_xt"], found["i_xt"][:, -2:])
    assert bool((found["i_xt"] <= 12 + 1e-9).all())
    assert bool((found["i_xt"][:, 0] > 11).all())
    assert not np.array_equal(found["i_xt"][0], found["i_xt"][-1])


def test_twelve_bits_are_all_patterns_with_a_form_of_degree_2() -> None:
    split = twelve_bits(4)
    x, y = torch.cat([split.x_train, split.x_test]), torch.cat([split.y_train, split.y_test])
    assert len({tuple(r) for r in x.tolist()}) == 4096
    assert set(x.flatten().tolist()) == {-1.0, 1.0}
    assert len(split.x_train) == 3277
    assert 0.45 < float(y.double().mean()) <= 0.5
    label = {tuple(r): k for r, k in zip(x.tolist(), y.tolist(), strict=True)}
    assert all(label[tuple(-v for v in r)] == k for r, k in label.items())  # even, as such forms are
    assert not torch.equal(y, torch.cat([twelve_bits(5).y_train, twelve_bits(5).y_test]))


def test_the_analysis_reads_activations_of_any_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Dropout(), nn.Linear(8, 3), nn.Tanh()
    )
    x, y = torch.randn(50, 1, 4, 4), torch.arange(50) % 3
    found = adaptive_mi(model, x, y, bins=4).numbers
    inside = {"1": model[:2](x).flatten(1), "5": model.eval()(x)}
    assert set(found) == {f"{what} {n}" for n in inside for what in ("i_xt", "i_ty")}
    for name, t in inside.items():
        assert (found[f"i_xt {name}"], found[f"i_ty {name}"]) == information(t, y, bins=4)
    other = mlp([16, 3], nn.Tanh)
    course = adaptive_mi([other, other], x, y, [""], "akde")
    assert course.numbers["compression "] == 0
    assert course.details["plane"][""].shape == (2, 2)


def test_the_centred_softplus_is_0_at_0() -> None:
    x = torch.tensor([0.0, 1.0])
    wanted = [0.0, math.log1p(math.e) - math.log(2)]
    assert CentredSoftplus()(x).tolist() == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: information(torch.ones(3, 2), torch.ones(3), "ebob"), "'ebab'"),
        (lambda: information(torch.ones(3, 2), torch.ones(4)), "(3, 2), (4,)"),
        (lambda: information(torch.ones(3, 2) / 0, torch.ones(3)), "finite"),
        (lambda: equal_bins(torch.ones(3), 3, (1.0, 1.0)), "a low and a higher"),
        (lambda: kernel_entropy(torch.ones(3, 1), 0.0), "above 0"),
        (lambda: kernel_entropy(torch.ones(3, 1), 1.0, "uper"), "'upper'"),
        (lambda: adaptive_mi([], torch.ones(3, 2), torch.ones(3)), "empty list"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, words: str) -> None:
    with pytest.raises(WorkingPapersError) as caught:
        call()
    assert words in str(caught.value), str(caught.value)


def test_the_claims_are_the_records() -> None:
    own, known = claims("adaptive_mi").values(), record("adaptive_mi").claims
    assert [c.says for c in own] == [c["says"] for c in known]
