"""FIND: explain black-box functions whose descriptions are known, and be scored for it.

Items are numbers to numbers (about thirty forms, plain, composed, piecewise, noisy, approximated by a network, or
corrupted on an interval), strings to strings (edits, and compositions of them), and words to [0, 1] (similarity
to a hidden concept).  An interpreter asks a function a limited number of times and gives code and words.

Paper: "A Function Interpretation Benchmark for Evaluating Interpretability Methods" (2023).  Counts and parameter
ranges are ours; the paper's language-model judge is replaced by a choice among descriptions by embeddings.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least, below
from workingpapers.papers.interpret import _atoms
from workingpapers.papers.interpret._interpreters import Constant, Explanation, SparseRegression, words
from workingpapers.papers.interpret._items import (
    Encode,
    Item,
    default_encoder,
    edited,
    inside_of,
    numeric_parts,
    tame,
)
from workingpapers.tasks import Budget

FAMILIES = ("numeric", "string", "module")
GROUPS = ("atomic", "composed", "piecewise", "noisy", "approximate", "corrupted")


@paper("find_bench")
class FIND:
    """Generate hidden functions and score explanations of them.

    Args:
        families: among "numeric", "string" and "module", in turn; modules need an encoder.
        groups: variants of numeric functions, in turn: "atomic", "composed", "piecewise", "noisy", "approximate",
            "corrupted".
        encode: sentences -> vectors (N, D), for modules (default: all-MiniLM-L6-v2, extra [embeddings]).
    """

    def __init__(
        self,
        families: Sequence[str] = ("numeric", "string"),
        groups: Sequence[str] = GROUPS,
        encode: Encode | None = None,
    ) -> None:
        for what, given, valid in (("family", families, FAMILIES), ("group", groups, GROUPS)):
            for name in given:
                if name not in valid:
                    raise unknown(f"{what} of functions", name, valid)
        self.families, self.groups, self.encode = tuple(families), tuple(groups), encode

    def items(self, seed: int, n: int) -> list[Item]:
        """Return `n` items; the first ones of a longer list are those of a shorter one."""
        return [self._item(seed, number) for number in range(n)]

    def _item(self, seed: int, number: int) -> Item:
        family, draw = self.families[number % len(self.families)], random.Random(f"find {seed} {number}")
        group = self.groups[number // len(self.families) % len(self.groups)] if family == "numeric" else ""
        own = draw.randrange(2**31)
        question = {
            "numeric": "real number -> real number",
            "string": "string -> string",
            "module": "word -> [0, 1]",
        }
        common: dict[str, Any] = {
            "id": f"{family}-{seed}-{number}",
            "family": family,
            "question": question[family],
            "seed": own,
        }
        if family == "module":
            concept = draw.choice(list(_atoms.CONCEPTS))
            said = f"how much a word has to do with {concept}"
            return Item(group="concept", answer=Explanation(concept, said), **common)
        if family == "string":
            return Item(**common, **edited(draw))
        while True:
            parts = numeric_parts(draw, group)
            item = Item(group=group, **common, **parts)
            values = _atoms.numeric(item.answer.code)(item.held_out())
            if tame(values) and (item.interval is None or tame(values[~inside_of(item)])):
                noise = round(item.noise * float(np.std(values)), 6)
                return Item(group=group, **common, **{**parts, "noise": noise})

    def score(self, item: Item, answer: Any) -> float:
        """Return 1 for an explanation that passes and 0 for one that does not.

        Numeric: mean squared error below a tenth of the variance.  Strings: ten hidden words, all right.
        Modules: the answer's words are nearer to the true description than to four others.
        """
        if item.family == "module":
            return float(self.compare(item, answer)["choice"])
        code = answer.code if isinstance(answer, Explanation) else answer
        if not isinstance(code, str):
            return 0.0
        if item.family == "numeric":
            return float(errors(item, code)["all"] < 0.1)
        try:
            said = _atoms.text(code)
            return float(all(said(w) == item.function()(w) for w in words(random.Random(item.seed), 10)))
        except (WorkingPapersError, ArithmeticError, TypeError, ValueError, LookupError, AttributeError):
            return 0.0  # whatever an explanation's code runs into, it has failed to explain

    def compare(self, item: Item, answer: Any) -> dict[str, float]:
        """Return the `similarity` of the answer's words to the true ones, and the `choice` among five (0 or 1)."""
        said = answer.text if isinstance(answer, Explanation) else answer
        if not isinstance(said, str) or not said.strip():
            return {"similarity": 0.0, "choice": 0.0}
        others = [c for c in _atoms.CONCEPTS if c != item.answer.code]
        chosen = random.Random(item.seed).sample(others, 4)
        sentences = [said, item.answer.text, *(f"how much a word has to do with {c}" for c in chosen)]
        vectors = np.asarray((self.encode or default_encoder())(sentences), dtype=np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12
        near = vectors[1:] @ vectors[0]
        return {"similarity": float(near[0]), "choice": float(near[0] > near[1:].max())}


def errors(item: Item, code: str) -> dict[str, float]:
    """Return the mean squared error over the variance on the held-out places: all, inside and outside the
    corrupted interval (the variance is that of all places); inf for code that does not run or gives no numbers."""
    x, inside = item.held_out(), inside_of(item)
    truth = _atoms.numeric(item.answer.code)(x)
    try:
        found = _atoms.numeric(code)(x)
    except (WorkingPapersError, ArithmeticError, TypeError, ValueError, LookupError):
        return {"all": np.inf, "inside": np.inf, "outside": np.inf}
    with np.errstate(all="ignore"):
        miss = np.nan_to_num((found - truth) ** 2, nan=np.inf) / np.var(truth)
    parts = {"all": miss, "inside": miss[inside], "outside": miss[~inside]}
    return {name: float(part.mean()) if len(part) else 0.0 for name, part in parts.items()}


def _passes(group: str, count: int, budget: int, seed: int, interpreter: Any) -> list[dict[str, float]]:
    bench = FIND(("numeric",), (group,))
    found = [(item, interpreter.explain(item.black_box(budget), budget)) for item in bench.items(seed, count)]
    return [{**errors(item, told.code), "pass": bench.score(item, told)} for item, told in found]


def _mean(results: list[dict[str, float]]) -> float:
    return float(np.mean([r["pass"] for r in results]))


@claim(
    "find_bench",
    "Language models given only black-box access can sometimes infer a function's structure, but their "
    "descriptions capture global behaviour and miss local corruptions.",
    seeds=5,
    holds=all_of(
        at_least(0.6, of="atomic_pass"), below(0.1, of="constant_pass"), at_least(5, of="inside_over_outside")
    ),
)
def corruptions_missed(budget: Budget, seed: int) -> Evidence:
    """Numeric functions, 60 questions each, explained by sparse regression, which stands in for a language model.

    `inside_over_outside` is the median error inside the corrupted intervals over that outside (at least 1e-6).
    """
    count, interpreter = budget.pick(quick=100, full=500), SparseRegression()
    corrupted = _passes("corrupted", count, 60, seed, interpreter)
    inside, outside = (float(np.median([r[name] for r in corrupted])) for name in ("inside", "outside"))
    return Evidence(
        atomic_pass=_mean(_passes("atomic", count, 60, seed, interpreter)),
        constant_pass=_mean(_passes("atomic", count, 60, seed, Constant())),
        corrupted_pass=_mean(corrupted),
        inside_over_outside=inside / max(outside, 1e-6),
    )


@claim(
    "find_bench",
    "Functions grow harder to explain with complexity such as composition, noise, approximation and bias, and "
    "running more experiments on them helps.",
    seeds=5,
    holds=all_of(
        at_least(0.15, of="atomic_over_composed"),
        at_least(0, of="from_10_to_60"),
        at_least(0, of="from_60_to_200"),
    ),
)
def harder_with_complexity(budget: Budget, seed: int) -> Evidence:
    """Pass rates of sparse regression over four groups of functions and budgets of 10, 60 and 200 questions."""
    count, groups = budget.pick(quick=40, full=300), ("atomic", "composed", "noisy", "corrupted")
    rates = {
        (group, asked): _mean(_passes(group, count, asked, seed, SparseRegression()))
        for group in groups
        for asked in (10, 60, 200)
    }
    by_budget = {
        asked: round(float(np.mean([rates[g, asked] for g in groups])), 9) for asked in (10, 60, 200)
    }
    return Evidence(
        atomic_over_composed=rates["atomic", 60] - rates["composed", 60],
        from_10_to_60=by_budget[60] - by_budget[10],
        from_60_to_200=by_budget[200] - by_budget[60],
        **{f"{group}_pass": rates[group, 60] for group in groups},
    )
