"""The table of tasks, budgets and examples: every task runs, repeats bit for bit, and learns."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from workingpapers.errors import UnknownName
from workingpapers.tasks import FULL, QUICK, TASKS, Budget, Task, budget, examples, task

BUNDLED = ("digits", "diabetes", "breast_cancer", "wine", "iris", "sine")
SHORT = {"epochs": 1, "steps": 3, "width": 4, "context": 16}


def short(chosen: Task) -> list[dict[str, float]]:
    options: dict[str, Any] = {k: v for k, v in SHORT.items() if k in chosen.variables}
    options["batch"] = 500 if "epochs" in chosen.variables else 16
    return list(chosen.run(QUICK, 0, **options))


def needs(request: pytest.FixtureRequest, name: str) -> None:
    if not name.startswith(BUNDLED):
        request.getfixturevalue("real_data")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_repeats_bit_for_bit(name: str, request: pytest.FixtureRequest) -> None:
    needs(request, name)
    chosen = task(name)
    first, again = short(chosen), short(chosen)
    assert first == again
    assert all(math.isfinite(value) for point in first for value in point.values())
    assert {"step", "loss", chosen.metric} <= first[-1].keys()
    assert chosen.goal in ("max", "min")
    assert chosen.name == name
    assert name.startswith(chosen.data)


# what any working model reaches under the quick budget, far from what a broken one does
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("digits-mlp", 0.93),  # chance 0.1
        ("digits-cnn", 0.93),
        ("iris-mlp", 0.9),
        ("mnist-mlp", 0.88),
        ("fashion_mnist-mlp", 0.78),
        ("cora-gcn", 0.78),  # published 0.815
        ("citeseer-gcn", 0.66),  # published 0.703
        ("yacht-mlp", 1.5),  # the targets' deviation is 15
        ("sine-mlp", 0.1),  # the wave's is 0.7
        ("etth1-mlp", 0.4),  # repeating the last value gives 1
    ],
)
def test_the_quick_budget_learns(name: str, bound: float, request: pytest.FixtureRequest) -> None:
    needs(request, name)
    chosen = task(name)
    value = list(chosen.run(QUICK, 0))[-1][chosen.metric]
    assert value > bound if chosen.goal == "max" else value < bound


def test_gpt_learns_more_than_letter_frequencies(real_data: None) -> None:
    chosen = task("tinyshakespeare-gpt")
    last = list(chosen.run(QUICK, 0, steps=200, context=16, width=32, lr=5e-3))[-1]
    assert last["loss"] < 3.0  # the entropy of single characters is 3.3 nats


def test_variables_reach_the_model() -> None:
    made = []

    class Spy(nn.ReLU):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    next(task("digits-mlp").run(QUICK, 0, activation=Spy, depth=5, epochs=1))
    assert len(made) == 5
    assert len(list(task("digits-mlp").run(QUICK, 0, epochs=3))) == 3
    slow = list(task("sine-mlp").run(QUICK, 0, lr=0.0, steps=20))
    assert slow[0]["rmse"] == slow[-1]["rmse"]


def test_a_diverged_run_ends_with_nan() -> None:
    curve = list(task("sine-mlp").run(QUICK, 0, lr=1e6, optimizer="sgd", activation=nn.ReLU))
    assert math.isnan(curve[-1]["rmse"])
    assert curve[-1]["step"] < 1000


def test_seeds_differ_and_pick_the_split_of_a_table() -> None:
    chosen = task("iris-mlp")
    assert short(chosen) != list(chosen.run(QUICK, 1, steps=3, width=4, batch=16))
    problems = [chosen.setup("iris", QUICK, seed, chosen.variables).problem for seed in (0, 1, 20)]
    tests = [p.split.x_test for p in problems]  # type: ignore[attr-defined]
    assert not torch.equal(tests[0], tests[1])
    assert torch.equal(tests[0], tests[2])
    fixed = chosen.setup("iris", QUICK, 1, {**chosen.variables, "split": 0}).problem
    assert torch.equal(tests[0], fixed.split.x_test)  # type: ignore[attr-defined]


def test_full_is_more_than_quick(real_data: None) -> None:
    for name in ("digits-cnn", "tinyshakespeare-gpt", "etth1-mlp", "yacht-mlp"):
        chosen = task(name)
        quick, full = (chosen.setup(chosen.data, b, 0, chosen.variables) for b in (QUICK, FULL))
        steps = [
            s.steps or (s.epochs or 0) * s.problem.steps_per_epoch(chosen.variables["batch"])
            for s in (quick, full)
        ]
        assert steps[1] >= 5 * steps[0]


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(UnknownName, match="no task is named 'digit-mlp'.*'digits-mlp'"):
        task("digit-mlp")
    with pytest.raises(
        UnknownName, match="no variable of the task 'digits-mlp' is named 'activatoin'.*'activation'"
    ):
        task("digits-mlp").run(QUICK, 0, activatoin=nn.ReLU)
    with pytest.raises(UnknownName, match="no budget is named 'ful'.*'full'"):
        budget("ful")


def test_budgets_pick() -> None:
    assert budget("quick") == QUICK == Budget("quick")
    assert (QUICK.pick(quick=1, full=2), FULL.pick(quick=1, full=2)) == (1, 2)


@pytest.mark.parametrize("make", [examples.images(2, 5, 4), examples.tokens(7, 6), examples.vectors(3, 2)])
def test_examples_follow_their_generator(make: examples.MakeExample) -> None:
    first, again, other = (make(8, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first.inputs[0], again.inputs[0])
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs[0], other.inputs[0])


def test_example_losses_in_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = examples.images(1, 4, 10)(5, generator)
    assert float(picture.loss(torch.zeros(5, 10), picture.targets)) == pytest.approx(math.log(10))
    words = examples.tokens(7, 6)(5, generator)
    assert torch.equal(words.inputs[0][:, 1:], words.targets[:, :-1])
    assert float(words.loss(torch.zeros(5, 6, 7), words.targets)) == pytest.approx(math.log(7))
    vector = examples.vectors(3, 2)(5, generator)
    assert float(vector.loss(vector.targets + 2.0, vector.targets)) == pytest.approx(4.0)
