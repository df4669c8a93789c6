"""Strings of the Reber grammar, and strings that are almost so."""

import random

import torch

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError

SYMBOLS = "BTPSXVE"
START, END = 0, 7
STEPS: dict[int, dict[str, int]] = {
    0: {"B": 1},
    1: {"T": 2, "P": 3},
    2: {"S": 2, "X": 4},
    3: {"T": 3, "V": 5},
    4: {"X": 3, "S": 6},
    5: {"P": 4, "V": 6},
    6: {"E": END},
}


def accepts(string: str) -> bool:
    """Tell whether the grammar generates a string."""
    state = START
    for symbol in string:
        if symbol not in STEPS.get(state, {}):
            return False
        state = STEPS[state][symbol]
    return state == END


def generated(chance: random.Random) -> str:
    """Return a string of the grammar: each step to be chosen is as likely as the other."""
    state, symbols = START, []
    while state != END:
        symbol, state = chance.choice(list(STEPS[state].items()))
        symbols.append(symbol)
    return "".join(symbols)


def edited(string: str, chance: random.Random) -> str:
    """Return a string that the grammar rejects, by one edit or more between its first and its last symbol.

    An edit exchanges a symbol, swaps two neighbours, or leaves one out and doubles another.
    """
    symbols = list(string)
    while accepts("".join(symbols)):
        place = chance.randrange(1, len(symbols) - 1)
        how = chance.randrange(3)
        if how == 0:
            symbols[place] = chance.choice(SYMBOLS)
        elif how == 1:
            other = max(1, place - 1)
            symbols[place], symbols[other] = symbols[other], symbols[place]
        else:
            del symbols[place]
            other = chance.randrange(1, len(symbols))
            symbols.insert(other, symbols[other])
    return "".join(symbols)


def strings(count: int, seed: int = 0, shortest: int = 7, longest: int = 24) -> tuple[list[str], list[int]]:
    """Return strings and whether each is of the grammar: every second one is, the others are edited ones."""
    if not 5 <= shortest <= longest:
        raise WorkingPapersError(f"strings have 5 symbols and more; got lengths {shortest} to {longest}")
    chance = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        string = generated(chance)
        if shortest <= len(string) <= longest:
            found.append(edited(string, chance) if len(found) % 2 else string)
    return found, [1 - i % 2 for i in range(count)]


def reber(train: int = 18_750, test: int = 6250, seed: int = 0, longest: int = 24) -> Split:
    """Return strings as numbers (N, longest), 1 to 7 by the place in SYMBOLS and 0 behind the end; labels 1 and 0.

    The thesis has 18,750 strings to train and 6,250 to test.
    """
    found, labels = strings(train + test, seed, longest=longest)
    x = torch.zeros(len(found), longest, dtype=torch.long)
    for row, string in zip(x, found, strict=True):
        row[: len(string)] = torch.tensor([1 + SYMBOLS.index(s) for s in string])
    y = torch.tensor(labels)
    return Split(x[:train], y[:train], x[train:], y[train:], 2, "reber")
