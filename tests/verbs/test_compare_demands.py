"""compare under users who do what its authors did not think of; each test is one that once went wrong."""

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.verbs.test_compare import shell

from workingpapers import compare
from workingpapers.errors import WorkingPapersError
from workingpapers.verbs import _print

SCRIPT = """
import os, random, torch
print("printed while the script is loaded")
def marked(a, seed): raise ValueError("no token [/INST] in [batch, dim]")
def loud(a, seed):
    print("printed by a run")
    return float(seed)
def order(a, seed): return list({f"word{i}" for i in range(99)}).index("word7")
def forked(a, seed):
    os.fork()
    return random.random()
def device(a, seed):
    found = float(torch.ones(3).sum())
    torch.set_default_device("meta")
    return found
"""


def test_the_words_of_users_are_no_markup(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(SCRIPT)
    done = shell("compare", "t.py:marked", "a=[red]x,[/b]", "--seeds", "1", "--workers", "0", cwd=tmp_path)
    assert done.returncode == 1
    assert "[red]x" in done.stdout
    assert "no token [/INST] in [batch, dim]" in done.stdout


def test_standard_output_is_kept_for_json(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(SCRIPT)
    done = shell("compare", "t.py:loud", "a=1,2", "--seeds", "2", "--workers", "0", "--json", cwd=tmp_path)
    assert len(json.loads(done.stdout)["runs"]) == 4
    assert "printed by a run" in done.stderr
    assert "printed while the script is loaded" in done.stderr


def test_a_format_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(SCRIPT)
    done = shell("compare", "t.py:loud", "a=1", "--workers", "0", "--out", "r.txt", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no format of results file is named '.txt'" in done.stderr


def test_a_report_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkingPapersError, match=r"cannot write the report .*file/r\.html"):
        _print.report(str(tmp_path / "file" / "r.html"))


def test_a_missing_metric_is_no_divergence() -> None:
    def run(a: str, seed: int) -> dict[str, float]:
        return {"accuracy": 1.0} if a == "x" else {"loss": 1.0}

    with pytest.raises(
        WorkingPapersError, match=r"2 of 4 runs give no 'accuracy', such as \{'a': 'y'\}.*loss"
    ):
        compare(run, {"a": ["x", "y"]}, seeds=2, workers=0, metric="accuracy")


def test_a_lone_step_is_no_metric() -> None:
    with pytest.raises(WorkingPapersError, match="the runs give epoch alone"):
        compare(lambda seed: {"epoch": 3}, seeds=1, workers=0)


def test_variants_stay_apart_where_their_short_labels_agree() -> None:
    def run(a: Any, seed: int) -> float:
        return 1.0 if a == 0.12345678 else 2.0

    result = compare(run, {"a": [0.12345678, 0.12345679]}, seeds=2, workers=0)
    assert {r.label: r.mean for r in result.rows} == {"a=0.12345678": 1.0, "a=0.12345679": 2.0}
    blank = compare(run, {"a": ["", "run", "x"]}, seeds=1, workers=0)
    assert len({r.label for r in blank.rows}) == 3
    with pytest.raises(WorkingPapersError, match="twice"):
        compare(run, {"a": [math.nan, float("nan")]}, seeds=1, workers=0)


def test_a_changed_object_is_run_again(tmp_path: Path) -> None:
    def values(source: str) -> list[Any]:
        scope: dict[str, Any] = {"__name__": "__main__"}
        exec(source, scope)
        found = compare(call, {"f": [scope["double"], abs]}, seeds=1, workers=0, store=tmp_path / "s")
        assert found.runs[0].variant == {"f": "double"}
        return [r.metrics for r in found.runs]

    def call(f: Callable[[float], float], seed: int) -> float:
        return f(seed - 3.0)

    assert values("def double(x): return 2 * x") == [{"value": -6.0}, {"value": 3.0}]
    assert values("def double(x): return x + x + 1") == [{"value": -5.0}, {"value": 3.0}]


def test_the_baseline_may_be_an_object() -> None:
    result = compare(lambda f, seed: f(4.0), {"f": [math.sqrt, abs]}, seeds=1, workers=0, baseline={"f": abs})
    assert result.baseline == {"f": "abs"}


def test_columns_of_the_table_do_not_hide_what_varies(tmp_path: Path) -> None:
    result = compare(lambda code, seed: 1.0, {"code": [1, "auto", None]}, seeds=1, workers=0)
    assert {row["variant_code"] for row in result.table()} == {1, "auto", None}
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(result.save(tmp_path / "r.parquet")).to_pylist()
    assert {row["variant_code"] for row in table} == {"1", "auto", None}


def test_seeds_are_whole_numbers() -> None:
    assert [r.seed for r in compare(lambda seed: 1.0, seeds=np.arange(2), workers=0).runs] == [0, 1]
    for wrong in ([0.5], 2.5, None, "3"):
        with pytest.raises(WorkingPapersError, match="seeds must be"):
            compare(lambda seed: 1.0, seeds=wrong, workers=0)  # type: ignore[arg-type]


def test_an_argument_that_nobody_gives_is_noticed_before_anything_is_run() -> None:
    with pytest.raises(WorkingPapersError, match="a seed alone: missing a required argument: 'lr'"):
        compare(lambda kind, lr, seed: 1.0, {"kind": ["a"]}, workers=0)


def test_a_script_that_exits_while_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(WorkingPapersError, match="cannot load .*SystemExit: 0"):
        compare(f"{tmp_path / 't.py'}:run")


class Silent(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_errors_without_words_or_with_odd_ones_are_stored() -> None:
    def run(error: str, seed: int) -> float:
        raise Silent if error == "silent" else ValueError(os.fsdecode(b"\xff"))

    result = compare(run, {"error": ["silent", "odd"]}, seeds=1, workers=0)
    assert [r.error for r in result.failures] == ["Silent", r"ValueError: \udcff"]


def test_a_text_that_cannot_be_stored_is_one_sentence() -> None:
    with pytest.raises(WorkingPapersError, match="a variant takes JSON values"):
        compare(lambda a, seed: 1.0, {"a": [os.fsdecode(b"\xff")]}, seeds=1, workers=0)


def test_runs_do_not_feel_their_worker_or_the_runs_before(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(SCRIPT)
    for name, told in (("device", {3.0}), ("order", None), ("forked", None)):
        result = compare(f"{tmp_path / 't.py'}:{name}", {"a": [1, 2]}, seeds=2, workers=2)
        values = {run.variant["a"]: [] for run in result.runs}
        for run in result.runs:
            values[run.variant["a"]].append((run.metrics or {}).get("value"))
        assert values[1] == values[2], name
        assert not result.failures
        assert told is None or set(values[1]) == told


def test_objects_have_names_without_addresses() -> None:
    def power(x: float, by: int = 1) -> float:
        return x**by

    class Rate:
        def __call__(self, x: float) -> float:
            return x

    functions = [partial(power, by=2), partial(power, by=3), lambda x: x, lambda x: -x, Rate()]
    result = compare(lambda f, seed: f(2.0), {"f": functions}, seeds=2, workers=0)
    names = [row["f"] for row in result.variants]
    assert names[:2] == ["power(by=2)", "power(by=3)"]
    assert names[2].startswith("lambda in test_compare_demands.py:")
    assert names[3] == names[2] + "'"
    assert not any(" at 0x" in name for name in names)
    assert {row.label: row.mean for row in result.rows}["power(by=3)"] == 8


def test_true_and_one_are_different_values() -> None:
    result = compare(lambda a, b, seed: 1.0, {"a": [True, 1], "b": [2, 3]}, seeds=1, workers=0)
    assert len({row.label for row in result.rows}) == 4
