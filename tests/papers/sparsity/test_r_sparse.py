"""R-Sparse: the formula by loops, its limits, the budget, the search, and both observations on cases worked out."""

import pytest
import torch
from tests.surgery.real_models import hf
from torch import nn

from workingpapers.errors import WorkingPapersError
from workingpapers.kernels import rows
from workingpapers.kernels.breakeven import Costs
from workingpapers.papers.sparsity._rank_aware import (
    budgeted,
    factorise,
    importance,
    inner_layers,
    matrix,
    rank_aware,
    weak_constancy,
    weights_touched,
)
from workingpapers.papers.sparsity._sparse_examples import tiny_decoder
from workingpapers.papers.sparsity.r_sparse import r_sparse, search
from workingpapers.papers.sparsity.sparsing_law import next_token_loss


@pytest.fixture(autouse=True)
def _always_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rows, "_costs", lambda dtype, threads: Costs(((1.0, 1.0, 0.0, 0.0), (2.0, 1.0, 0.0, 0.0)))
    )


@pytest.mark.parametrize("count", [1, 30], ids=["skipping", "dense"])
@pytest.mark.parametrize("scaled", [True, False])
@torch.no_grad()
def test_a_layer_by_the_formula(count: int, scaled: bool) -> None:
    layer, x = nn.Linear(20, 12), torch.randn(100, 20) * torch.linspace(0.1, 2, 20)
    layer.weight.mul_(torch.linspace(2, 0.1, 20))
    weight, bias = layer.weight.clone(), layer.bias.clone()
    factors = factorise(layer, x, {"": layer}, scaled)[""]
    norms = weight.square().sum(0).sqrt()
    if scaled:
        torch.testing.assert_close(factors.scale, norms)
    t, rank = budgeted(factors, 0.4, 0.5)
    assert rank == int(0.5 * 0.6 * 240 / 32) == 2
    rank_aware(layer, factors, t, rank, 0.0)
    left, values, right = torch.linalg.svd(weight)
    low = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
    strong = x.abs() * (norms if scaled else 1) > t
    assert abs(float(strong.double().mean()) - 0.3) < 0.002
    exact = (x * strong) @ weight.T + (x * ~strong) @ low.T + bias
    torch.testing.assert_close(layer(x[:count]), exact[:count])


@torch.no_grad()
def test_limits_are_the_dense_layer() -> None:
    model, tokens, sample = tiny_decoder(torch.Generator().manual_seed(0))
    assert torch.equal(r_sparse(model, sample, 0.0, alpha=1.0)(tokens), model(tokens))
    layer, x = nn.Linear(9, 5), torch.randn(40, 9)
    exact, factors = layer(x), factorise(layer, x, {"": layer}, True)[""]
    for threshold in (0.0, 0.5, float("inf")):
        rank_aware(layer, factors, threshold, 5, 0.0)
        torch.testing.assert_close(layer(x), exact)


def test_the_budget_is_kept() -> None:
    layer, x = nn.Linear(64, 48), torch.randn(200, 64)
    factors = factorise(layer, x, {"": layer}, True)[""]
    for sparsity in (0.3, 0.5, 0.9):
        for alpha in (0.0, 0.3, 0.9, 1.0):
            t, rank = budgeted(factors, sparsity, alpha)
            rank_aware(layer, factors, t, rank, 0.0)
            kept = float((factors.scores > t).double().mean())
            assert weights_touched(layer, kept) <= 1 - sparsity + 1e-3
            assert weights_touched(layer, kept) >= 1 - sparsity - 0.05


@torch.no_grad()
def test_leading_tokens_are_dense() -> None:
    layer, x = nn.Linear(20, 12), torch.randn(3, 8, 20)
    exact, factors = layer(x), factorise(layer, x, {"": layer}, True)[""]
    t, rank = budgeted(factors, 0.7, 1.0)
    rank_aware(layer, factors, t, rank, 0.5)
    found = layer(x)
    torch.testing.assert_close(found[:, :4], exact[:, :4])
    rank_aware(layer, factors, t, rank, 0.0)
    torch.testing.assert_close(found[:, 4:], layer(x)[:, 4:])
    assert not torch.allclose(found[:, 4:], exact[:, 4:])


def test_inner_layers_leave_the_head_alone() -> None:
    sizes = {
        "vocab_size": 50,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model, tokens = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes)).eval(), torch.randint(0, 50, (6, 12))
    names = inner_layers(model)
    assert len(names) == 8
    assert all(".attn." in n or ".mlp." in n for n in names)
    assert matrix(model.transformer.h[0].mlp.c_fc).shape == (64, 16)
    sparse = r_sparse(model, tokens, 0.5, alpha={"transformer.h.0.mlp.c_fc": 0.5})
    assert len(sparse.transformer.h[0].mlp.c_fc.rank_right) == int(0.25 * 16 * 64 / 80)
    said = sparse.generate(tokens[:1], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert said.shape == (1, 17)
    with pytest.raises(WorkingPapersError, match="no linear layer is named 'transformer.h.9"):
        r_sparse(model, tokens, 0.5, alpha={"transformer.h.9.mlp.c_fc": 0.5})


def test_the_search_is_no_worse_than_where_it_starts() -> None:
    model, _, sample = tiny_decoder(torch.Generator().manual_seed(3))
    factors = factorise(model, sample, inner_layers(model), True)
    found = search(model, sample, factors, 0.5, seed=1)
    assert found == search(model, sample, factors, 0.5, seed=1)
    losses = [next_token_loss(r_sparse(model, sample, 0.5, alpha=a), sample) for a in (found, 1.0, 0.9)]
    assert losses[0] <= min(losses[1:]) + 1e-6


def test_the_two_observations() -> None:
    layer = nn.Linear(6, 4, bias=False)
    strong = torch.randn(500, 3) * 10 + 100
    always = torch.cat([strong, torch.ones(500, 3)], 1)
    assert weak_constancy(layer, always) == pytest.approx(1.0, abs=1e-5)
    varying = torch.cat([strong, torch.randn(500, 3)], 1)
    assert weak_constancy(layer, varying) < 0.3
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4, 6) * torch.tensor([4.0, 3, 2, 1, 0, 0]))
    x = torch.tensor([[0.0, 5.0, 0.0, 0.0, 0.0, 0.0]])  # the strongest channel, along the second direction
    found = importance(layer, x, bins=2)
    assert found[0, 0] == pytest.approx(1.0)


def test_what_it_refuses() -> None:
    model, _, sample = tiny_decoder(torch.Generator().manual_seed(0))
    with pytest.raises(WorkingPapersError, match="sparsity lies between 0 and 1; got 2"):
        r_sparse(model, sample, 2)
    with pytest.raises(WorkingPapersError, match="prefill lies between 0 and 1"):
        r_sparse(model, sample, prefill=-1.0)
    with pytest.raises(WorkingPapersError, match="no way to choose alpha is named 'serach'"):
        r_sparse(model, sample, alpha="serach")
    with pytest.raises(WorkingPapersError, match="alpha lies between 0 and 1; got 1.5"):
        r_sparse(model, sample, alpha=1.5)
    with pytest.raises(WorkingPapersError, match="the search for alpha needs text"):
        r_sparse(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(20, 4))
    with pytest.raises(WorkingPapersError, match="no linear layer"):
        r_sparse(nn.ReLU(), torch.randn(20, 4), alpha=1.0)
