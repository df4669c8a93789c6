"""find: the papers that answer a query, by its words and by its meaning together.

>>> find("replace softmax in attention")[0].record.id                             # doctest: +SKIP
'relu_attention_vit'
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise

from workingpapers.catalog import embeddings
from workingpapers.catalog.index import Index, index, texts
from workingpapers.catalog.kinds import KINDS
from workingpapers.catalog.query import Query, parse
from workingpapers.catalog.records import Record, families, record
from workingpapers.catalog.text import fold, is_searched, stem, terms, words
from workingpapers.errors import WorkingPapersError, unknown

# Weights beside the best paper's word score, which is 1; chosen like those of the fields (see index.py).
MEANING = 0.6  # of the cosine in the space of meanings
NEIGHBOURS = 0.2  # of the share of the query's neighbouring words that are neighbours in the paper too
LOOKED_INTO = 60  # how many of the best papers are looked into for neighbours


@dataclass(frozen=True)
class Match:
    """A paper that answers a query: `score` in 0..1 ranks it, `highlights` are the query's words found in it."""

    record: Record
    score: float
    highlights: tuple[str, ...]


def find(
    query: str,
    *,
    family: str | None = None,
    kind: str | None = None,
    working: bool = False,
    limit: int = 10,
) -> list[Match]:
    """Return the papers that answer `query`, best first; a paper's id, title or arXiv number brings it first.

    `family` and `kind` keep papers of that family and kind alone, `working` those that work here (their file
    passed its contract), `limit` the best so many.

    Raises:
        WorkingPapersError: for an empty query or a limit below one.
        UnknownName: for an unknown family or kind, with the nearest valid ones.
    """
    if not isinstance(query, str) or not query.strip():
        raise WorkingPapersError(f"a search needs some words to look for; got {query!r}")
    _check(limit)
    if family is not None and family not in families():
        raise unknown("family", family, families())
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    now = index()
    asked = parse(query, now.postings)
    word_scores = now.postings.scores(asked.weights)
    scores = _fused(word_scores, _meaning(query, word_scores, now))
    _prefer_neighbours(scores, query, now)
    named = _named(query, now.records)
    for n in named:
        scores[n] = 1.0
    kept = (
        n
        for n in sorted(range(len(scores)), key=lambda n: (n not in named, -scores[n], n))
        if scores[n] > 0 and _passes(now.records[n], family, kind, working)
    )
    return _matches(list(islice(kept, limit)), scores, asked, now)


def similar(id: str, limit: int = 10) -> list[Match]:
    """Return the papers nearest in meaning to the paper `id`, best first, itself left out.

    `score` is the cosine in the space of meanings, `highlights` the words of the paper's title and topics that
    the other has too.
    """
    _check(limit)
    chosen = record(id)
    now = index()
    own = now.records.index(chosen)
    cosines = now.space.cosines(now.space.points[own])
    about = words(" ; ".join((chosen.title, *chosen.topics)))
    asked = Query({}, {stem(word): word for word in about if is_searched(word)})
    order = sorted(range(len(cosines)), key=lambda n: (-cosines[n], n))
    return _matches([n for n in order if n != own][:limit], cosines, asked, now)


def _check(limit: int) -> None:
    if not isinstance(limit, int) or limit < 1:
        raise WorkingPapersError(f"the limit is how many papers to return, 1 or more; got {limit!r}")


def _meaning(query: str, word_scores: Sequence[float], now: Index) -> list[float]:
    model = embeddings.encoder()
    if model is None:
        return now.space.cosines(now.space.place(word_scores))
    return embeddings.cosines(model, query, [". ".join(texts(record)[1:5]) for record in now.records])


def _fused(word_scores: Sequence[float], cosines: Sequence[float]) -> list[float]:
    """Add word scores, the best taken as 1, to the cosines, scaled so that no later bonus leads past 1."""
    best = max(word_scores, default=0.0) or 1.0
    return [
        round((word / best + MEANING * max(cosine, 0.0)) / (1 + MEANING + NEIGHBOURS), 6)
        for word, cosine in zip(word_scores, cosines, strict=True)
    ]


def _prefer_neighbours(scores: list[float], query: str, now: Index) -> None:
    """Raise, among the best, papers of whose title, topics or summary the query's neighbours are neighbours."""
    pairs = _neighbours(query)
    if not pairs:
        return
    for n in sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:LOOKED_INTO]:
        r = now.records[n]
        there = frozenset().union(*map(_neighbours, (r.title, r.summary, *r.topics)))
        share = len(pairs & there) / len(pairs)
        scores[n] = round(scores[n] + share * NEIGHBOURS / (1 + MEANING + NEIGHBOURS), 6)


@lru_cache(maxsize=8192)
def _neighbours(text: str) -> frozenset[tuple[str, str]]:
    return frozenset(pairwise(terms(text)))


def _passes(record: Record, family: str | None, kind: str | None, working: bool) -> bool:
    if (family is not None and record.family != family) or (kind is not None and record.kind != kind):
        return False
    if not working:
        return True
    from workingpapers.catalog.ledger import works

    return works(record.id)


def _named(query: str, chosen: Sequence[Record]) -> set[int]:
    """Return the papers whose id, title, arXiv number or address the query is, spaces and signs aside."""
    asked = _bare(query)
    names = ((r.id, r.title, r.arxiv or "", f"arxiv {r.arxiv}", r.url or "") for r in chosen)
    return {n for n, each in enumerate(names) if asked and asked in map(_bare, each)}


@lru_cache(maxsize=8192)
def _bare(text: str) -> str:
    return "".join(filter(str.isalnum, fold(text)))


def _matches(found: Sequence[int], scores: Sequence[float], asked: Query, now: Index) -> list[Match]:
    where = [(word, now.postings.impact(term)) for term, word in asked.shown.items()]
    return [
        Match(now.records[n], scores[n], tuple(word for word, papers in where if n in papers)) for n in found
    ]
