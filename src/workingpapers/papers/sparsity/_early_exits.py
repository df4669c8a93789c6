"""Leaving a network early: what each exit costs, thresholds for a budget, and networks to compare with.

A network with exits has `exits`, a number, `start(x) -> state` and `advance(number, state) -> (logits, state)`,
where a state is a tuple of tensors with examples in their first dimension; its forward gives all exits' logits.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Answers:
    """The answers of a network whose examples leave early.

    Attributes:
        logits: (N, K), of the exit that each example took.
        exits: (N,), which one, from 0.
        fractions: share of the examples by exit.
    """

    logits: Tensor
    exits: Tensor
    fractions: list[float] = field(repr=False)


@torch.no_grad()
def predict(model: Any, x: Tensor, thresholds: Sequence[float]) -> Answers:
    """Answer each example at the first exit whose largest probability reaches its threshold, and go no further.

    `thresholds` are those of all exits but the last, which takes what is left; 0 takes all, above 1 none.
    """
    if len(thresholds) != model.exits - 1:
        raise WorkingPapersError(
            f"all {model.exits} exits but the last have thresholds; got {len(thresholds)}"
        )
    model.eval()
    state, left = model.start(x), torch.arange(len(x), device=x.device)
    exits = torch.full((len(x),), model.exits - 1, device=x.device)
    parts: list[tuple[Tensor, Tensor]] = []
    for number in range(model.exits):
        logits, state = model.advance(number, state)
        sure = torch.ones(len(logits), dtype=torch.bool, device=x.device)
        if number < len(thresholds):
            sure = logits.softmax(1).amax(1) >= thresholds[number]
        parts.append((left[sure], logits[sure]))
        exits[left[sure]] = number
        left, state = left[~sure], tuple(t[~sure] for t in state)
        if not len(left):
            break
    where, logits = (torch.cat(some) for some in zip(*parts, strict=True))
    fractions = [float((exits == i).double().mean()) for i in range(model.exits)]
    return Answers(torch.empty_like(logits).index_copy(0, where, logits), exits, fractions)


@torch.no_grad()
def exit_costs(model: Any, x: Tensor) -> list[int]:
    """Return the multiply-adds of one example until each exit, from running `x` (1, C, H, W)."""
    from torch.utils.flop_counter import FlopCounterMode

    counter, model = FlopCounterMode(display=False), copy.deepcopy(model).requires_grad_(False)
    found = []
    model.eval()
    with counter:
        state = model.start(x[:1])
        for number in range(model.exits):
            _, state = model.advance(number, state)
            found.append(counter.get_total_flops() // 2)
    return found


def mean_cost(fractions: Sequence[float], costs: Sequence[float]) -> float:
    """Return the mean cost of examples that leave in these shares."""
    return sum(f * c for f, c in zip(fractions, costs, strict=True))


def geometric(q: float, exits: int) -> list[float]:
    """Return shares of exits in proportion to q, q^2, q^3, ..."""
    powers = [q ** (i + 1) for i in range(exits)]
    return [p / sum(powers) for p in powers]


def thresholds_for(sure: Tensor, shares: Sequence[float]) -> list[float]:
    """Return thresholds at which these shares of examples leave, from largest probabilities by exit (E, N)."""
    left = torch.ones(sure.shape[1], dtype=torch.bool)
    found = []
    for number, share in enumerate(shares[:-1]):
        ordered = sure[number, left].sort(descending=True).values
        count = min(math.floor(share * sure.shape[1]), len(ordered))
        found.append(float(ordered[count - 1]) if count else 2.0)
        left &= sure[number] < found[-1]
    return found


@torch.no_grad()
def solve_thresholds(
    model: Any, x: Tensor, budget: float, costs: Sequence[float] | None = None
) -> tuple[list[float], float]:
    """Return thresholds whose mean cost on validation images `x` is at most `budget` multiply-adds, and that cost.

    The shares of the exits are geometric, as in MSDNet; their ratio is found by halving.

    Raises:
        WorkingPapersError: where the budget is below the cost of the first exit.
    """
    costs = exit_costs(model, x) if costs is None else costs
    if budget < costs[0]:
        raise WorkingPapersError(
            f"the first exit costs {costs[0]:,} multiply-adds; the budget is {budget:,.0f}"
        )
    model.eval()
    outputs = [model(part) for part in x.split(500)]
    sure = torch.stack(
        [torch.cat([o[i].softmax(1).amax(1) for o in outputs]) for i in range(model.exits)]
    ).cpu()

    def cost_of(thresholds: list[float]) -> float:
        exits = torch.full((sure.shape[1],), model.exits - 1)
        for number in reversed(range(len(thresholds))):
            exits[sure[number] >= thresholds[number]] = number
        return float(torch.tensor(costs, dtype=torch.float64)[exits].mean())

    best = [0.0] * (model.exits - 1)
    low, high = -12.0, 12.0
    for _ in range(40):
        middle = (low + high) / 2
        trial = thresholds_for(sure, geometric(math.exp(middle), model.exits))
        if cost_of(trial) <= budget:
            low, best = middle, trial
        else:
            high = middle
    return best, cost_of(best)


def budgeted_predict(model: Any, x: Tensor, validation: Tensor, budget: float) -> Answers:
    """Answer images with a mean cost of about `budget` multiply-adds, thresholds solved on validation images."""
    return predict(model, x, solve_thresholds(model, validation, budget)[0])


class Staged(nn.Module):
    """A backbone with linear exits on the pooled features of its last stages.

    Args:
        stem, stages: modules, one after the other.
        widths: channels behind each stage.
        classes: number of outputs.
        early: whether stages before the last have exits, beginning with the second; else there is only the last.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        widths: Sequence[int],
        classes: int,
        early: bool = True,
    ) -> None:
        super().__init__()
        self.stem, self.stages = stem, nn.ModuleList(stages)
        self.at = list(range(1, len(widths))) if early else [len(widths) - 1]
        self.heads = nn.ModuleList(nn.Linear(widths[i], classes) for i in self.at)
        self.exits = len(self.at)

    def start(self, x: Tensor) -> State:
        """Return the state behind the stem."""
        return (self.stem(x),)

    def advance(self, number: int, state: State) -> tuple[Tensor, State]:
        """Return the logits of an exit and the state there."""
        (x,) = state
        for i in range(self.at[number - 1] + 1 if number else 0, self.at[number] + 1):
            x = self.stages[i](x)
        logits: Tensor = self.heads[number](x.mean((2, 3)))
        return logits, (x,)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of all exits, (B, K) each."""
        return all_exits(self, x)


def all_exits(model: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Return the logits of all exits of a network."""
    state, found = model.start(x), []
    for number in range(model.exits):
        logits, state = model.advance(number, state)
        found.append(logits)
    return tuple(found)


def exits_loss(
    outputs: Sequence[Tensor],
    targets: Tensor,
    weights: Sequence[float] = (0.5, 0.5, 1.0, 1.0),
    alpha: float = 0.5,
    tau: float = 1.0,
) -> Tensor:
    """Return the weighted cross-entropies of all exits, and alpha times what the earlier ones learn from the last.

    That is tau^2 KL(last || exit) at temperature tau, without a gradient for the last.
    """
    loss = sum(
        (w * F.cross_entropy(y, targets) for w, y in zip(weights, outputs, strict=True)), torch.zeros(())
    )
    truth = (outputs[-1].detach() / tau).log_softmax(1)
    for y in outputs[:-1]:
        taught = F.kl_div((y / tau).log_softmax(1), truth, reduction="batchmean", log_target=True)
        loss = loss + alpha * tau**2 * taught
    return loss
