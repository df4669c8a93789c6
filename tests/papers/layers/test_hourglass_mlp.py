"""Hourglass MLP: the block by hand, the lift from its seed, counted parameters, fronts and restoration tasks."""

import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.layers._lifting import RandomLift
from workingpapers.papers.layers._restoration import (
    Point,
    denoising,
    front,
    generative_classification,
    hypervolume,
    nearest,
    prototypes,
    psnr,
    super_resolution,
    trainable,
)
from workingpapers.papers.layers.hourglass_mlp import (
    CAPS,
    HOURGLASSES,
    USUAL,
    HourglassBlock,
    ResidualMLP,
    convert,
    settings,
)
from workingpapers.surgery import changes
from workingpapers.tasks import char_gpt, vit


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_the_block_follows_the_equation(norm: str) -> None:
    block, z = HourglassBlock(6, 2, norm, nn.ReLU, bias=True).double(), 3 * normal(4, 6) + 1
    h = z
    if norm == "layer":
        h = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    if norm == "rms":
        h = z / z.square().mean(-1, keepdim=True).sqrt()
    inner = (h @ block.w1.weight.T + block.w1.bias).clamp_min(0)
    torch.testing.assert_close(block(z), z + inner @ block.w2.weight.T + block.w2.bias)
    assert (block.w1.weight.shape, block.w2.weight.shape) == ((2, 6), (6, 2))


def test_without_inner_weights_the_network_is_one_linear_map() -> None:
    model, x = ResidualMLP(5, 3, 4, 3, 12).double(), normal(7, 5)
    for block in model.blocks:
        nn.init.zeros_(block.w2.weight)
    w = model.w_out.weight @ model.w_in.weight
    torch.testing.assert_close(model(x), x @ w.T)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"d_z": 20}, 3 * 2 * 20 * 4 + 20 * 6),
        ({"d_z": 20, "lift": "trained"}, 3 * 2 * 20 * 4 + 20 * 6 + 5 * 20),
        ({}, 3 * 2 * 5 * 4 + 5 * 6),
    ],
)
def test_trainable_parameters_are_counted_as_in_the_paper(options: dict[str, object], expected: int) -> None:
    assert trainable(ResidualMLP(5, 6, 4, 3, **options)) == expected  # type: ignore[arg-type]


def test_the_fixed_lift_is_no_parameter_and_comes_back_from_its_seed() -> None:
    model, other = ResidualMLP(5, 3, 4, 2, 12, seed=7), ResidualMLP(5, 3, 4, 2, 12, seed=8)
    assert not any("w_in" in name for name, _ in model.named_parameters())
    assert [name for name in model.state_dict() if "w_in" in name] == ["w_in.seed"]
    assert not torch.equal(model.w_in.weight, other.w_in.weight)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(model.w_in.weight, other.w_in.weight)
    x = torch.randn(4, 5)
    assert torch.equal(model(x), other(x))


def test_a_trained_lift_starts_from_the_same_numbers() -> None:
    fixed, trained = (ResidualMLP(5, 3, 4, 1, 12, lift, seed=3) for lift in ("fixed", "trained"))
    assert torch.equal(fixed.w_in.weight, trained.w_in.weight)
    assert trained.w_in.weight.requires_grad
    assert not fixed.w_in.weight.requires_grad


def test_the_random_lift_keeps_distances() -> None:
    x = torch.randn(100, 196, generator=torch.Generator().manual_seed(1))
    before = torch.pdist(x)
    after = torch.pdist(RandomLift(196, 2048)(x)) / math.sqrt(2048 / 196)
    assert float((after / before - 1).abs().max()) < 0.15
    assert float(RandomLift(196, 2048).weight.var()) == pytest.approx(1 / 196, rel=0.02)


def test_the_usual_shape_has_no_lift() -> None:
    model = ResidualMLP(5, 3, 40, 2)
    assert isinstance(model.w_in, nn.Identity)
    assert model.blocks[0].w1.weight.shape == (40, 5)


def test_wrong_words_and_shapes_are_answered() -> None:
    with pytest.raises(WorkingPapersError, match="no norm of an hourglass block is named 'batch'"):
        HourglassBlock(6, 2, "batch")
    with pytest.raises(WorkingPapersError, match="no lift is named 'fixd'; the nearest name"):
        ResidualMLP(5, 3, 4, 1, 12, "fixd")
    with pytest.raises(WorkingPapersError, match="narrow inside: d_h < d_z; got d_h=12 and d_z=12"):
        ResidualMLP(5, 3, 12, 1, 12)
    with pytest.raises(WorkingPapersError, match="has no feed-forward block of two linear layers"):
        convert(nn.Linear(3, 3))


def test_every_setting_fits_its_cap_and_its_family() -> None:
    for shapes in (HOURGLASSES, USUAL):
        for cap in CAPS:
            found = settings(cap, 196, shapes)
            assert found
            for d_z, d_h, depth in found:
                used = trainable(ResidualMLP(196, 196, d_h, depth, d_z if d_z > 196 else None))
                assert cap - 2 * d_z * depth < used <= cap
                assert (d_h < d_z) == (shapes is HOURGLASSES)


def test_conversion_replaces_feed_forward_blocks_only() -> None:
    torch.manual_seed(0)
    ffn = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, 6))
    other = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 5))
    model = convert(nn.ModuleDict({"ffn": ffn, "other": other}), widen=3, narrow=0.5, depth=2)
    assert isinstance(model["ffn"], ResidualMLP)
    assert (model["ffn"].w_in.weight.shape, model["ffn"].blocks[1].w1.weight.shape) == ((18, 6), (3, 18))
    assert len(changes(model)) == 1
    x = torch.randn(2, 6)
    assert torch.equal(model["other"](x), other(x))


def test_in_a_transformer_the_hourglass_stands_between_norm_and_sum() -> None:
    model = convert(char_gpt(11, 8, 2, 2, 6))
    block, x = model.blocks[1], torch.randn(2, 6, 8)
    y = x + block.mixer(block.norm1(x))
    torch.testing.assert_close(block(x), y + block.expand(block.norm2(y)))
    assert isinstance(block.expand, ResidualMLP)
    assert not torch.equal(model.blocks[0].expand.w_in.weight, block.expand.w_in.weight)
    assert len(changes(convert(vit(1, 8, 4, 3, 8, 1, 2)))) == 3


def tiny() -> Split:
    return images("digits", 200, 100, normalise=False)


def test_denoising_adds_noise_of_the_asked_size_to_both_parts() -> None:
    split, task = tiny(), denoising(tiny(), 0.3, seed=1)
    for noisy, clean, x in (
        (task.x_train, task.y_train, split.x_train),
        (task.x_test, task.y_test, split.x_test),
    ):
        assert torch.equal(clean, x.flatten(1))
        assert float((noisy - clean).std()) == pytest.approx(0.3, rel=0.05)
    assert task.num_classes == 0
    assert psnr(0.3**2) == pytest.approx(10.4576, abs=1e-4)


def test_super_resolution_sees_the_means_of_patches_only() -> None:
    split, task = tiny(), super_resolution(tiny())
    means = split.x_test.view(-1, 4, 2, 4, 2).mean((2, 4))[:, None]
    expected = F.interpolate(means, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(task.x_test, expected.flatten(1))
    with pytest.raises(WorkingPapersError, match="patches of 3x3 do not tile a 8x8 image"):
        super_resolution(split, 3)


def test_generative_classification_is_won_by_the_prototype() -> None:
    split, task = tiny(), generative_classification(tiny())
    drawn = prototypes(split)
    zeros = split.x_train[split.y_train == 0].flatten(1)
    torch.testing.assert_close(drawn[0], zeros.sum(0) / len(zeros))
    assert torch.equal(nearest(task.y_test, drawn), split.y_test)
    assert torch.equal(task.y_train[3], drawn[split.y_train[3]])


def test_fronts_and_their_areas() -> None:
    sizes = ((math.e, 10.0), (math.e**2, 12.0), (math.e**3, 11.0), (math.e**4, 15.0))
    points = [Point(parameters, worth, 1, 1, 1) for parameters, worth in sizes]  # type: ignore[arg-type]
    assert front(points[::-1]) == [points[0], points[1], points[3]]
    assert hypervolume(points, math.e**5, 9.0) == pytest.approx(1 * 1 + 2 * 3 + 1 * 6)  # type: ignore[arg-type]
    assert hypervolume(points, math.e**3, 11.0) == pytest.approx(1.0)  # type: ignore[arg-type]
    assert hypervolume(points, 1, 9.0) == 0.0


def test_the_claims_are_those_of_the_record() -> None:
    wanted = {c["says"] for c in record("hourglass_mlp").claims}
    assert {c.says for c in claims("hourglass_mlp").values()} == wanted
    assert isinstance(make("hourglass_mlp.network", 4, 4, 2, 1, 8), ResidualMLP)
