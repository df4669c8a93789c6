"""Features in representations: shares of variance by hand, data that are what they say, nets that learn them."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import f_oneway
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import claims, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory import _variance
from workingpapers.papers.theory._feature_nets import (
    Decoder,
    feature_accuracy,
    feature_loss,
    train_features,
    trained_net,
)
from workingpapers.papers.theory._features import (
    EASY,
    XOR,
    Feature,
    balanced,
    bit_inputs,
    image_inputs,
    token_inputs,
)
from workingpapers.papers.theory._probes import linear_accuracy
from workingpapers.papers.theory.representation_bias import (
    bias_report,
    feature_measures,
    penultimate,
    representation_bias,
)
from workingpapers.tasks import mlp

CUBE = (
    2.0 * (torch.arange(8)[:, None] >> torch.arange(3) & 1) - 1
)  # all patterns of three independent features


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# measures


def test_a_feature_in_one_unit_explains_that_units_share() -> None:
    rows = CUBE * torch.tensor([1.0, 2.0, 3.0]) + 5
    shares = torch.tensor([1.0, 4.0, 9.0]) / 14
    for i in range(3):
        assert _variance.explained(rows, CUBE[:, i]) == pytest.approx(float(shares[i]))
        assert _variance.explained_by_unit(rows, CUBE[:, i]).tolist() == [float(i == j) for j in range(3)]
    assert _variance.unique(rows, CUBE) == pytest.approx(shares.tolist())
    turned = rows @ torch.linalg.qr(torch.randn(3, 3, generator=generator()))[0]
    assert _variance.explained(turned, CUBE[:, 1]) == pytest.approx(4 / 14, rel=1e-5)
    assert _variance.explained(torch.ones(8, 2), CUBE[:, 0]) == 0


def test_explained_variance_is_that_of_group_means() -> None:
    torch.manual_seed(0)
    rows, feature = torch.randn(50, 4), torch.randint(3, (50,))
    fitted = torch.stack([rows[feature == k].mean(0) for k in range(3)])[feature]
    wanted = (fitted - rows.mean(0)).square().sum() / (rows - rows.mean(0)).square().sum()
    assert _variance.explained(rows, feature) == pytest.approx(float(wanted), rel=1e-5)
    assert _variance.explained(rows, feature * 7.5 - 1) == pytest.approx(float(wanted), rel=1e-5)
    assert _variance.explained(3 * rows + 1, feature) == pytest.approx(float(wanted), rel=1e-4)


def test_shuffled_features_explain_next_to_nothing() -> None:
    values = balanced(10_000, 2, generator())
    torch.manual_seed(1)
    rows = values.float() @ torch.randn(2, 30) + torch.randn(10_000, 30)
    assert _variance.explained(rows, values[:, 0]) > 0.05
    shuffled = values[torch.randperm(10_000), 0]
    assert _variance.explained(rows, shuffled) <= 0.01


def test_shares_of_independent_features_add_up_to_at_most_1() -> None:
    torch.manual_seed(2)
    rows = torch.tanh(CUBE @ torch.randn(3, 20) + torch.randn(20))
    assert sum(_variance.explained(rows, CUBE[:, i]) for i in range(3)) < 1
    linear = CUBE @ torch.randn(3, 20)
    assert sum(_variance.explained(linear, CUBE[:, i]) for i in range(3)) == pytest.approx(1)


def test_what_two_features_share_is_nobodys_own() -> None:
    one = torch.tensor([0.0, 0, 0, 1, 1, 1])
    other = torch.tensor([0.0, 0, 1, 0, 1, 1])
    torch.manual_seed(0)
    rows = torch.randn(6, 5).double()
    design = torch.stack([torch.ones(6), one, other], 1).double()

    def r2(columns: torch.Tensor) -> float:
        fitted = columns @ torch.linalg.lstsq(columns, rows).solution
        return float((fitted - rows.mean(0)).square().sum() / (rows - rows.mean(0)).square().sum())

    whole = r2(design)
    wanted = [whole - r2(design[:, [0, 2]]), whole - r2(design[:, :2])]
    assert _variance.unique(rows, torch.stack([one, other], 1)) == pytest.approx(wanted)
    assert _variance.unique(rows, torch.stack([one, one], 1)) == pytest.approx([0, 0], abs=1e-9)
    assert _variance.unique(rows, one[:, None]) == pytest.approx([_variance.explained(rows, one)])


def test_coding_units_by_analysis_of_variance() -> None:
    torch.manual_seed(0)
    feature = torch.arange(90) % 3
    rows = torch.randn(90, 12)
    rows[:, :4] += 1.0 * feature[:, None]
    rows[:, 4:6] += 0.55 * feature[:, None]
    p = [f_oneway(*[rows[feature == k, u].numpy() for k in range(3)]).pvalue for u in range(12)]
    wanted = sum(v < 0.01 / 12 for v in p) / 12
    assert 4 / 12 <= wanted < 0.9
    assert _variance.coding_units(rows, feature) == pytest.approx(wanted)
    assert _variance.coding_units(feature[:, None].float(), feature) == 1
    assert _variance.coding_units(rows, torch.zeros(90)) == 0


def test_principal_components_follow_the_strong_feature() -> None:
    rows = CUBE * torch.tensor([1.0, 2.0, 3.0])
    assert _variance.components(rows, CUBE[:, 2]) == pytest.approx([1, 0], abs=1e-9)
    assert _variance.components(rows, CUBE[:, 1]) == pytest.approx([0, 1], abs=1e-9)
    assert math.isnan(_variance.components(CUBE[:, :1], CUBE[:, 0])[1])


def test_linear_classifiers_do_not_see_rotations() -> None:
    torch.manual_seed(0)
    rows = torch.randn(200, 6) * torch.tensor([3.0, 1, 1, 1, 1, 0.1])
    label = (rows[:, 0] + rows[:, 1] > 0).long()
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    found = linear_accuracy(rows[:100], label[:100], rows[100:], label[100:])
    again = linear_accuracy(7 * rows[:100] @ turn + 1, label[:100], 7 * rows[100:] @ turn + 1, label[100:])
    assert found == again > 0.9
    assert linear_accuracy(rows[:3], torch.ones(3), rows[:4], torch.tensor([1, 1, 0, 1])) == 0.75


# data


def test_features_are_what_their_bits_say() -> None:
    kinds = (EASY, XOR, Feature("parity", 4), Feature("sum", 5))
    x, values = bit_inputs(kinds, 600, generator(3), units=20, noise=0.0)
    assert x.shape == (600, 80)
    assert set(x.flatten().tolist()) == {-1.0, 1.0}
    assert values.mean(0).tolist() == [0.5] * 4
    correlation = torch.corrcoef(values.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.2
    bits = (x.reshape(600, 4, 20) > 0).long()
    assert torch.equal(bits[:, 0, 0], values[:, 0].long())
    assert torch.equal(bits[:, 1, :2].sum(1) % 2, values[:, 1].long())
    assert torch.equal(bits[:, 2, :4].sum(1) % 2, values[:, 2].long())
    assert torch.equal((bits[:, 3, :5].sum(1) > 2).long(), values[:, 3].long())
    assert torch.equal(bits[:, 2, :16], bits[:, 2, :4].repeat(1, 4))
    noisy = bit_inputs((EASY,), 600, generator(3), units=20, noise=0.5)[0]
    assert float((noisy - noisy.mean(1, keepdim=True)).std()) == pytest.approx(0.5, rel=0.05)
    for i in (1, 2):  # no bit alone tells a parity
        for bit in range(kinds[i].bits):
            assert (
                abs(float(torch.corrcoef(torch.stack([bits[:, i, bit].float(), values[:, i]]))[0, 1])) < 0.15
            )


def test_features_are_present_in_their_share_of_inputs() -> None:
    x, values = bit_inputs((EASY, Feature(present=0.3)), 2000, generator(), units=4, noise=0.0)
    absent = values[:, 1].isnan()
    assert float((~absent).float().mean()) == pytest.approx(0.3, abs=0.04)
    assert bool((x[absent, 4:] == 0).all())
    assert bool((x[~absent, 4:] != 0).all())
    assert not bool(values[:, 0].isnan().any())


def test_images_hold_shape_texture_and_colour() -> None:
    x, values = image_inputs(200, generator(1), size=32, noise=0.0)
    assert x.shape == (200, 3, 32, 32)
    blue = x[:, 2].flatten(1).amax(1) > x[:, 0].flatten(1).amax(1)
    assert torch.equal(blue, values[:, 2] == 1)
    inside = x[:, 1] > 0
    light = x[:, 1]
    down = ((light[:, 1:] - light[:, :-1]).abs() * inside[:, 1:] * inside[:, :-1]).flatten(1).sum(1)
    across = (
        ((light[:, :, 1:] - light[:, :, :-1]).abs() * inside[:, :, 1:] * inside[:, :, :-1]).flatten(1).sum(1)
    )
    assert torch.equal(across > down, values[:, 1] == 1)
    box = inside.any(1).sum(1) * inside.any(2).sum(1)
    filled = inside.flatten(1).sum(1) / box
    assert float((filled[values[:, 0] == 0]).min()) > 0.99
    assert float((filled[values[:, 0] == 1]).max()) < 0.9


def test_tokens_end_with_the_features_before_the_last() -> None:
    tokens, values = token_inputs((EASY, XOR, EASY), 100, generator())
    assert tokens.shape == (100, 6)
    assert torch.equal(tokens[:, 0], values[:, 0].long())
    assert torch.equal(tokens[:, 1:3].sum(1) % 2, values[:, 1].long())
    assert torch.equal(tokens[:, 4:], values[:, :2].long())


# networks


def test_a_decoder_sees_no_later_token() -> None:
    torch.manual_seed(0)
    model = Decoder(6, 3, dim=16).eval()
    tokens = torch.randint(2, (4, 6))
    out = model(tokens)
    assert out.shape == (4, 3)
    changed = tokens.clone()
    changed[:, 5] = 1 - changed[:, 5]
    torch.testing.assert_close(model(changed)[:, :2], out[:, :2])
    assert float((model(changed)[:, 2] - out[:, 2]).detach().abs().min()) > 0
    changed = tokens.clone()
    changed[:, 4] = 1 - changed[:, 4]
    torch.testing.assert_close(model(changed)[:, 0], out[:, 0])


def test_the_loss_is_of_features_that_are_trained_and_present() -> None:
    logits = torch.tensor([[1.0, 2.0], [-1.0, 3.0]])
    values = torch.tensor([[1.0, math.nan], [1.0, 0.0]])
    both = [F.softplus(torch.tensor(v)) for v in (-1.0, 1.0, 3.0)]
    assert float(feature_loss(logits, values, (0, 1))) == pytest.approx(float(sum(both)) / 3)
    assert float(feature_loss(logits, values, (1,))) == pytest.approx(float(both[2]))
    assert float(feature_loss(logits[:1], values[:1], (1,))) == 0
    assert feature_accuracy(nn.Identity(), logits, values).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_phases_train_what_they_name(optimizer: str) -> None:
    def sample(count: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return bit_inputs((EASY, EASY), count, g, units=4)

    torch.manual_seed(0)
    model, lr = mlp([8, 16, 2]), 0.01
    found = train_features(model, sample, [((1,), None)], lr=lr, optimizer=optimizer)
    assert float(found[1]) >= 0.99
    assert float(found[0]) < 0.9
    found = train_features(model, sample, [((1,), 5), ((0,), None)], lr=lr, optimizer=optimizer)
    assert float(found[0]) >= 0.99


def test_the_report_is_of_what_the_last_layer_reads() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2), nn.Sigmoid())
    x, feature = torch.randn(60, 1, 3, 3), torch.arange(60) % 2
    rows = torch.tanh(model[0](x)).flatten(1).detach()
    torch.testing.assert_close(penultimate(model, x), rows)
    found = bias_report(model, x, {"f": feature}).numbers
    assert found == feature_measures(rows, {"f": feature})
    assert found["r2 f"] == pytest.approx(_variance.explained(rows, feature))
    assert found["unique f"] == pytest.approx(found["r2 f"])
    named = bias_report(model, x, {"f": feature}, ["1"]).numbers
    assert named["r2 f 1"] == pytest.approx(found["r2 f"])


def test_absent_features_count_where_they_are() -> None:
    torch.manual_seed(0)
    feature = (torch.arange(80) % 2).float()
    rows = torch.randn(80, 3) + feature[:, None]
    hidden = feature.clone()
    hidden[:30] = math.nan
    found = feature_measures(rows, {"a": feature, "b": hidden})
    assert found["r2 b"] == pytest.approx(_variance.explained(rows[30:], feature[30:]))
    assert found["r2 a"] == pytest.approx(_variance.explained(rows, feature))


def test_the_study_learns_both_and_prefers_the_easy_one() -> None:
    found = representation_bias(width=32, depth=2, seed=1)
    assert min(found.numbers["accuracy 0"], found.numbers["accuracy 1"]) >= 0.99
    assert found.numbers["r2 0"] > found.numbers["r2 1"]
    assert found.numbers["probe 0"] >= 0.99
    other = trained_net((EASY, XOR), [((0,), 3)], "transformer", 16, 2, seed=0)
    assert isinstance(other[0], Decoder)
    assert penultimate(other[0], other[1](5, generator())[0]).shape == (5, 32)
    images = trained_net((), [((0, 1, 2), 2)], "cnn", 16, seed=0)
    assert images[2].shape == (3,)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Feature("xor", 2), "'sum'"),
        (lambda: Feature("parity", 1), "at least 2"),
        (lambda: Feature("sum", 4), "odd"),
        (lambda: Feature(present=0.0), "above 0"),
        (lambda: bit_inputs((Feature("parity", 4),), 9, generator(), units=3), "3 units cannot hold 4"),
        (lambda: _variance.explained(torch.ones(3, 2), torch.ones(4)), "(4,) for 3"),
        (lambda: feature_measures(torch.ones(3, 2), {"a": torch.ones(4)}), "3 rows; got 4"),
        (lambda: feature_measures(torch.ones(4, 2), {"a": torch.ones(4) * math.nan}), "got 0"),
        (lambda: trained_net((EASY,), model="mpl"), "'mlp'"),
        (lambda: train_features(mlp([2, 1]), lambda n, g: (torch.ones(n, 2),) * 2, []), "at least one phase"),
        (lambda: trained_net((EASY,), optimizer="adm"), "'adam'"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, words: str) -> None:
    with pytest.raises(WorkingPapersError) as caught:
        call()
    assert words in str(caught.value), str(caught.value)


def test_the_claims_are_the_records() -> None:
    own, known = claims("representation_bias").values(), record("representation_bias").claims
    assert [c.says for c in own] == [c["says"] for c in known]
