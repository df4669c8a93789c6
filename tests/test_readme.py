"""Every command and every line of Python in the README runs."""

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.site.ingest_cases import listed, record, serving
from tests.site.test_serve import get
from tests.site.test_serve import serving as served
from tests.verbs.test_verify_certificate import write_question

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SCRIPT = """
import random

import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

def case():
    torch.manual_seed(0)
    return model(), (torch.randn(64, 8), torch.arange(64) % 2)

def decoder():
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
    return model, torch.randn(200, 8)

def run(activation, lr, seed):
    return {"accuracy": 0.9 + 0.05 * (activation == "golu") + 0.01 * random.random(), "loss": lr}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


# these two need a network or go on for ever; tests/site/ runs them in full
AGAINST_A_SERVER = ("workingpapers serve", "workingpapers ingest arxiv")
COMMANDS = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
MAKE = [line for block in blocks("console") for line in block.splitlines() if line.startswith("make ")]


def test_nothing_in_the_readme_is_left_out() -> None:
    lines = [line for block in blocks("console") for line in block.splitlines() if line.strip()]
    assert sorted(lines) == sorted([*MAKE, *(f"$ {c}" for c in COMMANDS)])
    assert all(command.startswith("workingpapers ") for command in COMMANDS)
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(AGAINST_A_SERVER)])
def test_command(command: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    write_question(tmp_path)
    words = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "workingpapers", *words],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    for name in [b for a, b in itertools.pairwise(words) if a in ("--report", "--out")]:
        assert (tmp_path / name).stat().st_size > 500


def test_the_site_is_served(tmp_path: Path) -> None:
    assert AGAINST_A_SERVER[0] in COMMANDS
    with served(folder=tmp_path) as (process, address, _):
        assert "Working Papers" in get(address).text
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_papers_come_in_from_arxiv(tmp_path: Path) -> None:
    (command,) = [c for c in COMMANDS if c.startswith(AGAINST_A_SERVER[1])]
    with serving([listed(record("2611.00001"))]) as arxiv:
        elsewhere = ["--base-url", arxiv.url, "--folder", str(tmp_path), "--pause", "0"]
        words = [sys.executable, "-m", *shlex.split(command), *elsewhere]
        done = subprocess.run(words, text=True, capture_output=True, check=False)
    assert done.stdout.startswith("1 papers: 1 new"), done.stderr


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_the_command(command: str) -> None:
    done = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = {"make demo": "workingpapers demo", "make test": "pytest"}[command]
    assert expected in done.stdout


def test_the_python_runs() -> None:
    *whole, sketch = blocks("python")
    exec(compile("\n".join(whole), "README", "exec"), {})
    compile(sketch, "README", "exec")


def test_links_inside_the_repository_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
