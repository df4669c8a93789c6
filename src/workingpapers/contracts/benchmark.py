"""The contract of benchmarks: items by seed, and a scorer that knows right from wrong.

A benchmark has `items(seed, n) -> list` of items with `question` and `answer` (the truth), and
`score(item, answer) -> float` between 0 and 1.
"""

import pickle
from typing import Any

import torch

from workingpapers.contracts._check import Contract, ContractFailure, expect
from workingpapers.contracts._subject import Subject

ITEMS = 20


class BenchmarkSubject(Subject):
    """A benchmark, built with its small options."""

    def benchmark(self) -> Any:
        """Return a fresh instance."""
        return self.target(**self.options)

    def items(self, seed: int = 0, world: int = 0) -> list[Any]:
        """Return twenty items of a fresh instance; `world` seeds the global generator, which must not matter."""
        torch.manual_seed(world)
        return list(self.benchmark().items(seed, ITEMS))


def _same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other) or pickle.dumps(one) == pickle.dumps(other)


contract = Contract(BenchmarkSubject)


@contract.check("items", "items(seed, n) gives n items, each with a question and an answer")
def _items(subject: BenchmarkSubject) -> None:
    items = subject.items()
    expect(len(items) == ITEMS, f"asked for {ITEMS} items, it gave {len(items)}")
    for item in items:
        for name in ("question", "answer"):
            expect(hasattr(item, name), f"an item, a {type(item).__name__}, has no {name}")


@contract.check("same seed", "the same seed gives the same items, whatever the global seed")
def _same_seed(subject: BenchmarkSubject) -> None:
    pairs = zip(subject.items(world=0), subject.items(world=1), strict=True)
    different = [number for number, (one, other) in enumerate(pairs) if not _same(one, other)]
    expect(not different, f"{len(different)} of {ITEMS} items differ between two runs with the same seed")


@contract.check("other seeds", "another seed gives other items")
def _other_seeds(subject: BenchmarkSubject) -> None:
    expect(not _same(subject.items(0), subject.items(1)), "seeds 0 and 1 give the same items")


@contract.check("perfect answer", "the true answer scores 1")
def _perfect_answer(subject: BenchmarkSubject) -> None:
    benchmark = subject.benchmark()
    for number, item in enumerate(subject.items()):
        score = float(benchmark.score(item, item.answer))
        expect(score == 1.0, f"the true answer to item {number} scores {score:g}")


@contract.check(
    "wrong answer", "no answer scores less than 1 on every item, and other items' answers on average"
)
def _wrong_answer(subject: BenchmarkSubject) -> None:
    benchmark, items = subject.benchmark(), subject.items()
    for number, item in enumerate(items):
        score = float(benchmark.score(item, None))
        expect(score < 1.0, f"no answer at all scores {score:g} on item {number}")
    scores = [float(benchmark.score(*pair)) for pair in _mismatched(items)]
    mean = sum(scores) / len(scores)
    expect(mean < 1.0, f"other items' answers score {mean:g} on average")


def _mismatched(items: list[Any]) -> list[tuple[Any, Any]]:
    """Return each item with the next answer that is not its own."""
    found = []
    for number, item in enumerate(items):
        others = (other.answer for other in items[number + 1 :] + items[:number])
        found += [(item, answer) for answer in others if not _same(answer, item.answer)][:1]
    if not found:
        raise ContractFailure(f"all {len(items)} items have the same answer")
    return found


@contract.check("range", "every score lies between 0 and 1, also for no answer and for strange ones")
def _range(subject: BenchmarkSubject) -> None:
    benchmark, items = subject.benchmark(), subject.items()
    tries = [(item, answer) for item in items for answer in (item.answer, None, "", "no such answer", -1.5)]
    for item, answer in [*tries, *_mismatched(items)]:
        score = float(benchmark.score(item, answer))
        expect(0.0 <= score <= 1.0, f"the answer {answer!r} scores {score:g}")
