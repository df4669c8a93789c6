"""Interpreters: from a black box and a number of questions to code and words."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.interpret import _atoms
from workingpapers.papers.interpret._atoms import Values

REACH = 128.0


@dataclass(frozen=True)
class Explanation:
    """What an interpreter says of a function: an expression of `x`, and words."""

    code: str
    text: str = ""


class OutOfQuestions(WorkingPapersError):
    """A black box was asked more often than it may be."""


class BlackBox:
    """A function that answers `budget` questions, one value each, and raises at the next."""

    def __init__(self, function: Callable[[Any], Any], budget: int) -> None:
        self.function, self.budget, self.asked = function, budget, 0

    def __call__(self, x: Any) -> Any:
        """Answer one question."""
        if self.asked >= self.budget:
            raise OutOfQuestions(f"this function may be asked {self.budget} times, and it was")
        self.asked += 1
        return self.function(x)

    @property
    def left(self) -> int:
        """How many questions are left."""
        return self.budget - self.asked

    def at(self, places: Sequence[float]) -> Values:
        """Ask at many places at once, each a question of its own."""
        return np.array([float(self(x)) for x in places])


class Constant:
    """Say that the function is the mean of what it gives: the control."""

    def explain(self, f: BlackBox, budget: int) -> Explanation:
        """Ask at evenly spaced places."""
        mean = float(np.nan_to_num(f.at(np.linspace(-REACH, REACH, budget).tolist())).mean())
        return Explanation(f"{mean!r} + 0*x", f"the constant {mean:.3g}")


class Interpolator:
    """Join the values at evenly spaced places by straight lines."""

    def explain(self, f: BlackBox, budget: int) -> Explanation:
        """Ask at evenly spaced places."""
        x = np.linspace(-REACH, REACH, max(budget, 2))[:budget]
        y = np.nan_to_num(f.at(x.tolist()))
        slopes = np.diff(y) / np.diff(x)
        bends = np.diff(slopes)
        terms = [
            f"{b!r}*maximum(x - {c!r}, 0)" for b, c in zip(bends.tolist(), x[1:-1].tolist(), strict=True)
        ]
        first = float(slopes[0]) if len(slopes) else 0.0
        code = _sum([f"{float(y[0])!r} + {first!r}*(x - {float(x[0])!r})", *terms])
        return Explanation(code, "a curve through points")


def _sum(terms: list[str]) -> str:
    """Add terms in a balanced tree: a long chain of additions nests too deep to compile."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return f"({_sum(terms[:middle])} + {_sum(terms[middle:])})"


class SparseRegression:
    """Fit one or two forms of the library by least squares; find jumps by bisection first.

    Half of the budget goes to an even grid, the rest to the widest jumps, then to random places.
    """

    def __init__(self, terms: int = 2, seed: int = 0) -> None:
        self.terms, self.seed = terms, seed

    def explain(self, f: BlackBox, budget: int) -> Explanation:
        """Ask, then search the library."""
        count = max(budget // 2, min(budget, 2))
        x = np.linspace(-REACH, REACH, count)
        y = f.at(x.tolist())
        x, y, jump = _bisect(f, x, y, budget // 4)
        more = np.random.default_rng(self.seed).uniform(-REACH, REACH, f.left)
        x, y = np.append(x, more), np.append(y, f.at(more.tolist()))
        known = np.isfinite(y) & (np.abs(y) < 1e150)
        if known.sum() < 2:
            return Explanation("0*x", "a function without finite values")
        return self._fit(x[known], y[known], jump)

    def _fit(self, x: Values, y: Values, jump: float | None) -> Explanation:
        best: tuple[float, str] = (float("inf"), "0*x")
        chosen: list[str] = []
        forms = _library(x, jump)
        with np.errstate(all="ignore"):
            columns = {code: column for code in forms if _usable(column := _atoms.numeric(code)(x))}
        target = y
        for _ in range(self.terms):
            scores = {
                code: _misfit([columns[c] for c in chosen] + [column], target)
                for code, column in columns.items()
            }
            code = min(scores, key=lambda c: scores[c])
            if scores[code] > 0.5 * best[0] or best[0] < 1e-9 * float(np.var(y) + 1e-30):
                break
            chosen.append(code)
            weights = _weights([columns[c] for c in chosen], target)
            named = zip(weights.tolist(), [*chosen, "1 + 0*x"], strict=True)
            best = (scores[code], " + ".join(f"{w!r}*({c})" for w, c in named))
        return Explanation(best[1], "a weighted sum of " + " and ".join(chosen))


def _usable(column: Values) -> bool:
    return bool(np.isfinite(column).all() and np.abs(column).max() < 1e150 and np.ptp(column) > 0)


def _weights(columns: list[Values], y: Values) -> Values:
    """Return the least-squares weights of the columns and a constant, columns scaled to size 1 first."""
    matrix = np.stack([*columns, np.ones_like(y)], 1)
    size = np.abs(matrix).max(0)
    found: Values = np.linalg.lstsq(matrix / size, y, rcond=1e-12)[0] / size
    return found


def _misfit(columns: list[Values], y: Values) -> float:
    """Return the mean squared residual of the fit; robust to a few outliers by trimming a tenth."""
    matrix = np.stack([*columns, np.ones_like(y)], 1)
    residual = np.sort((y - matrix @ _weights(columns, y)) ** 2)
    return float(residual[: math.ceil(0.9 * len(residual))].mean())


def _bisect(f: BlackBox, x: Values, y: Values, most: int) -> tuple[Values, Values, float | None]:
    """Halve the interval of the largest jump again and again; return all points and the jump's place."""
    if len(x) < 3 or most < 1:
        return x, y, None
    steps = np.nan_to_num(np.abs(np.diff(y)))
    i = int(steps.argmax())
    if steps[i] < 3 * np.median(steps) + 1e-12:
        return x, y, None
    low, high, value_low, value_high = x[i], x[i + 1], y[i], y[i + 1]
    asked, answers = [], []
    for _ in range(min(most, f.left)):
        middle = (low + high) / 2
        value = float(f(float(middle)))
        asked.append(middle)
        answers.append(value)
        if abs(value - value_low) < abs(value - value_high):
            low, value_low = middle, value
        else:
            high, value_high = middle, value
    return np.append(x, asked), np.append(y, answers), float((low + high) / 2)


def _library(x: Values, jump: float | None) -> list[str]:
    """Return the atomic forms without outer weights, their inner parameters on a grid."""
    rates, widths = (0.02, 0.03, 0.05, 0.1, 0.2), (4, 8, 16, 32)
    forms = [
        "x",
        "x**2",
        "x**3",
        "x**4",
        "log(abs(x) + 1)",
        "abs(x)",
        "sqrt(abs(x))",
        "sign(x)",
        "1/(abs(x) + 1)",
    ]
    forms += [f"{wave}({f}*x)" for wave in ("sin", "cos") for f in (0.05, 0.1, 0.2, 0.25, 0.5, 1.0)]
    forms += [f"sign(sin({f}*x))" for f in (0.05, 0.1, 0.2, 0.25, 0.5, 1.0)]
    shapes = (
        "exp({s}*x)",
        "exp(-{s}*x)",
        "exp(-({s}*x)**2)",
        "tanh({s}*x)",
        "arctan({s}*x)",
        "1/(1 + exp(-{s}*x))",
    )
    forms += [shape.format(s=s) for shape in (*shapes, "x/(1 + ({s}*x)**2)") for s in rates]
    forms += [shape.format(w=w) for shape in ("x/{w} - floor(x/{w})", "floor(x/{w})") for w in widths]
    forms += [f"minimum(maximum(x, -{w}), {w})" for w in widths]
    places = [*range(-64, 65, 16), *([round(jump, 6)] if jump is not None else [])]
    forms += [
        f"{shape}" for c in places for shape in (f"abs(x - {c})", f"maximum(x - {c}, 0)", f"1*(x > {c})")
    ]
    return forms + [f"tanh({s}*(x - {c}))" for c in range(-64, 65, 16) for s in rates]


class StringSearch:
    """Try the edits, then compositions of two, until one explains every answer."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def explain(self, f: BlackBox, budget: int) -> Explanation:
        """Ask about random words of letters in both cases."""
        asked = words(random.Random(self.seed), min(budget, 8))
        answers = [f(word) for word in asked]
        edits = _atoms.edits()
        pairs = itertools.product(edits, repeat=2)
        for code in itertools.chain(edits, (b.format(x=a) for a, b in pairs)):
            call = _atoms.text(code.format(x="x"))
            if all(call(word) == answer for word, answer in zip(asked, answers, strict=True)):
                return Explanation(
                    code.format(x="x"), _atoms.edits().get(code, "two edits, one after the other")
                )
        return Explanation("x", "no edit or pair of edits explains it")


def words(generator: random.Random, count: int) -> list[str]:
    """Return random words of 5 to 10 letters, rich in those that edits look for."""
    letters = "aaeesstt" + "bcdfghijklmnopqruvwxyzABESTMNO"
    return ["".join(generator.choices(letters, k=generator.randint(5, 10))) for _ in range(count)]


class LanguageModel:
    """Let a language model observe, guess and test: `generate` maps a prompt to the model's continuation.

    Any Hugging Face causal model will do, such as `lambda p: pipeline(p)[0]["generated_text"][len(p):]`.  The
    model writes `ASK: value` to test the function and `CODE: expression` (and `TEXT: words`) to end.
    """

    def __init__(self, generate: Callable[[str], str], rounds: int = 10, numeric: bool = True) -> None:
        self.generate, self.rounds, self.numeric = generate, rounds, numeric

    def explain(self, f: BlackBox, budget: int) -> Explanation:
        """Give the model its own tests' answers until it commits itself or the rounds are over."""
        words = _atoms.NUMERIC if self.numeric else _atoms.TEXT
        prompt = f"A hidden function f(x) can be tested {budget} times. Write 'ASK: value' to test it.\n"
        prompt += f"When sure, write 'TEXT: description' and 'CODE: expression of x, {', '.join(words)}'.\n"
        said = {"TEXT": "", "CODE": "0*x" if self.numeric else "x"}
        for _ in range(self.rounds):
            for line in self.generate(prompt).splitlines():
                head, _, rest = (part.strip() for part in line.partition(":"))
                if head == "ASK" and f.left:
                    prompt += f"ASK: {rest}\nf({rest}) = {self._ask(f, rest)}\n"
                elif head in said:
                    said[head] = rest
                if head == "CODE":
                    return Explanation(said["CODE"], said["TEXT"])
        return Explanation(said["CODE"], said["TEXT"])

    def _ask(self, f: BlackBox, question: str) -> str:
        try:
            return repr(f(float(question) if self.numeric else question))
        except ValueError:
            return "that is no number"
