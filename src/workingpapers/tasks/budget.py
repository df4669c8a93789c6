"""Budgets: how much a run may cost."""

from dataclasses import dataclass
from typing import TypeVar

from workingpapers.errors import unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """One of two sizes of run: "quick" (seconds on one CPU thread) or "full" (minutes on one GPU)."""

    name: str

    def __post_init__(self) -> None:
        """Refuse other names."""
        if self.name not in ("quick", "full"):
            raise unknown("budget", self.name, ("quick", "full"))

    def pick(self, *, quick: T, full: T) -> T:
        """Return the value for this budget.

        >>> QUICK.pick(quick=2, full=50)
        2
        """
        return quick if self.name == "quick" else full


QUICK = Budget("quick")
FULL = Budget("full")


def budget(name: str) -> Budget:
    """Return the budget called `name`, "quick" or "full"."""
    return Budget(name)
