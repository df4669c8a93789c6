"""Slices of the loss over the space of weights, along directions whose filters are as long as the weights'.

Filter normalisation makes slices comparable: a network of the same function whose filters are scaled against one
another has the same slice.  Source: "Visualizing the Loss Landscape of Neural Nets" (2018), Section 4.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError, unknown

Direction = Mapping[str, Tensor]


@torch.no_grad()
def filter_direction(
    model: nn.Module, generator: torch.Generator, spans: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """Return a random direction by parameter name, each filter of it as long as the model's own.

    A filter is what makes one output: of a weight (O, ...) each w[o]; parameters of one dimension (biases,
    normalisation) do not move.  `spans` gives the dimensions of a filter for parameters laid out otherwise.

    Raises:
        UnknownName: where `spans` names no parameter.
    """
    parameters, spans = dict(model.named_parameters()), spans or {}
    for name in spans:
        if name not in parameters:
            raise unknown("parameter", name, list(parameters))
    found = {}
    for name, weight in parameters.items():
        if weight.ndim > 1:
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
            dims = spans.get(name, tuple(range(1, weight.ndim)))
            own, other = (torch.linalg.vector_norm(t, dim=dims, keepdim=True) for t in (weight, drawn))
            found[name] = drawn * (own / other)
    return found


@torch.no_grad()
def loss_grid(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    directions: Sequence[Direction],
    steps: Sequence[float],
) -> Tensor:
    """Return loss(model) at weights + sum_k steps[i_k] directions[k], a tensor with one dimension per direction.

    The loss is that of a copy in evaluation mode; the model itself is not touched.
    """
    if not directions or not len(steps):
        raise WorkingPapersError(
            f"a slice needs at least one direction and one step; got {len(directions)} and {len(steps)}"
        )
    moved = copy.deepcopy(model).eval()
    parameters, own = dict(moved.named_parameters()), dict(model.named_parameters())
    found = torch.empty([len(steps)] * len(directions), dtype=torch.float64)
    amounts = torch.tensor(list(steps), dtype=torch.float64)
    places = torch.cartesian_prod(*[torch.arange(len(steps))] * len(directions)).view(-1, len(directions))
    for place in places:
        for name in {name for direction in directions for name in direction}:
            shifts = (
                float(amounts[i]) * d[name] for i, d in zip(place, directions, strict=True) if name in d
            )
            parameters[name].copy_(sum(shifts, own[name]))
        found[tuple(place)] = loss(moved)
    return found
