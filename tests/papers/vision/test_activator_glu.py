"""Activator against its formula written out, its permutation symmetries and counted costs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.vision._patch_checks import AcrossTokens, flops, shuffled_patches, times_faster
from workingpapers.papers.vision.activator_glu import Activator, ActivatorBlock, GatingUnit, convert
from workingpapers.surgery import changes
from workingpapers.tasks import vit

D, H, T = 6, 10, 5


def tokens(batch: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, T, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    module = module.double().eval()
    for p in module.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return module


def by_hand(unit: GatingUnit, x: torch.Tensor, second: nn.LayerNorm) -> torch.Tensor:
    def norm(h: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    gate = x @ unit.proj1.weight.T + unit.proj1.bias
    gate = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    u, v = norm(gate, unit.norm), norm(x @ unit.proj2.weight.T + unit.proj2.bias, second)
    return (u * v) @ unit.proj3.weight.T + unit.proj3.bias


def test_unit_is_its_formula() -> None:
    shared, own = shaken(GatingUnit(D, H)), shaken(GatingUnit(D, H, shared_norm=False))
    assert isinstance(shared, GatingUnit)
    assert isinstance(own, GatingUnit)
    torch.testing.assert_close(shared(tokens()), by_hand(shared, tokens(), shared.norm))
    assert own.norm2 is not None
    torch.testing.assert_close(own(tokens()), by_hand(own, tokens(), own.norm2))
    across = shaken(GatingUnit(D, H, axis="token", tokens=T))
    assert isinstance(across, GatingUnit)
    torch.testing.assert_close(across(tokens()), by_hand(across, tokens().mT, across.norm).mT)


def test_parameter_counts() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(GatingUnit(D, H)) == 3 * D * H + 2 * H + D + 2 * H
    assert count(GatingUnit(D, H, shared_norm=False)) == 3 * D * H + 2 * H + D + 4 * H
    assert count(GatingUnit(D, H, axis="token", tokens=T)) == 3 * T * H + 2 * H + T + 2 * H
    assert GatingUnit(D).proj1.out_features == 2 * D
    perceptron = 2 * D * H + H + D
    assert count(ActivatorBlock(D, H)) == count(GatingUnit(D, H)) + perceptron + 2 * D  # one norm, used twice
    assert count(ActivatorBlock(D, H, mlp=False)) == count(GatingUnit(D, H)) + 2 * D


def test_zero_projections_leave_the_norms_bias_squared() -> None:
    unit = shaken(GatingUnit(D, H))
    assert isinstance(unit, GatingUnit)
    for layer in (unit.proj1, unit.proj2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    expected = F.linear(unit.norm.bias.square(), unit.proj3.weight, unit.proj3.bias)
    torch.testing.assert_close(unit(tokens()), expected.expand(3, T, D))


def test_feature_axis_sees_each_token_alone() -> None:
    block = shaken(ActivatorBlock(D, H))
    x, order = tokens(), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])
    jacobian = torch.autograd.functional.jacobian(lambda t: block(t[None])[0], x[0])
    for i in range(T):
        for j in range(T):
            assert bool(jacobian[i, :, j].any()) == (i == j)


def test_token_axis_mixes_tokens_and_treats_features_alike() -> None:
    unit = shaken(GatingUnit(D, H, axis="token", tokens=T))
    x, order = tokens(), torch.tensor([2, 5, 0, 1, 4, 3])
    torch.testing.assert_close(unit(x[..., order]), unit(x)[..., order])
    jacobian = torch.autograd.functional.jacobian(lambda t: unit(t[None])[0], x[0])
    assert jacobian[0, 0, :, 0].all()
    assert not jacobian[:, 0, :, 1].any()


def test_block_has_one_norm_and_two_shortcuts() -> None:
    block = shaken(ActivatorBlock(D, H))
    assert isinstance(block, ActivatorBlock)
    assert block.mlp is not None
    x = tokens()
    y = x + block.unit(block.norm(x))
    torch.testing.assert_close(block(x), y + block.mlp(block.norm(y)))
    bare = ActivatorBlock(D, H, mlp=False).double()
    bare.unit.load_state_dict(block.unit.state_dict())
    bare.norm.load_state_dict(block.norm.state_dict())
    torch.testing.assert_close(bare(x), y)
    assert [m.p for m in block.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_classifier_is_a_bag_of_patches_by_features_only() -> None:
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mixed = shuffled_patches(x, 4, torch.Generator().manual_seed(1))
    sizes = {"img_size": 16, "dim": 12, "hidden_dim": 20, "depth": 2}
    bag = Activator(**sizes).eval()  # type: ignore[arg-type]
    torch.testing.assert_close(bag(mixed), bag(x), atol=1e-5, rtol=1e-5)
    across = Activator(**sizes, axis="token").eval()  # type: ignore[arg-type]
    assert (across(mixed) - across(x)).abs().max() > 1e-3


def test_defaults_are_the_authors() -> None:
    model = Activator()
    assert len(model.blocks) == 4
    assert model.embed.weight.shape == (256, 3, 4, 4)
    assert sum(p.numel() for p in model.blocks.parameters()) == 4 * (
        3 * 256 * 512 + 4 * 512 + 256 + 2 * 256 * 512 + 512 + 256 + 2 * 256
    )


def test_shuffled_patches_keeps_the_patches_of_every_image() -> None:
    x = torch.arange(2 * 64.0).view(2, 1, 8, 8)
    mixed = shuffled_patches(x, 4, torch.Generator().manual_seed(3))

    def patches(images: torch.Tensor) -> set[tuple[float, ...]]:
        return {tuple(images[0, i : i + 4, j : j + 4].flatten().tolist()) for i in (0, 4) for j in (0, 4)}

    assert all(patches(a) == patches(b) for a, b in zip(x, mixed, strict=True))
    assert not torch.equal(x, mixed)
    order = [[int(image[0, i, j]) % 64 for i in (0, 4) for j in (0, 4)] for image in mixed]
    assert order[0] != order[1]  # each image its own way (by this seed)


def test_costs_are_counted_with_attention() -> None:
    dim, length = 16, 32
    x = torch.randn(3, length, dim)
    assert flops(ActivatorBlock(dim), x) == 2 * length * 10 * dim**2
    assert flops(ActivatorBlock(dim, mlp=False), x) == 2 * length * 6 * dim**2
    block = vit(3, 16, 4, 10, dim, 1).blocks[0]
    assert flops(block, x) == 2 * length * (12 * dim**2 + 2 * length * dim)
    assert times_faster(nn.Identity(), block, x, runs=3) > 1


def test_perceptron_across_tokens() -> None:
    mixer = AcrossTokens(T, 7).double()
    x = tokens()
    expected = torch.stack([nn.Sequential(*mixer)(x[:, :, d]) for d in range(D)], dim=-1)
    torch.testing.assert_close(mixer(x), expected)


class Fused(nn.Module):
    """Attention as timm has it: called with a mask by keyword."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.proj(self.qkv(x)[..., : x.shape[-1]])  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Fused(D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attn(x, attn_mask=None)  # type: ignore[no-any-return]


def test_convert_knows_attention_by_its_attributes() -> None:
    model = nn.Sequential(Layer(), Layer())
    converted = convert(model, hidden_dim=H)
    found = [m for m in converted.modules() if isinstance(m, GatingUnit)]
    assert [(m.length, m.proj1.out_features) for m in found] == [(D, H)] * 2
    assert not torch.equal(found[0].proj1.weight, found[1].proj1.weight)
    assert converted(tokens().float()).shape == (3, T, D)
    assert len(changes(converted)) == 2
    again = convert(converted)
    torch.testing.assert_close(again(tokens().float()), converted(tokens().float()))
    assert changes(again) == changes(converted)
    weights = [convert(model, seed=i).state_dict()["0.attn.proj1.weight"] for i in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_errors_are_one_sentence() -> None:
    with pytest.raises(UnknownName, match="feature"):
        GatingUnit(D, axis="features")
    with pytest.raises(WorkingPapersError, match="give `tokens`"):
        GatingUnit(D, axis="token")
    with pytest.raises(WorkingPapersError, match="number of 6; got 7"):
        GatingUnit(D)(torch.zeros(2, T, 7))
    with pytest.raises(WorkingPapersError, match="mask"):
        GatingUnit(D)(torch.zeros(2, T, D), attn_mask=torch.zeros(T, T))
    with pytest.raises(WorkingPapersError, match="do not tile"):
        Activator(img_size=30)
    with pytest.raises(WorkingPapersError, match="no module"):
        convert(nn.Linear(2, 2))
