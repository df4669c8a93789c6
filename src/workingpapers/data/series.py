"""Time series: etth1, an electricity transformer's load and oil temperature by the hour."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workingpapers.data.store import locate
from workingpapers.errors import WorkingPapersError, unknown

SERIES = ("etth1",)
_MONTH = 30 * 24


@dataclass(frozen=True)
class Series:
    """A multivariate time series, standardised by its training part.

    values: float32 (T, C); `values * std + mean` is in the data's own units.  train, val, test: (first, end)
    rows of each part.
    """

    values: Tensor
    columns: tuple[str, ...]
    train: tuple[int, int]
    val: tuple[int, int]
    test: tuple[int, int]
    mean: Tensor
    std: Tensor
    name: str

    def windows(self, part: str, length: int, horizon: int) -> tuple[Tensor, Tensor]:
        """Return all pairs (past (N, length, C), future (N, horizon, C)) whose future lies in `part`.

        As usual for this set, the past of the first windows of val and test reaches back into the part
        before.  Both are views of `values`.
        """
        if part not in ("train", "val", "test"):
            raise unknown("part of a series", part, ("train", "val", "test"))
        first, end = getattr(self, part)
        start = max(first - length, 0)
        if end - start < length + horizon:
            raise WorkingPapersError(
                f"a window takes {length + horizon} rows; the {part} part has {end - start}"
            )
        whole = self.values[start:end].unfold(0, length + horizon, 1).transpose(1, 2)
        return whole[:, :length], whole[:, length:]


def series(name: str) -> Series:
    """Load the series `name`: of etth1 the first 20 months of 30 days, 12 to train, 4 to validate, 4 to test."""
    if name not in SERIES:
        raise unknown("series", name, SERIES)
    file = locate("etth1/ETTh1.csv")
    with file.open(encoding="utf-8") as stream:
        columns = tuple(stream.readline().strip().split(",")[1:])
    raw = np.loadtxt(file, delimiter=",", skiprows=1, usecols=range(1, len(columns) + 1))
    ends = 12 * _MONTH, 16 * _MONTH, 20 * _MONTH
    mean, std = raw[: ends[0]].mean(0), raw[: ends[0]].std(0)
    values = torch.from_numpy((raw[: ends[2]] - mean) / std).float()
    return Series(
        values,
        columns,
        (0, ends[0]),
        (ends[0], ends[1]),
        (ends[1], ends[2]),
        torch.from_numpy(mean).float(),
        torch.from_numpy(std).float(),
        name,
    )
