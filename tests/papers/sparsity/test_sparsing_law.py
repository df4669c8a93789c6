"""Sparsing law: CETT by its definition and limits, perplexities that are kept, laws whose parameters come back."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, component, record
from workingpapers.engines.activity.case import NotApplicable, case_of
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity import _cett
from workingpapers.papers.sparsity._ratio_laws import fit_law, linear_then_flat, relu_law, silu_law
from workingpapers.papers.sparsity._small_decoders import HalfGate, decoder
from workingpapers.papers.sparsity.sparsing_law import matched, next_token_loss, sparsing_law
from workingpapers.tasks import char_gpt, cnn, initialise, mlp


def wild(activation: type[nn.Module] = nn.SiLU, gated: bool = True) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = decoder(11, 13, 16, 2, 24, activation, gated)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return model, torch.randint(11, (6, 13), generator=generator)


def test_cett_is_by_definition() -> None:
    a, weight = torch.randn(30, 12), torch.randn(5, 12)
    s = _cett.sizes(a, weight)
    for t in (0.3, 1.0, 2.5):
        shares = []
        for row, size in zip(a, s, strict=True):
            tail = sum((row[i] * weight[:, i] for i in range(12) if size[i] <= t), torch.zeros(5))
            shares.append(float(tail.norm() / (weight @ row).norm()))
        assert _cett.cett(a, weight, t) == pytest.approx(np.mean(shares), rel=1e-5)
    assert float(s[3, 4]) == pytest.approx(float(a[3, 4].abs() * weight[:, 4].norm()), rel=1e-5)
    assert _cett.cett(a, weight, 0.0) == 0.0
    assert _cett.cett(a, weight, float(s.max())) == pytest.approx(1.0, abs=1e-6)
    assert _cett.cett(torch.zeros(3, 12), weight, 1.0) == 0.0


def test_thresholds_are_the_largest_that_comply() -> None:
    a, weight = torch.randn(200, 40, dtype=torch.float64), torch.randn(10, 40, dtype=torch.float64)
    s = _cett.sizes(a, weight)
    end = float(s.flatten().kthvalue(round(0.99 * s.numel())).values)
    step = (end - float(s.min())) / (_cett.CANDIDATES - 1)
    for level in (0.05, 0.2, 0.6):
        t = _cett.threshold_for(a, weight, level)
        assert _cett.cett(a, weight, t) <= level < _cett.cett(a, weight, t + step)
    assert _cett.threshold_for(a, weight, 1.0) == pytest.approx(end, rel=1e-9)
    sparse = a.relu()
    kept = s > _cett.threshold_for(sparse, weight, 0.0)
    assert _cett.cett(sparse, weight, _cett.threshold_for(sparse, weight, 0.0)) == 0.0
    assert float(kept.double().mean()) <= 1.0
    with pytest.raises(WorkingPapersError, match="between 0 and 1"):
        _cett.threshold_for(a, weight, 1.5)


@pytest.mark.parametrize("gated", [False, True])
def test_down_projections_and_what_enters_them(gated: bool) -> None:
    model, tokens = wild(nn.SiLU, gated)
    downs = _cett.downs_of(model, tokens[:1])
    assert list(downs) == ["blocks.0.contract", "blocks.1.contract"]
    x: list[Tensor] = []
    model.blocks[1].contract.register_forward_pre_hook(lambda m, args: x.append(args[0]))
    found = _cett.activations_into(model, tokens, downs, batch=4)
    assert torch.equal(found["blocks.1.contract"], torch.cat(x).flatten(0, 1).detach())
    assert list(_cett.downs_of(mlp([5, 7, 6, 3]), torch.randn(2, 5))) == ["3", "5"]
    with pytest.raises(WorkingPapersError, match="right behind"):
        _cett.downs_of(cnn(1, 3, (4,), size=8), torch.randn(1, 1, 8, 8))


def test_pruned_runs_leave_out_what_is_small() -> None:
    model, tokens = mlp([5, 9, 3], nn.GELU), torch.randn(6, 5)
    downs = {"3": model[3]}
    weight = model[3].weight
    with _cett.keeping(downs, _cett.above_thresholds(downs, {"3": 0.02})):
        pruned = model(tokens)
    a = F.gelu(model[1](tokens))
    kept = torch.where(a.abs() * weight.norm(dim=0) > 0.02, a, 0)
    torch.testing.assert_close(pruned, model[3](kept))
    assert not torch.allclose(pruned, model(tokens))
    assert not model[3]._forward_pre_hooks


def test_cutoffs_keep_what_they_say() -> None:
    a = torch.tensor([[3.0, -4.0, 0.5, 1.0], [0.1, 0.2, -0.3, 0.05]])
    assert _cett.top_share(0.5)("x", a).tolist() == [[True, True, False, False], [False, True, True, False]]
    assert _cett.beyond(0.25)("x", a).tolist() == [[True, True, True, True], [False, False, True, False]]
    kept = _cett.ratios({"x": a}, _cett.beyond(0.25))["x"]
    assert kept.tolist() == [1.0, 0.25]


def test_perplexity_rises_by_at_most_p_and_the_ratio_falls_with_p() -> None:
    model, tokens = wild()
    found = [sparsing_law(model, tokens, p) for p in (0.0, 1.0, 10.0, 50.0)]
    assert found[0].numbers["loss_sparse"] == found[0].numbers["loss"]
    ratios = [f.numbers["ratio"] for f in found]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < ratios[0]
    for f, p in zip(found, (0, 1, 10, 50), strict=True):
        assert f.numbers["loss_sparse"] - f.numbers["loss"] <= math.log1p(p / 100)
        layers = [v for k, v in f.numbers.items() if k.startswith("ratio ")]
        assert f.numbers["ratio"] == pytest.approx(sum(layers) / 2)
        assert f.details["by_token"]["blocks.0.contract"].shape == (72,)
    # from the definition, for the last
    thresholds, downs = found[3].details["thresholds"], _cett.downs_of(model, tokens[:1])
    held = _cett.activations_into(model, tokens[:, :-1], downs)
    for name, a in held.items():
        share = (_cett.sizes(a, _cett.down_weight(downs[name])) > thresholds[name]).double().mean()
        assert found[3].numbers[f"ratio {name}"] == pytest.approx(float(share))
        assert _cett.cett(a, _cett.down_weight(downs[name]), thresholds[name]) <= found[3].numbers["cett"]
    with pytest.raises(WorkingPapersError, match="p >= 0"):
        sparsing_law(model, tokens, -1.0)


def test_relus_need_no_more_than_what_is_positive() -> None:
    model, tokens = wild(nn.ReLU, gated=False)
    found = sparsing_law(model, tokens, 0.0)
    downs = _cett.downs_of(model, tokens[:1])
    held = _cett.activations_into(model, tokens[:, :-1], downs)
    positive = sum(float((a > 0).double().mean()) for a in held.values()) / 2
    assert found.numbers["ratio"] <= positive + 1e-12
    assert found.numbers["ratio"] > 0.9 * positive


def test_losses_are_those_of_the_next_token() -> None:
    model, tokens = wild()
    logits = model(tokens[:, :-1]).detach().log_softmax(-1)
    wanted = -logits.gather(-1, tokens[:, 1:, None]).mean()
    assert next_token_loss(model.train(), tokens) == pytest.approx(float(wanted), rel=1e-5)
    assert model.training
    rises = matched(model, tokens, 5.0)
    assert rises["cett"] <= 0.05 + 1e-6
    assert set(rises) == {"cett", "topk", "fat", "ratio"}


def test_gates_and_widths() -> None:
    x = torch.randn(3, 8)
    torch.testing.assert_close(HalfGate(nn.SiLU())(x), F.silu(x[:, :4]) * x[:, 4:])
    one, other = (initialise(lambda a=a: decoder(7, 4, 8, 1, 12, a, True), 0) for a in (nn.ReLU, nn.SiLU))  # type: ignore[misc]
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_laws_give_their_parameters_back() -> None:
    d = np.geomspace(1e6, 1e9, 12)
    found = fit_law("silu", d, silu_law(d, 0.6, 200.0, 0.4))
    assert found.parameters == pytest.approx({"A0": 0.6, "c": 200.0, "alpha": 0.4}, rel=1e-4)
    assert found.r2 == pytest.approx(1.0, abs=1e-9)
    curve = relu_law(d, 0.08, 2e-3, 0.4, -1.0)
    found = fit_law("relu", d, curve)
    assert found.parameters == pytest.approx({"A0": 0.08, "c": 2e-3, "alpha": 0.4, "b": -1.0}, rel=1e-3)
    np.testing.assert_allclose(found.curve(d), curve, atol=1e-7)
    x = np.linspace(10, 200, 15)
    found = fit_law("linear_then_flat", x, linear_then_flat(x, 0.05, 1e-3, 114.0))
    assert found.parameters == pytest.approx({"intercept": 0.05, "slope": 1e-3, "bend": 114.0}, rel=1e-5)
    assert found.figure().axes
    with pytest.raises(WorkingPapersError, match="at least 3"):
        fit_law("silu", [1, 2], [0.1, 0.2])
    with pytest.raises(WorkingPapersError, match="linear_then_flat"):
        fit_law("linear", x, x)


def test_the_check_measures_plain_layers() -> None:
    model, x = char_gpt(11, 16, 2, 2, 12, nn.ReLU), torch.randint(11, (40, 12))
    check = component("sparsing_law.ratio").target
    case = case_of(model, x)
    found = check(case)
    assert {k for k in found.numbers if k != "ratio"} == {f"ratio of blocks.{i}.contract" for i in (0, 1)}
    a = case.activity.places["blocks.0.activation"].output.rows[:128]
    weight = model.blocks[0].contract.weight.detach()
    t = _cett.threshold_for(a, weight, 0.2)
    wanted = float((_cett.sizes(a, weight) > t).double().mean())
    assert found.numbers["ratio of blocks.0.contract"] == pytest.approx(wanted)
    assert check(case, level=0.5).numbers["ratio"] < found.numbers["ratio"]
    assert found.symptoms == ()
    with pytest.raises(NotApplicable, match="plain or gated"):
        check(case_of(cnn(1, 3, (4,), size=8), torch.randn(9, 1, 8, 8)))


def test_the_check_measures_gated_layers() -> None:
    model, tokens = wild(nn.SiLU, gated=True)
    case = case_of(model, tokens)
    found = component("sparsing_law.ratio").target(case)
    assert set(found.numbers) == {"ratio", "ratio of blocks.0.contract", "ratio of blocks.1.contract"}


def test_claims_are_the_records() -> None:
    assert {c.says for c in claims("sparsing_law").values()} == {
        c["says"] for c in record("sparsing_law").claims
    }
