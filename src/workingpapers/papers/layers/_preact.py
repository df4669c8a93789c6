"""The residual unit in every order and with every shortcut, conversion to it, and what signals do along units."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Finding
from workingpapers.surgery import note_changes

ORDERS = ("full_preact", "original", "bn_after_add", "relu_before_add", "relu_only_preact")
SHORTCUTS = ("identity", "scale", "exclusive_gate", "shortcut_gate", "conv", "dropout")


class PreactUnit(nn.Module):
    """A residual unit (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride).

    Args:
        in_channels, out_channels, stride: where they change the shape, the shortcut is a 1x1 convolution.
        bottleneck: a 1x1, a 3x3 and a 1x1 convolution, of out_channels / 4 channels inside, not two 3x3 ones.
        order: "full_preact" is BN, ReLU, convolution throughout; "relu_only_preact" ReLU, convolution, BN;
            "original", "bn_after_add" and "relu_before_add" begin with the convolution and end as named.
        shortcut: "identity"; "scale", that and the branch halved; "exclusive_gate", (1 - g) of it and g of the
            branch, g the sigmoid of a 1x1 convolution of x; "shortcut_gate", (1 - g) of it; "conv", a 1x1
            convolution; "dropout", half of it dropped in training.
        gate_bias: of the gates at the start; the paper finds about -6 best.
        shared: the shortcut reads the first activation, not x; by default where the shape changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        bottleneck: bool = False,
        order: str = "full_preact",
        shortcut: str = "identity",
        gate_bias: float = -6.0,
        shared: bool | None = None,
    ) -> None:
        super().__init__()
        for what, name, valid in (("order", order, ORDERS), ("shortcut", shortcut, SHORTCUTS)):
            if name not in valid:
                raise unknown(f"{what} of a residual unit", name, valid)
        if bottleneck and out_channels % 4:
            raise WorkingPapersError(f"a bottleneck puts out a multiple of 4 channels; got {out_channels}")
        self.order, self.kind, self.gate_bias = order, shortcut, gate_bias
        projects = stride != 1 or in_channels != out_channels
        self.shared = order in ("full_preact", "relu_only_preact") and (
            projects if shared is None else shared
        )
        inner = out_channels // 4
        shapes = [(in_channels, out_channels, 3, stride), (out_channels, out_channels, 3, 1)]
        if bottleneck:
            shapes = [(in_channels, inner, 1, stride), (inner, inner, 3, 1), (inner, out_channels, 1, 1)]
        self.count = len(shapes)
        for i, (c_in, c_out, size, s) in enumerate(shapes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(c_in, c_out, size, s, size // 2, bias=False))
            setattr(self, f"norm{i}", nn.BatchNorm2d(c_in if order == "full_preact" else c_out))
            setattr(self, f"act{i}", nn.ReLU())
        self.shortcut: nn.Module = nn.Identity()
        if projects or shortcut == "conv":
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.gate = nn.Conv2d(in_channels, out_channels, 1, stride) if shortcut.endswith("gate") else None
        if self.gate is not None:
            nn.init.constant_(self.gate.bias, gate_bias)  # type: ignore[arg-type]

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the shortcut and what the branch add to the sum."""
        y, skip = x, x
        for i in range(1, self.count + 1):
            conv, norm, act = (getattr(self, f"{part}{i}") for part in ("conv", "norm", "act"))
            last = i == self.count
            if self.order in ("full_preact", "relu_only_preact"):
                y = act(norm(y)) if self.order == "full_preact" else act(y)
                skip = y if self.shared and i == 1 else skip
                y = conv(y) if self.order == "full_preact" else norm(conv(y))
                continue
            y = conv(y)
            y = y if last and self.order == "bn_after_add" else norm(y)
            y = y if last and self.order != "relu_before_add" else act(y)
        skip = self.shortcut(skip)
        if self.gate is not None:
            gate = torch.sigmoid(self.gate(x))
            return (1 - gate) * skip, gate * y if self.kind == "exclusive_gate" else y
        if self.kind == "scale":
            return 0.5 * skip, 0.5 * y
        return F.dropout(skip, 0.5, self.training and self.kind == "dropout"), y

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of shortcut and branch, behind what the order puts there."""
        skip, branch = self.parts(x)
        out = skip + branch
        last_norm, last_act = getattr(self, f"norm{self.count}"), getattr(self, f"act{self.count}")
        if self.order == "bn_after_add":
            out = last_norm(out)
        return last_act(out) if self.order in ("original", "bn_after_add") else out

    def extra_repr(self) -> str:
        """Show the order, the shortcut and where it begins."""
        return f"order={self.order}, shortcut={self.kind}, gate_bias={self.gate_bias}, shared={self.shared}"


def preactivate(model: nn.Module) -> nn.Module:
    """Return a copy of a residual network of the original order whose blocks are pre-activation units.

    Blocks are known by their convolutions conv1, conv2 and so on and the norms bn1 or norm1 and so on, as
    torchvision's have them.  Convolutions and the norms between them are kept, the first norm of each unit is
    new and the last is dropped: train on or anew.  The stem's norm and activation stay, in place of those of
    the first unit, and the last unit is followed by a norm and an activation.

    Raises:
        WorkingPapersError: where no block is found.
    """
    net = copy.deepcopy(model)
    blocks = [(name, m) for name, m in net.named_modules() if _is_original(m)]
    if not blocks:
        if any(isinstance(m, PreactUnit) for m in net.modules()):
            return net
        raise WorkingPapersError(
            f"{type(model).__name__} has no residual block with conv1, bn1, conv2 and bn2"
        )
    done: dict[nn.Module, nn.Module] = {}
    for number, (_, block) in enumerate(blocks):
        done[block] = unit = _unit(block)
        if not number:
            unit.norm1, unit.act1 = nn.Identity(), nn.Identity()
    last = blocks[-1][1]
    width = _convs(last)[-1].out_channels
    end = [nn.BatchNorm2d(width).to(_convs(last)[0].weight), copy.deepcopy(_activation(last))]
    done[last] = nn.Sequential(done[last], *end).train(last.training)
    for parent in list(net.modules()):
        for child, part in parent._modules.items():
            if part in done:
                parent._modules[child] = done[part]
    sentences = [f"The block {name} has its activations before its convolutions now." for name, _ in blocks]
    result: nn.Module = note_changes(done.get(net, net), sentences)
    return result


def _convs(block: nn.Module) -> list[nn.Conv2d]:
    found = [getattr(block, f"conv{i}", None) for i in (1, 2, 3)]
    return [conv for conv in found if isinstance(conv, nn.Conv2d)]


def _norms(block: nn.Module) -> list[nn.Module]:
    found = [getattr(block, f"bn{i}", getattr(block, f"norm{i}", None)) for i in (1, 2, 3)]
    return [norm for norm in found if isinstance(norm, nn.BatchNorm2d)]


def _is_original(module: nn.Module) -> bool:
    if isinstance(module, PreactUnit):
        return False
    return len(_convs(module)) >= 2 and len(_convs(module)) == len(_norms(module))


def _activation(block: nn.Module) -> nn.Module:
    activations = (m for m in block.modules() if type(m).__module__ == "torch.nn.modules.activation")
    return next(activations, nn.ReLU())


def _unit(block: nn.Module) -> PreactUnit:
    """Build the unit around the convolutions of a block."""
    convs, norms = _convs(block), _norms(block)
    old = getattr(block, "downsample", getattr(block, "shortcut", None))
    kept = [] if old is None else [m for m in old.modules() if not any(m.children())]
    shortcut = [m for m in kept if not isinstance(m, nn.BatchNorm2d | nn.Identity)]
    unit = PreactUnit(4, 4, bottleneck=len(convs) == 3, shared=bool(shortcut))
    norms = [nn.BatchNorm2d(convs[0].in_channels).to(convs[0].weight), *norms[:-1]]
    for i, (conv, norm) in enumerate(zip(convs, norms, strict=True), 1):
        setattr(unit, f"conv{i}", conv)
        setattr(unit, f"norm{i}", norm)
        setattr(unit, f"act{i}", copy.deepcopy(_activation(block)))
    unit.shortcut = nn.Sequential(*shortcut) if shortcut else nn.Identity()
    return unit.train(block.training)


def signal_report(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
) -> Finding:
    """Return how large the gradient of the loss is at each `PreactUnit`, and what each branch adds to its input.

    In evaluation mode, with the statistics of batch normalisation taken from `x`, on a copy of the model.  The
    numbers are the norm of the gradient by each unit's input, "0 gradient" and so on, and the norm of the branch
    over that of the input, "0 contribution".

    Raises:
        WorkingPapersError: where the model has no such unit.
    """
    net = copy.deepcopy(model)
    units = [m for m in net.modules() if isinstance(m, PreactUnit)]
    if not units:
        raise WorkingPapersError(
            f"{type(model).__name__} has no PreactUnit; `preactivate` converts residual nets"
        )
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, here over one
    with torch.no_grad():
        net.train()(x)
    inputs: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        arrived = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        inputs.append(arrived)
        return (arrived,)

    for unit in units:
        unit.register_forward_pre_hook(keep)
    gradients = torch.autograd.grad(loss(net.eval()(x), y), inputs)
    numbers = {f"{i} gradient": float(g.norm()) for i, g in enumerate(gradients)}
    for unit in units:
        unit._forward_pre_hooks.clear()
    with torch.no_grad():
        for i, (unit, arrived) in enumerate(zip(units, inputs, strict=True)):
            numbers[f"{i} contribution"] = float(unit.parts(arrived)[1].norm() / arrived.norm())
    ratio = numbers["0 gradient"] / max(numbers[f"{len(units) - 1} gradient"], 1e-300)
    reading = f"The gradient at the first of {len(units)} units is {ratio:.3g} times that at the last."
    return Finding(numbers, reading)
