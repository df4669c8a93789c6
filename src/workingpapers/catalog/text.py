"""Words of a text as the search sees them: folded, split, stemmed, without stop words.

British and American spelling, singular and plural, and the forms of one verb meet in the same stem.
"""

import re
import unicodedata
from functools import lru_cache

STOP_WORDS = frozenset(
    """
    a about after again all also am an and any anybody anyone are aren article articles as at be because
    been before being between both but by can cannot could couldn did didn do does doesn doing don done
    each either else even ever every few for from get gets getting give given gives go got had hadn has
    hasn have haven having he hello help her here hi him his how i if in instead into is isn it its itself
    just keep kind like ll looking lot made make makes making many may me might more most much must my
    need needed needs no nor not of off on once one only or other our out over own paper papers please
    possible really recent recently same she should shouldn show showing so some somebody someone
    something such than thank thanks that the their them then there these they thing things this those to
    too try trying two up upon us use used useful user uses using ve very via want wants was wasn way ways
    we well were weren what when where whether which while who whose why will with within without would
    won wouldn yet you your
    """.split()
)

_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")

# One spelling for British and American and for roots that change before a suffix, ahead of the suffixes.
_SPELLING = [
    (re.compile(r"(?<=..)iz(e|es|ed|er|ers|ing|able|ation|ations|ational)$"), r"is\1"),
    (re.compile(r"(?<=.)lyz(e|es|ed|er|ers|ing)$"), r"lys\1"),
    (re.compile(r"(?<=..)our(s|ed|ing|al|able|hood|hoods|ite|ites)?$"), r"or\1"),
    (re.compile(r"(?<=..)([tb])r(e|es|ed|ing)$"), r"\1er\2"),
    (re.compile(r"ogue(s)?$"), r"og\1"),
    (re.compile(r"(?<=...)ll(ed|ing|er|ers)$"), r"l\1"),
    (re.compile(r"bil(ity|ities|ise|ised|ises|ising|isation)$"), "ble"),
    (re.compile(r"(?<=[aeiou])lution(s|al|ally|ary)?$"), "lve"),
    (re.compile(r"planation(s)?$"), "plain"),
]
_RESPELLED = re.compile("iz|lyz|our|[tb]r|ogue|ll|bil|lution|planation")  # cheap: most words need none

# suffix -> letters that must be left before it
_SUFFIXES = {
    **dict.fromkeys("ing ed er y e i".split(), 3),
    **dict.fromkeys("ly ness est".split(), 4),
    **dict.fromkeys(
        """
        isational ification isation ational ation ifier iveness iser ising ised ise ically ical ivity ator ating
        ated ate ative ance ancy ant ence ency ent ement ment ional ion able ably ible ive ity ified ifying ify
        or al ic ous ful
        """.split(),
        5,
    ),
}
# the same by last letter, the longest first
_ENDING_IN = {
    last: [(s, _SUFFIXES[s] + len(s)) for s in sorted(_SUFFIXES, key=len, reverse=True) if s[-1] == last]
    for last in {s[-1] for s in _SUFFIXES}
}
_VOWEL = re.compile(r"[aeiouy]")

# Words that keep what looks like a suffix: without it they would fall together with another word.
_ROOTS = frozenset(
    """
    critical differenti fourier general generic layer memory memoris number objective order partial positive power
    quantity transformer
    """.split()
)
_IRREGULAR = {
    "analysis": "analys",
    "bases": "basis",
    "bias": "bias",
    "biased": "bias",
    "biases": "bias",
    "comparison": "compar",
    "indices": "index",
    "learnt": "learn",
    "matrices": "matrix",
    "optimum": "optim",
    "series": "series",
    "species": "species",
    "timm": "timm",
    "vertices": "vertex",
}


def fold(text: str) -> str:
    """Return `text` in lower case without accents; Greek letters are spelled out, so that Π is pi."""
    lowered = text.lower()
    if lowered.isascii():
        return lowered
    parts = []
    for character in unicodedata.normalize("NFKD", lowered):
        if character.isascii():
            parts.append(character)
        elif unicodedata.name(character, "").startswith("GREEK "):
            parts.append(unicodedata.name(character).split()[3].lower())
        elif not unicodedata.combining(character):
            parts.append("-" if unicodedata.category(character) == "Pd" else " ")
    return "".join(parts)


def words(text: str) -> list[str]:
    """Return the words of `text` in order, folded; a hyphenated compound gives its parts, then the whole.

    >>> words("Batch-norm für ReLU")
    ['batch', 'norm', 'batch-norm', 'fur', 'relu']
    """
    folded = fold(text)
    found = _WORD.findall(folded)
    if "-" not in folded:
        return found
    return [each for word in found for each in ([*word.split("-"), word] if "-" in word else [word])]


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return the stem of a folded `word`; a word with a digit, or of three letters, stays as it is.

    >>> stem("normalisation") == stem("normalized") == stem("normaliser")
    True
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or not word.isalpha():
        return word
    if _RESPELLED.search(word):
        for pattern, common in _SPELLING:
            word = pattern.sub(common, word)
    word = _singular(word)
    while (shorter := _without_suffix(word)) != word:
        word = shorter
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "is")) and (word[-2] != "u" or word.endswith("lus")):
        return word[:-1]
    return word


def _without_suffix(word: str) -> str:
    if word in _ROOTS:
        return word
    for suffix, shortest in _ENDING_IN.get(word[-1], ()):
        if len(word) >= shortest and word.endswith(suffix):
            left = word[: -len(suffix)]
            if _VOWEL.search(left):
                return left
    return word


def is_searched(word: str) -> bool:
    """Tell whether a folded word is looked for: no stop word, no single letter, no hyphenated compound."""
    return len(word) > 1 and word not in STOP_WORDS and "-" not in word


def terms(text: str) -> list[str]:
    """Return the stems of the words of `text` that are looked for, in order."""
    return [stem(word) for word in words(text) if is_searched(word)]
