"""BM25F: how well each document's words, field by field, answer a query's words.

A word's frequency in a document is summed over the fields, each weighted and divided by the field's length
against the average; one saturating curve and one inverse document frequency then turn it into an impact
(Robertson, Zaragoza and Taylor 2004, "Simple BM25 Extension to Multiple Weighted Fields").

Building takes numpy; asking takes plain Python, so that a search need not wait for numpy's import.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

from workingpapers.catalog.text import is_searched, stem, words

if TYPE_CHECKING:
    import numpy as np

SATURATION = 1.2  # k1: how soon a word that is repeated stops to count


@dataclass(frozen=True)
class Field:
    """How much a word in this field counts, and how far the field's length counts against it (0 to 1)."""

    weight: float
    b: float = 0.75


@dataclass(frozen=True)
class Postings:
    """Where each term stands: the documents of term t are `documents[starts[t]:starts[t + 1]]`.

    `spelled`: every word as written that is no stop word; `terms`: the stems; `impacts`: the term's impact on
    each of its documents, beside `documents`; `size`: number of documents.
    """

    spelled: Sequence[str]
    terms: Sequence[str]
    starts: Sequence[int]
    documents: Sequence[int]
    impacts: Sequence[float]
    size: int

    @cached_property
    def row(self) -> Mapping[str, int]:
        """Number of each term."""
        return {term: number for number, term in enumerate(self.terms)}

    @cached_property
    def known(self) -> frozenset[str]:
        """The words as written, for looking one up."""
        return frozenset(self.spelled)

    def impact(self, term: str) -> dict[int, float]:
        """Return the impact of `term` on every document that has it; nothing for an unknown term."""
        if term not in self.row:
            return {}
        start, end = self.starts[self.row[term]], self.starts[self.row[term] + 1]
        return dict(zip(self.documents[start:end], self.impacts[start:end], strict=True))

    def scores(self, query: Mapping[str, float]) -> list[float]:
        """Return each document's score for weighted terms; unknown terms count nothing."""
        total = [0.0] * self.size
        for term, weight in query.items():
            for document, impact in self.impact(term).items():
                total[document] += weight * impact
        return total

    def matrix(self) -> "np.ndarray":
        """Return the impacts as an array (terms, documents), float64."""
        import numpy as np

        full = np.zeros((len(self.terms), self.size))
        full[np.repeat(np.arange(len(self.terms)), np.diff(self.starts)), self.documents] = self.impacts
        return full


def build(
    documents: Sequence[Sequence[str]], fields: Sequence[Field], saturation: float = SATURATION
) -> Postings:
    """Index `documents`, each the texts of its `fields` in the same order; impacts are float16 numbers."""
    import numpy as np

    written = [words(text) for text in chain.from_iterable(documents)]
    known = {stem(word) for word in chain.from_iterable(written) if "-" not in word}
    spelled: dict[str, str] = {}
    terms: dict[str, int] = {}
    rows: list[list[int]] = []
    for found in written:
        rows.append(row := [])
        for word in found:
            if word not in spelled:
                spelled[word] = _term(word, known)
            if term := spelled[word]:
                row.append(terms.setdefault(term, len(terms)))
    frequency = _frequencies(rows, fields, len(documents), len(terms))
    impacts = _impacts(frequency, saturation).astype(np.float16)
    row_of, document = np.nonzero(impacts)
    return Postings(
        [word for word, term in spelled.items() if term and "-" not in word],
        list(terms),
        np.searchsorted(row_of, np.arange(len(terms) + 1)).tolist(),
        document.tolist(),
        impacts[row_of, document].tolist(),
        len(documents),
    )


def _term(word: str, known: Container[str]) -> str:
    """Return the term of a word, '' for none; a compound is one where it is also written without hyphens."""
    whole = word.replace("-", "")
    if whole != word and stem(whole) not in known:
        return ""
    return stem(whole) if is_searched(whole) else ""


def _frequencies(
    rows: list[list[int]], fields: Sequence[Field], num_documents: int, num_terms: int
) -> "np.ndarray":
    """Weighted frequency of every term, summed over the fields: (terms, documents)."""
    import numpy as np

    lengths = np.array([len(row) for row in rows]).reshape(num_documents, len(fields))
    average = np.maximum(lengths.mean(axis=0), 1e-9)
    weight = np.array([field.weight for field in fields])
    b = np.array([field.b for field in fields])
    each = np.repeat((weight / (1 - b + b * lengths / average)).ravel(), lengths.ravel())
    document = np.repeat(np.arange(num_documents), lengths.sum(axis=1))
    term = np.fromiter(chain.from_iterable(rows), dtype=np.intp, count=int(lengths.sum()))
    total = np.bincount(term * num_documents + document, each, minlength=num_terms * num_documents)
    return total.reshape(num_terms, num_documents)


def _impacts(frequency: "np.ndarray", saturation: float) -> "np.ndarray":
    import numpy as np

    documents = frequency.shape[1]
    containing = np.count_nonzero(frequency, axis=1)
    rarity: np.ndarray = np.log1p((documents - containing + 0.5) / (containing + 0.5))
    return rarity[:, None] * (frequency * (saturation + 1) / (frequency + saturation))
