"""A network as a chain of affine maps and ReLUs, and the pair (activation, change) pushed through it.

With gates m drawn apart from the inputs, the network of weights 0 and its change towards weights 1 are linear:

    a = W0 h + b0,     e = W1 d + (W1 - W0) h + (b1 - b0),     h' = m a,     d' = m e,     m ~ Bernoulli(mu)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError

Tensors = Mapping[str, Tensor]
Operation = Callable[[Tensor, Tensor], Tensor]  # (weight, input) -> output, linear in both

SKIPPED = (nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class Link:
    """A step of the chain: "affine" (with the name of its module), "relu", "flatten", "pool", or "nothing"."""

    kind: str
    name: str = ""
    module: nn.Module | None = None
    shape: Callable[[Tensor], Tensor] | None = None

    def weights(self, tensors: Tensors) -> tuple[Tensor, Tensor]:
        """Return weight and bias of an affine step from tensors by name."""
        get: Any = {
            key: tensors.get(f"{self.name}.{key}")
            for key in ("weight", "bias", "running_mean", "running_var")
        }
        weight, bias = get["weight"], get["bias"]
        if isinstance(self.module, nn.modules.batchnorm._BatchNorm):
            scale = (get["running_var"] + self.module.eps).rsqrt()
            scale = scale if weight is None else scale * weight
            shift = -get["running_mean"] * scale
            return scale, shift if bias is None else shift + bias
        return weight, torch.zeros_like(weight.flatten(1)[:, 0]) if bias is None else bias

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """Return the linear part of an affine step with some weight, for inputs (N, ...)."""
        module: Any = self.module
        if isinstance(module, nn.Linear):
            return F.linear(x, weight)
        if isinstance(module, nn.Conv2d):
            return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
        return x * _along(weight, x)

    def add(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return x + bias, the bias along the units."""
        return x + (bias if isinstance(self.module, nn.Linear) else _along(bias, x))


def _along(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def chain(model: nn.Module) -> list[Link]:
    """Read the steps of a network that is a chain, from input to output.

    Known are Linear, Conv2d without padding other than zeros, BatchNorm (as in evaluation), ReLU, average pooling,
    flattening and dropout, as modules or, where torch has one, functions.

    Raises:
        WorkingPapersError: for any other step (it is named), branches, or a network that torch.fx cannot trace.
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except (TypeError, ValueError, fx.proxy.TraceError, RuntimeError) as error:
        raise WorkingPapersError(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
    modules, links, before = dict(model.named_modules()), [], None
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            before = node if node.op == "placeholder" and before is None else before
            continue
        if list(node.all_input_nodes) != [before]:
            raise WorkingPapersError(
                f"the network is no chain: {node.name} has other inputs than the step before"
            )
        before = node
        link = _module_link(str(node.target), modules) if node.op == "call_module" else _call_link(node)
        if link is None:
            what = type(modules[str(node.target)]).__name__ if node.op == "call_module" else node.target
            raise WorkingPapersError(
                f"the step {node.name} ({what}) is neither affine, a ReLU nor a pool of averages"
            )
        links.append(link)
    return [link for link in links if link.kind != "nothing"]


def _module_link(name: str, modules: Mapping[str, nn.Module]) -> Link | None:
    module = modules[name]
    if isinstance(module, nn.Linear | nn.modules.batchnorm._BatchNorm) or (
        isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
    ):
        return Link("affine", name, module)
    if isinstance(module, nn.ReLU):
        return Link("relu")
    if isinstance(module, nn.Flatten | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        return Link("flatten" if isinstance(module, nn.Flatten) else "pool", shape=module)
    return Link("nothing") if isinstance(module, SKIPPED) else None


def _call_link(node: fx.Node) -> Link | None:
    name = getattr(node.target, "__name__", str(node.target))
    if name.rstrip("_") == "relu":
        return Link("relu")
    if name in ("flatten", "avg_pool2d", "adaptive_avg_pool2d"):
        rest, target = node.args[1:], node.target
        call: Any = target if callable(target) else getattr(Tensor, str(target))
        kwargs = {k: v for k, v in node.kwargs.items() if k != "input"}
        return Link("flatten" if name == "flatten" else "pool", shape=lambda x: call(x, *rest, **kwargs))
    return Link("nothing") if name in ("dropout", "contiguous", "clone", "detach") else None


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@dataclass
class Pair:
    """Moments of activation h and change d: means (1, ...) and, of either kind, covariances.

    Diagonal: `hh`, `hd` and `dd` are variances and the covariance of each unit, (1, ...).  Full: matrices (units,
    units), `hd[i, j]` that of h_i and d_j.
    """

    h: Tensor
    d: Tensor
    hh: Tensor
    hd: Tensor
    dd: Tensor
    full: bool

    def affine(self, link: Link, zero: Tensors, one: Tensors) -> "Pair":
        """Return the moments behind an affine step."""
        (w0, b0), (w1, b1) = link.weights(zero), link.weights(one)
        moved, op = w1 - w0, link.apply
        h = link.add(op(w0, self.h), b0)
        d = link.add(op(w1, self.d) + op(moved, self.h), b1 - b0)
        if not self.full:
            return Pair(
                h,
                d,
                op(w0**2, self.hh),
                op(w0 * moved, self.hh) + op(w0 * w1, self.hd),
                op(moved**2, self.hh) + 2 * op(moved * w1, self.hd) + op(w1**2, self.dd),
                False,
            )
        if not isinstance(link.module, nn.Linear):
            raise WorkingPapersError(
                f"full covariances go through linear layers only; {link.name} is a {type(link.module).__name__}"
            )
        cross = moved @ self.hd @ w1.T
        return Pair(
            h,
            d,
            w0 @ self.hh @ w0.T,
            w0 @ self.hh @ moved.T + w0 @ self.hd @ w1.T,
            moved @ self.hh @ moved.T + cross + cross.T + w1 @ self.dd @ w1.T,
            True,
        )

    def gated(self, rate: Tensor) -> "Pair":
        """Return the moments behind gates that are open with the probabilities `rate` (1, ...)."""
        h, d, spread = rate * self.h, rate * self.d, rate * (1 - rate)
        extra = [spread * a * b for a, b in ((self.h, self.h), (self.h, self.d), (self.d, self.d))]
        old = (self.hh, self.hd, self.dd)
        if not self.full:
            hh, hd, dd = (rate * c + e for c, e in zip(old, extra, strict=True))
        else:
            both = rate.T @ rate + torch.diag(spread[0])  # E[m m^T]
            hh, hd, dd = (both * c + torch.diag(e[0]) for c, e in zip(old, extra, strict=True))
        return Pair(h, d, hh, hd, dd, self.full)

    def reshaped(self, link: Link) -> "Pair":
        """Return the moments behind a flattening or a pool of averages."""
        shape: Any = link.shape
        h, d = shape(self.h), shape(self.d)
        if self.full and link.kind == "flatten":
            return Pair(h, d, self.hh, self.hd, self.dd, True)
        if self.full:
            raise WorkingPapersError(
                "full covariances go through linear layers only, and not through pooling"
            )
        area = self.h[0].numel() / h[0].numel()  # of a pool; 1 where nothing is pooled
        return Pair(h, d, shape(self.hh) / area, shape(self.hd) / area, shape(self.dd) / area, False)

    def second(self) -> Tensor:
        """Return E[d d^T] of outputs (units, units)."""
        covariance = self.dd if self.full else torch.diag(self.dd[0])
        return covariance + self.d.T @ self.d
