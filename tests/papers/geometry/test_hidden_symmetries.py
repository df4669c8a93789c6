"""Hidden symmetries: exact dimensions, Jacobians by autograd, mechanisms put in, canonical forms, refusals."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from matplotlib import pyplot
from torch import Tensor, nn

from workingpapers.catalog import claims, make, record
from workingpapers.engines.regions import box, perceptron
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.geometry import _function_rank as ranks
from workingpapers.papers.geometry._canonical import Layers, read_layers
from workingpapers.papers.geometry.hidden_symmetries import (
    canonical,
    full_fraction,
    functional_dimension,
    hidden_symmetries,
    jacobian_rank,
    largest_difference,
    planted,
    random_layers,
    same_function,
    sweep,
    worst_step,
)
from workingpapers.tasks import mlp


def drawn(*sizes: int, seed: int = 0) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(b, a + 1, generator=generator, dtype=torch.float64) for a, b in pairwise(sizes)]
    return [(r[:, :-1].clone(), r[:, -1].clone()) for r in rows]


def of(*layers: tuple[object, object]) -> Layers:
    return [(torch.tensor(w, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)) for w, b in layers]


def module(layers: Layers) -> nn.Sequential:
    model = mlp([layers[0][0].shape[1], *(len(b) for _, b in layers)]).double()
    with torch.no_grad():
        for part, (w, b) in zip((m for m in model if isinstance(m, nn.Linear)), layers, strict=True):
            part.weight.copy_(w)
            part.bias.copy_(b)
    return model


def shuffled(layers: Layers, factor: float, seed: int = 0) -> Layers:
    """Return the same function with every hidden layer's neurons in another order and on other scales."""
    generator = torch.Generator().manual_seed(seed)
    found = list(layers)
    for depth in range(len(layers) - 1):
        (w, b), (out, shift) = found[depth], found[depth + 1]
        order = torch.randperm(len(b), generator=generator)
        scale = factor ** (2 * torch.rand(len(b), generator=generator, dtype=torch.float64) - 1)
        found[depth] = (w[order] * scale[:, None], b[order] * scale)
        found[depth + 1] = (out[:, order] / scale, shift)
    return found


def dimension(layers: Layers) -> tuple[int, int]:
    return functional_dimension(layers)[:2]


@pytest.mark.parametrize("sizes", [(2, 3, 1), (1, 4, 1), (3, 4, 1), (2, 5, 2), (5, 3, 2)])
def test_one_hidden_layer_attains_the_bound(sizes: Sequence[int]) -> None:
    n, m, k = sizes
    parameters = m * (n + 1) + k * (m + 1)
    assert dimension(drawn(*sizes)) == (parameters - m, parameters - m)


def test_the_smallest_example_has_ten_of_thirteen() -> None:
    found = hidden_symmetries(module(drawn(2, 3, 1)))
    numbers = found.numbers
    assert (numbers["parameters"], numbers["bound"], numbers["dimension"], numbers["hidden"]) == (
        13,
        10,
        10,
        0,
    )
    assert "no symmetry is hidden" in found.reading


@pytest.mark.parametrize(("sign", "rank"), [(1.0, 7), (-1.0, 9)])
def test_two_neurons_on_one_hyperplane(sign: float, rank: int) -> None:
    """H(z)(x, 1) twice, or with H(-z)(x, 1): then both steps sum to the output's bias, one dimension less."""
    layers = drawn(2, 3, 1)
    layers[0][0][1], layers[0][1][1] = sign * 2 * layers[0][0][0], sign * 2 * layers[0][1][0]
    found, bound, mechanisms = functional_dimension(layers)
    assert (found, bound) == (rank, 10)
    assert mechanisms["coincident"] == [(0, 0, 1)]


@pytest.mark.parametrize("seed", range(3))
def test_an_inactive_neuron_costs_what_belongs_to_it(seed: int) -> None:
    layers = drawn(2, 4, 3, 1, seed=seed)
    layers[1][0][2] = -layers[1][0][2].abs()
    layers[1][1][2] = -0.1
    rank, bound, mechanisms = functional_dimension(layers)
    assert (1, 2) in mechanisms["inactive"]
    assert rank <= bound - (4 + 1 + 1 - 1)
    # what is left is the rank of the network without it
    rest = [layers[0], (layers[1][0][:2], layers[1][1][:2]), (layers[2][0][:, :2], layers[2][1])]
    assert rank == dimension(rest)[0]


@pytest.mark.parametrize(
    ("mechanism", "layer", "neuron", "place"),
    [
        ("inactive", 0, 1, (0, 1)), ("inactive", 1, 2, (1, 2)), ("active", 0, 3, (0, 3)), ("active", 1, 0, (1, 0)),
        ("coincident", 0, 1, (0, 1, 2)), ("coincident", 1, 2, (1, 1, 2)), ("collapsed", 0, 0, (0,)),
        ("unmet", 0, 1, (0, 1, 0)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(2))
def test_what_is_planted_is_found(
    mechanism: str, layer: int, neuron: int, place: tuple[int, ...], seed: int
) -> None:
    layers = drawn(2, 4, 3, 1, seed=seed)
    before = [(w.clone(), b.clone()) for w, b in layers]
    changed = planted(layers, mechanism, layer, neuron)
    rank, bound, mechanisms = functional_dimension(changed)
    assert place in mechanisms[mechanism]
    assert place not in functional_dimension(layers)[2][mechanism] or mechanism == "unmet"
    assert rank < bound or mechanism == "unmet"
    assert all(torch.equal(w, v) and torch.equal(b, c) for (w, b), (v, c) in zip(layers, before, strict=True))


def test_what_cannot_be_planted() -> None:
    layers = drawn(2, 1, 3, 1)
    with pytest.raises(WorkingPapersError, match="no mechanism of hidden symmetries is named 'dead'"):
        planted(layers, "dead")
    with pytest.raises(WorkingPapersError, match="no neuron 3 of a hidden layer 1"):
        planted(layers, "active", 1, 3)
    with pytest.raises(WorkingPapersError, match="no neuron 0 of a hidden layer 2"):
        planted(layers, "active", 2)
    with pytest.raises(WorkingPapersError, match="has one neuron"):
        planted(layers, "coincident")
    with pytest.raises(WorkingPapersError, match="is the last one"):
        planted(layers, "unmet", 1)


@pytest.mark.parametrize("seed", range(3))
def test_order_and_scale_change_no_rank(seed: int) -> None:
    layers = drawn(2, 5, 4, 1, seed=seed)
    assert dimension(shuffled(layers, 1000.0, seed)) == dimension(layers)


def test_rows_are_the_derivatives() -> None:
    layers = drawn(2, 4, 3, 2)
    model = module(layers)
    x = torch.tensor([[0.3, -0.8], [-1.1, 0.4]], dtype=torch.float64)

    def derivative(point: Tensor) -> Tensor:
        rows = []
        for k in range(2):
            model.zero_grad()
            model(point[None])[0, k].backward()
            rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        return torch.stack(rows)

    found = ranks.jacobian(layers, x).unflatten(0, (2, 3, 2))
    step = 1e-6
    for i, point in enumerate(x):
        here = derivative(point)
        torch.testing.assert_close(found[i, 0], here, rtol=1e-12, atol=1e-12)
        for j in range(2):
            moved = (derivative(point + step * torch.eye(2, dtype=torch.float64)[j]) - here) / step
            torch.testing.assert_close(found[i, 1 + j], moved, rtol=1e-7, atol=1e-7)


def test_many_random_inputs_see_no_more_than_all_regions() -> None:
    layers = drawn(2, 4, 3, 1, seed=4)
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(600, 2, generator=generator, dtype=torch.float64)
    sampled = jacobian_rank(module(layers), x)
    rank, _ = dimension(layers)
    assert rank - 3 <= sampled <= rank
    assert jacobian_rank(module(layers), x[:1]) == 1


def test_the_rank_of_any_module() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 1)).train()
    x = torch.randn(200, 1, 4, generator=torch.Generator().manual_seed(1))
    # affine in four inputs: five numbers in all
    assert jacobian_rank(model.double(), x.double()) == 5
    assert model.training


def test_numerical_rank_by_blocks_and_scales() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(400, 7, generator=generator).double() @ torch.randn(7, 20, generator=generator).double()
    )
    rows = rows * 10 ** torch.linspace(-6, 6, 20, dtype=torch.float64)
    assert ranks.Rows().add(rows).rank() == 7
    parts = ranks.Rows()
    for part in rows.split(13):
        parts.add(part)
    assert parts.rank() == 7
    assert ranks.Rows().add(torch.zeros(3, 4)).rank() == ranks.Rows().rank() == 0


def test_three_inputs_by_growing_samples() -> None:
    rank, bound, _ = functional_dimension(drawn(3, 4, 4, 1, seed=2))
    without = functional_dimension(drawn(3, 4, 4, 1, seed=2), seed=5)[0]
    assert rank == without <= bound


def test_hyperplanes_that_do_not_meet() -> None:
    apart = of(([[1.0, 0.0]], [0.0]), ([[1.0]], [-1.0]), ([[1.0]], [0.0]))
    assert functional_dimension(apart)[2]["unmet"] == [(0, 0, 0)]
    meet = of(([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]), ([[1.0, 1.0]], [-1.0]), ([[1.0]], [0.0]))
    assert functional_dimension(meet)[2]["unmet"] == []


def test_a_layer_that_collapses() -> None:
    layers = drawn(2, 3, 3, 1)
    layers[0][0].copy_(torch.outer(layers[0][0][:, 0], layers[0][0][0]))
    found = functional_dimension(layers)[2]["collapsed"]
    assert found == [(0,), (1,)]
    assert functional_dimension(drawn(2, 3, 1))[2]["collapsed"] == []


@pytest.mark.parametrize("seed", range(4))
def test_canonical_forms_keep_the_function_and_forget_the_rest(seed: int) -> None:
    layers = drawn(3, 6, 5, 2, seed=seed)
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    form, other = canonical(module(layers)), canonical(shuffled(layers, 50.0, seed))
    torch.testing.assert_close(perceptron(form)(x), perceptron(layers)(x), rtol=1e-10, atol=1e-10)
    for (w, b), (v, c) in zip(form, other, strict=True):
        torch.testing.assert_close(w, v, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(b, c, rtol=1e-9, atol=1e-9)
    assert all(bool((w.norm(dim=1) - 1).abs().max() < 1e-12) for w, _ in form[:-1])


def grown(layers: Layers) -> Layers:
    """Return the same function with a neuron doubled, one never on, one not read and a constant one."""
    (w, b), (out, shift) = layers[0], layers[1]
    wide = torch.cat([w, 3 * w[:1], w[:1] + 1, torch.zeros_like(w[:1])])
    biases = torch.cat([b, 3 * b[:1], b[:1], torch.full((1,), 2.0, dtype=b.dtype)])
    doubled = torch.cat([0.25 * out[:, :1], out[:, 1:], 0.25 * out[:, :1], 0 * out[:, :1], out[:, 1:2]], 1)
    first = (wide, biases)
    second = (doubled, shift - 2.0 * out[:, 1])
    if len(layers) == 2:
        return [first, second]
    never = -doubled[:1].abs()
    second = (torch.cat([second[0], never]), torch.cat([second[1], torch.tensor([-1.0], dtype=b.dtype)]))
    last = layers[2]
    return [first, second, (torch.cat([last[0], torch.ones_like(last[0][:, :1])], 1), last[1])]


@pytest.mark.parametrize("sizes", [(2, 4, 1), (3, 5, 4, 2)])
def test_functions_that_are_the_same_are_recognised(sizes: Sequence[int]) -> None:
    layers = drawn(*sizes, seed=3)
    larger = grown(layers)
    x = torch.randn(100, sizes[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(perceptron(larger)(x), perceptron(layers)(x), rtol=1e-9, atol=1e-9)
    assert same_function(layers, shuffled(larger, 20.0))
    assert same_function(module(shuffled(layers, 100.0)).float(), module(layers), tolerance=1e-4)


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)])
def test_functions_that_differ_are_not(place: tuple[int, int]) -> None:
    layers = drawn(2, 4, 3, 1, seed=1)
    depth, kind = place
    other = [(w.clone(), b.clone()) for w, b in layers]
    other[depth][kind].view(-1)[0] += 1e-3
    assert not same_function(layers, other)
    assert not same_function(layers, drawn(2, 4, 2, 1))


def test_ties_in_the_order_do_not_matter() -> None:
    """Equal first weights up to rounding: a plain sort would pair the wrong neurons."""
    one = of(([[1.0, 2.0], [1.0 + 1e-12, -2.0], [1.0, 0.5]], [0.0, 1.0, 0.3]), ([[1.0, 2.0, 3.0]], [0.0]))
    other = of(([[1.0 + 1e-12, 2.0], [1.0, 0.5], [1.0, -2.0]], [0.0, 0.3, 1.0]), ([[1.0, 3.0, 2.0]], [0.0]))
    assert same_function(one, other)


def test_a_hidden_symmetry_is_seen_on_a_plane() -> None:
    """x as relu(x) - relu(-x), or with its kink elsewhere: one function, not one form."""
    one = of(([[1.0, 0.0], [-1.0, 0.0]], [0.0, 0.0]), ([[1.0, -1.0]], [0.0]))
    other = of(([[1.0, 0.0], [-1.0, 0.0]], [1.0, -1.0]), ([[1.0, -1.0]], [-1.0]))
    assert not same_function(one, other)
    assert largest_difference(module(one), module(other), box(-3.0, 3.0)) < 1e-12


def test_the_largest_difference_is_at_a_corner_of_the_kinks() -> None:
    """|x| + |y| against half of it: at the corner of the square; less a peak: at the peak."""
    rows = [[1.0, 0], [-1, 0], [0, 1], [0, -1]]
    one = of((rows, [0.0] * 4), ([[1.0] * 4], [0.0]))
    half = of((rows, [0.0] * 4), ([[0.5] * 4], [0.0]))
    assert largest_difference(module(one), module(half), box(-1.0, 1.0)) == pytest.approx(1.0, rel=1e-12)
    peak = of((rows, [0.0] * 4), ([[0.0] * 4], [0.25]))
    shifted = of((rows, [0.1] * 4), ([[-1.0] * 4], [0.25]))
    # the difference is sum of relu(+-x + 0.1), relu(+-y + 0.1): 2.2 in the corners
    assert largest_difference(module(peak), module(shifted), box(-1.0, 1.0)) == pytest.approx(2.2, rel=1e-12)


def test_a_network_without_anything_left() -> None:
    dead = of(([[0.0, 0.0]], [-1.0]), ([[2.0]], [0.5]))
    form = canonical(dead)
    assert form[0][0].shape == (0, 2)
    assert form[1][1].tolist() == [0.5]


def test_random_networks_as_said() -> None:
    generator = torch.Generator().manual_seed(0)
    he = random_layers(50, 400, 2, "he", generator)
    assert [w.shape for w, _ in he] == [(400, 50), (400, 400), (1, 400)]
    assert float(he[1][0].var()) == pytest.approx(2 / 400, rel=0.05)
    assert float(he[1][1].std()) == pytest.approx(0.1, rel=0.15)
    uniform = random_layers(50, 400, 1, "torch", generator)
    assert float(uniform[0][0].abs().max()) == pytest.approx(1 / math.sqrt(50), rel=0.01)
    assert float(uniform[0][0].std()) == pytest.approx(1 / math.sqrt(150), rel=0.05)
    with pytest.raises(
        WorkingPapersError, match="no initialisation is named 'hee'; the nearest name is 'he'"
    ):
        random_layers(2, 2, 1, "hee", generator)


def test_sweeps() -> None:
    assert full_fraction(2, 4, 1, 4) == 1.0
    assert full_fraction(2, 4, 5, 4) < 1.0
    found = make("hidden_symmetries.sweep")([(2, 3, 1), (2, 3, 2)], 3)
    assert found.numbers["inputs 2 width 3 depth 1"] == 1.0
    assert found.figure is not None
    pyplot.close(found.figure())
    with pytest.raises(WorkingPapersError, match="at least one architecture"):
        sweep([])


def test_the_worst_step() -> None:
    assert worst_step([1.0, 0.5, 0.6, 0.1], -1) == pytest.approx(0.1)
    assert worst_step([1.0, 0.5, 0.1], -1) == pytest.approx(-0.4)
    assert worst_step([0.1, 0.3, 0.25], 1) == pytest.approx(0.05)


def test_what_is_no_perceptron_is_refused() -> None:
    with pytest.raises(WorkingPapersError, match=r"in turns.*Linear, Tanh, Linear"):
        read_layers(mlp([2, 3, 1], activation=nn.Tanh))
    with pytest.raises(WorkingPapersError, match="the first and last linear"):
        read_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_every_claim_of_the_record_is_measured() -> None:
    own = [c.says for c in claims("hidden_symmetries").values()]
    assert own == [c["says"] for c in record("hidden_symmetries").claims]
