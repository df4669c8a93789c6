"""Feed-forward layers found in models of others and of one's own, and what each of their parts computes."""

import pytest
import torch
from tests.surgery.real_models import hf
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.feedforward import compute, feed_forwards, gates, named

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "pad_token_id": 0}


class Gated(nn.Module):
    def __init__(self, spread: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 6)
        self.norm = nn.LayerNorm(9) if norm else nn.Identity()
        self.spread = spread

    def forward(self, x: Tensor) -> Tensor:
        out = self.three(self.norm(self.one(x) * F.silu(self.two(x))))
        return x + out if self.spread else out


GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
DECODERS = {
    "llama": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GATED)),
        "model.layers.0.mlp gate_proj up_proj silu",
    ),
    "phi3": (
        lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GATED)),
        "model.layers.0.mlp gate_up_proj gate_up_proj silu",
    ),
    "gemma": (
        lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**GATED, head_dim=8)),
        "model.layers.0.mlp gate_proj up_proj gelu_tanh",
    ),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)), "transformer.h.0.mlp c_fc None gelu_tanh"),
    "opt": (
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=16)),
        "model.decoder.layers.0.fc2 fc1 None relu",
    ),
}


@pytest.mark.parametrize("name", DECODERS)
def test_layers_of_decoders(name: str) -> None:
    model, expected = DECODERS[name]
    found = feed_forwards(model().eval(), torch.randint(0, 50, (2, 7)))
    assert len(found) == 2
    first = found[0]
    up = first.up.name.rpartition(".")[2] if first.up else None
    assert f"{first.name} {first.gate.name.rpartition('.')[2]} {up} {named(first)}" == expected
    assert (first.holder is None) == (name == "opt")


def test_the_parts_of_a_gated_layer() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), Gated()), torch.randn(3, 4)
    (layer,) = feed_forwards(model, x)
    assert (layer.gate.name, layer.up.name, layer.down.name, layer.count) == ("1.two", "1.one", "1.three", 9)  # type: ignore[union-attr]
    assert layer.holder is not None
    assert layer.holder.layer is model[1]
    a, up = gates(layer, model[0](x))
    assert torch.equal(a, F.silu(model[1].two(model[0](x))))  # type: ignore[operator]
    assert torch.equal(up, model[1].one(model[0](x)))  # type: ignore[operator, arg-type]
    assert torch.equal(compute(layer, model[0](x)), model(x))


def test_a_module_that_does_more_is_no_holder() -> None:
    (layer,) = feed_forwards(Gated(spread=True), torch.randn(3, 6))
    assert layer.holder is None
    assert layer.name == "three"


def test_a_norm_on_the_way_is_no_feed_forward_layer_and_none_at_all_is_an_error() -> None:
    with pytest.raises(
        WorkingPapersError, match="Gated has no feed-forward layer: no linear layer reads what"
    ):
        feed_forwards(Gated(norm=True), torch.randn(3, 6))
    with pytest.raises(WorkingPapersError, match="no feed-forward layer"):
        feed_forwards(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3))


def test_the_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(), Gated()).train()
    feed_forwards(model, torch.randn(3, 4))
    assert all(m.training and not m._forward_hooks for m in model.modules())
