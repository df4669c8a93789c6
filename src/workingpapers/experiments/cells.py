"""What an experiment is: a function of (variant, seed), and the cells at which it is to be known."""

import hashlib
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.versions import code_version

__all__ = ["Cell", "Experiment", "Key", "canonical", "code_version"]

Key = tuple[str, int]
MAX_SEED = 2**63 - 1  # the largest integer of the store and of torch's generators


@dataclass(frozen=True, eq=False)
class Cell:
    """One run to be made: the arguments of a variant (JSON values) and a seed (0 or more).

    Tuples become lists and numpy scalars plain numbers, so that a run gets the same arguments wherever it
    is made.

    Raises:
        WorkingPapersError: for a value that JSON does not know, an argument named 'seed', or a bad seed.
    """

    variant: Mapping[str, Any]
    seed: int

    def __post_init__(self) -> None:
        if not isinstance(self.variant, Mapping) or not all(isinstance(name, str) for name in self.variant):
            raise WorkingPapersError(f"a variant is a dict of arguments by name; got {self.variant!r}")
        if "seed" in self.variant:
            raise WorkingPapersError(
                "a variant cannot have an argument 'seed': the cell's own seed is passed under that name"
            )
        object.__setattr__(self, "variant", json.loads(canonical(self.variant)))
        object.__setattr__(self, "seed", _checked_seed(self.seed))

    @cached_property
    def key(self) -> Key:
        """The cell's identity within its experiment: (canonical JSON of the variant, seed)."""
        return canonical(self.variant), self.seed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        arguments = ", ".join(
            f"{name}={value!r}" for name, value in {**self.variant, "seed": self.seed}.items()
        )
        return f"({arguments})"


@dataclass(frozen=True, eq=False)
class Experiment:
    """A function and the cells at which its results are wanted.

    `run(**variant, seed=seed)` returns a number, a dict of numbers, or an iterator of such dicts (points of
    a learning curve, of which the last is the result).  `code` says which code that is (`code_version`);
    results are found again as long as name, code, `threads` (of torch and BLAS, per run) and `device` stay.
    """

    name: str
    run: Callable[..., Any]
    code: str
    cells: Sequence[Cell]
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not callable(self.run):
            raise WorkingPapersError(
                f"the experiment {self.name!r} needs a function of (variant, seed); "
                f"got a {type(self.run).__name__}"
            )
        if not isinstance(self.threads, int) or self.threads < 1:
            raise WorkingPapersError(f"threads= takes a whole number from 1; got {self.threads!r}")

    @cached_property
    def spec(self) -> dict[str, Any]:
        """What tells this experiment from others, as stored with its runs."""
        return {"name": self.name, "code": self.code, "threads": self.threads, "device": self.device}

    @cached_property
    def key(self) -> str:
        """The experiment's identity in the store: a hash of its `spec`."""
        return hashlib.sha256(canonical(self.spec).encode()).hexdigest()[:20]


def canonical(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces; numpy and torch scalars as plain numbers."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
        text.encode()  # a ValueError where a text cannot be stored
        return text
    except (TypeError, ValueError) as error:
        raise WorkingPapersError(
            f"a variant takes JSON values (numbers, texts, lists, dicts), but {error}: {_short(value)}"
        ) from None


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"a {type(value).__name__} is none")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _checked_seed(seed: Any) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number <= MAX_SEED:
        raise WorkingPapersError(f"a seed is a whole number from 0 to 2**63 - 1; got {seed!r}")
    return number
