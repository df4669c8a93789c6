"""What each method and target gives: quality against measured time, and the points that no other one beats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from workingpapers.errors import WorkingPapersError
from workingpapers.verbs.sparsify import METHODS, Sparsified, sparsify

TARGETS = (0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Tradeoff:
    """Points of a sweep, in the order in which they were measured."""

    points: tuple[Sparsified, ...]

    @property
    def front(self) -> tuple[Sparsified, ...]:
        """The points that no other one beats in quality and speed, the slowest first."""

        def beaten(point: Sparsified) -> bool:
            return any(
                other.after <= point.after
                and other.speed[0] >= point.speed[0]
                and (other.after < point.after or other.speed[0] > point.speed[0])
                for other in self.points
                if other.measure == point.measure
            )

        return tuple(sorted((p for p in self.points if not beaten(p)), key=lambda p: p.speed[0]))

    def as_dict(self) -> dict[str, Any]:
        """Return all as plain values."""
        front = self.front
        return {"points": [{**p.as_dict(), "front": p in front} for p in self.points]}

    def plot(self, path: str) -> None:
        """Draw how much quality each point costs, with its interval, over its speed.

        Raises:
            WorkingPapersError: where the file cannot be written.
        """
        from matplotlib.figure import Figure

        from workingpapers.verbs._draw import save_figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axis = figure.subplots()
        for method in dict.fromkeys(p.method for p in self.points):
            own = sorted((p for p in self.points if p.method == method), key=lambda p: p.target)
            rises = [100 * p.rise[0] for p in own]
            spread = [[100 * abs(p.rise[0] - p.rise[i]) for p in own] for i in (1, 2)]
            axis.errorbar([p.speed[0] for p in own], rises, spread, marker="o", capsize=3, label=method)
            for p, rise in zip(own, rises, strict=True):
                axis.annotate(
                    f"{p.target:.0%}", (p.speed[0], rise), textcoords="offset points", xytext=(4, 4)
                )
        axis.axvline(1.0, color="grey", linewidth=0.8)
        axis.set(
            xlabel="times as fast as dense, one token at a time",
            ylabel=f"rise of {self.points[0].measure} in %",
        )
        axis.legend()
        save_figure(figure, path)


def sweep(
    model: nn.Module,
    calibration: Any,
    evaluation: Any = None,
    *,
    methods: Sequence[str] = METHODS,
    targets: Sequence[float] = TARGETS,
    rounds: int = 20,
    watch: Callable[[str], None] | None = None,
) -> Tradeoff:
    """Return quality and measured speed of every method at every target.

    Args:
        model: as `sparsify` takes it.
        calibration: data that thresholds are set by.
        evaluation: data that quality is measured on; the calibration data by default.
        methods: papers' ids.
        targets: shares left out.
        rounds: of each timing.
        watch: called with what goes on.

    Raises:
        WorkingPapersError: as `sparsify`, and where there is no point to measure.
    """
    if not methods or not targets:
        raise WorkingPapersError("a sweep needs at least one method and one target")
    say, points = watch or (lambda what: None), []
    for method in methods:
        for target in targets:
            say(f"{method} at {target:.0%}")
            found = sparsify(model, method, target, calibration, evaluation=evaluation, rounds=rounds)[1]
            points.append(found)
    return Tradeoff(tuple(points))
