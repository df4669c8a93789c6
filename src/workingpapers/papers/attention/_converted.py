"""Puts other attention weights into existing transformers: adapters that keep a module's weights and signature."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError

Weigh = Callable[..., Tensor]  # (query, key, attn_mask, is_causal, scale, length=) -> weights (B, H, Lq, Lk)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Turn a mask of nn.MultiheadAttention (bool, True for hidden, or added to the scores) into an added one."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)


def length(mask: Tensor | None, keys: int) -> int | Tensor:
    """Return how many keys any query sees, (..., 1, 1), of an added mask (..., Lq, Lk)."""
    return keys if mask is None else (mask > -torch.inf).any(-2, keepdim=True).sum(-1, keepdim=True)


class ConvertedMultihead(nn.Module):
    """nn.MultiheadAttention with other weights: the same parameters, forward arguments and outputs.

    `constant_length` divides by how many keys any query sees, so all but padding; otherwise each query has its own.
    """

    num_heads: int
    out_proj: nn.Linear
    bias_k: Tensor | None
    bias_v: Tensor | None
    dropout: float
    _qkv_same_embed_dim = False  # keeps torch's encoder layers off their fused path, which computes softmax

    def __init__(self, attention: nn.MultiheadAttention, weigh: Weigh, constant_length: bool) -> None:
        super().__init__()
        self.weigh, self.constant_length = weigh, constant_length
        for name in ("embed_dim", "num_heads", "dropout", "batch_first", "add_zero_attn"):
            setattr(self, name, getattr(attention, name))
        for name, parameter in attention._parameters.items():
            self.register_parameter(name, parameter)
        for name in ("bias_k", "bias_v"):  # torch leaves these plain attributes where there is none
            if name not in self._parameters:
                self.register_parameter(name, None)
        self.out_proj = attention.out_proj
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as nn.MultiheadAttention does; `is_causal` is a hint, as there, where attn_mask comes too."""
        batched = query.dim() == 3
        inputs = [query, key, value] if batched else [t.unsqueeze(0) for t in (query, key, value)]
        if batched and not self.batch_first:
            inputs = [t.transpose(0, 1) for t in inputs]
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self._project(*inputs))
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        seen = length(mask, k.shape[2]) if self.constant_length else None
        weights = self.weigh(q, k, mask, is_causal and attn_mask is None, length=seen)
        weights = F.dropout(weights, self.dropout, self.training)
        out = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        shown = weights.mean(1) if average_attn_weights else weights
        if not batched:
            return out.squeeze(0), shown.squeeze(0) if need_weights else None
        return out if self.batch_first else out.transpose(0, 1), shown if need_weights else None

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, L, E), the learnt key and value and the zero one appended."""
        packed: Tensor | None = self._parameters["in_proj_weight"]
        bias: Tensor | None = self._parameters["in_proj_bias"]
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        weights = [getattr(self, name) for name in names] if packed is None else packed.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        q, k, v = (F.linear(t, w, b) for t, w, b in zip((query, key, value), weights, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([t, b.expand(len(t), 1, -1)], 1) for t, b in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
        return q, k, v

    def _mask(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Return both masks as one to add, (B, H, Lq, Lk) by broadcasting; all queries see appended keys."""
        mask, padding = additive(attn_mask, q.dtype), additive(padding, q.dtype)
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            padding = padding.reshape(-1, 1, 1, padding.shape[-1])
        both = [F.pad(m, (0, k.shape[2] - m.shape[-1])) for m in (mask, padding) if m is not None]
        return sum(both[1:], both[0]) if both else None


class ConvertedFused(nn.Module):
    """Attention with one projection `qkv` and one behind (timm's, the tasks' own) with other weights."""

    def __init__(self, attention: nn.Module, weigh: Weigh, constant_length: bool) -> None:
        super().__init__()
        self.weigh, self.constant_length = weigh, constant_length
        self.heads = int(getattr(attention, "num_heads", getattr(attention, "heads", 0)))
        self.causal = bool(getattr(attention, "causal", False))
        self.scale = getattr(attention, "scale", None)
        for name, child in attention.named_children():
            self.add_module(name, child)
        self.train(attention.training)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Mix tokens (B, T, D); `attn_mask` as for F.scaled_dot_product_attention."""
        q, k, v = self._pass("qkv", x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self._pass("q_norm", q), self._pass("k_norm", k)
        mask = (
            None
            if attn_mask is None
            else additive(~attn_mask if attn_mask.dtype == torch.bool else attn_mask, q.dtype)
        )
        seen = length(mask, k.shape[2]) if self.constant_length else None
        weights = self._pass("attn_drop", self.weigh(q, k, mask, self.causal, self.scale, length=seen))
        x = (weights @ v).transpose(1, 2).flatten(2)
        for name in ("norm", "proj", "out", "proj_drop"):
            x = self._pass(name, x)
        return x

    def _pass(self, name: str, x: Tensor) -> Tensor:
        part = self._modules.get(name)
        return x if part is None else part(x)


_FUSED_CHILDREN = {"qkv", "proj", "out", "q_norm", "k_norm", "norm", "attn_drop", "proj_drop"}


def _is_fused(module: nn.Module) -> bool:
    """Tell attention of the form of `ConvertedFused` from relatives that add something, such as position biases."""
    parts = dict(module.named_children())
    qkv, heads = parts.get("qkv"), getattr(module, "num_heads", getattr(module, "heads", None))
    return (
        type(module).__name__ == "Attention"
        and isinstance(qkv, nn.Linear)
        and qkv.out_features == 3 * qkv.in_features
        and isinstance(heads, int)
        and ("proj" in parts) != ("out" in parts)
        and set(parts) <= _FUSED_CHILDREN
        and not list(module.parameters(recurse=False))
    )


class HuggingFaceAttention:
    """An attention function of transformers: (module, query, key, value, mask) -> (values, weights)."""

    def __init__(self, weigh: Weigh, constant_length: bool) -> None:
        self.weigh, self.constant_length = weigh, constant_length

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attend, (B, H, T, d) -> (B, T, H, d); heads of keys are repeated for grouped queries.

        The mask is bool, True for seen keys, or added, with the least number of its dtype for hidden ones.
        """
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        mask = attention_mask
        if mask is not None:
            mask = mask[..., : key.shape[2]]
            hidden = ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2
            mask = (
                torch.zeros_like(mask, dtype=query.dtype) if mask.dtype == torch.bool else mask
            ).masked_fill(hidden, -torch.inf)
        causal = mask is None and query.shape[2] > 1 and bool(getattr(module, "is_causal", False))
        seen = length(mask, key.shape[2]) if self.constant_length else None
        weights = self.weigh(query, key, mask, causal, scaling, length=seen)
        mixed = F.dropout(weights, dropout, module.training) @ value
        return mixed.transpose(1, 2).contiguous(), weights


def _register(model: Any, weigh: Weigh, constant_length: bool, name: str) -> list[str]:
    """Make a Hugging Face model use our attention function, which is registered for this process."""
    transformers: Any = sys.modules.get("transformers")
    if transformers is None or not hasattr(transformers, "AttentionInterface"):
        raise WorkingPapersError(
            "attention of Hugging Face models is exchanged through transformers.AttentionInterface, of 4.50 on"
        )
    if model.config._attn_implementation == name:
        return []
    transformers.AttentionInterface.register(name, HuggingFaceAttention(weigh, constant_length))
    masks = sys.modules.get("transformers.masking_utils")
    if masks is not None:  # otherwise a model would leave the masks out for a function that it does not know
        masks.AttentionMaskInterface.register(name, masks.eager_mask)
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(name)
    else:
        model.config._attn_implementation = name
    return [f"of {type(model).__name__}"]


def replace_attention(
    model: nn.Module, weigh: Weigh, constant_length: bool, name: str
) -> tuple[nn.Module, list[str]]:
    """Replace attention in `model` in place; return it (or what replaces it) and the places of what was found.

    `name` is what the weights are called where they have to be registered.
    """
    found: list[str] = []
    done: dict[nn.Module, nn.Module] = {}  # a module that stands in two places is replaced by one

    def visit(module: nn.Module, place: str) -> nn.Module:
        if isinstance(module, nn.MultiheadAttention):
            found.append(place or "itself")
            return ConvertedMultihead(module, weigh, constant_length)
        if _is_fused(module):
            found.append(place or "itself")
            return ConvertedFused(module, weigh, constant_length)
        before = len(found)
        for child_name, child in module._modules.items():
            if child is not None:
                if child not in done:
                    done[child] = visit(child, f"{place}.{child_name}".lstrip("."))
                module._modules[child_name] = done[child]
        if isinstance(module, nn.TransformerEncoder) and len(found) > before:
            module.use_nested_tensor = False  # only torch's own attention takes nested tensors
        return module

    changed = visit(model, "")
    if hasattr(getattr(model, "config", None), "_attn_implementation"):
        found += _register(changed, weigh, constant_length, name)
    return changed, found
