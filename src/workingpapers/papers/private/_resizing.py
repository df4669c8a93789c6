"""Other widths for the layers of a convolutional network: its modules rebuilt with fewer or more channels."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.running import call

Width = Callable[[int], int]
"""Maps a number of channels to the new one."""

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


def resized(model: nn.Module, x: Tensor, width: Width, seed: int = 0) -> nn.Module:
    """Return a copy of `model` whose layers have `width(channels)` channels, all but its inputs and its
    outputs.

    The first layer that runs keeps its inputs, the last one its outputs; every other number of channels is
    mapped, also that of batch and group norms.  Where nothing grows, a layer keeps the weights of its first
    channels; else it starts afresh, by He's normal distribution and `seed`.

    Args:
        model: convolutions, linear layers and norms as modules, and joined by operations that take any width.
        x: examples (N, channels, H, W) to run on.
        width: the new number for each old one, at least 1.
        seed: of what starts afresh.

    Raises:
        WorkingPapersError: where the new model does not run or gives outputs of another shape.
    """
    changed = copy.deepcopy(model)
    ran = _layers_run(changed, x)
    generator = torch.Generator().manual_seed(seed)
    first, last = ran[0], ran[-1]
    for module in changed.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module in ran:
            _resize_layer(module, width, module is first, module is last, generator)
        elif isinstance(module, NORMS):
            _resize_norm(module, width)
    with torch.no_grad():
        mode = changed.training
        found, wanted = call(changed.eval(), x[:2]), _outputs(model, x)
        changed.train(mode)
    if found.shape != wanted.shape:
        raise WorkingPapersError(f"with other widths {type(model).__name__} gives outputs of another shape")
    return changed


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    copied = copy.deepcopy(model).eval()
    out: Tensor = call(copied, x[:2])
    return out


def _layers_run(model: nn.Module, x: Tensor) -> list[nn.Module]:
    """Return the layers in the order in which they first run."""
    found: list[nn.Module] = []
    hooks = [
        m.register_forward_hook(lambda layer, args, out: None if layer in found else found.append(layer))
        for m in model.modules()
        if isinstance(m, nn.Linear | nn.Conv2d)
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            call(model.eval(), x[:2])
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    if len(found) < 2:
        raise WorkingPapersError(
            f"{type(model).__name__} has no two convolutions or linear layers to give other widths"
        )
    return found


def _resize_layer(layer: Any, width: Width, first: bool, last: bool, generator: torch.Generator) -> None:
    conv = isinstance(layer, nn.Conv2d)
    old_out, old_in = (
        (layer.out_channels, layer.in_channels) if conv else (layer.out_features, layer.in_features)
    )
    new_out = old_out if last else _width(width, old_out)
    new_in = old_in if first else _width(width, old_in)
    groups = layer.groups if conv else 1
    if conv and groups > 1:
        if groups != old_in:
            raise WorkingPapersError("convolutions in groups can only be given other widths by channel")
        new_out, groups = new_in * (old_out // old_in), new_in
    weight = layer.weight.detach()
    shape = (new_out, new_in // groups, *weight.shape[2:])
    if any(n > o for n, o in zip(shape, weight.shape, strict=True)):
        fan_in = shape[1] * weight[0, 0].numel()
        fresh = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        bias = None if layer.bias is None else torch.zeros(new_out)
    else:
        fresh = weight[:new_out, : shape[1]].clone()
        bias = None if layer.bias is None else layer.bias.detach()[:new_out].clone()
    layer.weight = nn.Parameter(fresh.to(weight))
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(weight))
    if conv:
        layer.out_channels, layer.in_channels, layer.groups = new_out, new_in, groups
    else:
        layer.out_features, layer.in_features = new_out, new_in


def _resize_norm(norm: Any, width: Width) -> None:
    name = "num_channels" if isinstance(norm, nn.GroupNorm) else "num_features"
    old = getattr(norm, name)
    new = _width(width, old)
    setattr(norm, name, new)
    starts = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for key, start in starts.items():
        held = getattr(norm, key, None)
        if held is None:
            continue
        kept = held.detach()[:new].clone() if new <= old else held.new_full((new,), start)
        if isinstance(held, nn.Parameter):
            setattr(norm, key, nn.Parameter(kept.detach()))
        else:
            setattr(norm, key, kept)


def _width(width: Width, old: int) -> int:
    new = int(width(old))
    if new < 1:
        raise WorkingPapersError(f"a layer has at least 1 channel; {old} channels were given {new}")
    return new


def scaled(alpha: float) -> Width:
    """Return the map of a number of channels to `alpha` times it, rounded, at least 1."""
    if alpha <= 0:
        raise WorkingPapersError(f"channels are scaled by a factor above 0; got {alpha}")
    return lambda channels: max(1, round(alpha * channels))
