"""Shallow again: the expansion against products of matrices, the layers by hand, fusion, and stacks in models."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.layers._layouts import conv_layer, determination
from workingpapers.papers.layers.shallow_again import (
    FusedResidual,
    ParallelResidual,
    SequentialResidual,
    expansion,
    fuse,
    parallelise,
    term_norms,
)
from workingpapers.surgery import changes
from workingpapers.tasks import char_gpt, residual_cnn


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linears(matrices: Sequence[Tensor]) -> list[nn.Module]:
    layers = [nn.Linear(len(m), len(m), bias=False).double() for m in matrices]
    for layer, matrix in zip(layers, matrices, strict=True):
        layer.weight.data = matrix
    return list(layers)


def product(matrices: Sequence[Tensor]) -> Tensor:
    whole = torch.eye(len(matrices[0]), dtype=torch.float64)
    for matrix in matrices:
        whole = matrix @ whole + whole
    return whole


def test_all_terms_add_up_to_the_product_and_are_named_in_order() -> None:
    matrices = list(0.5 * normal(4, 3, 3))
    terms = expansion(matrices, 4)
    assert len(terms) == 16
    torch.testing.assert_close(torch.stack(list(terms.values())).sum(0), product(matrices))
    torch.testing.assert_close(terms[(0, 2)], matrices[2] @ matrices[0])
    assert set(expansion(matrices, 1)) == {(), (0,), (1,), (2,), (3,)}


def test_norms_by_order_are_binomial_for_equal_layers() -> None:
    matrix = 0.5 * torch.eye(3, dtype=torch.float64)
    found = term_norms(expansion([matrix] * 4, 4))
    assert found == pytest.approx([math.comb(4, k) * 0.5**k for k in range(5)])


def test_deep_and_broad_are_what_their_formulas_say() -> None:
    matrices, x = list(normal(3, 4, 4)), normal(5, 4)
    layers = linears(matrices)
    torch.testing.assert_close(SequentialResidual(layers)(x), x @ product(matrices).T)
    first = x + x @ sum(matrices).T
    torch.testing.assert_close(ParallelResidual(layers)(x), first)
    neighbours = matrices[1] @ matrices[0] + matrices[2] @ matrices[1]
    torch.testing.assert_close(ParallelResidual(layers, pairs=2)(x), first + x @ neighbours.T)
    every = torch.stack(list(expansion(matrices, 2).values())).sum(0)
    torch.testing.assert_close(ParallelResidual(layers, pairs=3)(x), x @ every.T)


def test_one_layer_is_the_same_in_both_layouts() -> None:
    layer, x = conv_layer(3, 3, nn.Tanh), torch.randn(2, 3, 5, 5)
    assert torch.equal(SequentialResidual([layer])(x), ParallelResidual([layer])(x))


def test_truncation_is_exact_where_products_vanish() -> None:
    matrices = []
    for column in (3, 4, 5):  # all map the last three coordinates into the first three, so F_i F_j = 0
        matrix = torch.zeros(6, 6, dtype=torch.float64)
        matrix[:3, column] = normal(3, seed=column)
        matrices.append(matrix)
    x = normal(2, 6)
    deep, broad = SequentialResidual(linears(matrices)), ParallelResidual(linears(matrices))
    torch.testing.assert_close(deep(x), broad(x))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_fused_layers_equal_separate_ones_and_keep_their_weights(
    kernel: int, activation: type[nn.Module]
) -> None:
    layers = [conv_layer(4, kernel, activation) for _ in range(3)]
    broad, x = ParallelResidual(layers), torch.randn(2, 4, 9, 7)
    fused = fuse(broad)
    expected = x + sum(activation()(F.conv2d(x, c.weight, c.bias, padding="same")) for c, _ in layers)
    torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-5)
    assert fused.conv.weight.shape == (12, 4, kernel, kernel)
    assert isinstance(fuse(fused), FusedResidual)


def test_what_cannot_be_fused_is_refused() -> None:
    like, other = conv_layer(3, 3, nn.Tanh), conv_layer(3, 3, nn.ReLU)
    for broad in (
        ParallelResidual([like, other]),
        ParallelResidual([like, conv_layer(3, 5, nn.Tanh)]),
        ParallelResidual([conv_layer(3, 3, nn.Tanh, norm=True)]),
        ParallelResidual([like], pairs=1),
        SequentialResidual([like]),
        ParallelResidual([nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Softmax(1))]),
    ):
        with pytest.raises(WorkingPapersError, match="only a ParallelResidual of like layers"):
            fuse(broad)


def test_a_gpt_reads_all_its_blocks_at_once() -> None:
    model = char_gpt(11, 8, 3, 2, 6)
    broad, tokens = parallelise(model), torch.arange(6)[None]
    assert changes(broad) == ["3 blocks of blocks are 1 parallel groups now."]
    x = model.tokens(tokens) + model.positions
    y = x + sum(block(x) - x for block in model.blocks)
    torch.testing.assert_close(broad(tokens), model.head(model.norm(y)))
    pairs = zip(model.parameters(), broad.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_groups_stand_in_a_row() -> None:
    matrices, x = list(0.3 * normal(5, 4, 4)), normal(2, 4)
    deep = SequentialResidual(linears(matrices))
    eye = torch.eye(4, dtype=torch.float64)
    expected = x
    for group in (matrices[:2], matrices[2:4], matrices[4:]):
        expected = expected @ (eye + sum(group)).T
    torch.testing.assert_close(parallelise(deep, group=2)(x), expected)
    torch.testing.assert_close(parallelise(deep, group=1)(x), deep(x))
    torch.testing.assert_close(parallelise(deep)(x), x + x @ sum(matrices).T)


def test_only_blocks_that_keep_the_width_are_put_side_by_side() -> None:
    torch.manual_seed(0)
    model = residual_cnn(1, 3, (4, 8), 3).eval()
    broad, x = parallelise(model), torch.randn(2, 1, 8, 8)
    assert [len(m) for m in broad if isinstance(m, ParallelResidual)] == [3, 2]
    layers = list(model)
    y = nn.Sequential(*layers[:3])(x)
    y = layers[6](y + sum(block(y) - y for block in layers[3:6]))
    y = y + sum(block(y) - y for block in layers[7:9])
    torch.testing.assert_close(broad(x), nn.Sequential(*layers[9:])(y), atol=1e-5, rtol=1e-5)
    assert list(dict(broad.named_children())) == [str(i) for i in range(len(broad))]


def test_models_without_a_stack_are_refused() -> None:
    with pytest.raises(WorkingPapersError, match="has no module of the chosen sort"):
        parallelise(nn.Sequential(nn.Tanh()))
    with pytest.raises(WorkingPapersError, match="has no two residual blocks next to one another"):
        parallelise(nn.Sequential(nn.Tanh(), nn.Linear(2, 2), nn.Tanh()), nn.Tanh)
    with pytest.raises(WorkingPapersError, match="a group has 1 or more blocks; got 0"):
        parallelise(char_gpt(5), group=0)


def test_the_error_of_truncation_is_of_the_second_order() -> None:
    matrices, gaps = list(normal(4, 5, 5)), []
    for a in (1e-2, 1e-3):
        small = [a * m for m in matrices]
        gaps.append(float((product(small) - torch.eye(5) - sum(small)).abs().max()))
    assert [math.log10(one / other) for one, other in pairwise(gaps)] == pytest.approx([2.0], abs=0.1)


def test_the_ratio_of_equations_to_parameters() -> None:
    assert determination(6000, 10, 12000) == 5.0


def test_the_claims_are_those_of_the_record() -> None:
    wanted = {c["says"] for c in record("shallow_again").claims}
    assert {c.says for c in claims("shallow_again").values()} == wanted
    assert make("shallow_again") is parallelise
