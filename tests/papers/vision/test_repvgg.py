"""RepVGG: folding against the branched block and by hand, published sizes, what cannot be folded, the penalty."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.vision._folding import merge, merged_kernel
from workingpapers.papers.vision.repvgg import Branches, RepVGG, RepVGGBlock, equivalent_decay, fuse
from workingpapers.surgery import changes

TINY: Any = RepVGG.presets["tiny"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lived_in(model: nn.Module, seed: int = 1) -> nn.Module:
    """Return the model in float64 with weights and running statistics that are far from where they start."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in filter(torch.is_tensor, (norm.weight, norm.bias, norm.running_mean)):
                tensor.data.normal_(generator=generator)
            norm.running_var.uniform_(0.1, 3.0, generator=generator)
    return model


def convs(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("outputs", "stride"), [(8, 1), (8, 2), (12, 1), (12, 2)])
@pytest.mark.parametrize("flags", [(True, True), (False, True), (True, False), (False, False)])
def test_a_fused_block_equals_the_branched_one(
    outputs: int, stride: int, groups: int, flags: tuple[bool, bool]
) -> None:
    block = lived_in(RepVGGBlock(8, outputs, stride, groups, *flags))
    branches = 1 + flags[1] + (flags[0] and outputs == 8 and stride == 1)
    assert len(block.branches) == branches
    fused, x = fuse(block), normal(2, 8, 9, 6)
    torch.testing.assert_close(fused(x), block(x), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(fused.float()(x.float()), block.float()(x.float()), atol=1e-5, rtol=1e-5)
    (conv,) = convs(fused)
    assert (conv.kernel_size, conv.groups, conv.stride) == ((3, 3), groups, (stride, stride))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


def test_the_block_follows_the_equation_in_training_too() -> None:
    block = RepVGGBlock(4, 4).double()
    x = normal(3, 4, 5, 5)

    def norm(y: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
        return bn.weight.view(1, -1, 1, 1) * (y - mean) / (var + bn.eps).sqrt() + bn.bias.view(1, -1, 1, 1)

    lived_in(block)
    dense, pointwise, identity = (
        block.branches["dense"],
        block.branches["pointwise"],
        block.branches["identity"],
    )
    expected = norm(F.conv2d(x, dense[0].weight, padding=1), dense[1])
    expected = expected + norm(
        torch.einsum("dc,bchw->bdhw", pointwise[0].weight[:, :, 0, 0], x), pointwise[1]
    )
    expected = (expected + norm(x, identity)).clamp_min(0)
    torch.testing.assert_close(block.train()(x), expected)


def test_identity_alone_is_a_scaled_kernel_with_its_own_channel() -> None:
    norm = lived_in(nn.BatchNorm2d(6))
    kernel = merged_kernel([norm]).in_groups(2).padded(3)
    std = (norm.running_var + norm.eps).sqrt()
    expected = np.zeros((6, 3, 3, 3))
    for i in range(6):
        expected[i, i % 3, 1, 1] = float((norm.weight / std)[i].detach())
    np.testing.assert_allclose(kernel.weight.detach().numpy(), expected, atol=1e-14)
    torch.testing.assert_close(kernel.bias, norm.bias - norm.running_mean * norm.weight / std)


GENERIC: dict[str, Any] = {
    "five and three": lambda: [
        nn.Conv2d(4, 6, 5, padding=2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 1),
    ],
    "one unpadded": lambda: [nn.Conv2d(4, 6, 5)],
    "pooling": lambda: [nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(3, 1, 1), nn.Identity()],
    "pooling with norm": lambda: [
        nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.BatchNorm2d(4)),
        nn.Conv2d(4, 4, 1, 2),
    ],
    "groups": lambda: [
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.BatchNorm2d(8),
    ],
    "unlike groups": lambda: [nn.Conv2d(12, 24, 3, padding=1, groups=4), nn.Conv2d(12, 24, 1, groups=6)],
    "norms": lambda: [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)],
    "two norms": lambda: [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))],
}


@pytest.mark.parametrize("kind", GENERIC)
def test_any_linear_branches_merge(kind: str) -> None:
    torch.manual_seed(0)
    branches = lived_in(Branches({str(i): b for i, b in enumerate(GENERIC[kind]())}))
    channels = {"groups": 8, "unlike groups": 12}.get(kind, 4)
    x = normal(2, channels, 9, 8)
    merged = merge(list(branches.values()))
    torch.testing.assert_close(merged(x), branches(x), atol=1e-12, rtol=1e-12)
    assert merged.groups == {"groups": 2, "unlike groups": 2, "norms": 4}.get(kind, 1)


@pytest.mark.parametrize(
    ("branches", "says"),
    [
        ([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, stride=2)], "cover the image alike"),
        ([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)], "cover the image alike"),
        ([nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(4)], "cover the image alike"),
        ([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 2)], "side 2 has no centre in one of side 3"),
        ([nn.Conv2d(4, 4, 3, padding=1, dilation=2)], "without dilation"),
        ([nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")], "padded by zeros"),
        ([nn.Conv2d(4, 4, (3, 1))], "one kernel size in both directions"),
        (
            [nn.Conv2d(4, 4, 3), nn.AvgPool2d(3, 1, 1, count_include_pad=False)],
            "averages over its whole window",
        ),
        ([nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())], "only batch normalisation is folded; got ReLU"),
        ([nn.Conv2d(4, 4, 3), nn.MaxPool2d(3)], "got MaxPool2d"),
        ([nn.BatchNorm2d(4, track_running_stats=False)], "without running statistics"),
        ([nn.Identity()], "channels are unknown"),
    ],
)
def test_what_is_not_one_convolution_is_refused_in_words(branches: list[nn.Module], says: str) -> None:
    with pytest.raises(WorkingPapersError, match=says):
        merge(branches)


def test_gradients_flow_through_the_merged_kernel() -> None:
    block = lived_in(RepVGGBlock(4, 4))
    kernel = merged_kernel(list(block.branches.values()))
    kernel.weight.square().sum().backward()
    for name, parameter in block.named_parameters():
        assert (parameter.grad is not None) == (not name.endswith("bias")), name


def test_fusing_a_net_keeps_it_and_says_what_it_did() -> None:
    net, x = lived_in(RepVGG(**TINY, groups=2)), normal(2, 3, 16, 16)
    before = copy.deepcopy(net.state_dict())
    fused = fuse(net)
    torch.testing.assert_close(fused(x), net(x), atol=1e-10, rtol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert changes(fused)[1] == "The 2 branches of blocks.1.branches are one convolution now."
    assert len(changes(fused)) == len(convs(fused)) == 4
    again = fuse(fused)
    assert changes(again) == changes(fused)
    assert torch.equal(again(x), fused(x))
    shared = RepVGGBlock(4, 4).double().eval()
    twice = fuse(nn.Sequential(shared, shared, nn.ReLU()))
    assert twice[0] is twice[1]
    assert fuse(shared.branches).weight.shape == (4, 4, 3, 3)


def test_blocks_of_the_authors_code_are_known_by_their_attributes() -> None:
    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rbr_dense = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
            self.rbr_1x1 = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
            self.rbr_identity = nn.BatchNorm2d(4)
            self.se, self.nonlinearity = nn.Conv2d(4, 4, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.rbr_dense(x) + self.rbr_1x1(x)
            return self.nonlinearity(self.se(y if self.rbr_identity is None else y + self.rbr_identity(x)))

    with_identity, without = Theirs(), Theirs()
    without.rbr_identity = None
    model, x = lived_in(nn.Sequential(with_identity, without)), normal(2, 4, 5, 5)
    fused = fuse(model)
    torch.testing.assert_close(fused(x), model(x), atol=1e-12, rtol=1e-12)
    assert len(convs(fused)) == 4


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("a0", 8.30), ("a1", 12.78), ("a2", 25.49), ("b0", 14.33), ("b1", 51.82), ("b1g2", 41.36),
        ("b1g4", 36.12), ("b2", 80.31), ("b2g4", 55.77), ("b3", 110.96), ("b3g4", 75.62),
    ],
)  # fmt: skip
def test_the_published_sizes(preset: str, millions: float) -> None:
    with torch.device("meta"):
        net = RepVGG(**RepVGG.presets[preset])
    fused = fuse(net)
    count = sum(p.numel() for p in fused.parameters()) / 1e6
    assert int(100 * count) / 100 == pytest.approx(
        millions, abs=0.0101
    )  # the paper cuts, and leaves biases out
    assert all(conv.kernel_size == (3, 3) for conv in convs(fused))
    assert len(convs(fused)) == {"a": 22, "b": 28}[preset[0]]


def test_a_net_halves_the_image_five_times_and_groups_every_second_block() -> None:
    with torch.device("meta"):
        net = RepVGG(**RepVGG.presets["b1g4"])
    assert net.blocks(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 2048, 7, 7)
    groups = [block.branches["dense"][0].groups for block in net.blocks]
    assert groups == [1, 1] + [4, 1] * 13
    assert [block.branches["dense"][0].stride[0] for block in net.blocks].count(2) == 5
    assert net.blocks[0].branches["dense"][0].out_channels == 64
    assert [len(block.branches) for block in net.blocks][:4] == [2, 2, 3, 3]


def test_wrong_stages_are_refused_in_words() -> None:
    with pytest.raises(WorkingPapersError, match="got 2 depths, 3 widths and 3 strides"):
        RepVGG((1, 2), (8, 8, 8))


def test_the_penalty_is_that_of_the_equivalent_kernel() -> None:
    block = lived_in(RepVGGBlock(3, 5))
    (dense, norm3), (pointwise, norm1) = block.branches["dense"], block.branches["pointwise"]
    a3, a1 = ((n.weight / (n.running_var + n.eps).sqrt()).detach().numpy() for n in (norm3, norm1))
    w3, w1 = dense.weight.detach().numpy(), pointwise.weight.detach().numpy()[:, :, 0, 0]
    expected = 0.0
    for d in range(5):
        for c in range(3):
            ring = [w3[d, c, i, j] for i in range(3) for j in range(3) if (i, j) != (1, 1)]
            expected += sum(w * w for w in ring)
            expected += (a3[d] * w3[d, c, 1, 1] + a1[d] * w1[d, c]) ** 2 / (a3[d] ** 2 + a1[d] ** 2)
    penalty = equivalent_decay(nn.Sequential(block, RepVGGBlock(3, 3, pointwise=False)))
    assert float(penalty.detach()) == pytest.approx(expected)
    penalty.backward()
    assert norm3.weight.grad is None
    assert bool(dense.weight.grad.any())
    assert bool(pointwise.weight.grad.any())
    assert float(equivalent_decay(fuse(block))) == 0.0


def test_parts_are_made_by_name_and_claims_are_the_records() -> None:
    assert isinstance(make("repvgg.block", 3, 4), RepVGGBlock)
    assert isinstance(make("repvgg.net", **TINY), RepVGG)
    assert make("repvgg") is fuse
    assert [c.says for c in claims("repvgg").values()] == [c["says"] for c in record("repvgg").claims]
