"""APTx: an input gated by one hyperbolic tangent, which imitates Mish with fewer operations.

    aptx(x) = (alpha + tanh(beta x)) gamma x                       alpha = beta = 1, gamma = 1/2
    aptx'(x) = gamma (alpha + tanh(beta x) + beta x sech^2(beta x))

With alpha = 1 and gamma = 1/2 it is Swish, x sigmoid(2 beta x): SiLU at beta = 1/2, ReLU in the limit of large
beta.  Beta = 1/2 left of zero and 1 right of it come close to Mish: within 0.0359 on [-5, 5], 0.0109 on average.

Paper: "APTx: better activation function than MISH, SWISH, and ReLU's variants used in deep learning" (2022),
with the parameters and defaults of the author's package.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most, between
from workingpapers.kernels import per_channel, pointwise
from workingpapers.papers.activations._fashion import fashion, fitted
from workingpapers.papers.activations._timing import pass_seconds
from workingpapers.tasks import Budget

Function = Callable[[Tensor], Tensor]

TRANSCENDENTAL = {  # how many exponentials, logarithms and tangents one element of each operator costs
    **dict.fromkeys(("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "erfc", "silu"), 1),
    **{"softplus": 2, "mish": 3, "silu_backward": 1, "softplus_backward": 1, "mish_backward": 3},
}


@pointwise
def aptx(
    x: Tensor, alpha: float | Tensor = 1.0, beta: float | Tensor = 1.0, gamma: float | Tensor = 0.5
) -> Tensor:
    """Return (alpha + tanh(beta x)) gamma x for `x` of any shape; the three broadcast.

    The tangent is taken as 2 logistic(2 beta x) - 1, so that 1 + tanh keeps its digits on the left.
    """
    return gamma * x * ((alpha - 1) + 2 * _logistic(2 * beta * x))


@pointwise
def aptx_mish(x: Tensor) -> Tensor:
    """Return the paper's approximation of Mish: `aptx` with beta = 1/2 left of zero and 1 right of it."""
    return x * _logistic(torch.where(x < 0, x, 2 * x))


def _logistic(z: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-z)) by the exponential of -|z|, so that the slope keeps its digits on the right too."""
    right = z > 0
    e = torch.exp(torch.where(right, -z, z))
    return torch.where(right, 1, e) / (1 + e)


def naive_mish(x: Tensor) -> Tensor:
    """Return x tanh(softplus(x)) operation by operation, three transcendental functions an element."""
    return x * torch.tanh(F.softplus(x))


@paper(
    "aptx",
    smooth=True,
    monotone=False,
    zero_at_zero=True,
    bounded=False,
    variants=[{"trainable": True}, {"alpha": 0.8, "beta": 2.0, "gamma": 0.6}],
)
class APTx(nn.Module):
    """Apply `aptx` to a tensor of any shape, or (B, channels, ...) where each channel has parameters of its own.

    Args:
        alpha: what is added to the tangent; 1 in the paper.
        beta: steepness of the tangent; 1 in the paper, 1/2 for SiLU.
        gamma: factor; 1/2 in the paper.
        trainable: learn the three, starting from these values.
        channels: give each channel (dimension 1) three values of its own; only with `trainable`.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.5,
        trainable: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        if channels is not None and not trainable:
            raise WorkingPapersError(
                f"fixed parameters are the same in all channels; got channels={channels}"
            )
        shape = () if channels is None else (channels,)
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            setattr(self, name, nn.Parameter(torch.full(shape, float(value))) if trainable else float(value))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        values = (self.alpha, self.beta, self.gamma)
        return aptx(x, *(per_channel(v, x) if isinstance(v, Tensor) else v for v in values))

    def extra_repr(self) -> str:
        """Name the three numbers, or how many of them are learned."""
        if isinstance(self.alpha, nn.Parameter):
            found = ((name, p.detach().flatten().tolist()) for name, p in self.named_parameters())
            learned = ", ".join(f"{name}={v[0] if len(v) == 1 else v}" for name, v in found)
            return f"{learned}, trainable=True"
        return f"alpha={self.alpha}, beta={self.beta}, gamma={self.gamma}"


@paper("aptx", part="mish", kind="activation", smooth=True, monotone=False, zero_at_zero=True)
class APTxMish(nn.Module):
    """Apply `aptx_mish`, the approximation of Mish, to a tensor of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return aptx_mish(x)


class _Transcendental(TorchDispatchMode):
    """Within it, `count` grows with every operator by the transcendental functions that it takes an element."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the operator `func` and run it."""
        name = func.overloadpacket.__name__
        self.count[name] += TRANSCENDENTAL.get(name, 0)
        return func(*args, **(kwargs or {}))


def op_count(function: Function) -> dict[str, int]:
    """Count the transcendental functions that an activation takes an element, `forward` and `backward`.

    >>> op_count(aptx), op_count(naive_mish)
    ({'forward': 1, 'backward': 0}, {'forward': 3, 'backward': 1})
    """
    x = torch.ones(1, requires_grad=True)
    with _Transcendental() as forward:
        y = function(x)
    with _Transcendental() as backward:
        torch.autograd.grad(y, x, torch.ones_like(y))
    return {"forward": forward.count.total(), "backward": backward.count.total()}


@claim(
    "aptx",
    "The function behaves like Mish with fewer operations, which speeds training and lowers hardware needs.",
    seeds=5,
    holds=all_of(
        at_most(0.8, of="time_over_naive_mish"),
        between(-0.015, 0.015, of="accuracy_over_mish"),
        at_least(0.80, of="accuracy"),
    ),
)
def cheaper_than_mish(budget: Budget, seed: int) -> Evidence:
    """Time of forward and backward passes over four million floats; accuracy of a CNN on Fashion-MNIST."""
    functions: dict[str, Function] = {"aptx": aptx, "naive_mish": naive_mish, "mish": F.mish, "swish": F.silu}
    seconds = pass_seconds(functions, budget.pick(quick=2**22, full=2**24), repeats=8, seed=seed)
    split, epochs = fashion(budget, seed), budget.pick(quick=4, full=20)
    accuracy = {
        name: fitted(activation, split, epochs=epochs, seed=seed, norm=True)[1].metrics["accuracy"]
        for name, activation in (("aptx", APTx), ("mish", nn.Mish))
    }
    return Evidence(
        **{f"time_over_{name}": seconds["aptx"] / seconds[name] for name in ("naive_mish", "mish", "swish")},
        accuracy_over_mish=accuracy["aptx"] - accuracy["mish"],
        accuracy=accuracy["aptx"],
    )


@claim(
    "aptx",
    "With suitable constants it approximates Mish closely and reproduces Swish.",
    seeds=1,
    holds=all_of(
        at_most(0.037, of="largest", by="every"),
        at_most(0.012, of="mean", by="every"),
        at_most(1e-12, of="swish_error", by="every"),
    ),
)
def close_to_mish(budget: Budget, seed: int) -> Evidence:
    """Distance of `aptx_mish` from Mish on [-5, 5], and of `aptx` at beta = 1/2 from Swish, in float64."""
    x = torch.linspace(-5, 5, 100_001, dtype=torch.float64)
    gap = (aptx_mish(x) - F.mish(x)).abs()
    swish_error = float((aptx(x, beta=0.5) - F.silu(x)).abs().max())
    single = float((aptx(x) - F.mish(x)).abs().max())
    return Evidence(
        largest=float(gap.max()), mean=float(gap.mean()), swish_error=swish_error, largest_at_one_beta=single
    )
