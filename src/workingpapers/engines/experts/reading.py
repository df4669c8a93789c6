"""Dense feed-forward layers of trained decoders: finding them, reading them, putting experts in their place.

Known are Llama's, Mistral's and Qwen's gated form, and the plain ones of GPT-2, OPT and this package's decoders.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.engines.experts.products import Experts
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.surgery import note_changes, replace_modules

GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
PLAIN = [
    ("c_fc", "act", "c_proj"),  # GPT-2
    ("fc1", "activation_fn", "fc2"),  # OPT, inside the decoder's block
    ("expand", "activation", "contract"),  # the decoders of workingpapers.tasks
]
WAYS = ("split", "copy")


@dataclass(frozen=True)
class Dense:
    """The weights of a dense feed-forward layer, a row (m, dim) a hidden unit in `up`, `gate` and `down`."""

    up: Tensor
    gate: Tensor | None
    down: Tensor
    up_bias: Tensor | None
    gate_bias: Tensor | None
    down_bias: Tensor | None
    activation: nn.Module


def _linear(module: Any) -> bool:
    return isinstance(module, nn.Linear) or hasattr(module, "nf")


def _rows(layer: Any) -> Tensor:
    """Return a linear layer's weight (out, in); the Conv1D of GPT-2 keeps it the other way round."""
    weight: Tensor = layer.weight.detach()
    return weight.T if hasattr(layer, "nf") else weight


def _bias(layer: Any) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach()


def _names(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the parts of a feed-forward layer that `module` holds, or None."""
    own = module._modules
    if all(_linear(own.get(n)) for n in GATED[:3]) and own.get(GATED[3]) is not None:
        return GATED
    for up, act, down in PLAIN:
        if _linear(own.get(up)) and _linear(own.get(down)) and own.get(act) is not None:
            fits = _rows(own[up]).shape == _rows(own[down]).T.shape
            if fits and not isinstance(own[act], nn.Identity):
                return up, act, down
    return None


def feed_forwards(model: nn.Module) -> dict[str, Dense]:
    """Return the dense feed-forward layers of a model by the name of the module that holds them."""
    return {name: _read(module) for name, module in model.named_modules() if _names(module)}


def _read(module: Any) -> Dense:
    names = _names(module) or ()
    part = module._modules
    if names == GATED:
        gate, up, down, act = (part[n] for n in names)
        weights = (_rows(up), _rows(gate), _rows(down).T)
        return Dense(*weights, _bias(up), _bias(gate), _bias(down), act)
    up, act, down = (part[n] for n in names)
    return Dense(_rows(up), None, _rows(down).T, _bias(up), None, _bias(down), act)


def with_layers(model: nn.Module, build: Callable[[Dense], nn.Module]) -> nn.Module:
    """Return a copy of the model with what `build` makes of each dense feed-forward layer in its place.

    What is built maps (..., dim) to (..., dim).  A plain layer's first part becomes it and the others pass on.

    Raises:
        WorkingPapersError: where there is no layer of a known form.
    """
    found = feed_forwards(model)
    if not found:
        raise WorkingPapersError(
            f"{type(model).__name__} has no feed-forward layer of a known form, such as Llama's, GPT-2's or OPT's"
        )
    gated = [name for name, dense in found.items() if dense.gate is not None]
    changed = replace_modules(model, gated, lambda m: build(_read(m))) if gated else copy.deepcopy(model)
    sentences = []
    for name, module in list(changed.named_modules()):
        names = _names(module)
        if names:
            layer = build(_read(module)).train(module.training).to(_rows(module._modules[names[0]]).device)
            for part, new in zip(names, (layer, nn.Identity(), nn.Identity()), strict=True):
                module._modules[part] = new.train(module.training)
            sentences.append(
                f"{name or 'The model'} has a {type(layer).__name__} as its feed-forward layer now."
            )
    return note_changes(changed, sentences)  # type: ignore[no-any-return]


@torch.no_grad()
def as_experts(dense: Dense, num: int, way: str = "split", evaluation: str = "grouped") -> Experts:
    """Return experts made of a dense layer, whose sum with weights 1 ("split") or 1 / num ("copy") is the layer.

    Args:
        dense: the layer, of m hidden units.
        num: how many experts.
        way: "split" gives each the next m / num hidden units, and the down bias in equal parts; "copy" the whole.
        evaluation: of the experts.
    """
    if way not in WAYS:
        raise unknown("way to make experts of a dense layer", way, WAYS)
    units, dim = dense.up.shape
    if way == "split" and units % num:
        raise WorkingPapersError(
            f"a layer of {units} hidden units does not split into {num} experts of one width"
        )
    biased = any(b is not None for b in (dense.up_bias, dense.gate_bias, dense.down_bias))
    width = units // num if way == "split" else units
    experts = Experts(
        num,
        dim,
        width,
        lambda: copy.deepcopy(dense.activation),
        dense.gate is not None,
        biased,
        evaluation,
    ).to(dense.up)
    for name in ("up", "gate", "down", "up_bias", "gate_bias", "down_bias"):
        parameter, whole = getattr(experts, name), getattr(dense, name)
        if parameter is None:
            continue
        if whole is None:
            parameter.zero_()
        elif name == "down_bias":
            parameter.copy_(whole / num if way == "split" else whole)
        else:
            parameter.copy_(whole.reshape(parameter.shape) if way == "split" else whole)
    return experts
