"""DeepReShape: the four known solutions by search, counts by hand and by hooks, reuse, other widths."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workingpapers.catalog import claims, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.private._counts import nonlinearities, relu_count, relu_flops
from workingpapers.papers.private._units import Reused
from workingpapers.papers.private.deepreshape import (
    HYBRENETS,
    deepreshape,
    hybrenet,
    relu_equalize,
    relu_shares,
    relus_needed,
    reshaped,
    widths,
)
from workingpapers.surgery import changes
from workingpapers.tasks import residual_cnn


def data(count: int = 40) -> Split:
    y = torch.arange(count) % 3
    x = torch.randn(count, 1, 8, 8) + y[:, None, None, None]
    return Split(x, y, x, y, 3, "example")


def test_the_four_solutions_are_the_smallest() -> None:
    wanted = set()
    for beta, gamma in product((5, 6, 7), (2, 3)):
        if beta > 4 and beta * gamma < 16:
            wanted.add((next(a for a in range(1, 99) if a * beta * gamma > 64), beta, gamma))
    assert wanted == set(HYBRENETS)
    assert set(relu_equalize()) == wanted == set(relu_equalize(depths=(3, 3, 3, 3)))


def test_counts_fall_in_the_order_asked_for() -> None:
    for order, depths in (((3, 2, 4, 1), (3, 4, 6, 3)), ((2, 3, 1), (1, 1, 1)), ((1, 2, 3, 4), (2, 2, 2, 2))):
        for factors in relu_equalize(order, depths):
            shares = relu_shares(factors, depths)
            ranked = [shares[stage - 1] for stage in order]
            assert ranked == sorted(ranked, reverse=True)
            assert len(set(ranked)) == len(ranked)
    with pytest.raises(WorkingPapersError, match="once each"):
        relu_equalize((3, 2, 2, 1))
    with pytest.raises(WorkingPapersError, match="no factors from 2 to 3"):
        relu_equalize(most=3)


def test_a_standard_resnet_halves_its_relus_from_stage_to_stage() -> None:
    assert relu_shares((2, 2, 2)) == [1, 1 / 2, 1 / 4, 1 / 8]
    assert relu_shares((5, 5, 3), (1, 2, 1, 2)) == pytest.approx([1, 2 * 5 / 4, 25 / 16, 2 * 75 / 64])
    assert widths(16, (5, 5, 3)) == [16, 80, 400, 1200]
    with pytest.raises(WorkingPapersError, match="4 stages"):
        relu_shares((2, 2, 2), (1, 1))


def test_counts_equal_those_of_hooks() -> None:
    model, x = hybrenet(3, 10, 2, (5, 7, 2), (1, 2, 1, 1)).eval(), torch.randn(1, 3, 16, 16)
    relus: dict[int, int] = {}
    macs: dict[int, int] = {}

    def relu(m: nn.Module, args: Any, out: Tensor) -> None:
        relus[out.shape[-1]] = relus.get(out.shape[-1], 0) + out.numel()

    def layer(m: Any, args: Any, out: Tensor) -> None:
        side = out.shape[-1] if out.ndim == 4 else 2
        macs[side] = macs.get(side, 0) + out.numel() * m.weight[0].numel()

    for m in model.modules():
        if isinstance(m, nn.ReLU):
            m.register_forward_hook(relu)
        elif isinstance(m, nn.Conv2d | nn.Linear):
            m.register_forward_hook(layer)
    model(x)
    wanted = [(relus[side], macs[side]) for side in (16, 8, 4, 2)]
    assert [(s.relus, s.macs) for s in relu_flops(model, x)] == wanted


def test_counts_of_a_hybrenet_by_hand() -> None:
    model, x = hybrenet(3, 10, 2, (5, 5, 3), (2, 1, 1, 3)), torch.randn(1, 3, 16, 16)
    blocks = [2 * 2 * 2 * 256, 2 * 10 * 64, 2 * 50 * 16, 3 * 2 * 150 * 4]
    assert [s.relus for s in relu_flops(model, x)] == [2 * 256 + blocks[0], *blocks[1:]]
    standard = residual_cnn(3, 10, (4, 8, 16, 32), 2)
    assert relu_count(hybrenet(3, 10, 4, (2, 2, 2)), x) == relu_count(standard, x)
    assert sum(p.numel() for p in hybrenet(3, 10, 4, (2, 2, 2)).parameters()) == sum(
        p.numel() for p in standard.parameters()
    )
    with pytest.raises(WorkingPapersError, match="4 stages of 1 block"):
        hybrenet(3, 10, depths=(2, 2, 2))


def test_reuse_covers_every_channel_once_in_a_round() -> None:
    x = torch.randn(2, 7, 3, 3)
    units = [Reused((7, 3, 3), 3, turn) for turn in range(6)]
    assert sum(u.kept() for u in units[:3]) == 63
    y = x
    for unit in units[:3]:
        y = unit(y)
    assert torch.equal(y, x.relu())
    assert torch.equal(units[4](x), units[1](x))
    assert torch.equal(units[0](x)[:, 2:], x[:, 2:])
    assert torch.equal(units[0](x)[:, :2], x[:, :2].relu())
    assert torch.equal(Reused((7, 3, 3), 1)(x), x.relu())
    with pytest.raises(WorkingPapersError, match="1 to 7 groups"):
        Reused((7, 3, 3), 8)


def test_a_users_network_gets_other_widths() -> None:
    model, split = residual_cnn(1, 3, (4, 6)), data()
    changed = reshaped(model, split.x_train, (3,), 5)
    assert [n.shape[0] for n in nonlinearities(changed, split.x_train[:1])] == [5, 5, 5, 15, 15]
    assert changed.eval()(split.x_test).shape == (40, 3)
    same = reshaped(model, split.x_train, (3,), 5)
    assert torch.equal(same.eval()(split.x_test), changed(split.x_test))
    with pytest.raises(WorkingPapersError, match="3 stages"):
        reshaped(model, split.x_train, (3, 2), 5)
    alike = residual_cnn(1, 3, (4, 4))
    with pytest.raises(WorkingPapersError, match="widths 4, 4"):
        reshaped(alike, split.x_train, (3,), 5)


def test_options_take_relus_away() -> None:
    model, split = residual_cnn(1, 3, (4, 6)), data()
    x = split.x_train[:1]
    plain = deepreshape(model, split, (2,), 4, 0)
    assert relu_count(plain, x) == 3 * 4 * 64 + 2 * 8 * 16
    assert relu_count(deepreshape(model, split, (2,), 4, 0, thin=True), x) == 2 * 4 * 64 + 2 * 8 * 16
    assert relu_count(deepreshape(model, split, (2,), 4, 0, reuse=2), x) == (3 * 4 * 64 + 2 * 8 * 16) // 2
    said = changes(deepreshape(model, split, (2,), 4, 1))[0]
    assert "4, 8 now" in said
    assert "1,024 ReLUs" in said


def test_relus_needed_on_straight_lines() -> None:
    counts, reached = [100, 200, 400], [0.3, 0.5, 0.4]
    assert relus_needed(counts, reached, 0.4) == pytest.approx(150)
    assert relus_needed(counts, reached, 0.2) == 100
    assert relus_needed(counts, reached, 0.5) == pytest.approx(200)
    assert np.isinf(relus_needed(counts, reached, 0.6))


def test_claims_are_the_records() -> None:
    says = {c["says"] for c in record("deepreshape").claims}
    assert {c.says for c in claims("deepreshape").values()} == says
