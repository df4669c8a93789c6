"""ResMLP: parameter counts of the published sizes, the block by hand, symmetry in patches, sequences, teachers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.vision._augment import ShiftAndFlip
from workingpapers.papers.vision._residual_mlp import Affine, Block, layer_scale
from workingpapers.papers.vision._sequence_mlp import ResMLPSeq2Seq, SequenceMix
from workingpapers.papers.vision.resmlp import (
    ResMLP,
    SelfDistillation,
    distillation_loss,
    locality,
    patch_filters,
    sparsity,
)

TINY: dict[str, Any] = ResMLP.presets["tiny"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(model: nn.Module, seed: int = 1) -> nn.Module:
    """Return the model in float64 with every parameter drawn anew, so that no term is hidden by 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize(
    ("preset", "millions"), [("s12", 15.35), ("s24", 30.02), ("s36", 44.69), ("b24", 129.14)]
)
def test_the_published_sizes(preset: str, millions: float) -> None:
    with torch.device("meta"):
        model = ResMLP(**ResMLP.presets[preset])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_s12_counted_by_hand() -> None:
    n, d = 14 * 14, 384
    block = 2 * 2 * d + 2 * d + (n * n + n) + (d * 4 * d + 4 * d) + (4 * d * d + d)
    expected = (3 * 16 * 16 * d + d) + 12 * block + 2 * d + (d * 1000 + 1000)
    with torch.device("meta"):
        assert (
            sum(p.numel() for p in make("resmlp", **ResMLP.presets["s12"]).parameters())
            == expected
            == 15_350_872
        )


@pytest.mark.parametrize(("depth", "scale"), [(1, 0.1), (18, 0.1), (24, 1e-5), (25, 1e-6), (36, 1e-6)])
def test_branches_start_small_by_depth(depth: int, scale: float) -> None:
    assert layer_scale(depth) == scale
    model = ResMLP(**{**TINY, "depth": depth})
    assert all(
        bool((block.scale1 == scale).all() and (block.scale2 == scale).all()) for block in model.blocks
    )
    assert ResMLP.presets["b24"]["scale"] == 1e-6


def test_the_model_follows_the_equations() -> None:
    model = shaken(ResMLP(**TINY))
    p = {name: value.detach().numpy() for name, value in model.named_parameters()}
    images = normal(3, 3, 16, 16)
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(3, 16, 48).numpy()
    x = patches @ p["embed.weight"].reshape(16, 48).T + p["embed.bias"]  # (B, N, D)
    for k in range(2):
        q = {name.removeprefix(f"blocks.{k}."): v for name, v in p.items() if name.startswith(f"blocks.{k}.")}
        aff = q["norm1.scale"] * x + q["norm1.shift"]
        mixed = np.einsum("ij,bjd->bid", q["mix.0.weight"], aff) + q["mix.0.bias"][:, None]
        z = x + q["scale1"] * mixed
        hidden = (q["norm2.scale"] * z + q["norm2.shift"]) @ q["mlp.0.weight"].T + q["mlp.0.bias"]
        hidden = hidden * 0.5 * (1 + erf(hidden / math.sqrt(2)))
        x = z + q["scale2"] * (hidden @ q["mlp.2.weight"].T + q["mlp.2.bias"])
    pooled = (p["norm.scale"] * x + p["norm.shift"]).mean(1)
    expected = pooled @ p["head.weight"].T + p["head.bias"]
    np.testing.assert_allclose(model(images).detach().numpy(), expected, rtol=1e-10)


def test_affine_and_blocks_begin_as_the_identity() -> None:
    x = normal(2, 9, 8)
    assert torch.equal(Affine(8).double()(x), x)
    affine = shaken(Affine(8))
    torch.testing.assert_close(affine(x), affine.scale * x + affine.shift)
    block = shaken(Block(8, nn.Identity(), 0.1))
    with torch.no_grad():
        block.scale1.zero_()
        block.scale2.zero_()
    assert torch.equal(block(x), x)


def permuted(model: ResMLP, order: Tensor) -> None:
    with torch.no_grad():
        for block in model.blocks:
            linear = block.mix[0]
            linear.weight.copy_(linear.weight[order][:, order])
            linear.bias.copy_(linear.bias[order])


def test_permuting_the_patches_and_a_alike_leaves_the_logits() -> None:
    model, images = shaken(ResMLP(**TINY)), normal(2, 3, 16, 16)
    before = model(images)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    tiles = images.unfold(2, 4, 4).unfold(3, 4, 4).reshape(2, 3, 16, 4, 4)[:, :, order]
    moved = tiles.reshape(2, 3, 4, 4, 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 16, 16)
    assert not torch.allclose(model(moved), before, atol=1e-3)
    permuted(model, order)
    torch.testing.assert_close(model(moved), before)


@pytest.mark.parametrize("shape", [(3, 20, 20), (3, 16, 12), (1, 16, 16)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        WorkingPapersError, match=r"mixes the patches of images \(3, 16, 16\); got images of shape"
    ):
        ResMLP(**TINY)(torch.zeros(1, *shape))


def test_wrong_options_are_refused_in_words() -> None:
    with pytest.raises(WorkingPapersError, match="patches of 5x5 do not tile a 16x16 image"):
        ResMLP(**{**TINY, "patch_size": 5})
    with pytest.raises(WorkingPapersError, match="depthwise"):
        ResMLP(**TINY, mixing="depthwis")
    with pytest.raises(WorkingPapersError, match="class_mlp"):
        ResMLP(**TINY, pool="classmlp")


@pytest.mark.parametrize("mixing", ["linear", "mlp", "conv", "depthwise", "separable", "none"])
def test_how_far_each_mixing_reaches(mixing: str) -> None:
    model, images = shaken(ResMLP(**{**TINY, "depth": 1}, mixing=mixing)), normal(1, 3, 16, 16)
    tokens = model.embed(images).flatten(2).mT.detach().requires_grad_()
    model.blocks(tokens)[0, 5].sum().backward()
    reached = set(tokens.grad[0].abs().sum(1).nonzero().flatten().tolist())
    around = {0, 1, 2, 4, 5, 6, 8, 9, 10}
    expected = {"linear": set(range(16)), "mlp": set(range(16)), "none": {5}}
    assert reached == expected.get(mixing, around)


def test_linear_mixing_treats_channels_alike_and_convolutions_are_convolutions() -> None:
    x = normal(2, 16, 16)
    linear = shaken(ResMLP(**TINY)).blocks[0].mix
    torch.testing.assert_close(linear(x.flip(2)), linear(x).flip(2))
    conv = shaken(ResMLP(**TINY, mixing="conv")).blocks[0].mix
    images = x.mT.reshape(2, 16, 4, 4)
    expected = F.conv2d(images, conv[0].weight, conv[0].bias, padding=1)
    torch.testing.assert_close(conv(x), expected.reshape(2, 16, 16).mT)


def test_norms_of_the_ablation() -> None:
    assert isinstance(ResMLP(**TINY, norm="layernorm").blocks[0].norm1, nn.LayerNorm)
    bare = ResMLP(**TINY, norm="none")
    assert not any("norm" in name for name, _ in bare.named_parameters())


def test_class_mlp_gathers_from_patches_that_stay_frozen() -> None:
    model, x = shaken(ResMLP(**TINY, pool="class_mlp")), normal(2, 16, 16)
    pool = model.class_mlp
    token = pool.token
    for block in pool.blocks:
        aff = lambda v, n: n.scale * v + n.shift  # noqa: E731
        everything = torch.cat([aff(token, block.norm1).expand(2, 1, 16), aff(x, block.norm1)], dim=1)
        linear = block.mix[0]
        token = token + block.scale1 * (
            torch.einsum("j,bjd->bd", linear.weight[0], everything)[:, None] + linear.bias
        )
        token = token + block.scale2 * block.mlp(aff(token, block.norm2))
    torch.testing.assert_close(pool(x), token[:, 0])
    images = normal(2, 3, 16, 16)
    features = model.norm(pool(model.blocks(model.embed(images).flatten(2).mT)))
    torch.testing.assert_close(model(images), model.head(features))


def test_weights_start_as_the_authors_draw_them() -> None:
    torch.manual_seed(0)
    model = ResMLP(img_size=32, patch_size=2, dim=64, depth=1, in_channels=1)
    weight = model.blocks[0].mix[0].weight.detach()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, nn.Linear))


def test_filters_and_what_is_said_of_them() -> None:
    model = ResMLP(**TINY)
    filters = patch_filters(model)
    assert filters.shape == (2, 16, 4, 4)
    assert torch.equal(filters[1, 6].flatten(), model.blocks[1].mix[0].weight[6])
    assert len(patch_filters(ResMLP(**TINY, pool="class_mlp"))) == 2
    assert locality(torch.ones(49, 7, 7)) == pytest.approx(1.0)
    near = [[math.dist(divmod(i, 7), divmod(j, 7)) <= 2 for j in range(49)] for i in range(49)]
    assert locality(torch.eye(49).reshape(49, 7, 7)) == pytest.approx(1 / np.mean(near))
    rolled = torch.eye(49).roll(24, dims=0).reshape(49, 7, 7)
    assert locality(rolled) < 0.2
    assert sparsity(torch.tensor([1.0, -0.049, 0.05, 0.0, -2.0])) == pytest.approx(3 / 5)


def test_sequences_are_mixed_as_if_padded_by_zeros() -> None:
    mix, x = shaken(SequenceMix(7, 9)), normal(2, 4, 3)
    padded = torch.cat([x, torch.zeros(2, 5, 3, dtype=torch.float64)], dim=1)
    expected = torch.einsum("ts,bsd->btd", mix.linear.weight, padded) + mix.linear.bias[:, None]
    torch.testing.assert_close(mix(x, 7), expected)
    torch.testing.assert_close(mix(x, 5), expected[:, :5])
    causal = shaken(SequenceMix(6, 6, causal=True))
    changed = x.clone()
    changed[:, 2] += 1
    differs = (causal(changed) != causal(x)).any(2).any(0)
    assert differs.tolist() == [False, False, True, True]


def test_translation_sees_earlier_targets_and_all_of_the_source_but_padding() -> None:
    model = shaken(ResMLPSeq2Seq(11, 8, 6, 2, padding=0))
    source, target = torch.tensor([[3, 4, 5, 0]]), torch.tensor([[1, 2, 3, 4, 5]])
    out = model(source, target)
    changed = target.clone()
    changed[0, 3] = 9
    moved = (model(source, changed) != out).any(2)[0]
    assert moved.tolist() == [False, False, False, True, True]
    assert bool((model(torch.tensor([[3, 9, 5, 0]]), target) != out).any(2).all())
    torch.testing.assert_close(model(source[:, :3], target), out)
    torch.testing.assert_close(model(source, target[:, :2]), out[:, :2])
    with pytest.raises(WorkingPapersError, match="up to 8 tokens; the target has 9"):
        model(source, torch.ones(1, 9, dtype=torch.long))


def test_distillation_by_a_hard_and_a_soft_teacher() -> None:
    outputs, teacher, y = normal(5, 4), normal(5, 4, seed=1), torch.tensor([0, 1, 2, 3, 0])
    labels = F.cross_entropy(outputs, y)
    hard = 0.3 * labels + 0.7 * F.cross_entropy(outputs, teacher.argmax(1))
    torch.testing.assert_close(distillation_loss(outputs, y, teacher, alpha=0.7), hard)
    p, q = (torch.softmax(t / 3, 1).numpy() for t in (teacher, outputs))
    soft = 0.5 * float(labels) + 0.5 * 9 * (p * np.log(p / q)).sum(1).mean()
    assert float(distillation_loss(outputs, y, teacher, "soft", tau=3.0)) == pytest.approx(soft)
    with pytest.raises(WorkingPapersError, match="hard"):
        distillation_loss(outputs, y, teacher, "hrad")


def test_self_distillation_compares_views_with_a_slow_centred_teacher() -> None:
    student = nn.Linear(3, 4).double()
    dino = SelfDistillation(student, 4, momentum=0.9, center_momentum=0.8).double()
    with torch.no_grad():
        dino.center.copy_(normal(4, seed=5))
    views = [normal(6, 3, seed=s) for s in range(3)]
    center = dino.center.clone()
    truth = [((student(v) - center) / 0.04).softmax(1) for v in views[:2]]
    guess = [(student(v) / 0.1).log_softmax(1) for v in views]
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    expected = torch.stack([-(truth[i] * guess[j]).sum(1).mean() for i, j in pairs]).mean()
    torch.testing.assert_close(dino(views), expected)
    mean = torch.cat([student(v) for v in views[:2]]).mean(0)
    torch.testing.assert_close(dino.center, 0.8 * center + 0.2 * mean.detach())
    old = dino.teacher.weight.clone()
    with torch.no_grad():
        student.weight.add_(1)
    dino.follow()
    torch.testing.assert_close(dino.teacher.weight, old + 0.1)
    assert all(not p.requires_grad for p in dino.teacher.parameters())


def test_augmentation_shifts_and_mirrors_in_training_only() -> None:
    image = torch.arange(1.0, 26.0).reshape(1, 1, 5, 5)
    module = ShiftAndFlip(nn.Identity(), reach=1)
    assert torch.equal(module.eval()(image), image)
    padded = F.pad(image, (1, 1, 1, 1))
    allowed = {
        tuple(view.flatten().tolist())
        for crop in (padded[..., i : i + 5, j : j + 5] for i in range(3) for j in range(3))
        for view in (crop, crop.flip(3))
    }
    torch.manual_seed(0)
    seen = {tuple(row.flatten().tolist()) for row in module.train()(image.expand(400, 1, 5, 5))}
    assert seen == allowed
    channels = module(torch.cat([image, 10 * image], dim=1))
    assert torch.equal(10 * channels[:, :1], channels[:, 1:])


def test_parts_are_made_by_name_and_claims_are_the_records() -> None:
    assert isinstance(make("resmlp.seq2seq", 11, 8, dim=8, depth=1), ResMLPSeq2Seq)
    assert [c.says for c in claims("resmlp").values()] == [c["says"] for c in record("resmlp").claims]
