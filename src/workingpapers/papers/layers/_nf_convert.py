"""Networks with batch normalisation made free of it, and the other way round, to compare with."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.layers._normfree import NFBlock, ScaledWSConv2d, gamma_of
from workingpapers.surgery import note_changes

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def convert(model: nn.Module, alpha: float = 0.2, skipinit: bool = True) -> nn.Module:
    """Return a copy of a residual network in which no normalisation is left: weights are standardised instead.

    Args:
        model: one whose blocks hold their convolutions as conv1, conv2 and so on, as torchvision's do; they
            become `NFBlock`s, activations first.  The order of registration is taken as that of running.
        alpha, skipinit: as for `NFBlock`.

    Convolutions keep their weights, to be standardised, and normalisation's own are dropped: train anew.

    Raises:
        WorkingPapersError: where no block is found.
    """
    net = copy.deepcopy(model)
    names = [name for name, module in net.named_modules() if _is_block(module)]
    if not names:
        if any(isinstance(module, NFBlock) for module in net.modules()):
            return net
        raise WorkingPapersError(
            f"{type(model).__name__} has no residual block that holds its convolutions as conv1 and conv2"
        )
    variance, done = 1.0, dict[nn.Module, nn.Module]()
    for name in names:
        block = net.get_submodule(name)
        done[block] = new = _block(block, alpha, variance**0.5, skipinit)
        variance = (variance if new.shortcut is None else 1.0) + alpha**2
    outside = list(_outside(net, names))
    places = [place for place, _, name in outside if name is not None]
    if not any(isinstance(m, NORMS) and place > places[-1] for place, m, _ in outside):
        last = net.get_submodule(names[-1])  # nothing follows its sum, which is still to be activated
        done[last] = nn.Sequential(done[last], copy.deepcopy(_activation(last))).train(last.training)
    for place, module, inside in outside:
        if inside is None and isinstance(module, nn.Conv2d):
            done[module] = _standardised(module, 1.0).train(module.training)
        elif inside is None and (isinstance(module, NORMS) or (place < places[0] and _is_activation(module))):
            # the first block begins with an activation of its own
            done[module] = nn.Identity().train(module.training)
    for parent in list(net.modules()):
        for child, part in parent._modules.items():
            if part in done:
                parent._modules[child] = done[part]
    sentences = [f"The block {name} has standardised weights and no normalisation now." for name in names]
    result: nn.Module = note_changes(done.get(net, net), sentences)
    return result


def _block(block: nn.Module, alpha: float, beta: float, skipinit: bool) -> NFBlock:
    shortcut, activation = _shortcut(block), _activation(block)
    gamma = gamma_of(activation)
    convs = [_standardised(conv, gamma) for conv in _convs(block)]
    if shortcut is not None:
        kept = [m for m in shortcut.modules() if not any(m.children()) and not isinstance(m, NORMS)]
        layers = [_standardised(m, gamma) if isinstance(m, nn.Conv2d) else m for m in kept]
        shortcut = nn.Sequential(*layers)
    new = NFBlock(convs, shortcut, partial(copy.deepcopy, activation), alpha, beta, skipinit)
    return new.to(convs[0].weight).train(block.training)


def _convs(block: nn.Module) -> list[nn.Conv2d]:
    found = [getattr(block, f"conv{i}", None) for i in range(1, 10)]
    return [conv for conv in found if isinstance(conv, nn.Conv2d)]


def _is_block(module: nn.Module) -> bool:
    return len(_convs(module)) >= 2


def _shortcut(block: nn.Module) -> nn.Module | None:
    for name in ("downsample", "shortcut"):
        found = getattr(block, name, None)
        if isinstance(found, nn.Module) and any(isinstance(m, nn.Conv2d) for m in found.modules()):
            return found
    return None


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation"


def _activation(block: nn.Module) -> nn.Module:
    return next((m for m in block.modules() if _is_activation(m)), nn.ReLU())


def _standardised(conv: nn.Conv2d, gamma: float) -> ScaledWSConv2d:
    size: Any = (
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
    )
    size = (*size, conv.groups, True, conv.padding_mode)
    new = ScaledWSConv2d(*size, gamma=gamma).to(conv.weight)
    with torch.no_grad():
        new.weight.copy_(conv.weight)
        if conv.bias is not None and new.bias is not None:
            new.bias.copy_(conv.bias)
    return new


def _outside(net: nn.Module, names: list[str]) -> Iterator[tuple[int, nn.Module, str | None]]:
    """Yield place and module of everything but the insides of blocks; for the blocks themselves also the name."""
    for place, (name, module) in enumerate(net.named_modules()):
        if name in names:
            yield place, module, name
        elif not any(name.startswith(f"{block}.") for block in names):
            yield place, module, None


def control(net: Any, norm: bool, generator: torch.Generator | None = None) -> Any:
    """Return `net` with plain convolutions drawn as by He and without alpha, beta and skipinit, to compare with.

    `norm` puts batch normalisation before every activation, as in a pre-activation ResNet.
    """
    plain = copy.deepcopy(net)

    def conv(old: ScaledWSConv2d) -> nn.Conv2d:
        size: Any = (old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)
        new = nn.Conv2d(*size, bias=not norm)  # type: ignore[misc]
        nn.init.kaiming_normal_(new.weight, nonlinearity="relu", generator=generator)
        if new.bias is not None:
            nn.init.zeros_(new.bias)
        return new

    def before(channels: int, activation: nn.Module) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(channels), activation) if norm else activation

    for block in plain.blocks:
        convs: Any = block.convs
        for i, old in enumerate(convs):
            convs[i] = conv(old)
            block.activations[i] = before(old.in_channels, block.activations[i])
        block.shortcut = conv(block.shortcut) if isinstance(block.shortcut, ScaledWSConv2d) else None
        block.alpha, block.beta, block.gain = 1.0, 1.0, None
    plain.stem[0] = conv(plain.stem[0])
    plain.activation = before(plain.head.in_features, plain.activation)
    return plain
