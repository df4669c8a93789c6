"""Shortcut learning: which of two features does a model use, the more predictive one or the more available one?

    x = a_s z_s w_s + a_c z_c w_c,      z_i | y ~ N(mu_i y, 1),   mu_i = Phi^-1(rho_i)
    bias = reliance(model) - reliance(optimal),   reliance = agreement with sign(z_s) - agreement with sign(z_c)

Predictivities rho and availabilities (amplitudes a, or depths of nesting) are set apart.  Reliance is measured
where the features disagree; a bias above 0 is reliance on the available feature beyond what is best.

Paper: "On the Foundations of Shortcut Learning" (2023), arXiv 2310.16228.  The measure of reliance is
    reconstructed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, above, all_of, at_least, at_most
from workingpapers.papers.theory._two_features import (
    World,
    decisions,
    kernel_regression,
    optimal,
    probes,
    reliance,
)
from workingpapers.tasks import Budget, fit, initialise, mlp

RATIOS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def world_of(ratio: float, rho: tuple[float, float] = (0.8, 0.9), seed: int = 0, **options: Any) -> World:
    """Return the world whose shortcut is `ratio` times as available as its core, by amplitudes with product 1."""
    if not ratio > 0:
        raise WorkingPapersError(f"a ratio of amplitudes is above 0; got {ratio}")
    return World(rho, (ratio**0.5, ratio**-0.5), seed=seed, **options)


@dataclass(frozen=True)
class Item:
    """One world: what to learn from, and what to decide; the answer is +1 or -1 for each probe."""

    id: str
    question: str
    world: World
    seed: int
    examples: int
    latents: Tensor = field(repr=False)  # of the probes, (P, 2)
    answer: Tensor = field(repr=False)  # the optimal decisions, (P,)

    def train(self) -> tuple[Tensor, Tensor]:
        """Return inputs (examples, dim) and labels (examples,) in {-1, 1}."""
        z, y = self.world.latents(self.examples, self.seed)
        return self.world.embed(z), y

    def probes(self) -> Tensor:
        """Return the inputs (P, dim) to decide on."""
        return self.world.embed(self.latents)


@paper("shortcut_foundations")
class Shortcuts:
    """Generate worlds with a shortcut and a core feature, and score how near a model's reliance is to the best.

    Args:
        ratios: of the amplitudes of shortcut and core, in turn.
        rho: predictivities of shortcut and core.
        nesting: depths of the random networks that hide them.
        correlation: of the two features given the label.
        examples: to learn from, for each item.
        side: probes are a grid of side x side cells with one probe at random in each.
        dim: of the inputs.
    """

    def __init__(
        self,
        ratios: Sequence[float] = RATIOS,
        rho: tuple[float, float] = (0.8, 0.9),
        nesting: tuple[int, int] = (0, 0),
        correlation: float = 0.0,
        examples: int = 3200,
        side: int = 30,
        dim: int = 100,
    ) -> None:
        if not ratios or examples < 2 or side < 2:
            raise WorkingPapersError(
                "shortcut items need a ratio, at least 2 examples and a side of at least 2"
            )
        self.ratios, self.examples, self.side = tuple(ratios), examples, side
        self._world: dict[str, Any] = {"rho": rho, "nesting": nesting, "correlation": correlation, "dim": dim}
        world_of(self.ratios[0], **self._world)  # refuse what makes no world

    def items(self, seed: int, n: int) -> list[Item]:
        """Return `n` items; the first ones of a longer list are those of a shorter one."""
        return [self._item(seed, number) for number in range(n)]

    def _item(self, seed: int, number: int) -> Item:
        own = int(torch.randint(2**31, (number + 1,), generator=torch.Generator().manual_seed(seed))[number])
        ratio = self.ratios[number % len(self.ratios)]
        world = world_of(ratio, seed=own, **self._world)
        z = probes(self.side, seed=own)
        said = (
            f"learn a label from {self.examples} examples, decide {len(z)} probes; amplitude ratio {ratio:g}"
        )
        return Item(f"shortcut-{seed}-{number}", said, world, own, self.examples, z, optimal(world, z).sign())

    def bias(self, item: Item, answer: Any) -> float:
        """Return the reliance of decisions on the shortcut beyond the best decisions', from -2 to 2.

        `answer` is a value by whose sign a probe is decided, for each (P,), or a model of the inputs.
        """
        said = decisions(answer, item.probes()) if isinstance(answer, nn.Module) else answer
        if not isinstance(said, Tensor) or said.shape != item.answer.shape:
            raise WorkingPapersError(
                f"an answer has a value for each of {len(item.answer)} probes, or is a model; "
                f"got {answer!r:.60}"
            )
        return reliance(said, item.latents) - reliance(item.answer, item.latents)

    def score(self, item: Item, answer: Any) -> float:
        """Return 1 - |bias| / 2, and 0 for what is no answer; 1 is the reliance that is best."""
        if not isinstance(answer, nn.Module | Tensor):
            return 0.0
        return max(0.0, 1 - abs(self.bias(item, answer)) / 2)


def bias_of(said: Tensor, world: World, z: Tensor) -> float:
    """Return how much more decisions (N,) on latents `z` (N, 2) rely on the shortcut than the best ones."""
    return reliance(said, z) - reliance(optimal(world, z), z)


def logistic(loss_of: Tensor, y: Tensor) -> Tensor:
    """Return the mean logistic loss of outputs (N, 1) for labels (N, 1) in {-1, 1}."""
    return F.softplus(-loss_of * y).mean()


def trained(
    depth: int, x: Tensor, y: Tensor, steps: int, seed: int, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Module:
    """Return an MLP with `depth` hidden layers of 128 trained on x (N, D), y (N,) in {-1, 1} by the logistic loss.

    Adam at 1e-3 falling to 0; the linear model (depth 0) has a convex loss and is taken to its minimum by LBFGS.
    """
    sizes = [x.shape[1], *[128] * depth, 1]
    model = initialise(lambda: mlp(sizes, activation), seed)
    split = Split(x, y[:, None], x[:64], y[:64, None], 0, "two features")
    if depth:
        fit(model, split, steps=steps, loss=logistic, seed=seed, schedule="cosine", every=10**6)
        return model
    double = model.double()
    optimizer = torch.optim.LBFGS(double.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = logistic(double(x.double()), y[:, None].double())
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return double.float()


def biases(
    world: World, depths: Sequence[int], examples: int, steps: int, seed: int, **options: Any
) -> dict[int, float]:
    """Return the bias of trained MLPs by depth in one world; `options` as of `trained`."""
    z, y = world.latents(examples, seed)
    x, at = world.embed(z), probes()
    return {
        depth: bias_of(decisions(trained(depth, x, y, steps, seed, **options), world.embed(at)), world, at)
        for depth in depths
    }


def predicted(world: World, examples: int, seed: int, ridge: float = 1.0) -> float:
    """Return the bias of regression by the neural tangent kernel of one hidden ReLU layer on the same data."""
    z, y = world.latents(examples, seed)
    at = probes()
    return bias_of(kernel_regression(world.embed(z), y, world.embed(at), ridge), world, at)


@claim(
    "shortcut_foundations",
    "Linear models are little biased, but one hidden layer of ReLU or Tanh units already favours the easily "
    "available shortcut.",
    seeds=10,
    holds=all_of(
        at_most(0.05, of="linear_largest"),
        at_least(0.1, of="relu_gain"),
        at_least(0.9, of="relu_spearman"),
        above(0, of="tanh_gain"),
    ),
)
def one_hidden_layer(budget: Budget, seed: int) -> Evidence:
    """MLPs of 0, 1, 2 and 4 hidden ReLU layers and one of tanh, amplitude ratios 1, 4, 16 and 64, fresh data a
    seed.

    `linear_largest` is the largest |bias| without a hidden layer; gains are over it at the ratio 16.
    """
    from scipy.stats import spearmanr

    examples, steps = 3200, budget.pick(quick=1200, full=5000)
    found, tanh, ratios = {}, {}, (1.0, 4.0, 16.0, 64.0)
    for ratio in ratios:
        world = world_of(ratio, seed=seed)
        found[ratio] = biases(world, (0, 1, 2, 4), examples, steps, seed)
        tanh[ratio] = biases(world, (1,), examples, steps, seed, activation=nn.Tanh)[1]
    every = {f"depth_{d}_at_{r:g}": bias for r, by_depth in found.items() for d, bias in by_depth.items()}
    return Evidence(
        linear_largest=max(abs(found[r][0]) for r in ratios),
        relu_gain=found[16.0][1] - found[16.0][0],
        relu_spearman=float(spearmanr(ratios, [found[r][1] for r in ratios]).statistic),
        tanh_gain=tanh[16.0] - found[16.0][0],
        **every,
    )


@claim(
    "shortcut_foundations",
    "A neural tangent kernel account is consistent with the observed bias.",
    seeds=5,
    holds=at_least(0.8, of="pearson"),
)
def kernel_account(budget: Budget, seed: int) -> Evidence:
    """Correlation, over amplitude ratios 1, 4, 16, 64 and shortcuts of predictivity 0.7, 0.8 and 0.9, of the bias
    that kernel regression predicts with that of trained networks with one hidden ReLU layer, on the same data.
    """
    from scipy.stats import pearsonr

    examples, steps = budget.pick(quick=(1600, 600), full=(3200, 5000))
    theory, nets = [], []
    for rho in (0.7, 0.8, 0.9):
        for ratio in (1.0, 4.0, 16.0, 64.0):
            world = world_of(ratio, (rho, 0.9), seed)
            theory.append(predicted(world, examples, seed))
            nets.append(biases(world, (1,), examples, steps, seed)[1])
    return Evidence(
        pearson=float(pearsonr(theory, nets).statistic),
        net_at_64=nets[7],
        kernel_at_64=theory[7],
        net_at_1=nets[4],
        kernel_at_1=theory[4],
    )
