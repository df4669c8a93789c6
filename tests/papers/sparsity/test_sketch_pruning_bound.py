"""Sketching and pruning bounds: linearity and recovery, gaps that hold and are tight, codes and norms by hand."""

import copy
import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

from workingpapers.catalog import make
from workingpapers.engines.masks import masks_of
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._chains import (
    arora,
    bartlett,
    chain_of,
    golowich,
    inputs_of,
    lengths,
    margins,
    neyshabur,
    reach,
    run,
    spectral,
)
from workingpapers.papers.sparsity._code_bound import BITS, KEEPS, MARGINS, bound, layer_code
from workingpapers.papers.sparsity._magnitude import output_gap, predicted_error, prune, removed
from workingpapers.papers.sparsity._sketching import Sketch, distributed_sparse, same, sketch_size, spread
from workingpapers.papers.sparsity.sketch_pruning_bound import (
    accuracy,
    bound_report,
    iterative,
    perceptron,
    recovered,
    sparsest,
)

DOUBLE = torch.float64


def biased(widths: tuple[int, ...] = (5, 24, 24, 3)) -> Any:
    parts: list[nn.Module] = [nn.Flatten()]
    for number, (width_in, width) in enumerate(itertools.pairwise(widths)):
        parts += [nn.ReLU()] * (number > 0) + [nn.Linear(width_in, width)]
    return nn.Sequential(*parts)


def test_sketches_are_linear_and_bilinear_products() -> None:
    one, other = (np.random.default_rng(k).standard_normal((12, 9)) for k in (0, 1))
    sketch = Sketch.draw((12, 9), (6, 5), seed=3)
    np.testing.assert_allclose(sketch(2 * one + other), 2 * sketch(one) + sketch(other), atol=1e-12)
    for matrix, ones, p in ((sketch.a, 3, 12), (sketch.b, 3, 9)):  # ceil(ln 12) = ceil(ln 9) = 3
        assert matrix.shape[1] == p
        assert set(np.unique(matrix)) == {0.0, 1.0}
        assert (matrix.sum(0) == ones).all()
    by_entries = [[sum(one[i, k] for i in range(12) for k in range(9) if sketch.a[u, i] and sketch.b[v, k])
                   for v in range(5)] for u in range(6)]  # fmt: skip
    np.testing.assert_allclose(sketch(one), by_entries, atol=1e-12)


def test_small_sketches_give_sparse_matrices_back_and_too_small_ones_do_not() -> None:
    assert recovered(30, seed=1000, trials=4) >= 3
    assert recovered(8, seed=1000, trials=2) == 0


def test_distributed_sparse_matrices_and_sizes() -> None:
    matrix = distributed_sparse(30, 3, 0)
    assert (np.count_nonzero(matrix, 0) == 3).all()
    assert (np.count_nonzero(matrix, 1) == 3).all()
    assert spread(matrix) == 3
    matrix[0] = 1.0
    assert spread(matrix) == 30
    assert sketch_size(10000, 4, 0.5) == math.ceil(0.5 * 200 * math.log(10000))
    assert sketch_size(40, 2, 10.0) == 40
    with pytest.raises(WorkingPapersError, match="no matrix has this sketch"):
        Sketch(np.ones((2, 3)), np.ones((1, 2))).decode(np.array([[1.0], [2.0]]))
    assert not same(matrix + 1e-5, matrix)


def test_chains_compute_what_their_networks_do() -> None:
    x = torch.randn(7, 5, dtype=DOUBLE)
    model: Any
    for model in (biased().to(DOUBLE), perceptron([5, 8, 3]).to(DOUBLE)):
        chain = chain_of(model)
        found = run(chain, inputs_of(model, x))
        torch.testing.assert_close(found[-1], model(x).detach())
        hidden = [m for m in model if isinstance(m, nn.ReLU)]
        assert len(lengths(chain, inputs_of(model, x))) == len(hidden) + 1
    pruned = prune(model, 0.5)
    torch.testing.assert_close(run(chain_of(pruned), x)[-1], pruned(x).detach())
    with pytest.raises(WorkingPapersError, match="one ReLU between any two; got Sequential of Linear, Tanh"):
        chain_of(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)))
    with pytest.raises(WorkingPapersError, match="the first layer takes 5 inputs; got 4"):
        inputs_of(perceptron([5, 8, 3]), x[:, :4])


def test_pruning_keeps_the_largest_of_each_layer() -> None:
    model = biased()
    pruned = prune(model, 0.25)
    for old, new in zip((1, 3, 5), masks_of(pruned).values(), strict=True):
        size = model[old].weight.detach().abs()
        assert int(new.sum()) == round(0.25 * size.numel())
        assert size[new].min() >= size[~new].max()
    by_psi = prune(model, d=0.7)
    for old, mask in zip((1, 3, 5), masks_of(by_psi).values(), strict=True):
        weight = model[old].weight.detach()
        assert torch.equal(mask, weight.abs() > 0.7 * weight.pow(2).mean().sqrt())
    x = torch.randn(4, 5)
    for same_net in (prune(model, 1.0), prune(model, d=0.0)):
        assert torch.equal(same_net(x), model(x))
    with pytest.raises(WorkingPapersError, match="0 < keep <= 1 and d >= 0; got keep=0"):
        prune(model, 0)


def test_gap_bounds_hold_and_are_met_where_all_point_the_same_way() -> None:
    x = torch.randn(200, 5)
    model: Any
    for model in (biased(), perceptron([5, 24, 24, 3])):
        pruned = prune(model, 0.4)
        measured, product = output_gap(model, pruned, x)
        torch.testing.assert_close(
            measured, (model(x) - pruned(x)).double().norm(dim=1).detach(), atol=1e-5, rtol=1e-4
        )
        _, sharper = output_gap(model, pruned, x, "lengths")
        assert (measured <= sharper).all()
        assert (sharper <= product * (1 + 1e-9)).all()
        assert float(measured.max()) > 0
    whole, left = chain_of(model), chain_of(pruned)
    by_hand = torch.zeros(200, dtype=DOUBLE)
    for number in range(3):
        before = math.prod(spectral(w) for w in whole[:number])
        after = math.prod(spectral(w) for w in left[number + 1 :])
        by_hand += spectral(whole[number] - left[number]) * before * after * x.double().norm(dim=1)
    torch.testing.assert_close(product, by_hand)
    line: Any = perceptron([1, 1, 1])
    for p in line.parameters():
        p.data.fill_(2.0)
    other = copy.deepcopy(line)
    other[1].weight.data.fill_(0.5)
    measured, product = output_gap(line, other, torch.ones(1, 1))
    assert float(measured) == float(product) == 3.0


def test_predicted_norms_are_those_of_gaussian_matrices() -> None:
    psi, threshold = 0.3, 0.25
    shape = (300, 200)
    spread_of = stats.truncnorm(-threshold / psi, threshold / psi, scale=psi)
    share = stats.norm.cdf(threshold / psi) * 2 - 1
    s = math.sqrt(share * spread_of.var())
    stray = 4 * threshold * math.sqrt(math.log(4 / 0.1))
    assert predicted_error(shape, psi, threshold, 0.1) == pytest.approx(s * (300**0.5 + 200**0.5) + stray)
    for _ in range(3):
        weight = psi * torch.randn(shape, dtype=DOUBLE)
        norm = spectral(torch.where(weight.abs() <= threshold, weight, 0))
        assert 0.9 * s * (300**0.5 + 200**0.5) < norm < predicted_error(shape, psi, threshold)
    assert predicted_error(shape, psi, 0.0) == 0
    assert predicted_error(shape, psi, 9.0) > 9 * psi * 300**0.5 / 9  # all goes


def test_what_is_removed_is_said_layer_by_layer() -> None:
    model = biased()
    found = removed(model, prune(model, 0.5))
    for layer, told in zip((1, 3, 5), found, strict=True):
        weight = model[layer].weight.detach().double()
        assert told.psi == pytest.approx(float(weight.pow(2).mean().sqrt()))
        assert told.share == pytest.approx(0.5, abs=0.02)
        gone = torch.where(weight.abs() <= told.threshold, weight, 0)
        assert told.error == pytest.approx(spectral(gone))
        assert told.predicted == pytest.approx(
            predicted_error((len(weight), weight.shape[1]), told.psi, told.threshold, 0.05 / 3)
        )


def test_codes_take_the_cheapest_way() -> None:
    few = torch.zeros(50, 40)
    few[3, 4] = few[7, 8] = few[9, 1] = 1.0
    nats, numbers = layer_code(few, 17)
    assert numbers == 3
    wanted = 3 * math.log(17) + math.log(special.comb(2000, 3, exact=True)) + math.log(2001) + math.log(3)
    assert nats == pytest.approx(wanted, rel=1e-6)
    nats, numbers = layer_code(torch.ones(50, 40), 17)
    assert numbers == 2000
    assert nats == pytest.approx(2000 * math.log(17) + math.log(3))
    diagonal = torch.eye(400)
    nats, numbers = layer_code(diagonal, 17, c=0.1)  # 12 rows and columns of sketch
    assert numbers == 144
    assert nats == pytest.approx(144 * math.log(17 * 400) + math.log(3))


def test_the_bound_is_what_it_says_and_survives_rounding() -> None:
    model: Any = perceptron([6, 20, 20, 3]).to(DOUBLE)
    x = torch.randn(80, 6, dtype=DOUBLE)
    y = model(x).argmax(1)
    y[:4] = (y[:4] + 1) % 3
    pruned: Any = prune(model, 0.5)
    found = bound(pruned, x, y, delta=0.1, missed=0.3)
    far = margins(pruned(x).detach(), y)
    assert found.margin == max(
        (m for m in MARGINS if float((far <= m).double().mean()) <= 0.3), default=MARGINS[0]
    )
    assert found.margin_loss == pytest.approx(float((far <= found.margin).double().mean()))
    codes = sum(layer_code(pruned[i].weight.detach() * pruned[i].mask, found.levels)[0] for i in (1, 3, 5))
    assert found.nats == pytest.approx(codes + 96 * math.log(2))
    choices = math.log(len(MARGINS) * len(BITS) * len(KEEPS) / 0.1)
    assert found.complexity == pytest.approx(math.sqrt((found.nats + choices) / 160))
    assert found.value == pytest.approx(found.margin_loss + found.complexity)
    assert found.sparsity == pytest.approx(0.5, abs=0.01)
    rounded = copy.deepcopy(pruned)
    for i in (1, 3, 5):
        weight = rounded[i].weight.data * rounded[i].mask
        step = 2 * weight.abs().max() / (found.levels - 1)
        rounded[i].weight.data = (weight / step).round() * step
    right = far > found.margin
    assert (margins(rounded(x).detach(), y)[right] > 0).all()
    assert float((rounded(x).argmax(1) != y).double().mean()) <= found.margin_loss
    assert bound(pruned, x, y, missed=0.9).levels <= found.levels  # a larger margin bears coarser rounding


def test_norm_bounds_by_hand() -> None:
    chain = [torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]], dtype=DOUBLE),
             torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=DOUBLE)]  # fmt: skip
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]], dtype=DOUBLE)
    n, margin = 3, 0.5
    assert golowich(chain, rows, margin) == pytest.approx(5 * 2**0.5 * 5 * 5**0.5 / (margin * n**0.5))
    ratios = (7 / 4) ** (2 / 3) + (3 / 2) ** (2 / 3)
    wanted = 30**0.5 * math.log(3) * 8 * ratios**1.5 / (margin * n)
    assert bartlett(chain, rows, margin) == pytest.approx(wanted)
    ratios = 25 / 16 + 5 / 4
    wanted = math.sqrt(25 * 4 * 3 * math.log(6) * 64 * ratios / n) / margin
    assert neyshabur(chain, rows, margin) == pytest.approx(wanted)


def test_aroras_cushions_by_automatic_derivatives() -> None:
    model: Any = perceptron([4, 6, 5, 3]).to(DOUBLE)
    for p in model.parameters():
        nn.init.uniform_(p, 0.1, 1.0)
        p.data[0] *= -1  # one unit of each layer is off, the others are on
    x = torch.rand(8, 4, dtype=DOUBLE) + 0.1
    chain = chain_of(model)
    before = run(chain, x)
    after = [x, *(z.relu() for z in before)]
    later = [
        lambda z: chain[1] @ z.relu(),
        lambda z: chain[2] @ (chain[1] @ z.relu()).relu(),
        lambda z: chain[2] @ z.relu(),
    ]
    pairs = {0: later[:2], 1: later[2:], 2: []}
    total, contraction = 0.0, 1.0
    for number, weight in enumerate(chain):
        cushion = min(
            float(z.norm() / (weight.norm() * h.norm()))
            for z, h in zip(before[number], after[number], strict=True)
        )
        inter = 1 / math.sqrt(len(weight))
        for move in pairs[number]:
            for z in before[number]:
                jacobian = torch.autograd.functional.jacobian(move, z)
                inter = min(inter, float((jacobian @ z).norm() / (jacobian.norm() * z.norm())))
        total += (cushion * inter) ** -2
    for number in (0, 1):
        contraction = max(contraction, *(float(z.norm() / z.relu().norm()) for z in before[number]))
    wanted = contraction * 3 * float(before[2].norm(dim=1).max()) * math.sqrt(total / 8) / 0.7
    assert arora(chain, x, 0.7) == pytest.approx(wanted)


def test_reach_bounds_the_lengths() -> None:
    model = biased()
    chain = chain_of(model)
    rows = inputs_of(model, torch.randn(50, 5))
    for real, most in zip(lengths(chain, rows), reach(chain, rows), strict=True):
        assert (real <= most * (1 + 1e-9)).all()


def test_iterative_pruning_rewinds() -> None:
    model: Any = perceptron([4, 10, 10, 2])
    seen = []

    def train(net: nn.Module) -> None:
        weights = [p.detach().clone() for p in net.parameters()]
        seen.append([(w != 0).double().mean().item() for w in weights])
        for (_, p), w in zip(model.named_parameters(), weights, strict=True):
            assert torch.equal(w[w != 0], p.detach()[w != 0])  # from where training began
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1 + torch.arange(p.numel()).reshape(p.shape))

    ticket = iterative(model, train, rounds=2, keep=0.5)
    assert len(seen) == 3
    assert max(map(max, seen[1:2])) == pytest.approx(0.5, abs=0.03)
    assert max(seen[2]) == pytest.approx(0.25, abs=0.03)
    assert max((w != 0).double().mean().item() for w in (p for p in ticket.parameters())) <= 0.28
    assert all((p != 0).all() for p in model.parameters())


def test_the_report_prunes_as_far_as_accuracy_lets() -> None:
    x = torch.randn(300, 6)
    y = (x[:, 0] > 0).long()
    model: Any = perceptron([6, 40, 2])
    model[1].weight.data.mul_(1e-3)
    model[1].weight.data[:2] = torch.tensor([[1.0, 0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0, 0]])
    model[3].weight.data.mul_(1e-3)
    model[3].weight.data[:, :2] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert accuracy(sparsest(model, x, y), x, y) >= accuracy(model, x, y) - 0.01 > 0.95
    found = make("sketch_pruning_bound")(model, x, y)
    assert found.numbers["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert found.numbers["bound"] == pytest.approx(found.numbers["margin loss"] + found.numbers["complexity"])
    dense = bound_report(model, x, y, keep=1.0)
    assert dense.numbers["complexity"] > found.numbers["complexity"]
    assert dense.numbers["sparsity"] < 0.05  # the zeros that were there
    chain = chain_of(model)
    rest = math.sqrt(math.log(20) / 600)
    for name, rival in (("Golowich", golowich), ("Arora", partial(arora))):
        value = rival(chain, x.double(), found.numbers["margin"]) + rest
        assert found.numbers[f"complexity of {name}"] == pytest.approx(value)
