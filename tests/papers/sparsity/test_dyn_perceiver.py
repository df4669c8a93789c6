"""Dynamic Perceiver: attention by hand, features left alone at first, exits that stop, costs by counting."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.surgery.real_models import timm, vision
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._early_exits import (
    budgeted_predict,
    exit_costs,
    exits_loss,
    geometric,
    mean_cost,
    thresholds_for,
)
from workingpapers.papers.sparsity._latent_branch import (
    CrossAttention,
    Narrowing,
    Reading,
    halvings,
    widths_for,
)
from workingpapers.papers.sparsity.dyn_perceiver import (
    DynPerceiver,
    Staged,
    _Exits,
    _staged,
    accuracies,
    predict,
    solve_thresholds,
    wrap,
)
from workingpapers.tasks import fit


def small() -> Any:
    """Build a network whose norms and tokens are as if trained."""
    model: Any = DynPerceiver(2, 5, (4, 4, 8, 8), num_latents=32, pool=3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    for writing in model.writing:
        nn.init.normal_(writing.read.out.weight)
    for head in (*model.heads[:3], model.heads[3][1]):
        nn.init.normal_(head.weight)
    nn.init.normal_(model.latents)
    return model.eval()


def pictures(count: int = 12) -> Tensor:
    return torch.randn(count, 2, 12, 12)


@torch.no_grad()
def test_cross_attention_by_hand() -> None:
    layer = CrossAttention(6, 4, inner=8, heads=2, positions=5, widening=3)
    nn.init.normal_(layer.positions)  # type: ignore[arg-type]
    x, source = torch.randn(2, 3, 6), torch.randn(2, 5, 4)

    def normed(t: Tensor) -> Tensor:
        return (t - t.mean(-1, keepdim=True)) / (t.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    q, k = normed(x) @ layer.q.weight.T, normed(source) @ layer.k.weight.T + layer.positions
    v = normed(source) @ layer.v.weight.T
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        weights = (q[..., h] @ k[..., h].transpose(1, 2) / math.sqrt(4)).softmax(-1)
        heads.append(weights @ v[..., h])
    y = x + torch.cat(heads, -1) @ layer.out.weight.T + layer.out.bias
    y = y + layer.contract(F.gelu(layer.expand(normed(y))))
    torch.testing.assert_close(layer(x, source), y, atol=1e-5, rtol=1e-5)
    own = CrossAttention(6, None, heads=3)
    assert isinstance(own.norm_source, nn.Identity)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(own(x[:, order]), own(x)[:, order], atol=1e-5, rtol=1e-5)
    with pytest.raises(WorkingPapersError, match="6 is no multiple of 4"):
        CrossAttention(6, None, heads=4)


@torch.no_grad()
def test_tokens_read_the_smoothed_and_pooled_map() -> None:
    reading = Reading(6, 4, depth=0, heads=1, pool=2)
    z, x = torch.randn(3, 5, 6), torch.randn(3, 4, 8, 8)
    seen = (x + reading.smooth(x)).unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean((3, 5))  # (3, 4, 2, 2)
    torch.testing.assert_close(reading(z, x), reading.read(z, seen.flatten(2).mT), atol=1e-5, rtol=1e-5)
    narrow = Narrowing((8, 4), (6, 10))
    z = torch.randn(2, 8, 6)
    fewer = narrow.across[1](F.layer_norm(z.mT, (8,))).mT
    torch.testing.assert_close(narrow(z), narrow.within[1](F.layer_norm(fewer, (6,))), atol=1e-5, rtol=1e-5)
    assert halvings(128, 4) == [128, 64, 32, 16]
    assert widths_for([8, 16, 24], 4) == [4, 8, 12]
    assert widths_for([8, 16], None) == [8, 16]
    with pytest.raises(WorkingPapersError, match="are too few"):
        halvings(7, 4)


@torch.no_grad()
def test_features_are_left_alone_at_initialisation_and_not_after() -> None:
    model: Any = DynPerceiver(2, 5, (4, 4, 8, 8), num_latents=16, pool=3).eval()
    x = pictures(3)
    h = model.stem(x)
    for stage in model.stages:
        h = stage(h)
    assert torch.equal(model(x)[2], model.heads[2](h.mean((2, 3))))
    nn.init.normal_(model.writing[1].read.out.weight)
    assert not torch.allclose(model(x)[2], model.heads[2](h.mean((2, 3))))


def test_what_each_exit_has_seen() -> None:
    model, x = small(), pictures(4)
    parts = {"stem": model.stem, **{f"stage {i}": model.stages[i] for i in range(4)}}
    seen = []
    for logits in model(x):
        found = torch.autograd.grad(
            logits.sum(), list(model.parameters()), retain_graph=True, allow_unused=True
        )
        used = {p for p, g in zip(model.parameters(), found, strict=True) if g is not None}
        seen.append({name for name, part in parts.items() if used & set(part.parameters())})
    assert seen[0] == {"stem", "stage 0", "stage 1"}
    assert seen[1] == seen[0] | {"stage 2"}
    assert seen[2] == seen[3] == set(parts)


@torch.no_grad()
def test_thresholds_decide_where_examples_leave() -> None:
    model, x = small(), pictures(40)
    every = model(x)
    none = predict(model, x, [2.0] * 3)
    torch.testing.assert_close(none.logits, every[3], atol=1e-4, rtol=1e-4)
    assert none.fractions == [0.0, 0.0, 0.0, 1.0]
    first = predict(model, x, [0.0] * 3)
    torch.testing.assert_close(first.logits, every[0], atol=1e-4, rtol=1e-4)
    assert first.fractions == [1.0, 0.0, 0.0, 0.0]
    sure = torch.stack([y.softmax(1).amax(1) for y in every])
    cuts = [float(s.median()) + 1e-4 for s in sure[:3]]
    found = predict(model, x, cuts)
    wanted = [next((k for k in range(3) if sure[k, i] >= cuts[k]), 3) for i in range(40)]
    assert found.exits.tolist() == wanted
    assert sum(found.fractions) == pytest.approx(1.0)
    picked = torch.stack([every[k][i] for i, k in enumerate(wanted)])
    torch.testing.assert_close(found.logits, picked, atol=1e-4, rtol=1e-4)
    with pytest.raises(WorkingPapersError, match="all 4 exits but the last have thresholds; got 2"):
        predict(model, x, [0.5, 0.5])


def test_what_is_behind_an_exit_is_not_computed() -> None:
    model, x = small(), pictures(10)
    ran: list[int] = []
    model.stages[2].register_forward_hook(lambda m, args, y: ran.append(len(y)))
    predict(model, x, [0.0] * 3)
    assert ran == []
    found = predict(model, x, [float(model(x)[0].detach().softmax(1).amax(1).median()) + 1e-4, 2.0, 2.0])
    assert ran[-1] == 10 - int((found.exits == 0).sum())
    assert 0 < ran[-1] < 10


def test_costs_by_counting() -> None:
    staged = _staged(2, (4, 4, 6, 8), early=True)
    found = exit_costs(staged, pictures(1))
    block = 2 * 4 * 4 * 9 * 144
    second = (4 * 4 * 9 + 4 * 4 * 9 + 4 * 4) * 36
    assert found[0] == 2 * 4 * 9 * 144 + block + second + 4 * 10
    third = (4 * 6 * 9 + 6 * 6 * 9 + 4 * 6) * 9
    assert found[1] == found[0] + third + 6 * 10
    model, x = small(), pictures(30)
    costs = exit_costs(model, x)
    assert costs == sorted(costs)
    assert len(set(costs)) == 4
    middle = float(model(x)[0].detach().softmax(1).amax(1).median())
    answers = predict(model, x, [middle, 2.0, 2.0])
    mean = float(np.mean([costs[k] for k in answers.exits.tolist()]))
    assert mean_cost(answers.fractions, costs) == pytest.approx(mean)


def test_thresholds_give_the_shares() -> None:
    sure = torch.rand(3, 200)
    cuts = thresholds_for(sure, [0.3, 0.5, 0.2])
    first = sure[0] >= cuts[0]
    second = ~first & (sure[1] >= cuts[1])
    assert (int(first.sum()), int(second.sum())) == (60, 100)
    assert thresholds_for(sure, [0.0, 0.0, 1.0]) == [2.0, 2.0]
    assert geometric(2.0, 3) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert geometric(1.0, 4) == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_a_budget_is_kept_and_used(share: float) -> None:
    model, x = small(), pictures(60)
    costs = exit_costs(model, x)
    budget = costs[0] + share * (costs[-1] - costs[0])
    thresholds, cost = solve_thresholds(model, x, budget)
    assert cost <= budget + 1e-6
    assert cost >= budget - 0.15 * (costs[-1] - costs[0])
    answers = predict(model, x, thresholds)
    assert mean_cost(answers.fractions, costs) == pytest.approx(cost, rel=0.02)
    again = budgeted_predict(model, x, x, budget)
    assert torch.equal(again.exits, answers.exits)
    with pytest.raises(WorkingPapersError, match="the first exit costs"):
        solve_thresholds(model, x, 0.9 * costs[0])


def test_the_loss_by_hand() -> None:
    outputs, y = [torch.randn(6, 4, requires_grad=True) for _ in range(3)], torch.arange(6) % 4
    p = [o.detach().double().softmax(1) for o in outputs]
    wanted = sum(w * -q[range(6), y].log().mean() for w, q in zip((0.5, 2.0, 1.0), p, strict=True))
    wanted = wanted + 0.5 * sum((p[2] * (p[2] / q).log()).sum(1).mean() for q in p[:2])
    loss = exits_loss(outputs, y, (0.5, 2.0, 1.0))
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-5)
    loss.backward()
    alone = torch.autograd.grad(F.cross_entropy(outputs[2], y), outputs[2])[0]
    torch.testing.assert_close(outputs[2].grad, alone)
    soft = exits_loss([o.detach() for o in outputs], y, (0.0, 0.0, 0.0), alpha=1.0, tau=3.0)
    t = [(o.detach() / 3).softmax(1) for o in outputs]
    torch.testing.assert_close(soft, 9 * sum((t[2] * (t[2] / q).log()).sum(1).mean() for q in t[:2]))


BACKBONES: dict[str, Any] = {
    "resnet18": (vision.resnet18, {}),
    "resnet18 of timm": (lambda: timm.create_model("resnet18", num_classes=7), {}),
    "regnet": (
        lambda: vision.regnet_y_400mf(num_classes=7),
        {"stages": [f"trunk_output.block{i}" for i in range(1, 5)]},
    ),
}


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_backbones_are_wrapped_with_their_weights(name: str) -> None:
    build, options = BACKBONES[name]
    backbone, x = build().eval(), torch.randn(2, 3, 32, 32)
    model = wrap(backbone, x, num_latents=16, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), dim=8, **options)
    outputs = model(x)
    assert len(outputs) == 4
    torch.testing.assert_close(outputs[2], backbone(x), atol=1e-4, rtol=1e-4)
    assert not set(model.parameters()) & set(backbone.parameters())


def test_backbones_that_do_not_fit() -> None:
    backbone, x = vision.resnet18(), torch.randn(1, 3, 32, 32)
    with pytest.raises(WorkingPapersError, match="does not run the stem"):
        wrap(backbone, x, ("layer2", "layer3", "layer4", "layer4"), stem=["conv1", "layer1"])
    with pytest.raises(WorkingPapersError, match="no module 'layer5'"):
        wrap(backbone, x, ("layer1", "layer2", "layer3", "layer5"))
    with pytest.raises(WorkingPapersError, match="a stem and four stages; got 3 stages"):
        wrap(backbone, x, ("layer1", "layer2", "layer3"), ["conv1", "bn1", "relu", "maxpool"], 5)
    headless = nn.Sequential(*list(backbone.children())[:-1])
    with pytest.raises(WorkingPapersError, match="give num_classes"):
        wrap(headless, x, ("4", "5", "6", "7"))


def test_the_rivals_learn_and_are_measured() -> None:
    y = torch.arange(20) % 2
    x = torch.randn(20, 2, 12, 12) + 2 * y[:, None, None, None]
    split = Split(x, y, x, y, 10, "blobs")
    static: Any = _staged(2, (4, 4, 4, 4), early=False)
    assert static.exits == len(static(x)) == 1
    linear = _staged(2, (4, 4, 4, 4), early=True)
    assert isinstance(linear, Staged)
    problem = _Exits(split, lambda o, t: exits_loss(o, t, (0.5, 0.5, 1.0)))
    done = fit(linear, problem, epochs=10, batch=20, lr=0.02)
    found = accuracies(linear, split)
    assert done.metrics["accuracy"] == pytest.approx(found[-1])
    assert len(found) == 3
    assert found == [float((o.argmax(1) == y).double().mean()) for o in linear(x)]


def test_claims_are_those_of_the_record_and_the_model_is_made_by_name() -> None:
    assert {c.says for c in claims("dyn_perceiver").values()} == {
        c["says"] for c in record("dyn_perceiver").claims
    }
    assert len(make("dyn_perceiver", num_latents=8)(torch.randn(2, 3, 16, 16))) == 4
