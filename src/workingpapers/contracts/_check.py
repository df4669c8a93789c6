"""What a check is: a name, a promise in words, a function that raises where the promise is broken."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from workingpapers.contracts._subject import Subject
from workingpapers.errors import WorkingPapersError

Properties = Mapping[str, Any]
Run = TypeVar("Run", bound=Callable[[Any], None])


class ContractFailure(WorkingPapersError):
    """A broken promise; the message says what happened instead, with numbers."""


@dataclass(frozen=True)
class Check:
    """One promise that components of a kind make, and the function that holds a component to it.

    `run(subject)` returns where the promise is kept and raises `ContractFailure` where it is not;
    `applies(properties)` says from the declared properties whether the component makes the promise at all.
    """

    name: str
    promise: str
    run: Callable[[Any], None]
    applies: Callable[[Properties], bool]


def always(properties: Properties) -> bool:
    """Return True: the promise holds for every component of the kind."""
    return True


def declares(name: str, default: Any = None) -> Callable[[Properties], bool]:
    """Return the condition that the property `name` is declared (or has a default), as true or as false."""
    return lambda properties: properties.get(name, default) is not None


def is_true(name: str, default: bool = True) -> Callable[[Properties], bool]:
    """Return the condition that the property `name` is true, by declaration or by default."""
    return lambda properties: bool(properties.get(name, default))


class Contract:
    """The checks of one kind in their order, and the `Subject` that builds components for them."""

    def __init__(self, subject: type[Subject], shared: Iterable[Check] = ()) -> None:
        self.subject = subject
        self.checks = list(shared)

    def check(
        self, name: str, promise: str, when: Callable[[Properties], bool] = always
    ) -> Callable[[Run], Run]:
        """Add the decorated function as the check `name`; `promise` completes "promised that ..."."""

        def register(run: Run) -> Run:
            self.checks.append(Check(name, promise, run, when))
            return run

        return register


def expect(kept: bool, happened: str) -> None:
    """Raise `ContractFailure` that says what `happened` unless the promise was `kept`."""
    if not kept:
        raise ContractFailure(happened)


def expect_none(found: Sequence[object], happened: str) -> None:
    """Raise with the first of what was found, in the place of {} in `happened`, if anything was."""
    if found:
        raise ContractFailure(happened.format(found[0]))
