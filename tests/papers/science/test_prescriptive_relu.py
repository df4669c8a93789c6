"""Trees against their networks, the bound on cells, counterfactual scores, constraints, and the loss by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.science._policy_tree import Leaf, Split, _Grower, inner_point, splits_of, tree_of
from workingpapers.papers.science._treatments import (
    DESIGNS,
    combined_scores,
    competitors,
    counterfactual_scores,
    multiplier_for,
    observe,
)
from workingpapers.papers.science.prescriptive_relu import PrescriptiveReLU, fit_policy, prescriptive_loss


def network(*sizes: int, seed: int = 0, **options: object) -> PrescriptiveReLU:
    torch.manual_seed(seed)
    d, *hidden, k = sizes
    return PrescriptiveReLU(d, k, hidden, **options).double()  # type: ignore[arg-type]


def points(count: int, d: int, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(count, d, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("sizes", [(2, 3), (2, 4, 3), (3, 3, 3, 4), (10, 4, 3), (1, 6, 2)])
@pytest.mark.parametrize("cost", [False, True])
def test_the_tree_prescribes_what_the_network_does(sizes: tuple[int, ...], cost: bool) -> None:
    d = sizes[0]
    forbidden = [(1, [1.0] * d, 0.3), (0, [-1.0] + [0.0] * (d - 1), 1.0)]
    model = network(*sizes, cost=cost, forbidden=forbidden[: sizes[-1] - 1])
    tree = model.to_tree()
    for spread in (0.1, 3.0, 100.0):
        x = points(4000, d, spread)
        np.testing.assert_array_equal(tree.prescribe(x.numpy()), model.prescribe(x).numpy())


def test_a_tree_by_hand() -> None:
    # f_0 = relu(x), f_1 = 1: treatment 0 where x > 1
    model = network(1, 1, 2)
    values = ([[1.0]], [0.0], [[1.0], [0.0]], [0.0, 1.0])
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.data = torch.tensor(value, dtype=torch.float64)
    tree = model.to_tree()
    assert tree.prescribe(np.array([[-3.0], [0.5], [0.99], [1.01], [7.0]])).tolist() == [1, 1, 1, 0, 0]
    assert tree.leaves() == 3  # x > 0 is split first, and 1 - x > 0 behind it
    assert isinstance(tree, Split)
    assert tree.below == Leaf(1)
    assert tree.describe(["dose"]).splitlines() == [
        "if +1 dose > 0",
        "  if -1 dose > -1",
        "    treatment 1",
        "  else",
        "    treatment 0",
        "else",
        "  treatment 1",
    ]


def test_siblings_with_one_treatment_are_one_leaf() -> None:
    model = network(2, 4, 3)
    model.layers[1].weight.data.zero_()
    model.layers[1].bias.data = torch.tensor([0.0, 2.0, 1.0]).double()
    assert model.to_tree() == Leaf(1)
    model.cost = True
    assert model.to_tree() == Leaf(0)


class Counting(_Grower):
    """Gives every cell a treatment of its own, so that none are merged."""

    cells = 0

    def constraints(self, *args: object) -> Leaf:
        self.cells += 1
        return Leaf(self.cells)


def test_cells_of_one_layer_are_as_many_as_hyperplanes_allow() -> None:
    for d, h in ((1, 5), (2, 4), (2, 6), (3, 4)):
        weights = np.random.default_rng(0).standard_normal((h, d))
        biases = np.random.default_rng(1).standard_normal(h)

        grower = Counting([(weights, biases), (np.ones((2, h)), np.zeros(2))], ())
        tree = grower.neurons((np.empty((0, d)), np.empty(0)), np.zeros(d), (np.eye(d), np.zeros(d)), 0, [])
        assert tree.leaves() == sum(math.comb(h, i) for i in range(d + 1))  # in general position, exactly


def test_one_treatment_within_a_pattern_and_argmax_cell() -> None:
    model, x = network(3, 4, 3), points(3000, 3)
    hidden = torch.relu(model.layers[0](x)) > 0
    for pattern in hidden.unique(dim=0):
        inside = (hidden == pattern).all(1)
        affine = model.layers[1].weight * pattern @ model.layers[0].weight
        offset = model.layers[1].weight * pattern @ model.layers[0].bias + model.layers[1].bias
        torch.testing.assert_close(model(x[inside]), x[inside] @ affine.T + offset)


def test_inner_points() -> None:
    box = (np.array([[1.0], [-1.0]]), np.array([2.0, -1.0]))  # 1 <= x <= 2
    point = inner_point(box)
    assert point is not None
    assert point[0] == pytest.approx(1.5)
    assert inner_point((np.array([[1.0], [-1.0]]), np.array([1.0, -1.0]))) is None
    assert inner_point((np.array([[1.0, 0.0]]), np.array([-5.0])))[0] < -5  # type: ignore[index]


def test_scores_have_their_formulas() -> None:
    y, t = np.array([2.0, -1.0]), np.array([0, 2])
    predicted = np.array([[1.0, 5.0, 7.0], [3.0, 4.0, 0.5]])
    p = np.array([[0.5, 0.25, 0.25], [0.2, 0.4, 0.4]])
    robust = combined_scores(y, t, predicted, p, "doubly_robust")
    np.testing.assert_allclose(robust, [[1 + 1 / 0.5, 5, 7], [3, 4, 0.5 - 1.5 / 0.4]])
    np.testing.assert_allclose(
        combined_scores(y, t, predicted, p, "inverse_propensity"), [[4, 0, 0], [0, 0, -2.5]]
    )
    assert combined_scores(y, t, predicted, p, "direct") is predicted
    predicted[[0, 1], t] = y  # a perfect model of the outcomes
    np.testing.assert_allclose(combined_scores(y, t, predicted, p, "doubly_robust")[[0, 1], t], y)
    with pytest.raises(UnknownName, match="no method of counterfactual scores is named 'doubly'"):
        combined_scores(y, t, predicted, p, "doubly")


def test_estimated_scores_are_nearly_unbiased() -> None:
    data = observe(("steps", "steps"), 3000, 0)
    truth = data.outcomes.mean(0)
    robust = counterfactual_scores(data.x, data.t, data.y, 3).mean(0)
    np.testing.assert_allclose(robust, truth, atol=0.12)
    plain = [data.y[data.t == k].mean() for k in range(3)]
    assert np.abs(robust - truth).max() < np.abs(np.array(plain) - truth).max()
    with pytest.raises(WorkingPapersError, match="every fold needs all of the 4 treatments"):
        counterfactual_scores(data.x, data.t, data.y, 4)


def test_designs_draw_what_they_say() -> None:
    for design in DESIGNS:
        data = observe(design, 4000, 3)
        residual = data.y - data.outcomes[np.arange(4000), data.t]
        assert residual.std() == pytest.approx(0.5, abs=0.02)
        shares = np.bincount(data.outcomes.argmax(1), minlength=3) / 4000
        assert shares.min() > 0.05, design
        # treated more often where their own logit is high
        assert data.x[data.t == 0, 0].mean() > data.x[data.t != 0, 0].mean() + 0.3


def test_the_loss_by_hand() -> None:
    model = network(2, 3, 3, forbidden=[(2, [1.0, 0.0], 0.0)])
    x, t = points(5, 2), torch.tensor([0, 1, 2, 1, 0])
    y, gamma = torch.arange(5.0).double(), points(5, 3)
    total = 0.0
    for i in range(5):
        f = model(x[i : i + 1])[0].tolist()
        weights = [math.exp(v) for v in f]
        if x[i, 0] > 0:
            weights[2] = 0.0
        share = [w / sum(weights) for w in weights]
        total += -sum(g * s for g, s in zip(gamma[i].tolist(), share, strict=True)) / 5
        total += 0.3 * (float(y[i]) - f[int(t[i])]) ** 2 / 5
    assert float(prescriptive_loss(model, x, t, y, gamma, 0.3).detach()) == pytest.approx(total)


def test_costs_are_rewards_negated() -> None:
    reward, cost = network(2, 3, 3), network(2, 3, 3, cost=True)
    for p in cost.layers[-1].parameters():
        p.data.neg_()
    x, t, y, gamma = points(6, 2), torch.arange(6) % 3, points(6, 1)[:, 0], points(6, 3)
    torch.testing.assert_close(cost(x), -reward(x))
    assert torch.equal(cost.prescribe(x), reward.prescribe(x))
    losses = prescriptive_loss(reward, x, t, y, gamma, 0.2), prescriptive_loss(cost, x, t, -y, -gamma, 0.2)
    torch.testing.assert_close(*losses)


def test_fitting_finds_a_plain_policy() -> None:
    torch.manual_seed(0)
    model, x = PrescriptiveReLU(2, 2, (4,)), points(300, 2, 1.0).float()
    gamma = torch.stack([x[:, 0], -x[:, 0]], 1)
    t = torch.arange(300) % 2
    losses = fit_policy(model, x, t, gamma[torch.arange(300), t], gamma, steps=150, lr=0.03)
    assert losses[-1] < losses[0] - 0.2
    assert float((model.prescribe(x) == (x[:, 0] < 0).long()).float().mean()) > 0.95
    small = PrescriptiveReLU(2, 2, (4,))
    fit_policy(small, x, t, gamma[torch.arange(300), t], gamma, steps=150, lr=0.03, l1=1.0)
    assert float(small.layers[0].weight.detach().abs().sum()) < 0.3 * float(
        model.layers[0].weight.detach().abs().sum()
    )


def test_constraints_are_kept_everywhere() -> None:
    model, x = network(3, 4, 3, forbidden=[(2, [1.0, 0.0, 0.0], 0.0)]), points(2000, 3)
    model.layers[-1].bias.data[2] = 50.0  # would be best throughout
    chosen = model.prescribe(x)
    assert not ((chosen == 2) & (x[:, 0] > 0)).any()
    assert (chosen[x[:, 0] <= 0] == 2).all()
    assert len(list(splits_of(model.to_tree()))) >= 1


def test_a_budget_has_its_price() -> None:
    scores = np.array([[0.0, 3.0], [0.0, 2.0], [0.0, 1.0], [0.0, 0.5]])
    costs = np.array([0.0, 1.0])
    assert multiplier_for(scores, costs, 1.0) == 0
    price = multiplier_for(scores, costs, 0.5)
    assert price == pytest.approx(1.0, abs=1e-6)
    assert costs[(scores - price * costs).argmax(1)].mean() == 0.5
    with pytest.raises(WorkingPapersError, match="the cheapest treatment costs 2, more than the budget 1"):
        multiplier_for(scores, costs + 2, 1.0)


def test_competitors_are_what_they_are_called() -> None:
    data = observe(("linear", "smooth"), 600, 0)
    policies = competitors(data, data.outcomes, 0)
    x = data.x[:50]
    assert set(policies["constant"](x).tolist()) == {int(data.outcomes.mean(0).argmax())}
    right = {
        name: float((policy(data.x) == data.outcomes.argmax(1)).mean()) for name, policy in policies.items()
    }
    assert right["tree"] > right["constant"]
    assert right["forest"] > right["constant"]


def test_wrong_constraints_are_refused() -> None:
    with pytest.raises(
        WorkingPapersError, match=r"the 3 treatments \(from 0\) and has 2 weights; got treatment 3"
    ):
        PrescriptiveReLU(2, 3, forbidden=[(3, [1.0, 0.0], 0.0)])
    with pytest.raises(WorkingPapersError, match="one treatment has to be free of constraints"):
        PrescriptiveReLU(1, 2, forbidden=[(0, [1.0], 0.0), (1, [1.0], 0.0)])
    assert isinstance(tree_of([(np.zeros((2, 1)), np.array([0.0, 1.0]))]), Leaf)
    assert isinstance(PrescriptiveReLU(2, 3).layers[0], nn.Linear)
