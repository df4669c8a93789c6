"""The registry: `@paper` and `@claim` bind code to a record, `make` builds a component by its name.

Papers are found by path (`<family>/<id>.py`) and imported only when asked for by name.  One paper may
register several components: its own under the paper's id, and parts such as `repvgg.block`.
"""

import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from workingpapers.catalog.kinds import kind_named
from workingpapers.catalog.records import collection_of, collections, record, records
from workingpapers.catalog.references import REFERENCES
from workingpapers.errors import WorkingPapersError, unknown

T = TypeVar("T", bound=Callable[..., Any])


class Rule(Protocol):
    """What decides a claim; see `workingpapers.experiments.evidence` for those there are."""

    @property
    def text(self) -> str:
        """The rule in words."""

    def judge(self, figures: Mapping[str, Sequence[float]]) -> str:
        """Return 'holds', 'does not hold' or 'not shown' from each figure's values over the seeds."""


@dataclass(frozen=True)
class Component:
    """Something that `make` builds: a class, or a function whose options `make` binds."""

    name: str
    kind: str
    target: Callable[..., Any]
    properties: Mapping[str, Any]

    def build(self, *args: Any, **options: Any) -> Any:
        """Instantiate the class, or bind the options to the function; unknown options raise."""
        check_options(self.name, self.target, options)
        whole = self.target.func if isinstance(self.target, partial) else self.target
        if inspect.isclass(whole):
            return self.target(*args, **options)
        return partial(self.target, *args, **options) if args or options else self.target


@dataclass(frozen=True)
class Claim:
    """One claim of a paper: a function of (budget, seed) that returns evidence, and the rule that judges."""

    paper: str
    name: str
    says: str
    figure: str | None
    holds: Rule
    seeds: tuple[int, ...]
    calibrated: str | None
    measure: Callable[[Any, int], Any]


_components: dict[str, Component] = {}
_claims: dict[str, dict[str, Claim]] = {}


def paper(
    id: str, *, part: str | None = None, kind: str | None = None, **properties: Any
) -> Callable[[T], T]:
    """Register the decorated class or function as the component of the paper `id`.

    `part` names a further component of the same paper (`repvgg.block`), `kind` its kind where that is not
    the record's; `properties` are what holds for every instance, verified by the kind's contract.
    """
    found = record(id)
    chosen = kind_named(kind or found.kind)
    name = f"{id}.{part}" if part else id
    chosen.check_properties(name, properties)

    def register(target: T) -> T:
        known = _components.get(name)
        if known is not None and _origin(known.target) != _origin(target):
            raise WorkingPapersError(
                f"the name {name!r} is taken twice: by {_origin(known.target)} and by {_origin(target)}"
            )
        _components[name] = Component(name, chosen.name, target, properties)
        return target

    return register


def claim(
    id: str,
    says: str,
    *,
    holds: Rule,
    figure: str | None = None,
    seeds: int | Sequence[int] = 5,
    calibrated: str | None = None,
) -> Callable[[T], T]:
    """Register the decorated function of (budget, seed) as the measurement of a claim of the paper `id`.

    `holds` is the rule, fixed before the run; `figure` the paper's own figure; `seeds` how many (from 0) or
    which; `calibrated` says what was changed in the rule, and why, after a look at seeds 1000 and up.
    """
    record(id)

    def register(measure: T) -> T:
        own = _claims.setdefault(id, {})
        name = measure.__name__
        if name in own and _origin(own[name].measure) != _origin(measure):
            raise WorkingPapersError(f"the paper {id!r} has two claims named {name!r}")
        chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
        own[name] = Claim(id, name, says, figure, holds, chosen, calibrated, measure)
        return measure

    return register


def _origin(target: Callable[..., Any]) -> str:
    return f"{target.__module__}.{target.__qualname__}"


@lru_cache(maxsize=1)
def _files() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for collection in collections():
        for path in sorted(collection.folder.glob("*/[!_]*.py")):
            known = records().get(path.stem)
            if known is None or known.family != path.parent.name:
                home = f"the place {known.family}/{known.id}.py" if known else "nothing"
                raise WorkingPapersError(f"{path} does not fit the records, which have {home} for it")
            found[path.stem] = path
    return found


def available() -> list[str]:
    """Return the ids of all papers that have a file, without importing any."""
    return list(_files())


def path_of(id: str) -> Path | None:
    """Return the file of the paper `id`, or None where it is not written yet."""
    record(id)
    return _files().get(id)


def source_hash(id: str) -> str | None:
    """Return the sha256 of the paper's file and of what it imports of its family's shared `_*.py` files.

    The ledger's results are tied to it: when it changes, they are stale.
    """
    path = path_of(id)
    if path is None:
        return None
    digest = hashlib.sha256()
    for part in files_of(path):
        digest.update(part.read_bytes())
    return digest.hexdigest()


def files_of(path: Path) -> list[Path]:
    """Return a paper's file, its checks' for `inspect`, and in a fixed order the family's `_*.py` they import."""
    family, checks = path.parent.name, path.with_name(f"_check_{path.name}")
    pattern = re.compile(rf"\b{family}(?:\.(_\w+)| import \(?([\w\s,]+))")
    found = [path, checks] if checks.exists() else [path]
    for part in found:
        for module, names in pattern.findall(part.read_text("utf-8")):
            for name in [module, *re.findall(r"\b_\w+", names)]:
                shared = path.with_name(f"{name}.py")
                if name and shared.exists() and shared not in found:
                    found.append(shared)
    return found


def load(id: str) -> dict[str, Component]:
    """Import the file of the paper `id` and return its components by name, the paper's own first."""
    path = path_of(id)
    if path is None:
        raise WorkingPapersError(
            f"the paper {id!r} is in the catalogue but not written yet; "
            "`workingpapers list --working` prints those that are"
        )
    home = f"{collection_of(id).package}.{path.parent.name}"
    importlib.import_module(f"{home}.{id}")
    if path.with_name(f"_check_{path.name}").exists():
        importlib.import_module(f"{home}._check_{id}")
    own = {name: c for name, c in _components.items() if name.split(".")[0] == id}
    if id not in own:
        raise WorkingPapersError(f"{path} registers no component: @paper({id!r}) is missing")
    return dict(sorted(own.items()))


def claims(id: str) -> dict[str, Claim]:
    """Import the file of the paper `id` and return its claims by name, in the order of the file."""
    load(id)
    return dict(_claims.get(id, {}))


def component(name: str) -> Component:
    """Return the component called `name`: a paper's id, a part (`repvgg.block`), or a reference (`relu`)."""
    if not isinstance(name, str):
        raise WorkingPapersError(f"a component is asked for by its name, such as 'golu'; got {name!r}")
    if name in REFERENCES:
        return _reference(name)
    id = name.split(".")[0]
    if id not in records():
        raise unknown("paper or reference", name, [*records(), *REFERENCES])
    own = load(id)
    if name not in own:
        raise unknown(f"component of the paper {id!r}", name, own)
    return own[name]


def make(name: str, *args: Any, **options: Any) -> Any:
    """Build the component called `name` with the given options (defaults are the paper's).

    >>> make("golu", beta=2.0)
    GoLU(alpha=1.0, beta=2.0, gamma=1.0)

    Raises:
        UnknownName: for an unknown name or option, with the nearest valid ones.
    """
    return component(name).build(*args, **options)


def _reference(name: str) -> Component:
    found = REFERENCES[name]
    home, _, attribute = found.path.rpartition(".")
    cls = getattr(importlib.import_module(home), attribute)
    return Component(
        name, found.kind, partial(cls, **found.options) if found.options else cls, found.properties
    )


def check_options(name: str, target: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise one sentence if `target` takes no option of some name in `options`."""
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            raise unknown(f"option of {name!r}", option, parameters)
