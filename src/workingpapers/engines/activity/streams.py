"""Statistics of the units of one tensor, batch by batch, in memory that does not grow with the data."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Per unit (units,), in float64 on the CPU, over `count` rows (examples times positions) that are finite.

    `mean` and `var` (over count, not count - 1), `absolute` the mean size, `positive` the share above 0, `largest`
    the largest size; `nonfinite` counts rows with a NaN or an infinity, which are left out of all else.
    """

    count: int
    mean: Tensor
    var: Tensor
    absolute: Tensor
    positive: Tensor
    largest: Tensor
    nonfinite: int

    @property
    def mean_square(self) -> float:
        """The mean square over rows and units."""
        return float((self.var + self.mean**2).mean())


class Stream:
    """Moments of values as they come, by Chan's rule for joining parts."""

    def __init__(self) -> None:
        self.count = self.nonfinite = 0
        self.sums = torch.zeros(0)  # mean, squares about it, mean size, share above 0, largest size, by unit

    def add(self, values: Tensor) -> None:
        """Add values (..., units); every entry but the last counts rows."""
        values = values.detach()
        values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        over = tuple(range(values.ndim - 1))
        if not bool(values.sum().isfinite()):
            rows = values.flatten(0, -2)
            good = rows.isfinite().all(1)
            self.nonfinite += int((~good).sum())
            values, over = rows[good], (0,)
        n = values[..., 0].numel()
        if n == 0:
            return
        var, mean = _spread(values, over, n)
        size = torch.linalg.vector_norm(values, 1, over) / n
        positive = values.gt(0).to(values.dtype).mean(over)
        largest = torch.linalg.vector_norm(values, torch.inf, over)
        part = torch.stack([t.double() for t in (mean, var * n, size, positive, largest)]).cpu()
        self.sums = self._joined(part, n) if self.count else part
        self.count += n

    def _joined(self, part: Tensor, n: int) -> Tensor:
        share = n / (self.count + n)
        gap = part - self.sums
        whole = self.sums + gap * share
        whole[1] = self.sums[1] + part[1] + gap[0] ** 2 * (self.count * share)
        whole[4] = torch.maximum(self.sums[4], part[4])
        return whole

    def moments(self) -> Moments:
        """Return the moments so far."""
        mean, squares, size, positive, largest = self.sums if self.count else torch.zeros(5, 0)
        var = squares / max(self.count, 1)
        return Moments(self.count, mean, var, size, positive, largest, self.nonfinite)


def _spread(values: Tensor, over: tuple[int, ...], n: int) -> tuple[Tensor, Tensor]:
    """Return variance and mean; sums of squares are far faster than torch's, and do where the mean is not large."""
    mean = values.mean(over).double()
    var = torch.linalg.vector_norm(values, 2, over).double() ** 2 / n - mean**2
    if bool((var > 1e-3 * mean**2).all()):
        return var, mean
    var, mean = torch.var_mean(values, over, correction=0)
    return var.double(), mean.double()


class Reservoir:
    """A uniform sample of at most `size` of all that comes; `draw` tells which go where."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size, self.seen, self.generator = size, 0, generator

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Return which of the next n things are kept, and in which slots; a later one overwrites an earlier."""
        number = torch.arange(self.seen, self.seen + n)
        slot = (torch.rand(n, generator=self.generator, dtype=torch.float64) * (number + 1)).long()
        slot = torch.where(number < self.size, number, slot)
        self.seen += n
        kept = (slot < self.size).nonzero().flatten()
        last = {int(s): int(k) for k, s in zip(kept, slot[kept], strict=True)}
        return torch.tensor(list(last.values()), dtype=torch.long), torch.tensor(list(last), dtype=torch.long)


class Kept:
    """The rows of a reservoir's slots."""

    def __init__(self, size: int) -> None:
        self.size, self.rows = size, torch.zeros(0)
        self.used = torch.zeros(size, dtype=torch.bool)

    def put(self, rows: Tensor, slots: Tensor) -> None:
        """Write rows (n, ...) into slots (n,)."""
        rows = rows.detach().cpu()
        rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        if self.rows.ndim == 1 and not bool(self.used.any()):
            self.rows = rows.new_zeros(self.size, *rows.shape[1:])
        self.rows[slots] = rows
        self.used[slots] = True

    def found(self) -> Tensor:
        """Return what lies in the slots (at most size, ...)."""
        return self.rows[self.used]
