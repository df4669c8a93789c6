"""The training loop: closed forms, seeds, order, divergence, schedules, and torch's own state left alone."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split, images
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.tasks import Regression, fit, initialise, mlp
from workingpapers.tasks.training import SCHEDULES, Training, points


def linear_data(rows: int = 96, features: int = 5) -> Split:
    """Return a noisy linear regression in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    y = x @ torch.arange(1.0, features + 1, dtype=torch.float64).unsqueeze(1) + 0.5 + noise
    return Split(x[:64], y[:64], x[64:], y[64:], 0, "linear", y_mean=3.0, y_std=2.0)


def line(seed: int = 0) -> nn.Linear:
    return initialise(lambda: nn.Linear(5, 1), seed).double()


def least_squares(split: Split) -> Tensor:
    """Return (weights, bias) of the least-squares solution by its normal equations."""
    design = torch.cat([split.x_train, torch.ones(len(split.x_train), 1, dtype=torch.float64)], 1)
    return torch.linalg.solve(design.T @ design, design.T @ split.y_train).squeeze(1)


def solution(model: nn.Linear) -> Tensor:
    return torch.cat([model.weight.detach()[0], model.bias.detach()])


def dropout_net() -> nn.Module:
    return mlp([64, 32, 10], dropout=0.5)


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [("sgd", 0.02), ("adam", 0.3), ("adamw", 0.3), (lambda params, lr: torch.optim.LBFGS(params, lr), 1.0)],
)
def test_linear_regression_reaches_least_squares(optimizer: Any, lr: float) -> None:
    split, model = linear_data(), line()
    fit(model, split, epochs=400, batch=64, lr=lr, optimizer=optimizer, schedule="cosine")
    assert torch.allclose(solution(model), least_squares(split), atol=1e-4)


def test_metrics_are_those_of_the_test_part() -> None:
    split, model = linear_data(), line()
    result = fit(model, split, epochs=3, batch=16)
    mse = float((model(split.x_test) - split.y_test).detach().square().mean())
    assert result.metrics["mse"] == pytest.approx(mse)
    assert result.metrics["loss"] == pytest.approx(mse)
    assert result.metrics["rmse"] == pytest.approx(2.0 * math.sqrt(mse))
    assert {"step": 12, **result.metrics} == result.curve[-1]
    assert [p["step"] for p in result.curve] == [4, 8, 12]
    assert not model.training
    assert not result.diverged


def test_one_step_of_sgd_is_the_formula() -> None:
    split, model = linear_data(), line()
    before = solution(model)
    loss = F.mse_loss(model(split.x_train), split.y_train)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    result = fit(model, split, steps=1, batch=64, lr=0.1, optimizer="sgd", weight_decay=0.3)
    gradient = torch.cat([grads[0][0], grads[1]])
    assert torch.allclose(solution(model), before - 0.1 * (gradient + 0.3 * before), atol=1e-12)
    assert result.metrics["train_loss"] == pytest.approx(float(loss.detach()))


def test_sgd_has_momentum() -> None:
    split, model = linear_data(), line()
    w, v = solution(model), torch.zeros(6, dtype=torch.float64)
    design = torch.cat([split.x_train, torch.ones(64, 1, dtype=torch.float64)], 1)
    for _ in range(3):
        v = 0.9 * v + 2 / 64 * design.T @ (design @ w - split.y_train[:, 0])
        w = w - 0.05 * v
    fit(model, split, steps=3, batch=64, lr=0.05, optimizer="sgd")
    assert torch.allclose(solution(model), w, atol=1e-10)


def test_the_same_seed_gives_the_same_bits() -> None:
    split = images("digits", train=300, test=100)
    runs = []
    for seed in (3, 3, 4):
        torch.rand(7)  # what was drawn before must not matter
        model = initialise(dropout_net, seed)
        runs.append((fit(model, split, epochs=2, seed=seed), [p.detach() for p in model.parameters()]))
    assert runs[0][0].curve == runs[1][0].curve
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert runs[0][0].curve != runs[2][0].curve


def test_the_global_random_state_is_left_as_found() -> None:
    split = images("digits", train=300, test=100)
    before = torch.get_rng_state()
    model = initialise(dropout_net, 0)
    fit(model, split, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    for _ in points(model, split, Training(epochs=2)):
        assert torch.equal(torch.get_rng_state(), before)


def test_draws_between_points_change_nothing() -> None:
    split = images("digits", train=300, test=100)
    expected = fit(initialise(dropout_net, 0), split, epochs=3).curve
    found = []
    for point in points(initialise(dropout_net, 0), split, Training(epochs=3)):
        torch.rand(13)
        found.append(point)
    assert found == expected


class Drawing(nn.Module):
    """Draws a number from the global state in each training step, as dropout does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = line()
        self.drawn: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.drawn.append(float(torch.rand(())))
        out: Tensor = self.linear(x)
        return out


def test_draws_in_training_follow_from_the_seed_and_never_repeat() -> None:
    runs = []
    for seed in (0, 0, 1):
        model = Drawing()
        fit(model, linear_data(), steps=12, every=3, seed=seed)
        runs.append(model.drawn)
    assert runs[0] == runs[1]
    assert len({*runs[0], *runs[2]}) == 24


class Recorder(nn.Module):
    """Keeps the inputs it was trained on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x)
        out: Tensor = self.model(x)
        return out


def seen(build: Any, seed: int = 0, epochs: int = 2) -> Tensor:
    split = images("digits", train=300, test=50)
    model = Recorder(initialise(build, seed))
    fit(model, split, epochs=epochs, batch=30, seed=seed)
    return torch.stack(model.seen)


def test_the_data_come_in_the_same_order_to_every_variant() -> None:
    plain = seen(lambda: mlp([64, 32, 10]))
    assert torch.equal(plain, seen(lambda: mlp([64, 16, 16, 10], nn.Tanh, dropout=0.3)))
    assert not torch.equal(plain, seen(lambda: mlp([64, 32, 10]), seed=1))


def test_an_epoch_shows_every_sample_once() -> None:
    batches = seen(lambda: mlp([64, 32, 10]))
    train = images("digits", train=300, test=50).x_train
    everything = sorted(map(tuple, train.flatten(1).tolist()))
    first, second = (sorted(map(tuple, e.flatten(0, 1).flatten(1).tolist())) for e in batches.split(10))
    assert first == second == everything
    assert not torch.equal(batches[:10], batches[10:])


def test_a_diverged_run_is_a_result() -> None:
    split, model = linear_data(), line()
    result = fit(model, split, steps=2000, batch=64, lr=50.0, optimizer="sgd", every=1000)
    assert result.diverged
    assert all(math.isnan(v) for v in result.metrics.values())
    assert set(result.metrics) == {"loss", "mse", "rmse", "train_loss"}
    assert len(result.curve) == 1
    assert result.curve[-1]["step"] < 1000


def test_divergence_after_a_good_point_keeps_that_point() -> None:
    calls = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        value = F.mse_loss(outputs, targets)
        return value * math.inf if len(calls) == 8 else value

    result = fit(line(), linear_data(), steps=20, batch=64, every=5, loss=loss)
    assert [p["step"] for p in result.curve] == [5, 7]  # the sixth call measured the test part
    assert math.isfinite(result.curve[0]["loss"])
    assert result.diverged


class Watcher(torch.optim.SGD):
    """Records the learning rates in force at each step."""

    rates: list[list[float]]

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        weight, bias = params
        super().__init__([{"params": [weight]}, {"params": [bias], "lr": 10 * lr}], lr)
        self.rates = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.rates.append([group["lr"] for group in self.param_groups])
        super().step()


def rates(schedule: Any, steps: int = 8) -> list[list[float]]:
    made: list[Watcher] = []

    def optimizer(params: Iterable[nn.Parameter], lr: float) -> Watcher:
        made.append(Watcher(params, lr))
        return made[0]

    fit(line(), linear_data(), steps=steps, lr=1e-3, optimizer=optimizer, schedule=schedule)
    return made[0].rates


def test_schedules_scale_every_group() -> None:
    cosine = [1e-3 * 0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    for found, expected in zip(rates("cosine"), cosine, strict=True):
        assert found == pytest.approx([expected, 10 * expected])
    assert [r[0] for r in rates("linear")] == pytest.approx([1e-3 * (1 - k / 8) for k in range(8)])
    assert [r[0] for r in rates(None)] == [1e-3] * 8
    assert [r[0] for r in rates(lambda done: 1 + done)] == pytest.approx(
        [1e-3 * (1 + k / 8) for k in range(8)]
    )


def test_warmup_rises_to_the_full_rate_then_falls_to_none() -> None:
    factor = SCHEDULES["warmup_cosine"]
    values = [factor(k / 1000) for k in range(1001)]
    top = values.index(max(values))
    assert values[top] == pytest.approx(1.0)
    assert top == 50
    assert 0 < values[0] < 0.15
    steps = [b - a for a, b in pairwise(values)]
    assert min(steps[:top]) > 0 > max(steps[top:])
    assert values[-1] == pytest.approx(0, abs=1e-12)


def test_frozen_parameters_stay() -> None:
    model = line()
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    fit(model, linear_data(), steps=5)
    assert torch.equal(model.bias, before)


def test_every_says_how_often_to_measure() -> None:
    result = fit(line(), linear_data(), steps=10, every=4)
    assert [p["step"] for p in result.curve] == [4, 8, 10]
    assert len(fit(line(), linear_data(), steps=95).curve) == 10


def test_train_loss_is_the_mean_since_the_last_point() -> None:
    each = fit(line(), linear_data(), steps=6, batch=16, every=1).curve
    both = fit(line(), linear_data(), steps=6, batch=16, every=3).curve
    for k in (0, 1):
        mean = sum(p["train_loss"] for p in each[3 * k : 3 * k + 3]) / 3
        assert both[k]["train_loss"] == pytest.approx(mean)


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    ones, twos = line(), line()
    fit(ones, linear_data(), steps=3, batch=64, optimizer="sgd", lr=0.01)
    fit(twos, linear_data(), steps=3, batch=1000, optimizer="sgd", lr=0.01)
    assert torch.allclose(solution(ones), solution(twos), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either `epochs` or `steps`"),
        ({"epochs": 1, "steps": 1}, "give either `epochs` or `steps`"),
        ({"epochs": 0}, "`epochs` is a count of at least 1; got 0"),
        ({"steps": 1, "batch": 0}, "`batch` is a count of at least 1; got 0"),
        ({"steps": 1, "every": -1}, "`every` is a count of at least 1; got -1"),
        ({"steps": 1, "optimizer": "adamm"}, "no optimizer is named 'adamm'; the nearest name.* 'adam'"),
        ({"steps": 1, "schedule": "cosin"}, "no schedule is named 'cosin'; the nearest names are 'cosine'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkingPapersError, match=message):
        fit(line(), linear_data(), **options)


def test_other_misuse_is_named() -> None:
    with pytest.raises(WorkingPapersError, match="Flatten has no parameters to train"):
        fit(nn.Flatten(), linear_data(), steps=1)
    with pytest.raises(WorkingPapersError, match="got Tensor"):
        fit(line(), torch.zeros(3), steps=1)  # type: ignore[arg-type]
    with pytest.raises(WorkingPapersError, match=r"give it to Regression\(...\) instead"):
        fit(line(), Regression(linear_data(), None), steps=1, loss=F.l1_loss)
    with pytest.raises(WorkingPapersError, match=r"outputs have the shape \(64,\), the targets \(64, 1\)"):
        fit(nn.Sequential(line(), nn.Flatten(0)), linear_data(), steps=1)
    assert issubclass(UnknownName, WorkingPapersError)
