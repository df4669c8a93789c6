"""Randomness that follows from a seed alone and leaves torch's global state as found."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def stream(seed: int, purpose: str) -> int:
    """Return a seed for one `purpose` (such as "order"), unrelated to those for others."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:8], "big") >> 1


def initialise(build: Callable[[], M], seed: int) -> M:
    """Build a model (on the CPU) whose random initialisation follows from `seed`."""
    with OwnRandomness(stream(seed, "initialisation"), torch.device("cpu")).stretch():
        return build()


def apart(build: Callable[[], M]) -> M:
    """Build a replaceable part that moves the random state on by one number, however many it draws itself.

    So what is built after it starts from the same weights, whatever the part is.
    """
    seed = int(torch.randint(2**62, (), device="cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


class OwnRandomness:
    """A random state of one's own: entered for a stretch at a time, torch's global one put back between."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generators = [torch.default_generator]
        self._devices: list[int] = []
        if device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            index = torch.cuda.current_device() if device.index is None else device.index
            self._devices = [index]
            self._generators.append(torch.cuda.default_generators[index])
        self._states: list[Tensor] | None = None
        self._seed = seed

    @contextmanager
    def stretch(self) -> Iterator[None]:
        """Go on with the own state; at the end keep it and put the global one back."""
        with torch.random.fork_rng(devices=self._devices):
            for i, generator in enumerate(self._generators):
                if self._states is None:
                    generator.manual_seed(self._seed)
                else:
                    generator.set_state(self._states[i])
            try:
                yield
            finally:
                self._states = [generator.get_state() for generator in self._generators]
