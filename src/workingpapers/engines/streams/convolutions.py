"""Convolutions and pools over time, one frame at a time.

    y_j = b + sum_i w_i x_{j s + i d - p}    (stride s, dilation d, p frames of zeros in front)

A convolution keeps sums of what the frames so far give to outputs still to come; each frame is multiplied once by
the weights of each tap, as in the continual convolutions of Hedegaard and Iosifidis.  A pool keeps the last frames.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.streams.operations import Step, World
from workingpapers.errors import WorkingPapersError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


@dataclass(frozen=True)
class Reach:
    """Which frames an output sees: output j those at j * stride + i * dilation - left, i < kernel.

    `left` and `right` are frames of padding at both ends of the stream.  Output `first` is the first to be given
    and `begin` the time of the first frame to come: both 0, unless padding is dropped here or before.
    """

    kernel: int
    stride: int
    dilation: int
    left: int
    right: int
    first: int = 0
    begin: int = 0
    padded: bool = True

    @property
    def span(self) -> int:
        """The distance from the oldest to the newest frame that an output sees."""
        return self.dilation * (self.kernel - 1)

    @property
    def alone(self) -> bool:
        """Whether each output sees the frame of its own time only."""
        return self.kernel == self.stride == 1 and self.left == self.right == 0

    def dropped(self, begin: int) -> "Reach":
        """Return the reach without padding, where the first frame to come is that of time `begin`."""
        return replace(self, first=-(-(begin + self.left) // self.stride), begin=begin, right=0, padded=False)

    def valid(self, clip: Tensor, axis: int) -> Tensor:
        """Return the part of a clip that begins with the first frame of output `first`."""
        skip = self.first * self.stride - self.left - self.begin
        if clip.shape[axis] - skip <= self.span:
            raise WorkingPapersError(
                f"without padding, a clip must give more than {self.span} frames to each convolution or pool over "
                f"time; one got {clip.shape[axis]}"
            )
        return clip.narrow(axis, skip, clip.shape[axis] - skip)


def _entry(value: Any, at: int, dims: int) -> Any:
    return (
        value if isinstance(value, int | str) else (tuple(value) * dims)[at] if len(value) == 1 else value[at]
    )


def reach_of(module: nn.Module, axis: int, dims: int) -> Reach:
    """Return the reach of a convolution or pool along an axis of its input (2 is the first behind channels).

    Raises:
        WorkingPapersError: where the padding is none that a stream can have.
    """
    layer: Any = module
    at = axis - 2
    kernel, stride = _entry(layer.kernel_size, at, dims), _entry(layer.stride, at, dims)
    dilation = _entry(getattr(layer, "dilation", 1), at, dims)
    padding = _entry(layer.padding, at, dims)
    span = dilation * (kernel - 1)
    if padding == "same":
        left, right = span // 2, span - span // 2
    else:
        left = right = 0 if padding == "valid" else int(padding)
    if left + right and getattr(layer, "padding_mode", "zeros") != "zeros":
        raise WorkingPapersError(
            f"padding over time must be by zeros to run on a stream; {module} has another"
        )
    if left > span and kernel * stride > 1:
        raise WorkingPapersError(
            f"padding over time beyond the kernel's reach does not run on a stream: {module}"
        )
    ceil, inside = getattr(layer, "ceil_mode", False), getattr(layer, "count_include_pad", True)
    if kernel > 1 and (ceil or (not inside and left)):
        raise WorkingPapersError(
            f"pools over time run on a stream with ceil_mode=False and count_include_pad=True; not {module}"
        )
    return Reach(kernel, stride, dilation, left, right)


def _spatial(value: Any, at: int, dims: int) -> Any:
    """Return the entries of a size for the axes other than time."""
    if isinstance(value, int | str):
        return value
    whole = tuple(value) * dims if len(value) == 1 else tuple(value)
    return whole[:at] + whole[at + 1 :]


@dataclass(frozen=True)
class Convolve(Step):
    """A convolution; its state is the time of the next frame, the next output, and the sums under way."""

    module: str
    axis: int
    reach: Reach

    def start(self) -> Any:
        """Return the state before the first frame."""
        return self.reach.begin + self.reach.left, self.reach.first, None

    @property
    def slots(self) -> int:
        """How many outputs are under way at once."""
        return self.reach.span // self.reach.stride + 1

    def push(self, world: World, inputs: list[list[Any]], state: Any) -> tuple[list[Any], Any]:
        """Add what each frame gives to the sums; give those that are complete."""
        layer, out = world.network.get_submodule(self.module), []
        for frame in inputs[0]:
            done, state = self._advance(layer, frame, state)
            out += done
        return out, state

    def end(self, world: World, state: Any) -> list[Any]:
        """Give the outputs that see padding behind the last frame."""
        layer, out = world.network.get_submodule(self.module), []
        for _ in range(self.reach.right if state[2] is not None else 0):
            done, state = self._advance(layer, None, state)
            out += done
        return out

    def _advance(self, layer: Any, frame: Tensor | None, state: Any) -> tuple[list[Any], Any]:
        time, output, sums = state
        r = self.reach
        if frame is not None:
            taps = [
                (i, (time - i * r.dilation) // r.stride - output)
                for i in range(r.kernel)
                if (time - i * r.dilation) % r.stride == 0 and (time - i * r.dilation) >= output * r.stride
            ]
            if taps or sums is None:
                parts = self._parts(layer, frame, [i for i, _ in taps] or [0])
                if sums is None:
                    sums = parts.new_zeros(self.slots, *parts.shape[1:])
                if taps:
                    at = torch.tensor([slot for _, slot in taps], device=parts.device)
                    sums = sums.index_add(0, at, parts)
        if time == output * r.stride + r.span:
            bias = layer.bias
            done = sums[0] if bias is None else sums[0] + bias.view(-1, *[1] * (sums[0].ndim - 2))
            sums = torch.cat([sums[1:], torch.zeros_like(sums[:1])])
            return [done.unsqueeze(self.axis)], (time + 1, output + 1, sums)
        return [], (time + 1, output, sums)

    def _parts(self, layer: Any, frame: Tensor, taps: list[int]) -> Tensor:
        """Return the products of a frame with the given taps, (taps, B, C, ...)."""
        weight = layer.weight.movedim(self.axis, 0)[taps]  # (taps, out, in / groups, ...)
        count, out, groups, rest = len(taps), weight.shape[1], layer.groups, weight.shape[2:]
        stacked = weight.reshape(count, groups, out // groups, *rest).transpose(0, 1)
        x, dims, at = frame.squeeze(self.axis), layer.weight.ndim - 2, self.axis - 2
        if dims == 1:
            grouped = x.reshape(len(x), groups, -1).transpose(0, 1)  # (groups, B, in / groups)
            products = torch.bmm(grouped, stacked.reshape(groups, -1, rest[0]).transpose(1, 2))
            products = products.reshape(groups, len(x), count, -1)
            return products.permute(2, 1, 0, 3).flatten(2)
        settings = [_spatial(v, at, dims) for v in (layer.stride, layer.padding, layer.dilation)]
        if layer.padding_mode != "zeros":
            pads = layer._reversed_padding_repeated_twice
            own = 2 * (dims - 1 - at)
            x = F.pad(x, [*pads[:own], *pads[own + 2 :]], mode=layer.padding_mode)
            settings[1] = 0
        convolve: Any = (F.conv1d, F.conv2d)[dims - 2]
        y: Tensor = convolve(x, stacked.flatten(0, 2), None, *settings, groups=groups)
        y = y.reshape(len(y), groups, count, -1, *y.shape[2:])
        return y.movedim(2, 0).flatten(2, 3)

    def clip(self, world: World, inputs: list[Any]) -> Any:
        """Convolve the clip, without padding over time where that is dropped."""
        layer: Any = world.network.get_submodule(self.module)
        if self.reach.padded:
            return layer(inputs[0])
        x, at, dims = self.reach.valid(inputs[0], self.axis), self.axis - 2, layer.weight.ndim - 2
        if layer.padding_mode != "zeros":  # the padding over time is 0 then
            return layer(x)
        padding = layer.padding
        if padding == "same":
            pads = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            around = [(0, 0) if i == at else (p // 2, p - p // 2) for i, p in enumerate(pads)]
            x, padding = F.pad(x, [n for pair in reversed(around) for n in pair]), 0
        elif not isinstance(padding, str):
            padding = [0 if i == at else p for i, p in enumerate(padding)]
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        return convolve(x, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)


@dataclass(frozen=True)
class Pool(Step):
    """A pool over a few frames; its state is the time of the next frame, the next output, and the last frames."""

    module: str
    axis: int
    reach: Reach

    def start(self) -> Any:
        """Return the state before the first frame."""
        return self.reach.begin + self.reach.left, self.reach.first, ()

    def push(self, world: World, inputs: list[list[Any]], state: Any) -> tuple[list[Any], Any]:
        """Give each pool whose last frame has come."""
        layer, out = world.network.get_submodule(self.module), []
        for frame in inputs[0]:
            if not state[2]:
                state = *state[:2], (self._blank(layer, frame),) * self.reach.left
            done, state = self._advance(layer, frame, state)
            out += done
        return out, state

    def end(self, world: World, state: Any) -> list[Any]:
        """Give the pools that see padding behind the last frame."""
        layer, out = world.network.get_submodule(self.module), []
        for _ in range(self.reach.right if state[2] else 0):
            done, state = self._advance(layer, self._blank(layer, state[2][-1]), state)
            out += done
        return out

    def _blank(self, layer: nn.Module, like: Tensor) -> Tensor:
        largest = isinstance(layer, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d)
        return torch.full_like(like, -torch.inf if largest else 0.0)

    def _advance(self, layer: nn.Module, frame: Tensor, state: Any) -> tuple[list[Any], Any]:
        time, output, frames = state
        r = self.reach
        frames = (*frames, frame)[-r.span - 1 :]
        if time != output * r.stride + r.span:
            return [], (time + 1, output, frames)
        pooled = self._pool(layer, torch.cat(frames[:: r.dilation], self.axis), r.kernel)
        return [pooled], (time + 1, output + 1, frames)

    def _pool(self, layer: Any, x: Tensor, stride: int, dilation: int = 1) -> Tensor:
        dims, at = x.ndim - 2, self.axis - 2
        sizes: dict[str, Any] = {}
        for name, over_time in (("stride", stride), ("padding", 0), ("dilation", dilation)):
            if hasattr(layer, name):
                value = getattr(layer, name)
                whole = [value] * dims if isinstance(value, int) else (list(value) * dims)[:dims]
                sizes[name] = [over_time if i == at else n for i, n in enumerate(whole)]
        for name in ("ceil_mode", "count_include_pad", "divisor_override"):
            if hasattr(layer, name):
                sizes[name] = getattr(layer, name)
        kind = "max" if hasattr(layer, "dilation") else "avg"
        pooled: Tensor = getattr(F, f"{kind}_pool{dims}d")(x, layer.kernel_size, **sizes)
        return pooled

    def clip(self, world: World, inputs: list[Any]) -> Any:
        """Pool the clip, without padding over time where that is dropped."""
        layer, r = world.network.get_submodule(self.module), self.reach
        if r.padded:
            return layer(inputs[0])
        return self._pool(layer, r.valid(inputs[0], self.axis), r.stride, r.dilation)
