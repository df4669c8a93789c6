"""SAU: leaky ReLU convolved with a narrow Gaussian, an approximate identity, which makes it smooth.

    sau(x) = (leaky_alpha * N(0, 1 / n^2))(x)
           = (1 - alpha) phi(n x) / n + (1 + alpha) x / 2 + (1 - alpha) x erf(n x / sqrt 2) / 2
    sau'(x) = alpha + (1 - alpha) Phi(n x)             phi, Phi: density and distribution function of N(0, 1)

It is also the mean of leaky ReLU under noise of deviation 1 / n, and lies above it by (1 - alpha) / (n sqrt(2 pi))
at most, at zero.  At alpha = 0 it is x Phi(n x) + phi(n x) / n, at alpha = 1 the identity.

Paper: "SAU: Smooth activation function using convolution with approximate identities" (2021), Section 3.  That
n starts at 20,000 and alpha at 0.15 is recalled, not verified; at such n it is leaky ReLU in float32 but for a
range of 1e-4 around zero.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, any_of, at_least, at_most
from workingpapers.experiments.evidence import AllOf
from workingpapers.kernels import per_channel, pointwise
from workingpapers.papers.activations._fashion import Factory, fashion, fitted, four_convolutions
from workingpapers.papers.activations._identities import PiecewiseLinear, check, smoothed
from workingpapers.tasks import Budget, initialise

__all__ = ["SAU", "PiecewiseLinear", "Smoothed", "sau"]


@pointwise
def sau(x: Tensor, alpha: float | Tensor = 0.15, n: float | Tensor = 20000.0) -> Tensor:
    """Return leaky ReLU of slope `alpha`, smoothed by a Gaussian of deviation 1 / n; both broadcast.

    Written by erfc, so that digits of the left tail remain where alpha is 0.
    """
    z = (n * x).clamp(-40, 40)  # beyond, in every dtype, Phi is 0 or 1 and phi is 0
    below = 0.5 * torch.erfc(-math.sqrt(0.5) * z)
    density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    return x * (alpha + (1 - alpha) * below) + (1 - alpha) * density / n


@paper(
    "sau",
    smooth=True,
    monotone=True,
    lipschitz=1.0,
    bounded=False,
    options={"n": 1.0},  # the grid of the checks is too wide for the transition at 20,000
    variants=[{"train_n": True}, {"n": 20.0, "alpha": 0.0, "train_alpha": False}],
)
class SAU(nn.Module):
    """Apply `sau` to a tensor of any shape, or (B, channels, ...) where each channel has parameters of its own.

    Args:
        alpha: slope far left of zero, at first; 0.15.
        n: sharpness, positive; 20,000, which is leaky ReLU for most purposes.  At n = 1 it is visibly smooth.
        train_alpha: learn alpha, as in the paper.
        train_n: learn n too, as exp of a parameter.
        channels: give each channel (dimension 1) values of its own, of what is learned.
    """

    def __init__(
        self,
        alpha: float = 0.15,
        n: float = 20000.0,
        train_alpha: bool = True,
        train_n: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < n < math.inf:
            raise WorkingPapersError(f"SAU takes a sharpness n > 0; got {n}")
        if channels is not None and not (train_alpha or train_n):
            raise WorkingPapersError(
                f"fixed parameters are the same in all channels; got channels={channels}"
            )
        shape = () if channels is None else (channels,)
        self.train_n, self._n = train_n, float(n)
        self.alpha = nn.Parameter(torch.full(shape, float(alpha))) if train_alpha else float(alpha)
        if train_n:
            self.log_n = nn.Parameter(torch.full(shape, math.log(n)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        alpha = per_channel(self.alpha, x) if isinstance(self.alpha, Tensor) else self.alpha
        return sau(x, alpha, per_channel(self.log_n, x).exp() if self.train_n else self._n)

    def extra_repr(self) -> str:
        """Name both numbers, and which of them are learned."""
        learned = [name for name, _ in self.named_parameters()]
        fixed = self.alpha if isinstance(self.alpha, float) else self.alpha.detach().flatten()[0].item()
        size = next((p.numel() for p in self.parameters() if p.ndim), None)
        channels = f", channels={size}" if size is not None else ""
        return f"alpha={fixed:g}, n={self._n:g}, learned={learned}{channels}"


@paper(
    "sau",
    part="smoothed",
    kind="activation",
    smooth=True,
    options={"function": PiecewiseLinear((0.0,), (0.1, 1.0))},
    variants=[
        {"kernel": "bump", "n": 0.5},
        {"kernel": "poisson", "function": PiecewiseLinear((-1.0, 1.0), (0.0, 1.0, 0.0), -1.0)},
        {"function": nn.ELU()},
    ],
)
class Smoothed(nn.Module):
    """Convolve any elementwise `function` with an approximate identity and apply the result.

    Args:
        function: a `PiecewiseLinear`, which has a closed form, or any other, which is integrated numerically.
        kernel: "gaussian" of deviation 1 / n, "bump" exp(-1 / (1 - t^2)) of support [-1/n, 1/n], or "poisson",
            1 / (pi (1 + t^2)), for functions that are constant at both ends.
        n: sharpness, positive.

    Raises:
        WorkingPapersError: for another kernel, and for the Poisson kernel where the ends of `function` slope.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], kernel: str = "gaussian", n: float = 1.0
    ) -> None:
        super().__init__()
        check(function, kernel, n)
        self.function, self.kernel, self.n = function, kernel, float(n)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        if not x.is_floating_point():
            raise WorkingPapersError(f"Smoothed takes a floating-point tensor; got one of {x.dtype}")
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return smoothed(self.function, self.kernel, self.n, wide).to(x.dtype)

    def extra_repr(self) -> str:
        """Name the function, the kernel and its sharpness."""
        return f"function={self.function}, kernel={self.kernel!r}, n={self.n:g}"


def _as_good(name: str) -> AllOf:
    """Return the rule that the variant `name` is as accurate as ReLU and as leaky ReLU."""
    return all_of(
        at_least(-0.005, of=f"{name}_over_relu"),
        at_least(-0.01, of=f"{name}_over_leaky_relu"),
        at_least(0.80, of=name),
    )


@claim(
    "sau",
    "The smoothed leaky ReLU outperforms well-known activations across data sets and models.",
    seeds=5,
    figure="+5.12% with ShuffleNet V2 (2.0x) on CIFAR100 over ReLU",
    holds=all_of(any_of(_as_good("sharp"), _as_good("soft")), at_most(1e-3, of="logit_gap", by="every")),
)
def accuracy(budget: Budget, seed: int) -> Evidence:
    """Accuracy of a CNN on Fashion-MNIST with SAU of n = 20,000 (`sharp`) and n = 1 (`soft`), over four others.

    `logit_gap` is how far the untrained networks with SAU and with leaky ReLU of slope 0.15 are apart.
    """
    leaky = partial(nn.LeakyReLU, 0.15)
    own: dict[str, Factory] = {"sharp": SAU, "soft": partial(SAU, n=1.0)}
    others: dict[str, Factory] = {"relu": nn.ReLU, "leaky_relu": leaky, "prelu": nn.PReLU, "gelu": nn.GELU}
    split, epochs = fashion(budget, seed), budget.pick(quick=4, full=30)
    found = {
        name: fitted(activation, split, epochs=epochs, seed=seed, norm=True)[1].metrics["accuracy"]
        for name, activation in {**own, **others}.items()
    }
    with torch.no_grad():
        logits = [
            initialise(partial(four_convolutions, activation, norm=True), seed).eval()(split.x_test[:500])
            for activation in (partial(SAU, train_alpha=False), leaky)
        ]
    over = {f"{name}_over_{other}": found[name] - found[other] for name in own for other in others}
    gap = float((logits[0] - logits[1]).abs().max())
    return Evidence(sharp=found["sharp"], soft=found["soft"], **over, logit_gap=gap)


@claim(
    "sau",
    "Convolving with approximate identities gives smooth functions that approach the original kinked one.",
    seeds=1,
    holds=at_most(1e-6, by="every"),
)
def convergence(budget: Budget, seed: int) -> Evidence:
    """How far max |SAU - leaky ReLU| n sqrt(2 pi) / (1 - alpha) is from 1, at worst over n and alpha."""
    x = torch.cat([torch.linspace(-3, 3, 60_001, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    errors = []
    for n in (1.0, 10.0, 100.0, 1e4):
        for alpha in (0.0, 0.15, 0.5):
            gap = float((sau(x, alpha, n) - nn.functional.leaky_relu(x, alpha)).abs().max())
            errors.append(abs(gap * n * math.sqrt(2 * math.pi) / (1 - alpha) - 1))
    return Evidence(max(errors))
