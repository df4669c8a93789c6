"""Cutting a sub-model out of a sliceable network: a plain, smaller network with the same outputs."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.papers.sparsity._slices import BLOCKS, PLAIN, Size, at, blocks_of
from workingpapers.surgery import note_changes
from workingpapers.surgery.running import call


@torch.no_grad()
def cut_out(model: nn.Module, inputs: Any, size: Size, calibration: Tensor | None = None) -> nn.Module:
    """Return the sub-model of a size as a network of its own, of plain layers with copies of the first weights.

    Args:
        model: sliceable; it stays as it is.
        inputs: an example of what it takes.
        size: which sub-model.
        calibration: inputs (N, ...) from which its batch norms get their statistics anew, all at once.
    """
    small = copy.deepcopy(model)
    widths: dict[nn.Module, int] = {}
    blocks = blocks_of(small)
    modes = {m: m.training for m in small.modules()}

    def see(module: nn.Module, args: tuple[Any, ...]) -> None:
        last = -1 if isinstance(module, nn.Linear) else 1
        widths[module] = args[0].shape[last]

    handles = [m.register_forward_pre_hook(see) for m in small.modules() if type(m) in PLAIN]
    with at(small.eval(), size):
        call(small, inputs)
        parts = [(name, m, m.cut(widths[m])) for name, m in small.named_modules() if m in widths]  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    if blocks is not None and size.depth is not None:
        holder: Any = small.get_submodule(blocks)
        holder._modules = dict(list(holder._modules.items())[: size.depth])
        config: Any = getattr(small, "config", None)
        if hasattr(config, "num_hidden_layers"):
            config.num_hidden_layers = size.depth
    for name, old, new in parts:
        new.train(modes[old])
        if name:
            small.set_submodule(name, new)
        else:
            small = new
    for module in small.modules():
        module.training = modes.get(module, module.training)
    small.__dict__.pop(BLOCKS, None)
    if calibration is not None:
        recalibrate(small, calibration)
    depth = "all blocks" if size.depth is None else f"the first {size.depth} blocks"
    result: nn.Module = note_changes(small, [f"It is the sub-model of width {size.width:g} and {depth}."])
    return result


@torch.no_grad()
def recalibrate(model: nn.Module, x: Tensor) -> None:
    """Give the batch norms of a model, in place, the statistics of the inputs `x`, run through all at once."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    modes = {m: m.training for m in model.modules()}
    rates = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.eval()
    for norm in norms:
        norm.train()
    model(x)
    for norm, rate in zip(norms, rates, strict=True):
        norm.momentum = rate
    for module, mode in modes.items():
        module.training = mode
