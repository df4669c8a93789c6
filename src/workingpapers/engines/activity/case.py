"""A network under inspection: what its units did, how it is trained, and on what."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.engines.activity.observe import Activity, Loss, observe
from workingpapers.errors import WorkingPapersError


class NotApplicable(WorkingPapersError):
    """A check does not apply to this case; the sentence says what it would need."""


@dataclass(frozen=True)
class Case:
    """What a check of `inspect` reads.  It leaves the model as it is.

    Attributes:
        activity: of one sweep over the data.
        loss: (output, targets) -> a scalar; None where none was given.
        lr: the largest learning rate of the optimizer; None where none was given.
        momentum: of the same parameters; 0 for optimizers without.
        adaptive: whether the optimizer scales each gradient by its own size, as Adam does.
        seed: of whatever a check draws.
    """

    activity: Activity
    loss: Loss | None = None
    lr: float | None = None
    momentum: float = 0.0
    adaptive: bool = False
    seed: int = 0

    @property
    def model(self) -> nn.Module:
        """The network itself."""
        return self.activity.model

    def labels(self) -> Tensor:
        """Return the class of each sampled example, (n,) integers.

        Raises:
            NotApplicable: where targets are no classes.
        """
        y = self.activity.targets
        if y is None or y.is_floating_point() or y.ndim != 1:
            raise NotApplicable("it needs targets that are classes")
        return y

    def needs_loss(self) -> Loss:
        """Return the loss.

        Raises:
            NotApplicable: where there is none.
        """
        if self.loss is None:
            raise NotApplicable("it needs a loss and data with targets")
        return self.loss


def case_of(
    model: nn.Module,
    data: Any,
    *,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float | None = None,
    batch: int = 64,
    seed: int = 0,
) -> Case:
    """Sweep over data once and return the case; arguments as `inspect` has them."""
    activity = observe(model, data, loss=loss, batch=batch, seed=seed)
    if optimizer is None:
        return Case(activity, loss, lr, seed=seed)
    group = max(optimizer.param_groups, key=lambda g: float(g["lr"]))
    adaptive = "betas" in group or "alpha" in group or "lr_decay" in group
    return Case(activity, loss, float(group["lr"]), float(group.get("momentum", 0.0)), adaptive, seed)


def example_case(
    change: Callable[[nn.Sequential], None] | None = None, lr: float | None = 0.1
) -> Callable[[torch.Generator], tuple[Case]]:
    """Return the example of a check for its contract: a small classifier, changed in place if need be."""

    def example(generator: torch.Generator) -> tuple[Case]:
        model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
        with torch.no_grad():
            for p in model.parameters():
                scale = (2 / p.shape[-1]) ** 0.5 if p.ndim > 1 else 0.1
                p.copy_(torch.randn(p.shape, generator=generator) * scale)
            if change is not None:
                change(model)
        x = torch.randn(96, 6, generator=generator)
        y = torch.randint(3, (96,), generator=generator)
        return (case_of(model, (x, y), loss=nn.functional.cross_entropy, lr=lr),)

    return example
