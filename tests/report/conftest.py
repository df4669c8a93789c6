"""Comparisons and verdicts from made-up runs, and a reader that sees a report as a browser does."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest

from workingpapers.claims import Verdict
from workingpapers.experiments.comparison import Comparison
from workingpapers.experiments.evidence import above
from workingpapers.experiments.statistics import Interval, mean_interval
from workingpapers.experiments.store import Run

VOID = {"meta", "link", "br", "hr", "img", "input", "source", "embed", "base"}


@dataclass
class Node:
    """An element of the page, with all text under it."""

    tag: str
    attributes: dict[str, str | None]
    children: list["Node"] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def classes(self) -> set[str]:
        return set((self.attributes.get("class") or "").split())

    def walk(self) -> Iterator["Node"]:
        yield self
        for child in self.children:
            yield from child.walk()

    def all(self, tag: str | None = None, class_: str | None = None) -> list["Node"]:
        """Return the elements at or under this one of a tag and a class."""
        return [n for n in self.walk() if tag in (None, n.tag) and (class_ is None or class_ in n.classes())]

    def one(self, tag: str | None = None, class_: str | None = None) -> "Node":
        (found,) = self.all(tag, class_)
        return found


class Reader(HTMLParser):
    """Builds the tree of a page and fails where an element is not closed in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("document", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice: {attrs}"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for node in self.open:
            node.words.append(data)


def read(text: str) -> Node:
    """Return the tree of an HTML text."""
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root], f"left open: {[n.tag for n in reader.open[1:]]}"
    return reader.root


@pytest.fixture(name="read")
def _read() -> Callable[[str], Node]:
    return read


def make_run(variant: Mapping[str, Any], seed: int, metrics: Mapping[str, float] | None, **other: Any) -> Run:
    status = (
        "failed" if metrics is None else "done" if all(map(math.isfinite, metrics.values())) else "diverged"
    )
    curve = other.pop("curve", None)
    values: dict[str, Any] = {
        "experiment": "e", "name": "digits-mlp", "code": "c0de", "status": status, "seconds": 2.5,
        "peak_memory": 3 * 2**20, "machine": "box, cpu x 2", "version": "0.1.0", "started": 1.79e9,
        "finished": 1.79e9, "error": "ValueError: broken" if metrics is None else None, "traceback": None,
        "output": None, "key": (json.dumps(variant), seed), "packed_curve": json.dumps(curve) if curve else None,
    }  # fmt: skip
    return Run(
        variant=dict(variant), seed=seed, metrics=dict(metrics) if metrics else None, **{**values, **other}
    )


@pytest.fixture
def run() -> Callable[..., Run]:
    """Make a run from (variant, seed, metrics, ...); no metrics: it failed; nan among them: it diverged."""
    return make_run


@pytest.fixture
def compared() -> Callable[..., Comparison]:
    """Make a comparison from label -> values by seed (None: failed, nan: diverged); the first is the baseline."""

    def make(
        values: Mapping[str, Sequence[float | None]],
        metric: str = "accuracy",
        goal: str = "max",
        curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]] | None = None,
        name: str = "digits-mlp",
        **options: Any,
    ) -> Comparison:
        variants = [{"activation": label} for label in values]
        runs = []
        for variant, column in zip(variants, values.values(), strict=True):
            for seed, value in enumerate(column):
                curve = (curves or {}).get(variant["activation"])
                runs.append(make_run(variant, seed, None if value is None else {metric: value},
                                     curve=curve[seed] if curve else None))  # fmt: skip
        return Comparison(name, runs, variants, variants[0], metric, goal, **options)

    return make


@pytest.fixture
def judged() -> Callable[..., Verdict]:
    """Make a verdict from figures by name and a rule."""

    def make(figures: Mapping[str, Sequence[float]], rule: Any = None, **other: Any) -> Verdict:
        rule = rule or above(0.0, of=next(iter(figures), "value"))
        seeds = list(range(max(map(len, figures.values()), default=0)))
        values = {name: list(column) for name, column in figures.items()}
        content: dict[str, Any] = {
            "paper": "golu",
            "claim": "gain",
            "says": "It gains.",
            "figure": "70.76 against 69.74",
            "budget": "quick",
            "rule": rule.text,
            "verdict": rule.judge(values) if figures else "not shown",
            "values": values,
            "figures": {name: interval(column) for name, column in values.items()},
            "seeds": seeds,
            "seconds": 90.0,
            "machine": "box, cpu x 2",
            "version": "0.1.0",
            "finished": "1790000000.5",
            "calibrated": None,
            "errors": [],
        }
        return Verdict(**{**content, **other})

    return make


def interval(values: Sequence[float]) -> Interval:
    finite = [v for v in values if math.isfinite(v)]
    if len(set(finite)) < 2:
        value = finite[0] if finite else math.nan
        return Interval(value, value, value)
    return mean_interval(finite)
