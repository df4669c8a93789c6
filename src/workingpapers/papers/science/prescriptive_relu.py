"""Prescriptive ReLU networks: treatments chosen by a small network that is, exactly, a tree of hyperplane splits.

    t(x) = argmax_t f_t(x)
    L = -mean_i sum_t Gamma_it softmax_t(f(x_i)) + mu mean_i (y_i - f_{t_i}(x_i))^2

Gamma_it estimates what treatment t would have brought example i, which had t_i and brought y_i.  Within one
pattern of active ReLUs each f_t is affine, so the patterns and the differences f_s - f_t are the tree's splits.

Paper: "Learning Prescriptive ReLU Networks" (2023); the objective is reconstructed from its description.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.science._policy_tree import Tree, tree_of
from workingpapers.papers.science._treatments import (
    DESIGNS,
    Array,
    Observed,
    competitors,
    counterfactual_scores,
    observe,
)
from workingpapers.tasks import Budget, examples, initialise

Forbidden = tuple[int, Sequence[float], float]


@paper("prescriptive_relu", example=examples.vectors(4, 3))
class PrescriptiveReLU(nn.Module):
    """Estimate the outcome of every treatment, (B, features) -> (B, treatments), and prescribe the best.

    Args:
        features, treatments: how many there are.
        hidden: the widths of the ReLU layers.
        forbidden: (treatment, w, c) for each constraint: the treatment is not prescribed where w x > c.
        cost: outcomes are costs, and the least is the best.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"features": 4, "treatments": 3, "hidden": (12,)},
        "two layers": {"features": 10, "treatments": 3, "hidden": (10, 5)},
    }

    def __init__(
        self,
        features: int,
        treatments: int,
        hidden: Sequence[int] = (10,),
        forbidden: Sequence[Forbidden] = (),
        cost: bool = False,
    ) -> None:
        super().__init__()
        for treatment, weights, _ in forbidden:
            if not 0 <= treatment < treatments or len(weights) != features:
                raise WorkingPapersError(
                    f"a constraint names one of the {treatments} treatments (from 0) and has {features} weights; "
                    f"got treatment {treatment} and {len(weights)} weights"
                )
        if len({treatment for treatment, _, _ in forbidden}) == treatments:
            raise WorkingPapersError("one treatment has to be free of constraints, to be left everywhere")
        sizes = [features, *hidden, treatments]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.forbidden, self.cost = list(forbidden), cost

    def forward(self, x: Tensor) -> Tensor:
        """Return the estimated outcomes f(x)."""
        layers: Any = self.layers
        for layer in layers[:-1]:
            x = torch.relu(layer(x))
        out: Tensor = layers[-1](x)
        return out

    def preferences(self, x: Tensor) -> Tensor:
        """Return what the prescription is the largest of: outcomes, or costs negated, -inf where forbidden."""
        f: Tensor = -self(x) if self.cost else self(x)
        for treatment, weights, limit in self.forbidden:
            beyond = x @ torch.as_tensor(weights, dtype=x.dtype, device=x.device) > limit
            column = torch.arange(f.shape[-1], device=x.device) == treatment
            f = f.masked_fill(beyond[:, None] & column, -torch.inf)
        return f

    @torch.no_grad()
    def prescribe(self, x: Tensor) -> Tensor:
        """Return the treatment (B,) of every example."""
        return self.preferences(x).argmax(-1)

    def to_tree(self) -> Tree:
        """Return the tree that prescribes the same everywhere; the number of its cells grows fast with `hidden`.

        A `Split` or a `Leaf`, with prescribe(x), leaves() and describe(names).
        """
        modules: Any = self.layers
        layers = [tuple(p.detach().double().cpu().numpy() for p in (m.weight, m.bias)) for m in modules]
        if self.cost:
            layers[-1] = (-layers[-1][0], -layers[-1][1])
        return tree_of(layers, [(t, np.asarray(w, float), float(c)) for t, w, c in self.forbidden])

    def extra_repr(self) -> str:
        """Show constraints and the direction."""
        return f"forbidden={self.forbidden}, cost={self.cost}"


def prescriptive_loss(
    model: PrescriptiveReLU, x: Tensor, t: Tensor, y: Tensor, gamma: Tensor, mu: float
) -> Tensor:
    """Return the loss for outcomes `y` (N,) of treatments `t` (N,) and scores `gamma` (N, treatments)."""
    sign = -1.0 if model.cost else 1.0
    chosen = torch.softmax(model.preferences(x), -1)
    factual = model(x).gather(1, t[:, None])[:, 0]
    prescription = (gamma * chosen).sum(1).mean()
    loss: Tensor = mu * (y - factual).square().mean() - sign * prescription
    return loss


def fit_policy(
    model: PrescriptiveReLU,
    x: Tensor,
    t: Tensor,
    y: Tensor,
    gamma: Tensor | None = None,
    mu: float = 0.1,
    l1: float = 1e-3,
    steps: int = 600,
    lr: float = 0.01,
) -> list[float]:
    """Train `model` in place on features (N, d), treatments given (N,) and outcomes (N,); return the losses.

    Args:
        gamma: scores (N, treatments); by default doubly robust ones (`counterfactual_scores`).
        mu: weight of the prediction of what was observed.
        l1: weight of the size of the first layer's weights, which makes splits sparse.
        steps, lr: of Adam, on all the data at once.
    """
    if gamma is None:
        count: Any = model.layers[-1].out_features
        found = counterfactual_scores(x.double().numpy(), t.numpy(), y.double().numpy(), count)
        gamma = torch.from_numpy(found).to(x.dtype)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        weight: Any = model.layers[0].weight
        loss = prescriptive_loss(model, x, t, y, gamma, mu) + l1 * weight.abs().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _policy(
    data: Observed, gamma: Array, hidden: Sequence[int], seed: int, **options: Any
) -> PrescriptiveReLU:
    """Fit a network to observed data whose outcomes are standardised."""
    model = initialise(partial(PrescriptiveReLU, 10, 3, hidden, **options), seed)
    mean, std = data.y.mean(), data.y.std()
    x, y, scores = (
        torch.from_numpy(v).float() for v in (data.x, (data.y - mean) / std, (gamma - mean) / std)
    )
    fit_policy(model, x, torch.from_numpy(data.t), y, scores)
    return model


def _drawn(count: int, seed: int) -> Iterator[tuple[Observed, Observed, Array]]:
    """Draw data, 10,000 test points and doubly robust scores from every design."""
    for number, design in enumerate(DESIGNS):
        data, test = (
            observe(design, n, 10**6 * k + 100 * seed + number) for k, n in enumerate((count, 10_000))
        )
        yield data, test, counterfactual_scores(data.x, data.t, data.y, 3, seed=seed)


@claim(
    "prescriptive_relu",
    "The piecewise linear network prescribes more accurately than competitors and can be rewritten exactly as a "
    "tree that splits on hyperplanes.",
    seeds=3,
    holds=all_of(
        at_least(-0.02, of="over_best"),
        at_least(0.1, of="over_constant"),
        at_least(1.0, of="agreement", by="every"),
    ),
)
def prescribes_right(budget: Budget, seed: int) -> Evidence:
    """Share of right prescriptions, the mean over six designs, over the best competitor's and the best constant's.

    Competitors are plug-in linear models, plug-in forests and a greedy tree; `agreement` is that of network and
    tree on 10,000 points.
    """
    count, hidden = budget.pick(quick=(1000, (6,)), full=(5000, (10,)))
    right: dict[str, list[float]] = {}
    agreement, leaves = [], []
    for data, test, gamma in _drawn(count, seed):
        model = _policy(data, gamma, hidden, seed).double()
        policies: dict[str, Any] = {
            "own": lambda x, model=model: model.prescribe(torch.from_numpy(x)).numpy(),
            **competitors(data, gamma, seed),
        }
        for name, policy in policies.items():
            right.setdefault(name, []).append(float((policy(test.x) == test.outcomes.argmax(1)).mean()))
        tree = model.to_tree()
        agreement.append(float((tree.prescribe(test.x) == policies["own"](test.x)).mean()))
        leaves.append(tree.leaves())
    mean = {name: sum(values) / len(values) for name, values in right.items()}
    own, constant = mean.pop("own"), mean.pop("constant")
    return Evidence(
        accuracy=own,
        over_best=own - max(mean.values()),
        over_constant=own - constant,
        agreement=min(agreement),
        most_leaves=max(leaves),
    )


@claim(
    "prescriptive_relu",
    "Constraints can be added by minor changes of the architecture.",
    seeds=3,
    holds=all_of(at_most(0.0, of="violations", by="every"), at_least(0.9, of="value")),
)
def constraints_cost_little(budget: Budget, seed: int) -> Evidence:
    """Violations of "no treatment 2 where the first feature is positive", and the value under it.

    `value` is the gain over the best feasible constant as a share of the best feasible policy's, the mean over
    six designs.
    """
    count, hidden = budget.pick(quick=(1000, (6,)), full=(5000, (10,)))
    first = [1.0, *[0.0] * 9]
    violations, shares = 0, []
    for data, test, gamma in _drawn(count, seed):
        model = _policy(data, gamma, hidden, seed, forbidden=[(2, first, 0.0)])
        chosen = model.prescribe(torch.from_numpy(test.x).float()).numpy()
        excluded = test.x[:, 0] > 0
        violations += int(((chosen == 2) & excluded).sum())
        feasible = np.where(excluded[:, None] & (np.arange(3) == 2), -np.inf, test.outcomes)
        constant = test.outcomes[:, :2].mean(0).max()
        value = test.outcomes[np.arange(len(chosen)), chosen].mean()
        shares.append(float((value - constant) / (feasible.max(1).mean() - constant)))
    return Evidence(violations=violations, value=sum(shares) / len(shares))
