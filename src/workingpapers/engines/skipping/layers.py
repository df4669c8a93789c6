"""Modules of a model that skip small activations: the same objects and weights, of a class that looks before
it reads.

    plain: down(kept(a)),    gated: down(kept(act(gate(x))) * up(x)),    kept(a) = a where |a| >= threshold, 0
    elsewhere

A threshold is a buffer, `skip_below`, of the module that reads it: of the down projection of a plain
feed-forward layer, of the holder of a gated one, of the activation where there is no such holder and among
experts that keep their weights together; there activations are cut, and nothing is skipped.  With threshold 0
the module does what its own class does, bit for bit.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.kernels.rows import kept, skipped_gated_rows, skipped_rows
from workingpapers.surgery._unit_tracing import transposed
from workingpapers.surgery.activations import FORMULAS
from workingpapers.surgery.feedforward import Activation, FeedForward
from workingpapers.surgery.intercept import subclass

BUFFER, SPEC, COUNTS = "skip_below", "skipping_parts", "skipping_counts"


@dataclass(frozen=True)
class Parts:
    """Where a gated layer's parts are, as names below its holder; its activation is a module or a function."""

    gate: str
    gate_start: int
    up: str
    up_start: int
    down: str
    count: int
    activation: str
    function: str


def skip_below(layer: FeedForward, threshold: float) -> nn.Module:
    """Let a feed-forward layer skip neurons below a threshold; return the module that does so, changed in
    place.

    Raises:
        WorkingPapersError: where a gated layer is spread over a module that does more, and calls a function
        on its gate.
    """
    if layer.up is None:
        down: Any = layer.down.layer
        _convert(down, skipping_linear, threshold)
        if threshold > 0 and not transposed(down):
            by_neurons(down)
        return down  # type: ignore[no-any-return]
    if layer.holder is None:
        if isinstance(layer.activation, nn.Module):
            return cut_below(layer.activation, threshold, layer.down.layer)
        raise WorkingPapersError(
            f"the gated layer behind {layer.down.name!r} cannot skip: the module around it does something "
            "else as well; put gate, up and down into a module of their own"
        )
    holder = layer.holder.layer
    holder.__dict__[SPEC] = _parts(holder, layer)
    _convert(holder, skipping_gated, threshold)
    if threshold > 0 and not transposed(layer.down.layer):
        by_neurons(layer.down.layer)
    return holder


def cut_below(activation: nn.Module, threshold: float, beside: nn.Module) -> nn.Module:
    """Let an activation give 0 for what is below a threshold; its buffer lies where the weights `beside` do."""
    _convert(activation, cutting, threshold, beside)
    return activation


def expert_activations(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Return activations and experts, by name, where experts keep their weights together as Mixtral's do."""
    return {
        f"{name}.act_fn" if name else "act_fn": (module.act_fn, module)  # type: ignore[misc]
        for name, module in model.named_modules()
        if isinstance(getattr(module, "act_fn", None), nn.Module)
        and all(
            getattr(module.__dict__["_parameters"].get(w), "ndim", 0) == 3
            for w in ("gate_up_proj", "down_proj")
        )
    }


def by_neurons(linear: Any) -> None:
    """Lay the weight (out, in) of a linear layer out so that an input's column is one contiguous read."""
    with torch.no_grad():
        linear.weight.data = linear.weight.data.t().contiguous().t()


def skipper(cls: Any) -> Any:
    """Mark a class of modules that skip."""
    cls.workingpapers_skips = True
    return cls


def skipping_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model that skip, by name."""
    return {n: m for n, m in model.named_modules() if getattr(type(m), "workingpapers_skips", False)}


@contextmanager
def realised(model: nn.Module) -> Iterator[dict[str, Counter[str]]]:
    """Count inside, for each module that skips, `active` activations of `all`, and entries `read` of `weights`.

    What is read is counted as if each token came alone.
    """
    layers = skipping_layers(model)
    counts: dict[str, Counter[str]] = {name: Counter() for name in layers}
    try:
        for name, module in layers.items():
            module.__dict__[COUNTS] = counts[name]
        yield counts
    finally:
        for module in layers.values():
            module.__dict__.pop(COUNTS, None)


def _parts(holder: nn.Module, layer: FeedForward) -> Parts:
    assert layer.up is not None
    names = {module: name for name, module in holder.named_modules()}
    act = layer.activation
    function = "" if isinstance(act, nn.Module) else next(n for n, f in FORMULAS.items() if f is act)
    return Parts(
        names[layer.gate.layer],
        layer.gate.start,
        names[layer.up.layer],
        layer.up.start,
        names[layer.down.layer],
        layer.count,
        names.get(act, "") if isinstance(act, nn.Module) else "",
        function,
    )


def _convert(module: nn.Module, make: Any, threshold: float, beside: nn.Module | None = None) -> None:
    if BUFFER not in module._buffers:
        module.__class__ = make(type(module))
    where = next((beside or module).parameters()).device
    module.register_buffer(BUFFER, torch.tensor(threshold, dtype=torch.float32, device=where))


def threshold_of(module: nn.Module) -> float:
    """Return a module's threshold, read from its buffer once after each change."""
    buffer: Any = module._buffers[BUFFER]
    known = module.__dict__.get("_skip_below_read")
    if known is None or known[:2] != (id(buffer), buffer._version):
        known = (id(buffer), buffer._version, float(buffer))
        module.__dict__["_skip_below_read"] = known
    return float(known[2])


def note(module: nn.Module, a: Tensor, per_active: int, per_token: int, whole: int) -> None:
    """Count the activations a (..., neurons) that a module keeps, and the entries of weights read for them.

    Args:
        module: that skips.
        a: with 0 for what is left out.
        per_active: entries read for each activation that is kept.
        per_token: entries read for each token in any case.
        whole: entries that a token reads of the dense module.
    """
    counts = module.__dict__.get(COUNTS)
    if counts is not None:
        active, tokens = int(a.count_nonzero()), a.numel() // a.shape[-1]
        counts["active"] += active
        counts["all"] += a.numel()
        counts["read"] += active * per_active + tokens * per_token
        counts["weights"] += tokens * whole


@functools.cache
def skipping_linear(base: Any) -> Any:
    """Return the subclass of a linear layer's class that skips the inputs below its threshold."""

    @functools.wraps(base.forward)
    def forward(self: Any, x: Tensor) -> Any:
        threshold = threshold_of(self)
        if COUNTS in self.__dict__:
            out = self.weight.numel() // x.shape[-1]
            note(self, kept(x, threshold), out, 0, self.weight.numel())
        if threshold == 0:
            return base.forward(self, x)
        rows = self.weight if transposed(self) else self.weight.t()
        found = skipped_rows(x, rows, threshold)
        if found is None:
            return base.forward(self, kept(x, threshold))
        return found if self.bias is None else found + self.bias

    return skipper(subclass(base, forward, skipping_linear))


@functools.cache
def skipping_gated(base: Any) -> Any:
    """Return the subclass of a gated feed-forward layer's class that skips the neurons whose gate is small.

    With a threshold it computes the layer part by part, so that what else its class does in training only,
    such as dropout, is left out.
    """

    @functools.wraps(base.forward)
    def forward(self: Any, x: Tensor) -> Any:
        threshold = threshold_of(self)
        if threshold == 0 and COUNTS not in self.__dict__:
            return base.forward(self, x)
        parts: Parts = self.__dict__[SPEC]
        gate, up, down = (self.get_submodule(n) for n in (parts.gate, parts.up, parts.down))
        first = _some(gate, x, parts.gate_start, parts.count)
        a = kept(_activation(self, parts)(first), threshold)
        size, out = parts.count * x.shape[-1], down.weight.numel() // parts.count
        note(self, a, x.shape[-1] + out, size, 2 * size + parts.count * out)
        if threshold == 0:
            return base.forward(self, x)
        found = _skipped(a, up, down, x, parts) if _is_linear(up) and _is_linear(down) else None
        if found is None:
            return down(a * _some(up, x, parts.up_start, parts.count))
        return found if down.bias is None else found + down.bias

    return skipper(subclass(base, forward, skipping_gated))


@functools.cache
def cutting(base: Any) -> Any:
    """Return the subclass of an activation's class that gives 0 for what is below its threshold."""

    @functools.wraps(base.forward)
    def forward(self: Any, x: Tensor) -> Any:
        a = kept(base.forward(self, x), threshold_of(self))
        note(self, a, 0, 0, 0)
        return a

    return skipper(subclass(base, forward, cutting))


def _activation(holder: nn.Module, parts: Parts) -> Activation:
    return FORMULAS[parts.function] if parts.function else holder.get_submodule(parts.activation)


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear or transposed(layer)


def _some(layer: Any, x: Tensor, start: int, count: int) -> Tensor:
    """Return `count` of a layer's outputs, computing no others where it is a linear one."""
    if _is_linear(layer) and not transposed(layer) and len(layer.weight) > count:
        part = slice(start, start + count)
        return F.linear(x, layer.weight[part], None if layer.bias is None else layer.bias[part])
    found: Tensor = layer(x)
    return found.narrow(-1, start, count)


def _skipped(a: Tensor, up: Any, down: Any, x: Tensor, parts: Parts) -> Tensor | None:
    part = slice(parts.up_start, parts.up_start + parts.count)
    bias = None if up.bias is None else up.bias[part]
    rows = (up.weight.t() if transposed(up) else up.weight)[part]
    return skipped_gated_rows(a, rows, down.weight if transposed(down) else down.weight.t(), x, 0.0, bias)


def copies_apart(layers: Iterable[FeedForward]) -> None:
    """Raise where two feed-forward layers share a module that each would need for itself.

    Raises:
        WorkingPapersError: naming the layers.
    """
    seen: dict[nn.Module, str] = {}
    for layer in layers:
        module = layer.down.layer if layer.up is None else (layer.holder or layer.down).layer
        if module in seen:
            raise WorkingPapersError(
                f"{layer.name!r} and {seen[module]!r} are one module, which can have one threshold only"
            )
        seen[module] = layer.name
