"""Models: formulas written out, shared initial weights across variants, causality, permutations."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import GCN, char_gpt, cnn, initialise, mlp, residual_cnn, vit
from workingpapers.tasks.forecasters import MLPForecaster
from workingpapers.tasks.models import ResidualBlock
from workingpapers.tasks.transformers import Attention


class Drawing(nn.Module):
    """An activation that draws random numbers and has a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x


class Mean(nn.Module):
    """A causal mixer with weights: the mean of what came before, through a linear map."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1).unsqueeze(1)
        out: Tensor = self.linear(x.cumsum(1) / counts)
        return out


BUILDERS: dict[str, Callable[[Any], nn.Module]] = {
    "mlp": lambda act: mlp([4, 8, 8, 3], act, norm=nn.LayerNorm),
    "cnn": lambda act: cnn(1, 3, (4, 8), act, size=8),
    "residual_cnn": lambda act: residual_cnn(1, 3, (4, 8), 2, act),
    "char_gpt": lambda act: char_gpt(11, 8, 2, 2, 6, act),
    "vit": lambda act: vit(1, 8, 4, 3, 8, 2, 2, act),
    "gcn": lambda act: GCN(5, 3, 4, 3, act),
    "forecaster": lambda act: MLPForecaster(6, 2, 8, 2, act),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_all_variants_start_from_the_same_weights(name: str) -> None:
    plain = initialise(lambda: BUILDERS[name](nn.ReLU), 0).state_dict()
    drawing = initialise(lambda: BUILDERS[name](Drawing), 0).state_dict()
    other = initialise(lambda: BUILDERS[name](nn.ReLU), 1).state_dict()
    slopes = {k for k in drawing if k.endswith("slope")}
    assert drawing.keys() - slopes == plain.keys()
    assert all(torch.equal(plain[k], drawing[k]) for k in plain)
    assert any(not torch.equal(plain[k], other[k]) for k in plain)
    assert len(slopes) > 1
    assert len({float(drawing[k]) for k in slopes}) == len(slopes)  # a fresh draw in every place


@pytest.mark.parametrize(
    "build", [lambda m: char_gpt(11, 8, 2, 2, 6, mixer=m), lambda m: vit(1, 8, 4, 3, 8, 2, 2, mixer=m)]
)
def test_another_mixer_leaves_all_other_weights(build: Any) -> None:
    ours, theirs = (initialise(lambda m=m: build(m), 0).state_dict() for m in (None, Mean))  # type: ignore[misc]
    shared = ours.keys() & theirs.keys()
    assert ours.keys() - shared == {k for k in ours if ".mixer." in k}
    assert all(torch.equal(ours[k], theirs[k]) for k in shared)


def test_initialise_leaves_the_global_state_and_ignores_it() -> None:
    before = torch.get_rng_state()
    first = initialise(lambda: nn.Linear(3, 3), 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(first.weight, initialise(lambda: nn.Linear(3, 3), 5).weight)


def test_mlp_is_its_formula() -> None:
    model = initialise(lambda: mlp([4, 6, 5, 2], nn.Tanh), 0)
    first, second, third = (m for m in model if isinstance(m, nn.Linear))
    x = torch.randn(7, 2, 2)
    expected = third(torch.tanh(second(torch.tanh(first(x.flatten(1))))))
    assert torch.equal(model(x), expected)


def test_mlp_puts_norm_before_and_dropout_behind_the_activation() -> None:
    kinds = [type(m) for m in mlp([4, 6, 6, 2], nn.Tanh, norm=nn.BatchNorm1d, dropout=0.1)]
    layer = [nn.Linear, nn.BatchNorm1d, nn.Tanh, nn.Dropout]
    assert kinds == [nn.Flatten, *layer, *layer, nn.Linear]
    assert [type(m) for m in mlp([4, 2])] == [nn.Flatten, nn.Linear]


def test_cnn_is_its_formula() -> None:
    model = initialise(lambda: cnn(2, 3, (4, 5), nn.Softplus, size=9), 0)
    conv1, conv2, linear = (m for m in model if isinstance(m, nn.Conv2d | nn.Linear))
    x = torch.randn(3, 2, 9, 9)
    h = F.max_pool2d(F.softplus(F.conv2d(x, conv1.weight, conv1.bias, padding=1)), 2)
    h = F.max_pool2d(F.softplus(F.conv2d(h, conv2.weight, conv2.bias, padding=1)), 2)
    assert torch.allclose(model(x), h.flatten(1) @ linear.weight.T + linear.bias, atol=1e-6)


def test_a_silent_residual_branch_leaves_the_shortcut() -> None:
    block = ResidualBlock(4, 4, 1, nn.Tanh, norm=True).eval()
    nn.init.zeros_(block.norm2.weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.allclose(block(x), torch.tanh(x))
    down = ResidualBlock(4, 8, 2, nn.Tanh, norm=False)
    for end in (down.conv2.weight, down.conv2.bias):
        nn.init.zeros_(end)
    halved = F.conv2d(x, down.shortcut[0].weight, down.shortcut[0].bias, stride=2)
    assert torch.allclose(down(x), torch.tanh(halved), atol=1e-6)


@pytest.mark.parametrize("norm", [True, False])
def test_residual_cnn_counts_its_parameters(norm: bool) -> None:
    """Count by hand: stem, two stages of two blocks, linear layer."""

    def conv(i: int, o: int, k: int) -> int:
        return i * o * k * k + (2 * o if norm else o)

    model = residual_cnn(3, 10, (4, 8), 2, norm=norm)
    stage1 = 4 * conv(4, 4, 3)
    stage2 = conv(4, 8, 3) + conv(4, 8, 1) + 3 * conv(8, 8, 3)
    assert sum(p.numel() for p in model.parameters()) == conv(3, 4, 3) + stage1 + stage2 + 8 * 10 + 10
    assert model(torch.randn(2, 3, 17, 11)).shape == (2, 10)


def test_residual_cnn_halves_the_resolution_between_stages() -> None:
    model = residual_cnn(1, 3, (2, 4, 8), 1)
    sizes = []
    for block in model:
        if isinstance(block, ResidualBlock):
            block.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape[1:])))
    model(torch.randn(1, 1, 16, 16))
    assert sizes == [(2, 16, 16), (4, 8, 8), (8, 4, 4)]


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_its_formula(causal: bool) -> None:
    layer = initialise(lambda: Attention(6, 2, causal), 0)
    x = torch.randn(3, 5, 6)
    q, k, v = (x @ w.T + b for w, b in zip(layer.qkv.weight.split(6), layer.qkv.bias.split(6), strict=True))
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        scores = q[..., h] @ k[..., h].transpose(1, 2) / math.sqrt(3)
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[..., h])
    assert torch.allclose(layer(x), layer.out(torch.cat(heads, -1)), atol=1e-5)


def test_char_gpt_is_causal() -> None:
    model = initialise(lambda: char_gpt(11, 16, 2, 2, 9), 0)
    tokens = torch.randint(11, (2, 9))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert all(not torch.allclose(before[:, t], after[:, t], atol=1e-6) for t in range(5, 9))
    assert torch.allclose(model(tokens[:, :4]), before[:, :4], atol=1e-6)


def test_char_gpt_starts_near_the_uniform_distribution() -> None:
    model = initialise(lambda: char_gpt(65, 64, 2, 4, 32), 0)
    tokens = torch.randint(65, (8, 33))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert float(loss.detach()) == pytest.approx(math.log(65), abs=0.05)


def test_gpt_without_positions_cannot_tell_the_order_of_what_came_before() -> None:
    model = initialise(lambda: char_gpt(11, 16, 1, 2, 6), 0)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [3, 1, 2, 5, 4, 6]])
    with_positions = model(tokens)[:, -1]
    assert not torch.allclose(with_positions[0], with_positions[1], atol=1e-5)
    nn.init.zeros_(model.positions)
    without = model(tokens)[:, -1]
    assert torch.allclose(without[0], without[1], atol=1e-6)


def patches_permuted(x: Tensor, patch: int, order: Tensor) -> Tensor:
    columns = F.unfold(x, patch, stride=patch)[:, :, order]
    return F.fold(columns, x.shape[-2:], patch, stride=patch)


def test_vit_without_positions_ignores_the_order_of_patches() -> None:
    model = initialise(lambda: vit(2, 8, 2, 5, 16, 2, 2), 0)
    x, order = torch.randn(3, 2, 8, 8), torch.randperm(16)
    assert not torch.allclose(model(x), model(patches_permuted(x, 2, order)), atol=1e-5)
    nn.init.zeros_(model.positions)
    assert torch.allclose(model(x), model(patches_permuted(x, 2, order)), atol=1e-5)


def test_vit_does_notice_pixels_moved_between_patches() -> None:
    model = initialise(lambda: vit(1, 8, 2, 5, 16, 2, 2), 0)
    nn.init.zeros_(model.positions)
    x = torch.randn(3, 1, 8, 8)
    assert not torch.allclose(model(x), model(x.roll(1, -1)), atol=1e-5)


def test_residual_branches_start_small() -> None:
    """Twice as deep, each branch starts 1 / sqrt(2) as large: the scale of GPT-2."""
    shallow, deep = (initialise(lambda d=d: char_gpt(5, 64, d, 2, 4), 0) for d in (2, 8))  # type: ignore[misc]
    for name in ("contract.weight", "mixer.out.weight"):
        ratio = deep.blocks[0].get_parameter(name).std() / shallow.blocks[0].get_parameter(name).std()
        assert float(ratio.detach()) == pytest.approx(0.5, abs=0.02)


def test_forecaster_adds_to_the_last_value_and_shares_channels() -> None:
    model = initialise(lambda: MLPForecaster(6, 2, 8, 1), 0)
    past = torch.randn(4, 6, 3)
    out = model(past)
    assert torch.allclose(model(past + 7.0), out + 7.0, atol=1e-5)
    assert torch.allclose(model(past[:, :, [2, 0, 1]]), out[:, :, [2, 0, 1]], atol=1e-6)
    single = model.mlp((past - past[:, -1:])[1, :, 2].unsqueeze(0))[0] + past[1, -1, 2]
    assert torch.allclose(out[1, :, 2], single, atol=1e-6)


def test_impossible_sizes_are_named() -> None:
    for build, message in (
        (lambda: mlp([3]), r"at least an input and an output size; got \[3\]"),
        (lambda: cnn(1, 10, (4, 4, 4, 4), size=8), "4 poolings leave nothing of a 8x8 image"),
        (lambda: vit(1, 8, 3, 10), "patches of 3x3 do not tile a 8x8 image"),
        (lambda: char_gpt(5, 6, 1, 4, 4), "6 is no multiple of 4"),
        (lambda: char_gpt(5, 8, 1, 2, 4)(torch.zeros(1, 5, dtype=torch.int64)), "context is 4 tokens; got 5"),
    ):
        with pytest.raises(WorkingPapersError, match=message):
            build()
