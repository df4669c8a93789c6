"""compare: from the user's function to one honest word a variant, with everything that can go wrong on the way."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workingpapers import compare
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.statistics import Difference
from workingpapers.verbs.compare import parse_arguments, parse_baseline, parse_value


def noisy(kind: str, seed: int) -> float:
    """Seeds differ by ten, kinds by one: only pairing can tell."""
    return 10.0 * seed + (1.0 if kind == "good" else 0.0) + 0.01 * ((seed * 7919 + len(kind)) % 13)


def test_pairs_tell_what_the_spread_hides() -> None:
    result = compare(noisy, {"kind": ["plain", "good"]}, seeds=6, workers=0)
    good = next(r for r in result.rows if r.label == "good")
    assert good.difference is not None
    assert good.difference.word == Difference.BETTER
    assert good.difference.interval.low < 1.0 < good.difference.interval.high + 0.2
    assert [r.label for r in result.rows] == ["good", "plain"]
    assert result.by_label["plain"][2].metrics == {"value": noisy("plain", 2)}
    unpaired = compare(noisy, {"kind": ["plain", "good"]}, seeds=6, workers=0, paired=False)
    assert {r.difference.word for r in unpaired.rows if r.difference} <= {Difference.NONE, Difference.BETTER}
    seeds = [{r.seed for r in runs} for runs in unpaired.by_label.values()]
    assert seeds[0].isdisjoint(seeds[1])


def test_every_combination_is_run_and_the_first_is_the_baseline() -> None:
    def run(a: str, b: float, seed: int) -> dict[str, float]:
        return {"loss": b + len(a) + seed}

    result = compare(run, {"a": ["x", "yy"], "b": [0.5, 1.5]}, seeds=4, workers=0)
    assert result.baseline == {"a": "x", "b": 0.5}
    assert (result.metric, result.goal) == ("loss", "min")
    assert [r.label for r in result.rows] == ["x b=0.5", "x b=1.5", "yy b=0.5", "yy b=1.5"]
    words = {r.label: r.difference.word for r in result.rows if r.difference}
    assert set(words.values()) == {Difference.WORSE}
    other = compare(
        run, {"a": ["x", "yy"], "b": [0.5, 1.5]}, seeds=4, workers=0, baseline={"a": "yy", "b": 1.5}
    )
    assert {r.difference.word for r in other.rows if r.difference} == {Difference.BETTER}


def test_objects_are_compared_by_their_names() -> None:
    result = compare(lambda f, seed: f(seed + 1.0), {"f": [math.sqrt, math.exp]}, seeds=3, workers=0)
    assert [r.label for r in result.rows] == ["exp", "sqrt"]
    assert result.by_label["exp"][1].metrics == {"value": math.exp(2.0)}


def test_a_rerun_runs_only_what_is_missing(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def run(kind: str, seed: int) -> float:
        with open(log, "a") as file:
            file.write(f"{kind}{seed} ")
        return float(seed)

    compare(run, {"kind": ["a", "b"]}, seeds=2, workers=0)
    compare(run, {"kind": ["a", "b", "c"]}, seeds=3, workers=0)
    assert sorted(log.read_text().split()) == ["a0", "a1", "a2", "b0", "b1", "b2", "c0", "c1", "c2"]


def test_a_diverging_and_a_crashing_variant_leave_the_others_whole() -> None:
    def run(kind: str, seed: int) -> float:
        if kind == "crash":
            raise ValueError("no such kind")
        return math.nan if kind == "nan" else float(seed)

    result = compare(run, {"kind": ["ok", "nan", "crash"]}, seeds=6, workers=0)
    rows = {r.label: r for r in result.rows}
    assert (rows["ok"].seeds, rows["nan"].diverged, rows["crash"].failed) == (6, 6, 6)
    assert rows["nan"].difference is not None
    assert rows["nan"].difference.word == Difference.WORSE
    assert len(result.failures) == 6
    assert result.failures[0].error == "ValueError: no such kind"


def test_results_are_saved_tidily(tmp_path: Path) -> None:
    result = compare(noisy, {"kind": ["plain", "good"]}, seeds=2, workers=0)
    with result.save(tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["kind"], r["seed"], float(r["metric_value"])) for r in rows] == [
        (k, str(s), noisy(k, s)) for s in (0, 1) for k in ("good", "plain")
    ]
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(result.save(tmp_path / "r.parquet")).to_pylist()
    assert [r["metric_value"] for r in table] == [float(r["metric_value"]) for r in rows]
    content = json.loads(result.save(tmp_path / "r.json").read_text())
    assert content["baseline"] == {"kind": "plain"}
    assert len(content["runs"]) == 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"run": "digits-mpl"}, "no task is named 'digits-mpl'; the nearest names are 'digits-mlp'"),
        (
            {"run": "digits-mlp", "over": {"activation": ["relu", "goluu"]}},
            "no paper or reference is named 'goluu'",
        ),
        (
            {"run": "digits-mlp", "over": {"activatoin": ["relu"]}},
            "is named 'activatoin'; the nearest name is 'activation'",
        ),
        ({"run": "nowhere.py:run"}, "no file is named 'nowhere.py'"),
        ({"run": "math:sqtr"}, "no function in math is named 'sqtr'; the nearest names? (is|are) 'sqrt'"),
        ({"run": "no_such_module:f"}, "cannot load no_such_module: ModuleNotFoundError"),
        ({"run": 3}, "run must be a function"),
        ({"run": noisy, "over": {"kind": "good"}}, r"over\['kind'\] must be a list"),
        ({"run": noisy, "over": {"kind": ["good", "good"]}}, "names 'good' twice"),
        (
            {"run": noisy, "over": {"knd": ["good"]}},
            "no option of 'noisy' is named 'knd'; the nearest name is 'kind'",
        ),
        ({"run": lambda kind: 1.0, "over": {"kind": ["a"]}}, "takes no argument named seed"),
        ({"run": noisy, "over": {"kind": ["a"]}, "seeds": 0}, "at least 1"),
        ({"run": noisy, "over": {"kind": ["a"]}, "seeds": [1, 1]}, "different whole numbers"),
        ({"run": noisy, "over": {"kind": ["a"]}, "goal": "most"}, "no goal is named 'most'"),
        (
            {"run": noisy, "over": {"kind": ["a"]}, "metric": "acuracy"},
            "no metric of these runs is named 'acuracy'",
        ),
        ({"run": noisy, "over": {"kind": ["a", "b"]}, "baseline": {"kind": "c"}}, "fits 0"),
        ({"run": noisy, "over": {"kind": ["a"]}, "on": "cloud"}, "cloud"),
    ],
)
def test_bad_arguments_get_one_sentence(options, sentence: str) -> None:
    with pytest.raises(WorkingPapersError, match=sentence) as caught:
        compare(**{"workers": 0, "seeds": 2, **options})
    assert "\n" not in str(caught.value)


def test_several_metrics_need_a_choice() -> None:
    def run(seed: int) -> dict[str, float]:
        return {"accuracy": 0.5, "loss": 1.0}

    with pytest.raises(WorkingPapersError, match=r"several metrics \(accuracy, loss\)"):
        compare(run, seeds=2, workers=0)
    assert compare(run, seeds=2, workers=0, metric="loss").goal == "min"


def test_words_of_the_shell() -> None:
    assert parse_arguments(["t.py:run", "a=relu,golu", "lr=1e-3,3"], None) == (
        "t.py:run",
        {"a": ["relu", "golu"], "lr": [0.001, 3]},
    )
    assert parse_arguments(["a=1"], "digits-mlp") == ("digits-mlp", {"a": [1]})
    assert parse_baseline("a=relu,lr=0.1") == {"a": "relu", "lr": 0.1}
    assert [parse_value(w) for w in ("true", "None", "1", "1.5", "x")] == [True, None, 1, 1.5, "x"]
    for words in (["a=1", "b"], ["x.py:f", "a="], ["x.py:f", "a=1", "a=2"], ["a=1"], []):
        with pytest.raises(WorkingPapersError):
            parse_arguments(words, None)
    with pytest.raises(WorkingPapersError, match="name=value"):
        parse_baseline("relu")


SCRIPT = """
import math, os
def run(activation, seed):
    if activation == "crash":
        raise RuntimeError("it always crashes")
    if activation == "word":
        return "good"
    return {"accuracy": 0.5 + 0.1 * (activation == "golu") + 0.001 * seed}
"""


def shell(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workingpapers", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_shell_compares_a_script(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    words = ["compare", "train.py:run", "activation=relu,golu", "--seeds", "4", "--workers", "2"]
    done = shell(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert [r["label"] for r in content["rows"]] == ["golu", "relu"]
    assert content["rows"][0]["difference"]["word"] == "better"
    table = shell(*words, "--out", "r.csv", cwd=tmp_path)
    assert "better" in table.stdout
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 9


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["train.py:run", "activation=relu,crash"], 1, "RuntimeError: it always crashes"),
        (["train.py:run", "activation=relu,word"], 1, "returned a str"),
        (
            ["train.py:rnu", "activation=relu"],
            2,
            "no function in train.py is named 'rnu'; the nearest name is 'run'",
        ),
        (["train.py:run", "activation=relu", "--store", "corrupt.sqlite"], 2, "corrupt.sqlite"),
        (["train.py:run", "activation=relu", "--store", "/proc/nowhere/x.sqlite"], 2, "/proc/nowhere"),
        (["train.py:run", "activation=relu", "--out", "/proc/nowhere/r.csv"], 2, "/proc/nowhere/r.csv"),
    ],
)
def test_the_shell_says_what_is_wrong(tmp_path: Path, words: list[str], status: int, sentence: str) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "corrupt.sqlite").write_bytes(b"this is no database, but somebody's letter" * 100)
    done = shell("compare", *words, "--seeds", "2", "--workers", "1", cwd=tmp_path)
    assert done.returncode == status, done.stdout + done.stderr
    assert sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "corrupt.sqlite").read_bytes().startswith(b"this is no database")


def test_variants_of_a_task_share_initialisation_and_data_order() -> None:
    result = compare("digits-mlp", {"activation": ["relu", "leaky_relu"]}, seeds=1, workers=0)
    first = [runs[0].curve[0] for runs in result.by_label.values()]
    assert first[0]["step"] == first[1]["step"]
    assert abs(first[0]["loss"] - first[1]["loss"]) < 0.05
