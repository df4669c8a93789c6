"""Working Papers: neural-network papers that work.  Find one, use it, compare it, check its claim.

>>> import workingpapers as wp
>>> wp.find("replace softmax in attention")          # doctest: +SKIP
>>> wp.make("golu")                                  # doctest: +SKIP
>>> wp.swap(model, "relu", "golu")                   # doctest: +SKIP
>>> wp.compare("digits-mlp", {"activation": ["relu", "golu"]}, seeds=5)  # doctest: +SKIP
>>> wp.verify(model, x, eps=0.01)                    # doctest: +SKIP
>>> wp.inspect(model, (x, y), loss="cross_entropy")  # doctest: +SKIP
>>> wp.sparsify(decoder, "cats", 0.5, calibration=tokens)  # doctest: +SKIP
>>> wp.check("golu")                                 # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workingpapers.catalog import claim, component, make, paper
    from workingpapers.contracts import check_contract
    from workingpapers.errors import UnknownName, WorkingPapersError
    from workingpapers.verbs._tracker import Tracker
    from workingpapers.verbs.bench import bench
    from workingpapers.verbs.check import check
    from workingpapers.verbs.compare import compare
    from workingpapers.verbs.find import find
    from workingpapers.verbs.inspect import inspect
    from workingpapers.verbs.listing import listing
    from workingpapers.verbs.show import show
    from workingpapers.verbs.sparsify import sparsify
    from workingpapers.verbs.swap import swap, undo
    from workingpapers.verbs.verify import Box, verify

__version__ = "0.1.0"

_HOMES = {
    "Box": "verbs.verify",
    "Tracker": "verbs._tracker",
    "UnknownName": "errors",
    "WorkingPapersError": "errors",
    "claim": "catalog",
    "component": "catalog",
    "make": "catalog",
    "paper": "catalog",
    "bench": "verbs.bench",
    "check": "verbs.check",
    "check_contract": "contracts",
    "compare": "verbs.compare",
    "find": "verbs.find",
    "inspect": "verbs.inspect",
    "listing": "verbs.listing",
    "show": "verbs.show",
    "sparsify": "verbs.sparsify",
    "swap": "verbs.swap",
    "undo": "verbs.swap",
    "verify": "verbs.verify",
}

__all__ = [
    "Box",
    "Tracker",
    "UnknownName",
    "WorkingPapersError",
    "bench",
    "check",
    "check_contract",
    "claim",
    "compare",
    "component",
    "find",
    "inspect",
    "listing",
    "make",
    "paper",
    "show",
    "sparsify",
    "swap",
    "undo",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a verb when it is asked for, so that `import workingpapers` stays light."""
    if name not in _HOMES:
        from workingpapers.errors import nearest

        hint = f"; did you mean {nearest(name, _HOMES)[0]!r}?" if nearest(name, _HOMES) else ""
        raise AttributeError(f"module 'workingpapers' has no attribute {name!r}{hint}")
    value = getattr(import_module(f"workingpapers.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
