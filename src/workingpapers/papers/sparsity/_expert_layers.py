"""Layers of experts behind a router, their routing watched in training, and small decoders that have them."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.experts import Experts
from workingpapers.errors import WorkingPapersError
from workingpapers.tasks import LanguageModelling, char_gpt
from workingpapers.tasks.transformers import CharGPT


class Router(nn.Linear):
    """Logits of experts, (..., dim) -> (..., experts), in float32 at least; weights start normal of 0.02."""

    def __init__(self, dim: int, experts: int) -> None:
        super().__init__(dim, experts, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        return F.linear(input.to(dtype), self.weight.to(dtype))


class MoE(nn.Module):
    """A router and experts: (..., dim) -> (..., dim); subclasses say what `gates` the router's logits become."""

    router: Router
    experts: Experts

    def gates(self, logits: Tensor) -> Tensor:
        """Return the weights of the experts (..., experts) from the router's logits."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the experts' outputs, weighted by their gates."""
        gates = self.gates(self.router(x)).to(x.dtype)
        out = self.experts(x.reshape(-1, x.shape[-1]), gates.reshape(-1, gates.shape[-1]))
        return cast(Tensor, out).reshape(x.shape)


def moe_layers(model: nn.Module, kind: type[MoE] = MoE) -> dict[str, MoE]:
    """Return the layers of experts of a model by name.

    Raises:
        WorkingPapersError: where there is none.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, kind)}
    if not found:
        raise WorkingPapersError(f"{type(model).__name__} has no {kind.__name__} layer")
    return found


class Watch:
    """Keeps the router logits of every layer of experts while it runs: `logits` by layer's name, one a pass.

    A context manager.  In training they carry gradients.
    """

    def __init__(self, model: nn.Module, kind: type[MoE] = MoE) -> None:
        self.layers = moe_layers(model, kind)
        self.logits: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        self._handles = [
            m.router.register_forward_hook(self._keeper(name)) for name, m in self.layers.items()
        ]

    def _keeper(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(module: nn.Module, inputs: Any, logits: Tensor) -> None:
            if self.wants(self.layers[name]):
                self.logits[name].append(logits)

        return keep

    def wants(self, layer: MoE) -> bool:
        """Tell whether a pass of this layer is to be kept: all are."""
        return True

    def clear(self) -> None:
        """Forget what was kept."""
        for kept in self.logits.values():
            kept.clear()

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class TrainingWatch(Watch):
    """Keeps the logits of passes in training mode with gradients alone."""

    def wants(self, layer: MoE) -> bool:
        """Tell whether this layer trains."""
        return layer.training and torch.is_grad_enabled()


@torch.no_grad()
def gates_of(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """Return the gates (rows, T, experts) of every layer of experts for tokens (rows, T), in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    with Watch(model) as watch:
        try:
            for part in tokens.split(16):
                model.eval()(part)
        finally:
            for module, mode in modes.items():
                module.training = mode
    return {name: watch.layers[name].gates(torch.cat(kept)) for name, kept in watch.logits.items()}


def load_entropy(gates: Tensor) -> float:
    """Return the entropy of the experts' shares of assignments over log E: 1 for even loads, 0 for one expert."""
    load = (gates != 0).flatten(0, -2).double().mean(0)
    share = load / load.sum().clamp_min(1e-12)
    return float(-(share * share.clamp_min(1e-12).log()).sum() / torch.tensor(float(len(load))).log())


def dead_experts(gates: Tensor) -> float:
    """Return the share of experts that serve less than 0.2 / E of the tokens."""
    load = (gates != 0).flatten(0, -2).double().mean(0)
    return float((load < 0.2 / len(load)).double().mean())


class WithPenalty(LanguageModelling):
    """Language modelling whose training loss has a penalty added, that is asked for after every forward pass."""

    penalty: Callable[[], Tensor]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross-entropy, in training with the penalty."""
        found = super().loss(model, batch)
        return found + self.penalty() if model.training else found

    def to(self, device: torch.device) -> "WithPenalty":
        """Return the problem with its streams on `device`."""
        moved = super().to(device)
        moved.penalty = self.penalty
        return moved


def moe_decoder(vocab: int, context: int, dim: int, depth: int, layer: Callable[[], nn.Module]) -> CharGPT:
    """Build a character GPT of 4 heads with `layer`, (B, T, dim) -> (B, T, dim), as each feed-forward layer."""
    model = char_gpt(vocab, dim, depth, 4, context, nn.Identity)
    for block in cast(Any, model.blocks):
        block.expand, block.contract = layer(), nn.Identity()
    return model
