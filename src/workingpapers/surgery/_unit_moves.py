"""Where the units of a layer are behind an operation of one tensor: elementwise, pooling, reshaping, turning."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

# each leaves every entry where it is, and needs no other
PASSING = set(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout clone contiguous to "
    "type float half bfloat16 double detach abs neg square pow sqrt rsqrt exp log clamp clamp_min clamp_max clip "
    "sin cos erf nan_to_num requires_grad type_as positive sign".split()
)
BY_MAP = set(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d interpolate upsample "
    "lp_pool1d lp_pool2d pad".split()
)
RESHAPING = set("flatten view reshape unflatten squeeze unsqueeze view_as reshape_as ravel".split())
MEANS = {"mean", "sum", "amax", "amin"}
TURNING = {"permute", "transpose", "swapaxes", "swapdims", "t"}


@dataclass(frozen=True)
class Held:
    """What a tensor holds: units `start` + 0 ... count - 1 of each source along `dim`, `block` entries for each."""

    sources: tuple[tuple[str, int], ...]
    dim: int
    count: int
    block: int = 1


def moved(
    name: str, held: Held, before: tuple[int, ...], after: tuple[int, ...], args: Any, kwargs: Any
) -> Held | None:
    """Return what is held behind an operation of one tensor, None where that is not known."""
    if name in PASSING:
        return held if before == after else None
    if name in BY_MAP:
        maps = held.block == 1 and len(before) == len(after)
        return held if maps and before[: held.dim + 1] == after[: held.dim + 1] else None
    if name in RESHAPING:
        return _reshaped(held, before, after)
    if name in TURNING:
        return _turned(name, held, before, after, args)
    if name in MEANS:
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        dims = (dims,) if isinstance(dims, int) else dims
        if dims is None or not all(isinstance(d, int) for d in dims):
            return None
        gone = {d % len(before) for d in dims}
        keeps = len(before) == len(after)
        return (
            None
            if held.dim in gone
            else replace(held, dim=held.dim - (0 if keeps else sum(d < held.dim for d in gone)))
        )
    return None


def _reshaped(held: Held, before: tuple[int, ...], after: tuple[int, ...]) -> Held | None:
    """Find the dimension that begins where the units' did, and holds whole blocks of each."""
    ahead, size = prod(before[: held.dim]), before[held.dim]
    for dim, length in enumerate(after):
        if (
            prod(after[:dim]) == ahead
            and length % size == 0
            and length // size * prod(after[dim + 1 :]) == prod(before[held.dim + 1 :])
            and (length > 1 or size == 1)
        ):
            return replace(held, dim=dim, block=held.block * (length // size))
    return None


def _turned(name: str, held: Held, before: tuple[int, ...], after: tuple[int, ...], args: Any) -> Held | None:
    n, given = len(before), args[1:]
    if name == "permute":
        order = given[0] if given and not isinstance(given[0], int) else given
        return replace(held, dim=[d % n for d in order].index(held.dim)) if len(order) == n else None
    if name in ("transpose", "swapaxes", "swapdims", "t"):
        pair = [d % n for d in given] if len(given) == 2 else [n - 2, n - 1]
        if held.dim not in pair:
            return held
        return replace(held, dim=pair[1 - pair.index(held.dim)])
    return None
