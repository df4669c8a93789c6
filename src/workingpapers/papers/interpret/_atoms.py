"""Black-box functions for interpretability: numeric forms, string edits and hidden concepts, as Python code.

Every function is held as its source, an expression of `x` in the words of NUMERIC or TEXT; the function that is
asked is the compiled source, so the ground truth is right by construction.
"""

import ast
import math
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workingpapers.errors import WorkingPapersError

Values = NDArray[np.float64]

NUMERIC: dict[str, Any] = {
    **{
        name: getattr(np, name)
        for name in ("sin", "cos", "exp", "log", "abs", "sqrt", "tanh", "floor", "sign")
    },
    **{"arctan": np.arctan, "maximum": np.maximum, "minimum": np.minimum, "where": np.where, "pi": math.pi},
}

# name: (template of x and the parameters p, q, r, description)
ATOMS: dict[str, tuple[str, str]] = {
    "constant": ("{p} + 0*x", "the constant {p}"),
    "linear": ("{p}*x + {q}", "a line with slope {p} and intercept {q}"),
    "quadratic": ("{p}*x**2 + {q}*x + {r}", "a quadratic polynomial"),
    "square": ("{p}*x**2", "the square of the input times {p}"),
    "cubic": ("{p}*x**3 + {q}*x", "a cubic polynomial"),
    "cube": ("{p}*x**3", "the cube of the input times {p}"),
    "quartic": ("{p}*x**4 + {q}*x**2", "a polynomial of degree four"),
    "sin": ("{p}*sin({f}*x)", "a sine wave with frequency {f}"),
    "cos": ("{p}*cos({f}*x)", "a cosine wave with frequency {f}"),
    "sin_shift": ("{p}*sin({f}*x) + {q}", "a sine wave with frequency {f}, shifted up by {q}"),
    "exp": ("{p}*exp({s}*x)", "an exponential with rate {s}"),
    "decay": ("{p}*exp(-{s}*x)", "a decaying exponential with rate {s}"),
    "gauss": ("{p}*exp(-({s}*x)**2)", "a bell around 0"),
    "log": ("{p}*log(abs(x) + 1)", "a logarithm of the size of the input"),
    "log_shift": ("{p}*log(abs(x) + 1) + {q}", "a logarithm of the size of the input, shifted by {q}"),
    "abs": ("{p}*abs(x)", "the absolute value times {p}"),
    "abs_shift": ("{p}*abs(x - {c})", "the distance from {c} times {p}"),
    "sqrt": ("{p}*sqrt(abs(x))", "the square root of the size of the input"),
    "tanh": ("{p}*tanh({s}*x)", "a hyperbolic tangent"),
    "tanh_shift": ("{p}*tanh({s}*(x - {c}))", "a hyperbolic tangent around {c}"),
    "arctan": ("{p}*arctan({s}*x)", "an arc tangent"),
    "sigmoid": ("{p}/(1 + exp(-{s}*x))", "a logistic curve"),
    "step": ("{p}*(x > {c})", "a step of height {p} at {c}"),
    "sign": ("{p}*sign(x)", "the sign of the input times {p}"),
    "sawtooth": ("{p}*(x/{w} - floor(x/{w}))", "a sawtooth of period {w}"),
    "square_wave": ("{p}*sign(sin({f}*x))", "a square wave with frequency {f}"),
    "reciprocal": ("{p}/(abs(x) + 1)", "the reciprocal of the size of the input plus one"),
    "rational": ("{p}*x/(1 + ({s}*x)**2)", "a bump and a dip, a rational function"),
    "floor": ("{p}*floor(x/{w})", "a staircase with treads of width {w}"),
    "relu": ("{p}*maximum(x - {c}, 0)", "zero up to {c}, then a line with slope {p}"),
    "clip": ("{p}*minimum(maximum(x, -{w}), {w})", "a line with slope {p}, clipped at -{w} and {w}"),
}

ALLOWED = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Load, ast.Constant),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.IfExp, ast.Subscript, ast.Slice, ast.List, ast.Tuple),
)


def compiled(code: str, words: Mapping[str, Any]) -> CodeType:
    """Compile an expression of `x` and the `words`; refuse statements, attributes and any other name.

    Raises:
        WorkingPapersError: for code that is no such expression.
    """
    try:
        tree = ast.parse(code, mode="eval")
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise WorkingPapersError(f"code is one expression of x; got {str(code)[:60]!r}") from None
    for node in ast.walk(tree):
        named = isinstance(node, ast.Name) and node.id != "x" and node.id not in words
        big = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not _small(node.right)
        if named or big or not isinstance(node, ALLOWED):
            what = node.id if isinstance(node, ast.Name) else type(node).__name__
            raise WorkingPapersError(f"code is one expression of x and {', '.join(words)}; got {what}")
    return compile(tree, "<explanation>", "eval")


def _small(node: ast.AST) -> bool:
    """Tell whether an exponent is a number up to 20: longer powers of integers can take for ever."""
    node = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) <= 20


def numeric(code: str) -> Callable[[Any], Values]:
    """Return the function of an array that the code computes."""
    program = compiled(code, NUMERIC)

    def call(x: Any) -> Values:
        x = np.asarray(x, dtype=np.float64)
        with np.errstate(all="ignore"):
            found = eval(program, {"__builtins__": {}}, {**NUMERIC, "x": x})
            values: Values = np.asarray(found, dtype=np.float64) + 0 * x
        return values

    return call


def _rotate(text: str, count: int) -> str:
    return text[count % len(text) :] + text[: count % len(text)] if text else text


def _shift(text: str, count: int) -> str:
    def moved(c: str) -> str:
        base = ord("a" if c.islower() else "A")
        return chr((ord(c) - base + count) % 26 + base)

    return "".join(moved(c) if c.isascii() and c.isalpha() else c for c in text)


TEXT: dict[str, Callable[..., str]] = {
    "reverse": lambda t: t[::-1],
    "rotate": _rotate,
    "duplicate": lambda t: t + t,
    "replace": lambda t, old, new: t.replace(old, new),
    "shift": _shift,
    "upper": str.upper,
    "lower": str.lower,
    "swapcase": str.swapcase,
    "insert": lambda t, part, place: t[:place] + part + t[place:],
    "drop": lambda t, place: t[:place] + t[place + 1 :],
}


def text(code: str) -> Callable[[str], str]:
    """Return the function of a string that the code computes."""
    program = compiled(code, TEXT)
    return lambda x: str(eval(program, {"__builtins__": {}}, {**TEXT, "x": x}))


def edits() -> dict[str, str]:
    """Return the single edits, a template of {x} each, and what they do in words."""
    found = {
        "reverse({x})": "reverses the string",
        "duplicate({x})": "writes the string twice",
        "upper({x})": "puts all letters in upper case",
        "swapcase({x})": "swaps upper and lower case",
    }
    found |= {f"rotate({{x}}, {n})": f"moves the first {n} letters to the end" for n in (1, 2, 3)}
    found |= {f"shift({{x}}, {n})": f"shifts each letter by {n} in the alphabet" for n in (1, 3, 13)}
    pairs = [("a", "o"), ("e", "i"), ("s", "z"), ("t", "d")]
    found |= {f"replace({{x}}, {o!r}, {n!r})": f"replaces the letter {o} by {n}" for o, n in pairs}
    found |= {f"insert({{x}}, {c!r}, {n})": f"inserts {c} at place {n}" for c in "xq" for n in (0, 2)}
    found |= {f"drop({{x}}, {n})": f"drops the letter at place {n}" for n in (0, 1)}
    return found


CONCEPTS: dict[str, tuple[str, ...]] = {
    "animals": ("dog", "cat", "horse", "eagle", "salmon", "tiger", "rabbit", "spider"),
    "food": ("bread", "cheese", "apple", "soup", "rice", "chocolate", "butter", "pasta"),
    "weather": ("rain", "snow", "storm", "sunshine", "wind", "fog", "hail", "cloud"),
    "transport": ("car", "train", "bicycle", "ship", "airplane", "bus", "truck", "tram"),
    "emotions": ("joy", "anger", "fear", "sadness", "surprise", "pride", "envy", "love"),
    "music": ("guitar", "melody", "drum", "violin", "song", "concert", "rhythm", "piano"),
    "clothing": ("shirt", "trousers", "hat", "coat", "shoes", "scarf", "glove", "dress"),
    "medicine": ("doctor", "hospital", "vaccine", "surgery", "nurse", "pill", "fever", "clinic"),
}
