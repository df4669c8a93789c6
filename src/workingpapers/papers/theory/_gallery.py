"""Architectures as diagrams of primitives, each with the torch module whose learned parameters it shares."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.papers.theory._primitives import einsum, elementwise, view
from workingpapers.papers.theory._terms import Axis, Op, Term, Wires, arrays, compose, identity, over, written
from workingpapers.tasks import initialise


@dataclass(frozen=True)
class Piece:
    """A diagram of one input, and a torch module with the same parameters that takes a batch of such inputs."""

    diagram: Term
    module: nn.Module

    def shape(self) -> tuple[int, ...]:
        """Return the shape of the input."""
        return tuple(size for _, size in self.diagram.source[0])


def linear(layer: nn.Linear, into: str, out: str, *axes: Axis) -> Term:
    """Return a learned linear map from the axis `into` to `out`, broadcast over further axes."""
    source, target = arrays(f"{into}:{layer.in_features}"), arrays(f"{out}:{layer.out_features}")
    cost = 2 * layer.in_features * layer.out_features
    return over(Op("W", affine(layer.weight, layer.bias), source, target, cost, learned=True), *axes)


def affine(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """Return x -> W x + b, which holds no more than x and the result."""
    return lambda x: (weight @ x).add_(bias)


def norm(layer: nn.LayerNorm, axis: str, *axes: Axis) -> Term:
    """Return layer normalisation along one axis, broadcast over the others."""
    kind = arrays(f"{axis}:{layer.normalized_shape[0]}")

    def normed(x: Tensor) -> Tensor:
        centred = x - x.mean()
        scaled: Tensor = centred / (centred.square().mean() + layer.eps).sqrt() * layer.weight + layer.bias
        return scaled

    return over(Op("norm", normed, kind, kind, learned=True), *axes)


def residual(branch: Term) -> Term:
    """Return x + branch(x): copy, branch beside the identity, add."""
    kind = branch.source
    add = Op("+", torch.add, kind + kind, kind)
    return compose(Wires(kind, (0, 0)), branch @ identity(kind), add)


def head(n: int, e: int) -> Term:
    """Return one head of attention: (q | k | v) -> softmax(q k' / sqrt(e)) v."""
    scores = einsum(f"n:{n} e:{e} | m:{n} e:{e}", f"n:{n} m:{n}", scale=1 / math.sqrt(e))
    rows = over(elementwise("softmax", lambda s: s.softmax(-1), arrays(f"m:{n}")), ("n", n))
    mixed = einsum(f"n:{n} m:{n} | m:{n} e:{e}", f"n:{n} e:{e}")
    values = identity(arrays(f"m:{n} e:{e}"))
    return compose(scores @ values, rows @ values, mixed)


def attention(layer: nn.MultiheadAttention, n: int) -> Term:
    """Return multi-head self-attention (n d) -> (n d) with the parameters of a torch layer."""
    d, h = layer.embed_dim, layer.num_heads
    e = d // h
    parts = []
    for k, axis in enumerate("nmm"):
        rows = slice(k * d, (k + 1) * d)
        weights = affine(layer.in_proj_weight[rows], layer.in_proj_bias[rows])
        project = Op("W", weights, arrays(f"d:{d}"), arrays(f"f:{d}"), 2 * d * d, learned=True)
        split = view(
            "split",
            lambda x: x.unflatten(1, (h, e)).transpose(0, 1),
            f"n:{n} f:{d}",
            f"h:{h} {axis}:{n} e:{e}",
        )
        parts.append(compose(over(project, ("n", n)), split))
    merge = view(
        "merge", lambda x: x.transpose(0, 1).flatten(1), f"h:{h} n:{n} e:{e}", f"n:{n} f:{d}", copies=True
    )
    copied = Wires(arrays(f"n:{n} d:{d}"), (0, 0, 0))
    output = linear(layer.out_proj, "f", "d", ("n", n))
    return compose(copied, parts[0] @ (parts[1] @ parts[2]), over(head(n, e), ("h", h)), merge, output)


class Block(nn.Module):
    """A transformer block, norm first: attention and a perceptron, each with a shortcut."""

    def __init__(self, d: int, h: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = nn.MultiheadAttention(d, h, batch_first=True)
        self.into, self.out = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm1(x)
        x = x + self.attention(z, z, z, need_weights=False)[0]
        out: Tensor = x + self.out(torch.relu(self.into(self.norm2(x))))
        return out

    def diagram(self, n: int) -> Term:
        """Return the block on `n` tokens."""
        d, axis = self.into.in_features, ("n", n)
        hidden = elementwise("relu", torch.relu, arrays(f"n:{n} k:{2 * d}"))
        perceptron = compose(
            norm(self.norm2, "d", axis),
            linear(self.into, "d", "k", axis),
            hidden,
            linear(self.out, "k", "d", axis),
        )
        attend = compose(norm(self.norm1, "d", axis), attention(self.attention, n))
        return compose(residual(attend), residual(perceptron))


def convolution(layer: nn.Conv2d, side: int) -> Term:
    """Return a convolution (c y x) -> (o y x) by the linear index of its patches; stride, padding and dilation."""
    c, o, (k, _) = layer.in_channels, layer.out_channels, layer.kernel_size
    step, pad, gap = layer.stride[0], int(layer.padding[0]), layer.dilation[0]
    out = (side + 2 * pad - gap * (k - 1) - 1) // step + 1
    weight, bias = layer.weight, layer.bias

    def index(x: Tensor) -> Tensor:
        return F.unfold(x[None], k, gap, pad, step)[0]

    patches = Op("patches", index, arrays(f"c:{c} y:{side} x:{side}"), arrays(f"q:{c * k * k} p:{out * out}"))

    def product(x: Tensor) -> Tensor:
        found = weight.flatten(1) @ x
        return found if bias is None else found.add_(bias[:, None])

    cost = 2 * o * c * k * k * out * out
    weighted = Op("W", product, patches.target, arrays(f"o:{o} p:{out * out}"), cost, learned=True)
    image = f"c:{o} y:{out} x:{out}"
    square = view("square", lambda x: x.unflatten(1, (out, out)), written(weighted.target), image)
    return compose(patches, weighted, square)


def transposed(layer: nn.ConvTranspose2d, side: int) -> Term:
    """Return a transposed convolution (c y x) -> (o y x): the adjoint of the patches' index after a linear map."""
    c, o, (k, _) = layer.in_channels, layer.out_channels, layer.kernel_size
    step, pad = layer.stride[0], int(layer.padding[0])
    out = (side - 1) * step - 2 * pad + k
    weight, bias = layer.weight, layer.bias
    line = view("line", lambda x: x.flatten(1), f"c:{c} y:{side} x:{side}", f"c:{c} p:{side * side}")
    cost = 2 * c * o * k * k * side * side
    target = arrays(f"q:{o * k * k} p:{side * side}")
    spread = Op("W", lambda x: weight.flatten(1).T @ x, line.target, target, cost, learned=True)

    def added(x: Tensor) -> Tensor:
        found = F.fold(x[None], out, k, 1, pad, step)[0]
        return found if bias is None else found + bias[:, None, None]

    return compose(
        line, spread, Op("add patches", added, target, arrays(f"c:{o} y:{out} x:{out}"), learned=True)
    )


class Residual(nn.Module):
    """A residual block of two 3 x 3 convolutions, and a classifier on the mean over places."""

    def __init__(self, c: int, classes: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(c, c, 3, padding=1) for _ in range(2))
        self.read = nn.Linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.read(torch.relu(x + self.two(torch.relu(self.one(x)))).mean((2, 3)))
        return out

    def diagram(self, side: int) -> Term:
        """Return the network on side x side images."""
        c = self.one.in_channels
        image = arrays(f"c:{c} y:{side} x:{side}")
        relu = elementwise("relu", torch.relu, image)
        branch = compose(convolution(self.one, side), relu, convolution(self.two, side))
        pooled = over(Op("mean", torch.mean, arrays(f"y:{side} x:{side}"), ((),)), ("c", c))
        return compose(residual(branch), relu, pooled, linear(self.read, "c", "k"))


class UNet(nn.Module):
    """One step down by a strided convolution, one up by a transposed one, and a skip connection between."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.into, self.down = nn.Conv2d(c, 4, 3, padding=1), nn.Conv2d(4, 8, 2, stride=2)
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.into(x))
        out: Tensor = self.out(torch.cat([skip, self.up(torch.relu(self.down(skip)))], 1))
        return out

    def diagram(self, side: int) -> Term:
        """Return the network on side x side images, an even number."""
        wide, deep = arrays(f"c:4 y:{side} x:{side}"), arrays(f"c:8 y:{side // 2} x:{side // 2}")
        below = compose(
            convolution(self.down, side),
            elementwise("relu", torch.relu, deep),
            transposed(self.up, side // 2),
        )
        joined = Op("concat", lambda a, b: torch.cat([a, b]), wide + wide, arrays(f"c:8 y:{side} x:{side}"))
        return compose(
            convolution(self.into, side), elementwise("relu", torch.relu, wide), Wires(wide, (0, 0)),
            identity(wide) @ below, joined, convolution(self.out, side),
        )  # fmt: skip


class ViT(nn.Module):
    """Patches, a learned position, one transformer block, the mean over tokens, a classifier."""

    def __init__(self, c: int, side: int, patch: int, d: int, classes: int) -> None:
        super().__init__()
        self.patch, self.n = nn.Conv2d(c, d, patch, stride=patch), (side // patch) ** 2
        self.place = nn.Parameter(torch.randn(self.n, d) / 10)
        self.block, self.read = Block(d, 2), nn.Linear(d, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        out: Tensor = self.read(self.block(tokens).mean(1))
        return out

    def diagram(self, side: int) -> Term:
        """Return the network on side x side images."""
        d, n, row = self.patch.out_channels, self.n, side // self.patch.kernel_size[0]
        listed = view("list", lambda x: x.flatten(1).T, f"c:{d} y:{row} x:{row}", f"n:{n} d:{d}")
        tokens = arrays(f"n:{n} d:{d}")
        placed = Op("place", lambda x: x + self.place, tokens, tokens, learned=True)
        mean = Op("mean", lambda x: x.mean(0), tokens, arrays(f"d:{d}"))
        return compose(
            convolution(self.patch, side),
            listed,
            placed,
            self.block.diagram(n),
            mean,
            linear(self.read, "d", "k"),
        )


class SelfAttention(nn.Module):
    """torch's own multi-head attention of a sequence to itself."""

    def __init__(self, d: int, h: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(d, h, batch_first=True)
        nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


def gallery(seed: int = 0, side: int = 8, n: int = 12, d: int = 16) -> dict[str, Piece]:
    """Return seven architectures on one input: images of `side`, an even number, or `n` tokens of `d` features."""

    def build() -> dict[str, Piece]:
        attend, block, residual_net, unet = SelfAttention(d, 4), Block(d, 4), Residual(4, 10), UNet(3)
        conv = nn.Conv2d(3, 6, 3, stride=2, padding=2, dilation=2)
        up = nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1)
        vit = ViT(3, side, 2, d, 10)
        return {
            "multi-head attention": Piece(attention(attend.attention, n), attend),
            "transformer block": Piece(block.diagram(n), block),
            "convolution": Piece(convolution(conv, side), conv),
            "transposed convolution": Piece(transposed(up, side), up),
            "residual network": Piece(residual_net.diagram(side), residual_net),
            "U-Net": Piece(unet.diagram(side), unet),
            "vision transformer": Piece(vit.diagram(side), vit),
        }

    class Holder(nn.Module):
        pieces: dict[str, Piece]

    def held() -> Holder:
        holder = Holder()
        holder.pieces = build()
        return holder

    return initialise(held, seed).pieces
