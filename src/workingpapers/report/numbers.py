"""How numbers are written: with the decimals that their uncertainty allows, and as words where not finite."""

import math
from collections.abc import Iterable, Sequence
from statistics import median

from workingpapers.experiments.statistics import Interval

MINUS = "\N{MINUS SIGN}"
NO_BREAK = "\N{NO-BREAK SPACE}"
MANY = 7  # decimals from which, like magnitudes of a million, a number is written with an exponent


def plain(value: float | None, digits: int = 4) -> str:
    """Return `value` with so many significant digits; 'not known', 'infinite' or 'minus infinite' as words."""
    word = _word(value)
    return word if word or value is None else _signed(f"{value:.{digits}g}")


def fixed(value: float | None, decimals: int, sign: bool = False) -> str:
    """Return `value` with so many decimals, and with a plus where `sign` is asked for."""
    word = _word(value)
    if word or value is None:
        return word
    if decimals >= MANY or abs(value) >= 1e6:
        return _signed(f"{value:{'+' if sign else ''}.3g}")
    text = f"{value:{'+' if sign else ''}.{max(decimals, 0)}f}"
    return _signed(text.lstrip("+-") if float(text) == 0 else text)  # rounding leaves no sign on a zero


def decimals(width: float, digits: int = 2) -> int:
    """Return how many decimals show so many significant `digits` of `width`; 3 where it has none."""
    if not math.isfinite(width) or width <= 0:
        return 3
    return max(0, digits - 1 - math.floor(math.log10(width)))


def common_decimals(widths: Iterable[float]) -> list[int]:
    """Return decimals for a column of numbers that are uncertain by `widths`: alike where that hides nothing."""
    own = [decimals(w) if math.isfinite(w) and w > 0 else None for w in widths]
    known = [d for d in own if d is not None]
    usual = int(median(known)) if known else 3
    return [usual if d is None else max(usual, d - 1) for d in own]


def column(values: Iterable[float | None], digits: int = 3) -> list[str]:
    """Return a column of sizes, with the decimals that give the middle one so many significant digits."""
    shown = list(values)
    known = [v for v in shown if v is not None and math.isfinite(v) and v > 0]
    places = decimals(median(known), digits) if known else 0
    return [fixed(v, places) for v in shown]


def width(interval: Interval) -> float:
    """Return the interval's width, infinite where either end is."""
    return interval.high - interval.low


def bounds(interval: Interval, places: int, sign: bool = False) -> str:
    """Return '[low, high]', or words where the interval has no finite end."""
    if not (math.isfinite(interval.low) or math.isfinite(interval.high)):
        return "not known"
    return f"[{fixed(interval.low, places, sign)},{NO_BREAK}{fixed(interval.high, places, sign)}]"


def around(interval: Interval, sign: bool = False) -> str:
    """Return 'estimate [low, high]'; the estimate alone where the interval has no width or no finite end."""
    size = width(interval)
    if not math.isfinite(size) or size == 0:
        return plain(interval.estimate)
    places = decimals(size)
    return f"{fixed(interval.estimate, places, sign)}{NO_BREAK}{bounds(interval, places, sign)}"


def duration(seconds: float | None) -> str:
    """Return a time span in the unit that suits it, such as '3.2 s', '14 min' or '2.5 h'."""
    if _word(seconds) or seconds is None:
        return "not known"
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.3g} h"


def counted(number: int, thing: str, several: str = "") -> str:
    """Return '1 seed', '10 seeds': the number and the thing, in the plural where that is meant."""
    return f"{number} {thing if number == 1 else several or thing + 's'}"


def ranges(numbers: Sequence[int]) -> str:
    """Return whole numbers with their runs drawn together: '0-9' (with an en dash), '0, 1, 5'."""
    found: list[list[int]] = []
    for n in sorted(set(numbers)):
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ", ".join(_range(low, high) for low, high in found)


def listed(words: Sequence[str]) -> str:
    """Return 'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _range(low: int, high: int) -> str:
    if low == high:
        return str(low)
    return f"{low}, {high}" if high == low + 1 else f"{low}–{high}"


def _word(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "not known"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return ""


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
