"""Networks of one hidden layer, trained on all trials of a task at once from a start that activations share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import unknown
from workingpapers.papers.theory._conditions import Trials
from workingpapers.surgery.collect import collect
from workingpapers.tasks.randomness import stream


class Erf(nn.Module):
    """The error function."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to a tensor of any shape."""
        return torch.erf(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "leaky": nn.LeakyReLU, "softplus": nn.Softplus, "erf": Erf,
}  # fmt: skip
LOSSES = ("logistic", "squared")


@dataclass(frozen=True)
class Trained:
    """A network dim-N-outputs after training: itself, its task's trials, steps taken and accuracy reached."""

    model: nn.Sequential
    data: Trials
    steps: int
    accuracy: float

    @property
    def hidden(self) -> Tensor:
        """Hidden activity (n, N) on the trials."""
        return collect(self.model, self.data.x, ["1"])["1"]


def train(
    data: Trials,
    activation: str,
    hidden: int = 128,
    loss: str = "logistic",
    optimizer: str = "adam",
    lr: float = 3e-3,
    steps: int = 600,
    accuracy: float | None = None,
    seed: int = 0,
) -> Trained:
    """Train a network with one hidden layer on all trials at once, for `steps` or until it has the `accuracy`.

    Weights start as N(0, 1 / fan-in) and biases at 0, alike for all activations; `loss` is "logistic" or "squared",
    `optimizer` "adam" or "sgd".
    """
    for what, name, valid in (
        ("activation", activation, tuple(ACTIVATIONS)),
        ("loss", loss, LOSSES),
        ("optimizer", optimizer, ("adam", "sgd")),
    ):
        if name not in valid:
            raise unknown(what, name, valid)
    generator = torch.Generator().manual_seed(stream(seed, "weights"))
    first, last = nn.Linear(data.x.shape[1], hidden), nn.Linear(hidden, data.y.shape[1])
    model = nn.Sequential(first, ACTIVATIONS[activation](), last)
    with torch.no_grad():
        for layer in (first, last):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)
            layer.bias.zero_()
    make = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    descent = make(model.parameters(), lr)
    reached, taken = 0.0, 0
    for taken in range(steps + 1):
        out = model(data.x)
        reached = float((out.detach().sign() == data.y).float().mean())
        if taken == steps or (accuracy is not None and reached >= accuracy):
            break
        descent.zero_grad()
        cost = F.softplus(-data.y * out).mean() if loss == "logistic" else F.mse_loss(out, data.y)
        cost.backward()
        descent.step()
    return Trained(model.eval(), data, taken, reached)
