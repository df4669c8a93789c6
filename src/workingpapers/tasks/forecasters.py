"""A plain forecaster: one perceptron for every channel."""

from torch import Tensor, nn

from workingpapers.tasks.models import Factory, mlp


class MLPForecaster(nn.Module):
    """Map the last `length` values of each channel to the next `horizon`: (B, length, C) -> (B, horizon, C).

    All channels share the perceptron, which sees and forecasts differences from the last value.
    """

    def __init__(
        self, length: int, horizon: int, width: int, depth: int, activation: Factory = nn.ReLU
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.mlp = mlp([length, *[width] * depth, horizon], activation)

    def forward(self, past: Tensor) -> Tensor:
        """Return the forecast."""
        last = past[:, -1:]
        each = (past - last).transpose(1, 2).flatten(0, 1)  # (B * C, length)
        ahead: Tensor = self.mlp(each)
        return ahead.view(len(past), -1, self.horizon).transpose(1, 2) + last
