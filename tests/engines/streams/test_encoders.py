"""Attention on streams against attention over each window, written out."""

import pytest
import torch
from torch import Tensor, nn

from workingpapers.engines.streams import (
    RecyclingPositions,
    attend,
    convert,
    multiply_adds,
    retroactive,
    single_output,
)
from workingpapers.errors import WorkingPapersError


def heads(steps: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 2, 3, steps, 4, dtype=torch.float64)
    return q * scale, k * scale, v


@pytest.mark.parametrize("scale", [1.0, 9.0])
def test_retroactive_attention_is_that_over_the_window(scale: float) -> None:
    """With scale 9 products differ by hundreds, so that the largest terms leave sums that were all but them."""
    (q, k, v), n, sums = heads(120, scale), 7, None
    for t in range(120):
        now, window = slice(t, t + 1), slice(max(t - n + 1, 0), t + 1)
        out, sums = retroactive(q[:, :, now], k[:, :, now], v[:, :, now], sums, n)
        wanted = attend(q[:, :, window], k[:, :, window], v[:, :, window])
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-7)


def test_float32_over_a_thousand_steps() -> None:
    (q, k, v), n, sums = [x.float() for x in heads(1000, 2.0)], 16, None
    for t in range(1000):
        now, window = slice(t, t + 1), slice(max(t - n + 1, 0), t + 1)
        out, sums = retroactive(q[:, :, now], k[:, :, now], v[:, :, now], sums, n)
        if t % 50 == 49:
            wanted = attend(q[:, :, window], k[:, :, window], v[:, :, window])
            torch.testing.assert_close(out, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [1, 5])
def test_single_output_is_the_newest_row(n: int) -> None:
    (q, k, v), memory, sums = heads(30), None, None
    for t in range(30):
        now, window = slice(t, t + 1), slice(max(t - n + 1, 0), t + 1)
        out, memory = single_output(q[:, :, now], k[:, :, now], v[:, :, now], memory, n)
        everything, sums = retroactive(q[:, :, now], k[:, :, now], v[:, :, now], sums, n)
        scores = torch.einsum("bhqd,bhkd->bhqk", q[:, :, now], k[:, :, window]) / 2
        wanted = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v[:, :, window])
        torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(everything[:, :, -1:], wanted)


def encoder(layers: int, norm_first: bool = False, dim: int = 16) -> nn.Module:
    one = nn.TransformerEncoderLayer(dim, 4, 32, norm_first=norm_first, batch_first=True)
    net = nn.TransformerEncoder(one, layers, nn.LayerNorm(dim), enable_nested_tensor=False).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2) if p.ndim > 1 else p.data.add_(0.2 * torch.randn_like(p))
    return net


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_encoders_on_windows(layers: int, norm_first: bool) -> None:
    net, tokens, n = encoder(layers, norm_first), torch.randn(2, 30, 16), 8
    newest = convert(net, tokens[:, :n], time=1)
    whole = convert(net, tokens[:, :n], time=1, outputs="all")
    one, _ = newest.steps(tokens)
    every, _ = whole.steps(tokens)
    for t in range(30 - n + 1):
        wanted = net(tokens[:, t : t + n])
        torch.testing.assert_close(one[:, t], wanted[:, -1], rtol=0, atol=1e-5)
        torch.testing.assert_close(every[t], wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_band_over_a_thousand_steps() -> None:
    net, tokens, n = encoder(2), torch.randn(1, 1000, 16), 64
    stream = convert(net, tokens[:, :20], time=1, window=n, attention="band")
    found, state = stream.steps(tokens)
    ago = torch.arange(1000)[:, None] - torch.arange(1000)
    torch.testing.assert_close(found, net(tokens, mask=(ago < 0) | (ago >= n)), rtol=0, atol=1e-5)
    dense = multiply_adds(lambda: net(tokens[:, :n]))
    assert dense >= 5 * multiply_adds(lambda: stream.step(tokens[:, 0], state))


@torch.no_grad()
def test_one_layer_over_a_window_of_64() -> None:
    net, tokens = encoder(1), torch.randn(1, 1000, 16)
    stream = convert(net, tokens[:, :64], time=1)
    found, state = stream.steps(tokens)
    for t in (63, 64, 500, 999):
        torch.testing.assert_close(found[:, t - 63], net(tokens[:, t - 63 : t + 1])[:, -1], rtol=0, atol=1e-5)
    dense = multiply_adds(lambda: net(tokens[:, :64]))
    assert dense >= 20 * multiply_adds(lambda: stream.step(tokens[:, 0], state))


@torch.no_grad()
def test_time_in_front() -> None:
    net = nn.TransformerEncoderLayer(8, 2, 16).eval()
    tokens = torch.randn(12, 3, 8)
    found, _ = convert(net, tokens[:5], time=0).steps(tokens)
    for t in range(8):
        torch.testing.assert_close(found[t], net(tokens[t : t + 5])[-1], rtol=0, atol=1e-5)


class Reader(nn.Module):
    """Recycling positions, an encoder, and a reading of the newest token or of the mean."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.positions, self.encoder, self.how = RecyclingPositions(torch.randn(11, 16)), encoder(2), how
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(self.positions(x))
        out: Tensor = self.head(y[:, -1] if self.how == "newest" else y.mean(1))
        return out


@pytest.mark.parametrize("how", ["newest", "mean"])
@torch.no_grad()
def test_recycling_positions(how: str) -> None:
    """The window that begins at frame s has the codes s, s + 1 ... modulo 11."""
    net, tokens, n = Reader(how).eval(), torch.randn(1, 40, 16), 6
    options = {"outputs": "all"} if how == "mean" else {}
    stream = convert(net, tokens[:, :n], time=1, **options)
    found, _ = stream.steps(tokens)
    for s in range(40 - n + 1):
        coded = tokens[:, s : s + n] + net.positions.codes[torch.arange(s, s + n) % 11]
        y = net.encoder(coded)
        wanted = net.head(y[:, -1] if how == "newest" else y.mean(1))
        torch.testing.assert_close(found[s], wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(stream(tokens[:, s : s + n], start=s), wanted, rtol=0, atol=1e-5)


def test_a_mean_over_newest_tokens_is_refused() -> None:
    with pytest.raises(WorkingPapersError, match="outputs='all'"):
        convert(Reader("mean").eval(), torch.randn(1, 6, 16), time=1)
    with pytest.raises(WorkingPapersError, match="positional codes"):
        RecyclingPositions(torch.randn(5))
    odd = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    odd.self_attn.add_zero_attn = True
    with pytest.raises(WorkingPapersError, match="add_zero_attn"):
        convert(odd, torch.randn(1, 6, 8), time=1)
