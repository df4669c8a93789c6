"""PReLU XOR: one linear unit with a learned negative slope separates XOR with three numbers.

    y = max(0, z) + a min(0, z),   z = w1 x1 + w2 x2

With a = -1 this is |z|, and w = (1, -1) gives |x1 - x2|, the XOR of bits.  For inputs coded -1 and 1, with
u = w1 + w2 and v = w1 - w2, the mean squared error is (u^2 (1 + a^2) + (|v| - 1)^2 + (a |v| + 1)^2) / 4.

Paper: "PReLU: Yet Another Single-Layer Solution to the XOR Problem" (2024).  The coding, the optimiser and the
grid of learning rates are ours; at bits 0 and 1 weights that start with one sign can be trapped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workingpapers.catalog import claim, paper
from workingpapers.errors import unknown
from workingpapers.experiments import Evidence, above, all_of, at_least, at_most
from workingpapers.experiments.evidence import Finding
from workingpapers.papers.activations._xor import points, prelu, trajectory
from workingpapers.tasks import Budget

RATES = tuple(10 ** (-4 + i / 2) for i in range(11))
Parameters = dict[str, Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gcu": lambda z: z * torch.cos(z),
    "relu": torch.relu,
    "leaky": lambda z: prelu(z, 0.25),
    "linear": lambda z: z,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class SingleLayer:
    """Many copies of one unit, f(w . x + b): `activation` is "prelu" or a name in ACTIVATIONS.

    `bias` adds the learned b; `nonnegative` keeps the slope a of "prelu" at 0 or above after every step.
    """

    activation: str = "prelu"
    bias: bool = False
    nonnegative: bool = False

    def __post_init__(self) -> None:
        if self.activation != "prelu" and self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ["prelu", *ACTIVATIONS])

    def start(self, runs: int, generator: torch.Generator) -> Parameters:
        """Return standard normal weights (runs, 2), slopes of 0.25 and biases of 0 (runs, 1)."""
        found = {"w": torch.randn(runs, 2, generator=generator, dtype=torch.float64)}
        if self.activation == "prelu":
            found["a"] = torch.full((runs, 1), 0.25, dtype=torch.float64)
        if self.bias:
            found["b"] = torch.zeros(runs, 1, dtype=torch.float64)
        return found

    def outputs(self, p: Parameters, x: Tensor) -> Tensor:
        """Return the outputs (runs, N) of every copy for the inputs (N, 2)."""
        z = p["w"] @ x.T + (p["b"] if self.bias else 0.0)
        return prelu(z, p["a"]) if self.activation == "prelu" else ACTIVATIONS[self.activation](z)

    def project(self, p: Parameters) -> None:
        """Put forbidden slopes back, in place."""
        if self.nonnegative:
            p["a"].clamp_(min=0)


@dataclass(frozen=True)
class TwoLayer:
    """Many copies of the perceptron 2-2-1 with nine numbers; `activation` is a name in ACTIVATIONS."""

    activation: str = "tanh"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)

    def start(self, runs: int, generator: torch.Generator) -> Parameters:
        """Return standard normal weights and zero biases, (runs, ...) each."""
        w, v = (torch.randn(runs, *s, generator=generator, dtype=torch.float64) for s in ((2, 2), (1, 2)))
        zeros = torch.zeros(runs, 2, 1, dtype=torch.float64)
        return {"w": w, "b": zeros, "v": v, "c": zeros[:, :1].clone()}

    def outputs(self, p: Parameters, x: Tensor) -> Tensor:
        """Return the outputs (runs, N) of every copy for the inputs (N, 2)."""
        return (p["v"] @ ACTIVATIONS[self.activation](p["w"] @ x.T + p["b"]) + p["c"]).squeeze(1)

    def project(self, p: Parameters) -> None:
        """Leave the parameters alone: nothing is forbidden."""


Net = SingleLayer | TwoLayer
MODELS: dict[str, Net] = {
    "prelu": SingleLayer("prelu"),
    "gcu": SingleLayer("gcu", bias=True),
    "mlp": TwoLayer("tanh"),
    "mlp_sigmoid": TwoLayer("sigmoid"),
    "mlp_relu": TwoLayer("relu"),
    "relu": SingleLayer("relu"),
    "leaky": SingleLayer("leaky"),
    "linear": SingleLayer("linear"),
    "tanh": SingleLayer("tanh"),
    "prelu_clamped": SingleLayer("prelu", nonnegative=True),
}


@dataclass(frozen=True)
class Runs:
    """Trained copies of a net: parameters at the start and at the end, final outputs, and who is right."""

    start: Parameters
    end: Parameters
    outputs: Tensor
    success: Tensor


def train(
    net: Net,
    start: Parameters,
    rates: Tensor,
    *,
    epochs: int = 1000,
    coding: str = "signed",
    optimizer: str = "adam",
) -> Runs:
    """Train all copies at once, each with its own learning rate (runs,), on the squared error of the four points.

    `optimizer` is "adam" (betas 0.9 and 0.999) or "sgd", full batch.  A copy succeeds when all four outputs
    lie on the right side of 1/2 at the end.
    """
    if optimizer not in ("adam", "sgd"):
        raise unknown("optimizer", optimizer, ("adam", "sgd"))
    x, y = points(coding)
    now = {k: v.clone().requires_grad_() for k, v in start.items()}
    lr = {k: rates.reshape(-1, *[1] * (v.ndim - 1)).to(v) for k, v in now.items()}
    first, second = ({k: torch.zeros_like(v) for k, v in start.items()} for _ in range(2))
    for epoch in range(1, epochs + 1):
        loss = (
            (net.outputs(now, x) - y).square().mean(1).sum()
        )  # copies do not touch: each has its own gradient
        gradients = torch.autograd.grad(loss, list(now.values()))
        with torch.no_grad():
            for (k, p), g in zip(now.items(), gradients, strict=True):
                if optimizer == "sgd":
                    p -= lr[k] * g
                    continue
                first[k].lerp_(g, 0.1)
                second[k].lerp_(g * g, 0.001)
                p -= lr[k] * first[k] / (1 - 0.9**epoch) / ((second[k] / (1 - 0.999**epoch)).sqrt() + 1e-8)
            net.project(now)
    end = {k: v.detach() for k, v in now.items()}
    outputs = net.outputs(end, x)
    right = torch.isfinite(outputs) & ((outputs > 0.5) == (y > 0.5))
    return Runs(start, end, outputs, right.all(1))


def _draw(rates: Sequence[float], table: Mapping[str, list[float]], ends: Parameters | None) -> Any:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, shares in table.items():
        left.semilogx(rates, shares, marker="o", label=name)
    left.set(xlabel="learning rate", ylabel="share of runs that solve XOR", ylim=(-0.05, 1.05))
    left.legend()
    if ends is not None:
        (w1, w2), a = ends["w"][0].tolist(), float(ends["a"][0])
        grid = torch.linspace(-1.6, 1.6, 201)
        z = w1 * grid[None, :] + w2 * grid[:, None]
        right.contourf(grid, grid, (prelu(z, a) > 0.5).float(), levels=[-0.5, 0.5, 1.5], alpha=0.4)
        path = trajectory((1.0, 0.5))
        right.plot(path[:, 0], path[:, 1], "k.-", label="(w1, w2) under gradient descent")
        right.legend()
    x, y = points()
    right.scatter(x[:, 0], x[:, 1], c=y, edgecolors="k", zorder=3)
    right.set(xlabel="x1", ylabel="x2", title="a strip between two parallel lines")
    return figure


def _small(generator: torch.Generator) -> tuple[Any, ...]:
    return ("prelu", "relu"), (0.01, 0.1), 5, 200


@paper(
    "prelu_xor",
    example=_small,
    invariances={
        "order of the models": lambda models, *rest: (models[::-1], *rest),
        "order of the rates": lambda models, rates, *rest: (models, rates[::-1], *rest),
    },
)
def sweep(
    models: Sequence[str] = ("prelu", "gcu", "mlp", "relu", "leaky", "linear"),
    rates: Sequence[float] = RATES,
    runs: int = 100,
    epochs: int = 1000,
    coding: str = "signed",
    optimizer: str = "adam",
    seed: int = 0,
) -> Finding:
    """Find at which learning rates each model solves XOR: the share of `runs` from standard normal weights.

    Args:
        models: names in MODELS; all start from the same draws, and from the same ones at every rate.
        rates: learning rates; eleven from 1e-4 to 10.
        runs: starting points per rate.
        epochs: full-batch steps.
        coding: "signed" (-1, 1) or "bits" (0, 1).
        optimizer: "adam" or "sgd".
        seed: decides the starting points.

    Returns a Finding; `details["shares"]` maps a model to its shares by rate, `details["runs"]` to its `Runs`
    (rate by rate).
    """
    shares, trained, numbers = {}, {}, {}
    for name in models:
        if name not in MODELS:
            raise unknown("model", name, MODELS)
        start = MODELS[name].start(runs, torch.Generator().manual_seed(seed))
        start = {k: v.repeat(len(rates), *[1] * (v.ndim - 1)) for k, v in start.items()}
        lr = torch.tensor(rates, dtype=torch.float64).repeat_interleave(runs)
        found = train(MODELS[name], start, lr, epochs=epochs, coding=coding, optimizer=optimizer)
        shares[name], trained[name] = found.success.reshape(len(rates), runs).double().mean(1).tolist(), found
        numbers[f"{name}: rates at 100 %"] = float(sum(share == 1 for share in shares[name]))
        numbers[f"{name}: best share"] = max(shares[name])
    widest = max(models, key=lambda name: numbers[f"{name}: rates at 100 %"])
    solved = trained["prelu"] if "prelu" in trained and bool(trained["prelu"].success.any()) else None
    ends = {k: v[solved.success] for k, v in solved.end.items()} if solved else None
    return Finding(
        numbers,
        f"Of {len(rates)} learning rates, {widest} solves XOR in every run at "
        f"{numbers[f'{widest}: rates at 100 %']:.0f}, the most of the models compared.",
        lambda: _draw(rates, shares, ends),
        {"shares": shares, "runs": trained},
    )


@claim(
    "prelu_xor",
    "A single-layer net with PReLU solves XOR, succeeding over a wider range of learning rates than an MLP or GCU.",
    figure="100% success rate, three learnable parameters",
    seeds=5,
    holds=all_of(
        at_least(5, of="prelu_rates", by="every"),
        above(0, of="over_mlp", by="every"),
        at_least(0, of="over_gcu", by="every"),
        at_most(0, of="other_rates", by="every"),
    ),
)
def wider_range(budget: Budget, seed: int) -> Evidence:
    """Learning rates, of eleven, at which all runs succeed: PReLU, against the MLP 2-2-1 (tanh), GCU and others."""
    found = sweep(runs=budget.pick(quick=100, full=1000), seed=seed).numbers
    rates = {
        name: found[f"{name}: rates at 100 %"] for name in ("prelu", "gcu", "mlp", "relu", "leaky", "linear")
    }
    return Evidence(
        prelu_rates=rates["prelu"],
        over_mlp=rates["prelu"] - rates["mlp"],
        over_gcu=rates["prelu"] - rates["gcu"],
        other_rates=max(rates[name] for name in ("relu", "leaky", "linear")),
    )


@claim(
    "prelu_xor",
    "PReLU enables this by being able to reverse the sign of its negative slope.",
    seeds=5,
    holds=all_of(
        at_most(0.1, of="clamped_share", by="every"), at_most(0, of="solved_without_reversal", by="every")
    ),
)
def reversed_slope(budget: Budget, seed: int) -> Evidence:
    """Best share of runs solved with the slope held at 0 or above; solved runs that end with a slope above 0.

    For bits 0 and 1, without a rule: shares solved by equal or opposite signs of the first weights, and the
    share of same-sign runs that end in the trap, where the outputs at (1, 0) and (0, 1) are both 1/3.
    """
    runs = budget.pick(quick=100, full=1000)
    free = sweep(("prelu", "prelu_clamped"), runs=runs, seed=seed)
    bits = sweep(("prelu",), runs=runs, coding="bits", seed=seed).details["runs"]["prelu"]
    solved = free.details["runs"]["prelu"]
    same = bits.start["w"].prod(1) > 0
    trapped = ((bits.outputs[:, 1:3] - 1 / 3).abs() < 0.02).all(1)
    return Evidence(
        clamped_share=free.numbers["prelu_clamped: best share"],
        solved_without_reversal=float((solved.success & (solved.end["a"][:, 0] >= 0)).sum()),
        bits_same_sign=float(bits.success[same].double().mean()),
        bits_opposite_sign=float(bits.success[~same].double().mean()),
        bits_trapped=float(trapped[same].double().mean()),
    )
