"""Products that touch only the rows of a weight that are asked for: decoding with sparse activations.

    weighted_rows(v, W)_b  = sum_i v_bi W_i                            over i with |v_bi| >= threshold
    gated_rows(a, U, W, x) = sum_i a_bi (U_i . x_b + bias_i) W_i       over i with |a_bi| >= threshold

Row i of U and W belongs to neuron i and is one contiguous read.  A few vectors at a time (batch 1 to 8): what
no vector of the batch asks for is not read.  float32 and bfloat16 weights on CPUs (C++), half precision and
int8 on GPUs (Triton); everything else, and what autograd or a compiler looks at, goes through the plain forms
beside them.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from workingpapers.kernels.breakeven import Costs, costs
from workingpapers.kernels.native import library

MOST = 8  # vectors; with more, their union leaves little to skip
HALF = (torch.float16, torch.bfloat16)
SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}


def weighted_rows_plain(v: Tensor, weight: Tensor, threshold: float = 0.0) -> Tensor:
    """Return `weighted_rows` by a product with all rows."""
    return kept(v, threshold) @ weight


def gated_rows_plain(
    a: Tensor, up: Tensor, down: Tensor, x: Tensor, threshold: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """Return `gated_rows` by products with all rows."""
    return (torch.nn.functional.linear(x, up, bias) * kept(a, threshold)) @ down


def kept(values: Tensor, threshold: float | Tensor) -> Tensor:
    """Return the values with all of a size below the threshold set to 0; NaN stays."""
    return torch.where(
        values.abs() < threshold, torch.zeros((), dtype=values.dtype, device=values.device), values
    )


def weighted_rows(v: Tensor, weight: Tensor, threshold: float = 0.0) -> Tensor:
    """Sum the rows of a weight, weighted, without reading those whose weights are all small.

    Args:
        v: weights of the rows, (..., neurons).
        weight: (neurons, width).
        threshold: entries of `v` of a smaller size count as 0.

    Returns:
        (..., width).
    """
    found = skipped_rows(v, weight, threshold)
    return weighted_rows_plain(v, weight, threshold) if found is None else found


def gated_rows(
    a: Tensor, up: Tensor, down: Tensor, x: Tensor, threshold: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """Finish a gated feed-forward layer whose gate is known, without reading the rows of neurons that are
    off.

    Args:
        a: the gate after its activation, (..., neurons).
        up: weight of the other branch, (neurons, in).
        down: weight of the down projection, a row a neuron: (neurons, out).
        x: the layer's input, (..., in).
        threshold: entries of `a` of a smaller size count as 0.
        bias: of the other branch, (neurons,).

    Returns:
        (..., out), without the down projection's bias.
    """
    found = skipped_gated_rows(a, up, down, x, threshold, bias)
    return gated_rows_plain(a, up, down, x, threshold, bias) if found is None else found


def skipped_rows(v: Tensor, weight: Tensor, threshold: float = 0.0) -> Tensor | None:
    """Return `weighted_rows`, or None where no kernel takes these tensors or the dense product is faster."""
    if _on_gpu((v, weight)):
        from workingpapers.kernels.rows_triton import rows

        return rows(v.reshape(-1, v.shape[-1]), weight, threshold).view(*v.shape[:-1], weight.shape[1])
    active = _active((v, weight), threshold)
    return None if active is None else active.sums(weight)


def skipped_gated_rows(
    a: Tensor, up: Tensor, down: Tensor, x: Tensor, threshold: float = 0.0, bias: Tensor | None = None
) -> Tensor | None:
    """Return `gated_rows`, or None where no kernel takes these tensors or the dense product is the faster one."""
    tensors = (a, up, down, x) if bias is None else (a, up, down, x, bias)
    if _on_gpu(tensors):
        from workingpapers.kernels.rows_triton import rows

        vectors = x.reshape(-1, x.shape[-1])
        found = rows(a.reshape(-1, a.shape[-1]), down, threshold, up, vectors, bias)
        return found.view(*a.shape[:-1], down.shape[1])
    active = _active(tensors, threshold)
    return None if active is None else active.gated(up, down, x, bias)


def _active(tensors: Sequence[Tensor], threshold: float) -> "_Active | None":
    """Return what is left of the first of the tensors where skipping the rest pays, else None."""
    fits = tensors[0].device.type == "cpu" and tensors[0].dtype in SUFFIX and _few(tensors)
    made = library("rows") if fits else None
    if made is None:
        return None
    found = _Active(made, tensors[0], threshold)
    entries = sum(t.numel() for t in tensors[1:3] if t.ndim == 2 and len(t) == found.neurons)
    pays = _costs(found.dtype, torch.get_num_threads()).pays(found.count / found.neurons, entries)
    return found if pays else None


@cache
def _costs(dtype: torch.dtype, threads: int) -> Costs:
    def skipping(shape: tuple[int, int], share: float) -> Callable[[], object]:
        weight, v = torch.randn(shape).to(dtype), torch.randn(1, shape[0]).to(dtype)
        v[:, torch.randperm(shape[0])[round(share * shape[0]) :]] = 0
        return lambda: _Active(made, v, 0.0).sums(weight)

    def dense(shape: tuple[int, int], share: float) -> Callable[[], object]:
        weight, v = torch.randn(shape).to(dtype), torch.randn(1, shape[0]).to(dtype)
        return lambda: weighted_rows_plain(v, weight)

    made: Any = library("rows")
    with torch.random.fork_rng(devices=[]):
        return costs(f"cpu {SUFFIX[dtype]} {threads} threads", skipping, dense)


def _on_gpu(tensors: Sequence[Tensor]) -> bool:
    """Tell whether Triton is to do it, which masks rows that are off and does not wait for their number."""
    return (
        tensors[0].is_cuda and tensors[0].dtype in HALF and find_spec("triton") is not None and _few(tensors)
    )


def _few(tensors: Sequence[Tensor]) -> bool:
    """Tell whether these are few plain vectors, with weights, that nothing else looks at."""
    v = tensors[0]
    return (
        0 < v.numel() <= MOST * v.shape[-1]
        and not torch.compiler.is_compiling()
        and all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
        and all(t.dtype == v.dtype and t.device == v.device for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and not torch._C._are_functorch_transforms_active()
    )


class _Active:
    """What is left of vectors (..., neurons) above a threshold, in float32, and the neurons that any keeps."""

    def __init__(self, made: ctypes.CDLL, v: Tensor, threshold: float) -> None:
        self.made, self.dtype, self.neurons = made, v.dtype, v.shape[-1]
        self.shape = v.shape[:-1]
        self.values = torch.empty(v.shape, dtype=torch.float32).copy_(v).view(-1, self.neurons)
        self.index = torch.empty(self.neurons, dtype=torch.int64)
        self.batch = len(self.values)
        made.active.restype = ctypes.c_long
        self.count = made.active(
            _at(self.values),
            _long(self.batch),
            _long(self.neurons),
            ctypes.c_float(threshold),
            _at(self.index),
        )

    def sums(self, weight: Tensor) -> Tensor:
        """Return the weighted sum of the rows that are left, (..., width)."""
        weight, width = weight.contiguous(), weight.shape[1]
        out = torch.empty(self.batch, width)
        self._call("sums")(
            _at(weight),
            _at(self.index),
            _long(self.count),
            _at(self.values),
            _long(self.neurons),
            _at(out),
            _long(self.batch),
            _long(width),
            torch.get_num_threads(),
        )
        return out.to(self.dtype).view(*self.shape, width)

    def gated(self, up: Tensor, down: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the sum of the rows of `down` that are left, weighted by what is left times up x + bias."""
        up, down = up.contiguous(), down.contiguous()
        into, width = up.shape[1], down.shape[1]
        vectors = x.reshape(-1, into).float().contiguous()
        offset = None if bias is None else bias.float().contiguous()
        out = torch.empty(self.batch, width)
        self._call("gated")(
            _at(up),
            None if offset is None else _at(offset),
            _at(down),
            _at(self.index),
            _long(self.count),
            _at(self.values),
            _long(self.neurons),
            _at(vectors),
            _at(out),
            _long(self.batch),
            _long(into),
            _long(width),
            torch.get_num_threads(),
        )
        return out.to(self.dtype).view(*self.shape, width)

    def _call(self, name: str) -> Any:
        found = getattr(self.made, f"{name}_{SUFFIX[self.dtype]}")
        found.restype = None
        return found


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


_long = ctypes.c_long
