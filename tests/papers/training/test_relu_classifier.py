"""ReLU as classification function against closed forms; the losses' gradients, the head, the outcome's counts."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.data import images
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.training.relu_classifier import (
    ReLUHead,
    ReLULoss,
    cross_validate,
    ffn,
    predict,
    swap_head,
    train,
    vgg_like,
)
from workingpapers.surgery import changes
from workingpapers.tasks import mlp


def scores(rows: int = 40, classes: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return drawn.requires_grad_(), torch.randint(classes, (rows,), generator=generator)


def test_losses_have_their_closed_forms() -> None:
    o, y = scores()
    f, rows = np.maximum(o.detach().numpy(), 0), np.arange(40)
    chosen = f[rows, y]
    onehot = np.eye(6)[y]
    expected = {
        "ce": np.mean(np.log(np.exp(f).sum(1)) - chosen),
        "square": np.mean(((f - onehot) ** 2).sum(1)),
        "nll": np.mean(-np.log(chosen / f.sum(1) + 1e-7)),
    }
    for loss, value in expected.items():
        assert ReLULoss(loss)(o, y).item() == pytest.approx(value, rel=1e-12), loss
        assert ReLULoss(loss)(o.relu(), y).item() == pytest.approx(value, rel=1e-12), loss  # idempotent


@pytest.mark.parametrize("loss", ["nll", "ce", "square"])
def test_scores_below_zero_get_no_gradient(loss: str) -> None:
    o, y = scores()
    (slope,) = torch.autograd.grad(ReLULoss(loss)(o, y), o)
    assert (slope[o < 0] == 0).all()
    assert (slope[o > 0] != 0).any()
    if loss == "square":
        onehot = F.one_hot(y, 6)
        torch.testing.assert_close(slope, torch.where(o > 0, 2 * (o - onehot), 0.0).detach() / 40)


def test_with_shares_a_dead_true_class_leaves_the_whole_sample_without_gradient() -> None:
    o, y = scores()
    (slope,) = torch.autograd.grad(ReLULoss("nll")(o, y), o)
    dead = o.gather(1, y[:, None])[:, 0] <= 0
    assert 0 < int(dead.sum()) < 40
    assert (slope[dead] == 0).all()
    certain = ~dead & ((o > 0).sum(1) == 1)  # no other class is alive: nothing to learn
    assert torch.equal(slope.abs().sum(1) > 0, ~dead & ~certain)


def test_the_slope_below_zero_revives_dead_classes() -> None:
    o, y = scores()
    (slope,) = torch.autograd.grad(ReLULoss("ce", negative_slope=0.01)(o, y), o)
    o = o.detach()
    assert (slope != 0).all()
    expected = F.cross_entropy(torch.where(o > 0, o, 0.01 * o), y)
    assert float(ReLULoss("ce", 0.01)(o, y)) == pytest.approx(float(expected), rel=1e-12)


def test_all_zero_outputs() -> None:
    zeros = torch.zeros(3, 7, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 3, 6])
    assert ReLULoss("ce")(zeros, y).item() == pytest.approx(math.log(7), rel=1e-14)
    assert ReLULoss("ce")(zeros - 1, y).item() == pytest.approx(math.log(7), rel=1e-14)
    assert ReLULoss("square")(zeros, y).item() == 1.0
    loss = ReLULoss("nll")(zeros, y)
    assert loss.item() == pytest.approx(-math.log(1e-7), rel=1e-12)
    assert (torch.autograd.grad(loss, zeros)[0] == 0).all()


def test_prediction_and_ties() -> None:
    o, _ = scores(500, 3)
    o = o.detach()
    above = o.max(1).values > 0
    assert 0 < int((~above).sum()) < 500
    assert torch.equal(predict(o, "first")[above], o.argmax(1)[above])
    assert torch.equal(predict(o, "raw"), o.argmax(1))
    assert (predict(o, "first")[~above] == 0).all()


def test_head_rectifies_a_linear_layer_and_predicts_from_raw_scores() -> None:
    head = ReLUHead(5, 3)
    h = torch.randn(20, 5) - 1
    raw = h @ head.weight.T + head.bias
    torch.testing.assert_close(head(h), raw.clamp(min=0))
    assert torch.equal(head.predict(h), raw.argmax(1))
    assert torch.equal(head.predict(h, "first"), raw.clamp(min=0).argmax(1))


def test_swapping_the_head_keeps_weights_and_rectifies() -> None:
    model = mlp([6, 8, 4])
    swapped = swap_head(model)
    x = torch.randn(30, 6)
    torch.testing.assert_close(swapped(x), model(x).relu())
    assert type(model[-1]) is nn.Linear
    assert changes(swapped) == ["3 is ReLUHead now, in place of Linear."]
    first = swap_head(model, "1")
    assert type(first.get_submodule("1")) is ReLUHead
    assert type(first.get_submodule("3")) is nn.Linear


def test_networks_are_the_authors() -> None:
    dense = [m for m in ffn().modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in dense] == [(784, 512), (512, 512), (512, 10)]
    assert [m.p for m in ffn().modules() if isinstance(m, nn.Dropout)] == [0.2, 0.2]
    network = vgg_like()
    convolutions = [m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [9 * 32, 9 * 32 * 32, 9 * 32 * 64, 9 * 64 * 64]
    assert network(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert vgg_like(3, 32)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    limit = math.sqrt(6 / (784 + 512))
    assert 0.99 * limit < dense[0].weight.abs().max().item() <= limit
    assert all(not m.bias.any() for m in dense)


def test_outcome_counts_agree() -> None:
    split = images("digits", train=300, test=200, seed=0)
    done = train(lambda: ffn(64, hidden=32), split, "relu", loss="ce", epochs=3, batch=50)
    assert done.confusion.sum() == 200
    assert done.accuracy == pytest.approx(np.trace(done.confusion) / 200)
    recall = np.diag(done.confusion) / done.confusion.sum(1)
    precision = np.diag(done.confusion) / np.maximum(done.confusion.sum(0), 1)
    f1 = [2 * p * r / (p + r) if p + r else 0.0 for p, r in zip(precision, recall, strict=True)]
    assert done.f1 == pytest.approx(np.mean(f1))
    assert len(done.dead) == 3
    assert 1 <= done.best_epoch <= 3


def test_dead_share_is_that_of_the_raw_scores() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            alive = torch.arange(10) < 4  # classes 0 to 3 answer by 1, the others by -1
            return (alive.float() * 2 - 1).expand(len(x), 10) + 0 * self.shift

    split = images("digits", train=300, test=50, seed=0)
    done = train(Fixed, split, "relu", epochs=2, batch=300)
    expected = float((split.y_train >= 4).double().mean())
    assert done.dead == pytest.approx([expected] * 2)


def test_each_fold_is_held_out_once() -> None:
    split = images("digits", train=200, test=10, seed=0)
    outcomes = cross_validate(lambda: ffn(64, hidden=16), split, "softmax", folds=4, epochs=1, batch=50)
    assert len(outcomes) == 4
    total = np.sum([o.confusion for o in outcomes], axis=0)
    assert np.array_equal(total.sum(1), np.bincount(split.y_train, minlength=10))


def test_errors_are_one_sentence() -> None:
    with pytest.raises(UnknownName, match="nll"):
        ReLULoss("nl")
    with pytest.raises(WorkingPapersError, match="at least 0"):
        ReLULoss("nll", 0.01)
    with pytest.raises(UnknownName, match="raw"):
        predict(torch.zeros(1, 2), "row")
    with pytest.raises(UnknownName, match="softmax"):
        train(ffn, images("digits", train=20, test=10), "softmx")
    with pytest.raises(WorkingPapersError, match="16x16"):
        vgg_like(size=15)
    with pytest.raises(WorkingPapersError, match="linear layer"):
        swap_head(nn.Sequential(nn.ReLU()))
