"""Variants: every combination of the values compared, their labels, and what they stand for in a run."""

import hashlib
import inspect
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from workingpapers.catalog import component, make, records
from workingpapers.catalog.registry import check_options, source_hash
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments.cells import Cell, canonical, code_version
from workingpapers.experiments.store import Run

Variant = dict[str, Any]

CODE = "code"
OBJECTS_CODE = "code of objects"  # no argument of a function can be called so
RESOLVED_BY_NAME = ("activation", "mixer", "norm", "initializer")


@dataclass(frozen=True)
class WithObjects:
    """A run whose variants name objects (classes, functions) by their labels; it can travel to a worker."""

    run: Callable[..., Any]
    objects: Mapping[str, Mapping[str, Any]]

    def cell(self, variant: Variant, seed: int) -> Cell:
        """Return the cell of a variant, with the version of its objects' code: it decides the result as well."""
        inner = self.run.cell(variant, seed) if isinstance(self.run, TaskRun) else Cell(variant, seed)
        named = [self.objects[k][v] for k, v in variant.items() if k in self.objects and v in self.objects[k]]
        return (
            Cell({**inner.variant, OBJECTS_CODE: code_version(partial(list, named))}, seed)
            if named
            else inner
        )

    def __call__(self, *, seed: int, **variant: Any) -> Any:
        """Put the objects in the labels' places and run."""
        variant.pop(OBJECTS_CODE, None)
        known = {
            k: self.objects.get(k, {}).get(v, v) if isinstance(v, str) else v for k, v in variant.items()
        }
        return self.run(**known, seed=seed)


@dataclass(frozen=True)
class TaskRun:
    """A task as a function of (variant, seed): names of components become factories of them."""

    task: str
    budget: str
    device: str

    def check(self, variants: Sequence[Variant]) -> None:
        """Raise one sentence if the task has no such variable or a named component does not exist."""
        from workingpapers.tasks import budget, task

        budget(self.budget)
        known = task(self.task).variables
        for variant in variants:
            for key, value in variant.items():
                if key not in known:
                    raise unknown(f"variable of the task {self.task!r}", key, known)
                if isinstance(value, str) and key in RESOLVED_BY_NAME:
                    component(value)
                if isinstance(value, str) and key == "optimizer":
                    optimizer(value)

    def cell(self, variant: Variant, seed: int) -> Cell:
        """Return the cell of a variant; `code` in it makes a run count only for the code that it was made with."""
        return Cell({**variant, CODE: task_code(variant)}, seed)

    def __call__(self, *, seed: int, code: str = "", **variant: Any) -> Any:
        """Run the task and return its learning-curve points."""
        from workingpapers.tasks import budget, task

        chosen = {
            k: factory(v) if k in RESOLVED_BY_NAME and isinstance(v, str) else v for k, v in variant.items()
        }
        if isinstance(named := variant.get("optimizer"), str):
            chosen["optimizer"] = optimizer(named)
        return task(self.task).run(budget(self.budget), seed, device=self.device, **chosen)


def without_code(run: Run, hidden: Sequence[str] = (CODE,)) -> Run:
    """Return a run with its variant as the user gave it: without the versions of code that we keep there."""
    return replace(run, variant={k: v for k, v in run.variant.items() if k not in hidden})


def task_code(variant: Variant) -> str:
    """Return a hash of what a task's run depends on: the tasks' own code and the papers' files it names."""
    digest = hashlib.sha256(_tasks_hash().encode())
    for value in variant.values():
        id = value.split(".")[0] if isinstance(value, str) else None
        if id in records():
            digest.update((source_hash(id) or "").encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _tasks_hash() -> str:
    import workingpapers.tasks as tasks

    files = sorted(Path(tasks.__path__[0]).glob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def factory(name: str) -> Callable[..., Any]:
    """Return a function that makes the component called `name`, or raise at once if there is none."""
    component(name)
    return lambda *args, **options: make(name, *args, **options)


def optimizer(name: str) -> str | Callable[..., Any]:
    """Return torch's optimizers by their names as they are, and a paper's as a function of (params, lr)."""
    if name in ("sgd", "adam", "adamw"):
        return name
    component(name)
    return lambda params, lr: make(name, params, lr=lr)


def expand(over: Mapping[str, Sequence[Any]] | None) -> tuple[list[Variant], dict[str, dict[str, Any]]]:
    """Return every combination of the values in `over`, and the objects that stand behind labels.

    Values that JSON cannot hold (classes, functions) are replaced by their names.
    """
    named: dict[str, list[Any]] = {}
    objects: dict[str, dict[str, Any]] = {}
    for key, values in (over or {}).items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise WorkingPapersError(f"over[{key!r}] must be a list with at least one value; got {values!r}")
        named[key] = []
        for value in values:
            simple = value
            if not (value is None or isinstance(value, str | int | float | bool)):
                simple = _name(value)
                while objects.get(key, {}).get(simple, value) is not value:
                    simple += "'"  # two lambdas on one line
                objects.setdefault(key, {})[simple] = value
            if any(canonical({key: simple}) == canonical({key: v}) for v in named[key]):
                raise WorkingPapersError(
                    f"over[{key!r}] names {simple!r} twice; each value must be told apart"
                )
            named[key].append(simple)
    return [dict(zip(named, row, strict=True)) for row in itertools.product(*named.values())], objects


def _name(value: Any) -> str:
    """Return a name by which an object is known again in another process: no address is in it."""
    if isinstance(value, partial):
        options = [*map(_name, value.args), *(f"{k}={_name(v)}" for k, v in value.keywords.items())]
        return f"{_name(value.func)}({', '.join(options)})"
    name = getattr(value, "__name__", None)
    if name == "<lambda>":
        code = value.__code__
        return f"lambda in {Path(code.co_filename).name}:{code.co_firstlineno}"
    return name if isinstance(name, str) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def label(variant: Variant, variants: Sequence[Variant]) -> str:
    """Return what tells `variant` from the others, such as 'golu' or 'golu lr=0.001'; 'run' for a lone one."""
    return labels(variants)[canonical(variant)]


def labels(variants: Sequence[Variant]) -> dict[str, str]:
    """Return every variant's label by its canonical JSON; no two are the same."""
    names = list(variants[0])
    telling = [k for k in names if len({canonical({k: other[k]}) for other in variants}) > 1] or names
    words = [_words(variant, telling) or "run" for variant in variants]
    count = Counter(words)
    return {
        canonical(v): word if count[word] == 1 else " ".join(f"{k}={v[k]!r}" for k in telling)
        for v, word in zip(variants, words, strict=True)
    }


def _words(variant: Variant, keys: Sequence[str]) -> str:
    return " ".join(
        v if isinstance((v := variant[k]), str) else f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
        for k in keys
    )


def check_run(run: Callable[..., Any], variants: Sequence[Variant]) -> None:
    """Raise one sentence if `run` does not take `seed` and what varies."""
    try:
        parameters = inspect.signature(run).parameters
    except (TypeError, ValueError):
        raise WorkingPapersError(f"run must be a function of the variant and a seed; got {run!r}") from None
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "seed" not in parameters and not free:
        raise WorkingPapersError(
            f"the function {_name(run)!r} takes no argument named seed; without one its runs cannot be paired"
        )
    for variant in variants:
        check_options(_name(run), run, variant)
    try:
        inspect.signature(run).bind(**variants[0], seed=0)
    except TypeError as error:
        raise WorkingPapersError(
            f"the function {_name(run)!r} cannot be called with what varies and a seed alone: {error}"
        ) from None
