"""A recurrent network of spiking neurons with time constants of their own, and readouts by ridge regression."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError

SHARPNESS = 10.0


class Spike(torch.autograd.Function):
    """1 where the potential is at the threshold of 1 or above; its gradient is 1 / (1 + 10 |v - 1|)^2."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        """Return the spikes of potentials of any shape."""
        ctx.save_for_backward(v)
        return (v >= 1).to(v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the surrogate's gradient."""
        (v,) = ctx.saved_tensors
        return grads[0] * softness(v)


def softness(v: Tensor) -> Tensor:
    """Return the derivative that stands for the threshold's."""
    return (1 + SHARPNESS * (v - 1).abs()) ** -2


class HRSNN(nn.Module):
    """Leaky integrate-and-fire neurons: tau_i dv_i/dt = -v_i + coupling sum_j W_ij s_j + I_i, threshold 1, reset 0.

    Steps are of 1 ms, decays are exact.  A spike is a pulse of 1 ms and height `coupling`: with the mean time
    constant it moves a potential by about W.  Inputs (B, T, D) are currents or spikes; the output (B, K) reads the
    last of the exponentially filtered spikes.

    Args:
        num_inputs, num_outputs: D and K.
        neurons: how many; 80 % of them excite.
        connectivity: share of pairs with a synapse; W is scaled to a spectral radius of 1.
        tau: mean time constant in ms, also that of the readout's filter.
        heterogeneous: time constants from a gamma distribution of shape 3, or all the same.
        coupling: height of a spike.
        input_scale: deviation of the input weights; every neuron has a constant current in [0, 1] beside.
    """

    tau: Tensor
    current: Tensor
    mask: Tensor

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        neurons: int = 400,
        connectivity: float = 0.1,
        tau: float = 20.0,
        heterogeneous: bool = True,
        coupling: float = 20.0,
        input_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if neurons < 2 or not 0 < connectivity <= 1 or tau <= 0:
            raise WorkingPapersError(
                f"a network has at least 2 neurons, a connectivity in (0, 1] and tau > 0; got {neurons}, "
                f"{connectivity} and {tau}"
            )
        weight = torch.randn(neurons, neurons).abs() * (torch.rand(neurons, neurons) < connectivity)
        weight.fill_diagonal_(0)
        weight[:, round(0.8 * neurons) :] *= -4  # what a neuron excites and inhibits is in balance
        radius = float(torch.linalg.eigvals(weight).abs().max())
        self.weight = nn.Parameter(weight / radius if radius > 1e-6 else weight)
        self.inputs = nn.Parameter(input_scale * torch.randn(neurons, num_inputs) / math.sqrt(num_inputs))
        spread = torch.distributions.Gamma(3.0, 3.0 / tau).sample((neurons,)).clamp_min(1.0)
        self.register_buffer("tau", spread if heterogeneous else torch.full((neurons,), tau))
        self.register_buffer("current", torch.rand(neurons))
        self.register_buffer("mask", weight != 0)
        self.readout = nn.Linear(neurons, num_outputs)
        self.coupling, self.filter = coupling, math.exp(-1 / tau)

    def step(self, v: Tensor, spikes: Tensor, drive: Tensor) -> Tensor:
        """Return the potentials (B, N) one ms later, given those before, their spikes, and the currents."""
        decay = torch.exp(-1 / self.tau)
        recurrent = self.coupling * (spikes @ (self.weight * self.mask).T)
        return decay * v * (1 - spikes) + (1 - decay) * (recurrent + drive)

    def run(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return potentials and spikes (B, T, N) for inputs (B, T, D), with a current `noise` (B, T, N) added."""
        drive = x @ self.inputs.T + self.current
        drive = drive if noise is None else drive + noise
        v = spikes = drive.new_zeros(drive[:, 0].shape)
        potentials, fired = [], []
        for now in drive.unbind(1):
            v = self.step(v, spikes, now)
            spikes = Spike.apply(v)
            potentials.append(v)
            fired.append(spikes)
        return torch.stack(potentials, 1), torch.stack(fired, 1)

    def traces(self, x: Tensor) -> Tensor:
        """Return the exponentially filtered spikes (B, T, N)."""
        _, fired = self.run(x)
        trace, found = torch.zeros_like(fired[:, 0]), []
        for spikes in fired.unbind(1):
            trace = self.filter * trace + spikes
            found.append(trace)
        return torch.stack(found, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the readout (B, K) of the last filtered spikes."""
        out: Tensor = self.readout(self.traces(x)[:, -1])
        return out


@torch.no_grad()
def ridge(features: Tensor, targets: Tensor, penalty: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Return (weight (K, N), bias (K,)) that minimise |X w + b - y|^2 / n + penalty |w|^2, in float64."""
    x, y = features.double(), targets.double()
    mean, level = x.mean(0), y.mean(0)
    x, y = x - mean, y - level
    gram = x.T @ x / len(x) + penalty * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, x.T @ y / len(x)).T
    return weight, level - weight @ mean


@torch.no_grad()
def fit_readout(model: HRSNN, features: Tensor, targets: Tensor, penalty: float = 1e-2) -> HRSNN:
    """Set the readout by ridge regression; return the model."""
    weight, bias = ridge(features, targets, penalty)
    model.readout.weight.copy_(weight)
    model.readout.bias.copy_(bias)
    return model


def rate_coded(images: Tensor, steps: int, seed: int = 0) -> Tensor:
    """Return random spikes (B, steps, pixels) of images with pixels in [0, 1], which are half their chances."""
    chance = images.flatten(1)[:, None].expand(-1, steps, -1) / 2
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(chance.shape, generator=generator) < chance).float()


def mackey_glass(count: int, lag: int = 17, seed: int = 0) -> Tensor:
    """Return `count` values, a time unit apart, of dx/dt = 0.2 x(t - lag) / (1 + x(t - lag)^10) - 0.1 x.

    Standardised; steps of a tenth; `seed` sets the history; the first 300 units are dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    steps, back = 10, 10 * lag
    x = (1.2 + 0.2 * (torch.rand(back + 1, generator=generator, dtype=torch.float64) - 0.5)).tolist()
    for _ in range((count + 300) * steps):
        late = x[-1 - back]
        x.append(x[-1] + (0.2 * late / (1 + late**10) - 0.1 * x[-1]) / steps)
    series = torch.tensor(x, dtype=torch.float64)[-count * steps :: steps]
    return ((series - series.mean()) / series.std()).float()


def lorenz(count: int, seed: int = 0) -> Tensor:
    """Return `count` standardised points (count, 3), 0.02 apart, of Lorenz's system; by Runge-Kutta."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0.0, 25.0])

    def slope(p: Tensor) -> Tensor:
        return torch.stack([10 * (p[1] - p[0]), p[0] * (28 - p[2]) - p[1], p[0] * p[1] - 8 / 3 * p[2]])

    found = []
    for _ in range(count + 500):
        a = slope(x)
        b = slope(x + 0.01 * a)
        c = slope(x + 0.01 * b)
        x = x + 0.02 / 6 * (a + 2 * b + 2 * c + slope(x + 0.02 * c))
        found.append(x)
    series = torch.stack(found[500:])
    return ((series - series.mean(0)) / series.std(0)).float()
