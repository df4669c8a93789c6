"""Forecasting as a problem: windows of a time series."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from workingpapers.data import Series
from workingpapers.tasks.problems import (
    EVALUATION_BATCH,
    Problem,
    full_batches,
    order,
    squared_error,
    together,
)


class Forecasting(Problem):
    """Forecast the next `horizon` rows of a series from the last `length`: squared error to train.

    A model takes (B, length, C) and gives (B, horizon, C).  Measured on every `stride`-th window of the test
    part: mse (the loss) and mae of the standardised values.
    """

    metrics = ("loss", "mse", "mae")

    def __init__(self, series: Series, length: int, horizon: int, stride: int = 1) -> None:
        self.series, self.length, self.horizon, self.stride = series, length, horizon, stride
        self.past, self.future = series.windows("train", length, horizon)
        past, future = series.windows("test", length, horizon)
        self.test_past, self.test_future = past[::stride], future[::stride]

    def to(self, device: torch.device) -> Self:
        """Return the problem with its series on `device`."""
        series = replace(self.series, values=self.series.values.to(device))
        return type(self)(series, self.length, self.horizon, self.stride)

    def steps_per_epoch(self, batch: int) -> int:
        """Return how many full batches of windows the training part has."""
        return full_batches(len(self.past), batch)

    def batches(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the training windows in shuffled full batches."""
        for chosen in order(len(self.past), batch, generator):
            chosen = chosen.to(self.past.device)
            yield self.past[chosen], self.future[chosen]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean squared error of the forecast."""
        return squared_error(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return mse and mae over the test windows."""
        squared = absolute = 0.0
        for past, future in together(self.test_past, self.test_future, EVALUATION_BATCH):
            error = model(past) - future
            squared += float(error.double().square().sum())
            absolute += float(error.double().abs().sum())
        mse = squared / self.test_future.numel()
        return {"loss": mse, "mse": mse, "mae": absolute / self.test_future.numel()}
