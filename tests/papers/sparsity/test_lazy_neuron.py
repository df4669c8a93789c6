"""Lazy neurons: shares by counting, Top-k by its limits, calibration by hand, slopes by autograd."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, component, make, record
from workingpapers.data import Split, Text
from workingpapers.engines.activity.case import case_of
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity import _firing
from workingpapers.papers.sparsity._small_decoders import decoder
from workingpapers.papers.sparsity.lazy_neuron import DATA, TopKMLP, ablated
from workingpapers.surgery.changes import changes
from workingpapers.surgery.units import units_of
from workingpapers.tasks import LanguageModelling, char_gpt, mlp, vit


def test_shares_are_counts() -> None:
    model, x = mlp([5, 40, 30, 3], nn.ReLU), torch.randn(70, 5)
    found = _firing.nonzero_shares(model.train(), x, batch=32)
    h = model[2](model[1](x))
    after = model[4](model[3](h))
    assert found == {"2": float((h > 0).double().mean()), "4": float((after > 0).double().mean())}
    smooth = mlp([5, 40, 3], nn.GELU)
    assert _firing.nonzero_shares(smooth, x) == {"2": 1.0}
    z = F.gelu(smooth[1](x))
    assert _firing.nonzero_shares(smooth, x, 0.1)["2"] == pytest.approx(
        float((z.abs() > 0.1).double().mean())
    )
    with pytest.raises(WorkingPapersError, match="layer behind"):
        _firing.nonzero_shares(nn.Sequential(nn.Linear(5, 2), nn.ReLU()), x)


def test_half_fire_at_the_start_of_a_symmetric_layer() -> None:
    model = mlp([30, 4000, 2])
    nn.init.zeros_(model[1].bias)
    share = _firing.nonzero_shares(model, torch.randn(300, 30, generator=torch.Generator().manual_seed(0)))[
        "2"
    ]
    assert share == pytest.approx(0.5, abs=0.01)


def test_top_k_between_its_limits() -> None:
    torch.manual_seed(0)
    model, x = TopKMLP(6, 20, k=20), torch.randn(3, 4, 6)
    dense = model.contract(model.activation(model.expand(x)))
    assert torch.equal(model(x), dense)
    model.keep.k = 0
    assert torch.equal(model(x), model.contract.bias.expand(3, 4, 6))
    model.keep.k = 5
    a = model.activation(model.expand(x)).detach().numpy()
    for token in a.reshape(-1, 20):
        token[np.argsort(-token, kind="stable")[5:]] = 0
    torch.testing.assert_close(model(x), model.contract(torch.from_numpy(a)))
    with pytest.raises(WorkingPapersError, match="0 or more"):
        _firing.KeepLargest(-1)


def test_gradients_go_through_what_is_kept_alone() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0, 0.5]], requires_grad=True)
    (_firing.KeepLargest(2)(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 0.0, 3.0, 0.0]]


def test_the_transform_puts_top_k_behind_every_activation() -> None:
    model, x = vit(1, 8, 4, 3, dim=8, depth=2, heads=2, activation=nn.ReLU), torch.randn(2, 1, 8, 8)
    assert torch.equal(make("lazy_neuron.topk_mlp")(model, 32)(x), model(x))
    sparse = make("lazy_neuron.topk_mlp")(model, 2)
    shares = _firing.nonzero_shares(sparse, x)
    assert len(changes(sparse)) == 2
    kept = [m for m in sparse.modules() if isinstance(m, _firing.KeepLargest)]
    assert len(kept) == 2
    seen: list[Tensor] = []
    for block in sparse.blocks:
        block.contract.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    sparse(x)
    assert all(int((a != 0).sum(-1).max()) == 2 for a in seen)
    assert set(shares) == {"blocks.0.activation.0", "blocks.1.activation.0"}
    assert not any(isinstance(m, _firing.KeepLargest) for m in model.modules())
    with pytest.raises(WorkingPapersError, match="no activation module"):
        _firing.keeping_largest(nn.Linear(2, 2), 1)


def test_costs_follow_the_shares() -> None:
    model, x = char_gpt(9, 8, 1, 2, 6, nn.ReLU), torch.randint(9, (2, 6))
    cost = _firing.second_matrix_cost(units_of(model, x), {"blocks.0.activation": 0.25})
    assert cost == {"blocks.0.activation": (8 * 32, 64.0)}


def test_calibration_by_hand() -> None:
    chances = torch.tensor([[0.9, 0.1], [0.75, 0.25], [0.55, 0.45], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 0, 1])
    # bins of 1/5: (0.8, 1]: 0.9 right; (0.6, 0.8]: 0.75 wrong and 0.7 right; (0.4, 0.6]: 0.55 right
    wanted = (abs(1 - 0.9) + abs(1 - 1.45) + abs(1 - 0.55)) / 4
    assert _firing.calibration_error(chances, labels, bins=5) == pytest.approx(wanted, abs=1e-6)
    assert _firing.calibration_error(torch.eye(3), torch.arange(3)) == 0.0


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_first_slopes_point_up(loss: str) -> None:
    mean, error = _firing.first_slopes(10, loss=loss, draws=20_000)
    assert mean > 5 * error
    if loss == "mse":  # E[f . f] = classes E|a|^2 / width = 10, and the targets drop out
        assert mean == pytest.approx(10.0, abs=5 * error)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_the_slope_is_that_of_autograd(loss: str) -> None:
    v, labels = torch.randn(4, 3, 6), torch.randint(3, (4,))
    a = torch.randn(4, 6).relu().requires_grad_()
    f = (v @ a[..., None])[..., 0]
    error = F.cross_entropy(f, labels, reduction="sum")
    if loss == "mse":
        error = (f - F.one_hot(labels, 3)).square().sum() / 2
    (slope,) = torch.autograd.grad(error, a)
    torch.testing.assert_close(_firing.slopes_along(v, a.detach(), labels, loss), (slope * a).sum(1).detach())


def test_noise_and_corruption() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.zeros(20_000, dtype=torch.long)
    noisy = _firing.noisy_labels(y, 0.4, 10, generator)
    assert float((noisy != 0).double().mean()) == pytest.approx(0.36, abs=0.015)
    x = torch.rand(200, 50, generator=generator)
    salted = _firing.corrupted(x, "salt", 0.2, generator)
    changed = salted != x
    assert float(changed.double().mean()) == pytest.approx(0.2, abs=0.02)
    assert set(salted[changed].tolist()) == {float(x.min()), float(x.max())}
    gap = _firing.corrupted(x, "gaussian", 0.5, generator) - x
    assert float(gap.std()) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(WorkingPapersError, match="salt"):
        _firing.corrupted(x, "pepper", 0.5, generator)


def data() -> Split:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(90, 6, generator=generator) + 3 * F.one_hot(y, 6)
    return Split(x, y, x, y, 3, "example")


def test_ablations_take_one_thing_away() -> None:
    split = data()
    labels, inputs = ablated(split, "random labels", 1), ablated(split, "random inputs", 1)
    assert torch.equal(labels.x_train, split.x_train)
    assert not torch.equal(labels.y_train, split.y_train)
    assert torch.equal(inputs.y_train, split.y_train)
    assert abs(float(inputs.x_train.mean())) < 0.15
    assert ablated(split, "true") is split
    one, two = (
        next(iter(ablated(split, "infinite").batches(8, torch.Generator().manual_seed(s)))) for s in (0, 1)
    )
    assert one[0].shape == (8, 6)
    assert not torch.equal(one[0], two[0])
    with pytest.raises(WorkingPapersError, match="random labels"):
        ablated(split, "random label")


@pytest.mark.parametrize("sort", DATA)
def test_the_study_follows_the_shares(sort: str) -> None:
    study = component("lazy_neuron").target
    found = study(partial(mlp, [6, 40, 3]), data(), 12, 3, sort, lr=1e-2)
    curve = found.details["curve"]
    assert [step for step, _ in curve] == [0, 4, 8, 12]
    assert found.numbers["start"] == curve[0][1]["2"] == found.numbers["start 2"]
    assert found.numbers["end"] == curve[-1][1]["2"]
    if sort == "true":
        end = _firing.nonzero_shares(found.details["model"], data().x_test)
        assert end["2"] == found.numbers["end_test"]


def test_the_study_reads_language() -> None:
    stream = torch.arange(400) % 7
    problem = LanguageModelling(Text(stream, stream[:100], [str(i) for i in range(7)], "count"), 8, 50)
    found = component("lazy_neuron").target(partial(decoder, 7, 8, 16, 2, 24, nn.ReLU), problem, 3, 1)
    assert {"start blocks.0.activation", "end blocks.1.activation"} <= set(found.numbers)
    with pytest.raises(WorkingPapersError, match="Split"):
        component("lazy_neuron").target(partial(mlp, [6, 4, 3]), 3)


def test_the_check_counts_and_only_notes() -> None:
    model, x = mlp([6, 50, 40, 3]), torch.randn(100, 6)
    check = component("lazy_neuron.sparsity").target
    found = check(case_of(model, x))
    wanted = _firing.nonzero_shares(model, x)
    for name, share in wanted.items():
        assert found.numbers[f"nonzero of {name}"] == pytest.approx(share)
    assert found.numbers["nonzero"] == pytest.approx(sum(wanted.values()) / 2)
    assert found.symptoms == ()
    nn.init.constant_(model[1].bias, -3.0)
    (note,) = [s for s in check(case_of(model, x)).symptoms if s.where == "2"]
    assert note.severity == "note"
    smooth = mlp([6, 50, 3], nn.GELU)
    h = F.gelu(smooth[1](x)).detach()
    share = float((h.abs() > 0.1 * h.square().mean().sqrt()).double().mean())
    assert check(case_of(smooth, x)).numbers["nonzero of 2"] == pytest.approx(share)


def test_claims_are_the_records() -> None:
    assert {c.says for c in claims("lazy_neuron").values()} == {
        c["says"] for c in record("lazy_neuron").claims
    }
