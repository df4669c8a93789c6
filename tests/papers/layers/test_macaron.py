"""Macaron Net: the layer by hand, conversion unit by unit, and both splittings where their error is known."""

import copy

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.layers import _splitting
from workingpapers.papers.layers._half_steps import MacaronBlock, halves
from workingpapers.papers.layers._splitting import flow, lie_trotter, order, run, strang
from workingpapers.papers.layers.macaron import MacaronLayer, convert, macaron_gpt, splitting_study
from workingpapers.surgery import changes
from workingpapers.tasks import char_gpt


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def layer(**options: object) -> MacaronLayer:
    torch.manual_seed(0)
    return MacaronLayer(8, 2, 24, batch_first=True, **options).double().eval()  # type: ignore[arg-type]


def attention(module: MacaronLayer, x: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = F.linear(x, module.self_attn.in_proj_weight, module.self_attn.in_proj_bias).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / 2
    if mask is not None:
        scores = scores.masked_fill(mask, -torch.inf)
    return module.self_attn.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def perceptron(ffn: nn.Module, x: Tensor) -> Tensor:
    return (x @ ffn.up.weight.T + ffn.up.bias).clamp_min(0) @ ffn.down.weight.T + ffn.down.bias


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_the_layer_follows_the_equations_before_and_after_norms(factor: float) -> None:
    x, mask = normal(3, 5, 8), torch.ones(5, 5, dtype=torch.bool).triu(1)
    pre = layer(norm_first=True, factor=factor)
    y = x + factor * perceptron(pre.ffn1, pre.norm1(x))
    y = y + attention(pre, pre.norm2(y), mask)
    y = y + factor * perceptron(pre.ffn2, pre.norm3(y))
    torch.testing.assert_close(pre(x, mask), y)
    post = layer(factor=factor)
    y = post.norm1(x + factor * perceptron(post.ffn1, x))
    y = post.norm2(y + attention(post, y))
    y = post.norm3(y + factor * perceptron(post.ffn2, y))
    torch.testing.assert_close(post(x), y)


def test_its_weights_are_the_standard_ones_but_for_a_bias_and_a_norm() -> None:
    standard = nn.TransformerEncoderLayer(16, 4, 64)
    assert count(MacaronLayer(16, 4, 64)) - count(standard) == 16 + 2 * 16


def test_with_one_doubled_step_it_is_a_standard_layer_with_the_perceptron_first() -> None:
    module, x = layer(norm_first=True), normal(2, 5, 8)
    with torch.no_grad():
        for end in (module.ffn2.down, module.ffn1.down):
            end.weight.mul_(2.0 if end is module.ffn1.down else 0.0)
            end.bias.mul_(2.0 if end is module.ffn1.down else 0.0)
    plain = copy.deepcopy(module.ffn1)
    with torch.no_grad():
        plain.down.weight.div_(2)
        plain.down.bias.div_(2)
    y = x + perceptron(plain, module.norm1(x))
    torch.testing.assert_close(module(x), y + attention(module, module.norm2(y)))


def test_padding_is_masked_and_dropout_acts_in_training_only() -> None:
    module, x = layer(), normal(2, 5, 8)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[:, 3:] = True
    torch.testing.assert_close(module(x, src_key_padding_mask=padding)[:, :3], module(x[:, :3]))
    assert not torch.equal(module.train()(x), module(x))


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(WorkingPapersError, match="share dim_feedforward evenly; 7 is odd"):
        MacaronLayer(8, 2, 7)


@pytest.mark.parametrize("factor", [0.5, 1.0])
@pytest.mark.parametrize(("width", "half"), [(32, 16), (24, 16), (8, 8), (64, 32)])
def test_the_two_halves_add_up_to_the_old_block(width: int, half: int, factor: float) -> None:
    up, down = nn.Linear(6, width).double(), nn.Linear(width, 6).double()
    x = normal(7, 6)
    pairs = halves(up, down, factor)
    assert [first.out_features for first, _ in pairs] == [half, half]
    together = sum(factor * second(F.gelu(first(x))) for first, second in pairs)
    torch.testing.assert_close(together, down(F.gelu(up(x))))


def test_units_that_find_no_place_are_dropped() -> None:
    up, down = nn.Linear(3, 100), nn.Linear(100, 3)
    (first, _), (second, _) = halves(up, down, 0.5)
    assert first.out_features == second.out_features == 48
    torch.testing.assert_close(torch.cat([first.weight, second.weight]), up.weight[:96])


def test_a_converted_encoder_layer_keeps_attention_norms_and_units() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 32, 0.0, batch_first=True), 2).eval()
    macaron = convert(encoder)
    assert len(changes(macaron)) == 2
    x = torch.randn(3, 5, 8)
    old, new = encoder.layers[0], macaron.layers[0]
    y = new.norm1(x + 0.5 * perceptron(new.ffn1, x))
    z = old.norm1(y + old.self_attn(y, y, y)[0])
    units = (z @ old.linear1.weight[16:].T + old.linear1.bias[16:]).clamp_min(0)
    step = units @ old.linear2.weight[:, 16:].T + old.linear2.bias / 2
    torch.testing.assert_close(new(x), old.norm2(z + step), atol=1e-5, rtol=1e-5)
    assert macaron(x).shape == (3, 5, 8)


class Conv1D(nn.Module):
    """As in GPT-2 of Hugging Face: a linear layer whose weight is (in, out)."""

    def __init__(self, out: int, into: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(into, out) / 4), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class GPT2Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.attn = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.act, self.mlp.c_proj = Conv1D(32, 8), nn.GELU(), Conv1D(8, 32)

    def forward(self, x: Tensor, use_cache: bool = False) -> tuple[Tensor]:
        x = x + self.attn(self.ln_1(x))
        return (x + self.mlp.c_proj(self.mlp.act(self.mlp.c_fc(self.ln_2(x)))),)


def test_a_block_of_hugging_faces_form_is_converted() -> None:
    torch.manual_seed(0)
    block, x = GPT2Block(), torch.randn(2, 3, 8)
    (found,) = convert(nn.ModuleList([block]))[0](x, use_cache=True)

    def part(y: Tensor, units: slice) -> Tensor:
        hidden = F.gelu(block.ln_2(y) @ block.mlp.c_fc.weight[:, units] + block.mlp.c_fc.bias[units])
        return hidden @ block.mlp.c_proj.weight[units] + block.mlp.c_proj.bias / 2

    y = x + part(x, slice(0, 16))
    y = y + block.attn(block.ln_1(y))
    torch.testing.assert_close(found, y + part(y, slice(16, 32)), atol=1e-5, rtol=1e-5)


def test_a_gpt_gets_as_many_weights_and_stays_causal() -> None:
    standard, macaron = char_gpt(11, 32, 3, 4, 8), macaron_gpt(11, 32, 3, 4, 8)
    assert abs(count(macaron) / count(standard) - 1) < 0.02
    blocks = [m for m in macaron.modules() if isinstance(m, MacaronBlock)]
    assert len(blocks) == 3
    assert not torch.equal(blocks[0].first.up.weight, standard.blocks[0].expand.weight[:64])
    tokens = torch.arange(8)[None]
    later = tokens.clone()
    later[0, 5:] = 3
    torch.testing.assert_close(macaron(tokens)[:, :5], macaron(later)[:, :5])
    assert len(list(convert(macaron).modules())) == len(list(macaron.modules()))


def test_what_has_no_known_form_is_refused() -> None:
    with pytest.raises(WorkingPapersError, match="has no module of the chosen sort"):
        convert(nn.Linear(3, 3))
    with pytest.raises(WorkingPapersError, match="a Linear has no feed-forward part of a known form"):
        convert(nn.Linear(3, 3), nn.Linear)


def test_a_flow_of_matrices_is_the_exponential() -> None:
    a, _, x = _splitting.linear_fields(np.random.default_rng(0))
    np.testing.assert_allclose(flow(lambda y: a @ y, x, 0.7), expm(0.7 * a) @ x, atol=1e-9)


def test_both_splittings_are_exact_where_the_parts_commute() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 5))
    x = rng.standard_normal(5)
    for step in (lie_trotter, strang):
        found = run(step, lambda y: a * y, lambda y: b * y, x, 0.5, 2)
        np.testing.assert_allclose(found, np.exp(a + b) * x, rtol=1e-8)


def test_a_step_of_matrices_is_the_product_of_their_exponentials_in_the_right_order() -> None:
    a, b, x = _splitting.linear_fields(np.random.default_rng(2))
    f, g = (lambda y: a @ y), (lambda y: b @ y)
    np.testing.assert_allclose(lie_trotter(f, g, x, 0.3), expm(0.3 * b) @ expm(0.3 * a) @ x, atol=1e-9)
    half = expm(0.15 * b)
    np.testing.assert_allclose(strang(f, g, x, 0.3), half @ expm(0.3 * a) @ half @ x, atol=1e-9)


def test_the_local_error_of_lie_and_trotter_is_half_the_commutator() -> None:
    a, b, x = _splitting.linear_fields(np.random.default_rng(3))
    h = 1e-3
    gap = lie_trotter(lambda y: a @ y, lambda y: b @ y, x, h) - expm(h * (a + b)) @ x
    np.testing.assert_allclose(gap / h**2, (b @ a - a @ b) @ x / 2, atol=5e-3)


def test_the_study_finds_the_orders_of_an_attention_field() -> None:
    found = splitting_study(*_splitting.particle_fields(np.random.default_rng(0), 3, 2), (0.1, 0.05)).numbers
    for name, power in (("lie_trotter", 1), ("strang", 2)):
        assert found[f"{name}_global_order"] == pytest.approx(power, abs=0.2)
        assert found[f"{name}_local_order"] == pytest.approx(power + 1, abs=0.2)
    assert order([1.0, 0.5, 0.25], [3.0, 0.75, 0.1875]) == pytest.approx(2.0)


def test_the_claims_are_those_of_the_record() -> None:
    assert {c.says for c in claims("macaron").values()} == {c["says"] for c in record("macaron").claims}
    assert isinstance(make("macaron", 8, 2, 16), MacaronLayer)
