"""Evidence for a claim, the rules that judge it, and the finding that an analysis gives."""

import math
import statistics as moments
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workingpapers.errors import WorkingPapersError, unknown

HOLDS = "holds"
FAILS = "does not hold"
OPEN = "not shown"

Figures = Mapping[str, Sequence[float]]


class Evidence:
    """What one seed says about a claim: one value, or several named figures.

    >>> Evidence(0.73).figures
    {'value': 0.73}
    >>> Evidence(gain=0.02, accuracy=0.81).figures
    {'gain': 0.02, 'accuracy': 0.81}
    """

    def __init__(self, value: float | None = None, /, **figures: float) -> None:
        if value is not None:
            figures = {"value": value, **figures}
        if not figures:
            raise WorkingPapersError("evidence needs a value or named figures; got none")
        try:
            self.figures = {name: float(figure) for name, figure in figures.items()}
        except (TypeError, ValueError):
            raise WorkingPapersError(f"evidence takes numbers; got {figures!r}") from None

    def __repr__(self) -> str:
        return "Evidence(" + ", ".join(f"{k}={v:.6g}" for k, v in self.figures.items()) + ")"


@dataclass(frozen=True)
class Bound:
    """A rule on one figure: its mean, its median, or every seed's value stands in a relation to a limit.

    By 'mean' the 95 % interval must lie wholly on one side; by 'median' the seeds on one side must be more
    than chance (one-sided sign test at 5 %, so at least five seeds); by 'every' each seed must comply.
    A value that is not finite complies with nothing.
    """

    sign: str
    limit: float
    of: str = "value"
    by: str = "mean"

    def __post_init__(self) -> None:
        if self.by not in ("mean", "median", "every"):
            raise unknown("way to judge seeds (by=)", self.by, ("mean", "median", "every"))

    @property
    def text(self) -> str:
        """The rule in words."""
        subject = f"every {self.of}" if self.by == "every" else f"{self.by} {self.of}"
        return f"{subject} {self.sign} {self.limit:g}"

    def complies(self, value: float) -> bool:
        """Tell whether a single value stands in the relation to the limit."""
        if not math.isfinite(value):
            return False
        return {
            "<": value < self.limit,
            "<=": value <= self.limit,
            ">": value > self.limit,
            ">=": value >= self.limit,
        }[self.sign]

    def judge(self, figures: Figures) -> str:
        """Return 'holds', 'does not hold' or 'not shown' from the figure's values over the seeds."""
        if self.of not in figures:
            raise unknown("figure in the evidence", self.of, figures)
        values = list(figures[self.of])
        if not values:
            return OPEN
        kept = sum(self.complies(v) for v in values)
        if self.by == "every":
            return HOLDS if kept == len(values) else FAILS
        return self._by_median(kept, len(values)) if self.by == "median" else self._by_mean(values)

    @staticmethod
    def _by_median(kept: int, total: int) -> str:
        from scipy.stats import binom

        if binom.sf(kept - 1, total, 0.5) <= 0.05:
            return HOLDS
        return FAILS if binom.cdf(kept, total, 0.5) <= 0.05 else OPEN

    def _by_mean(self, values: list[float]) -> str:
        from workingpapers.experiments.statistics import mean_interval

        if not all(map(math.isfinite, values)):
            lost = sum(not math.isfinite(v) for v in values)
            return FAILS if 2 * lost >= len(values) else OPEN
        if len(values) < 2:
            return OPEN
        interval = mean_interval(values)
        sides = {self.complies(interval.low), self.complies(interval.high)}
        if len(sides) == 2:
            return OPEN
        return HOLDS if sides.pop() else FAILS


@dataclass(frozen=True)
class AllOf:
    """Several rules that must all hold; one that does not hold decides."""

    rules: tuple[Any, ...]

    @property
    def text(self) -> str:
        """The rules in words."""
        return " and ".join(_bracketed(rule) for rule in self.rules)

    def judge(self, figures: Figures) -> str:
        """Return the weakest verdict of the rules."""
        verdicts = [rule.judge(figures) for rule in self.rules]
        return FAILS if FAILS in verdicts else OPEN if OPEN in verdicts else HOLDS


@dataclass(frozen=True)
class AnyOf:
    """Several rules of which one must hold."""

    rules: tuple[Any, ...]

    @property
    def text(self) -> str:
        """The rules in words."""
        return " or ".join(_bracketed(rule) for rule in self.rules)

    def judge(self, figures: Figures) -> str:
        """Return the strongest verdict of the rules."""
        verdicts = [rule.judge(figures) for rule in self.rules]
        return HOLDS if HOLDS in verdicts else OPEN if OPEN in verdicts else FAILS


def _bracketed(rule: Any) -> str:
    return f"({rule.text})" if isinstance(rule, AllOf | AnyOf) else rule.text


def below(limit: float, of: str = "value", by: str = "mean") -> Bound:
    """Return the rule that the figure `of` is less than `limit`."""
    return Bound("<", limit, of, by)


def at_most(limit: float, of: str = "value", by: str = "mean") -> Bound:
    """Return the rule that the figure `of` is at most `limit`."""
    return Bound("<=", limit, of, by)


def above(limit: float, of: str = "value", by: str = "mean") -> Bound:
    """Return the rule that the figure `of` is greater than `limit`."""
    return Bound(">", limit, of, by)


def at_least(limit: float, of: str = "value", by: str = "mean") -> Bound:
    """Return the rule that the figure `of` is at least `limit`."""
    return Bound(">=", limit, of, by)


def between(low: float, high: float, of: str = "value", by: str = "mean") -> AllOf:
    """Return the rule that the figure `of` lies in [low, high]."""
    return AllOf((at_least(low, of, by), at_most(high, of, by)))


def all_of(*rules: Any) -> AllOf:
    """Return the rule that every one of `rules` holds."""
    return AllOf(rules)


def any_of(*rules: Any) -> AnyOf:
    """Return the rule that at least one of `rules` holds."""
    return AnyOf(rules)


@dataclass(frozen=True)
class Symptom:
    """Something wrong with a network: where, how bad, a sentence with the number, and what would change it.

    `severity` is "serious" (it costs accuracy or training), "warning" (it may) or "note"; `cure` does what `remedy`
    says, where code can: a model -> a changed copy.
    """

    where: str
    severity: str
    says: str
    remedy: str
    cure: Callable[[Any], Any] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Finding:
    """What an analysis or a study found: numbers, a reading of one sentence, symptoms, a figure drawn on demand."""

    numbers: Mapping[str, float]
    reading: str
    figure: Callable[[], Any] | None = field(default=None, repr=False, compare=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    symptoms: tuple[Symptom, ...] = ()

    def __str__(self) -> str:
        rows = "\n".join(f"  {name:<32} {value:.6g}" for name, value in self.numbers.items())
        return f"{self.reading}\n{rows}"


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Return (mean, standard deviation) of the finite values; nan where there is none."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return math.nan, math.nan
    return moments.fmean(finite), moments.stdev(finite) if len(finite) > 1 else 0.0
