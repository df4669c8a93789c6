"""Runs the contract of a kind over a component and reports what came of each check."""

import importlib
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from workingpapers.catalog import component
from workingpapers.catalog.kinds import kind_named
from workingpapers.contracts._check import Check, Contract, ContractFailure
from workingpapers.contracts._report import FAILED, KNOWN_FAILURE, PASSED, UNEXPECTEDLY_PASSED, Report, Result
from workingpapers.contracts._subject import Subject
from workingpapers.errors import WorkingPapersError, unknown


def checks(kind: str) -> list[Check]:
    """Return the checks that components of the kind are held to, in the order in which they run."""
    return list(_contract(kind).checks)


def check_contract(
    target: str | Callable[..., Any],
    kind: str | None = None,
    *,
    only: str | Iterable[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **properties: Any,
) -> Report:
    """Hold a component to the contract of its kind and return what came of each check; nothing is raised
    for a broken promise (that is `Report.raise_for_failure`).

    Args:
        target: a registered name (`golu`, `repvgg.block`), or a class or function of one's own.
        kind: needed for a component of one's own; a registered one has it on record.
        only: a check's name, or several: the rest is left out.
        progress: called before each check with its name, its number from 0, and how many there are.
        properties: what the component declares (see `workingpapers.catalog.KINDS`), such as `odd=True`; for
            a registered one they come on top of its own.

    Raises:
        UnknownName: for an unknown component, kind, property or check.
        WorkingPapersError: where the contract needs a property that is not declared.
    """
    subject, kind = _subject(target, kind, properties)
    contract = _contract(kind)
    applicable = [check for check in contract.checks if check.applies(subject.properties)]
    known: Mapping[str, str] = subject.declared("known_failures", {})
    for name in known:
        if name not in [check.name for check in applicable]:
            raise unknown(
                f"check of {subject.name} (a known failure of its own)",
                name,
                [check.name for check in applicable],
            )
    chosen = _chosen(contract, applicable, only)
    results = {}
    for number, check in enumerate(chosen):
        if progress is not None:
            progress(check.name, number, len(chosen))
        results[check.name] = _outcome(check, [subject, *subject.variants()], known.get(check.name))
    return Report(subject.name, kind, results)


def _contract(kind: str) -> Contract:
    name = kind_named(kind).name
    contract: Contract = importlib.import_module(f"workingpapers.contracts.{name}").contract
    return contract


def _subject(
    target: str | Callable[..., Any], kind: str | None, properties: dict[str, Any]
) -> tuple[Subject, str]:
    if isinstance(target, str):
        registered = component(target)
        if kind is not None and kind != registered.kind:
            raise WorkingPapersError(f"{target} is registered as {registered.kind}, not as {kind}")
        name, kind, build = registered.name, registered.kind, registered.target
        declared = {**registered.properties, **properties}
    elif kind is None:
        raise WorkingPapersError(
            f"a component of one's own needs its kind, as in kind='activation'; none came with {target!r}"
        )
    else:
        name, build, declared = getattr(target, "__name__", type(target).__name__), target, properties
    kind_named(kind).check_properties(name, properties)
    return _contract(kind).subject(name, build, declared), kind


def _chosen(contract: Contract, applicable: list[Check], only: str | Iterable[str] | None) -> list[Check]:
    if only is None:
        return applicable
    names = [only] if isinstance(only, str) else list(only)
    for name in names:
        if name not in [check.name for check in contract.checks]:
            raise unknown("check of this kind", name, [check.name for check in contract.checks])
    return [check for check in applicable if check.name in names]


def _outcome(check: Check, subjects: Iterable[Subject], reason: str | None) -> Result:
    """Return the first failure among the variants of a component, or that there is none."""
    happened = next(filter(None, (_run(check, subject) for subject in subjects)), None)
    if happened is None and reason is None:
        return Result(PASSED)
    if happened is None:
        return Result(
            UNEXPECTEDLY_PASSED,
            f"listed as a known failure ({reason}), but it is kept "
            f"that {check.promise}; take it off the list",
        )
    if reason is not None:
        return Result(KNOWN_FAILURE, reason)
    return Result(FAILED, f"promised that {check.promise}, but {happened}")


def _run(check: Check, subject: Subject) -> str | None:
    with _own_surroundings(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check.run(subject)
        except ContractFailure as failure:
            return f"{subject.variant}{failure}"
        except Exception as error:  # whatever a component raises is a broken promise, and is reported as one
            return f"{subject.variant}{type(error).__name__} was raised: {_first_line(str(error))}"
    return None


def _first_line(text: str, most: int = 300) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "(no message)")
    return line if len(line) <= most else line[:most] + " ..."


@contextmanager
def _own_surroundings() -> Iterator[None]:
    """Seed every global generator and record gradients for one check; leave all as it was."""
    import numpy
    import torch

    python, numbers = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        random.seed(0)
        numpy.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numbers)
