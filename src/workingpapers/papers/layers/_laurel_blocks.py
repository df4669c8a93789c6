"""Blocks with a residual connection, taken apart so that another sum can stand in its place."""

from typing import Any

from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import models, transformers

WHOLE = ("EncoderBlock", "GPT2Block", "LlamaDecoderLayer", "MistralDecoderLayer")  # torchvision, Hugging Face


class Stream:
    """The activations that the blocks of one model have seen in the pass going on, newest first.

    Copies and pickles of it are empty: it holds nothing between passes.
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.length = 0

    def __reduce__(self) -> Any:
        return _stream, (self.length,)


def _stream(length: int) -> Stream:
    stream = Stream()
    stream.length = length
    return stream


class ResidualForm(nn.Module):
    """after(sum(shortcut(x), branch(x))) of a block whose plain sum is to be exchanged.

    With `whole` the branch is the block itself, shortcut and all, and what it adds is block(x) - x.
    """

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module, after: nn.Module, dim: int, image: bool, whole: bool
    ) -> None:
        super().__init__()
        self.branch, self.shortcut, self.after = branch, shortcut, after
        self.dim, self.image, self.whole = dim, image, whole


def taken_apart(block: nn.Module) -> ResidualForm:
    """Return the parts of a block: of ResNets ours and torchvision's by name, of others the block as a whole."""
    if isinstance(block, models.ResidualBlock):
        branch = nn.Sequential(block.conv1, block.norm1, block.activation1, block.conv2, block.norm2)
        width = block.conv2.out_channels
        return ResidualForm(branch, block.shortcut, block.activation2, width, True, False)
    if type(block).__name__ in ("BasicBlock", "Bottleneck"):
        parts: Any = block
        layers = [parts.conv1, parts.bn1, parts.relu, parts.conv2, parts.bn2]
        if type(block).__name__ == "Bottleneck":
            layers += [parts.relu, parts.conv3, parts.bn3]
        shortcut = parts.downsample or nn.Identity()
        width = layers[-2].out_channels
        return ResidualForm(nn.Sequential(*layers), shortcut, parts.relu, width, True, False)
    image = any(isinstance(m, nn.Conv2d) for m in block.modules())
    return ResidualForm(block, nn.Identity(), nn.Identity(), _width(block), image, True)


def known(block: nn.Module) -> bool:
    """Tell whether the block is a residual one of a library whose blocks are known here."""
    if isinstance(block, nn.TransformerEncoderLayer):
        return block.norm_first
    ours = isinstance(block, models.ResidualBlock | transformers.Block)
    return ours or type(block).__name__ in (*WHOLE, "BasicBlock", "Bottleneck")


def _width(block: nn.Module) -> int:
    for module in block.modules():
        weight = getattr(module, "weight", None)
        if "Norm" in type(module).__name__ and isinstance(weight, Tensor):
            return weight.numel()
    for module in block.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise WorkingPapersError(
        f"a {type(block).__name__} has no norm, linear layer or convolution that tells its width"
    )


class LaurelBlock(nn.Module):
    """A block whose residual sum is `residual`; the blocks of one model share the activations of a pass."""

    def __init__(self, form: ResidualForm, residual: nn.Module, stream: Stream) -> None:
        super().__init__()
        self.branch, self.shortcut, self.after = form.branch, form.shortcut, form.after
        self.whole, self.stream = form.whole, stream
        self.residual: Any = residual
        self.index = stream.length
        stream.length += 1

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Return the block's output; of a tuple, as Hugging Face gives it, the first is the activation."""
        out = self.branch(x, *args, **options)
        fx, rest = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
        x = self.shortcut(x)
        earlier = self.stream.values if self.index else []
        y = self.after(
            self.residual(x, fx - x if self.whole else fx, [e for e in earlier if e.shape == x.shape])
        )
        last = self.index == self.stream.length - 1
        self.stream.values = [] if last else [x, *earlier][: self.residual.k - 1]
        return y if rest is None else (y, *rest)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("branch"), name)  # libraries look at their blocks' attributes
