"""The best constant answer for a loss, how far predictions are from it, and what to do for a reward."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown

LOSSES = ("cross_entropy", "mse", "gaussian_nll")
Loss = Callable[[Tensor, Tensor], Tensor]


def optimal_constant(y: Tensor, loss: str, num_classes: int | None = None) -> Tensor:
    """Return the constant prediction with the least mean loss on the targets `y`.

    "cross_entropy": labels (N,) -> their frequencies (classes,); "mse": targets (N, ...) -> their mean (...);
    "gaussian_nll": targets (N,) or (N, 1) -> (mean, population variance).  `num_classes` defaults to the largest
    label and one.
    """
    if loss not in LOSSES:
        raise unknown("loss with a constant in closed form", loss, LOSSES)
    if len(y) == 0:
        raise WorkingPapersError("the best constant needs at least one target; got none")
    if loss == "cross_entropy":
        counts = torch.bincount(y.flatten(), minlength=num_classes or 0).to(torch.get_default_dtype())
        return counts / counts.sum()
    if loss == "mse":
        return y.to(torch.get_default_dtype()).mean(0) if not y.is_floating_point() else y.mean(0)
    flat = y.flatten().to(torch.get_default_dtype()) if not y.is_floating_point() else y.flatten()
    return torch.stack([flat.mean(), flat.var(correction=0)])


def minimised_constant(y: Tensor, loss: Loss, size: int, steps: int = 200) -> Tensor:
    """Return the constant output (size,) that minimises the mean of any `loss`, (outputs (N, size), y) -> scalar.

    Found by LBFGS from 0 in float64, so exact for losses that are convex in the output.
    """
    constant = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [constant],
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(constant.expand(len(y), size), y)
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    return constant.detach()


def distances(outputs: Tensor, constant: Tensor, loss: str) -> Tensor:
    """Return how far each output (N, ...) is from the constant, (N,).

    "cross_entropy": KL(constant || softmax(output)); "mse": squared distance; "gaussian_nll": outputs
    (N, 2) are mean and log-variance, KL(N(constant) || N(output)).
    """
    if loss == "cross_entropy":
        target = constant.to(outputs)
        own = (target * target.clamp_min(1e-30).log()).sum()
        return own - (target * outputs.log_softmax(-1)).sum(-1)
    if loss == "mse":
        return (outputs - constant.to(outputs)).flatten(1).square().sum(1)
    if loss != "gaussian_nll":
        raise unknown("loss with a constant in closed form", loss, LOSSES)
    mean, log_var = outputs[:, 0], outputs[:, 1]
    centre, variance = constant.to(outputs)
    ratio = (variance + (centre - mean).square()) / log_var.exp()
    divergence: Tensor = (log_var - variance.log() + ratio - 1) / 2
    return divergence


def reward_table(num_classes: int, right: float = 1.0, wrong: float = -4.0, abstain: float = 0.0) -> Tensor:
    """Return the reward (classes + 1, classes) of each action for each label; the last action is to abstain."""
    table = torch.full((num_classes + 1, num_classes), wrong)
    table.fill_diagonal_(right)
    table[-1] = abstain
    return table


def reward_loss(table: Tensor) -> Loss:
    """Return the loss by which a network with an output per action learns each action's reward (mean squared)."""

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(outputs, table.to(outputs).T[y])

    return loss


def optimal_action(y: Tensor, table: Tensor) -> int:
    """Return the action with the largest mean reward on labels `y` where the input is not looked at."""
    return int(table.T[y].mean(0).argmax())


def mean_reward(actions: Tensor, y: Tensor, table: Tensor) -> float:
    """Return the mean reward of actions (N,) on labels (N,)."""
    return float(table[actions, y].mean())


def oracle_threshold(outputs: Tensor, y: Tensor, table: Tensor) -> float:
    """Return the best mean reward of abstaining below a threshold of the largest probability, chosen on `y` itself.

    `outputs` (N, classes) are logits; the table's last action is to abstain.  An upper bound that no policy
    without the labels of the shifted inputs can count on.
    """
    sure, said = outputs.softmax(1).max(1)
    order = sure.argsort(descending=True)
    acting = table[said, y][order].double()
    resting = table[torch.full_like(y, len(table) - 1), y][order].double()
    zero = torch.zeros(1, dtype=torch.float64)
    gained, left = torch.cat([zero, acting.cumsum(0)]), torch.cat([zero, resting.cumsum(0)])
    return float((gained + left[-1] - left).max() / len(y))
