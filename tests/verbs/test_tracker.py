"""Tracking: as often as asked, no more of the time than allowed, nothing of training changed."""

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workingpapers.errors import WorkingPapersError
from workingpapers.verbs._tracker import Tracker


def start() -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return model, (torch.randn(256, 6, generator=generator), torch.randint(3, (256,), generator=generator))


def train(model: nn.Module, data: tuple[Tensor, Tensor], steps: int, tracker: Tracker | None) -> None:
    torch.manual_seed(7)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
        if tracker is not None:
            tracker.step()


def test_every_so_many_steps_and_training_goes_on_as_without(tmp_path: Path) -> None:
    model, data = start()
    twin = copy.deepcopy(model)
    tracker = Tracker(model, data, every=4, checks=["edim_oscillation"], path=tmp_path / "course.jsonl")
    train(model, data, 20, tracker)
    train(twin, data, 20, None)
    assert [step for step, _ in tracker.history] == [4, 8, 12, 16, 20]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    lines = [json.loads(line) for line in (tmp_path / "course.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20]
    course = tracker.course()["edim_oscillation.collapse: rank of 0"]
    assert [step for step, _ in course] == [4, 8, 12, 16, 20]
    assert lines[2]["findings"]["edim_oscillation.collapse"]["numbers"]["rank of 0"] == course[2][1]
    assert course[0][1] != course[-1][1]
    assert tracker.figure().axes[0].lines[0].get_xdata()[-1] == 20


def test_it_keeps_to_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of 10 ms and inspections of 60 ms, on a clock of ours, a share of 10 % is one in 60 steps."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    model, data = start()
    tracker = Tracker(model, data, overhead=0.1, checks=["edim_oscillation"])

    def slowly(*args: Any, **kwargs: Any) -> Any:
        now[0] += 0.06

    monkeypatch.setattr("workingpapers.verbs._tracker.inspect", slowly)
    for _ in range(1200):
        now[0] += 0.01
        tracker.step()
    assert tracker.spent <= 0.1 * now[0]
    assert tracker.spent > 0.08 * now[0]


def test_only_the_first_examples_are_used() -> None:
    model, data = start()
    tracker = Tracker(model, data, examples=100, checks=["ocs_extrapolation"])
    assert tracker.inspect().examples == 100


@pytest.mark.parametrize("options", [{"overhead": 0.0}, {"every": 0}, {"examples": 0}])
def test_what_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(WorkingPapersError, match="expected 0 < overhead"):
        Tracker(*start(), **options)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.pytorch.callbacks", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    tracker = Tracker(*start())
    with pytest.raises(WorkingPapersError, match="pip install lightning"):
        tracker.lightning()
    with pytest.raises(WorkingPapersError, match="pip install transformers"):
        tracker.transformers()
