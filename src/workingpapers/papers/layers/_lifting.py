"""A fixed random lift that is known by its seed, and where in a model the feed-forward blocks are."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RandomLift(nn.Module):
    """A fixed Gaussian map (..., d_x) -> (..., d_z), variance 1 / d_x, of which only the seed is saved."""

    weight: Tensor
    seed: Tensor

    def __init__(self, d_x: int, d_z: int, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("seed", torch.tensor(seed))
        self.register_buffer("weight", gaussian(d_x, d_z, seed), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return W_in x."""
        out: Tensor = F.linear(x, self.weight)
        return out

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        d_z, d_x = self.weight.shape
        self.weight.copy_(gaussian(d_x, d_z, int(self.seed)))

    def extra_repr(self) -> str:
        d_z, d_x = self.weight.shape
        return f"{d_x}, {d_z}, seed={int(self.seed)}"


def gaussian(d_x: int, d_z: int, seed: int) -> Tensor:
    """Return W_in (d_z, d_x)."""
    drawn: Tensor = torch.randn(d_z, d_x, generator=torch.Generator().manual_seed(seed)) * d_x**-0.5
    return drawn


def _is_ffn(module: nn.Module) -> bool:
    """Tell whether a module is linear - activation - linear, from some width through a larger one and back."""
    ends = [m for m in module.children() if isinstance(m, nn.Linear)]
    if not isinstance(module, nn.Sequential) or len(ends) != 2 or len(module) > 5:
        return False
    up, down = ends
    return up.in_features == down.out_features and up.out_features == down.in_features > up.in_features


def feed_forwards(model: nn.Module) -> tuple[list[str], dict[str, int]]:
    """Return the names of all modules to be replaced, and of those among them where an hourglass goes the width."""
    names, widths = [], {}
    for name, module in model.named_modules():
        if _is_ffn(module):
            names.append(name)
            widths[name] = next(m.in_features for m in module.children() if isinstance(m, nn.Linear))
        parts = dict(module.named_children())
        if parts.keys() >= {"expand", "activation", "contract"} and isinstance(parts["expand"], nn.Linear):
            prefix = f"{name}." if name else ""
            names += [prefix + part for part in ("expand", "activation", "contract")]
            widths[f"{prefix}expand"] = parts["expand"].in_features
    return names, widths
