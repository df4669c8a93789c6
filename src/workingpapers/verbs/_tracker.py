"""Inspecting while a network trains: chosen checks on a fixed sample, as often as a share of the time allows."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workingpapers.engines.activity.batches import batches_of
from workingpapers.engines.activity.observe import Loss
from workingpapers.errors import WorkingPapersError
from workingpapers.verbs._inspection import Inspection
from workingpapers.verbs.inspect import chosen_checks, inspect

CHEAP = (
    "redo.dormant",
    "ap_prune.dead",
    "convergent_learning.duplicates",
    "edim_oscillation.collapse",
    "lazy_neuron.sparsity",
)


class Tracker:
    """Inspects a model now and then while it trains; what was found stays in `history`.

    >>> tracker = Tracker(model, sample, every=None)   # doctest: +SKIP
    >>> for batch in loader:                           # doctest: +SKIP
    ...     train(batch)
    ...     tracker.step()

    Args:
        model: the module that trains.
        data: the sample, as `inspect` takes data; only its first `examples` are used, again and again.
        loss, optimizer: for checks that need them; the optimizer's rate is read at every inspection.
        checks: names; by default those that cost one forward sweep and are written.
        overhead: the share of the time since the start that inspections may take.
        every: inspect at each so many steps instead, whatever it takes.
        examples: how many of the sample.
        path: append each inspection here as a line of JSON, so that none is lost with the process.
        seed: of samples.

    Raises:
        WorkingPapersError: where a share, a number or a check makes no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        loss: str | Loss | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        checks: str | Sequence[str] | None = None,
        overhead: float = 0.03,
        every: int | None = None,
        examples: int = 128,
        path: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < overhead <= 1 or (every is not None and every < 1) or examples < 1:
            raise WorkingPapersError(
                f"expected 0 < overhead <= 1, every >= 1 and examples >= 1; got {overhead}, {every} and {examples}"
            )
        written = set(chosen_checks("all"))
        self.checks = chosen_checks(checks) if checks is not None else [c for c in CHEAP if c in written]
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.overhead, self.every, self.seed = overhead, every, seed
        self.path = None if path is None else Path(path)
        self.sample = _first(data, examples)
        self.history: list[tuple[int, Inspection]] = []
        self.steps, self.spent, self.began = 0, 0.0, time.perf_counter()
        self._dearest = 0.0

    def step(self) -> Inspection | None:
        """Count a step of training, and inspect where it is time; return what was found then."""
        self.steps += 1
        if self.every is not None:
            return self.inspect() if self.steps % self.every == 0 else None
        allowed = self.overhead * (time.perf_counter() - self.began)
        # the first one's cost is unknown until it is made: after it, the next waits until both are paid
        return self.inspect() if not self.history or self.spent + self._dearest <= allowed else None

    def inspect(self) -> Inspection:
        """Inspect now."""
        began = time.perf_counter()
        found = inspect(
            self.model,
            self.sample,
            loss=self.loss,
            optimizer=self.optimizer,
            checks=self.checks,
            seed=self.seed,
        )
        self.history.append((self.steps, found))
        if self.path is not None:
            self._append(found)
        took = time.perf_counter() - began
        self.spent, self._dearest = self.spent + took, max(self._dearest, took)
        return found

    def course(self) -> dict[str, list[tuple[int, float]]]:
        """Return every number as `check: name` with its (step, value) pairs."""
        found: dict[str, list[tuple[int, float]]] = {}
        for step, inspection in self.history:
            for check, finding in inspection.findings.items():
                for name, value in finding.numbers.items():
                    found.setdefault(f"{check}: {name}", []).append((step, float(value)))
        return found

    def figure(self, names: Sequence[str] | None = None) -> Any:
        """Draw numbers over steps, by default each check's first; a matplotlib figure."""
        from matplotlib.figure import Figure

        course = self.course()
        if names is None:
            first: dict[str, str] = {}
            for name in course:
                first.setdefault(name.split(": ")[0], name)
            names = list(first.values())
        if not names:
            raise WorkingPapersError("nothing was inspected yet, so there is nothing to draw")
        figure = Figure(figsize=(7, 1.8 * len(names)), layout="constrained")
        for axis, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
            axis.plot(*zip(*course[name], strict=True), marker="o", markersize=3)
            axis.set_title(name, fontsize=9)
            axis.set_xlabel("training steps")
        return figure

    def lightning(self) -> Any:
        """Return this as a callback of Lightning."""
        try:
            from lightning.pytorch.callbacks import Callback
        except ImportError:
            raise WorkingPapersError("this needs Lightning: pip install lightning") from None
        tracker = self

        class Track(Callback):  # type: ignore[misc]
            """Counts a step after each batch."""

            def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
                tracker.step()

        return Track()

    def transformers(self) -> Any:
        """Return this as a callback of Hugging Face's Trainer."""
        try:
            from transformers import TrainerCallback
        except ImportError:
            raise WorkingPapersError("this needs transformers: pip install transformers") from None
        tracker = self

        class Track(TrainerCallback):  # type: ignore[misc]
            """Counts a step after each of the optimizer's."""

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                tracker.step()

        return Track()

    def _append(self, found: Inspection) -> None:
        from workingpapers.experiments.comparison import finite

        assert self.path is not None
        line = json.dumps(finite({"step": self.steps, **found.as_dict()}), ensure_ascii=False)
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise WorkingPapersError(f"cannot write {self.path}: {error.strerror or error}") from None


def _first(data: Any, examples: int) -> list[Any]:
    """Return the first examples of data as batches that `inspect` takes, again and again."""
    found, left = [], examples
    for part in batches_of(data, min(64, examples)):
        part = part[:left]
        inputs: Any = dict(part.named) if part.named else part.arguments
        inputs = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
        found.append((inputs, part.targets))
        left -= part.size
        if left <= 0:
            break
    return found
