"""The subject of a contract: a component, what it declares, and how it is built for the checks."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Self

from workingpapers.errors import WorkingPapersError


class Subject:
    """A component under its contract; each kind's own subject knows how to build and to call it.

    `required` names the properties that the contract of the kind cannot do without.
    """

    required: tuple[str, ...] = ()

    def __init__(
        self, name: str, target: Callable[..., Any], properties: Mapping[str, Any], variant: str = ""
    ) -> None:
        self.name = name
        self.variant = variant
        self.target = target
        self.properties = properties
        self.options: dict[str, Any] = dict(properties.get("options") or {})
        for needed in self.required:
            if properties.get(needed) is None:
                raise WorkingPapersError(
                    f"the contract of {name} needs the property {needed!r}, which is not declared"
                )

    def variants(self) -> Iterator[Self]:
        """Yield the same component with each of its declared variants of options."""
        for options in self.declared("variants", []):
            given = ", ".join(f"{name}={value!r}" for name, value in options.items())
            changed = {**self.properties, "options": {**self.options, **options}}
            yield type(self)(self.name, self.target, changed, f"with {given} ")

    def declared(self, name: str, default: Any = None) -> Any:
        """Return the declared value of the property `name`, or `default`."""
        value = self.properties.get(name)
        return default if value is None else value

    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Return the parameters of the constructor, or of the function itself."""
        return inspect.signature(self.target).parameters

    def make(self) -> Any:
        """Return what `make` gives: an instance of a class, or a function with its options bound."""
        if inspect.isclass(self.target):
            return self.target(**self.options)
        return partial(self.target, **self.options) if self.options else self.target
