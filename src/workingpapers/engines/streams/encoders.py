"""Transformer encoders on a stream, from the weights of torch's own layers.

"window": each output is that of the encoder on the last n tokens, for the newest token ("newest") or for all
("all").  Of several layers, the first is retroactive, the last gives one output, and those between run whole.

"band": every token attends to the n tokens up to itself, in every layer; the same weights then give the outputs of
the whole stream at once, under a mask, and a step costs one token in every layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.streams.attention import attend, retroactive, single_output
from workingpapers.engines.streams.operations import Step, World
from workingpapers.errors import WorkingPapersError


class RecyclingPositions(nn.Module):
    """Add positional codes that are used in a circle: x_t + codes[t mod P], for a stream has no last position.

    Tokens (B, T, D) -> same shape.  For a window of n tokens P = 2 n - 1 codes keep the distance of any two of
    them unambiguous.

    Args:
        codes: (P, D), learnt further.
    """

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        if codes.ndim != 2 or not len(codes):
            raise WorkingPapersError(f"positional codes have the shape (P, D); got {tuple(codes.shape)}")
        self.codes = nn.Parameter(codes.detach().clone())

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Add the codes; the first token is number `start` of its stream."""
        time = torch.arange(start, start + x.shape[1], device=x.device)
        return x + self.codes[time % len(self.codes)]


@dataclass(frozen=True)
class Positions(Step):
    """Recycling codes; the state is the number of the next token."""

    module: str

    def start(self) -> Any:
        """Return the number of the first token."""
        return 0

    def push(self, world: World, inputs: list[list[Any]], state: Any) -> tuple[list[Any], Any]:
        """Add its code to each token."""
        codes = world.network.get_submodule(self.module)
        return [codes(x, state + i) for i, x in enumerate(inputs[0])], state + len(inputs[0])

    def clip(self, world: World, inputs: list[Any]) -> Any:
        """Add the codes of a clip that begins at time `start`."""
        return world.network.get_submodule(self.module)(inputs[0], world.values["start"])


def layers_of(module: nn.Module) -> list[Any]:
    """Return the layers of an encoder, or the layer itself.

    Raises:
        WorkingPapersError: where one does not run on a stream.
    """
    layers: list[Any] = list(module.layers) if isinstance(module, nn.TransformerEncoder) else [module]
    for layer in layers:
        inner: Any = getattr(layer, "self_attn", None)
        if not isinstance(layer, nn.TransformerEncoderLayer) or inner.in_proj_weight is None:
            raise WorkingPapersError(
                f"only nn.TransformerEncoderLayer runs on a stream, not {type(layer).__name__}"
            )
        if inner.bias_k is not None or inner.add_zero_attn:
            raise WorkingPapersError("attention with bias_k or add_zero_attn does not run on a stream")
    return layers


def _project(layer: Any, x: Tensor, parts: str) -> list[Tensor]:
    """Return the wanted of the queries, keys and values ("qkv") of tokens (B, m, D), each (B, H, m, D / H)."""
    inner, bias = layer.self_attn, layer.self_attn.in_proj_bias
    rows = ["qkv".index(p) for p in parts]
    low, high = rows[0] * inner.embed_dim, (rows[-1] + 1) * inner.embed_dim
    y = F.linear(x, inner.in_proj_weight[low:high], None if bias is None else bias[low:high])
    return [p.unflatten(-1, (inner.num_heads, -1)).transpose(1, 2) for p in y.chunk(len(parts), -1)]


def _finish(layer: Any, x: Tensor, mixed: Tensor) -> Tensor:
    """Return the layer's outputs for tokens `x` (B, m, D), given what attention (B, H, m, D / H) found for them."""
    added = layer.self_attn.out_proj(mixed.transpose(1, 2).flatten(2))
    x = x + added if layer.norm_first else layer.norm1(x + added)
    inner = layer.norm2(x) if layer.norm_first else x
    inner = layer.linear2(layer.activation(layer.linear1(inner)))
    return x + inner if layer.norm_first else layer.norm2(x + inner)  # type: ignore[no-any-return]


def _before(layer: Any, x: Tensor) -> Tensor:
    return layer.norm1(x) if layer.norm_first else x  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Encode(Step):
    """An encoder on a stream of tokens (B, 1, D), or (1, B, D) where the layers are not `batch_first`.

    The state is one entry a layer that remembers, and the inputs of a retroactive layer.
    """

    module: str
    length: int
    attention: str
    outputs: str
    axis: int

    def start(self) -> Any:
        """Return the states of the layers: none yet."""
        return ()

    def push(self, world: World, inputs: list[list[Any]], state: Any) -> tuple[list[Any], Any]:
        """Give the output of the newest token, or of all, for each token that has come."""
        module: Any = world.network.get_submodule(self.module)
        layers, out = layers_of(module), []
        run = self._band if self.attention == "band" else self._window
        for frame in inputs[0]:
            y, state = run(layers, frame.movedim(self.axis, 1), state)
            if y is not None:
                norm = getattr(module, "norm", None)
                out.append((y if norm is None else norm(y)).movedim(1, self.axis))
        return out, state

    def _band(self, layers: list[Any], x: Tensor, state: Any) -> tuple[Tensor | None, Any]:
        states = []
        for layer, memory in zip(layers, state or (None,) * len(layers), strict=True):
            q, k, v = _project(layer, _before(layer, x), "qkv")
            mixed, memory = single_output(q, k, v, memory, self.length)
            x = _finish(layer, x, mixed)
            states.append(memory)
        return x, tuple(states)

    def _window(self, layers: list[Any], x: Tensor, state: Any) -> tuple[Tensor | None, Any]:
        remembered, tokens = state or (None, x[:, :0])
        q, k, v = _project(layers[0], _before(layers[0], x), "qkv")
        if len(layers) == 1 and self.outputs == "newest":
            mixed, remembered = single_output(q, k, v, remembered, self.length)
            full = remembered.keys.shape[2] == self.length
            return _finish(layers[0], x, mixed) if full else None, (remembered, tokens)
        mixed, remembered = retroactive(q, k, v, remembered, self.length)
        tokens = torch.cat([tokens, x], 1)[:, -self.length :]
        if tokens.shape[1] < self.length:
            return None, (remembered, tokens)
        x = _finish(layers[0], tokens, mixed)
        for i, layer in enumerate(layers[1:], 2):
            inner = _before(layer, x)
            if i == len(layers) and self.outputs == "newest":
                x, own = x[:, -1:], inner[:, -1:]
            else:
                own = inner
            k, v = _project(layer, inner, "kv")
            x = _finish(layer, x, attend(_project(layer, own, "q")[0], k, v))
        return x, (remembered, tokens)

    def clip(self, world: World, inputs: list[Any]) -> Any:
        """Run the encoder on a clip, under the mask of the band or on the newest window."""
        module: Any = world.network.get_submodule(self.module)
        x, count = inputs[0], inputs[0].shape[self.axis]
        if self.attention == "band":
            time = torch.arange(count, device=x.device)
            ago = time[:, None] - time
            return module(x, (ago < 0) | (ago >= self.length))
        if count < self.length:
            raise WorkingPapersError(f"the window has {self.length} tokens, and the clip gives {count}")
        return module(x.narrow(self.axis, count - self.length, self.length))
