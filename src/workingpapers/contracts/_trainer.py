"""Trainers under contract: which of the three sorts one is, and what the checks run it on."""

from collections.abc import Callable, Mapping
from typing import Any

from workingpapers.contracts._function import FunctionSubject
from workingpapers.errors import WorkingPapersError, unknown

TRAINS = ("optimizer", "loss", "fit")


class TrainerSubject(FunctionSubject):
    """A trainer of one of the three sorts; a loss and a fit are tried on the declared example."""

    required = ("trains",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trains = self.declared("trains")
        if self.trains not in TRAINS:
            raise unknown("sort of trainer", self.trains, TRAINS)
        if self.trains != "optimizer" and self.declared("example") is None:
            raise WorkingPapersError(f"the contract of {self.name} needs the property 'example'")

    @property
    def steps(self) -> int:
        """How many steps the small run takes."""
        return int(self.declared("steps", 500 if self.trains == "optimizer" else 20))


def trains(name: str) -> Callable[[Mapping[str, Any]], bool]:
    """Return the condition that the trainer is of the sort `name`."""
    return lambda properties: properties.get("trains") == name
