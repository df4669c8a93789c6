"""Rules for large batches: rates, warm-up, and that accumulated gradients are those of one large batch."""

import pytest
import torch
from torch import nn

from workingpapers.data import images
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.training._large_batch import (
    Accumulated,
    Recipe,
    scaled_lr,
    sweep,
    train_at,
    warmup_share,
    warmup_then_decay,
)
from workingpapers.tasks import mlp


def test_rates_follow_the_batch() -> None:
    assert scaled_lr(0.01, 8192, 128) == pytest.approx(0.08)
    assert scaled_lr(0.01, 8192, 128, "linear") == pytest.approx(0.64)
    assert scaled_lr(0.01, 8192, 128, "constant") == 0.01
    with pytest.raises(UnknownName, match="no rule for the learning rate is named 'root'"):
        scaled_lr(0.01, 2, 1, "root")


def test_warmup_grows_with_the_batch() -> None:
    assert warmup_share(0.01, 1024, 128) == pytest.approx(0.08)
    assert warmup_share(0.01, 128 * 64, 128) == 0.5


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_schedule_rises_linearly_and_falls_as_a_power(power: float) -> None:
    factor = warmup_then_decay(0.2, power)
    found = [factor(done) for done in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 0.5**power, 0.0])
    assert warmup_then_decay(0.0)(0.0) == 1.0


def test_parts_of_a_batch_give_the_step_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, generator=generator), torch.randn(12, 1, generator=generator)
    whole, parts = nn.Linear(3, 1), nn.Linear(3, 1)
    parts.load_state_dict(whole.state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (whole, parts)]
    accumulated = Accumulated(optimizers[1], 3)
    for rate in (0.1, 0.01):
        for optimizer in (optimizers[0], accumulated):
            for group in optimizer.param_groups:
                group["lr"] = rate  # as a schedule sets it
        optimizers[0].zero_grad()
        (whole(x) - y).square().mean().backward()
        optimizers[0].step()
        for piece, target in zip(x.split(4), y.split(4), strict=True):
            accumulated.zero_grad()
            (parts(piece) - target).square().mean().backward()
            accumulated.step()
        for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    before = parts.weight.detach().clone()
    accumulated.step()
    assert torch.equal(parts.weight, before)  # a third of a batch makes no step
    with pytest.raises(WorkingPapersError, match="at least 1 batch; got 0"):
        Accumulated(optimizers[0], 0)


class Counting(torch.optim.SGD):
    """Notes the learning rate of each step."""

    rates: list[float]

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


def test_training_takes_the_steps_of_the_large_batch() -> None:
    made = []

    def make(parameters, lr: float) -> torch.optim.Optimizer:  # type: ignore[no-untyped-def]
        made.append(Counting(parameters, lr))
        made[-1].rates = []
        return made[-1]

    split = images("digits", train=300, test=100)
    recipe = Recipe(make, (0.1,), rule="linear")
    train_at(lambda: mlp([64, 10]), split, recipe, 0.1, 256, epochs=4, base_batch=128, warmup=0.125, micro=64)
    rates = made[0].rates
    assert len(rates) == 4  # 4 epochs of 300 examples in batches of 256
    # the rate doubles with the batch, the warm-up too, to a quarter; each step's rate is that of its last part
    done = [(4 * k + 3) / 16 for k in range(4)]
    assert rates == pytest.approx([0.2 * (d / 0.25 if d < 0.25 else (1 - d) / 0.75) for d in done])


def test_sweep_keeps_the_best_rate_of_the_base() -> None:
    tried = []

    def make(parameters, lr: float) -> torch.optim.Optimizer:  # type: ignore[no-untyped-def]
        tried.append(lr)
        return torch.optim.SGD(parameters, lr, momentum=0.9)

    split = images("digits", train=400, test=100)
    found = sweep(
        lambda: mlp([64, 10]), split, {"sgd": Recipe(make, (1e-5, 0.05, 1e-4))}, (32, 128), epochs=3, micro=64
    )
    assert tried == pytest.approx(
        [1e-5, 0.05, 1e-4, 0.1]
    )  # 0.05 wins, and twice that at four times the batch
    assert set(found["sgd"]) == {32, 128}
    assert found["sgd"][32] > 0.7


def test_a_diverged_run_counts_nothing() -> None:
    recipe = Recipe(lambda parameters, lr: torch.optim.SGD(parameters, lr), (1e30,), rule="constant")
    split = images("digits", train=100, test=50)
    assert train_at(lambda: mlp([64, 32, 10]), split, recipe, 1e30, 10, epochs=3) == 0.0
