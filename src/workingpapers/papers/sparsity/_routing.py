"""Where the compute of a model of experts goes: active experts by layer, token frequency and domain; dead ones."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import paper
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Finding
from workingpapers.papers.sparsity._expert_layers import dead_experts, gates_of, load_entropy, moe_decoder
from workingpapers.papers.sparsity._topk_moe import TopKMoE


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    model = moe_decoder(7, 6, 8, 2, partial(TopKMoE, 8, 3, 2, 4))
    for p in model.parameters():
        nn.init.normal_(p, std=0.4, generator=generator)
    return model, torch.randint(7, (6, 6), generator=generator), torch.arange(6) % 2


def _in_training(model: nn.Module, *rest: Any) -> tuple[Any, ...]:
    return model.train(), *rest


@paper(
    "remoe", part="routing", kind="analysis", example=_example, invariances={"training mode": _in_training}
)
def routing(model: nn.Module, tokens: Tensor, domains: Tensor | None = None) -> Finding:
    """Report how a decoder with layers of experts (ReMoE, TopKMoE, BlockFFN) routes tokens.

    Args:
        model: tokens (rows, T) -> logits.
        tokens: (rows, T).
        domains: (rows,) whole numbers, for how differently experts serve the domains.

    The numbers, means over layers and also by layer: `active` experts a token and their standard deviation `spread`
    over tokens, share of `dead` experts, `entropy` of loads over log E; `frequency`, the correlation of active
    experts with the logarithm of how frequent a token is; `distance`, half the L1 distance of two domains' shares
    of assignments, mean over pairs.  `details` has `loads` (domains, E) by layer and `active` (rows, T) by layer.
    """
    if tokens.ndim != 2 or not tokens.numel():
        raise WorkingPapersError(f"tokens have the shape (rows, T); got {tuple(tokens.shape)}")
    labels = torch.zeros(len(tokens), dtype=torch.long) if domains is None else domains
    if labels.shape != (len(tokens),):
        raise WorkingPapersError(
            f"domains are one number for each row, ({len(tokens)},); got {tuple(labels.shape)}"
        )
    found = gates_of(model, tokens)
    rarity = torch.bincount(tokens.flatten())[tokens].double().log().flatten()
    numbers: dict[str, float] = {}
    loads: dict[str, Tensor] = {}
    active: dict[str, Tensor] = {}
    for name, gates in found.items():
        on = gates != 0
        active[name] = on.sum(-1)
        loads[name] = torch.stack([on[labels == d].double().mean((0, 1)) for d in labels.unique()])
        count = active[name].double().flatten()
        own = {
            "active": float(count.mean()),
            "spread": float(count.std(correction=0)),
            "dead": dead_experts(gates),
            "entropy": load_entropy(gates),
            "frequency": _correlation(count, rarity),
            "distance": _distance(loads[name]),
        }
        numbers |= {f"{key} {name}": value for key, value in own.items()}
    keys = ("active", "spread", "dead", "entropy", "frequency", "distance")
    means = {key: sum(numbers[f"{key} {name}"] for name in found) / len(found) for key in keys}
    return Finding(
        means | numbers,
        f"A token uses {means['active']:.2f} experts with a standard deviation of {means['spread']:.2f}, and "
        f"{means['dead']:.1%} of the experts are dead.",
        partial(_draw, loads),
        {"loads": loads, "active": active},
    )


def _correlation(a: Tensor, b: Tensor) -> float:
    """Return the correlation of two vectors, 0 where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 1e-9 else 0.0


def _distance(loads: Tensor) -> float:
    """Return the mean total variation between the domains' shares of assignments (domains, E)."""
    shares = loads / loads.sum(1, keepdim=True).clamp_min(1e-12)
    pairs = torch.pdist(shares, 1)
    return float(pairs.mean()) / 2 if len(pairs) else 0.0


def flip_rate(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Return the share of gates that turned on or off between two results of `gates_of` for the same tokens."""
    flips = [((before[n] != 0) != (after[n] != 0)).double().mean() for n in before]
    return float(torch.stack(flips).mean())


def _draw(loads: dict[str, Tensor]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1 + 1.6 * len(loads)), layout="constrained")
    axes = figure.subplots(len(loads), squeeze=False)[:, 0]
    for axis, (name, load) in zip(axes, loads.items(), strict=True):
        axis.imshow(load.numpy(), aspect="auto", vmin=0)
        axis.set(title=f"{name}: share of tokens served", xlabel="expert", ylabel="domain")
    return figure
