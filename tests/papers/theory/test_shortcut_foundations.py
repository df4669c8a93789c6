"""Two features: predictivities by counting, reliance by hand, best decisions, the kernel by Monte Carlo, items."""

import math

import pytest
import torch
from torch import nn

from workingpapers.catalog import claims, make, record
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory._two_features import (
    World,
    _nested,
    decisions,
    kernel_regression,
    optimal,
    probes,
    reliance,
    relu_kernel,
    strength,
    two_patches,
)
from workingpapers.papers.theory.shortcut_foundations import (
    Shortcuts,
    bias_of,
    biases,
    predicted,
    trained,
    world_of,
)

# the world


@pytest.mark.parametrize("rho", [(0.8, 0.9), (0.6, 0.99)])
def test_each_feature_is_right_as_often_as_it_says(rho: tuple[float, float]) -> None:
    z, y = World(rho).latents(100_000, seed=0)
    assert y.sum() == 0
    for i in (0, 1):
        assert float((z[:, i].sign() == y).double().mean()) == pytest.approx(rho[i], abs=0.01)
    assert strength(0.5) == 0
    assert strength(0.9) == pytest.approx(1.2815515655)


def test_correlation_given_the_label() -> None:
    world = World(correlation=0.6)
    z, y = world.latents(100_000, seed=1)
    own = torch.corrcoef((z - y[:, None] * torch.tensor(world.mu)).T)
    assert float(own[0, 1]) == pytest.approx(0.6, abs=0.01)


def test_inputs_are_amplitudes_along_orthogonal_directions() -> None:
    world = World(amplitudes=(4.0, 0.5), dim=30, seed=3)
    w = world.directions()
    torch.testing.assert_close(w @ w.T, torch.eye(2))
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, -3.0]])
    x = world.embed(z)
    torch.testing.assert_close(x @ w.T, z * torch.tensor([4.0, 0.5]))
    torch.testing.assert_close(x.norm(dim=1), (z * torch.tensor([4.0, 0.5])).norm(dim=1))
    assert world_of(16.0).amplitudes == pytest.approx((4.0, 0.25))


@pytest.mark.parametrize("depth", [1, 3])
def test_nested_features_have_mean_0_variance_1_and_rise(depth: int) -> None:
    z = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    shown = _nested(z, depth, seed=5)
    assert float(shown.mean()) == pytest.approx(0, abs=0.02)
    assert float(shown.std()) == pytest.approx(1, abs=0.02)
    assert float((shown * z).mean()) > 0
    assert torch.equal(_nested(z[:9], 0, 5), z[:9])
    world = World(nesting=(0, depth), dim=10, seed=2)
    torch.testing.assert_close(
        world.embed(z[:6].reshape(3, 2)) @ world.directions()[0], z[:6].reshape(3, 2)[:, 0]
    )


# reliance


def test_reliance_of_single_features_and_of_mixtures() -> None:
    z = probes(20)
    assert z.shape == (400, 2)
    assert float(z.abs().min()) == pytest.approx(0.15)
    assert reliance(z[:, 0], z) == 1
    assert reliance(z[:, 1], z) == -1
    assert reliance(z.sum(1), z) == pytest.approx(0, abs=1e-12)
    assert reliance(torch.zeros(400), z) == 0
    assert reliance(-z[:, 0], z) == -1
    only = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-2.0, 1.0], [3.0, -1.0]])
    assert reliance(torch.tensor([1.0, -1.0, 1.0, 1.0]), only) == pytest.approx(1 / 3)
    with pytest.raises(WorkingPapersError, match="disagree"):
        reliance(torch.ones(1), torch.ones(1, 2))


def test_probes_by_seed_stay_in_their_cells() -> None:
    moved = probes(10, 3.0, seed=4)
    assert float((moved - probes(10)).abs().max()) <= 0.3
    assert not torch.equal(moved, probes(10, 3.0, seed=5))


def test_optimal_is_the_log_odds() -> None:
    world = World((0.7, 0.9), correlation=0.4)
    z = torch.randn(20, 2)
    covariance = torch.tensor([[1.0, 0.4], [0.4, 1.0]])
    one, other = (
        torch.distributions.MultivariateNormal(s * torch.tensor(world.mu), covariance) for s in (1.0, -1.0)
    )
    torch.testing.assert_close(optimal(world, z), one.log_prob(z) - other.log_prob(z), atol=1e-4, rtol=1e-4)


def test_equal_features_are_used_alike() -> None:
    """Equal predictivity and amplitude: no bias, by symmetry exactly for the best, and on average for networks."""
    world = World((0.85, 0.85))
    assert reliance(optimal(world, probes()), probes()) == pytest.approx(0, abs=1e-12)
    found = torch.tensor([predicted(World((0.85, 0.85), dim=10, seed=s), 300, s) for s in range(20)])
    assert abs(float(found.mean())) < 2.1 * float(found.std()) / math.sqrt(20) + 1e-9


def test_the_linear_model_reaches_the_best_direction_at_any_amplitude() -> None:
    for ratio in (1.0, 64.0):
        world = world_of(ratio, seed=1, dim=8)
        z, y = world.latents(3000, 0)
        model = trained(0, world.embed(z), y, 1, 0)
        said = decisions(model, world.embed(probes()))
        assert abs(bias_of(said, world, probes())) < 0.06
    assert set(biases(world_of(4.0, dim=5), (0, 1), 60, 3, 0)) == {0, 1}


# the kernel


def test_the_kernel_is_the_mean_over_wide_networks() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    w = torch.randn(400_000, 3, generator=generator, dtype=torch.float64)
    a = torch.randn(400_000, generator=generator, dtype=torch.float64)
    h, on = (w @ x.T).relu(), (w @ x.T > 0).double()
    by_output = h.T @ h / len(w)
    by_weights = (on * a[:, None] ** 2).T @ on / len(w) * (x @ x.T)
    torch.testing.assert_close(relu_kernel(x, x), by_output + by_weights, atol=0.03, rtol=0.02)
    torch.testing.assert_close(relu_kernel(x, x).diagonal(), x.square().sum(1))
    torch.testing.assert_close(relu_kernel(3 * x, x), 3 * relu_kernel(x, x))


def test_kernel_regression_interpolates_without_a_ridge_and_shrinks_with_one() -> None:
    x = torch.randn(12, 4)
    y = torch.randn(12)
    torch.testing.assert_close(kernel_regression(x, y, x, 1e-10).float(), y, atol=1e-3, rtol=1e-3)
    assert float(kernel_regression(x, y, x, 1e6).abs().max()) < 1e-3


# images, models, items


def test_two_patches() -> None:
    split = images("digits")
    x, signs, y = two_patches(split, (0.8, 0.9), contrast=2.0, side=4, seed=0)
    assert x.shape[1:] == (1, 8, 16)
    for i, rho in enumerate((0.8, 0.9)):
        assert float((signs[:, i] == y).double().mean()) == pytest.approx(rho, abs=0.06)
    texture = x[:, 0, 2:6, 10:14]
    size = 2.0 * float(split.x_train.std())
    torch.testing.assert_close(texture.abs(), torch.full_like(texture, size))
    columns = (texture == texture[:, :1]).all(2).all(1)
    assert torch.equal(columns, signs[:, 0] > 0)
    shapes = split.x_train[split.y_train == 1].flatten(1)
    one = x[signs[:, 1] > 0][0, 0, :, :8].flatten()
    assert float((shapes - one).abs().sum(1).min()) == 0
    with pytest.raises(WorkingPapersError, match="1 to 8 pixels"):
        two_patches(split, side=9)


def test_decisions_of_models() -> None:
    x = torch.randn(5, 3)
    one, two, three = (nn.Linear(3, k) for k in (1, 2, 3))
    assert torch.equal(decisions(one, x), one(x).detach().flatten())
    logits = two(x).detach()
    assert torch.equal(decisions(two, x), logits[:, 1] - logits[:, 0])
    with pytest.raises(WorkingPapersError, match="it gives 3"):
        decisions(three, x)


def test_items_and_scores() -> None:
    bench = make("shortcut_foundations", ratios=(1.0, 9.0), examples=50, side=6, dim=5)
    items = bench.items(3, 4)
    assert [item.world.amplitudes[0] / item.world.amplitudes[1] for item in items] == pytest.approx(
        [1, 9, 1, 9]
    )
    assert repr(bench.items(3, 2)[1]) == repr(items[1])
    item = items[1]
    x, y = item.train()
    assert (x.shape, y.shape, item.probes().shape) == ((50, 5), (50,), (36, 5))
    best = reliance(item.answer, item.latents)
    assert bench.bias(item, item.latents[:, 0]) == pytest.approx(1 - best)
    assert bench.score(item, item.latents[:, 1]) == pytest.approx(1 - abs(-1 - best) / 2)
    model = nn.Linear(5, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(item.world.directions()[:1])
    assert bench.bias(item, model) == pytest.approx(1 - best)
    assert bench.score(item, None) == 0
    with pytest.raises(WorkingPapersError, match="each of 36 probes"):
        bench.bias(item, torch.zeros(3))


def test_refusals() -> None:
    for call, match in (
        (lambda: strength(1.0), r"in \[0.5, 1\)"),
        (lambda: World(amplitudes=(0.0, 1.0)), "amplitudes above 0"),
        (lambda: World(correlation=1.0), "between -1 and 1"),
        (lambda: world_of(-1.0), "above 0; got -1"),
        (lambda: Shortcuts(ratios=()), "need a ratio"),
    ):
        with pytest.raises(WorkingPapersError, match=match):
            call()


def test_claims_say_what_the_record_says() -> None:
    said = {c["says"] if isinstance(c, dict) else c.says for c in record("shortcut_foundations").claims}
    assert {c.says for c in claims("shortcut_foundations").values()} == said
