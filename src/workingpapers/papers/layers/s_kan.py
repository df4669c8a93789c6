"""S-KAN: Kolmogorov-Arnold layers whose nodes choose the family that their edges' functions come from.

    y_j = sum_f w_jf sum_i psi_f,ij(x_i),    w_j = softmax(a_j / tau),    psi_f,ij in the span of family f

Trained in three stages: all families together; a selection, in which tau falls from 1 to 0.1 and the entropy of w
costs; and fine-tuning of what each node chose.  The layers stand in `_selectable.py`.

Paper: "Activation Space Selectable Kolmogorov-Arnold Networks" (2024), Methods; reconstructed: the pool's members,
the seven target functions and the form of the weights are inferred from summaries.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.layers._selectable import POOL, Pool, PrunedSKAN, SKANConv2d, SKANLinear
from workingpapers.surgery import replace_modules
from workingpapers.tasks import Budget, fit, initialise, mlp

__all__ = ["PrunedSKAN", "SKANConv2d", "SKANLinear", "SKANTrainer", "prune"]


def network(widths: Sequence[int], pool: Pool = POOL) -> nn.Sequential:
    """Return S-KAN layers of the given widths behind one another."""
    return nn.Sequential(*(SKANLinear(a, b, pool=pool) for a, b in pairwise(widths)))


def _selective(model: nn.Module) -> list[SKANLinear]:
    return [m for m in model.modules() if isinstance(m, SKANLinear)]


def _network_example(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    model = network([3, 4, 2], ("cheby", "fourier", "linear"))
    with torch.no_grad():
        for layer in _selective(model):
            assert layer.logits is not None
            layer.logits.copy_(torch.randn(layer.logits.shape, generator=generator))
            layer.choose()
    return model, torch.randn(5, 3, generator=generator)


@paper("s_kan", part="prune", kind="transform", example=_network_example, preserves=1e-6)
def prune(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which every selectable layer has its nodes' strongest families alone.

    The outputs stay where the nodes have chosen already (`SKANLinear.choose`, the trainer's last stage).
    """
    return replace_modules(model, (SKANLinear, PrunedSKAN), _pruned)


def _pruned(layer: nn.Module) -> nn.Module | None:
    return layer.pruned()[0] if isinstance(layer, SKANLinear) else None


def count_parameters(model: nn.Module) -> int:
    """Return how many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def plot_choices(model: nn.Module) -> Figure:
    """Draw how many nodes of each selectable layer of `model` weigh which family most."""
    layers = _selective(model)
    if not layers:
        raise WorkingPapersError("a plot of chosen families needs a model with selectable layers; got none")
    figure = Figure(figsize=(1.5 + 1.2 * len(layers), 3), layout="constrained")
    axes = figure.subplots()
    below = [0] * len(layers)
    for family in dict.fromkeys(f for layer in layers for f in layer.pool):
        nodes = [layer.names().count(family) for layer in layers]
        axes.bar([str(k + 1) for k in range(len(layers))], nodes, bottom=below, label=family)
        below = [b + n for b, n in zip(below, nodes, strict=True)]
    axes.set_xlabel("layer")
    axes.set_ylabel("nodes")
    axes.legend()
    return figure


def _fit_example(generator: torch.Generator) -> tuple[Any, ...]:
    model = network([2, 3, 1], ("cheby", "linear"))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    x = torch.rand(60, 2, generator=generator) * 2 - 1
    return model, x, x.prod(1, keepdim=True)


@paper("s_kan", part="trainer", kind="trainer", trains="fit", example=_fit_example, options={"total": 20})
class SKANTrainer:
    """Train a model with selectable layers in place by Adam, in three stages; without such layers plainly.

    Args:
        total: steps of the whole training; more may follow, as the last stage.
        stages: the shares of `total` at which the selection begins, and at which nodes choose.
        lr, last_lr: learning rate before and after the choice.
        entropy: weight of the entropy of w during the selection.
        coldest: what the temperature falls to, geometrically from 1, during the selection.
        batch: examples in a step; None takes all.
        seed: decides the batches.
    """

    def __init__(
        self,
        total: int = 600,
        stages: tuple[float, float] = (0.4, 0.7),
        lr: float = 1e-2,
        last_lr: float = 1e-3,
        entropy: float = 1e-3,
        coldest: float = 0.1,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= stages[0] <= stages[1] <= 1:
            raise WorkingPapersError(f"the stages begin at two rising shares of the training; got {stages}")
        if not 0 < coldest <= 1:
            raise WorkingPapersError(f"the temperature falls from 1 to a positive number; got {coldest}")
        self.total, self.stages, self.lr, self.last_lr = total, stages, lr, last_lr
        self.entropy, self.coldest, self.batch, self.seed = entropy, coldest, batch, seed
        self.done = 0
        self._optimizer: dict[str, Any] | None = None

    def stage(self) -> int:
        """Return the stage that the next step belongs to: 1 full, 2 selective, 3 pruned."""
        return 1 + sum(self.done >= round(share * self.total) for share in self.stages)

    def fit(self, model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> list[float]:
        """Take `steps` more steps on inputs x and targets y (numbers, or labels); return the loss of each."""
        layers = _selective(model)
        optimizer = torch.optim.Adam(model.parameters(), self.lr)
        if self._optimizer is not None:
            optimizer.load_state_dict(self._optimizer)
        losses = []
        model.train()
        for _ in range(steps):
            penalty = self._enter(layers, optimizer)
            chosen = self._chosen(len(x)).to(x.device)
            optimizer.zero_grad()
            outputs, targets = model(x[chosen]), y[chosen]
            loss = (F.mse_loss if y.is_floating_point() else F.cross_entropy)(outputs, targets)
            whole = loss
            if penalty:
                whole = loss + penalty * torch.stack([layer.entropy() for layer in layers]).sum()
            whole.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            self.done += 1
        self._optimizer = optimizer.state_dict()
        return losses

    def _enter(self, layers: list[SKANLinear], optimizer: torch.optim.Optimizer) -> float:
        """Set rate, temperature and choice for the next step; return the weight of the entropy."""
        stage = self.stage()
        optimizer.param_groups[0]["lr"] = self.lr if stage < 3 else self.last_lr
        if stage == 2:
            first, last = (round(share * self.total) for share in self.stages)
            done = (self.done - first + 1) / (last - first)
            for layer in layers:
                layer.temperature.fill_(self.coldest**done)
        if stage == 3:
            for layer in layers:
                if not bool(layer.chosen):
                    layer.choose()
        return self.entropy if stage == 2 and layers else 0.0

    def _chosen(self, count: int) -> Tensor:
        if self.batch is None or self.batch >= count:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.done)
        return torch.randint(count, (self.batch,), generator=generator)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later fit needs to go on bit for bit, beside the model."""
        return {"done": self.done, "optimizer": self._optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.done, self._optimizer = state["done"], state["optimizer"]


TARGETS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {  # inputs, function of x (N, inputs)
    "sine": (1, lambda x: torch.sin(5 * math.pi * x[:, 0])),
    "exponential": (1, lambda x: torch.exp(x[:, 0])),
    "absolute": (1, lambda x: x[:, 0].abs()),
    "step": (1, lambda x: x[:, 0].sign()),
    "bessel": (1, lambda x: torch.special.bessel_j0(20 * x[:, 0])),
    "product": (2, lambda x: x[:, 0] * x[:, 1]),
    "nested": (2, lambda x: torch.exp(torch.sin(math.pi * x[:, 0]) + x[:, 1].square())),
}


def target_data(name: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` points of [-1, 1]^d, (count, d), and the target function there, (count, 1)."""
    inputs, function = TARGETS[name]
    x = torch.rand(count, inputs, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x, function(x).unsqueeze(1)


def errors_on(name: str, steps: int, points: int, seed: int) -> dict[str, float]:
    """Return the test errors (RMSE) on one target: S-KAN after pruning, each family alone, an MLP as large."""
    x, y = target_data(name, points, 2 * seed)
    x_test, y_test = target_data(name, 512, 2 * seed + 1)
    inputs = x.shape[1]

    def trained(build: Callable[[], nn.Module]) -> nn.Module:
        model = initialise(build, seed)
        SKANTrainer(total=steps, seed=seed).fit(model, x, y, steps=steps)
        return model

    found = {"s_kan": prune(trained(lambda: network([inputs, 5, 1])))}
    hidden = max(1, round((count_parameters(found["s_kan"]) - 1) / (inputs + 2)))
    for family in POOL:
        found[family] = trained(lambda f=family: network([inputs, 5, 1], (f,)))  # type: ignore[misc]
    found["mlp"] = trained(lambda: mlp([inputs, hidden, 1], nn.SiLU))
    with torch.no_grad():
        return {arm: float(F.mse_loss(m(x_test), y_test)) ** 0.5 for arm, m in found.items()}


def mean_ranks(errors: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return each arm's mean rank over tasks, 1 for the least error (NaN the last)."""
    arms = list(errors[0])
    worst = [{a: math.inf if math.isnan(e[a]) else e[a] for a in arms} for e in errors]
    return {a: sum(1 + sum(e[b] < e[a] for b in arms) for e in worst) / len(worst) for a in arms}


@claim(
    "s_kan",
    "Letting each node choose among activation families outperforms baselines on seven function-fitting tasks and "
    "clearly exceeds MLPs of equal parameter count.",
    figure="seven function-fitting tasks",
    seeds=3,
    holds=all_of(at_most(1.1, of="over_best_family"), at_most(2.0, of="place"), at_most(0.5, of="over_mlp")),
)
def function_fitting(budget: Budget, seed: int) -> Evidence:
    """Geometric mean of the test errors on seven functions over the best family's and the MLP's; place by rank.

    The best family is the one with the lowest mean rank over the tasks.
    """
    steps, points = budget.pick(quick=(240, 256), full=(600, 512))
    errors = [errors_on(name, steps, points, seed) for name in TARGETS]
    ranks = mean_ranks(errors)
    mean = {arm: math.exp(sum(math.log(e[arm]) for e in errors) / len(errors)) for arm in ranks}
    best = min(POOL, key=lambda family: ranks[family])
    return Evidence(
        over_best_family=mean["s_kan"] / mean[best],
        over_mlp=mean["s_kan"] / mean["mlp"],
        place=1 + sum(ranks[arm] < ranks["s_kan"] for arm in ranks),
        rank=ranks["s_kan"],
    )


def image_network(layer: Callable[..., nn.Module], side: int, activation: bool) -> nn.Sequential:
    """Return two 3x3 convolutions (8 and 16 channels) with batch norm, ReLU or not, and pooling; a linear layer."""
    parts: list[nn.Module] = []
    for a, b in ((1, 8), (8, 16)):
        parts += [layer(a, b, 3, padding=1), nn.BatchNorm2d(b), *([nn.ReLU()] if activation else [])]
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(16 * (side // 4) ** 2, 10))


@claim(
    "s_kan",
    "A convolutional extension leads on common image classification sets.",
    figure="four image classification datasets",
    seeds=3,
    holds=all_of(at_least(0.93, of="accuracy"), at_least(-0.02, of="over_convolution")),
)
def image_classification(budget: Budget, seed: int) -> Evidence:
    """Accuracy on MNIST, and less that of the same network with ordinary convolutions and ReLU."""
    side, train = budget.pick(quick=(14, 3000), full=(28, 20000))
    split = images("mnist", train=train, test=budget.pick(quick=1000, full=5000), size=side, seed=seed)
    found = {}
    for name, layer in {"s_kan": SKANConv2d, "convolution": nn.Conv2d}.items():
        model = initialise(lambda layer=layer: image_network(layer, side, layer is nn.Conv2d), seed)  # type: ignore[misc]
        result = fit(model, split, epochs=budget.pick(quick=3, full=10), lr=3e-3, seed=seed)
        found[name] = 0.0 if result.diverged else result.metrics["accuracy"]
    return Evidence(accuracy=found["s_kan"], over_convolution=found["s_kan"] - found["convolution"])
