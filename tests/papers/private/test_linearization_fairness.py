"""Linearisation and groups: exact ends of the budget, the Lagrangian by hand, DeepFool on affine nets, reports."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, component, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.private import linearization_fairness as module
from workingpapers.papers.private._boundary import deepfool, geometry, jacobian
from workingpapers.papers.private._counts import relu_count
from workingpapers.papers.private._learning import softened
from workingpapers.papers.private._linearize import (
    DualAscent,
    each_loss,
    fine_tune,
    linearize,
    snl_objective,
)
from workingpapers.papers.private._units import Masked, Partial, units_of_kind
from workingpapers.papers.private.linearization_fairness import (
    Groups,
    accuracy_by_group,
    check_groups,
    report,
    uneven,
)
from workingpapers.tasks import QUICK, residual_cnn


def data(count: int = 60) -> Split:
    y = torch.arange(count) % 3
    x = torch.randn(count, 1, 8, 8) + y[:, None, None, None]
    return Split(x, y, x, y, 3, "example")


@pytest.mark.parametrize("method", ["snl", "deepreduce", "random"])
def test_the_ends_of_the_budget_are_exact(method: str) -> None:
    model, split = residual_cnn(1, 3, (4, 6)).eval(), data()
    whole = linearize(model, split, 1.0, method)
    assert torch.equal(whole(split.x_test), model(split.x_test))
    bare = linearize(model, split, 0, method).eval().double()
    x, y = torch.randn(2, 5, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(bare(x) + bare(y) - bare(0 * x), bare(x + y), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("method", "kept"), [("snl", 240), ("random", 240), ("deepreduce", 192)])
def test_methods_keep_to_the_budget(method: str, kept: int) -> None:
    model, split = residual_cnn(1, 3, (4, 6)), data()
    found = linearize(model, split, 0.25, method, 1)
    assert relu_count(found, split.x_train[:1]) == kept
    if method != "deepreduce":
        assert sum(u.kept() for u in units_of_kind(found, Masked).values()) == kept  # type: ignore[operator]
    tuned = fine_tune(found, model, split, 1)
    assert relu_count(tuned, split.x_train[:1]) == kept
    assert not torch.equal(tuned[0].weight, found[0].weight)  # type: ignore[index]


def test_what_cannot_be_linearised_is_said() -> None:
    model, split = residual_cnn(1, 3, (4, 6)), data()
    with pytest.raises(WorkingPapersError, match="deepreduce"):
        linearize(model, split, 0.5, "deepreduc")
    with pytest.raises(WorkingPapersError, match="no stage has so few"):
        linearize(model, split, 5, "deepreduce", 0)
    with pytest.raises(WorkingPapersError, match="share of the ReLUs"):
        linearize(model, split, 1.5)


def test_snl_penalises_shares_and_grows_while_above_the_count() -> None:
    units, split = [Partial((4,)), Partial((6,))], data(128)
    with torch.no_grad():
        units[0].alpha.copy_(torch.tensor([1.0, 0.4, 2.0, -1.0]))
    loss = snl_objective(units, 5, 0.1, split)
    y, same = torch.tensor([0, 1]), torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    plain = float(F.cross_entropy(same, y))
    first = loss(nn.Identity(), same, y, same, y)
    assert float(first.detach()) == pytest.approx(plain + 0.1 * (2.4 + 6))
    (slope,) = torch.autograd.grad(first, units[0].alpha)
    assert slope.tolist() == pytest.approx([0.1, 0.1, 0.0, 0.0])
    second = loss(nn.Identity(), same, y, same, y)  # ends an epoch of two batches, with 8 above 5
    assert float(second.detach()) == pytest.approx(plain + 0.11 * 8.4)


def test_losses_of_examples_have_the_mean_of_the_batch() -> None:
    a, b, y = torch.randn(9, 4), torch.randn(9, 4), torch.randint(4, (9,))
    wanted = F.cross_entropy(a, y) + softened(a, b)
    torch.testing.assert_close(each_loss(a, y, b).mean(), wanted)


def test_the_lagrangian_by_hand() -> None:
    groups = torch.tensor([0, 0, 1, 0, 2, 1, 0, 2])
    a, b, y = torch.randn(8, 3), torch.randn(8, 3), torch.randint(3, (8,))
    rows = torch.arange(8)
    each = each_loss(a, y, b)
    gaps = torch.stack([each[groups == g].mean() - each.mean() for g in range(3)])
    shares = torch.tensor([4 / 8, 2 / 8, 2 / 8])
    assert float((shares * gaps).sum()) == pytest.approx(0.0, abs=1e-5)
    ascent = DualAscent(groups, eta=0.5, cap=0.3)
    assert float(ascent(nn.Identity(), a, y, b, rows)) == pytest.approx(float(each.mean()))
    moved = (0.5 * gaps).clamp(0, 0.3)
    torch.testing.assert_close(ascent.multipliers, moved)
    again = float(ascent(nn.Identity(), a, y, b, rows))
    assert again == pytest.approx(float(each.mean() + (moved * gaps).sum()), rel=1e-5)
    some = DualAscent(groups)
    some(nn.Identity(), a[:2], y[:2], b[:2], rows[:2])
    assert some.multipliers.tolist() == [0.0, 0.0, 0.0]  # the only group is the whole batch
    with pytest.raises(WorkingPapersError, match="at least 0"):
        DualAscent(groups, eta=-1.0)


def test_multipliers_at_zero_are_plain_fine_tuning() -> None:
    model, split = residual_cnn(1, 3, (4, 6)), data()
    bare = linearize(model, split, 0.3, "random")
    groups = (split.y_train == 2).long()
    plain = fine_tune(bare, model, split, 2, seed=4)
    still = fine_tune(bare, model, split, 2, groups, eta=0.0, seed=4)
    fair = fine_tune(bare, model, split, 2, groups, eta=5.0, seed=4)
    for p, q in zip(plain.parameters(), still.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
    assert any(not torch.allclose(p, q) for p, q in zip(plain.parameters(), fair.parameters(), strict=True))


def test_deepfool_is_exact_on_affine_classifiers() -> None:
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    x = torch.randn(50, 1, 3, 4, dtype=torch.float64)
    out = model(x).detach()
    y = out.argmax(1)
    weight = model[1].weight.detach()
    rows = torch.arange(50)
    lead = out[rows, y][:, None] - out
    length = (weight[y][:, None] - weight[None]).norm(dim=2)
    wanted = (lead / length.clamp_min(1e-12)).scatter(1, y[:, None], float("inf")).amin(1)
    torch.testing.assert_close(deepfool(model, x, y), wanted)
    assert not deepfool(model, x, (y + 1) % 4).any()


def test_deepfools_step_crosses_the_boundary_of_a_network() -> None:
    model = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    x = torch.randn(30, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    found = deepfool(model, x, y, steps=50)
    angles = F.normalize(torch.randn(20, 30, 5, dtype=torch.float64), dim=2)
    inside = x + 0.2 * found[:, None] * angles
    share = (model(inside.reshape(-1, 5)).argmax(1).reshape(20, 30) == y).double().mean()
    assert float(share) > 0.95  # DeepFool's length is near the shortest one
    assert (found > 0).all()


def test_geometry_of_an_affine_classifier() -> None:
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    x, y = torch.randn(40, 1, 3, 4), torch.randint(4, (40,))
    out, slopes = jacobian(model, x)
    torch.testing.assert_close(slopes, model[1].weight.detach().expand(40, 4, 12))
    found = geometry(model, x, y)
    assert found.slope == pytest.approx(float(model[1].weight.norm().detach()), rel=1e-5)
    rest = torch.stack([torch.cat([o[:k], o[k + 1 :]]).max() for o, k in zip(out, y, strict=True)])
    assert found.margin == pytest.approx(float((out.gather(1, y[:, None])[:, 0] - rest).mean()), rel=1e-4)
    loss = F.cross_entropy(model(x), y)
    slope = torch.autograd.grad(loss, list(model.parameters()))
    assert found.gradient == pytest.approx(float(sum(s.square().sum() for s in slope)) ** 0.5, rel=1e-4)
    p = out.softmax(1)
    flat = torch.cat([x.flatten(1), torch.ones(40, 1)], 1)
    hess = torch.einsum("na,nb,nkl->kalb", flat, flat, torch.diag_embed(p) - p[:, :, None] * p[:, None]) / 40
    top = torch.linalg.eigvalsh(hess.reshape(52, 52))[-1]
    assert found.curvature == pytest.approx(float(top), rel=0.05)
    assert all(q.grad is None for q in model.parameters())


class Fixed(nn.Module):
    """Gives the logits that the inputs are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def test_reports_by_hand() -> None:
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    right = F.one_hot(y, 2).float()
    groups = Groups(y, torch.tensor([0, 0, 0, 1, 1, 1]))
    split = Split(right, y, right, y, 2, "example")
    assert accuracy_by_group(Fixed(), split, groups) == {0: 1.0, 1: 1.0}

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[:4], 1 - x[4:]])

    found = report(Fixed(), Wrong(), split, groups)
    assert found.drops == {0: 0.0, 1: pytest.approx(2 / 3)}
    assert found.gap == pytest.approx(2 / 3)
    assert found.accuracy == pytest.approx(4 / 6)
    with pytest.raises(WorkingPapersError, match="6 to train"):
        check_groups(Groups(y[:2], y), split)
    with pytest.raises(WorkingPapersError, match="two groups"):
        check_groups(Groups(y * 0, y * 0), split)


def test_the_study_reports_what_its_models_do() -> None:
    model, split = residual_cnn(1, 3, (4, 6)), data(40)
    groups = Groups((split.y_train == 2).long(), (split.y_test == 2).long())
    study: Any = component("linearization_fairness").target
    found = study(model, split, groups, (0.2,), "random", 0, 1)
    after = accuracy_by_group(found.details["models"][0.2, "fair"], split, groups)
    before = accuracy_by_group(model, split, groups)
    for g in (0, 1):
        assert found.numbers[f"accuracy of group {g}"] == before[g]
        assert found.numbers[f"0.2 fair: drop of group {g}"] == pytest.approx(before[g] - after[g])
    assert groups.minority == 1
    assert set(found.details["geometry"]) == {"dense 0", "dense 1", "linearised 0", "linearised 1"}
    with pytest.raises(WorkingPapersError, match="no budget"):
        study(model, split, groups, ())


def test_the_claims_data_have_a_minority(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.arange(4000) % 10
    x = torch.zeros(4000, 1, 2, 2)
    monkeypatch.setattr(module, "images", lambda *args, **how: Split(x, y, x, y, 10, "example"))
    split, groups = uneven(QUICK, 3)
    rare = torch.isin(split.y_train, torch.tensor([2, 6]))
    assert int((~rare).sum()) == 3200
    assert 40 < int(rare.sum()) < 130  # 80 on average
    assert torch.equal(groups.train, rare.long())
    assert int(groups.test.sum()) == 800


def test_claims_are_the_records() -> None:
    says = {c["says"] for c in record("linearization_fairness").claims}
    assert {c.says for c in claims("linearization_fairness").values()} == says
