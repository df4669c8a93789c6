"""inspect: planted faults are named, healthy twins are not; what it keeps, compares, prints and writes."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.verbs._inspection import Inspection
from workingpapers.verbs.inspect import CHECKS, inspect

RATE = 0.05
NAMING = [name for name in CHECKS if name != "splinecam.slice"]  # which takes long and names no fault
Plant = Callable[[nn.Sequential, torch.Generator], None]


def trained(generator: torch.Generator) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    """Return a small classifier of two hidden layers, trained for a moment, and its data."""
    draw: dict[str, Any] = {"generator": generator}
    inputs, classes = int(torch.randint(5, 20, (), **draw)), int(torch.randint(3, 6, (), **draw))
    widths = [inputs, *(int(w) for w in torch.randint(24, 65, (3,), **draw)), classes]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, **draw) * ((2 / p.shape[1]) ** 0.5 if p.ndim > 1 else 0.05))
    x = torch.randn(400, inputs, **draw)
    y = (x @ torch.randn(inputs, classes, **draw)).argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for step in range(60):
        part = slice(step % 4 * 100, step % 4 * 100 + 100)
        optimizer.zero_grad()
        functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    return model, (x, y)


def linear(model: nn.Sequential, generator: torch.Generator) -> nn.Linear:
    """Return one of the hidden layers."""
    found = model[2 * int(torch.randint(3, (), generator=generator))]
    assert isinstance(found, nn.Linear)
    return found


def plant_dead(model: nn.Sequential, generator: torch.Generator) -> None:
    layer = linear(model, generator)
    units = torch.randperm(layer.out_features, generator=generator)[: -(-layer.out_features // 5)]
    layer.bias[units] = -1e3


def plant_twins(model: nn.Sequential, generator: torch.Generator) -> None:
    layer = linear(model, generator)
    a, b = torch.randperm(layer.out_features, generator=generator)[:2].tolist()
    layer.weight[b], layer.bias[b] = layer.weight[a], layer.bias[a]


def plant_collapse(model: nn.Sequential, generator: torch.Generator) -> None:
    layer = linear(model, generator)
    layer.weight.copy_(torch.outer(layer.weight[:, 0], torch.randn(layer.in_features, generator=generator)))


def plant_scale(model: nn.Sequential, generator: torch.Generator) -> None:
    large = bool(torch.rand((), generator=generator) < 0.5)
    for p in model.parameters():
        p.mul_(20.0 if large else 0.02)


FAULTS: dict[str, tuple[Plant | None, str]] = {
    "dead units": (plant_dead, "ap_prune.dead"),
    "twins": (plant_twins, "convergent_learning.duplicates"),
    "collapse": (plant_collapse, "edim_oscillation.collapse"),
    "scale": (plant_scale, "pdlt.scale"),
    "rate": (None, "sgd_stability.limit"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_named_and_healthy_twins_are_not(fault: str) -> None:
    """Of 20 plantings, at most one is missed or its healthy twin accused."""
    plant, check = FAULTS[fault]
    wrong = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(1000 + seed)
        model, data = trained(generator)
        healthy = inspect(model, data, loss="cross_entropy", lr=RATE, checks=NAMING)
        assert not healthy.failed
        if plant is not None:
            with torch.no_grad():
                plant(model, generator)
        sick = inspect(model, data, loss="cross_entropy", lr=RATE if plant else 60.0, checks=NAMING)
        if not healthy.healthy or check not in {name for name, _ in sick.symptoms}:
            wrong.append((seed, healthy.headline(), [s.says for _, s in healthy.symptoms], sick.headline()))
    assert len(wrong) <= 1, wrong


def test_a_network_of_nan_is_not_healthy() -> None:
    model, data = trained(torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.get_parameter("2.weight")[1, 0] = torch.nan
    sick = inspect(model, data, loss="cross_entropy", checks=["edim_oscillation", "ocs_extrapolation"])
    assert not sick.healthy
    check, symptom = sick.symptoms[0]
    assert (check, symptom.where) == ("sweep", "2")
    assert "rows not finite in 0" not in sick["sweep"].numbers


@pytest.fixture(scope="module")
def found() -> Inspection:
    return inspect(*trained(torch.Generator().manual_seed(0)), loss="cross_entropy", lr=RATE)


def test_what_is_kept_is_read_back(found: Inspection, tmp_path: Path) -> None:
    again = Inspection.load(found.save(tmp_path / "found.json"))
    assert json.loads(json.dumps(again.as_dict())) == json.loads(json.dumps(found.as_dict()))
    assert str(again) == str(found)


def test_two_inspections_side_by_side(found: Inspection) -> None:
    sick = inspect(*trained(torch.Generator().manual_seed(0)), loss="cross_entropy", lr=60.0)
    difference = sick.since(found)
    assert [check for check, _ in difference.new] == ["sgd_stability.limit"]
    assert difference.gone == []
    changed = difference.numbers()
    assert changed["sgd_stability.limit: limit"] == pytest.approx((2 / RATE, 2 / 60))
    assert "over the stability limit" in str(difference)
    assert found.since(sick).gone == difference.new


def test_the_model_and_its_gradients_stay_as_they_were() -> None:
    model, data = trained(torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    inspect(model.train(), data, loss="cross_entropy", lr=RATE)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None and grad is None) or torch.equal(p.grad, grad)  # type: ignore[arg-type]


def test_chosen_checks_only_and_what_they_need() -> None:
    model, (x, _) = trained(torch.Generator().manual_seed(2))
    alone = inspect(model, x, checks=["sgd_stability", "edim_oscillation.collapse"])
    assert list(alone.findings) == ["edim_oscillation.collapse"]
    assert "a loss" in alone.skipped["sgd_stability.limit"]
    with pytest.raises(UnknownName, match="edim_oscillation.collapse"):
        inspect(model, x, checks="edim_oscilation.collapse")
    with pytest.raises(UnknownName, match="cross_entropy"):
        inspect(model, x, loss="crossentropy")
    with pytest.raises(WorkingPapersError, match="got function"):
        inspect(lambda h: h, x)  # type: ignore[arg-type]


def test_the_page_stands_alone(found: Inspection, tmp_path: Path) -> None:
    text = found.report(tmp_path / "page.html").read_text("utf-8")
    for check, finding in found.findings.items():
        assert f'id="{check}"' in text
        assert finding.reading.split("'")[0][:30] in text
    assert text.count("<svg") == sum(f.figure is not None for f in found.findings.values())
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    with pytest.raises(WorkingPapersError, match="cannot write"):
        found.report(tmp_path / "no" / "page.html")


CASE = """
import torch
from torch import nn

def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    return model, (torch.randn(120, 6), torch.randint(3, (120,)))

def none():
    return 3
"""


def shell(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workingpapers", "inspect", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_in_the_shell(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(CASE)
    done = shell("my.py:case", "--loss", "cross_entropy", "--lr", "0.1", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["healthy"] is True
    done = shell("my.py:case", "--loss", "cross_entropy", "--lr", "500", folder=tmp_path)
    assert done.returncode == 1
    assert "stability limit" in done.stdout
    done = shell("my.py:none", folder=tmp_path)
    assert done.returncode == 2
    assert "returns a int" in done.stderr
