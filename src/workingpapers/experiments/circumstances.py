"""What surrounds a run: the seeds, the number of threads, and the measuring of its memory."""

import contextlib
import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np


@contextlib.contextmanager
def circumstances(seed: int, threads: int) -> Iterator[None]:
    """Seed all global generators and fix the number of threads; put back what was there at the end.

    torch is not imported for this, as that takes seconds: a run that imports it later finds it seeded.
    """
    from threadpoolctl import threadpool_limits

    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch = _Torch(seed, threads)
    with threadpool_limits(threads):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.enter()
        try:
            yield
        finally:
            torch.leave()
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class _Torch(importlib.abc.MetaPathFinder):
    """torch's global state during a run; as a finder of modules it waits for a run that imports torch itself."""

    def __init__(self, seed: int, threads: int) -> None:
        self.seed, self.threads = seed, threads
        self.before: dict[str, Any] | None = None

    def enter(self) -> None:
        if "torch" in sys.modules:
            self.prepare()
        else:
            sys.meta_path.insert(0, self)

    def leave(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if self.before is None:
            return
        import torch

        torch.set_num_threads(self.before["threads"])
        torch.set_rng_state(self.before["generator"])
        torch.set_default_dtype(self.before["dtype"])
        if torch.get_default_device() != self.before["device"]:  # else a lasting cost for every call of torch
            before = self.before["device"]
            torch.set_default_device(None if before.type == "cpu" else before)
        torch.set_grad_enabled(self.before["grad"])
        if (
            torch.are_deterministic_algorithms_enabled() != self.before["deterministic"]
        ):  # the setter takes seconds
            torch.use_deterministic_algorithms(self.before["deterministic"])

    def prepare(self) -> None:
        import torch

        self.before = {
            "threads": torch.get_num_threads(),
            "generator": torch.get_rng_state(),
            "dtype": torch.get_default_dtype(),
            "device": torch.get_default_device(),
            "grad": torch.is_grad_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
        torch.set_num_threads(self.threads)
        if torch.accelerator.is_available():
            torch.manual_seed(self.seed)
        else:  # the same, without the seconds in which torch.manual_seed imports the compiler
            torch.default_generator.manual_seed(self.seed)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_prepare(module: ModuleType) -> None:
                load(module)
                self.prepare()

            spec.loader.exec_module = load_and_prepare  # type: ignore[method-assign]
        return spec


class PeakMemory:
    """Measures by how many bytes a run makes its process grow at most; `peak` is set at the end.

    On 'cuda' it is the memory that torch allocated beyond what was allocated at the start.  On Linux the
    kernel's high-water mark is reset first; elsewhere a run that needs less than one before it shows 0.
    """

    peak: int | None = None

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def __enter__(self) -> "PeakMemory":
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
            return self
        _give_back_freed_memory()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.start = _status("VmRSS")
            self.mark = "VmHWM"
        except OSError:
            self.start, self.mark = _high_water(), ""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.startswith("cuda"):
            import torch

            now = torch.cuda.max_memory_allocated(self.device)
        else:
            now = _status(self.mark) if self.mark else _high_water()
        self.peak = max(0, now - self.start)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")


def _high_water() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _give_back_freed_memory() -> None:
    """Have the C library return what earlier runs freed, or this run's use of it would not show as growth."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
