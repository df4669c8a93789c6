"""compare: which variant is better on a task or on the user's own function, and how sure that is."""

import importlib
import importlib.util
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments.cells import Cell, Experiment, code_version
from workingpapers.experiments.comparison import Comparison, choose_goal, choose_metric
from workingpapers.experiments.engine import run_experiment
from workingpapers.experiments.store import Store
from workingpapers.experiments.variants import (
    CODE,
    OBJECTS_CODE,
    TaskRun,
    Variant,
    WithObjects,
    check_run,
    expand,
    without_code,
)

UNPAIRED_STRIDE = 100_000  # seeds of an unpaired comparison: apart by more than anyone's number of seeds


def compare(
    run: Callable[..., Any] | str,
    over: Mapping[str, Sequence[Any]] | None = None,
    *,
    seeds: int | Sequence[int] = 10,
    paired: bool = True,
    baseline: Mapping[str, Any] | None = None,
    metric: str | None = None,
    goal: str | None = None,
    detect: float | None = None,
    budget: str = "quick",
    device: str = "cpu",
    workers: int | None = None,
    threads: int = 1,
    on: str = "local",
    timeout: float | None = None,
    store: Store | str | Path | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Comparison:
    """Run every combination of `over` on every seed and hold each against the baseline.

    Args:
        run: your function of (the names in `over`, seed), 'file.py:function', 'module:function', or the name of
            one of our tasks.  It returns a number, a dict of numbers, or yields dicts (a learning curve, whose
            last point is the result).
        over: what varies: name -> values.  The first combination is the baseline unless `baseline` says which.
        seeds: how many (from 0) or which.  All variants share them, and with them data order and
            initialisation, unless `paired` is False.
        metric: which figure counts; needed where `run` gives several.  goal: 'max' or 'min'; by default losses
            and errors are minimised, everything else is maximised.
        detect: the difference you care about; the result says how many seeds tell it.
        budget, device: for our tasks: 'quick' or 'full', 'cpu' or 'cuda'.
        workers, threads: processes at once (default: as many as fit the cores), torch threads of each run.
        on: 'local', 'ray', or 'ray=ADDRESS'.
        timeout: seconds after which a run is ended.
        store: where runs are kept (default: the user's data folder); what it holds is not run again.

    Raises:
        WorkingPapersError: one sentence, before anything is run, where the arguments do not fit.
    """
    variants, objects = expand(over)
    function, code, metric, goal = _resolve(run, variants, budget, device, metric, goal)
    check_run(function, variants) if not isinstance(function, TaskRun) else None
    base = _baseline(baseline, variants, objects)
    whole = WithObjects(function, objects) if objects else function
    make_cell = whole.cell if isinstance(whole, TaskRun | WithObjects) else Cell
    columns = zip(variants, _seeds(seeds, paired, len(variants)), strict=True)
    cells = [make_cell(variant, seed) for variant, column in columns for seed in column]
    name = run if isinstance(run, str) else getattr(run, "__name__", "run")
    experiment = Experiment(
        name,
        whole,
        code,
        cells,
        threads=threads,
        device=device,
    )
    opened = store if isinstance(store, Store) else Store(store)
    runs = run_experiment(
        experiment, store=opened, workers=workers, on=on, timeout=timeout, progress=progress
    )
    if isinstance(whole, TaskRun | WithObjects):
        hidden = (OBJECTS_CODE, CODE) if isinstance(function, TaskRun) else (OBJECTS_CODE,)
        runs = [without_code(r, hidden) for r in runs]
    chosen = choose_metric(runs, metric)
    return Comparison(name, runs, variants, base, chosen, choose_goal(chosen, goal), paired, detect)


def _resolve(
    run: Callable[..., Any] | str,
    variants: Sequence[Variant],
    budget: str,
    device: str,
    metric: str | None,
    goal: str | None,
) -> tuple[Callable[..., Any], str, str | None, str | None]:
    """Return the function to run, its code version, and the metric and goal as far as they are known."""
    if isinstance(run, str) and ":" not in run:
        from workingpapers.tasks import task

        found = task(run)
        task_run = TaskRun(run, budget, device)
        task_run.check(variants)
        return (
            task_run,
            code_version(TaskRun),
            metric or found.metric,
            goal or (found.goal if metric in (None, found.metric) else None),
        )
    function = load_function(run) if isinstance(run, str) else run
    if not callable(function):
        raise WorkingPapersError(f"run must be a function, 'file.py:function' or a task's name; got {run!r}")
    return function, code_version(function), metric, goal


def load_function(address: str) -> Callable[..., Any]:
    """Return the function at 'file.py:function' or 'module:function'."""
    place, _, name = address.rpartition(":")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    if name not in functions:
        raise unknown(f"function in {place}", name, functions)
    return getattr(module, name)  # type: ignore[no-any-return]


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise unknown("file", str(path), near)
    name = f"workingpapers_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    assert spec.loader is not None
    with _saying(path):
        spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with _saying(name):
        return importlib.import_module(name)


@contextmanager
def _saying(what: str | Path) -> Iterator[None]:
    """Put whatever the user's code raises while it is loaded into one sentence."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise WorkingPapersError(f"cannot load {what}: {type(error).__name__}: {error}") from error


def _baseline(
    baseline: Mapping[str, Any] | None, variants: Sequence[Variant], objects: Mapping[str, Mapping[str, Any]]
) -> Variant:
    if baseline is None:
        return variants[0]

    def fits(variant: Variant, key: str, value: Any) -> bool:
        own = variant.get(key)
        return key in variant and (own == value or objects.get(key, {}).get(str(own), objects) is value)

    matching = [v for v in variants if all(fits(v, k, value) for k, value in baseline.items())]
    if len(matching) != 1:
        raise WorkingPapersError(
            f"the baseline {dict(baseline)} must name exactly one of the {len(variants)} "
            f"variants; it fits {len(matching)}"
        )
    return matching[0]


def _seeds(seeds: int | Sequence[int], paired: bool, variants: int) -> list[list[int]]:
    if isinstance(seeds, bool) or (isinstance(seeds, int) and seeds < 1):
        raise WorkingPapersError(f"seeds must be a number of at least 1 or a list of seeds; got {seeds!r}")
    try:
        chosen = [operator.index(s) for s in (range(seeds) if isinstance(seeds, int) else seeds)]
    except TypeError:
        raise WorkingPapersError(f"seeds must be whole numbers, or how many of them; got {seeds!r}") from None
    if not chosen or len(set(chosen)) != len(chosen):
        raise WorkingPapersError(f"seeds must be different whole numbers, at least one; got {seeds!r}")
    return [[s + (0 if paired else i * UNPAIRED_STRIDE) for s in chosen] for i in range(variants)]


def parse_arguments(arguments: Sequence[str], task: str | None) -> tuple[str, dict[str, list[Any]]]:
    """Read the shell's words: 'file.py:function' unless a task is named, then name=value,value,..."""
    words = list(arguments)
    function = task or (words.pop(0) if words and "=" not in words[0] else None)
    if function is None:
        raise WorkingPapersError(
            "say what to run: file.py:function, or --task NAME; `workingpapers tasks` lists them"
        )
    over: dict[str, list[Any]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not name or not values:
            raise WorkingPapersError(f"what varies is given as name=value,value,...; got {word!r}")
        if name in over:
            raise WorkingPapersError(f"{name!r} is given twice; list its values with commas")
        over[name] = [parse_value(v) for v in values.split(",")]
    return function, over


def parse_baseline(words: str | None) -> dict[str, Any] | None:
    """Read name=value[,name=value]; None stays None."""
    if words is None:
        return None
    pairs = [word.partition("=") for word in words.split(",")]
    if not all(name and equals and value for name, equals, value in pairs):
        raise WorkingPapersError(f"the baseline is given as name=value[,name=value]; got {words!r}")
    return {name: parse_value(value) for name, _, value in pairs}


def parse_value(word: str) -> int | float | bool | str | None:
    """Read a word as a whole number, a number, true/false, none, or else as it stands."""
    if word.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
