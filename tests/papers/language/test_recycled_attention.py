"""Recycled attention in real decoders: full where it must be, and elsewhere attention written out by hand."""

import copy
import pickle
from typing import Any

import pytest
import torch
from tests.surgery.real_models import hf
from torch import Tensor, nn

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.language._decode_policies import HeavyHitters, Oracle, Recycled, Streaming
from workingpapers.papers.language._policy_attention import policies, policy_attention, with_policy
from workingpapers.papers.language._recall import Recall, recall_accuracy, recall_model
from workingpapers.papers.language.recycled_attention import AttentionLayer, operations_ratio, reading

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def decoder(name: str) -> nn.Module:
    models = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)),
        "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SIZES, sliding_window=None)),
        "sliding": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SIZES, sliding_window=12)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4)),
    }
    model = models[name]().eval()
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.3)
    return model


def decode(model: nn.Module, tokens: Tensor, prompt: int) -> Tensor:
    """Return the logits of a prompt and of the tokens behind it, given one by one."""
    with torch.no_grad():
        out = model(input_ids=tokens[:, :prompt], use_cache=True)
        found = [out.logits]
        for t in range(prompt, tokens.shape[1]):
            out = model(input_ids=tokens[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
            found.append(out.logits)
    return torch.cat(found, 1)


def generate(model: nn.Module, **options: Any) -> Tensor:
    tokens: Tensor = model.generate(  # type: ignore[operator]
        max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None, **options
    )
    return tokens


def test_every_claim_of_the_record_is_measured() -> None:
    assert {c.says for c in claims("recycled_attention").values()} == {
        c["says"] for c in record("recycled_attention").claims
    }


@pytest.mark.parametrize("name", ["llama", "mistral", "sliding", "gpt2"])
@pytest.mark.parametrize("options", [{"stride": 1}, {"budget": 1000}])
def test_full_attention_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    model, tokens = decoder(name), torch.randint(1, 40, (2, 30))
    same = make("recycled_attention", **options)(model)
    assert torch.equal(decode(same, tokens, 9), decode(model, tokens, 9))
    assert torch.equal(generate(same, input_ids=tokens[:, :9]), generate(model, input_ids=tokens[:, :9]))


@pytest.mark.parametrize("name", ["llama", "mistral", "sliding", "gpt2"])
def test_generate_and_padding(name: str) -> None:
    """Padding left of the prompt has no part in what is generated; batches give what single sequences do."""
    model, tokens = decoder(name), torch.randint(1, 40, (1, 11))
    own = make("recycled_attention", budget=5, stride=4)(model)
    plain = generate(own, input_ids=tokens)
    assert plain.shape == (1, 23)
    read = reading(own)
    assert 0.15 < read.full < 0.35
    assert read.steps == 2 * 11
    short = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens], 1)
    both = torch.cat([short, torch.randint(1, 40, (1, 14))])
    if name == "sliding":
        return  # a cache that slides has dropped other tokens
    mask = torch.ones_like(both)
    mask[0, :3] = 0
    found = generate(own, input_ids=both, attention_mask=mask)
    assert torch.equal(found[:1, 3:], plain)


def by_hand(q: Tensor, k: Tensor, v: Tensor, at: list[Tensor]) -> Tensor:
    """Return the attention of one query (H, D) to the positions `at` of each key-value head."""
    out = []
    for h in range(len(q)):
        own = at[h * len(k) // len(q)]
        keys, values = k[h * len(k) // len(q)][own], v[h * len(k) // len(q)][own]
        out.append((keys @ q[h] / q.shape[-1] ** 0.5).softmax(0) @ values)
    return torch.stack(out)


def test_steps_by_hand() -> None:
    """Prompt of 20, K = 6 of which 1 is recent, S = 3: steps 1 and 2 recycle, step 3 is full, with a new set."""
    q, k, v = torch.randn(9, 1, 4, 1, 8), torch.randn(1, 2, 28, 8), torch.randn(1, 2, 28, 8)
    layer = AttentionLayer(Recycled(6, 3, 0.25, None, 1), 2).eval()
    prompt = torch.cat([torch.randn(1, 4, 19, 8), q[0]], 2)
    policy_attention(layer, prompt, k[:, :, :20], v[:, :, :20], None)
    kept: list[Tensor] = []
    for t in range(9):
        n = 20 + t
        if t:
            out, _ = policy_attention(layer, q[t], k[:, :, :n], v[:, :, :n], None)
            at = (
                [torch.arange(n)] * 2
                if t % 3 == 0
                else [torch.cat([s, torch.arange(20 + t - t % 3, n)]) for s in kept]
            )
            torch.testing.assert_close(out[0, 0], by_hand(q[t, 0, :, 0], k[0, :, :n], v[0, :, :n], at))
        if t % 3 == 0:
            scores = torch.einsum("hd,gnd->hgn", q[t, 0, :, 0], k[0, :, :n]) / 8**0.5
            mean = [scores[2 * g : 2 * g + 2, g].softmax(-1).mean(0) for g in range(2)]
            kept = [torch.cat([m[: n - 1].topk(5).indices, torch.tensor([n - 1])]) for m in mean]
            assert all(int(m.argmax()) in s.tolist() for m, s in zip(mean, kept, strict=True))
    assert layer.policy.read == [(7, 21), (8, 22), (23, 23), (7, 24), (8, 25), (26, 26), (7, 27), (8, 28)]


def test_queries_that_turn_away() -> None:
    k, v = torch.randn(1, 1, 40, 4), torch.randn(1, 1, 40, 4)
    same, other = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4)
    other -= (other * same).sum() / same.square().sum() * same  # at a right angle
    for smallest, wanted in ((1, [False, True, False, False]), (3, [False, False, True, False])):
        layer = AttentionLayer(Recycled(4, 10, 0.0, 0.8, smallest), 1).eval()
        policy_attention(layer, same.expand(1, 1, 20, 4), k[:, :, :20], v[:, :, :20], None)
        for t, query in enumerate([1.5 * same, other, other, other]):
            policy_attention(layer, query, k[:, :, : 21 + t], v[:, :, : 21 + t], None)
        assert [a == b for a, b in layer.policy.read] == wanted


def test_continued_training_sees_what_decoding_sees() -> None:
    """The logits of a teacher-forced sequence are those of decoding it from its first token on."""
    model, tokens = decoder("llama"), torch.randint(1, 40, (2, 23))
    own = make("recycled_attention", budget=0.3, stride=4, continued=True)(model)
    stepped = decode(own, tokens, 1)
    trained = own.train()(input_ids=tokens).logits
    torch.testing.assert_close(trained.detach(), stepped, rtol=0, atol=1e-5)
    assert float((trained - model(input_ids=tokens).logits).detach().abs().max()) > 1e-3
    trained.sum().backward()
    assert all(p.grad is not None for p in own.parameters())
    without = make("recycled_attention", budget=0.3, stride=4)(model).train()
    torch.testing.assert_close(without(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_baselines_by_hand() -> None:
    n, q = 24, torch.randn(3, 1, 2, 1, 8)
    k, v = torch.randn(1, 1, n + 2, 8), torch.randn(1, 1, n + 2, 8)
    prompt = torch.randn(1, 2, n, 8)
    sums = (prompt[0] @ k[0, 0, :n].T / 8**0.5).masked_fill(~torch.ones(n, n).tril().bool(), -torch.inf)
    total = torch.cat([sums.softmax(-1).sum((0, 1)), torch.zeros(2)])
    streaming, oracle, hitters = (AttentionLayer(p(8), 2).eval() for p in (Streaming, Oracle, HeavyHitters))
    for layer in (streaming, oracle, hitters):
        policy_attention(layer, prompt, k[:, :, :n], v[:, :, :n], None)
    alive = torch.arange(n)
    for t in (1, 2):
        m = n + t
        found = {
            name: policy_attention(layer, q[t], k[:, :, :m], v[:, :, :m], None)[0][0, 0]
            for name, layer in (("streaming", streaming), ("oracle", oracle), ("hitters", hitters))
        }
        scores = (k[0, 0, :m] @ q[t, 0, :, 0].T / 8**0.5).softmax(0).mean(1)
        alive = torch.cat([alive, torch.tensor([m - 1])])
        old = alive[alive < m - 4]
        alive = torch.cat([old[total[old].topk(4).indices].sort().values, torch.arange(m - 4, m)])
        inside = (k[0, 0, alive] @ q[t, 0, :, 0].T / 8**0.5).softmax(0).sum(1)
        total[alive] += inside
        wanted = {
            "streaming": torch.cat([torch.arange(4), torch.arange(m - 4, m)]),
            "oracle": scores.topk(8).indices,
            "hitters": alive,
        }
        for name, at in wanted.items():
            torch.testing.assert_close(
                found[name],
                by_hand(q[t, 0, :, 0], k[0, :, :m], v[0, :, :m], [at]),
                msg=lambda m, n=name: f"{n}: {m}",
            )


def test_mass_is_the_sum_of_true_attention() -> None:
    q, k, v = torch.randn(1, 2, 1, 4), torch.randn(1, 1, 31, 4), torch.randn(1, 1, 31, 4)
    layer = AttentionLayer(Streaming(7), 2).eval()
    layer.policy.watch = True
    policy_attention(layer, torch.randn(1, 2, 30, 4), k[:, :, :30], v[:, :, :30], None)
    policy_attention(layer, q, k, v, None)
    true = (q[0, :, 0] @ k[0, 0].T / 2).softmax(-1).mean(0)
    assert layer.policy.mass == [pytest.approx(float(true[[0, 1, 2, 3, 28, 29, 30]].sum()), abs=1e-6)]
    assert operations_ratio([(10, 20), (5, 40)]) == 4.0


def test_a_new_prompt_starts_anew_and_copies_go_their_own_way() -> None:
    model, tokens = decoder("llama"), torch.randint(1, 40, (1, 20))
    own = make("recycled_attention", budget=4, stride=5)(model)
    first = decode(own, tokens, 8)
    decode(own, torch.randint(1, 40, (3, 9)), 5)
    assert torch.equal(decode(own, tokens, 8), first)
    again = pickle.loads(pickle.dumps(own))
    assert torch.equal(decode(again, tokens, 8), first)
    assert torch.equal(decode(copy.deepcopy(own), tokens, 8), first)
    assert len(policies(own)) == 2
    assert not policies(model)
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_recall_sequences_can_be_answered() -> None:
    problem = Recall(5, 4, 30, 2)
    tokens = problem.sequences(50, torch.Generator().manual_seed(1))
    assert tokens.shape == (50, 42)
    assert int(tokens.max()) < problem.vocabulary
    for row in tokens:
        facts = {int(f) // 4: int(f) % 4 for f in row[:30] if f < 60}
        assert len(facts) == 15
        for ask, say in row[30:].view(-1, 2):
            assert 60 <= int(ask) < 75
            assert int(say) - 75 == facts[int(ask) - 60]


def test_recall_is_measured_on_decoded_values() -> None:
    problem = Recall(4, 3, 24, 1)
    model = recall_model(problem.vocabulary, 8, 1, 40)
    found = recall_accuracy(model, Oracle(1000), problem, 30, 0)
    assert found["mass"] == pytest.approx(1.0)
    assert 0 <= found["accuracy"] <= 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget": 0}, "above 0"),
        ({"stride": 0}, "counts of steps"),
        ({"min_stride": 11}, "min_stride <= stride"),
        ({"recent": 1.0}, "share of recent"),
        ({"threshold": 2.0}, "cosine"),
    ],
)
def test_bad_options(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WorkingPapersError, match=sentence):
        make("recycled_attention", **options)(decoder("llama"))


def test_models_that_are_no_decoders() -> None:
    with pytest.raises(WorkingPapersError, match="no causal attention layers"):
        with_policy(nn.Linear(2, 2), Oracle(2))
