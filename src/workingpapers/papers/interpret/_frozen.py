"""Decisions of nonlinear functions, noted in one run of a model and held fast in others.

Every call that torch makes is seen by its name, whether a module, a function or a method asks for it.  A nonlinear
one is answered, in a later run, by what is affine in its input with the decisions of the first run:

    gain        y = (f(u) - f(0)) / u * v + f(0), and f'(0) for the quotient at 0     activations, clamp, abs
    choice      the entries that were chosen                                          maxima, max-pooling, where
    gate        the value, whatever comes in                           sigmoid, softmax, comparisons
    statistics  (v - mean(u)) / std(u) * weight + bias                 instance, group, layer and RMS norm
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.activations import call_named

Answer = Callable[..., Any]  # takes the new call's arguments and gives its result
Freeze = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], tuple[Any, Answer]]

GATES = {
    "sigmoid", "hardsigmoid", "softmax", "softmin", "sign", "sgn", "heaviside",
    "gt", "ge", "lt", "le", "__gt__", "__ge__", "__lt__", "__le__",
}  # fmt: skip
BOUNDED = {"clamp", "clip", "clamp_min", "clamp_max", "abs", "absolute", "_threshold"}
AFFINE = {"linear", "batch_norm"} | {f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)}
POOLS = {f"{a}max_pool{n}d{b}" for a in ("", "adaptive_") for n in (1, 2, 3) for b in ("", "_with_indices")}


def name_of(func: Any) -> str:
    """Return the name of a function that torch calls, without the underscore of one in place."""
    name: str = getattr(func, "__name__", "")
    return name if name.startswith("__") else name.rstrip("_")


def first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first input of a call."""
    return args[0] if args else kwargs.get("input")


def freezer(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Freeze | None:
    """Return what freezes this call; None where it is affine or of a kind that is unknown."""
    name = name_of(func)
    if name in GATES:
        return _gate
    if name in POOLS:
        return _pool
    if name == "batch_norm":
        return _statistics if _own_statistics(func, args, kwargs) else None
    return _OTHERS.get(name) or (_gain if name in BOUNDED or call_named(func, args, kwargs) else None)


def _gate(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Answer]:
    value = func(*args, **kwargs)
    kept = value.detach().clone()
    return value, lambda *_, **__: kept


def _gain(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Answer]:
    x = first(args, kwargs)
    u = x.detach().clone()  # the call may work in place
    rest = {k: v for k, v in kwargs.items() if k != "input"}
    with torch.enable_grad():
        zero = torch.zeros_like(u, requires_grad=True)
        at_zero = func(zero.clone(), *args[1:], **rest)
        (slope,) = torch.autograd.grad(at_zero.sum(), zero)
    offset = at_zero.detach()
    value = func(*args, **kwargs)
    near = u.abs() < torch.where(offset == 0, 1e-30, 1e-4)  # a difference of near numbers is no slope
    gain = torch.where(near, slope, (value.detach() - offset) / torch.where(near, 1, u))
    plain = not bool(offset.any())
    return value, lambda *a, **k: first(a, k) * gain if plain else first(a, k) * gain + offset


def _pool(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Answer]:
    value = func(*args, **kwargs)
    name = name_of(func).removesuffix("_with_indices")
    parameters = {k: v for k, v in kwargs.items() if k != "return_indices"}
    places = getattr(F, name)(
        *args[: 2 if name.startswith("adaptive") else 6], **parameters, return_indices=True
    )[1]
    dims = int(name[-2])

    def answer(*a: Any, **k: Any) -> Any:
        v = first(a, k)
        flat = v.flatten(-dims)
        index = places.expand(*flat.shape[:-1], *places.shape[-dims:])
        found = flat.gather(-1, index.flatten(-dims)).reshape(index.shape)
        return (found, index) if isinstance(value, tuple) else found

    return value, answer


def _largest(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Answer]:
    """Freeze max and min: over dimensions, of everything, or of two tensors."""
    value = func(*args, **kwargs)
    u, other = first(args, kwargs), args[1] if len(args) > 1 else kwargs.get("other")
    if isinstance(other, Tensor):
        ours = value == u
        return value, lambda a, b: torch.where(ours, a, b)
    dim, keep = (
        args[1] if len(args) > 1 else kwargs.get("dim"),
        args[2] if len(args) > 2 else kwargs.get("keepdim", False),
    )
    dims = tuple(range(u.ndim)) if dim is None or dim == () else dim
    best = u.amax(dims, keepdim=True) if "max" in name_of(func) else u.amin(dims, keepdim=True)
    share = (u == best).to(u)  # equal ones share the choice
    share /= share.sum(dims, keepdim=True)

    def answer(*a: Any, **k: Any) -> Any:
        found = (first(a, k) * share).sum(dims, keepdim=keep and dim is not None)
        return found if isinstance(value, Tensor) else type(value)((found, value.indices))

    return value, answer


def _where(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Answer]:
    condition = args[0].clone()
    return func(*args, **kwargs), lambda _, a, b: torch.where(condition, a, b)


def _log_softmax(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Answer]:
    value = func(*args, **kwargs)
    shift = (first(args, kwargs) - value).detach()
    return value, lambda *a, **k: first(a, k) - shift


def _attention(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Answer]:
    value = func(*args, **kwargs)
    query, key, v = args[:3]
    eye = torch.eye(v.shape[-2], dtype=v.dtype, device=v.device).expand(*v.shape[:-2], -1, -1)
    weights = func(query, key, eye, *args[3:], **kwargs).detach()  # what it makes of one-hot values
    return value, lambda _, __, v, *a, **k: weights @ v


def _heads(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Answer]:
    """Freeze the weights of nn.MultiheadAttention, inputs (T, N, D)."""
    value = func(*args, **kwargs)
    given = _named(func, args, kwargs)
    extra = given["bias_k"] is not None or given["add_zero_attn"]
    if given["query"].ndim != 3 or extra or given["use_separate_proj_weight"]:
        raise WorkingPapersError(
            "a linear interpreter takes nn.MultiheadAttention of batches, with one width and no keys of its own"
        )
    more = {"need_weights": True, "average_attn_weights": False}
    weights = func(**{**given, **more})[1].detach()  # (N, heads, T, S)
    width, projected = given["embed_dim_to_check"], given["in_proj_weight"]
    bias = given["in_proj_bias"]

    def answer(*a: Any, **k: Any) -> Any:
        new = _named(func, a, k)["value"]
        v = F.linear(new, projected[2 * width :], None if bias is None else bias[2 * width :])
        split = v.unflatten(2, (weights.shape[1], -1)).permute(1, 2, 0, 3)  # (N, heads, S, D / heads)
        mixed = (weights @ split).permute(2, 0, 1, 3).flatten(2)
        return F.linear(mixed, given["out_proj_weight"], given["out_proj_bias"]), value[1]

    return value, answer


def _glu(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Answer]:
    value = func(*args, **kwargs)
    dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    gate = torch.sigmoid(first(args, kwargs).chunk(2, dim)[1]).detach()
    return value, lambda *a, **k: first(a, k).chunk(2, dim)[0] * gate


def _named(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name; empty for a function whose signature is not known."""
    try:
        bound = inspect.signature(getattr(F, name_of(func))).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {}
    bound.apply_defaults()
    return dict(bound.arguments)


def _own_statistics(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    given = _named(func, args, kwargs)
    return bool(given.get("training", given.get("use_input_stats", bool(given))))


def _statistics(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Answer]:
    value = func(*args, **kwargs)
    if not _own_statistics(func, args, kwargs):
        return value, func
    given, name = _named(func, args, kwargs), name_of(func)
    u, weight, bias, eps = given["input"].detach(), given["weight"], given.get("bias"), given["eps"]
    if name in ("layer_norm", "rms_norm"):
        dims = tuple(range(-len(given["normalized_shape"]), 0))
        eps = torch.finfo(u.dtype).eps if eps is None else eps
        mean, scale = _moments(u, dims, eps, centred=name == "layer_norm")
    else:
        groups = given.get("num_groups", u.shape[1])
        grouped = u.reshape(u.shape[0], groups, -1)
        mean, scale = _moments(grouped, (0, 2) if name == "batch_norm" else (2,), eps, True)
        ones = [1] * (u.ndim - 2)
        mean, scale, weight, bias = (
            None
            if t is None
            else t.repeat_interleave(u.shape[1] // t.shape[-2], -2).reshape(-1, u.shape[1], *ones)
            for t in (mean, scale, *(None if t is None else t[:, None] for t in (weight, bias)))
        )

    def answer(*a: Any, **k: Any) -> Any:
        y = (first(a, k) - mean) * scale
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    return value, answer


def _moments(u: Tensor, dims: tuple[int, ...], eps: float, centred: bool) -> tuple[Any, Any]:
    mean = u.mean(dims, keepdim=True) if centred else u.new_zeros(())
    return mean, ((u - mean).square().mean(dims, keepdim=True) + eps).rsqrt()


_OTHERS: dict[str, Freeze] = {
    **dict.fromkeys(("max", "min", "amax", "amin", "maximum", "minimum", "fmax", "fmin"), _largest),
    **dict.fromkeys(("layer_norm", "rms_norm", "instance_norm", "group_norm"), _statistics),
    "where": _where,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _heads,
    "glu": _glu,
    "log_softmax": _log_softmax,
}
# answered calls that add nothing of their own
WITHOUT_CONSTANT = (
    GATES
    | POOLS
    | {name for name, how in _OTHERS.items() if how in (_largest, _where, _attention, _heads, _glu)}
)
