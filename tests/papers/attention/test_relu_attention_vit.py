"""Point-wise attention against loops, its exact facts, blocks, steps, and conversion of transformers."""

import math
import sys
import types
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.attention import _converted
from workingpapers.papers.attention._costs import RowReductions
from workingpapers.papers.attention.relu_attention_vit import (
    POINTWISE,
    PointwiseAttention,
    SoftmaxAttention,
    attention_weights,
    convert,
    pointwise_attention,
)
from workingpapers.surgery import changes
from workingpapers.tasks import vit

SCALAR = {
    "relu": lambda s: max(s, 0.0),
    "relu2": lambda s: max(s, 0.0) ** 2,
    "gelu": lambda s: s * 0.5 * (1 + math.erf(s / math.sqrt(2))),
    "softplus": lambda s: math.log1p(math.exp(s)),
    "identity": lambda s: s,
    "relu6": lambda s: min(max(s, 0.0), 6.0),
    "sigmoid": lambda s: 1 / (1 + math.exp(-s)),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loop(q: Tensor, k: Tensor, v: Tensor, see: Any, h: str, alpha: float, lengths: Any) -> np.ndarray:
    """Attend in plain loops: see(i, j) tells what is seen, lengths(i) is L."""
    out = np.zeros((len(q), v.shape[1]))
    for i in range(len(q)):
        for j in range(len(k)):
            if see(i, j):
                out[i] += SCALAR[h](float(q[i] @ k[j]) / math.sqrt(q.shape[1])) * v[j].numpy()
        out[i] /= max(lengths(i), 1) ** alpha
    return out


@pytest.mark.parametrize("h", POINTWISE)
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.0])
def test_attention_follows_the_formula(h: str, alpha: float) -> None:
    q, k, v = 3 * normal(4, 6), 3 * normal(5, 6, seed=1), normal(5, 3, seed=2)
    expected = by_loop(q, k, v, lambda i, j: True, h, alpha, lambda i: 5)
    np.testing.assert_allclose(pointwise_attention(q, k, v, h=h, alpha=alpha).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("h", ["relu", "softplus", "gelu"])
def test_hidden_keys_have_no_weight_and_do_not_count(h: str) -> None:
    q, k, v = normal(6, 4), normal(6, 4, seed=1), normal(6, 3, seed=2)
    mask = torch.rand(6, 6, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[2] = False
    expected = by_loop(q, k, v, lambda i, j: mask[i, j], h, 1.0, lambda i: int(mask[i].sum()))
    added = torch.zeros(6, 6, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    for form in (mask, added):
        np.testing.assert_allclose(pointwise_attention(q, k, v, form, h=h).numpy(), expected, atol=1e-13)
    assert not pointwise_attention(q, k, v, mask, h=h)[2].any()
    q.requires_grad_()
    pointwise_attention(q, k, v, added, h=h).sum().backward()
    assert bool(q.grad.isfinite().all())


def test_a_finite_added_mask_is_a_bias_on_the_scores() -> None:
    q, k, v, bias = normal(3, 4), normal(5, 4, seed=1), normal(5, 2, seed=2), normal(3, 5, seed=3)
    weights = F.relu(q @ k.T / 2 + bias) / 5
    torch.testing.assert_close(pointwise_attention(q, k, v, bias), weights @ v)
    torch.testing.assert_close(attention_weights(q, k, bias), weights)


def test_causal_attention_divides_by_the_position_or_by_a_constant() -> None:
    q, k, v = normal(5, 4), normal(5, 4, seed=1), normal(5, 3, seed=2)
    see = lambda i, j: j <= i  # noqa: E731
    by_position = by_loop(q, k, v, see, "relu", 1.0, lambda i: i + 1)
    np.testing.assert_allclose(pointwise_attention(q, k, v, is_causal=True).numpy(), by_position, atol=1e-14)
    constant = by_loop(q, k, v, see, "relu", 0.5, lambda i: 5)
    found = pointwise_attention(q, k, v, is_causal=True, alpha=0.5, length=5)
    np.testing.assert_allclose(found.numpy(), constant, atol=1e-14)
    mask = torch.tensor([True, False, True, True, True])
    both = by_loop(q, k, v, lambda i, j: j <= i and bool(mask[j]), "relu", 1.0, lambda i: i + (i == 0))
    np.testing.assert_allclose(pointwise_attention(q, k, v, mask, is_causal=True).numpy(), both, atol=1e-14)


def test_duplicating_every_key_changes_nothing_at_alpha_one_alone() -> None:
    q, k, v = normal(4, 6), normal(5, 6, seed=1), normal(5, 3, seed=2)
    twice = [torch.cat([t, t]) for t in (k, v)]
    torch.testing.assert_close(pointwise_attention(q, *twice), pointwise_attention(q, k, v))
    for alpha, factor in ((0.0, 2.0), (0.5, 2**0.5), (2.0, 0.5)):
        found = pointwise_attention(q, *twice, alpha=alpha)
        torch.testing.assert_close(found, factor * pointwise_attention(q, k, v, alpha=alpha))


def test_relu_is_homogeneous_and_zero_queries_give_zero() -> None:
    q, k, v = normal(2, 4, 6), normal(2, 5, 6, seed=1), normal(2, 5, 3, seed=2)
    torch.testing.assert_close(pointwise_attention(3 * q, k, v), 3 * pointwise_attention(q, k, v))
    torch.testing.assert_close(
        pointwise_attention(3 * q, k, v, h="relu2"), 9 * pointwise_attention(q, k, v, h="relu2")
    )
    assert not pointwise_attention(0 * q, k, v).any()
    softmax = F.scaled_dot_product_attention(0 * q, k, v)
    torch.testing.assert_close(softmax, v.mean(1, keepdim=True).expand_as(softmax))
    assert float((attention_weights(q, k).sum(-1) - 1).abs().min()) > 1e-3


@pytest.mark.parametrize("block", [1, 3, 64, 100])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["none", "bool", "added", "per row"])
def test_blocks_equal_the_whole(block: int, causal: bool, kind: str) -> None:
    q, k, v = normal(2, 3, 63, 8), normal(2, 3, 64, 8, seed=1), normal(2, 3, 64, 5, seed=2)
    kept = torch.rand(2, 1, 63, 64, generator=torch.Generator().manual_seed(3)) < 0.7
    masks = {
        "none": None,
        "bool": kept,
        "per row": kept[..., :1],
        "added": normal(2, 1, 63, 64).masked_fill(~kept, -torch.inf),
    }
    sources = [t.requires_grad_() for t in (q, k, v)]
    for h in ("relu", "softplus"):
        attend = partial(pointwise_attention, q, k, v, masks[kind], is_causal=causal, h=h, alpha=0.9)
        whole, blocks = attend(), attend(block=block)
        torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-14)
        slopes = [torch.autograd.grad(out.square().sum(), sources) for out in (whole, blocks)]
        torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-10, atol=1e-12)


def test_the_other_arguments_are_those_of_scaled_dot_product_attention() -> None:
    q, k, v = normal(2, 6, 4, 8), normal(2, 3, 5, 8, seed=1), normal(2, 3, 5, 8, seed=2)
    grouped = pointwise_attention(q, k, v, scale=0.3, enable_gqa=True)
    for head in range(6):
        single = F.relu(0.3 * q[:, head] @ k[:, head // 2].mT) / 5 @ v[:, head // 2]
        torch.testing.assert_close(grouped[:, head], single)
    torch.manual_seed(0)
    ones = torch.ones(1, 1, 400, 1, dtype=torch.float64)
    dropped = pointwise_attention(ones, ones, ones, dropout_p=0.25, h="identity")
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)
    kept = pointwise_attention(ones[..., :1, :], ones[..., :1, :], ones[..., :1, :], dropout_p=0.25)
    assert float(kept) in (0.0, pytest.approx(4 / 3))


def test_half_precision_divides_by_long_lengths() -> None:
    q, k = torch.ones(1, 8, dtype=torch.float16), torch.ones(3000, 8, dtype=torch.float16)
    found = pointwise_attention(q, k, k)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, torch.full_like(found, 8**0.5), rtol=5e-3, atol=0)


def test_module_is_heads_of_the_function() -> None:
    x = normal(2, 5, 12)
    mixer = PointwiseAttention(12, 3, h="gelu", alpha=0.5, gate=True).double()
    with torch.no_grad():
        mixer.q_norm.weight.mul_(2)
    q, k, v = mixer.qkv(x).chunk(3, dim=-1)
    heads = []
    for i in range(3):
        part = slice(4 * i, 4 * i + 4)
        qi = 2 * F.layer_norm(q[..., part], (4,))
        ki = F.layer_norm(k[..., part], (4,))
        heads.append(F.gelu(qi @ ki.mT / 2) / 5**0.5 @ v[..., part])
    expected = mixer.out(torch.cat(heads, dim=-1) * F.silu(mixer.gate(x)))
    torch.testing.assert_close(mixer(x), expected)
    assert PointwiseAttention(12).q_norm.normalized_shape == (3,)
    assert not list(PointwiseAttention(12, qk_norm=False).q_norm.parameters())


def test_scaling_by_length_counts_all_real_tokens() -> None:
    x, mask = normal(2, 6, 8), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    torch.manual_seed(0)
    position = PointwiseAttention(8, 2, causal=True).double()
    constant = PointwiseAttention(8, 2, causal=True, scaling="length").double()
    constant.load_state_dict(position.state_dict())
    bias = position.out.bias
    by_length, by_position = constant(x, mask) - bias, position(x, mask) - bias
    for row, length in enumerate((6, 4)):
        for i in range(length):
            torch.testing.assert_close(by_length[row, i] * length, by_position[row, i] * (i + 1))
    with pytest.raises(WorkingPapersError, match="step\\(\\) needs causal=True and scaling='position'"):
        constant.step(x[:, 0], None)


def test_wrong_options_are_refused_in_words() -> None:
    with pytest.raises(WorkingPapersError, match="relu2"):
        PointwiseAttention(8, h="relu3")
    with pytest.raises(WorkingPapersError, match="between 0 and 2; got -1"):
        PointwiseAttention(8, alpha=-1)
    with pytest.raises(WorkingPapersError, match="8 is no multiple of 3"):
        PointwiseAttention(8, heads=3)
    with pytest.raises(WorkingPapersError, match="position"):
        convert(nn.Linear(2, 2), scaling="postion")
    with pytest.raises(WorkingPapersError, match="block=0"):
        pointwise_attention(normal(2, 2), normal(2, 2), normal(2, 2), block=0)


def softmax_weights(
    q: Tensor, k: Tensor, mask: Any = None, causal: bool = False, scale: Any = None, length: Any = None
) -> Tensor:
    """Softmax in the place of point-wise weights: what is converted with it must be what it was."""
    scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return (scores if mask is None else scores + mask).softmax(-1)


MULTIHEADS: list[dict[str, Any]] = [
    {},
    {"batch_first": True, "bias": False},
    {"kdim": 6, "vdim": 10, "add_zero_attn": True},
    {"add_bias_kv": True, "batch_first": True},
]


@pytest.mark.parametrize("options", MULTIHEADS)
@pytest.mark.parametrize("masked", ["none", "padding", "2d", "3d and padding", "added"])
def test_a_converted_multihead_attention_keeps_all_but_the_weights(
    options: dict[str, Any], masked: str
) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, **options).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    converted = _converted.ConvertedMultihead(attention, softmax_weights, False)
    assert converted.state_dict().keys() == attention.state_dict().keys()
    q, k, v = (
        normal(3, 5, 8),
        normal(3, 7, options.get("kdim", 8), seed=1),
        normal(3, 7, options.get("vdim", 8), seed=2),
    )
    padding = torch.arange(7) >= torch.tensor([[7], [4], [6]])
    hide = torch.rand(6, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    hide[..., 0] = False
    masks: dict[str, dict[str, Any]] = {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "2d": {"attn_mask": hide[0]},
        "3d and padding": {"attn_mask": hide, "key_padding_mask": padding},
        "added": {"attn_mask": normal(5, 7, seed=4)},
    }
    if not options.get("batch_first"):
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    for average in (True, False):
        expected = attention(q, k, v, **masks[masked], average_attn_weights=average)
        torch.testing.assert_close(
            converted(q, k, v, **masks[masked], average_attn_weights=average), expected
        )
    assert converted(q, k, v, need_weights=False)[1] is None


def test_a_converted_multihead_attention_takes_single_sequences() -> None:
    attention = nn.MultiheadAttention(8, 2).double()
    converted = _converted.ConvertedMultihead(attention, softmax_weights, False)
    x, padding = normal(5, 8), torch.tensor([False, False, True, False, True])
    torch.testing.assert_close(
        converted(x, x, x, key_padding_mask=padding), attention(x, x, x, key_padding_mask=padding)
    )


def test_converted_encoders_compute_pointwise_attention_in_every_mode() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2
    ).double()
    converted = convert(encoder)
    x, padding = normal(3, 6, 8), torch.arange(6) >= torch.tensor([[6], [4], [5]])
    training = converted.train()(x, src_key_padding_mask=padding)
    with torch.no_grad():
        evaluated = converted.eval()(x, src_key_padding_mask=padding)  # torch's fused path would be softmax
    torch.testing.assert_close(evaluated[~padding], training[~padding])
    assert not torch.allclose(evaluated[0], encoder(x)[0], atol=1e-3)
    layer = encoder.layers[0]
    q, k, v = F.linear(x, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, dim=-1)
    split = [t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v)]
    mixed = pointwise_attention(*split, ~padding[:, None, None, :]).transpose(1, 2).flatten(2)
    first = layer.norm1(x + layer.self_attn.out_proj(mixed))
    first = layer.norm2(first + layer.linear2(layer.linear1(first).relu()))
    torch.testing.assert_close(converted.layers[0](x, src_key_padding_mask=padding), first)
    assert changes(converted) == [
        f"The attention layers.{i}.self_attn weighs by L^-1 relu(scores) now." for i in range(2)
    ]
    assert isinstance(encoder.layers[0].self_attn, nn.MultiheadAttention)


def test_decoders_divide_by_position_or_length() -> None:
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double(), normal(2, 5, 8)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    position = convert(attention)(x, x, x, attn_mask=causal, is_causal=True)[0]
    constant = convert(attention, scaling="length")(x, x, x, attn_mask=causal)[0]
    torch.testing.assert_close(constant * 5, position * torch.arange(1, 6).double()[:, None])
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    padded = convert(attention, scaling="length")(x, x, x, padding, attn_mask=causal)[0]
    torch.testing.assert_close(padded[0], constant[0])
    torch.testing.assert_close(padded[1, :3] * 3, constant[1, :3] * 5)


class Attention(nn.Module):
    """Attention in the form of timm's vision transformers."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = nn.LayerNorm(dim // num_heads), nn.Identity()
        self.attn_drop, self.norm, self.proj_drop = nn.Dropout(0.0), nn.LayerNorm(dim), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (
            self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        weights = self.attn_drop((self.scale * self.q_norm(q) @ self.k_norm(k).mT).softmax(-1))
        return self.proj_drop(self.proj(self.norm((weights @ v).transpose(1, 2).reshape(b, n, c))))


class WindowAttention(Attention):
    """A relative that is not the same: its scores have a position bias."""


def test_fused_attention_of_timm_and_of_the_tasks() -> None:
    attention, x = Attention(12, 3).double(), normal(2, 5, 12)
    nn.init.normal_(attention.norm.weight)
    same = _converted.ConvertedFused(attention, softmax_weights, False)
    torch.testing.assert_close(same(x), attention(x))
    model = nn.Sequential(attention, WindowAttention(12, 3), attention).double()
    converted = convert(model, alpha=0.0)
    assert [type(m).__name__ for m in converted] == ["ConvertedFused", "WindowAttention", "ConvertedFused"]
    assert converted[0] is converted[2]
    small = convert(vit(1, 8, 4, 3, dim=8, depth=2, heads=2), h="relu6")
    assert len(changes(small)) == 2
    assert changes(convert(nn.Linear(3, 3))) == []
    assert changes(convert(PointwiseAttention(8))) == []


class HuggingFaceModel(nn.Module):
    """A model that attends as those of transformers do: by a function looked up under its configuration's name."""

    def __init__(self, registry: dict[str, Any]) -> None:
        super().__init__()
        self.registry = lambda: registry  # as a module's global: not copied with the model
        self.config = types.SimpleNamespace(_attn_implementation="sdpa")
        self.projection = nn.Linear(8, 16)
        self.is_causal = True

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q = x.unflatten(-1, (4, 2)).transpose(1, 2)
        k, v = (
            self.projection(x).unflatten(-1, (2, 2, 4))[..., :2].permute(2, 0, 3, 1, 4)
        )  # two heads for four
        attend = self.registry()[self.config._attn_implementation]
        out, weights = attend(
            self, q, k.transpose(1, 1), v, mask, scaling=0.7, dropout=0.0, sliding_window=None
        )
        assert weights.shape == (len(x), 4, x.shape[1], x.shape[1])
        return out.flatten(2)


def test_hugging_face_models_are_converted_through_their_attention_interface(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    functions: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    interface = types.SimpleNamespace(register=functions.__setitem__)
    library = types.SimpleNamespace(AttentionInterface=interface)
    mask_library = types.SimpleNamespace(
        AttentionMaskInterface=types.SimpleNamespace(register=masks.__setitem__), eager_mask="eager"
    )
    model, x = HuggingFaceModel(functions).double(), normal(2, 5, 8)
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace())  # as before 4.50
    with pytest.raises(WorkingPapersError, match="transformers.AttentionInterface"):
        convert(model)
    monkeypatch.setitem(sys.modules, "transformers", library)
    monkeypatch.setitem(sys.modules, "transformers.masking_utils", mask_library)
    converted = convert(model, alpha=0.5)
    assert changes(converted) == ["The attention of HuggingFaceModel weighs by L^-0.5 relu(scores) now."]
    assert model.config._attn_implementation == "sdpa"
    assert masks == {converted.config._attn_implementation: "eager"}
    q = x.unflatten(-1, (4, 2)).transpose(1, 2)
    k, v = model.projection(x).unflatten(-1, (2, 2, 4))[..., :2].permute(2, 0, 3, 1, 4)
    attend = partial(pointwise_attention, q, k, v, scale=0.7, enable_gqa=True, alpha=0.5)
    torch.testing.assert_close(converted(x), attend(is_causal=True).transpose(1, 2).flatten(2))
    seen = (torch.arange(5) < torch.tensor([[5], [3]]))[:, None, None, :].expand(2, 1, 5, 5)
    least = torch.zeros(2, 1, 5, 5, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
    for mask in (seen, least):
        torch.testing.assert_close(converted(x, mask), attend(seen).transpose(1, 2).flatten(2))
    assert len(changes(convert(converted, alpha=0.5))) == 1


def test_a_converted_model_equals_torchvisions_use_of_attention() -> None:
    class EncoderBlock(nn.Module):  # as in torchvision.models.vision_transformer
        def __init__(self) -> None:
            super().__init__()
            self.ln_1 = nn.LayerNorm(8)
            self.self_attention = nn.MultiheadAttention(8, 2, dropout=0.0, batch_first=True)

        def forward(self, input: Tensor) -> Tensor:
            x = self.ln_1(input)
            x, _ = self.self_attention(x, x, x, need_weights=False)
            return x + input

    block, x = EncoderBlock().eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        assert not torch.allclose(convert(block)(x), block(x), atol=1e-4)
        assert convert(block)(x).shape == x.shape


def test_the_claims_compare_with_softmax_and_count_its_gathers() -> None:
    x = normal(2, 5, 8)
    mixer = SoftmaxAttention(8, 2).double()
    q, k, v = (t.transpose(1, 2) for t in mixer.qkv(x).unflatten(-1, (3, 2, 4)).unbind(2))
    mixed = softmax_weights(F.layer_norm(q, (4,)), F.layer_norm(k, (4,))) @ v
    torch.testing.assert_close(mixer(x), mixer.out(mixed.transpose(1, 2).flatten(2)))
    with RowReductions() as counted:
        q.softmax(-1)
        q.amax(-1), q.sum(-1)
        q @ k.mT
    assert counted.count == 4


def test_parts_are_made_by_name_and_claims_are_the_records() -> None:
    assert make("relu_attention_vit", 8, heads=2).heads == 2
    assert callable(make("relu_attention_vit.convert", alpha=0.5))
    assert [c.says for c in claims("relu_attention_vit").values()] == [
        c["says"] for c in record("relu_attention_vit").claims
    ]
