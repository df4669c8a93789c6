"""DeepReDuce: counts of known networks, what removal leaves, widths and resolutions, criticality by its formula."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.private import _removal
from workingpapers.papers.private import deepreduce as module
from workingpapers.papers.private._costs import Rates, cost_of, private_cost
from workingpapers.papers.private._counts import (
    by_stage,
    multiply_adds,
    nonlinearities,
    pareto,
    relu_count,
    stages,
)
from workingpapers.papers.private._learning import distillation, softened
from workingpapers.papers.private._linearize import linearize
from workingpapers.papers.private._removal import Stage, active, alternate, criticality, held_out, keeping
from workingpapers.papers.private._resizing import resized, scaled
from workingpapers.papers.private._sites import sites
from workingpapers.papers.private.deepreduce import (
    Plan,
    deepreduce,
    frontier,
    ordered,
    plans,
    reduced,
    within,
)
from workingpapers.surgery import changes
from workingpapers.tasks import mlp, residual_cnn


class Block(nn.Module):
    """A block as torchvision has them: one module that runs twice."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width_in, width, 3, stride, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.short = nn.Conv2d(width_in, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv2(self.relu(self.conv1(x))) + self.short(x))
        return out


class Called(nn.Module):
    """A network whose stem calls ReLU, and whose head calls another activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(1, 4, 3, 1, 1), Block(4, 4, 1), Block(4, 8, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(F.relu(self.stem(x))))
        out: Tensor = self.head(torch.tanh(x.mean((2, 3))))
        return out


def data(count: int = 60) -> Split:
    y = torch.arange(count) % 3
    x = torch.randn(count, 1, 8, 8) + y[:, None, None, None]
    return Split(x, y, x, y, 3, "example")


def test_resnet18_has_as_many_relus_as_published() -> None:
    model, x = residual_cnn(3, 10, (64, 128, 256, 512), 2), torch.zeros(1, 3, 32, 32)
    found = nonlinearities(model, x)
    assert sum(n.kept for n in found) == relu_count(model, x) == 557_056
    assert found[0].kept == 65_536
    assert by_stage(found) == [65_536 + 262_144, 131_072, 65_536, 32_768]
    narrow = resized(model, x, scaled(0.5))
    assert relu_count(narrow, x) == 557_056 // 2
    assert relu_count(model, x[..., ::2, ::2]) == 557_056 // 4


def test_calls_and_shared_modules_are_counted_one_by_one() -> None:
    model, x = Called(), torch.randn(5, 1, 8, 8)
    found = nonlinearities(model, x)
    assert [(n.name, n.activation, n.kept) for n in found] == [
        (":relu", "relu", 256),
        ("one.relu", "relu", 256),
        ("one.relu#2", "relu", 256),
        ("two.relu", "relu", 128),
        ("two.relu#2", "relu", 128),
        (":tanh", "tanh", 8),
    ]
    assert relu_count(model, x) == 3 * 256 + 2 * 128
    assert [len(stage) for stage in stages(found)] == [3, 2]
    with pytest.raises(WorkingPapersError, match="resolution"):
        stages(nonlinearities(mlp([4, 8, 2]), torch.randn(2, 4)))


def test_multiply_adds_by_hand() -> None:
    found = multiply_adds(Called(), torch.randn(2, 1, 8, 8))
    assert found["stem"] == 64 * 4 * 9
    assert found["two.conv1"] == 16 * 8 * 4 * 9
    assert found["two.short"] == 16 * 8 * 4
    assert found["head"] == 24


def test_some_sites_stay_and_others_become_the_identity() -> None:
    model, x = Called(), torch.randn(5, 1, 8, 8)
    assert torch.equal(keeping(model, x, None)(x), model(x))
    kept = keeping(model, x, ["one.relu#2", ":relu"])
    assert relu_count(kept, x) == 512

    def block(part: Block, h: Tensor, inner: bool, outer: bool) -> Tensor:
        h1 = part.conv1(h)
        h2: Tensor = part.conv2(h1.relu() if inner else h1) + part.short(h)
        return h2.relu() if outer else h2

    h = block(model.two, block(model.one, model.stem(x).relu(), False, True), False, False)
    torch.testing.assert_close(kept(x), model.head(torch.tanh(h.mean((2, 3)))))
    assert torch.equal(keeping(kept, x, None)(x), kept(x))
    again = keeping(kept, x, ["two.relu"])
    assert {n: type(u).__name__ for n, (u, _) in sites(again).items()} == {
        ":relu": "Identity", "one.relu": "Identity", "one.relu#2": "Identity",
        "two.relu": "ReLU", "two.relu#2": "Identity",
    }  # fmt: skip


def test_turns_begin_anew_after_a_pass_that_broke_off() -> None:
    model, x = Called(), torch.randn(3, 1, 8, 8)
    kept: Any = keeping(model, x, ["one.relu", "two.relu"])
    wanted = kept(x)
    with pytest.raises(RuntimeError):
        kept.one(torch.randn(3, 7, 8, 8))
    kept.one.relu(torch.randn(3, 4, 8, 8))  # one turn taken outside a pass
    assert torch.equal(kept(x), wanted)


def test_without_relus_a_network_is_affine() -> None:
    model = residual_cnn(1, 3, (4, 6)).double().eval()
    x, y = torch.randn(2, 6, 1, 8, 8, dtype=torch.float64)
    linear = keeping(model, x, ())
    torch.testing.assert_close(linear(x) + linear(y) - linear(0 * x), linear(x + y), atol=1e-10, rtol=0)
    assert relu_count(linear, x) == 0
    with pytest.raises(WorkingPapersError, match="no ReLU left"):
        active(linear, x)


def test_thinning_keeps_the_last_and_every_second() -> None:
    assert alternate(["stem", "a1", "a2", "b1", "b2"]) == ["stem", "a2", "b2"]
    assert alternate(["a1", "a2", "b1", "b2"]) == ["a2", "b2"]
    assert alternate(["only"]) == ["only"]


def narrow(model: nn.Module, x: Tensor) -> Any:
    return resized(model, x, scaled(0.5))


def test_other_widths_keep_the_first_channels() -> None:
    model: Any = residual_cnn(1, 3, (4, 6))
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.in_channels > 1:
                layer.weight[:, layer.in_channels // 2 :] = 0  # the upper half of the channels is not read
        model[-1].weight[:, 3:] = 0
        model.eval()
    torch.testing.assert_close(resized(model, x, scaled(0.5)).eval()(x), model(x), atol=1e-5, rtol=1e-5)
    wide: Any = resized(model, x, scaled(2))
    assert wide[-1].weight.shape == (3, 12)
    assert wide(x).shape == (4, 3)
    flat = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    assert narrow(flat, x)[-1].in_features == 72
    deep = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(64, 3))
    assert narrow(deep, x)[1].weight.shape == (2, 1, 3, 3)
    with pytest.raises(WorkingPapersError, match="at least 1 channel"):
        resized(model, x, lambda channels: 0)
    with pytest.raises(WorkingPapersError, match="no two convolutions"):
        resized(nn.Linear(8, 2), x, scaled(0.5))


def two_stages() -> list[Stage]:
    first = ("2", "3.activation1", "3.activation2")
    return [Stage(first, 768, 0.4, 0.1), Stage(("4.activation1", "4.activation2"), 192, 0.5, 0.2)]


def test_plans_remove_what_they_say() -> None:
    model, x = residual_cnn(1, 3, (4, 6)), torch.randn(4, 1, 8, 8)
    order = two_stages()
    counts = {str(plan): relu_count(reduced(model, x, plan, order), x) for plan in plans(2)}
    assert len(counts) == 16
    assert counts["nothing removed"] == 960
    assert counts["1 stages culled"] == 192
    assert counts["1 stages culled, alternate layers thinned"] == 96
    assert counts["alternate layers thinned"] == 2 * 256 + 96
    assert counts["channels scaled by 0.5"] == 480
    assert counts["resolution scaled by 0.5"] == 240
    found = within(model, x, order, 240, tries=20)
    kept = [relu_count(m, x) for _, m in found]
    assert sorted(kept) == sorted(c for c in counts.values() if c <= 240)
    assert kept[:2] == [192, 96]  # culled, and culled and thinned
    assert [plan.alpha * plan.rho**2 for plan, _ in found[:3]] == [1.0, 1.0, 0.5]
    with pytest.raises(WorkingPapersError, match="rho"):
        reduced(model, x, Plan(0, False, rho=0.3), order)


def test_criticality_is_the_gain_over_relus_to_a_power(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = iter([0.3, 0.5, 0.6])
    monkeypatch.setattr(_removal, "accuracy", lambda model, split: next(reached))
    found = criticality(residual_cnn(1, 3, (4, 6)), data(), 0)
    assert [s.relus for s in found] == [768, 192]
    assert [s.names for s in found] == [s.names for s in two_stages()]
    assert found[0].criticality == pytest.approx(0.2 / 768**0.07)
    assert found[1].criticality == pytest.approx(0.3 / 192**0.07)
    assert ordered(found[::-1])[0] is found[0]


def test_the_method_keeps_to_its_budget() -> None:
    model, split = residual_cnn(1, 3, (4, 6)), data()
    small = deepreduce(model, split, 0.3, 1, two_stages(), tries=2)
    assert 0 < relu_count(small, split.x_train[:1]) <= 288
    assert "of 960 ReLUs stay" in changes(small)[0]
    model.eval()
    assert torch.equal(deepreduce(model, split, 1.0)(split.x_test), model(split.x_test))
    for wrong, words in ((0.0, "share of the ReLUs"), (1e-3, "no network of the method")):
        with pytest.raises(WorkingPapersError, match=words):
            deepreduce(model, split, wrong, 1, two_stages())
    masked = linearize(model, split, 0.3, "random")
    assert torch.equal(deepreduce(masked, split, 1.0)(split.x_test), masked(split.x_test))
    with pytest.raises(WorkingPapersError, match="Split of classes"):
        deepreduce(model, split.x_train)  # type: ignore[arg-type]


def test_the_front_holds_what_nothing_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = {"nothing removed": 0.9, "1 stages culled": 0.8, "alternate layers thinned": 0.7}
    monkeypatch.setattr(module, "train", lambda *args, **how: None)
    seen = iter(quality.values())
    monkeypatch.setattr(module, "accuracy", lambda model, split: next(seen))
    chosen = [Plan(0, False), Plan(1, False), Plan(0, True)]
    found = frontier(residual_cnn(1, 3, (4, 6)), data(), 1, two_stages(), chosen)
    assert [(c.relus, c.accuracy) for c in found] == [(192, 0.8), (960, 0.9)]
    assert found[0].latency(1e-3) == pytest.approx(0.192)
    assert pareto([(1, 0.5), (2, 0.4), (2, 0.6), (3, 0.6)]) == [0, 2]


def test_a_part_is_held_out_once() -> None:
    split = data(50)
    inner = held_out(split, 0.2, seed=1)
    assert len(inner.x_train) == 40
    both = torch.cat([inner.x_train, inner.x_test]).flatten(1).sum(1).sort().values
    torch.testing.assert_close(both, split.x_train.flatten(1).sum(1).sort().values)
    with pytest.raises(WorkingPapersError, match="too few"):
        held_out(data(1))


def test_distillation_by_numpy() -> None:
    a, b = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    y = torch.randint(4, (7,))

    def soft(z: Tensor, t: float) -> np.ndarray:
        e = np.exp(z.numpy() / t)
        return np.asarray(e / e.sum(1, keepdims=True))

    p, q = soft(b, 4.0), soft(a, 4.0)
    divergence = (p * (np.log(p) - np.log(q))).sum(1).mean() * 16
    entropy = -np.log(soft(a, 1.0)[np.arange(7), y.numpy()]).mean()
    assert float(softened(a, b)) == pytest.approx(divergence)
    assert float(distillation(a, y, b)) == pytest.approx(0.1 * entropy + 0.9 * divergence)


def test_costs_add_up() -> None:
    model, x = Called(), torch.randn(2, 1, 8, 8)
    found = private_cost(model, x, Rates(2.0, 3.0, 5.0, 0.5, 0.25))
    relus, macs = 1024, sum(multiply_adds(model, x).values())
    assert (found.relus, found.macs) == (relus, macs)
    assert found.online == pytest.approx(2 * relus + 0.5 * macs)
    assert found.offline == pytest.approx(3 * relus + 0.25 * macs)
    assert found.stored == 5 * relus
    assert found.relu_share == pytest.approx(2 * relus / found.online)
    assert found.total == pytest.approx(found.online + found.offline)
    published = cost_of(
        2_228_224, 0
    )  # ResNet-18 on TinyImageNet: 41 GB in the paper that the figures are from
    assert published.stored / 1e9 == pytest.approx(41, abs=0.5)


def test_claims_are_the_records() -> None:
    assert {c.says for c in claims("deepreduce").values()} == {c["says"] for c in record("deepreduce").claims}
