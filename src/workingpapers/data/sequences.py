"""Sequences to sequences and expressions to values: SCAN, PCFG SET, ListOps."""

import gzip
from dataclasses import dataclass

from workingpapers.data.store import locate
from workingpapers.errors import unknown

Pair = tuple[list[str], list[str]]

_SCAN = {
    "simple": ("simple_split/tasks_{}_simple", ("train", "test")),
    "length": ("length_split/tasks_{}_length", ("train", "test")),
    "jump": ("add_prim_split/tasks_{}_addprim_jump", ("train", "test")),
    "turn_left": ("add_prim_split/tasks_{}_addprim_turn_left", ("train", "test")),
}
_PCFG = {
    "dev": "dev",
    "test": "test",
    "systematicity": "systematicity_test",
    "productivity": "productivity_test",
}
_LISTOPS = {"test": "test", "d8": "test_d8", "d14": "test_d14", "d20": "test_d20s"}


@dataclass(frozen=True)
class Pairs:
    """Pairs of token lists (source, target) in two parts."""

    train: list[Pair]
    test: list[Pair]
    name: str


def scan(split: str = "simple") -> Pairs:
    """Load commands and action sequences of SCAN (Lake and Baroni, 2018).

    `split`: "simple" (16,728 / 4,182 pairs), "length", "jump" or "turn_left".
    """
    if split not in _SCAN:
        raise unknown("split of SCAN", split, _SCAN)
    pattern, parts = _SCAN[split]
    train, test = (
        [_command(line) for line in _lines(f"scan/{pattern.format(part)}.txt.gz")] for part in parts
    )
    return Pairs(train, test, f"scan-{split}")


def _command(line: str) -> Pair:
    source, target = line.removeprefix("IN:").split(" OUT: ")
    return source.split(), target.split()


def pcfg_set(part: str = "test") -> list[Pair]:
    """Load pairs of PCFG SET (Hupkes et al., 2020): "dev", "test", "systematicity" or "productivity".

    The training part is not here; split "test" (9,721 pairs) for training.
    """
    if part not in _PCFG:
        raise unknown("part of PCFG SET", part, _PCFG)
    sources, targets = (_lines(f"pcfg_set/{_PCFG[part]}.{end}.gz") for end in ("src", "tgt"))
    return [(source.split(), target.split()) for source, target in zip(sources, targets, strict=True)]


def listops(part: str = "d8") -> list[tuple[list[str], int]]:
    """Load expressions of ListOps (Nangia and Bowman, 2018) as (tokens, value from 0 to 9).

    `part` names the depth: "test" (500), "d8", "d14", "d20" (10,000 each, "d20" with the operators MAX MIN
    MED SM, the others MAX MIN FIRST LAST).  The binary brackets of the files, which say nothing that the
    operators' own `[MAX ... ]` do not, are left out.  These are test files: split them for training.
    """
    if part not in _LISTOPS:
        raise unknown("part of ListOps", part, _LISTOPS)
    found = []
    for line in _lines(f"listops/{_LISTOPS[part]}.tsv.gz"):
        value, expression = line.split("\t")
        found.append(([token for token in expression.split() if token not in "()"], int(value)))
    return found


def _lines(file: str) -> list[str]:
    with gzip.open(locate(file), "rt", encoding="utf-8") as stream:
        return stream.read().splitlines()
