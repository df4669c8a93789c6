"""Rational activations: quotients of polynomials with learned coefficients, for each layer or one for all.

    R(x) = sum_{j=0..m} a_j x^j / (1 + |sum_{k=1..n} b_k x^k|),   (m, n) = (5, 4), started at a fit to leaky ReLU

One R that all layers share is the joint ("recurrent") rational.  Without the absolute value, x + R(x) is a rational
of the same degrees exactly if m > n: a skip connection can be absorbed.

Paper: "Adaptive Rational Activations to Boost Deep Reinforcement Learning" (2021), Sections 2 and 3.
"""

import copy
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, any_of, at_least
from workingpapers.papers.activations._dqn import environment, play
from workingpapers.papers.activations._rational import Base, fit_rational, prepare, rational
from workingpapers.surgery import replace_modules
from workingpapers.surgery.choose import Modules
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, initialise, mlp


@paper(
    "adaptive_rationals",
    variants=[{"version": "A"}, {"base": "tanh", "degrees": (3, 2)}, {"base": "gelu", "degrees": (4, 3)}],
)
class Rational(nn.Module):
    """Apply `rational` with learned coefficients to a tensor of any shape.

    Args:
        base: function that the coefficients start near, on [-3, 3]: leaky_relu (slope 0.01), relu, tanh, sigmoid,
            gelu, swish, identity, or a function of a numpy array.
        degrees: of numerator and denominator; (5, 4) in the paper.
        version: denominator "B", 1 + |sum b_k x^k|; "A", 1 + sum |b_k x^k|; "plain", 1 + sum b_k x^k, unsafe.
    """

    def __init__(
        self, base: str | Base = "leaky_relu", degrees: tuple[int, int] = (5, 4), version: str = "B"
    ) -> None:
        super().__init__()
        self.base = base if isinstance(base, str) else getattr(base, "__name__", "a function")
        self.version = version
        a, b = fit_rational(base, degrees, version)
        self.numerator = nn.Parameter(torch.tensor(a, dtype=torch.float32))
        self.denominator = nn.Parameter(torch.tensor(b, dtype=torch.float32))

    @property
    def degrees(self) -> tuple[int, int]:
        """The degrees (m, n)."""
        return len(self.numerator) - 1, len(self.denominator)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        prepare(*self.degrees, self.version)  # unpickled into a process that may not know the formula yet

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        return rational(x, self.numerator, self.denominator, self.version)

    def extra_repr(self) -> str:
        """Name where it started, the degrees and the version."""
        return f"base={self.base}, degrees={self.degrees}, version={self.version}"


def is_activation(name: str, module: nn.Module) -> bool:
    """Tell whether a module is a `Rational` or one of torch's elementwise activations."""
    mixing = (nn.MultiheadAttention, nn.GLU, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)
    elementwise = type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, mixing)
    return elementwise or isinstance(module, Rational)


def _shared_example(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    return mlp([5, 8, 8, 3]), torch.randn(4, 5, generator=generator)


@paper("adaptive_rationals", part="joint", kind="transform", example=_shared_example, preserves=None)
def replace_activations(
    model: nn.Module,
    share: bool = True,
    modules: Modules = is_activation,
    base: str | Base = "leaky_relu",
    degrees: tuple[int, int] = (5, 4),
) -> nn.Module:
    """Return a copy of `model` with rational activations: one for all places (joint), or one for each.

    `modules` chooses what is replaced, by default every activation of torch's and every rational.
    """
    joint = Rational(base, degrees) if share else None
    return replace_modules(model, modules, lambda old: joint or Rational(base, degrees))


def parameter_groups(
    model: nn.Module, lr: float, rational_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return groups for an optimizer: the rationals' coefficients at a rate of their own and without decay."""
    own = {id(p): p for m in model.modules() if isinstance(m, Rational) for p in m.parameters()}
    rest = [p for p in model.parameters() if id(p) not in own]
    groups = [
        {"params": rest, "lr": lr, "weight_decay": weight_decay},
        {"params": list(own.values()), "lr": lr if rational_lr is None else rational_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Skip(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` plus what `inner` makes of it."""
        return x + cast(Tensor, self.inner(x))


def add_identity(a: Tensor, b: Tensor) -> Tensor:
    """Return the numerator of x + P(x) / Q(x) over the same plain Q, as long as `a` (Section 2, residual blocks).

    It is P + x Q, of degree n + 1: it fits only if m > n, else this raises.
    """
    if len(a) - 1 <= len(b):
        raise WorkingPapersError(
            f"the numerator of x + R(x) has degree {len(b) + 1}, which takes m > n; got ({len(a) - 1}, {len(b)})"
        )
    moved = a.clone()
    moved[1] += 1
    moved[2 : len(b) + 2] += b
    return moved


def _skip_example(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        skips = [Skip(Rational("tanh", degrees, "plain")) for degrees in ((3, 2), (5, 4))]
        model = nn.Sequential(nn.Linear(6, 6), skips[0], nn.Linear(6, 6), skips[1])
    return model, torch.randn(9, 6, generator=generator)


@paper("adaptive_rationals", part="absorb", kind="transform", example=_skip_example, preserves=1e-5)
def residual_absorb(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which every `Skip` of a plain rational is one rational, the same function.

    Raises:
        WorkingPapersError: where m > n fails, or a denominator has an absolute value, with which no rational of
            the same form is left.
    """

    def absorbed(skip: nn.Module) -> nn.Module:
        inner = copy.deepcopy(cast(Rational, cast(Skip, skip).inner))  # others may share it
        if inner.version != "plain":
            raise WorkingPapersError(
                f"a skip is absorbed by a rational with a plain denominator; got version {inner.version!r}"
            )
        inner.numerator.data = add_identity(inner.numerator.detach(), inner.denominator.detach())
        return inner

    def absorbs(name: str, module: nn.Module) -> bool:
        return isinstance(module, Skip) and isinstance(module.inner, Rational)

    if not any(absorbs(name, m) for name, m in model.named_modules()):
        return copy.deepcopy(model)
    return replace_modules(model, absorbs, absorbed)


def input_histograms(model: nn.Module, x: Tensor, bins: int = 40) -> dict[str, tuple[Tensor, Tensor]]:
    """Return for each rational of `model` what it gets on the batch `x`: counts (bins,) and edges (bins + 1,)."""
    found = collect(model, x, Rational, side="input")
    return {name: torch.histogram(z.float().cpu(), bins) for name, z in found.items()}


def movement(before: Rational, after: Rational) -> float:
    """Return the largest change of the function on [-3, 3]."""
    x = torch.linspace(-3, 3, 601)
    with torch.no_grad():
        return float((before(x) - after(x)).abs().max())


ARMS = ("relu", "silu", "rational", "joint")


def network(arm: str, sizes: list[int], seed: int) -> nn.Module:
    """Return a perceptron of one of `ARMS`; all start from the same weights."""
    model = initialise(partial(mlp, sizes, nn.SiLU if arm == "silu" else nn.ReLU), seed)
    return model if arm in ("relu", "silu") else replace_activations(model, share=arm == "joint")


@claim(
    "adaptive_rationals",
    "Learnable rational activations, shared or not, bring consistent gains on Atari and make simple DQN a solid "
    "agent.",
    figure="competitive with DDQN and Rainbow",
    seeds=5,
    holds=all_of(
        any_of(
            *(
                all_of(at_least(0.0, of=f"{arm}_over_relu"), at_least(0.0, of=f"{arm}_over_most_of_silu"))
                for arm in ("rational", "joint")
            )
        ),
        at_least(0.05, of="moved", by="every"),
    ),
)
def cart_pole(budget: Budget, seed: int) -> Evidence:
    """Returns of DQN on CartPole-v1 with a perceptron 2x64: the last 20 training episodes and 10 greedy ones.

    `over_most_of_silu` is the difference to 0.9 of SiLU's; `moved` the least change of a rational on [-3, 3].
    """
    steps, every = budget.pick(quick=(6000, 4), full=(50_000, 1))
    env, scores, moved = environment("CartPole-v1"), {}, []
    for arm in ARMS:
        model = network(arm, [4, 64, 64, 2], seed)
        optimizer = torch.optim.Adam(parameter_groups(model, 1e-3))
        scores[arm] = play(model, env, optimizer, steps=steps, seed=seed, every=every).score
        moved += [movement(Rational(), m) for m in model.modules() if isinstance(m, Rational)]
    env.close()
    gains = {f"{arm}_over_relu": scores[arm] - scores["relu"] for arm in ("rational", "joint")}
    most = {f"{arm}_over_most_of_silu": scores[arm] - 0.9 * scores["silu"] for arm in ("rational", "joint")}
    return Evidence(moved=min(moved), **gains, **most, **scores)


def relearn(model: nn.Module, x: Tensor, y: Tensor, *, tasks: int, steps: int, seed: int) -> list[float]:
    """Train `model` on one renaming of the classes after another; return the training accuracy after each."""
    generator, found = torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.Adam(parameter_groups(model, 1e-3))
    for _ in range(tasks):
        labels = torch.randperm(int(y.max()) + 1, generator=generator)[y]
        for _ in range(steps):
            optimizer.zero_grad()
            chosen = torch.randint(len(x), (64,), generator=generator)
            loss = nn.functional.cross_entropy(model(x[chosen]), labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            found.append(float((model(x).argmax(1) == labels).double().mean()))
    return found


@claim(
    "adaptive_rationals",
    "Trainable activations suit environments that constantly change.",
    seeds=5,
    holds=all_of(at_least(0.0, of="rational_over_relu"), at_least(0.9, of="rational")),
)
def changing_labels(budget: Budget, seed: int) -> Evidence:
    """Training accuracy on the digits over the last 4 of 12 tasks, each with the classes renamed, without reset."""
    split = images("digits", seed=seed)
    tasks, steps = budget.pick(quick=(12, 150), full=(50, 300))
    accuracy = {}
    for arm in ("relu", "rational", "joint"):
        model = network(arm, [64, 64, 64, 10], seed)
        runs = relearn(model, split.x_train.flatten(1), split.y_train, tasks=tasks, steps=steps, seed=seed)
        accuracy[arm] = sum(runs[-4:]) / 4
    gains = {f"{arm}_over_relu": accuracy[arm] - accuracy["relu"] for arm in ("rational", "joint")}
    return Evidence(**gains, **accuracy)
