"""How many samples fit: the search, labels, matched sizes, minima against saddles, linear models by their rank."""

import math

import pytest
import torch
from torch import Tensor, nn

from workingpapers.catalog import claims, record
from workingpapers.engines.spectra import extremes, of_matrix
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._capacity import (
    Capacity,
    Recipe,
    converged,
    emc,
    labelled,
    largest,
    matched,
    trial,
)
from workingpapers.papers.theory.effective_capacity import effective_capacity, grey, relative_gap
from workingpapers.tasks import initialise, mlp

# the search


@pytest.mark.parametrize("limit", [0, 1, 3, 49, 50, 51, 77, 333, 998, 999])
def test_the_search_finds_a_known_limit(limit: int) -> None:
    asked: list[int] = []

    def succeeds(n: int) -> bool:
        asked.append(n)
        return n <= limit

    assert largest(succeeds, 50, 999, tolerance=0) == limit
    assert len(set(asked)) == len(asked)
    rough = largest(succeeds, 50, 999, tolerance=0.1)
    assert rough <= limit <= max(1.1 * rough, rough + 1)


def test_everything_offered() -> None:
    for most in (50, 51, 60, 100, 1234):
        assert largest(lambda n: True, 50, most) == most
    with pytest.raises(WorkingPapersError, match="1 <= start <= most"):
        largest(lambda n: True, 5, 4)


def test_growth_by_half_then_halving() -> None:
    asked: list[int] = []

    def succeeds(n: int) -> bool:
        asked.append(n)
        return n <= 250

    largest(succeeds, 100, 10_000, tolerance=0.05)
    assert asked[:4] == [100, 150, 225, 337]
    assert asked[4] == (225 + 337) // 2


# labels and sizes


def test_labellings() -> None:
    x, y = torch.arange(48.0).reshape(6, 2, 2, 2), torch.arange(6) % 3
    same, labels = labelled(x, y, 3, "correct")
    assert torch.equal(same, x)
    assert torch.equal(labels, y)
    shuffled, labels = labelled(x, y, 3, "shuffled_pixels", seed=1)
    order = [int(v) for v in shuffled[0].flatten()]
    assert sorted(order) == list(range(8))
    assert order != list(range(8))
    assert torch.equal(shuffled.flatten(1), x.flatten(1)[:, order])
    assert torch.equal(labels, y)
    noise, labels = labelled(x.repeat(50, 1, 1, 1), y.repeat(50), 3, "random_inputs")
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1
    _, drawn = labelled(torch.zeros(3000, 1), torch.zeros(3000).long(), 3, "random", seed=2)
    assert torch.bincount(drawn).min() > 900
    assert torch.equal(drawn[:10], labelled(torch.zeros(3000, 1), drawn, 3, "random", seed=2)[1][:10])
    with pytest.raises(WorkingPapersError, match="no labelling is named 'wrong'"):
        labelled(x, y, 3, "wrong")


@pytest.mark.parametrize("kind", ["mlp", "cnn", "vit"])
def test_matched_sizes(kind: str) -> None:
    def count(target: int) -> int:
        return sum(p.numel() for p in initialise(matched(kind, target, 14), 0).parameters())

    for target in (3000, 6000):
        assert abs(count(target) - target) / target < 0.15
    model = matched(kind, 3000, 14, activation=nn.Tanh)()
    assert any(isinstance(m, nn.Tanh) for m in model.modules())
    assert model(torch.zeros(2, 1, 14, 14)).shape == (2, 10)


def test_an_mlp_of_the_nearest_width() -> None:
    model = matched("mlp", 3000, 14)()
    assert model[1].out_features == 14  # 14 * 207 + 10 = 2908; 15 gives 3115
    with pytest.raises(WorkingPapersError, match="no sort of network"):
        matched("rnn", 3000, 14)


# training to a minimum


class Bowl(nn.Module):
    """Outputs (N, 2) = (w0^2 - c w1^2, 0) for every input."""

    def __init__(self, curve: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.curve = curve

    def forward(self, x: Tensor) -> Tensor:
        value = self.w[0].square() - self.curve * self.w[1].square()
        return torch.stack([value, 0 * value]).expand(len(x), 2)


def test_a_saddle_is_told_from_a_minimum() -> None:
    """At w = 0 cross-entropy at equal logits has slope 1/2 in the wrong logit: eigenvalues 1 and -curve."""
    x, y = torch.zeros(4, 1), torch.ones(4).long()
    recipe = Recipe()
    assert converged(Bowl(0.5), x, y, recipe, []) == pytest.approx(-0.5, abs=1e-4)
    assert converged(Bowl(-0.5), x, y, recipe, []) == pytest.approx(0.5, abs=1e-4)


def test_a_steep_place_is_no_minimum_unless_the_loss_stands_still() -> None:
    model, x, y = Bowl(-0.5), torch.zeros(4, 1), torch.ones(4).long()
    with torch.no_grad():
        model.w.fill_(0.3)
    assert converged(model, x, y, Recipe(), [1.0, 0.9]) is None
    assert converged(model, x, y, Recipe(), []) is None
    assert converged(model, x, y, Recipe(), [0.9, 0.90005]) is not None


def test_eigenvalues_of_a_known_quadratic() -> None:
    values = torch.linspace(-2.0, 5.0, 40, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0]
    found = extremes(of_matrix(rotation @ values.diag() @ rotation.T), 1, 1, tolerance=1e-6)
    assert float(found.bottom[0]) == pytest.approx(-2, abs=1e-4)
    assert float(found.top[0]) == pytest.approx(5, abs=1e-4)


def test_constant_labels_fit_all_that_is_offered() -> None:
    x = torch.randn(90, 4)
    found = emc(lambda: mlp([4, 3, 2]), x, torch.zeros(90).long(), Recipe(steps=200), start=20)
    assert found.samples == 90
    assert list(found.trials) == [20, 30, 45, 67, 90]


def newton(parameters: object, lr: float) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr, max_iter=20, line_search_fn="strong_wolfe")  # type: ignore[arg-type]


def test_a_linear_model_fits_as_many_points_as_it_has_inputs() -> None:
    """Points in general position: any labels are met exactly up to the rank; far beyond it they cannot be."""
    d, generator = 12, torch.Generator().manual_seed(0)
    x = torch.randn(120, d, generator=generator)
    y = torch.randint(2, (120,), generator=generator)
    recipe = Recipe(newton, (1.0,), batch=120, steps=20, loss="mse")
    found = emc(lambda: nn.Linear(d, 2, bias=False), x, y, recipe, start=6, tolerance=0)
    assert d <= found.samples < 60
    assert found.parameters == 2 * d
    assert found.ratio == found.samples / (2 * d)
    assert all(t.fits == (n <= found.samples) for n, t in found.trials.items() if n in (found.samples, 6))


def test_contradicting_labels_do_not_fit() -> None:
    x, y = torch.ones(2, 3), torch.tensor([0, 1])
    for optimizer in ("sgd", "gd", "adam"):
        found = trial(lambda: mlp([3, 4, 2]), x, y, Recipe(optimizer, steps=40))
        assert not found.fits
        assert found.accuracy == 0.5
        assert math.isnan(found.curvature)


def test_a_second_learning_rate_is_tried() -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    assert not trial(lambda: mlp([4, 8, 2]), x, y, Recipe(lrs=(1e-9,), steps=100)).fits
    found = trial(lambda: mlp([4, 8, 2]), x, y, Recipe(lrs=(1e-9, 0.3), steps=600))
    assert found.fits
    assert found.curvature >= -1e-3
    assert found.accuracy == 1
    assert not trial(lambda: mlp([4, 8, 2]), x, y, Recipe(lrs=(1e9,), steps=20)).fits  # diverges


def test_the_finding_and_the_gap() -> None:
    assert relative_gap(Capacity(30, 7, {}), Capacity(20, 7, {})) == 0.5
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 3, generator=generator)
    y = (x[:, 0] > 0).long()
    recipe = Recipe(lrs=(0.3,), steps=120)
    found = effective_capacity(lambda: mlp([3, 3, 2]), x, y, recipe=recipe, start=8, tolerance=0.5)
    own, numbers = found.details["capacities"], found.numbers
    assert numbers["parameters"] == 20
    assert numbers["samples_random"] == own["random"].samples < own["correct"].samples
    assert numbers["ratio_correct"] == own["correct"].samples / 20
    assert numbers["gap"] == relative_gap(own["correct"], own["random"])
    with pytest.raises(WorkingPapersError, match="at least one labelling"):
        effective_capacity(lambda: mlp([3, 3, 2]), x, y, ())
    with pytest.raises(WorkingPapersError, match="no loss is named"):
        trial(lambda: mlp([3, 3, 2]), x, y, Recipe(loss="hinge"))


def test_grey_images() -> None:
    split = grey("mnist", 20, 10, 0)
    assert split.x_train.shape == (20, 1, 14, 14)


def test_claims_say_what_the_record_says() -> None:
    said = {c["says"] if isinstance(c, dict) else c.says for c in record("effective_capacity").claims}
    assert {c.says for c in claims("effective_capacity").values()} == said
