"""Structured pruning adapters: small learnt changes of frozen weights that are pruned together with their channels.

    SPLoRA:  W' = (W + B A) * rows * columns        A (r, m), B (n, r): r (n' + m') learnt weights are left
    SPLoPA:  W' = (W + sum_i alpha_i kron P_i) * rows * columns          P_i = u_i v_i: small blocks of rank 1

Kernels count as matrices (out, in k k); a channel is k k columns.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.surgery import note_changes, replace_modules
from workingpapers.surgery.units import Units, units_of

IMPORTANCE = ("magnitude", "taylor")


class LowRank(nn.Module):
    """B A, which is 0 at first."""

    def __init__(self, shape: tuple[int, int], rank: int, generator: torch.Generator) -> None:
        super().__init__()
        n, m = shape
        self.a = nn.Parameter(torch.randn(rank, m, generator=generator) * m**-0.5)
        self.b = nn.Parameter(torch.zeros(n, rank))

    def forward(self) -> Tensor:
        """Return the change (n, m)."""
        return self.b @ self.a

    def left(self, rows: Tensor, columns: Tensor) -> int:
        """Return how many weights are learnt for the kept rows (n,) and columns (m,), both bool."""
        return len(self.a) * int(rows.sum() + columns.sum())


class Prototypes(nn.Module):
    """A sum of Kronecker products of alphas, which are 0 at first, with blocks u v."""

    def __init__(self, shape: tuple[int, int], count: int, block: int, generator: torch.Generator) -> None:
        super().__init__()
        self.shape, self.block = shape, block
        self.alphas = nn.Parameter(torch.zeros(count, *(-(-s // block) for s in shape)))
        self.u = nn.Parameter(torch.randn(count, block, 1, generator=generator))
        self.v = nn.Parameter(torch.randn(count, 1, block, generator=generator) * shape[1] ** -0.5)

    def forward(self) -> Tensor:
        """Return the change (n, m)."""
        whole = torch.einsum("kij,kab->iajb", self.alphas, self.u @ self.v)
        return whole.flatten(2).flatten(0, 1)[: self.shape[0], : self.shape[1]]

    def left(self, rows: Tensor, columns: Tensor) -> int:
        """Return how many weights are learnt for the kept rows (n,) and columns (m,): whole blocks of them."""
        blocks = [int(F.pad(kept, (0, -len(kept) % self.block)).view(-1, self.block).any(1).sum())
                  for kept in (rows, columns)]  # fmt: skip
        return len(self.alphas) * (blocks[0] * blocks[1] + 2 * self.block)


class Full(nn.Module):
    """Every weight is learnt: fine-tuning."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Tensor:
        """Return the change (n, m)."""
        return self.change

    def left(self, rows: Tensor, columns: Tensor) -> int:
        """Return how many weights are learnt for the kept rows (n,) and columns (m,), both bool."""
        return int(rows.sum() * columns.sum())


class Adapted(nn.Module):
    """A linear layer or convolution with frozen weights, a learnt change of them, and masks on its channels.

    Attributes:
        layer: the layer; its bias is learnt.
        change: gives the change of the weight as a matrix.
        rows: which outputs are kept, (out,) bool.
        columns: which inputs are kept, (in,) bool.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, change: nn.Module) -> None:
        super().__init__()
        self.layer, self.change = layer, change
        layer.weight.requires_grad_(False)
        self.register_buffer("rows", torch.ones(layer.weight.shape[0], dtype=torch.bool))
        self.register_buffer("columns", torch.ones(layer.weight.shape[1], dtype=torch.bool))
        self.watched: Tensor | None = None
        self.watching = False

    def weight(self) -> Tensor:
        """Return the weight in use, of the layer's own shape."""
        frozen = self.layer.weight
        changed = frozen + self.change().view_as(frozen)
        rest = [1] * (frozen.ndim - 2)
        masked: Tensor = changed * self.rows.view(-1, 1, *rest) * self.columns.view(1, -1, *rest)
        return masked

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer with the weight in use."""
        weight = self.weight()
        if self.watching:
            weight.retain_grad()
            self.watched = weight
        bias = None if self.layer.bias is None else self.layer.bias * self.rows
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        out: Tensor = self.layer._conv_forward(x, weight, bias)
        return out

    def learnt(self) -> int:
        """Return how many weights and biases are learnt for what is kept."""
        area = self.layer.weight[0, 0].numel()
        biases = 0 if self.layer.bias is None else int(self.rows.sum())
        left: Any = self.change.left
        return int(left(self.rows, self.columns.repeat_interleave(area))) + biases

    def fused(self) -> nn.Linear | nn.Conv2d:
        """Return a plain layer of the kept channels alone."""
        old: Any = self.layer
        weight = self.weight().detach()[self.rows][:, self.columns]
        (n, m), biased = weight.shape[:2], old.bias is not None
        if isinstance(old, nn.Linear):
            new: nn.Linear | nn.Conv2d = nn.Linear(m, n, biased)
        else:
            where = old.kernel_size, old.stride, old.padding, old.dilation
            new = nn.Conv2d(m, n, *where, bias=biased, padding_mode=old.padding_mode)
        new = new.to(weight)
        with torch.no_grad():
            new.weight.copy_(weight)
            if new.bias is not None:
                new.bias.copy_(old.bias[self.rows])
        return new


def adapted(model: nn.Module) -> dict[str, Adapted]:
    """Return the adapted layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Adapted)}


def with_adapters(model: nn.Module, how: str, size: int, block: int = 8, seed: int = 0) -> nn.Module:
    """Return a copy of `model` with each linear layer and ungrouped convolution `Adapted`.

    `how` is "splora" (of rank `size`), "splopa" (of `size` blocks) or "fine-tuning".
    """
    if size < 1 or block < 1:
        raise WorkingPapersError(f"the rank and the size of blocks are at least 1; got {size} and {block}")
    generator = torch.Generator().manual_seed(seed)
    inside = {id(a.layer) for a in adapted(model).values()}
    found = [
        name
        for name, m in model.named_modules()
        if id(m) not in inside and (type(m) is nn.Linear or (type(m) is nn.Conv2d and m.groups == 1))
    ]
    if not found and not inside:
        raise WorkingPapersError(f"{type(model).__name__} has no linear layer or convolution to adapt")

    def build(old: nn.Module) -> nn.Module:
        weight = cast(nn.Linear, old).weight
        shape = (weight.shape[0], weight[0].numel())
        if how == "splora":
            change: nn.Module = LowRank(shape, size, generator)
        else:
            change = Prototypes(shape, size, block, generator) if how == "splopa" else Full(shape)
        return Adapted(cast(nn.Linear, old), change.to(weight))

    return replace_modules(model, found or [""], build if found else lambda old: None)


def importance(model: nn.Module, x: Tensor, y: Tensor, how: str = "taylor") -> dict[str, Tensor]:
    """Return for each adapted layer how much each output channel matters, (out,): its norm, or sum |w dL/dw|."""
    if how not in IMPORTANCE:
        raise unknown("importance of channels", how, IMPORTANCE)
    layers = adapted(model)
    if how == "magnitude":
        return {n: a.weight().detach().flatten(1).norm(dim=1) for n, a in layers.items()}
    for a in layers.values():
        a.watching = True
    modes = {m: m.training for m in model.modules()}
    kept = {p: p.grad for p in model.parameters()}
    try:
        F.cross_entropy(model.eval()(x), y).backward()  # type: ignore[no-untyped-call]
        slopes = {n: cast(Tensor, a.watched) for n, a in layers.items()}
        return {n: (w * cast(Tensor, w.grad)).detach().abs().flatten(1).sum(1) for n, w in slopes.items()}
    finally:
        for a in layers.values():
            a.watching, a.watched = False, None
        for m, mode in modes.items():
            m.training = mode
        for p, grad in kept.items():
            p.grad = grad


def prunable_units(model: nn.Module, x: Tensor) -> dict[str, Units]:
    """Return the layers of the plain `model` whose channels can go: all that reads them is known, by name."""
    found = units_of(model, x)
    return {
        name: u
        for name, u in found.items()
        if u.closed
        and not u.partners
        and all(isinstance(b.module, nn.BatchNorm2d | nn.BatchNorm1d) for b in u.norms)
    }


@torch.no_grad()
def prune(model: nn.Module, units: Mapping[str, Units], scores: Mapping[str, Tensor], keep: float) -> None:
    """Keep, in place, the share `keep` of each layer's channels that score highest, and what reads them."""
    if not 0 < keep <= 1:
        raise WorkingPapersError(f"the share of channels to keep is above 0 and at most 1; got {keep}")
    layers = adapted(model)
    for name, unit in units.items():
        own = layers[name]
        count = max(round(keep * unit.count), 1)
        score = scores[name].masked_fill(~own.rows, -torch.inf)
        rows = torch.zeros_like(own.rows)
        rows[score.topk(min(count, int(own.rows.sum()))).indices] = True
        own.rows.copy_(rows)
        for reader in unit.readers:
            part = rows[reader.start : reader.start + reader.count].repeat_interleave(reader.block)
            layers[reader.name].columns[: len(part)] = part


def fuse(model: nn.Module, units: Mapping[str, Units]) -> nn.Module:
    """Return a copy of `model` with plain layers of the kept channels alone, and batch norms to match."""
    rows = {name: a.rows for name, a in adapted(model).items()}
    norms = {norm.name: rows[name] for name, unit in units.items() for norm in unit.norms}
    small = replace_modules(model, Adapted, lambda old: cast(Adapted, old).fused())
    for name, kept in norms.items():
        norm: Any = small.get_submodule(name)
        norm.num_features = int(kept.sum())
        for part in ("weight", "bias"):
            if getattr(norm, part) is not None:
                setattr(norm, part, nn.Parameter(getattr(norm, part).detach()[kept]))
        for part in ("running_mean", "running_var"):
            if getattr(norm, part) is not None:
                setattr(norm, part, getattr(norm, part)[kept])
    sentences = [f"{name} keeps {int(k.sum())} of {len(k)} channels." for name, k in norms.items()]
    return cast(nn.Module, note_changes(small, sentences))
