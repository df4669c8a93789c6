"""How the contracts of transforms, trainers, initializers, analyses and studies call a component."""

from typing import Any

import torch

from workingpapers.contracts._subject import Subject


class FunctionSubject(Subject):
    """A component that is called with the arguments that its declared example gives."""

    required: tuple[str, ...] = ("example",)

    def arguments(self) -> tuple[Any, ...]:
        """Return the arguments of one small run, the same at every call."""
        torch.manual_seed(0)
        found = self.properties["example"](torch.Generator().manual_seed(0))
        return found if isinstance(found, tuple) else (found,)

    def run(self, arguments: tuple[Any, ...], seed: int = 0) -> Any:
        """Return what the component gives for the arguments, with the global generator seeded before."""
        torch.manual_seed(seed)
        return self.make()(*arguments)

    def seeds(self) -> tuple[int, int]:
        """Return two global seeds that must not make a difference: unlike ones for a deterministic component."""
        return (0, 1) if self.declared("deterministic", True) else (0, 0)
