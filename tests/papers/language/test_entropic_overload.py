"""Entropies of known attention, norm-free models against blocks written by hand, and features counted."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.language.entropic_overload import (
    ClippedAdamW,
    activations_of,
    attention_entropy,
    attention_weights,
    feature_statistics,
    head_entropies,
    highest_entropy,
    make_norm_free,
    norms_of,
    slopes_of,
)
from workingpapers.surgery import changes
from workingpapers.tasks import char_gpt, initialise


def gpt(**options: Any) -> nn.Module:
    return initialise(lambda: char_gpt(11, 16, 3, 2, 12, **options), 0)


def tokens(count: int = 5) -> torch.Tensor:
    return torch.randint(11, (count, 12), generator=torch.Generator().manual_seed(0))


class Given(nn.Module):
    """Stands for a Hugging Face model: gives its attention weights on demand."""

    def __init__(self, *weights: torch.Tensor | None) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x: torch.Tensor, output_attentions: bool = False) -> SimpleNamespace:
        assert output_attentions
        assert not self.training
        return SimpleNamespace(attentions=self.weights)


def uniform(length: int) -> torch.Tensor:
    return torch.tril(torch.ones(length, length)) / torch.arange(1, length + 1)[:, None]


def test_entropies_of_uniform_and_of_one_hot_attention() -> None:
    length = 12
    mean_log = sum(math.log(i) for i in range(1, length + 1)) / length
    weights = torch.stack([uniform(length), torch.eye(length)])[None].expand(3, 2, length, length)
    assert head_entropies(weights).tolist() == pytest.approx([mean_log, 0], abs=1e-6)
    assert highest_entropy(length) == pytest.approx(mean_log)
    mixed = torch.stack([uniform(length), torch.eye(length)])[:, None]  # the mean over examples
    assert float(head_entropies(mixed)[0]) == pytest.approx(mean_log / 2, abs=1e-6)


def test_shares_of_overloaded_and_collapsed_heads() -> None:
    length = 12
    flat, sharp = uniform(length), torch.eye(length)
    flat_for = [
        torch.stack([flat, flat])[None],
        torch.stack([sharp, flat])[None],
        torch.stack([sharp] * 2)[None],
    ]
    numbers = attention_entropy(Given(*flat_for).train(), tokens()).numbers
    assert numbers["overloaded"] == pytest.approx(0.5)
    assert numbers["collapsed"] == pytest.approx(0.5)
    assert numbers["overloaded early"] == pytest.approx(1)
    assert numbers["mean early"] == pytest.approx(1)
    assert numbers["mean"] == pytest.approx(0.5)
    assert numbers["layer 1 head 1"] == pytest.approx(highest_entropy(length))
    assert len([name for name in numbers if name.startswith("layer")]) == 6
    half = flat_for[2] * 0.5 + 0.5 * flat_for[0]
    against = attention_entropy(Given(half, flat_for[2]), tokens(), reference="observed").numbers
    assert against["overloaded"] == 0.5
    assert 0.5 < attention_entropy(Given(half), tokens()).numbers["mean"] < 0.75


def test_weights_are_those_that_attention_uses() -> None:
    model, x = gpt(), tokens()
    weights = attention_weights(model, x)
    assert len(weights) == 3
    block = model.blocks[0]
    h = block.norm1(model.tokens(x) + model.positions)
    v = block.mixer.qkv(h).unflatten(-1, (3, 2, 8))[:, :, 2].transpose(1, 2)
    mixed = block.mixer.out((weights[0] @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, block.mixer(h))
    torch.testing.assert_close(weights[1].triu(1), torch.zeros_like(weights[1]))


def test_models_without_weights_are_refused() -> None:
    for model in (nn.Linear(12, 3), Given(None)):
        with pytest.raises(
            WorkingPapersError, match="gives no attention weights; load Hugging Face models with"
        ):
            attention_entropy(model, tokens())
    with pytest.raises(UnknownName, match="no reference of entropies is named 'max'"):
        attention_entropy(gpt(), tokens(), reference="max")


@pytest.mark.parametrize("activation", ["relu", "gelu", "leaky_relu"])
def test_norm_free_blocks_are_those_by_hand(activation: str) -> None:
    model, x = gpt(), tokens()
    found = make_norm_free(model, activation, slope=0.3)
    act = {"relu": F.relu, "gelu": F.gelu, "leaky_relu": lambda z: F.leaky_relu(z, 0.3)}[activation]
    h = model.tokens(x) + model.positions
    for block in model.blocks:
        h = h + block.mixer(h)
        h = h + block.contract(act(block.expand(h)))
    torch.testing.assert_close(found(x), model.head(model.norm(h)), rtol=1e-5, atol=1e-5)
    bare = make_norm_free(model, activation, slope=0.3, keep_final=False)
    torch.testing.assert_close(bare(x), model.head(h), rtol=1e-5, atol=1e-5)
    assert not any(isinstance(m, nn.LayerNorm | nn.RMSNorm) for m in bare.modules())
    assert len(changes(found)) == 9
    assert len(norms_of(model)) == 6


def test_slopes_are_learnt_one_for_each_layer_or_for_all() -> None:
    model, x = gpt(), tokens()
    apart, shared = (make_norm_free(model, "leaky_relu", 0.25, shared=s) for s in (False, True))
    assert list(slopes_of(apart)) == [0.25] * 3
    assert list(slopes_of(shared)) == [0.25]
    torch.testing.assert_close(apart(x), shared(x))
    relu = make_norm_free(model, "relu")
    torch.testing.assert_close(make_norm_free(model, "leaky_relu", 0.0)(x), relu(x))
    linear, h = make_norm_free(model, "leaky_relu", 1.0).blocks[0], torch.randn(4, 16)
    torch.testing.assert_close(linear.activation(h), h)


class RMSNormOfSomeone(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class SomeonesRMSNorm(RMSNormOfSomeone):
    pass


class NewGELUActivation(RMSNormOfSomeone):
    pass


def test_norms_and_activations_are_known_by_their_names() -> None:
    block = nn.ModuleDict({"ln": SomeonesRMSNorm(), "act": NewGELUActivation(), "up": nn.Linear(2, 2)})
    model = nn.ModuleDict({"h": nn.ModuleList([block]), "norm": SomeonesRMSNorm()})
    assert norms_of(model) == ["h.0.ln"]
    assert norms_of(model, keep_final=False) == ["h.0.ln", "norm"]
    assert activations_of(model) == ["h.0.act"]
    with pytest.raises(WorkingPapersError, match="Linear has no feed-forward activation that is a module"):
        make_norm_free(nn.Linear(2, 2))
    with pytest.raises(
        UnknownName, match="no activation of norm-free decoders is named 'rleu'; the nearest name"
    ):
        make_norm_free(gpt(), "rleu")


def test_features_are_counted() -> None:
    model, x = make_norm_free(gpt(), "relu"), tokens()
    numbers = feature_statistics(model, x).numbers
    assert numbers["ReLUs a token"] == 3 * 64
    h = model.tokens(x) + model.positions
    h = h + model.blocks[0].mixer(h)
    z = model.blocks[0].expand(h).detach().double()
    assert numbers["blocks.0.activation zeros"] == pytest.approx(float((z <= 0).double().mean()))
    centred = (z - z.mean()).flatten()
    kurtosis = float((centred**4).mean() / (centred**2).mean() ** 2 - 3)
    assert numbers["blocks.0.activation kurtosis"] == pytest.approx(kurtosis, abs=1e-3)
    assert feature_statistics(gpt(), x).numbers["ReLUs a token"] == 0


def test_gradients_are_clipped() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([30.0, 40.0])
    ClippedAdamW([weight], 0.1).step()
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-4)
    weight.grad = torch.tensor([0.3, 0.4])
    ClippedAdamW([weight], 0.1).step()
    assert weight.grad.tolist() == pytest.approx([0.3, 0.4])
