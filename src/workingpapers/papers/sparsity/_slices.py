"""Layers that compute with their first units only, and networks made of them that can be cut to any size.

The first k outputs of a layer read the first inputs, as many as come: so a narrower layer makes all behind it
narrower, and of two sizes the smaller one's weights lie within the larger one's.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery import note_changes
from workingpapers.surgery.choose import Modules, choose
from workingpapers.surgery.running import call
from workingpapers.surgery.units import units_of

BLOCKS = "workingpapers_blocks"  # the name of the list of blocks, on the model


@dataclass(frozen=True)
class Size:
    """A sub-model: the share of the units of each layer, and how many of the first blocks run (None: all)."""

    width: float = 1.0
    depth: int | None = None


def part_of(count: int, width: float, step: int = 1) -> int:
    """Return how many of `count` units a width keeps: rounded up to whole steps, at least one."""
    return step * max(1, math.ceil(width * count / step - 1e-9))


class SlicedLinear(nn.Linear):
    """A linear layer of which the first `active` outputs are computed from the first inputs, as many as come."""

    active: int
    step: int = 0  # in how large steps it narrows; 0 never

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., active)."""
        bias = None if self.bias is None else self.bias[: self.active]
        return F.linear(input, self.weight[: self.active, : input.shape[-1]], bias)

    def cut(self, inputs: int) -> nn.Module:
        """Return the plain layer for so many inputs."""
        new = nn.Linear(inputs, self.active, self.bias is not None)
        return _filled(new, self, self.weight[: self.active, :inputs])


class SlicedConv2d(nn.Conv2d):
    """A convolution of which the first `active` channels are computed from the first inputs, as many as come.

    A depthwise one gives as many as come, times its multiplier.
    """

    active: int
    step: int = 0

    def sizes(self, inputs: int) -> tuple[int, int, int]:
        """Return (outputs, inputs of each, groups) for so many input channels."""
        if self.groups == 1:
            return self.active, inputs, 1
        if self.groups == self.in_channels:
            return self.out_channels // self.groups * inputs, 1, inputs
        return self.out_channels, self.in_channels // self.groups, self.groups

    def forward(self, input: Tensor) -> Tensor:
        """Return (N, active, H, W)."""
        outputs, inputs, groups = self.sizes(input.shape[1])
        weight, bias = self.weight[:outputs, :inputs], None if self.bias is None else self.bias[:outputs]
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return F.conv2d(input, weight, bias, self.stride, padding, self.dilation, groups)

    def cut(self, inputs: int) -> nn.Module:
        """Return the plain layer for so many inputs."""
        outputs, each, groups = self.sizes(inputs)
        new = nn.Conv2d(
            inputs, outputs, self.kernel_size, self.stride, self.padding, self.dilation, groups,  # type: ignore[arg-type]
            self.bias is not None, self.padding_mode,
        )  # fmt: skip
        return _filled(new, self, self.weight[:outputs, :each])


class _SlicedNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of as many channels as come; widths in `own` have a norm of their own."""

    own: nn.ModuleDict

    def forward(self, input: Tensor) -> Tensor:
        """Return the same shape."""
        count = input.shape[1]
        if str(count) in self.own:
            alone: Tensor = self.own[str(count)](input)
            return alone
        self._check_input_dim(input)
        rate = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else rate
        held = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, var, weight, bias = (None if t is None else t[:count] for t in held)
        new = self.training or mean is None
        keep = not self.training or self.track_running_stats
        return F.batch_norm(
            input, mean if keep else None, var if keep else None, weight, bias, new, rate, self.eps
        )

    def cut(self, inputs: int) -> nn.Module:
        """Return the plain norm of so many channels."""
        if str(inputs) in self.own:
            return copy.deepcopy(self.own[str(inputs)])
        plain: Any = PLAIN[type(self)]
        new = plain(inputs, self.eps, self.momentum, self.affine, self.track_running_stats)
        for name, tensor in [*new.named_parameters(), *new.named_buffers()]:
            held = getattr(self, name).detach()
            tensor.data = (held[:inputs] if held.ndim else held).clone()
        return new.train(self.training)  # type: ignore[no-any-return]


class SlicedBatchNorm1d(_SlicedNorm, nn.BatchNorm1d):
    """Batch normalisation of vectors, of as many features as come."""


class SlicedBatchNorm2d(_SlicedNorm, nn.BatchNorm2d):
    """Batch normalisation of images, of as many channels as come."""


SLICED: dict[type, type] = {
    nn.Linear: SlicedLinear,
    nn.Conv2d: SlicedConv2d,
    nn.BatchNorm1d: SlicedBatchNorm1d,
    nn.BatchNorm2d: SlicedBatchNorm2d,
}
PLAIN = {sliced: plain for plain, sliced in SLICED.items()}


def _filled(new: Any, old: Any, weight: Tensor) -> nn.Module:
    new.to(weight)
    new.weight.data = weight.detach().clone(memory_format=torch.contiguous_format)
    if old.bias is not None:
        new.bias.data = old.bias.detach()[: len(weight)].clone()
    filled: nn.Module = new.train(old.training)
    return filled


def _narrowing(model: nn.Module, inputs: Any) -> list[dict[str, int]]:
    """Return which layers could narrow, with steps: all convolutions and closed linear layers, or the latter."""
    units = units_of(model, inputs)
    for name, found in units.items():
        odd = next((r.name for r in found.readers if r.start), None)
        if odd is not None and isinstance(found.layer, nn.Conv2d):
            raise WorkingPapersError(
                f"{odd!r} reads the units of {name!r} behind others, so its first inputs are not those of a "
                "narrower network"
            )
    last = next(reversed(units), None)
    closed = {n: 1 for n, u in units.items() if u.closed and type(u.layer) in SLICED and n != last}
    convs = {n: 1 for n, u in units.items() if type(u.layer) is nn.Conv2d and n != last}
    return [convs | closed, closed]


def _heads(model: nn.Module) -> dict[str, int]:
    """Return the projections of attention whose number of heads follows from their width, in steps of a head."""
    return {
        f"{name}.{child}".lstrip("."): module.head_dim
        for name, module in model.named_modules()
        if isinstance(getattr(module, "head_dim", None), int)
        for child in ("q_proj", "k_proj", "v_proj")
        if type(getattr(module, child, None)) is nn.Linear
    }


def sliceable(
    model: nn.Module,
    inputs: Any,
    blocks: str | None = None,
    heads: bool = False,
    layers: Modules | None = None,
    switchable: Sequence[float] = (),
) -> nn.Module:
    """Return a copy of `model` that `at` can run, and `extract` cut out, at any size; at full size it is the same.

    Args:
        model: made of nn.Linear, nn.Conv2d and nn.BatchNorm1d or 2d as far as it is to be narrowed.
        inputs: an example of what it takes.
        blocks: name of the nn.ModuleList or nn.Sequential of which the first ones are a shallower network.
        heads: let attention have fewer heads too, where it has q_proj, k_proj, v_proj and head_dim.
        layers: which layers narrow; by default all convolutions, and the linear layers whose units only layers read
            (such as hidden ones of perceptrons); without the last layer.
        switchable: widths for which batch norms of their own are kept.

    Raises:
        WorkingPapersError: where there is nothing to narrow, or the network does not run at half its width.
    """
    if blocks is not None and not isinstance(_container(model, blocks), nn.ModuleList | nn.Sequential):
        raise WorkingPapersError(f"blocks stand in an nn.ModuleList or nn.Sequential; {blocks!r} is neither")
    if hasattr(model, BLOCKS):
        return copy.deepcopy(model)
    if layers is None:
        options = _narrowing(model, inputs)
    else:
        options = [{name: 1 for name, m in choose(model, layers) if type(m) in (nn.Linear, nn.Conv2d)}]
    if heads:
        options = [option | _heads(model) for option in options]
    for option in options:
        changed = _converted(model, option, switchable)
        setattr(changed, BLOCKS, blocks)
        if (option or blocks is not None) and _runs(changed, inputs):
            said = [f"{name} can be narrowed to its first units." for name in option]
            said += [] if blocks is None else [f"{blocks} can be cut to its first blocks."]
            result: nn.Module = note_changes(changed, said)
            return result
    raise WorkingPapersError(
        f"{type(model).__name__} cannot be narrowed as it is: name the layers whose units its other layers read in "
        "the same order"
    )


def _converted(model: nn.Module, narrow: dict[str, int], switchable: Sequence[float]) -> nn.Module:
    changed = copy.deepcopy(model)
    for name, layer in list(changed.named_modules()):
        cls = SLICED.get(type(layer))
        if cls is None:
            continue
        layer.__class__ = cls
        if isinstance(layer, SlicedLinear | SlicedConv2d):
            layer.active, layer.step = len(layer.weight), narrow.get(name, 0)
        elif isinstance(layer, _SlicedNorm):
            plain, count = PLAIN[cls], layer.num_features
            parts = sorted({part_of(count, width) for width in switchable} - {count})
            layer.own = nn.ModuleDict({str(k): plain(k, layer.eps, layer.momentum) for k in parts})
    return changed


def _runs(model: nn.Module, inputs: Any) -> bool:
    """Say whether the model runs at half its width, with outputs of the same shape."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), at(model.eval(), Size(0.5)):
            narrow = call(model, inputs)
        with torch.no_grad():
            whole = call(model, inputs)
    except WorkingPapersError:
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
    shapes = [getattr(getattr(y, "logits", y), "shape", None) for y in (narrow, whole)]
    return shapes[0] == shapes[1]


def _container(model: nn.Module, name: str) -> nn.Module:
    return choose(model, [name])[0][1]


def blocks_of(model: nn.Module) -> str | None:
    """Return the name of the blocks of a sliceable model, None where none were named."""
    if not hasattr(model, BLOCKS):
        raise WorkingPapersError(f"{type(model).__name__} has one size only; make it sliceable first")
    name: str | None = getattr(model, BLOCKS)
    return name


@contextmanager
def at(model: nn.Module, size: Size) -> Iterator[nn.Module]:
    """Let a sliceable model be the sub-model of a size inside.

    Raises:
        WorkingPapersError: where it is not sliceable, the width not in (0, 1], or there are not so many blocks.
    """
    name = blocks_of(model)
    if not 0 < size.width <= 1:
        raise WorkingPapersError(f"a width is a share of the units, above 0 and up to 1; got {size.width}")
    holder: Any = None if name is None else _container(model, name)
    if size.depth is not None and (holder is None or not 1 <= size.depth <= len(holder)):
        there = "no blocks were named" if holder is None else f"there are {len(holder)} blocks"
        raise WorkingPapersError(f"a depth of {size.depth} cannot be had: {there}")
    layers = [m for m in model.modules() if isinstance(m, SlicedLinear | SlicedConv2d) and m.step]
    every = None if holder is None else holder._modules
    try:
        for layer in layers:
            layer.active = part_of(len(layer.weight), size.width, layer.step)
        if size.depth is not None:
            holder._modules = dict(list(holder._modules.items())[: size.depth])
        yield model
    finally:
        for layer in layers:
            layer.active = len(layer.weight)
        if holder is not None:
            holder._modules = every
