"""The nearest known words to a word that is not known: joined, split, or misspelt by a letter or two."""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from functools import lru_cache

SHORTEST = 4  # letters that a word must have before it is taken for a misspelling
TWO_EDITS_FROM = 8  # letters from which two edits are allowed
CANDIDATES = 30


def corrections(word: str, known: Sequence[str]) -> list[str]:
    """Return the `known` words at the least edit distance from `word`, if that is one (two for long words).

    Candidates are the known words that share most pairs of neighbouring letters with it.  The first letter
    must stand, or change places with the second: hardly anybody mistypes it, and it parts many other words.
    """
    if len(word) < SHORTEST:
        return []
    most = 2 if len(word) >= TWO_EDITS_FROM else 1
    shared = Counter(at for pair in _pairs(word) for at in _with_pair(tuple(known)).get(pair, ()))
    alike = sorted(shared, key=lambda at: (-shared[at] / (len(word) + len(known[at])), at))
    near: dict[int, list[str]] = {}
    for other in (known[at] for at in alike[:CANDIDATES]):
        if abs(len(other) - len(word)) <= most and other[0] in word[:2] and word[0] in other[:2]:
            near.setdefault(distance(word, other), []).append(other)
    return next((near[edits] for edits in range(1, most + 1) if edits in near), [])


def parts(word: str, known: Container[str], shortest: int = 3) -> tuple[str, str] | None:
    """Return the two `known` words that `word` is written together from, the longest first part first."""
    for cut in range(len(word) - shortest, shortest - 1, -1):
        if word[:cut] in known and word[cut:] in known:
            return word[:cut], word[cut:]
    return None


def distance(a: str, b: str) -> int:
    """Return the least number of letters to insert, drop, change or swap with the next between `a` and `b`."""
    before, last = [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], before[j - 2] + 1)
        before, last = last, row
    return last[-1]


def _pairs(word: str) -> set[str]:
    padded = f"<{word}>"
    return {padded[at : at + 2] for at in range(len(padded) - 1)}


@lru_cache(maxsize=2)
def _with_pair(known: tuple[str, ...]) -> Mapping[str, list[int]]:
    found: dict[str, list[int]] = {}
    for at, word in enumerate(known):
        for pair in _pairs(word):
            found.setdefault(pair, []).append(at)
    return found
