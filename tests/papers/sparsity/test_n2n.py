"""N2N: rewards, students that fit, policies whose probabilities add up, and gradients that are the bandit's."""

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import make
from workingpapers.data import images
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.sparsity._compression_policies import (
    FEATURES,
    Decisions,
    Removal,
    Shrinking,
    policy_for,
    reinforce,
    reinforce_loss,
)
from workingpapers.papers.sparsity._rollouts import (
    Rollouts,
    Student,
    distillation_loss,
    pareto,
    reward,
    with_logits,
)
from workingpapers.papers.sparsity._students import (
    described,
    fields_of,
    is_block,
    parameters,
    parts_of,
    scaled,
    student,
    weighted,
)
from workingpapers.papers.sparsity.n2n import compress, restore, save, searched, teacher
from workingpapers.tasks import fit, initialise, residual_cnn


class Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: Any = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        out = out + (x if self.downsample is None else self.downsample(x))
        return F.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(1, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU()
        self.layer1 = nn.Sequential(Block(12, 12, 1), Block(12, 24, 2), Block(24, 24, 1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.flatten(self.avgpool(self.layer1(self.relu(self.bn1(self.conv1(x))))), 1))
        return out


def space_of(layers: int, choices: tuple[Any, ...] = (False, True)) -> Decisions:
    return Decisions(torch.randn(layers, FEATURES), tuple((i, i % 2) for i in range(layers)), choices)


def test_rewards() -> None:
    assert reward(100, 100, 0.9, 0.8) == 0
    assert reward(10, 100, 0.7, 0.7) == pytest.approx(0.99)
    assert reward(50, 100, 0.6, 0.8) == pytest.approx(0.75 * 0.75)
    assert reward(101, 100, 1.0, 0.5) == -1


@pytest.mark.parametrize(
    "model",
    [
        teacher((12, 14, 16)),
        residual_cnn(1, 10, (8, 12), 2),
        residual_cnn(1, 10, (8, 12), norm=False),
        ResNet(),
    ],
)
def test_keeping_all_gives_the_teachers_architecture(model: nn.Module) -> None:
    parts = parts_of(model)
    places = weighted(parts)
    ones = [replace(p, scales=dict.fromkeys(("out", "kernel", "mid"), 1.0)) for p in parts]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for chosen in (parts, ones):
        built: Any = student(chosen, (1, 16, 16))
        assert [tuple(p.shape) for p in built.parameters()] == [tuple(p.shape) for p in model.parameters()]
        assert parameters(built) == parameters(model)
        if isinstance(model, nn.Sequential):
            kept = [m for m in model if not isinstance(m, nn.Identity)]
            assert [str(m) for m in built if not isinstance(m, nn.Identity)] == [str(m) for m in kept]
    assert parts[places[0]].kind == "conv"
    assert parts[places[-1]].kind == "linear"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(
        torch.equal(a, b) for a, b in zip(built.parameters(), model.parameters(), strict=True) if a.ndim > 1
    )


def test_students_are_fitted_to_what_comes_in() -> None:
    x = torch.randn(2, 1, 16, 16)
    for model in (teacher((12, 14, 16, 20)), residual_cnn(1, 10, (8, 12, 16), 2), ResNet()):
        parts = parts_of(model)
        inner = weighted(parts)[1:-1]
        for gone in [[i] for i in inner] + [inner]:
            built: Any = student([p for i, p in enumerate(parts) if i not in gone], (1, 16, 16))
            assert built(x).shape == (2, 10)
            assert parameters(built) < parameters(model)


def test_numbers_are_shrunk_as_told() -> None:
    parts = parts_of(nn.Sequential(
        nn.Conv2d(1, 40, 5, 1, 2), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 24, 3, bias=False), nn.Tanh(),
        nn.Flatten(), nn.Linear(24 * 14 * 14, 30), nn.ReLU(), nn.Linear(30, 10)))  # fmt: skip
    assert [p.kind for p in parts] == ["conv", "conv", "other", "linear", "linear"]
    assert [fields_of(parts[i]) for i in (0, 1, 3)] == [["out", "kernel"], ["out", "kernel"], ["out"]]
    scales: list[dict[str, float] | None] = [{"out": 0.5, "kernel": 0.6}, {"out": 0.1, "kernel": 0.5}, None]
    scales += [{"out": 0.7}, {"out": 0.1}]
    built: Any = student([replace(p, scales=s) for p, s in zip(parts, scales, strict=True)], (1, 16, 16))
    first, second, hidden, last = (m for m in built if isinstance(m, nn.Conv2d | nn.Linear))
    assert (first.out_channels, first.kernel_size, first.padding) == (20, (3, 3), (1, 1))
    assert (second.in_channels, second.out_channels, second.kernel_size, second.padding) == (
        20,
        10,
        (1, 1),
        (0, 0),
    )
    assert (hidden.in_features, hidden.out_features) == (10 * 16 * 16, 21)
    assert (last.in_features, last.out_features) == (21, 10)  # the classes stay
    assert [m.num_features for m in built if isinstance(m, nn.BatchNorm2d)] == [20]
    assert (scaled(100, 0.3), scaled(100, 0.05), scaled(7, 0.1), scaled(64, 0.1)) == (30, 10, 7, 10)
    blocks = [p for p in parts_of(ResNet()) if p.kind == "block"]
    assert [fields_of(p) for p in blocks] == [["mid"], ["mid", "out"], ["mid"]]
    small: Any = student(
        [
            replace(p, scales={"mid": 0.5, "out": 0.5} if p.kind == "block" else None)
            for p in parts_of(ResNet())
        ],
        (1, 16, 16),
    )
    assert [(b.conv1.out_channels, b.conv2.out_channels) for b in small if is_block(b)] == [
        (10, 12),
        (12, 12),
        (12, 12),
    ]
    assert small(torch.randn(2, 1, 16, 16)).shape == (2, 10)
    assert described(parts[0])[1:4] == [5 / 7, 1 / 2, 2 / 3]
    assert described(parts[0])[4] == pytest.approx(math.log2(40) / 10)
    assert described(blocks[1])[-2:] == [1, 1]
    assert described(parts[3])[:4] == [0.5, 0, 0, 0]


def test_students_for_which_the_image_is_too_small_are_none() -> None:
    parts = parts_of(nn.Sequential(nn.Conv2d(1, 12, 3), nn.Flatten(), nn.Linear(12, 3)))
    assert student(parts, (1, 2, 2)) is None


def test_teachers_that_are_no_chain_are_told() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.two(x)  # type: ignore[no-any-return]

    with pytest.raises(WorkingPapersError, match="a chain of layers and residual blocks; 'two' of Forked"):
        parts_of(Forked())
    with pytest.raises(WorkingPapersError, match="one group"):
        parts_of(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(WorkingPapersError, match="ends in a linear layer"):
        parts_of(nn.Sequential(nn.Linear(4, 2), nn.Flatten()))
    with pytest.raises(
        WorkingPapersError, match=r"features \(layers, 7\) and at least one step; got \(3, 5\)"
    ):
        Decisions(torch.zeros(3, 5), ((0, 0),), (False, True))


@pytest.mark.parametrize(("policy", "choices"), [(Removal(), 2), (Shrinking(choices=3), 3)])
def test_probabilities_add_up_and_are_those_of_the_samples(policy: Any, choices: int) -> None:
    space = space_of(3, tuple(range(choices)))
    with torch.no_grad():
        policy.head.weight.mul_(8)
    rows = torch.tensor(list(itertools.product(range(choices), repeat=3)))
    chances = policy.log_prob(space, rows).exp().detach()
    assert float(chances.sum()) == pytest.approx(1, abs=1e-5)
    drawn = policy.sample(space, 4000, torch.Generator().manual_seed(0))
    for row, chance in zip(rows, chances, strict=True):
        share = float((drawn == row).all(1).double().mean())
        assert abs(share - float(chance)) < 5 * math.sqrt(float(chance) / 4000) + 1e-3


def test_what_the_policies_see() -> None:
    space = space_of(5)
    other = replace(space, features=torch.cat([space.features[:4], space.features[4:] + 1]))
    removal = Removal()
    assert (removal.logits(space) != removal.logits(other)).all()  # both ways along the layers
    rows = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [2, 0, 0, 0, 0], [2, 0, 0, 0, 1]])
    logs = Shrinking().log_prob(replace(space, choices=tuple(range(10))), rows).detach()
    assert float((logs[1] - logs[0]) - (logs[3] - logs[2])) != 0  # a choice depends on those before it
    shrinking = Shrinking()
    wide = replace(space, choices=tuple(range(10)))
    asked = replace(wide, steps=tuple((i, 1 - i % 2) for i in range(5)))
    assert not torch.equal(
        shrinking.log_prob(wide, rows), shrinking.log_prob(asked, rows)
    )  # nor which number
    assert isinstance(policy_for(space), Removal)
    assert isinstance(policy_for(wide), Shrinking)


@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_the_gradient_is_the_bandits(baseline: float) -> None:
    logits = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64, requires_grad=True)
    values = torch.tensor([1.0, 0.2, -0.6], dtype=torch.float64)
    p = logits.detach().softmax(0)
    wanted = p * (values - (p * values).sum())
    count = 40000
    drawn = torch.multinomial(p, count, replacement=True)
    loss = reinforce_loss(logits.log_softmax(0)[drawn], values[drawn], baseline)
    (slope,) = torch.autograd.grad(loss, logits)
    assert float((-slope - wanted).abs().max()) < 6 / math.sqrt(count)
    exact = sum(
        float(p[a]) * reinforce_loss(logits.log_softmax(0)[a : a + 1], values[a : a + 1], baseline)
        for a in range(3)
    )
    torch.testing.assert_close(-torch.autograd.grad(exact, logits)[0], wanted)  # type: ignore[arg-type]


def test_updates_by_hand() -> None:
    space = space_of(6)
    values = torch.rand(6).tolist()

    def objective(point: Any) -> float:
        if sum(point) == 3:
            raise ValueError("such students cannot be trained")
        return float(sum(v * k for v, k in zip(values, point, strict=True)))

    own = policy_for(space, seed=4)
    policy = copy.deepcopy(own)
    trials = reinforce(space, objective, 12, seed=4, policy=policy, lr=0.01, rollouts=4)
    adam, generator = torch.optim.Adam(own.parameters(), 0.01), torch.Generator().manual_seed(4)
    seen: list[float] = []
    for start in (0, 4, 8):
        actions = own.sample(space, 4, generator)
        rewards = [-1.0 if int(row.sum()) == 3 else objective(tuple(map(bool, row))) for row in actions]
        assert [max(t.value, -1.0) for t in trials[start : start + 4]] == rewards
        assert [t.point for t in trials[start : start + 4]] == [tuple(map(bool, row)) for row in actions]
        base = sum(seen or rewards) / len(seen or rewards)
        seen += rewards
        adam.zero_grad()
        logs = [own.log_prob(space, row[None])[0] for row in actions]
        loss: Any = -sum((r - base) * log for r, log in zip(rewards, logs, strict=True)) / 4
        loss.backward()
        adam.step()
    for a, b in zip(policy.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=0)  # Adam's steps are of 1e-2
    with pytest.raises(WorkingPapersError, match="at least one rollout; got 0"):
        make("n2n", rollouts=0)(space, objective, 4)


def test_students_learn_from_labels_and_logits() -> None:
    outputs, logits = torch.randn(5, 3), torch.randn(5, 3)
    labels = torch.tensor([0, 2, 1, 1, 0])
    targets = torch.cat([labels[:, None].float(), logits], 1)
    wanted = 0.6 * ((outputs - logits) ** 2).mean() + 0.4 * F.cross_entropy(outputs, labels)
    torch.testing.assert_close(distillation_loss(outputs, targets, 0.4), wanted)
    split = images("digits", train=60, test=30)
    model = teacher((12, 12))
    taught = with_logits(split, model)
    torch.testing.assert_close(taught.y_test[:, 1:], model.eval()(split.x_test))
    assert torch.equal(taught.y_train[:, 0].long(), split.y_train)


def test_the_best_by_size_and_accuracy() -> None:
    rows = [(0.5, 10), (0.9, 30), (0.4, 20), (0.9, 25), (0.95, 90), (0.0, 5)]
    students = [Student(None, a, n, -1.0 if n == 5 else 0.5) for a, n in rows]
    assert [(s.accuracy, s.parameters) for s in pareto(students)] == [(0.5, 10), (0.9, 25), (0.95, 90)]


def test_compressing_a_small_teacher(tmp_path: Path) -> None:
    split = images("digits", train=400, test=200)
    model = initialise(lambda: teacher((16, 24, 24, 32)), 0)
    fit(model, split, epochs=3, lr=5e-3, every=10**9)
    before = copy.deepcopy(model.state_dict())
    found = compress(model, split, budget=8, epochs=(1, 3))
    assert [len(found.history[s]) for s in ("remove", "shrink")] == [4, 4]
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in before.items())
    assert found.compression == pytest.approx(parameters(model) / parameters(found.student))
    assert found.compression > 1
    right = float((found.student(split.x_test).argmax(1) == split.y_test).double().mean())
    assert found.accuracy == pytest.approx(right)
    inner = searched(split)
    assert torch.equal(inner.x_test, split.x_train[300:])
    assert len(inner.x_train) == 300
    save(found.policies["shrink"], tmp_path / "policy.pt")
    again = restore(tmp_path / "policy.pt")
    assert isinstance(again, Shrinking)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.parameters(), found.policies["shrink"].parameters(), strict=True)
    )
    held = copy.deepcopy(again.state_dict())
    more = compress(model, split, ["shrink"], budget=2, epochs=(1, 1), policies={"shrink": again})
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in held.items())
    assert not torch.equal(more.policies["shrink"].head.bias, again.head.bias)  # it went on from there
    rollouts = Rollouts(model, inner)
    space = rollouts.space("remove")
    assert len(space.steps) == 3
    assert len(rollouts.space("shrink").steps) == 8
    whole = rollouts.student("remove", (True, True, True))
    assert whole.reward == 0
    assert whole.parameters == parameters(model)
    with pytest.raises(UnknownName, match="shrink"):
        compress(model, split, ["shrik"])
    with pytest.raises(WorkingPapersError, match="a trial for each"):
        compress(model, split, budget=1)
