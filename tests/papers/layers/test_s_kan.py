"""S-KAN: weights of families, hard choice equal to pruning, convolution by hand, the three stages of training."""

import math

import pytest
import torch
from scipy.special import j0
from torch import nn
from torch.nn import functional as F

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.layers.s_kan import (
    POOL,
    TARGETS,
    PrunedSKAN,
    SKANConv2d,
    SKANLinear,
    SKANTrainer,
    count_parameters,
    errors_on,
    mean_ranks,
    network,
    plot_choices,
    prune,
    target_data,
)


def shaken(layer: SKANLinear) -> SKANLinear:
    for p in layer.parameters():
        p.data.add_(torch.randn(p.shape) * 0.5)
    return layer


def test_the_output_is_the_weighted_sum_of_the_families():
    layer = shaken(SKANLinear(3, 4))
    layer.temperature.fill_(0.5)
    x = torch.randn(9, 3)
    w = torch.softmax(layer.logits / 0.5, dim=1)
    parts = torch.stack([layer.families[name](x.tanh()) for name in POOL], dim=-1)  # (N, nodes, families)
    assert torch.allclose(layer(x), (w * parts).sum(-1) + layer.bias, atol=1e-5)
    entropy = -(w * w.log()).sum(1).mean()
    assert torch.allclose(layer.entropy(), entropy, atol=1e-6)


@pytest.mark.parametrize("per", ["node", "layer"])
def test_a_hard_choice_is_the_pruned_layer(per):
    layer, x = shaken(SKANLinear(3, 6, per=per)), torch.randn(20, 3)
    best = layer.logits.argmax(1).expand(6).tolist()
    soft = layer(x)
    layer.choose()
    small, names = layer.pruned()
    assert names == [POOL[k] for k in best]
    assert torch.allclose(small(x), layer(x), atol=1e-6)
    assert not torch.allclose(layer(x), soft, atol=1e-3)
    assert count_parameters(small) < count_parameters(layer) / 3
    assert set(small.families) == set(names)
    assert layer.entropy() == 0


def test_only_x_is_an_affine_map_of_squashed_inputs():
    layer = shaken(SKANLinear(3, 2, pool=["linear"]))
    x, y = torch.randn(2, 5, 3)
    middle = torch.atanh((x.tanh() + y.tanh()) / 2)
    assert torch.allclose(layer(middle), (layer(x) + layer(y)) / 2, atol=1e-5)
    wanted = F.linear(x.tanh(), layer.families["linear"].coefficients[:, 0].T, layer.bias)
    assert torch.allclose(layer(x), wanted, atol=1e-6)


def test_the_layer_norm_squashes_to_mean_zero():
    layer = shaken(SKANLinear(4, 2, pool=["cheby", "gram"], squash="layer_norm"))
    x = torch.randn(5, 4)
    assert torch.allclose(layer(3 * x + 7), layer(x), rtol=1e-3, atol=1e-3)


def test_a_convolution_of_x_alone_is_an_ordinary_one_of_squashed_pixels():
    torch.manual_seed(0)
    options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
    layer = SKANConv2d(4, 6, **options, pool=["linear"])
    weight = torch.cat([p.families["linear"].coefficients[:, 0].T for p in layer.parts])
    for part in layer.parts:
        nn.init.normal_(part.bias)
    bias = torch.cat([p.bias for p in layer.parts])
    x = torch.randn(2, 4, 7, 8)
    options.pop("kernel_size")
    wanted = F.conv2d(x.tanh(), weight.view(6, 2, 3, 2), bias, **options)
    assert torch.allclose(layer(x), wanted, atol=1e-5)
    with pytest.raises(WorkingPapersError, match=r"images \(B, 4, H, W\); got \(2, 3, 7, 8\)"):
        layer(x[:, :3])


def test_the_stages_follow_one_another():
    model = network([2, 3, 1], ("cheby", "rbf", "linear"))
    x, y = target_data("product", 40, 0)
    trainer = SKANTrainer(total=20, stages=(0.5, 0.75))
    first = model[0]
    trainer.fit(model, x, y, steps=10)
    assert (trainer.stage(), float(first.temperature), float(first.chosen)) == (2, 1.0, 0.0)
    trainer.fit(model, x, y, steps=5)
    assert float(first.temperature) == pytest.approx(0.1)
    assert (trainer.stage(), float(first.chosen)) == (3, 0.0)
    trainer.fit(model, x, y, steps=1)
    logits, choice = first.logits.detach().clone(), first.names()
    trainer.fit(model, x, y, steps=4)
    assert float(first.chosen) == 1.0
    assert torch.equal(first.choice.sum(1), torch.ones(3))
    assert first.names() == choice
    assert torch.equal(first.weights(), first.choice)
    assert (first.logits - logits).abs().max() < 0.02  # only what momentum is left


def test_the_entropy_makes_nodes_decide():
    model = network([1, 3], ("cheby", "linear"))
    model[0].logits.data.copy_(torch.tensor([[0.3, -0.3]]))
    x = torch.zeros(10, 1)
    before = float(model[0].entropy().detach())
    SKANTrainer(total=60, stages=(0.0, 1.0), lr=0.05, entropy=10.0, coldest=1.0).fit(
        model, x, 0 * x.expand(10, 3), steps=60
    )
    assert float(model[0].entropy().detach()) < 0.5 * before


def test_pruning_a_model_keeps_chosen_outputs_and_names_the_change():
    model = network([2, 5, 1])
    for layer in model:
        shaken(layer).choose()
    x = torch.randn(12, 2)
    small = prune(model)
    assert isinstance(small[0], PrunedSKAN)
    assert torch.allclose(small(x), model(x), atol=1e-6)
    assert "0 is PrunedSKAN now" in small.workingpapers_changes[0]
    figure = plot_choices(model)
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 6
    with pytest.raises(WorkingPapersError, match="needs a model with selectable layers"):
        plot_choices(small)


def test_the_targets_are_the_seven():
    x = torch.tensor([[0.3, -0.6]])
    wanted = {
        "sine": math.sin(1.5 * math.pi),
        "exponential": math.exp(0.3),
        "absolute": 0.3,
        "step": 1.0,
        "bessel": j0(6.0),
        "product": -0.18,
        "nested": math.exp(math.sin(0.3 * math.pi) + 0.36),
    }
    assert {n: float(f(x)) for n, (_, f) in TARGETS.items()} == pytest.approx(wanted, abs=1e-5)
    assert target_data("nested", 5, 0)[0].shape == (5, 2)


def test_ranks_and_errors_have_every_arm():
    assert mean_ranks([{"a": 1.0, "b": 2.0}, {"a": math.nan, "b": 2.0}]) == {"a": 1.5, "b": 1.5}
    found = errors_on("exponential", 2, 20, 0)
    assert set(found) == {"s_kan", "mlp", *POOL}
    assert all(math.isfinite(v) for v in found.values())


def test_what_does_not_fit_is_refused():
    with pytest.raises(UnknownName, match="nearest name is 'cheby'"):
        SKANLinear(2, 2, pool=["chebi"])
    with pytest.raises(WorkingPapersError, match="at least one family, and none twice"):
        SKANLinear(2, 2, pool=["rbf", "rbf"])
    with pytest.raises(UnknownName, match="it is one of 'layer', 'node'"):
        SKANLinear(2, 2, per="edgewise-by-weight")
    with pytest.raises(WorkingPapersError, match=r"two rising shares of the training; got \(0.7, 0.4\)"):
        SKANTrainer(stages=(0.7, 0.4))
    with pytest.raises(WorkingPapersError, match="falls from 1 to a positive number; got 0"):
        SKANTrainer(coldest=0)
