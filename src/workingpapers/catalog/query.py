"""What a query asks for: its words as weighted terms, with abbreviations, synonyms and misspellings seen to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from workingpapers.catalog import synonyms
from workingpapers.catalog.lexical import Postings
from workingpapers.catalog.spelling import SHORTEST, corrections, parts
from workingpapers.catalog.text import is_searched, stem, words

# How much a word counts that the user did not write just so.
CORRECTED = 0.9
JOINED = 0.7  # 'batch norm' for 'batchnorm' and the other way about
SPELLED_OUT = 0.5
ALIKE = 0.2

# What is looked at to correct a query: a whole page pasted as one must not take seconds.
MOST_CORRECTIONS = 8  # unknown words
LONGEST = 30  # letters of an unknown word


@dataclass(frozen=True)
class Query:
    """`weights`: term -> weight; `shown`: term -> the word for it to show, for terms the user may expect."""

    weights: dict[str, float]
    shown: dict[str, str]


def parse(text: str, postings: Postings) -> Query:
    """Turn the user's words into weighted terms of the index."""
    every = words(text)
    written = [word for word in every if is_searched(word)]
    query = Query({}, {})
    unknown: list[str] = []
    for word in written:
        if stem(word) in postings.row:
            _add(query, word, 1.0)
        elif len(word) <= LONGEST and len(unknown) < MOST_CORRECTIONS and word not in unknown:
            unknown.append(word)
    for whole in _written_together(every):
        if stem(whole) in postings.row:
            _add(query, whole, JOINED)
    for word in unknown:
        _add_nearest(query, word, postings)
    typed = [stem(word) for word in written]
    for word in synonyms.spelled_out(typed):
        _add(query, word, SPELLED_OUT)
    for word in synonyms.alike(typed):
        _add(query, word, ALIKE)
    return query


def _written_together(every: Sequence[str]) -> Iterator[str]:
    """Yield compounds without their hyphens, and neighbours as one word: 'over-fitting' and 'over fitting'.

    A stop word may come first if it is long: 'a symmetric' is not asymmetric, 'in variance' no invariance.
    """
    yield from (word.replace("-", "") for word in every if "-" in word)
    for first, second in pairwise(word for word in every if "-" not in word):
        if is_searched(second) and (is_searched(first) or len(first) >= SHORTEST):
            yield first + second


def _add(query: Query, word: str, weight: float) -> None:
    term = stem(word)
    if query.weights.setdefault(term, weight) == weight and weight > ALIKE:
        query.shown.setdefault(term, word)


def _add_nearest(query: Query, word: str, postings: Postings) -> None:
    """Add the two known words that an unknown one is written from, else the known words most like it."""
    if split := parts(word, postings.known):
        for part in split:
            _add(query, part, JOINED)
        return
    near = corrections(word, postings.spelled)
    for other in near:
        _add(query, other, CORRECTED / len({stem(each) for each in near}))
