"""ReLinear: the quadratic neuron by hand, its start, conversion without a change, shrinking, degree, dimension."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.layers._curved import Square, algebraic_dimension, degree, problem, rings
from workingpapers.papers.layers._quadratic import Quadratic, ReZero
from workingpapers.papers.layers.relinear import (
    QuadraticConv2d,
    QuadraticLinear,
    param_groups,
    quadratic_mlp,
    quadraticise,
    ring_neuron,
    shrink,
    slowly,
    terms,
    xor_neuron,
)
from workingpapers.tasks import fit, mlp


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shaken(layer: nn.Module) -> nn.Module:
    layer.double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i))
    return layer


@pytest.mark.parametrize("interaction", [True, False])
def test_neurons_follow_the_formula(interaction: bool) -> None:
    layer = shaken(QuadraticLinear(4, 3, interaction=interaction))
    x = normal(5, 4)
    w = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    expected = np.empty((5, 3))
    for n, k in itertools.product(range(5), range(3)):
        linear = sum(w["r.weight"][k, i] * x[n, i] for i in range(4)) + w["r.bias"][k]
        if interaction:
            linear = linear * (sum(w["g.weight"][k, i] * x[n, i] for i in range(4)) + w["g.bias"][k])
        expected[n, k] = linear + sum(w["b.weight"][k, i] * x[n, i] ** 2 for i in range(4)) + w["b.bias"][k]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-12)


def test_convolutions_are_neurons_in_every_window() -> None:
    conv = shaken(QuadraticConv2d(2, 3, (3, 2), stride=2, bias=True))
    x = normal(2, 2, 7, 6)
    flat = QuadraticLinear(12, 3).double()
    for one, other in zip(flat.parameters(), conv.parameters(), strict=True):
        one.data = other.detach().flatten(1) if other.ndim > 1 else other.detach()
    rows = F.unfold(x, (3, 2), stride=2).transpose(1, 2)
    torch.testing.assert_close(conv(x), flat(rows).transpose(1, 2).unflatten(2, (3, 3)))


@pytest.mark.parametrize("bias", [True, False])
def test_layers_start_as_their_linear_part(bias: bool) -> None:
    linear, conv = QuadraticLinear(5, 3, bias), QuadraticConv2d(2, 3, 3, bias=bias)
    x, image = 100 * normal(6, 5, dtype=torch.float32), normal(2, 2, 5, 5, dtype=torch.float32)
    assert torch.equal(linear(x), linear.r(x))
    assert torch.equal(conv(image), conv.r(image))
    assert linear.g is not None
    assert linear.g.bias.tolist() == [1, 1, 1]
    assert (linear.b.bias is None) == (not bias)
    compact = QuadraticLinear(5, 3, bias, interaction=False)
    assert compact.g is None
    assert torch.equal(compact(x), compact.r(x))


def test_one_neuron_computes_xor_and_one_separates_rings() -> None:
    bits = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert xor_neuron()(bits).flatten().tolist() == [0, 1, 1, 0]
    x, y = rings(2000, seed=0)
    assert float(((ring_neuron(1.0, 2.0)(x).flatten() > 0) == y).float().mean()) > 0.999
    np.testing.assert_allclose(ring_neuron(1.0, 2.0)(torch.tensor([[0.9, 1.2]])).item(), 0, atol=1e-6)


def test_conversion_changes_no_bit_and_shares_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2, bias=False))
    x, state = normal(4, 1, 4, 4, dtype=torch.float32), torch.get_rng_state()
    found = quadraticise(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found(x), net(x))
    assert [type(m).__name__ for m in found] == ["QuadraticConv2d", "ReLU", "Flatten", "QuadraticLinear"]
    assert found[0].r.weight is not net[0].weight
    twice = quadraticise(found)
    assert [n for n, _ in twice.named_parameters()] == [n for n, _ in found.named_parameters()]
    assert quadraticise(net, interaction=False)[0].g is None


def test_quadratic_terms_learn_at_their_own_rates() -> None:
    net = quadraticise(mlp((3, 4, 2)))
    groups = param_groups(net, 0.5, gamma_g=0.1, gamma_b=0.01)
    assert [g["lr"] for g in groups] == pytest.approx([0.5, 0.05, 0.005])
    names = {id(p): n for n, p in net.named_parameters()}
    assert [{names[id(p)].split(".")[1] for p in g["params"]} for g in groups] == [{"r"}, {"g"}, {"b"}]
    before = copy.deepcopy(net)
    x = normal(7, 3, dtype=torch.float32)
    optimizer = torch.optim.SGD(groups, 0.5)
    net(x).square().sum().backward()
    slopes = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    optimizer.step()
    for (name, old), new in zip(before.named_parameters(), net.parameters(), strict=True):
        rate = {"r": 0.5, "g": 0.05, "b": 0.005}[name.split(".")[1]]
        torch.testing.assert_close(new, old - rate * slopes[name])
    plain = mlp((3, 2))
    assert len(param_groups(plain)) == 1
    assert {k: len(v) for k, v in terms(net).items()} == {"r": 4, "g": 4, "b": 4}


def test_shrinking_moves_the_quadratic_terms_towards_their_start() -> None:
    layer = QuadraticLinear(1, 1)
    values = {"g.weight": 0.5, "g.bias": 1.6, "b.weight": -0.05, "b.bias": 0.3}

    def shrunk(norm: str) -> list[float]:
        with torch.no_grad():
            for name, value in values.items():
                layer.get_parameter(name).fill_(value)
        before = layer.r.weight.clone()
        shrink(nn.Sequential(layer), g=0.2, b=0.1, norm=norm)
        assert torch.equal(before, layer.r.weight)
        return [layer.get_parameter(name).item() for name in values]

    assert shrunk("l2") == pytest.approx([0.4, 1.48, -0.045, 0.27])
    assert shrunk("l1") == pytest.approx([0.3, 1.4, 0.0, 0.2])
    with pytest.raises(WorkingPapersError, match="no norm to shrink by is named 'l3'"):
        shrink(layer, 0.1, 0.1, "l3")
    shrink(QuadraticLinear(2, 1, bias=False, interaction=False), 0.1, 0.1)


def test_rezero_starts_as_its_shortcut() -> None:
    branch = QuadraticLinear(3, 3)
    block, x = ReZero(branch), normal(2, 3, dtype=torch.float32)
    assert torch.equal(block(x), x)
    with torch.no_grad():
        block.alpha.fill_(2)
    torch.testing.assert_close(block(x), x + 2 * branch(x))
    assert torch.equal(ReZero(branch, nn.Tanh())(x), x.tanh())


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_network_of_depth_k_has_degree_two_to_the_k(depth: int) -> None:
    layers = [shaken(QuadraticLinear(3, 3)) for _ in range(depth - 1)] + [shaken(QuadraticLinear(3, 1))]
    assert degree(nn.Sequential(*layers), 3) == 2**depth
    squares = [part for _ in range(depth) for part in (nn.Linear(3, 3), Square())]
    assert degree(nn.Sequential(*squares, nn.Linear(3, 1)), 3) == 2**depth
    assert degree(nn.Linear(3, 1), 3) == 1


def test_dimensions_are_those_of_symmetric_matrices_of_bounded_rank() -> None:
    for d, width in ((5, 1), (5, 2), (5, 4), (4, 4)):
        squares = nn.Sequential(nn.Linear(d, width, bias=False), Square(), nn.Linear(width, 1, bias=False))
        expected = d * width - width * (width - 1) // 2 if width <= d else d * (d + 1) // 2
        assert algebraic_dimension(squares, d) == expected
    # one neuron: all its weights but one, for r and g may be scaled against each other
    assert algebraic_dimension(QuadraticLinear(5, 1), 5) == 6 + 6 + 6 - 1
    assert algebraic_dimension(nn.Linear(4, 1), 4) == 5


def test_the_claims_nets_differ_in_the_start_alone() -> None:
    x = normal(3, 5, dtype=torch.float32)
    sizes = (5, 4, 3)
    random = quadratic_mlp(sizes, "random", 0)
    assert isinstance(random[1], Quadratic)
    assert bool(random[1].g.weight.any())
    relinear = quadratic_mlp(sizes, "relinear", 0)
    torch.testing.assert_close(relinear(x), nn.Sequential(relinear[1].r, nn.ReLU(), relinear[3].r)(x))
    assert not any(isinstance(m, Quadratic) for m in quadratic_mlp(sizes, "linear", 0))
    split = problem("spirals", 0)
    assert split.y_train.float().mean() == 0.5
    result = fit(relinear_net := quadraticise(mlp((2, 4, 2))), split, steps=2,
                 optimizer=slowly(relinear_net, 0.1, torch.optim.Adam), lr=0.1)  # fmt: skip
    assert not result.diverged


def test_parts_are_made_by_name_and_claims_are_the_records() -> None:
    assert isinstance(make("relinear", 3, 4, interaction=False), QuadraticLinear)
    assert isinstance(make("relinear.conv2d", 3, 4, 3), QuadraticConv2d)
    assert [c.says for c in claims("relinear").values()] == [c["says"] for c in record("relinear").claims]
