"""A component under contract in these tests: what it is, its kind, and what it declares."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workingpapers.contracts import Report, check_contract


@dataclass(frozen=True)
class Case:
    kind: str
    target: Callable[..., Any]
    properties: dict[str, Any] = field(default_factory=dict)

    def check(self, only: str | None = None, **further: Any) -> Report:
        return check_contract(self.target, self.kind, only=only, **{**self.properties, **further})

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.target.__name__}"
