"""The pieces: unary and binary scalar functions by their text, some with a parameter beta.

`{x}`, `{a}` and `{b}` in a piece's text stand for its arguments.  Where the mathematics has a pole or a vertical
slope at 0 (logarithm, root, quotient), EPSILON keeps value and slope finite.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-5
Beta = float | Tensor


@dataclass(frozen=True)
class Piece:
    """A unary function (x, beta) or a binary one (a, b, beta); `learns` says whether it looks at beta."""

    text: str
    apply: Callable[..., Tensor]
    learns: bool = False


def _unary(text: str, apply: Callable[[Tensor], Tensor]) -> Piece:
    return Piece(text, lambda x, beta: apply(x))


def _binary(text: str, apply: Callable[[Tensor, Tensor], Tensor]) -> Piece:
    return Piece(text, lambda a, b, beta: apply(a, b))


_UNARY = [
    _unary("{x}", lambda x: x),
    _unary("-{x}", torch.neg),
    _unary("|{x}|", torch.abs),
    _unary("{x}^2", torch.square),
    _unary("{x}^3", lambda x: x * x * x),
    _unary("sqrt|{x}|", lambda x: (x.abs() + EPSILON).sqrt()),
    Piece("beta*{x}", lambda x, beta: beta * x, learns=True),
    Piece("({x} + beta)", lambda x, beta: x + beta, learns=True),
    _unary("log|{x}|", lambda x: (x.abs() + EPSILON).log()),
    _unary("exp({x})", torch.exp),
    _unary("sin({x})", torch.sin),
    _unary("cos({x})", torch.cos),
    _unary("sinh({x})", torch.sinh),
    _unary("cosh({x})", torch.cosh),
    _unary("tanh({x})", torch.tanh),
    _unary("asinh({x})", torch.asinh),
    _unary("atan({x})", torch.atan),
    _unary("sinc({x})", lambda x: torch.sinc(x / torch.pi)),  # sin(x) / x; torch's own has a factor pi
    _unary("max({x}, 0)", torch.relu),
    _unary("min({x}, 0)", lambda x: -torch.relu(-x)),
    _unary("sigmoid({x})", torch.sigmoid),
    _unary("log(1 + exp({x}))", F.softplus),
    _unary("exp(-{x}^2)", lambda x: torch.exp(-x * x)),
    _unary("erf({x})", torch.erf),
    Piece("beta", lambda x, beta: beta * torch.ones_like(x), learns=True),
]

_BINARY = [
    _binary("({a} + {b})", torch.add),
    _binary("{a}*{b}", torch.mul),
    _binary("({a} - {b})", torch.sub),
    _binary("{a}/({b} + eps)", lambda a, b: a / (b + EPSILON)),
    _binary("max({a}, {b})", torch.maximum),
    _binary("min({a}, {b})", torch.minimum),
    _binary("sigmoid({a})*{b}", lambda a, b: torch.sigmoid(a) * b),
    Piece("exp(-beta*({a} - {b})^2)", lambda a, b, beta: torch.exp(-beta * (a - b) ** 2), learns=True),
    Piece("exp(-beta*|{a} - {b}|)", lambda a, b, beta: torch.exp(-beta * (a - b).abs()), learns=True),
    Piece("(beta*{a} + (1 - beta)*{b})", lambda a, b, beta: beta * a + (1 - beta) * b, learns=True),
]

UNARY: dict[str, Piece] = {piece.text: piece for piece in _UNARY}
BINARY: dict[str, Piece] = {piece.text: piece for piece in _BINARY}
