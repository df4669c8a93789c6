"""Cells, keys, code versions, and how a single run ends."""

import functools
import gc
import linecache
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.cells import Cell, Experiment, code_version
from workingpapers.experiments.circumstances import circumstances
from workingpapers.experiments.execution import DIVERGED, DONE, FAILED, OUT_OF_MEMORY, Outcome, execute, paced

MB = 2**20


def ended(run: Callable[..., Any], seed: int = 0, **variant: Any) -> Outcome:
    return execute(run, Cell(variant, seed))


def defined(source: str, module: str = "__main__", **scope: Any) -> FunctionType:
    """Return `run` as a notebook would define it: from text, in `module`, without a file."""
    scope["__name__"] = module
    exec(textwrap.dedent(source), scope)
    run: FunctionType = scope["run"]
    return run


class TestCell:
    def test_same_arguments_are_the_same_cell(self) -> None:
        one = Cell({"a": 1, "b": (2.0, "x")}, 3)
        two = Cell({"b": [np.float64(2.0), "x"], "a": np.int64(1)}, np.int64(3))  # type: ignore[arg-type]
        assert one == two
        assert one.key == two.key == ('{"a":1,"b":[2.0,"x"]}', 3)
        assert len({one, two}) == 1

    @pytest.mark.parametrize(
        "other", [Cell({"a": 1}, 4), Cell({"a": 2}, 3), Cell({"a": 1.0}, 3), Cell({}, 3)]
    )
    def test_other_arguments_are_another_cell(self, other: Cell) -> None:
        assert Cell({"a": 1}, 3).key != other.key

    @pytest.mark.parametrize(
        ("variant", "seed", "said"),
        [
            ({"f": len}, 0, "JSON"),
            ({"seed": 1}, 0, "'seed'"),
            ({1: 2}, 0, "dict of arguments"),
            ({}, -1, "seed"),
            ({}, 1.5, "seed"),
            ({}, True, "seed"),
            ({}, 2**63, "seed"),
            ([], 0, "dict of arguments"),
        ],
    )
    def test_what_is_no_cell_is_refused_in_a_sentence(self, variant: Any, seed: Any, said: str) -> None:
        with pytest.raises(WorkingPapersError, match=said):
            Cell(variant, seed)

    def test_an_experiment_is_told_by_name_code_threads_and_device(self) -> None:
        base: dict[str, Any] = {
            "name": "n",
            "run": len,
            "code": "c",
            "cells": [],
            "threads": 1,
            "device": "cpu",
        }
        same: list[dict[str, Any]] = [{}, {"run": abs}, {"cells": [Cell({}, 0)]}]
        changed: list[dict[str, Any]] = [{"name": "m"}, {"code": "d"}, {"threads": 2}, {"device": "cuda"}]
        keys = {Experiment(**{**base, **change}).key for change in [*same, *changed]}
        assert len(keys) == 1 + len(changed)


class TestCodeVersion:
    def test_a_file_counts_without_comments_docstrings_and_layout(self, tmp_path: Path) -> None:
        texts = [
            "def run(seed):\n    return seed + 1\n",
            '"""A doc."""\n\n# why\ndef run(seed):\n    """Doc."""\n    return (seed  +  1)  # so\n',
            "def run(seed):\n    return seed + 2\n",
            "STEP = 1\ndef run(seed):\n    return seed + 1\n",
        ]
        versions = []
        path = tmp_path / "module.py"
        for text in texts:
            path.write_text(text)
            scope: dict[str, Any] = {"__name__": "module"}
            exec(compile(text, str(path), "exec"), scope)
            versions.append(code_version(scope["run"]))
        assert versions[0] == versions[1]
        assert len(set(versions)) == 3

    def test_a_notebook_counts_by_what_the_function_names(self) -> None:
        base = (
            "rate = 0.1\nother = 5\ndef helper(x):\n    return x * rate\n"
            "def run(seed):\n    return helper(seed)\n"
        )
        same = [
            base,
            base.replace("other = 5", "other = 6"),
            "# note\n" + base,
            base.replace("    return helper", "    'A docstring.'\n    return  helper"),
        ]
        different = [
            base.replace("0.1", "0.2"),
            base.replace("x * rate", "x + rate"),
            base.replace("helper(seed)", "helper(seed) + 1"),
        ]
        assert len({code_version(defined(text)) for text in same}) == 1
        assert len({code_version(defined(text)) for text in [base, *different]}) == 1 + len(different)

    def test_what_is_closed_over_counts(self) -> None:
        def make(rate: float, data: Any = None) -> Callable[[int], Any]:
            return lambda seed: (rate, data)

        assert code_version(make(0.1)) == code_version(make(0.1)) != code_version(make(0.2))
        assert code_version(make(0.1, np.ones(3))) != code_version(make(0.1, np.zeros(3)))
        assert code_version(make(0.1, torch.ones(3))) != code_version(make(0.1, torch.zeros(3)))
        assert code_version(functools.partial(make, 1)) != code_version(functools.partial(make, 2))

    def test_classes_sets_and_mutual_recursion_of_a_notebook_are_read_alike(self) -> None:
        source = """
            class Net:
                kinds = {"a", "b", "c", "d", "e", "f", "g", "h"}
                @staticmethod
                def go(n): return run(n - 1) if n in Net.kinds else n
                @property
                def size(self): return 3
            def run(seed): return Net.go(seed) if seed in {"a", "b", "c", "d", "e", "f", "g"} else 0
        """
        code = (
            "from workingpapers.experiments.cells import code_version\nimport textwrap\n"
            "scope={'__name__': '__main__'}\n"
            f"exec(textwrap.dedent({source!r}), scope)\nprint(code_version(scope['run']))"
        )
        seen = {
            subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONHASHSEED": h},
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for h in ("1", "2")
        }
        assert seen == {code_version(defined(source))}
        assert (
            code_version(defined(source.replace("size(self): return 3", "size(self): return 4"))) not in seen
        )


class TestResults:
    @pytest.mark.parametrize(
        "value",
        [
            2,
            2.0,
            np.float32(2),
            np.int64(2),
            np.array(2.0),
            torch.tensor(2),
            torch.tensor(2.0, requires_grad=True),
        ],
    )
    def test_numbers_of_all_makes(self, value: Any) -> None:
        assert ended(lambda seed: value).metrics == {"value": 2.0}
        assert ended(lambda seed: {"a": value}).metrics == {"a": 2.0}
        curve = ended(lambda seed: iter([{"a": 1}, {"a": value, "b": 0}]))
        assert (curve.metrics, curve.curve) == ({"a": 2.0, "b": 0.0}, [{"a": 1.0}, {"a": 2.0, "b": 0.0}])

    @pytest.mark.parametrize(
        ("returned", "said"),
        [
            ("text", "run returned a str; a number, a dict of numbers, or an iterator of such dicts was "),
            (None, "run returned None;"),
            ([], "run yielded nothing;"),
            ([1.0], "run yielded a float;"),
            ({}, "run gave an empty dict;"),
            ({"a": "b"}, "run gave a str for 'a';"),
            ({1: 2}, "run gave an int for 1;"),
            ({"a": np.ones((2, 3))}, "run gave a ndarray of shape (2, 3) for 'a';"),
            (1j, "run returned a complex;"),
        ],
    )
    def test_anything_else_failed_in_a_sentence(self, returned: Any, said: str) -> None:
        outcome = ended(lambda seed: returned)
        assert outcome.status == FAILED
        assert outcome.metrics is None
        assert (outcome.error or "").startswith(said)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_result_that_is_not_finite_diverged(self, bad: float) -> None:
        outcome = ended(lambda seed: iter([{"a": 1.0}, {"a": bad, "b": 1.0}]))
        assert outcome.status == DIVERGED
        assert outcome.metrics == pytest.approx({"a": bad, "b": 1.0}, nan_ok=True)
        assert ended(lambda seed: iter([{"a": bad}, {"a": 1.0}])).status == DONE

    def test_an_exception_keeps_the_points_before_it(self) -> None:
        def run(seed: int) -> Any:
            yield {"a": 1}
            raise ValueError("two\nlines")

        outcome = ended(run)
        assert (outcome.status, outcome.error, outcome.curve) == (
            FAILED,
            "ValueError: two lines",
            [{"a": 1.0}],
        )
        assert outcome.traceback is not None
        assert 'raise ValueError("two\\nlines")' in outcome.traceback
        assert "execution.py" not in outcome.traceback

    def test_what_is_not_an_exception_fails_only_the_run_too(self) -> None:
        assert ended(lambda seed: sys.exit(3)).error == "SystemExit: 3"
        with pytest.raises(KeyboardInterrupt):
            ended(lambda seed: (_ for _ in ()).throw(KeyboardInterrupt))

    @pytest.mark.parametrize(
        "allocate",
        [lambda: bytearray(2**62), lambda: torch.empty(2**58), lambda: np.empty(2**58)],
        ids=["python", "torch", "numpy"],
    )
    def test_out_of_memory_has_a_status_of_its_own(self, allocate: Callable[[], Any]) -> None:
        assert ended(lambda seed: allocate() and 1).status == OUT_OF_MEMORY

    def test_the_caller_sees_every_point_and_pipes_see_few(self) -> None:
        def run(seed: int) -> Any:
            return ({"i": i} for i in range(1000))

        seen: list[Any] = []
        execute(run, Cell({}, 0), seen.append)
        assert [p["i"] for p in seen] == list(range(1000))
        outcome = Outcome(DONE)
        assert list(paced(iter([{"i": 0.0}, {"i": 1.0}, outcome]), every=1e9)) == [{"i": 0.0}, outcome]


class TestCircumstances:
    @staticmethod
    def draws(seed: int, lr: float = 0.0) -> dict[str, float]:
        import random

        return {"python": random.random(), "numpy": np.random.rand(), "torch": torch.rand(())}  # type: ignore[dict-item]

    def test_the_seed_alone_decides_what_is_drawn(self) -> None:
        torch.rand(7)
        one, two = ended(self.draws, seed=5, lr=0.1), ended(self.draws, seed=5, lr=0.2)
        assert one.metrics == two.metrics != ended(self.draws, seed=6, lr=0.1).metrics
        assert one.metrics is not None
        expected = torch.rand((), generator=torch.Generator().manual_seed(5)).item()
        assert one.metrics["torch"] == expected
        assert one.metrics["numpy"] == np.random.RandomState(5).rand()

    def test_the_callers_state_comes_back(self) -> None:
        def rude(seed: int) -> int:
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            torch.use_deterministic_algorithms(True)
            torch.rand(3), np.random.rand(3)
            return 1

        torch.manual_seed(1)
        np.random.seed(1)
        before = torch.get_rng_state(), torch.get_num_threads(), np.random.get_state()[1].copy()  # type: ignore[index]
        ended(rude)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.get_num_threads() == before[1]
        assert np.array_equal(np.random.get_state()[1], before[2])  # type: ignore[index]
        assert torch.get_default_dtype() is torch.float32
        assert torch.is_grad_enabled()
        assert not torch.are_deterministic_algorithms_enabled()

    def test_threads_are_as_asked_for(self) -> None:
        with circumstances(0, 3):
            assert torch.get_num_threads() == 3

    def test_a_run_that_imports_torch_itself_finds_it_seeded(self) -> None:
        code = """
            import sys
            from workingpapers.experiments.cells import Cell
            from workingpapers.experiments.execution import execute
            def run(seed):
                import torch
                return {"draw": torch.rand(()), "threads": torch.get_num_threads()}
            assert "torch" not in sys.modules
            outcome = execute(run, Cell({}, 11), threads=1)
            assert type(sys.meta_path[0]).__name__ != "_Torch"
            print(outcome.metrics["draw"], outcome.metrics["threads"], outcome.error)
        """
        said = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
        )
        draw, threads, error = said.stdout.split()
        assert float(draw) == torch.rand((), generator=torch.Generator().manual_seed(11)).item()
        assert (float(threads), error) == (1, "None")

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the high-water mark cannot be reset")
    def test_peak_memory_is_the_runs_own(self) -> None:
        def run(seed: int, size: int) -> int:
            return int(np.ones(size * MB, dtype=np.uint8)[-1])

        gc.collect()  # what earlier tests left would be freed while the runs are measured
        large, small = ended(run, size=200).peak_memory, ended(run, size=50).peak_memory
        assert large == pytest.approx(200 * MB, abs=5 * MB)
        assert small == pytest.approx(50 * MB, abs=5 * MB)

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the high-water mark cannot be reset")
    def test_memory_that_an_earlier_run_freed_counts_again(self) -> None:
        """The C library keeps freed memory below a block that is still in use, as a worker's modules are."""
        pins = []

        def run(seed: int) -> int:
            blocks = [b"x" * (60_000 + i % 2) for i in range(1500)]
            pins.append(b"x" * 60_000)
            return len(blocks)

        gc.collect()
        for _ in range(3):
            assert ended(run).peak_memory == pytest.approx(1500 * 60_000, rel=0.1)


def test_a_function_of_a_file_in_linecache_only_is_a_notebooks() -> None:
    source = "def run(seed):\n    return seed\n"
    linecache.cache["<ipython-input-1>"] = (len(source), None, source.splitlines(True), "<ipython-input-1>")
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<ipython-input-1>", "exec"), scope)
    assert code_version(scope["run"]) == code_version(defined(source))
