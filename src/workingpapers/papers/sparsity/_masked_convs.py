"""Convolutions with a predictor of which filters fire for an image: masked, or computing only those filters."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown

DEAD = 1e-5  # a response, or the numerical slack of a sum of shares, as in the authors' code
MODES, CRITERIA, INITS = ("decoupled", "joint"), ("mass", "uniform"), ("random", "ones")

Record = tuple[Tensor, Tensor]  # logits (N, C) and which filters to keep (N, C), bool


def responses(out: Tensor) -> Tensor:
    """Return each filter's largest absolute value over the positions: (N, C, H, W) -> (N, C)."""
    return out.detach().abs().amax((2, 3))


def fired_together(s: Tensor, mass: float = 0.9, criterion: str = "mass") -> Tensor:
    """Return which filters to keep from their responses (N, C), as bool.

    Args:
        s: responses, not negative.
        mass: "mass" keeps the strongest filters as long as their shares of an example's total add up to at most
            this; 1 keeps all whose share is above 1e-5.  "uniform" keeps this share of the filters, less those with
            responses up to 1e-5.
        criterion: which of the two.
    """
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    if criterion == "uniform":
        rank = s.argsort(1, descending=True).argsort(1)
        return (rank < s.shape[1] - int((1 - mass) * s.shape[1])) & (s > DEAD)
    shares = s / s.sum(1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
    if mass == 1:
        return shares > DEAD
    ordered, order = shares.sort(1, descending=True)
    kept = ordered.cumsum(1) - mass <= DEAD
    return torch.zeros_like(kept).scatter(1, order, kept)


class Predictor(nn.Module):
    """From a layer's input, pooled, a logit for each of its filters: (N, C, H, W) -> (N, D).

    Args:
        inputs, outputs: channels C and filters D.
        features: about how many pooled values to read; None is one for each channel.
        softmax: over the pooled values, as in the authors' code.
    """

    def __init__(self, inputs: int, outputs: int, features: int | None = None, softmax: bool = True) -> None:
        super().__init__()
        self.side = 1 if features is None else max(1, round(math.sqrt(features / inputs)))
        self.softmax = softmax
        self.read = nn.Linear(inputs * self.side**2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        pooled = F.adaptive_avg_pool2d(x, self.side).flatten(1)
        logits: Tensor = self.read(pooled.softmax(1) if self.softmax else pooled)
        return logits

    def extra_repr(self) -> str:
        """Name the options."""
        return f"side={self.side}, softmax={self.softmax}"


class ConvWithMask(nn.Module):
    """A convolution and its norm whose filters are kept or set to zero image by image, as the predictor says.

    No gradient passes through the mask: it is 0 or 1, and in the authors' code computed without gradients.

    Args:
        conv, norm: as they stood in the model; norm may be nn.Identity.
        activation: without parameters, what the model applies next; the targets look at its values.
        predictor: logits (N, D) of the layer's input; a filter runs where its logit is above 0.
        mass, criterion: of the targets, see `fired_together`.
        mode: "decoupled" hides the predictor's gradient from the layers before, "joint" lets it through.
        source: name of the layer whose filters are the input channels, or None; for counting.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.Module,
        activation: nn.Module,
        predictor: nn.Module,
        mass: float = 0.9,
        criterion: str = "mass",
        mode: str = "decoupled",
        source: str | None = None,
    ) -> None:
        super().__init__()
        self.conv, self.norm, self.activation, self.predictor = conv, norm, activation, predictor
        self.mass, self.criterion, self.mode, self.source = mass, criterion, mode, source
        self.records: list[Record] | None = None

    def logits(self, x: Tensor) -> Tensor:
        """Return the predictor's logits (N, D)."""
        found: Tensor = self.predictor(x.detach() if self.mode == "decoupled" else x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised filters, (N, D, H, W), zero where the mask is."""
        logits, out = self.logits(x), self.norm(self.conv(x))
        if self.records is not None:
            wanted = fired_together(responses(self.activation(out)), self.mass, self.criterion)
            self.records.append((logits, wanted))
        masked: Tensor = out * (logits > 0).to(out.dtype)[..., None, None]
        return masked

    def extra_repr(self) -> str:
        """Name the options."""
        return f"mass={self.mass:g}, {self.criterion}, {self.mode}"


class SkippingConv(ConvWithMask):
    """The same for inference, where filters that the mask drops and input channels of zeros are left out.

    Images with equal masks go together; where masks differ much, so do all images, with every filter that one of
    them needs.  Convolutions in groups, but not depthwise, are computed whole.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return what `ConvWithMask` gives."""
        whole = self.conv.groups not in (1, self.conv.in_channels)
        if self.training or self.records is not None or torch.is_grad_enabled() or whole or not len(x):
            return super().forward(x)
        masks = self.logits(x) > 0
        distinct, group = masks.unique(dim=0, return_inverse=True)
        if len(distinct) == 1:
            return self._some(x, distinct[0])
        if len(distinct) > len(x) // 4:
            return self._some(x, masks.any(0)) * masks.to(x.dtype)[..., None, None]
        parts = [group == i for i in range(len(distinct))]
        found = [self._some(x[part], mask) for part, mask in zip(parts, distinct, strict=True)]
        out = found[0].new_empty(len(x), *found[0].shape[1:])
        for part, values in zip(parts, found, strict=True):
            out[part] = values
        return out

    def _some(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the filters of `mask` (D,) for all images, zeros for the others."""
        conv, kept = self.conv, mask.nonzero().flatten()
        bias = None if conv.bias is None else conv.bias[kept]
        weight, groups = conv.weight[kept], 1
        if conv.groups == 1:
            alive = x.abs().amax((0, 2, 3)).nonzero().flatten()
            if len(alive) < x.shape[1]:
                x, weight = x[:, alive], weight[:, alive]
        else:
            each = conv.out_channels // conv.groups
            x, groups = x[:, kept // each], len(kept)
        height, width = self._size(x)
        out = x.new_zeros(len(x), conv.out_channels, height, width)
        if not len(kept):
            return out
        if not x.shape[1]:
            some = out[:, kept] if bias is None else out[:, kept] + bias[:, None, None]
        elif conv.padding_mode == "zeros":
            some = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, groups)
        else:
            x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
            some = F.conv2d(x, weight, bias, conv.stride, 0, conv.dilation, groups)
        return out.index_copy(1, kept, self._normalised(some, kept))

    def _size(self, x: Tensor) -> list[int]:
        conv = self.conv
        if conv.padding == "same":
            return list(x.shape[2:])
        around = (0, 0) if isinstance(conv.padding, str) else conv.padding
        sizes = zip(x.shape[2:], around, conv.kernel_size, conv.stride, conv.dilation, strict=True)
        return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, k, s, d in sizes]

    def _normalised(self, some: Tensor, kept: Tensor) -> Tensor:
        """Apply the norm to some filters only."""
        norm = self.norm
        if isinstance(norm, nn.Identity):
            return some
        if type(norm) is not nn.BatchNorm2d or norm.running_mean is None or norm.running_var is None:
            full = some.new_zeros(len(some), self.conv.out_channels, *some.shape[2:])
            out: Tensor = norm(full.index_copy(1, kept, some))[:, kept]
            return out
        weight, bias = (None if p is None else p[kept] for p in (norm.weight, norm.bias))
        mean, var = norm.running_mean[kept], norm.running_var[kept]
        return F.batch_norm(some, mean, var, weight, bias, eps=norm.eps)


def masked_convs(model: nn.Module) -> dict[str, ConvWithMask]:
    """Return the masked convolutions of a model by name.

    Raises:
        WorkingPapersError: where it has none.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, ConvWithMask)}
    if not found:
        raise WorkingPapersError(
            f"{type(model).__name__} has no masked convolutions; put them in with ftwt first"
        )
    return found


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, list[Record]]]:
    """Note the logits and the targets of every masked convolution in the runs inside, one pair a run."""
    layers = masked_convs(model)
    found: dict[str, list[Record]] = {name: [] for name in layers}
    try:
        for name, layer in layers.items():
            layer.records = found[name]
        yield found
    finally:
        for layer in layers.values():
            layer.records = None
