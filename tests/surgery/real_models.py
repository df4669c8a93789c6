"""Real models from torchvision, timm and transformers, tiny where they can be, with random weights."""

import torch


def _define_missing_operators() -> None:
    """Let torchvision be imported beside a torch that its compiled part does not fit, such as a CPU build.

    Its models are plain torch; only detection needs the compiled operators, and importing it names two.
    """
    for name in ("nms", "qnms"):
        try:
            getattr(torch.ops.torchvision, name)
        except (AttributeError, RuntimeError):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", signature)


_define_missing_operators()

import timm  # noqa: E402
import torchvision.models as vision  # noqa: E402
import transformers as hf  # noqa: E402
from torch import Tensor, nn  # noqa: E402

IMAGE = (1, 3, 32, 32)
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
}
T5 = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 50}


def tokens() -> dict[str, Tensor]:
    """Return a batch of token ids."""
    return {"input_ids": torch.randint(0, 50, (2, 7))}


def two_sided() -> dict[str, Tensor]:
    """Return token ids for an encoder and its decoder."""
    return {**tokens(), "decoder_input_ids": torch.randint(0, 50, (2, 5))}


def image() -> Tensor:
    """Return one small image."""
    return torch.randn(IMAGE)


# name -> (builds the model, its inputs, the activation, how many places, how many calls of it in one run)
MODELS = {
    "resnet18": (lambda: vision.resnet18(), image, "relu", 9, 17),
    "mobilenet_v3": (lambda: vision.mobilenet_v3_small(), image, "hardswish", 19, 19),
    "mobilenet_v3, relu": (lambda: vision.mobilenet_v3_small(), image, "relu", 14, 14),
    "efficientnet": (lambda: vision.efficientnet_b0(), image, "silu", 49, 49),
    "densenet": (lambda: vision.densenet._densenet(8, (2, 2), 8, None, False), image, "relu", 11, 11),
    "vit": (lambda: vision.VisionTransformer(32, 8, 2, 2, 16, 24), image, "gelu", 2, 2),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=5), image, "gelu", 12, 12),
    "convnext, linear": (
        lambda: timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=5),
        image,
        "gelu",
        4,
        4,
    ),
    "bert": (lambda: hf.BertModel(hf.BertConfig(**TINY)), tokens, "gelu", 2, 2),
    "gpt2": (
        lambda: hf.GPT2Model(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16)),
        tokens,
        "gelu_tanh",
        2,
        2,
    ),
    "llama": (lambda: hf.LlamaModel(hf.LlamaConfig(**TINY)), tokens, "silu", 2, 2),
    "t5": (lambda: hf.T5Model(hf.T5Config(**T5)), two_sided, "relu", 4, 4),
}


def built(name: str) -> nn.Module:
    """Return the model in evaluation mode, with a head that is not zero."""
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    if name == "vit":
        nn.init.normal_(model.heads.head.weight)
    return model


def run(model: nn.Module, inputs: Tensor | dict[str, Tensor]) -> Tensor:
    """Return the model's first output."""
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return found if isinstance(found, Tensor) else found[0]
