"""Students of a convolutional teacher: layers left out, layers made smaller, the rest fitted to what comes in.

A teacher is read by torch.fx as a chain of layers, in which residual blocks of two convolutions are one.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import initialise

FIELDS = (
    "out",
    "kernel",
    "mid",
)  # what can be made smaller: channels or features out, kernels, a block's inner ones
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
BEHIND = (
    *BATCH_NORMS,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)  # with activations, these belong to the layer before


@dataclass(frozen=True)
class Part:
    """A layer of a teacher with what belongs to it: norms, activations, dropout.

    `kind` is "conv", "linear", "block", or "other", which is never left out; `scales` has the share of each number
    that a student keeps.
    """

    kind: str
    module: Any
    behind: tuple[nn.Module, ...] = ()
    scales: Mapping[str, float] | None = None


def is_block(module: nn.Module) -> bool:
    """Tell whether a module is a residual block of two convolutions, as of torchvision's ResNet-18."""
    has = {name for name, _ in module.named_children()}
    shortcut = hasattr(module, "shortcut") or hasattr(module, "downsample")
    return {"conv1", "conv2"} <= has and "conv3" not in has and shortcut


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_block(module) or super().is_leaf_module(module, name)


def parts_of(teacher: nn.Module) -> list[Part]:
    """Return the layers of a teacher in the order in which they run.

    Raises:
        WorkingPapersError: where they do not follow one another, or a convolution has groups.
    """
    graph, found = _Tracer().trace(teacher), []
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    for number, node in enumerate(nodes):
        module = _module(teacher, node)
        first = node.all_input_nodes
        if module is None or len(first) != 1 or (number and first[0] is not nodes[number - 1]):
            raise WorkingPapersError(
                f"a teacher is a chain of layers and residual blocks; {node.name!r} of {type(teacher).__name__} is "
                "neither, or does not read the layer before it"
            )
        found.append(module)
    return _grouped(found)


def _module(teacher: nn.Module, node: fx.Node) -> nn.Module | None:
    if node.op == "call_module":
        return teacher.get_submodule(str(node.target))
    flattens = getattr(node.target, "__name__", node.target) == "flatten"
    ahead = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    return nn.Flatten() if flattens and ahead == 1 else None


def _grouped(modules: Sequence[nn.Module]) -> list[Part]:
    parts: list[Part] = []
    for module in modules:
        activation = type(module).__module__ == "torch.nn.modules.activation"
        if isinstance(module, nn.Conv2d):
            if module.groups != 1 or isinstance(module.padding, str):
                raise WorkingPapersError(
                    "a teacher's convolutions have one group and padding given by a number"
                )
            parts.append(Part("conv", module))
        elif isinstance(module, nn.Linear):
            parts.append(Part("linear", module))
        elif is_block(module):
            parts.append(Part("block", module))
        elif (isinstance(module, BEHIND) or activation) and parts and parts[-1].kind != "other":
            parts[-1] = replace(parts[-1], behind=(*parts[-1].behind, module))
        else:
            parts.append(Part("other", module))
    if not parts or parts[-1].kind != "linear":
        raise WorkingPapersError("a teacher ends in a linear layer, which gives the classes")
    return parts


def weighted(parts: Sequence[Part]) -> list[int]:
    """Return the places of the parts that have weights."""
    return [i for i, part in enumerate(parts) if part.kind != "other"]


def projected(block: Any) -> bool:
    """Tell whether a residual block's shortcut has a convolution."""
    shortcut = getattr(block, "shortcut", None) or getattr(block, "downsample", None)
    return shortcut is not None and any(isinstance(m, nn.Conv2d) for m in shortcut.modules())


def fields_of(part: Part) -> list[str]:
    """Return which numbers of a part can be made smaller; blocks without a projection keep their width."""
    if part.kind == "block":
        return ["mid", "out"] if projected(part.module) else ["mid"]
    if part.kind == "conv" and part.module.kernel_size[0] > 1:
        return ["out", "kernel"]
    return ["out"]


def described(part: Part) -> list[float]:
    """Return (type, kernel, stride, padding, channels out, skip start, skip end), each of the order of 1.

    Channels count by their logarithm; of a block its second convolution speaks.
    """
    kind, m = part.kind, part.module
    block = float(kind == "block")
    conv = m.conv2 if block else m if kind == "conv" else None
    out = conv.out_channels if conv else m.out_features
    shape = (
        [conv.kernel_size[0], m.conv1.stride[0] if block else conv.stride[0], conv.padding[0]]
        if conv
        else [0, 0, 0]
    )
    kernel, stride, padding = shape
    size = float(torch.tensor(float(out)).log2()) / 10
    return [
        ("conv", "linear", "block").index(kind) / 2,
        kernel / 7,
        stride / 2,
        padding / 3,
        size,
        block,
        block,
    ]


def scaled(count: int, scale: float, least: int = 10) -> int:
    """Return a share of a count, rounded down, not below `least` (or the count where that is smaller)."""
    return max(int(count * scale + 1e-9), min(least, count))


def _conv(old: nn.Conv2d, width_in: int, width: int, scale: float = 1.0) -> nn.Conv2d:
    kernel = tuple(max(1, int(k * scale + 1e-9)) for k in old.kernel_size)
    padding = []
    pads: Any = old.padding
    for pad, size, now in zip(pads, old.kernel_size, kernel, strict=True):
        same = (
            2 * int(pad) == size - 1
        )  # then the student's convolutions keep the size of maps too, where odd
        padding.append((now - 1) // 2 if same else int(int(pad) * scale + 1e-9))
    rest: Any = {"kernel_size": kernel, "stride": old.stride, "padding": tuple(padding)}
    return nn.Conv2d(width_in, width, bias=old.bias is not None, **rest)


def _again(old: nn.Module, width: int) -> nn.Module:
    if isinstance(old, BATCH_NORMS):
        return type(old)(width, old.eps, old.momentum, old.affine, old.track_running_stats)
    return copy.deepcopy(old)


def _block(old: Any, width_in: int, scales: Mapping[str, float]) -> nn.Module:
    new = copy.deepcopy(old)
    mid = scaled(old.conv1.out_channels, scales.get("mid", 1.0))
    out = scaled(old.conv2.out_channels, scales.get("out", 1.0)) if projected(old) else width_in
    new.conv1, new.conv2 = _conv(old.conv1, width_in, mid), _conv(old.conv2, mid, out)
    for name, child in old.named_children():
        if isinstance(child, BATCH_NORMS):
            setattr(new, name, _again(child, mid if name.endswith("1") else out))
        elif name in ("shortcut", "downsample") and projected(old):
            fitted = [_conv(m, width_in, out) if isinstance(m, nn.Conv2d) else _again(m, out) for m in child]
            setattr(new, name, nn.Sequential(*fitted))
    return new  # type: ignore[no-any-return]


def _layer(part: Part, x: Tensor, last: bool) -> nn.Module:
    scales, old = part.scales or {}, part.module
    scale = 1.0 if last else scales.get("out", 1.0)
    if part.kind == "conv":
        return _conv(old, x.shape[1], scaled(old.out_channels, scale), scales.get("kernel", 1.0))
    if part.kind == "linear":
        return nn.Linear(x.shape[-1], scaled(old.out_features, scale), old.bias is not None)
    return _block(old, x.shape[1], scales) if part.kind == "block" else copy.deepcopy(old)


def student(parts: Sequence[Part], shape: Sequence[int], seed: int = 0) -> nn.Sequential | None:
    """Build a newly initialised student from parts for inputs of `shape` (C, H, W); None where nothing can run.

    Each layer is fitted to what the one before it gives.
    """

    def build() -> nn.Sequential:
        x, modules = torch.zeros(1, *shape), []
        for number, part in enumerate(parts):
            layer = _layer(part, x, number == len(parts) - 1).eval()
            x = layer(x)
            modules += [layer, *(_again(m, x.shape[1]) for m in part.behind)]
        return nn.Sequential(*modules).train()

    try:
        with torch.no_grad():
            return initialise(build, seed)
    except RuntimeError:  # what is left of the image is smaller than a kernel
        return None


def parameters(model: nn.Module) -> int:
    """Return how many parameters a model has."""
    return sum(p.numel() for p in model.parameters())
