"""Decoding policies in a decoder of transformers, through its public attention interface."""

import copy
from typing import Any

from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.language._decode_policies import NAME, Policy, Recycled


def hugging_face() -> Any:
    """Return the package transformers, importable.

    It imports torchvision, whose compiled part does not fit every torch (such as a CPU build); only detection needs
    that part, and importing it names two operators, which are declared then.

    Raises:
        WorkingPapersError: where transformers is missing.
    """
    import torch

    try:
        try:
            import torchvision  # noqa: F401
        except ImportError:
            pass
        except RuntimeError:
            for name in ("nms", "qnms"):
                signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{name}", signature)
        import transformers
    except ImportError:
        raise WorkingPapersError("this needs transformers: pip install transformers") from None
    return transformers


def policies(model: nn.Module) -> list[Policy]:
    """Return the policies of a model's attention layers."""
    return [m.policy for m in model.modules() if isinstance(getattr(m, "policy", None), Policy)]  # type: ignore[misc]


def policy_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as the layer's policy says: the function that transformers calls; returns (B, T, H, D)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    policy = getattr(module, "policy", None)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling

    def full(mask: Tensor | None = attention_mask) -> Tensor:
        out: Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **options)[0]
        return out

    if policy is None:
        return full(), None
    whole = query.shape[2] == key.shape[2] > 1
    if isinstance(policy, Recycled) and policy.continued and module.training and whole:
        return full(policy.training_mask(query.detach(), key.detach(), attention_mask, scale)), None
    if module.training:
        return full(), None
    return policy.run(module, (query, key, value), attention_mask, scale, full), None


def register() -> None:
    """Make the attention function known to transformers.

    Raises:
        WorkingPapersError: where transformers is missing or has no attention interface.
    """
    hugging_face()
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError:
        raise WorkingPapersError(
            "this needs transformers with its attention interface: pip install 'transformers>=4.53'"
        ) from None
    AttentionInterface.register(NAME, policy_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def with_policy(model: nn.Module, policy: Policy) -> nn.Module:
    """Return a copy of a decoder of transformers each of whose attention layers has a copy of `policy`."""
    config = getattr(model, "config", None)
    layers = [
        m
        for m in model.modules()
        if hasattr(m, "layer_idx") and "Attention" in type(m).__name__ and getattr(m, "is_causal", False)
    ]
    if config is None or not layers:
        raise WorkingPapersError(
            f"{type(model).__name__} has no causal attention layers of transformers; give a decoder such as Llama's"
        )
    register()
    changed: Any = copy.deepcopy(model)
    changed.set_attn_implementation(NAME)
    if changed.config._attn_implementation != NAME:
        raise WorkingPapersError(
            f"{type(model).__name__} does not use the attention interface of transformers"
        )
    for m in list(changed.modules()):
        if hasattr(m, "layer_idx") and "Attention" in type(m).__name__ and getattr(m, "is_causal", False):
            m.policy = copy.deepcopy(policy)
    return changed  # type: ignore[no-any-return]
