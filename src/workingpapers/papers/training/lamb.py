"""LAMB and LARS: optimizers whose steps are, layer by layer, in proportion to the size of the weights.

    LAMB:  m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2         m^ = m / (1 - b1^t),  v^ = v / (1 - b2^t)
           u = m^ / (sqrt(v^) + eps) + wd x
    LARS:  m = b1 m + (1 - b1) (g + wd x),  u = m
    both:  x <- x - lr phi(|x|) / |u| u                            for each tensor x of parameters

phi is the identity, or clips the norm to bounds.  Where |x| or |u| is 0 the ratio is 1.

Paper: "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (2019), Algorithms 1 and 2.
"""

import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from workingpapers.catalog import claim, paper
from workingpapers.data import images, text
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.training._large_batch import Accumulated, Recipe, sweep, warmup_then_decay
from workingpapers.tasks import Budget, LanguageModelling, char_gpt, cnn, fit, initialise

Bounds = tuple[float, float]
Group = dict[str, Any]


def trust_ratio(weight: Tensor, update: Tensor, bounds: Bounds | None = None) -> Tensor:
    """Return phi(|weight|) / |update| as a scalar tensor; 1 where either norm is 0."""
    return _ratios(weight.norm()[None], update.norm()[None], bounds)[0]


def _ratios(weights: Tensor, updates: Tensor, bounds: Bounds | None) -> Tensor:
    """Return the trust ratios (N,) for the norms (N,) of weights and updates."""
    phi = weights if bounds is None else weights.clamp(*bounds)
    return torch.where((weights > 0) & (updates > 0), phi / updates, torch.ones_like(phi))


class _Layerwise(Optimizer):
    """What LAMB and LARS share: everything but how gradients become updates."""

    def __init__(self, params: Any, lr: float, max_grad_norm: float | None, **defaults: Any) -> None:
        self.max_grad_norm = max_grad_norm
        super().__init__(params, {"lr": lr, **defaults})
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise WorkingPapersError(f"max_grad_norm is above 0, or None; got {max_grad_norm}")
        for group in self.param_groups:
            for name in ("lr", "weight_decay", "eps"):
                if not 0 <= group.get(name, 0.0) < math.inf:
                    raise WorkingPapersError(f"{name} is at least 0; got {group[name]}")
            for beta in group.get("betas", (group.get("momentum", 0.0),)):
                if not 0 <= beta < 1:
                    raise WorkingPapersError(f"a decay rate of moments lies in [0, 1); got {beta}")
            if group["bounds"] is not None and not 0 <= group["bounds"][0] <= group["bounds"][1]:
                raise WorkingPapersError(
                    f"bounds are (low, high) with 0 <= low <= high; got {group['bounds']}"
                )

    def _updates(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """Return the updates u, one for each tensor of parameters, and advance the moments."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = self._clipping()
        for group in self.param_groups:
            for params in _alike(p for p in group["params"] if p.grad is not None):
                grads: list[Any] = [p.grad for p in params]
                if scale is not None:
                    grads = list(torch._foreach_mul(grads, scale.to(grads[0])))
                updates = self._updates(group, params, grads)
                if group["adapt"]:
                    weights, sizes = (torch.stack(torch._foreach_norm(t)) for t in (params, updates))
                    torch._foreach_mul_(updates, _ratios(weights, sizes, group["bounds"]).unbind())
                torch._foreach_add_(params, updates, alpha=-group["lr"])
        return loss

    def _clipping(self) -> Tensor | None:
        """Return the factor that brings the norm of all gradients together down to `max_grad_norm`."""
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(g.is_sparse for g in grads):
            raise WorkingPapersError(f"{type(self).__name__} takes dense gradients; got a sparse one")
        if self.max_grad_norm is None or not grads:
            return None
        norm: Tensor = torch.stack([g.norm().to(grads[0].device, torch.float32) for g in grads]).norm()
        return torch.reciprocal((norm / self.max_grad_norm).clamp_min(1))


def _alike(params: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the tensors in lists of one device and dtype each, as the operations on lists want them."""
    lists: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for p in params:
        lists.setdefault((p.device, p.dtype), []).append(p)
    return list(lists.values())


@paper("lamb", trains="optimizer")
class Lamb(_Layerwise):
    """LAMB: Adam's step, rescaled in each tensor of parameters to lr times the norm of the weights.

    Args:
        params: parameters or groups; a group may set every option but max_grad_norm for itself, such as
            weight_decay=0 and adapt=False for biases (see `layer_groups`).
        lr: relative size of a step.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: share of the weights in the update.
        bounds: clip the norm of the weights to (low, high) before it enters the ratio; (0, 10) in some releases.
        bias_correction: divide the moments by 1 - beta^t.
        adapt: rescale; False leaves Adam with decoupled weight decay.
        max_grad_norm: clip the norm of all gradients together beforehand; 1 for BERT.

    Raises:
        WorkingPapersError: for options out of range, or sparse gradients.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bounds: Bounds | None = None,
        bias_correction: bool = True,
        adapt: bool = True,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            max_grad_norm,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            bounds=bounds,
            bias_correction=bias_correction,
            adapt=adapt,
        )

    def _updates(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        beta1, beta2 = group["betas"]
        for p in params:
            if not self.state[p]:
                self.state[p] = {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.state[p]["step"] += 1
        steps = [self.state[p]["step"] if group["bias_correction"] else math.inf for p in params]
        m, v = ([self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        roots = torch._foreach_sqrt(torch._foreach_div(v, [1 - beta2**t for t in steps]))
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(torch._foreach_div(m, [1 - beta1**t for t in steps]), roots)
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        return list(updates)


@paper("lamb", part="lars", trains="optimizer")
class Lars(_Layerwise):
    """LARS: momentum, rescaled in each tensor of parameters to lr times the norm of the weights.

    Args:
        params: parameters or groups, as for `Lamb`.
        lr: relative size of a step.
        momentum: decay rate of the mean of gradients.
        weight_decay: share of the weights that is added to their gradient.
        bounds, adapt, max_grad_norm: as for `Lamb`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.01,
        bounds: Bounds | None = None,
        adapt: bool = True,
        max_grad_norm: float | None = None,
    ) -> None:
        options = {"momentum": momentum, "weight_decay": weight_decay, "bounds": bounds, "adapt": adapt}
        super().__init__(params, lr, max_grad_norm, **options)

    def _updates(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        for p in params:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p)}
        m = [self.state[p]["exp_avg"] for p in params]
        torch._foreach_lerp_(
            m, torch._foreach_add(grads, params, alpha=group["weight_decay"]), 1 - group["momentum"]
        )
        return [tensor.clone() for tensor in m]


def layer_groups(model: nn.Module, weight_decay: float = 0.01, exclude: str = "bias|norm") -> list[Group]:
    """Return two groups for an optimizer: weights, and what is neither decayed nor rescaled.

    The second holds vectors and scalars (biases, parameters of normalisation) and whatever has a name in which
    the regular expression `exclude` is found.
    """
    apart = {n for n, p in model.named_parameters() if p.ndim < 2 or re.search(exclude, n)}
    return [
        {"params": [p for n, p in model.named_parameters() if n not in apart], "weight_decay": weight_decay},
        {
            "params": [p for n, p in model.named_parameters() if n in apart],
            "weight_decay": 0.0,
            "adapt": False,
        },
    ]


RECIPES = {
    "lamb": Recipe(Lamb, (0.01, 0.03, 0.1)),
    "adamw": Recipe(partial(AdamW, weight_decay=0.01), (1e-3, 3e-3, 1e-2)),
    "sgd": Recipe(partial(SGD, momentum=0.9, weight_decay=5e-4), (0.03, 0.1, 0.3), rule="linear"),
}


@claim(
    "lamb",
    "Layerwise adaptation keeps accuracy at very large batch sizes and cuts BERT training time.",
    seeds=5,
    holds=all_of(
        at_most(0.03, of="drop"),
        at_least(0.01, of="accuracy_over_sgd"),
        at_least(-0.003, of="accuracy_over_adamw"),
    ),
)
def large_batches(budget: Budget, seed: int) -> Evidence:
    """Accuracy on Fashion-MNIST at 16 (full: 64) times the batch of 128, epochs fixed, rates tuned at 128 alone.

    LAMB and AdamW scale the rate by the root of the batch, SGD in proportion to it; training time is not measured.
    """
    split = images(
        "fashion_mnist",
        train=budget.pick(quick=5000, full=20000),
        test=budget.pick(quick=2000, full=10000),
        size=budget.pick(quick=14, full=None),
        seed=seed,
    )
    batches = budget.pick(quick=(128, 2048), full=(128, 512, 2048, 8192))
    build = partial(cnn, 1, 10, size=split.x_train.shape[-1])
    found = sweep(build, split, RECIPES, batches, epochs=12, seed=seed)
    largest = {name: accuracies[batches[-1]] for name, accuracies in found.items()}
    return Evidence(
        drop=found["lamb"][batches[0]] - largest["lamb"],
        accuracy_over_sgd=largest["lamb"] - largest["sgd"],
        accuracy_over_adamw=largest["lamb"] - largest["adamw"],
        accuracy=largest["lamb"],
    )


@claim(
    "lamb",
    "LARS performs poorly on attention models, while the new optimiser does well across tasks with little tuning.",
    seeds=5,
    holds=at_most(-0.05, of="loss_over_lars"),
)
def attention(budget: Budget, seed: int) -> Evidence:
    """Validation loss of a character GPT at batches of 4,096 tokens (full: 64 times that), best of four rates."""
    corpus = text("tinyshakespeare")
    problem = LanguageModelling(corpus, 64, test_tokens=budget.pick(quick=20_000, full=50_000))
    parts, steps = budget.pick(quick=1, full=64), budget.pick(quick=100, full=300)

    def loss(optimizer: Callable[..., Optimizer], lr: float) -> float:
        trained = fit(
            initialise(partial(char_gpt, len(corpus.vocabulary)), seed),
            problem,
            steps=steps * parts,
            lr=lr,
            optimizer=lambda parameters, lr: Accumulated(optimizer(parameters, lr), parts),
            batch=64,
            schedule=warmup_then_decay(0.1),
            seed=seed,
            every=steps * parts,
        )
        return math.inf if trained.diverged else trained.metrics["loss"]

    best = {
        name: min(loss(optimizer, lr) for lr in (0.01, 0.03, 0.1, 0.3))
        for name, optimizer in {"lamb": Lamb, "lars": Lars}.items()
    }
    return Evidence(loss_over_lars=best["lamb"] - best["lars"], loss=best["lamb"])
