"""The papers that change or look into decoders, on the decoders of Hugging Face themselves."""

import pytest
import torch
from tests.surgery.real_models import TINY, hf
from torch import Tensor, nn

from workingpapers.engines.experts import as_experts, with_layers
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.language.entropic_overload import attention_entropy, attention_weights
from workingpapers.papers.language.stochastic_activations import (
    SparseDown,
    StochasticActivation,
    apply_stochastic,
    sparsify,
)
from workingpapers.papers.layers.laurel import LaurelBlock
from workingpapers.papers.layers.laurel import convert as laurel
from workingpapers.papers.layers.macaron import MacaronBlock
from workingpapers.papers.layers.macaron import convert as macaron

DECODERS = {
    "gpt2": lambda **o: hf.GPT2LMHeadModel(
        hf.GPT2Config(
            n_embd=16, n_layer=3, n_head=2, n_positions=32, vocab_size=50, bos_token_id=0, eos_token_id=0, **o
        )
    ),
    "llama": lambda **o: hf.LlamaForCausalLM(hf.LlamaConfig(**TINY, num_key_value_heads=2, **o)),
    "mistral": lambda **o: hf.MistralForCausalLM(hf.MistralConfig(**TINY, num_key_value_heads=2, **o)),
    "opt": lambda **o: hf.OPTForCausalLM(
        hf.OPTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=24,
            vocab_size=50,
            word_embed_proj_dim=16,
            max_position_embeddings=32,
            **o,
        )
    ),
}


@pytest.fixture(params=DECODERS)
def decoder(request):
    torch.manual_seed(0)
    return DECODERS[request.param]().eval()


TOKENS = torch.arange(14).view(2, 7)


def generated(model: nn.Module) -> Tensor:
    return model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), max_new_tokens=4, do_sample=False)


def count(model: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@torch.no_grad()
def test_laurel_keeps_the_function_and_generation_with_a_cache(decoder) -> None:
    kind = hf.models.opt.modeling_opt.OPTDecoderLayer if isinstance(decoder, hf.OPTForCausalLM) else None
    if kind is not None:
        with pytest.raises(WorkingPapersError, match="no module of the chosen sort"):
            laurel(decoder)
    changed = laurel(decoder, blocks=kind)
    assert count(changed, LaurelBlock) == decoder.config.num_hidden_layers
    torch.testing.assert_close(changed(TOKENS).logits, decoder(TOKENS).logits, atol=1e-6, rtol=1e-5)
    assert torch.equal(generated(changed), generated(decoder))


@torch.no_grad()
def test_a_macaron_gpt2_has_the_same_weights_is_causal_and_generates_what_it_predicts() -> None:
    torch.manual_seed(0)
    gpt2 = DECODERS["gpt2"]().eval()
    changed = macaron(gpt2)
    assert count(changed, MacaronBlock) == 3
    assert not torch.allclose(changed(TOKENS).logits, gpt2(TOKENS).logits, atol=1e-4)
    later = TOKENS.clone()
    later[:, 4:] = 3
    torch.testing.assert_close(changed(TOKENS).logits[:, :4], changed(later).logits[:, :4])
    text = generated(changed)
    predicted = changed(text[:, :-1]).logits.argmax(-1)
    assert torch.equal(text[:, 7:], predicted[:, 6:])


@torch.no_grad()
def test_stochastic_activations_are_found_and_gathering_gives_the_dense_outputs(decoder) -> None:
    changed = apply_stochastic(decoder).eval()
    assert count(changed, StochasticActivation) == decoder.config.num_hidden_layers
    sparse = sparsify(changed, most=1.0)
    assert count(sparse, SparseDown) == decoder.config.num_hidden_layers
    torch.testing.assert_close(sparse(TOKENS).logits, changed(TOKENS).logits, atol=1e-6, rtol=1e-5)
    assert torch.equal(generated(sparse), generated(changed))


@pytest.mark.parametrize("name", DECODERS)
def test_attention_is_looked_into_where_it_is_computed_openly(name: str) -> None:
    torch.manual_seed(0)
    weights = attention_weights(DECODERS[name](attn_implementation="eager"), TOKENS)
    for layer in weights:
        assert layer.shape == (2, 2, 7, 7)
        torch.testing.assert_close(layer.sum(-1), torch.ones(2, 2, 7))
        assert float(layer.triu(1).abs().max()) == 0
    found = attention_entropy(DECODERS[name](attn_implementation="eager"), TOKENS)
    assert 0 < found.numbers["mean"] < 1
    with pytest.raises(WorkingPapersError, match="attn_implementation='eager'"):
        attention_weights(DECODERS[name](), TOKENS)


class All(nn.Module):
    """Experts that all have weight 1: together the dense layer they were made of."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return self.experts(rows, torch.ones(len(rows), 4)).reshape(x.shape)


@torch.no_grad()
def test_dense_layers_split_into_experts_are_the_same_and_generate(decoder) -> None:
    changed = with_layers(decoder, lambda dense: All(as_experts(dense, 4)))
    assert count(changed, All) == decoder.config.num_hidden_layers
    torch.testing.assert_close(changed(TOKENS).logits, decoder(TOKENS).logits, atol=1e-6, rtol=1e-5)
    assert torch.equal(generated(changed), generated(decoder))
