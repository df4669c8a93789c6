"""CATS: its exact facts, on real architectures through generate, save and load, and what it refuses."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from tests.surgery.real_models import hf
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import make
from workingpapers.engines.skipping import quantile
from workingpapers.engines.skipping.calibration import Sample, activations
from workingpapers.errors import WorkingPapersError
from workingpapers.kernels import rows
from workingpapers.kernels.breakeven import Costs
from workingpapers.papers.sparsity._sparse_examples import tiny_decoder
from workingpapers.papers.sparsity.cats import at_random, cats, rectified, report

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "eos_token_id": None,
}
GATED = {**SIZES, "intermediate_size": 40, "num_key_value_heads": 1, "pad_token_id": 0}
MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GATED)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GATED)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GATED)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GATED)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
    ),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**SIZES, ffn_dim=40, word_embed_proj_dim=16)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GATED, num_local_experts=4)),
}
GIVEN = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def _always_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rows, "_costs", lambda dtype, threads: Costs(((1.0, 1.0, 0.0, 0.0), (2.0, 1.0, 0.0, 0.0)))
    )


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, 50, shape)


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_path(name: str, tmp_path: Path) -> None:
    model, sample, prompt = MODELS[name]().eval(), tokens(20, 12), tokens(2, 5)
    with torch.no_grad():
        assert torch.equal(cats(model, sample, 0.0)(prompt).logits, model(prompt).logits)
    sparse = cats(model, sample, 0.5)
    shares = report(sparse, sample)
    assert len(shares) == 2
    assert all(abs(share - 0.5) < 0.03 for share in shares.values())
    said = sparse.generate(prompt, **GIVEN)
    assert torch.equal(pickle.loads(pickle.dumps(sparse)).generate(prompt, **GIVEN), said)
    assert sum(key.endswith("skip_below") for key in sparse.state_dict()) == 2
    torch.save(sparse.state_dict(), tmp_path / "model.pt")
    again = cats(MODELS[name](), sample, 0.3).eval()
    again.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(again.generate(prompt, **GIVEN), said)


def test_padding_and_batches_change_nothing() -> None:
    model, prompt = MODELS["llama"]().eval(), tokens(1, 5)
    sparse = cats(model, tokens(20, 12), 0.5)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), prompt], 1)
    mask = (padded > 0).long()
    alone = sparse.generate(prompt, **GIVEN)
    together = sparse.generate(
        torch.cat([padded, tokens(1, 8)]), attention_mask=torch.cat([mask, mask * 0 + 1]), **GIVEN
    )
    assert torch.equal(together[0, 8:], alone[0, 5:])


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 30, False), nn.Linear(6, 30), nn.Linear(30, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [1, 40], ids=["skipping", "dense"])
@torch.no_grad()
def test_a_gated_layer_by_the_formula(count: int) -> None:
    feed, x = Feed(), torch.randn(200, 6)
    sparse = cats(feed, x, 0.7)
    t = float(sparse.skip_below)  # type: ignore[arg-type]
    gate = F.silu(feed.gate(x))
    assert int((gate.abs() < t).sum()) == int(0.7 * gate.numel())
    exact = feed.down(torch.where(gate.abs() >= t, gate, 0.0) * feed.up(x))
    torch.testing.assert_close(sparse(x[:count]), exact[:count])
    sparse.skip_below.fill_(float("inf"))  # type: ignore[operator, union-attr]
    torch.testing.assert_close(sparse(x[:count]), feed.down.bias.expand(count, -1))


@torch.no_grad()
def test_a_plain_layer_by_the_formula() -> None:
    feed, x = nn.Sequential(nn.Linear(5, 50), nn.GELU(), nn.Linear(50, 4)), torch.randn(100, 5)
    sparse = cats(feed, x, 0.6)
    t = float(sparse[2].skip_below)  # type: ignore[arg-type]
    hidden = feed[:2](x)
    assert int((hidden.abs() < t).sum()) == 3000
    exact = feed[2](torch.where(hidden.abs() >= t, hidden, 0.0))
    torch.testing.assert_close(sparse(x), exact)
    torch.testing.assert_close(sparse(x[:3]), exact[:3])


def test_gradients_flow_through_what_is_kept() -> None:
    feed, x = Feed(), torch.randn(50, 6)
    sparse = cats(feed, x, 0.5)
    sparse(x[:1]).sum().backward()
    on = F.silu(feed.gate(x[:1]))[0].abs() >= sparse.skip_below
    used = sparse.up.weight.grad.abs().sum(1) > 0  # type: ignore[union-attr]
    assert torch.equal(used, on)


def test_padding_is_not_calibrated_on() -> None:
    layer, seen = nn.Embedding(5, 3), []
    batch = {
        "input": torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, input: Tensor, attention_mask: Tensor) -> Tensor:
            return self.layer(input)  # type: ignore[no-any-return]

    count = activations(
        Model(), batch, {"layer": layer}, lambda n, x, y: y, lambda n, a: seen.append(a), fewest=1
    )
    assert count == 6
    torch.testing.assert_close(torch.cat(seen), layer.weight[[1, 2, 3, 4, 1, 2]].detach())


def test_quantiles_leave_out_as_many_as_they_say() -> None:
    values = torch.randperm(101).float() + 1
    for share, left in ((0.0, 0), (0.5, 50), (0.99, 99), (1.0, 101)):
        assert int((values < quantile(values, share)).sum()) == left
    sample = Sample(most=50)
    for part in torch.arange(1000.0).split(70):
        sample.add(part)
    assert 25 <= len(sample.values()) <= 100
    assert abs(float(sample.values().mean()) - 499.5) < 25


def test_what_the_claim_compares_with() -> None:
    generator = torch.Generator().manual_seed(0)
    model, _, _ = tiny_decoder(generator)
    assert not any(isinstance(m, nn.SiLU) for m in rectified(model).modules())
    mask = at_random(0.3, generator)("", torch.zeros(100, 100))
    assert abs(float(mask.double().mean()) - 0.7) < 0.03
    assert make("cats") is cats


def test_what_it_refuses() -> None:
    model, _inputs, sample = tiny_decoder(torch.Generator().manual_seed(0))
    before = copy.deepcopy(model.state_dict())
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(WorkingPapersError, match="a sparsity lies between 0 and 1; got"):
            cats(model, sample, share)
    with pytest.raises(
        WorkingPapersError, match="calibration needs at least 8 tokens in every layer; .* saw 1"
    ):
        cats(model, sample[:1, :1])
    with pytest.raises(WorkingPapersError, match="no feed-forward layer"):
        cats(nn.Linear(3, 2), torch.randn(20, 3))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
