"""PolyCom: activations that compose a polynomial with another function, whose coefficients are learned.

    PolyReLU(x) = a0 + sum_i a_i relu(x)^i
    PolyNorm(x) = a0 + sum_i a_i N(x^i),   N(z) = z / sqrt(mean(z^2) + eps) over the last dimension

In general sum a_i rho(x)^i (outer) or sum a_i rho(x^i) (inner).  Order 3, a_i = 1/3 and a0 = 0 at the start.  They
stand in a transformer's feed-forward layer between Linear(d, 4d) and Linear(4d, d); a gated unit of as many
parameters has 8d/3 hidden features.

Paper: "Polynomial Composition Activations: Unleashing the Dynamics of Large Language Models" (2024), Section 2.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workingpapers.catalog import claim, paper
from workingpapers.data import text
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, any_of, at_most, below
from workingpapers.kernels.gates import SwiGLU
from workingpapers.papers.activations._coefficients import Numbers, horner, of_coefficients
from workingpapers.tasks import Budget, LanguageModelling, char_gpt, fit, initialise
from workingpapers.tasks.transformers import CharGPT

ORDERS = range(1, 9)


def _polyrelu(x: Tensor, a: Numbers) -> Tensor:
    return horner(x.relu(), a)


def _polynorm(x: Tensor, a: Numbers) -> Tensor:
    *a, eps = a
    # N(x^i) does not change when x is scaled and eps with it; so no power overflows, and the scale has no gradient
    scale = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-2)
    u, shrink = x / scale, (1 / scale).square()
    total, power, small = a[0] + 0 * x, u, eps * shrink
    for i in range(1, len(a)):
        total = total + a[i] * power * torch.rsqrt(power.square().mean(-1, keepdim=True) + small)
        power, small = power * u, small * shrink
    return total


_POLYRELU = {order: of_coefficients(_polyrelu, order + 1) for order in ORDERS}
_POLYNORM = {order: of_coefficients(_polynorm, order + 2, elementwise=False) for order in ORDERS}


def polyrelu(x: Tensor, a: Numbers | Tensor) -> Tensor:
    """Return a_0 + sum_i a_i relu(x)^i of `x` (any shape, floating); `a` holds 2 to 9 coefficients."""
    return _POLYRELU[len(a) - 1](x, _split(a))


def polynorm(x: Tensor, a: Numbers | Tensor, eps: float = 1e-6) -> Tensor:
    """Return a_0 + sum_i a_i N(x^i) of `x` (..., H), N over the last dimension; `a` holds 2 to 9 coefficients."""
    if x.ndim == 0:
        raise WorkingPapersError("PolyNorm takes vectors of features (..., H); got a single number")
    return _POLYNORM[len(a) - 1](x, [*_split(a), eps])


def _split(a: Numbers | Tensor) -> Numbers:
    return a.unbind() if isinstance(a, Tensor) else a


class _Composition(nn.Module):
    """Coefficients a (order + 1,) that the layer shares, and whether to recompute in the backward pass."""

    def __init__(self, order: int, recompute: bool) -> None:
        super().__init__()
        if order not in ORDERS:
            raise WorkingPapersError(f"the order is 1 to {ORDERS[-1]}; got {order}")
        self.order, self.recompute = order, recompute
        self.a = nn.Parameter(torch.tensor([0.0] + [1 / order] * order))

    def compose(self, x: Tensor, a: Tensor) -> Tensor:
        """Return the activation of `x` with the coefficients `a`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        if self.recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return cast(Tensor, checkpoint(self.compose, x, self.a, use_reentrant=False))
        return self.compose(x, self.a)

    def extra_repr(self) -> str:
        """Name the order and whether it recomputes."""
        return f"order={self.order}" + (", recompute=True" if self.recompute else "")


@paper("polycom", elementwise=False, variants=[{"order": 2}, {"order": 5, "recompute": True}])
class PolyNorm(_Composition):
    """Apply `polynorm` over the last dimension of a tensor.

    Args:
        order: highest power, 1 to 8; 3 in the paper.
        eps: added under the root of each norm; as in the authors' code.
        recompute: keep nothing but the inputs for the backward pass, as the authors do.
    """

    def __init__(self, order: int = 3, eps: float = 1e-6, recompute: bool = False) -> None:
        super().__init__(order, recompute)
        if not 0 <= eps < math.inf:
            raise WorkingPapersError(f"eps is at least 0; got {eps}")
        self.eps = float(eps)

    def compose(self, x: Tensor, a: Tensor) -> Tensor:
        """Return `polynorm` of `x`."""
        return polynorm(x, a, self.eps)

    def extra_repr(self) -> str:
        """Name the options."""
        return f"{super().extra_repr()}, eps={self.eps:g}"


@paper(
    "polycom",
    part="polyrelu",
    smooth=False,
    monotone=True,
    variants=[{"order": 2}, {"order": 5, "recompute": True}],
)
class PolyReLU(_Composition):
    """Apply `polyrelu` to a tensor of any shape.

    Args:
        order: highest power, 1 to 8; 3 in the paper.
        recompute: keep nothing but the inputs for the backward pass, as the authors do.
    """

    def __init__(self, order: int = 3, recompute: bool = False) -> None:
        super().__init__(order, recompute)

    def compose(self, x: Tensor, a: Tensor) -> Tensor:
        """Return `polyrelu` of `x`."""
        return polyrelu(x, a)


@paper(
    "polycom",
    part="composition",
    options={"rho": torch.tanh},
    variants=[{"mode": "inner"}, {"order": 2, "recompute": True}],
)
class PolyCom(_Composition):
    """Apply sum a_i rho(x)^i (outer) or a_0 + sum a_i rho(x^i) (inner) to a tensor, powers in float32 at least.

    Args:
        rho: any function of a tensor that keeps its shape: relu makes a PolyReLU, a norm and "inner" a PolyNorm.
        order: highest power, 1 to 8.
        mode: "outer" takes powers of rho, "inner" rho of powers.
        recompute: keep nothing but the inputs for the backward pass.
    """

    def __init__(
        self, rho: Callable[[Tensor], Tensor], order: int = 3, mode: str = "outer", recompute: bool = False
    ) -> None:
        super().__init__(order, recompute)
        if mode not in ("outer", "inner"):
            raise unknown("mode of composition", mode, ("outer", "inner"))
        self.rho, self.mode = rho, mode

    def compose(self, x: Tensor, a: Tensor) -> Tensor:
        """Return the composition at `x`."""
        if not x.is_floating_point():
            raise TypeError(f"PolyCom takes a floating-point tensor; got a tensor of {x.dtype}")
        exact = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        if self.mode == "outer":
            return horner(self.rho(exact), a.unbind()).to(x.dtype)
        return (a[0] + sum(a[i] * self.rho(exact**i) for i in range(1, len(a)))).to(x.dtype)

    def extra_repr(self) -> str:
        """Name the options."""
        name = getattr(self.rho, "__name__", type(self.rho).__name__)
        return f"rho={name}, mode={self.mode}, {super().extra_repr()}"


def polyrelu_from_relu(order: int = 3) -> PolyReLU:
    """Return the PolyReLU that is a ReLU exactly, a = (0, 1, 0, ...): ReLU nets are PolyReLU nets."""
    module = PolyReLU(order)
    module.a.data = torch.tensor([0.0, 1.0] + [0.0] * (order - 1))
    return module


def squaring_network() -> nn.Sequential:
    """Return the network of two PolyReLU units that squares a number (B, 1) exactly: relu(x)^2 + relu(-x)^2."""
    into, out, square = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False), PolyReLU(2)
    into.weight.data = torch.tensor([[1.0], [-1.0]])
    out.weight.data = torch.ones(1, 2)
    square.a.data = torch.tensor([0.0, 0.0, 1.0])
    return nn.Sequential(into, square, out)


def gated(model: CharGPT) -> CharGPT:
    """Give each block of `model` a SwiGLU with 2/3 of its hidden features, hence as many parameters; return it."""
    for block in cast(Any, model.blocks):
        dim, hidden = block.expand.in_features, round(2 * block.expand.out_features / 3)
        shrink = block.contract.weight.std() * math.sqrt(block.contract.in_features / hidden)
        block.expand, block.activation = nn.Linear(dim, 2 * hidden), SwiGLU()
        block.contract = nn.Linear(hidden, dim)
        nn.init.zeros_(block.contract.bias)
        block.contract.weight.data.mul_((shrink / block.contract.weight.std()).item())
    return model


def _gpt(name: str, *options: Any) -> CharGPT:
    model = char_gpt(*options)
    return gated(model) if name == "swiglu" else model


@claim(
    "polycom",
    "Language models pre-trained with these activations, dense or mixture-of-experts, reach better loss and "
    "downstream scores than with ReLU, GELU or SwiGLU.",
    seeds=5,
    holds=any_of(
        *(
            all_of(
                below(0.0, of=f"{name}_over_relu"),
                below(0.0, of=f"{name}_over_gelu"),
                at_most(0.01, of=f"{name}_over_swiglu"),
            )
            for name in ("polyrelu", "polynorm")
        )
    ),
)
def language_models(budget: Budget, seed: int) -> Evidence:
    """Validation loss of dense character GPTs of equal size on tinyshakespeare, each at the better of two rates."""
    corpus, losses = text("tinyshakespeare"), {}
    dim, depth, context = budget.pick(quick=(64, 2, 32), full=(128, 4, 128))
    steps, batch = budget.pick(quick=120, full=800), budget.pick(quick=16, full=32)
    arms: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "swiglu": nn.Identity,
        "polyrelu": PolyReLU,
        "polynorm": PolyNorm,
    }
    for name, activation in arms.items():
        runs = []
        for lr in (1e-3, 3e-3):
            model = initialise(
                partial(_gpt, name, len(corpus.vocabulary), dim, depth, 4, context, activation), seed
            )
            problem = LanguageModelling(corpus, context)
            how: dict[str, Any] = {"optimizer": "adamw", "schedule": "cosine", "every": steps, "batch": batch}
            runs.append(fit(model, problem, steps=steps, lr=lr, seed=seed, **how).metrics["loss"])
        losses[name] = math.nan if any(map(math.isnan, runs)) else min(runs)
    return Evidence(
        **{
            f"{name}_over_{other}": losses[name] - losses[other]
            for name in ("polyrelu", "polynorm")
            for other in ("relu", "gelu", "swiglu")
        }
    )


def fitted_error(activation: Callable[[], nn.Module], hidden: int, seed: int, steps: int = 500) -> float:
    """Return the test RMSE of one hidden layer fitted to x1 x2 + x1^3 on [-1, 1]^2 by L-BFGS in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(2, 1000, 2, generator=generator, dtype=torch.float64) - 1
    y = x[..., :1] * x[..., 1:] + x[..., :1] ** 3
    net = initialise(
        lambda: nn.Sequential(nn.Linear(2, hidden), activation(), nn.Linear(hidden, 1)), seed
    ).double()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss: Tensor = (net(x[0]) - y[0]).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    optimizer.step(closure)
    with torch.no_grad():
        return float((net(x[1]) - y[1]).square().mean().sqrt())


@claim(
    "polycom",
    "Networks of composed polynomials attain the optimal approximation rate for smooth Sobolev functions, hence "
    "need few parameters.",
    seeds=5,
    holds=at_most(0.2, of="ratio_8", by="median"),
)
def few_units(budget: Budget, seed: int) -> Evidence:
    """Error of PolyReLU over ReLU's in fitting a cubic of two variables with 8, 16 and 32 hidden units."""
    steps, widths = budget.pick(quick=500, full=2000), (8, 16, 32)
    return Evidence(
        **{
            f"ratio_{h}": fitted_error(PolyReLU, h, seed, steps) / fitted_error(nn.ReLU, h, seed, steps)
            for h in widths
        }
    )
