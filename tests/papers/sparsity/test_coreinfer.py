"""CoreInfer: cores by counting, decoding by the core's rows alone, groups, padding, and real decoders."""

import copy

import pytest
import torch
from tests.surgery.real_models import hf
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._core_domains import sums
from workingpapers.papers.sparsity._core_sets import overlap, sentence_core, sentence_means
from workingpapers.papers.sparsity._sparse_examples import tiny_decoder
from workingpapers.papers.sparsity.coreinfer import coreinfer, cores_of

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "eos_token_id": None,
}
GATED = {**SIZES, "intermediate_size": 40, "num_key_value_heads": 1, "pad_token_id": 0}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": None, "eos_token_id": None}
MODELS = {
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GATED)), "model.layers.{}.mlp.down_proj", 40),
    "phi3": (lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GATED)), "model.layers.{}.mlp.down_proj", 40),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)), "transformer.h.{}.mlp.c_proj", 64),
    "opt": (
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**SIZES, ffn_dim=40, word_embed_proj_dim=16)),
        "model.decoder.layers.{}.fc2",
        40,
    ),
}


def by_counting(h: Tensor, count: int, alpha: float) -> set[int]:
    """Return a sentence's core as the paper words it, one token after another."""
    largest = max(1, int(alpha * sum(int((t > 0).sum()) for t in h) / len(h)))
    votes = [0] * h.shape[1]
    for token in h:
        for place in sorted(range(len(token)), key=lambda i: -float(token[i]))[:largest]:
            votes[place] += 1
    order = sorted(range(len(votes)), key=lambda i: (-votes[i], -float(h[:, i].double().sum())))
    return set(order[:count])


@pytest.mark.parametrize(("count", "alpha"), [(8, 0.4), (1, 1.0), (20, 0.1), (0, 0.5)])
def test_cores_by_counting(count: int, alpha: float) -> None:
    h = torch.randn(9, 20)
    found = sentence_core(h, count, alpha)
    assert set(found.tolist()) == by_counting(h, count, alpha)
    assert len(found) == count
    assert torch.equal(sentence_core(h[torch.randperm(9)], count, alpha), found)


def test_overlap_and_means() -> None:
    assert overlap(torch.tensor([1, 2, 3]), torch.tensor([3, 4, 5, 1])) == 2 / 5
    x, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, True], [False, True, True]])
    found = sentence_means(x, mask)
    torch.testing.assert_close(found, torch.stack([x[0].mean(0), x[1, 1:].mean(0)]))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_decoding_uses_the_core_of_the_prompt_alone(name: str) -> None:
    build, place, width = MODELS[name]
    model, prompt = build().eval(), torch.randint(1, 50, (2, 9))
    sparse = coreinfer(model, prompt, sparsity=0.5)
    assert torch.equal(sparse(prompt).logits, model(prompt).logits)
    core = sparse.get_submodule(place.format(1)).core
    assert core.index.shape == (2, width // 2)
    reference = copy.deepcopy(model)
    for number in range(2):
        index = sparse.get_submodule(place.format(number)).core.index
        mask = torch.zeros(2, 1, width).scatter(2, index[:, None], 1.0)
        down = reference.get_submodule(place.format(number))
        down.register_forward_pre_hook(
            lambda m, args, mask=mask: (
                (args[0] * mask.view_as(args[0]),) if args[0].numel() == mask.numel() else args
            )
        )
    given = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "output_scores": True}
    one, other = (m.generate(prompt, return_dict_in_generate=True, **given) for m in (sparse, reference))
    torch.testing.assert_close(torch.stack(one.scores), torch.stack(other.scores), rtol=1e-4, atol=1e-4)
    again = copy.deepcopy(sparse).generate(prompt, return_dict_in_generate=True, **given)
    assert torch.equal(again.sequences, one.sequences)


@torch.no_grad()
def test_nothing_left_out_is_the_dense_model() -> None:
    model, prompt = MODELS["llama"][0]().eval(), torch.randint(1, 50, (1, 9))
    given = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    assert torch.equal(
        coreinfer(model, prompt, 0.0).generate(prompt, **given), model.generate(prompt, **given)
    )


@torch.no_grad()
def test_padding_does_not_vote() -> None:
    model, prompt = MODELS["llama"][0]().eval(), torch.randint(1, 50, (1, 9))
    sparse = coreinfer(model, prompt, 0.5)
    sparse(prompt, attention_mask=torch.ones_like(prompt))
    layer = sparse.model.layers[1].mlp.down_proj
    alone = layer.core.index[0]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), prompt], 1)
    sparse(input_ids=padded, attention_mask=(padded > 0).long())
    assert torch.equal(layer.core.index[0], alone)


@torch.no_grad()
def test_a_prompt_takes_the_core_of_the_nearest_group() -> None:
    model, _, _ = tiny_decoder(torch.Generator().manual_seed(0))
    low, high = torch.randint(0, 2, (6, 8)), torch.randint(9, 11, (6, 8))
    sparse = coreinfer(model, torch.cat([low, high]), 0.5, groups=2)
    sparse(torch.cat([low[:1], high[:1]]))
    down = sparse.blocks[1].contract
    sets, index = down.core_sets, down.core.index
    assert sets.shape == (2, 12)
    assert not torch.equal(index[0], index[1])
    assert {tuple(i.tolist()) for i in index} == {tuple(s.tolist()) for s in sets}
    assert "blocks.1.contract.core_sets" in sparse.state_dict()
    with pytest.raises(WorkingPapersError, match="30 groups need as many sentences; got 12"):
        coreinfer(model, torch.cat([low, high]), 0.5, groups=30)


def test_layers_left_dense_and_cores_of_a_model() -> None:
    model, tokens, _ = tiny_decoder(torch.Generator().manual_seed(0))
    sparse = coreinfer(model, tokens, 0.5, dense_first=1)
    assert type(sparse.blocks[0].contract) is nn.Linear
    assert hasattr(sparse.blocks[1].contract, "core")
    found = cores_of(model, tokens, 0.5)
    assert [c.shape for c in found] == [(2, 12), (2, 12)]
    sparse(tokens)
    assert torch.equal(sparse.blocks[1].contract.core.index, found[1])


def test_the_second_domain() -> None:
    written = sums(500, torch.Generator().manual_seed(0))
    assert len(written) == 500
    assert "five and six are eleven" in sums(20_000, torch.Generator().manual_seed(0))


def test_what_it_refuses() -> None:
    model, tokens, _ = tiny_decoder(torch.Generator().manual_seed(0))
    with pytest.raises(WorkingPapersError, match="sparsity lies between 0 and 1; got 1.2"):
        coreinfer(model, tokens, 1.2)
    with pytest.raises(WorkingPapersError, match="alpha lies between 0 and 1; got -1"):
        coreinfer(model, tokens, alpha=-1)
    with pytest.raises(WorkingPapersError, match="no feed-forward layer"):
        coreinfer(nn.Linear(3, 2), torch.randn(20, 3))
