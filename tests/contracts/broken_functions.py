"""For every check of the other kinds, a component that fails exactly that check."""

import copy
import os
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from cases import Case
from good_functions import (
    BENCHMARK,
    FINDING,
    FIT,
    INITIALIZER,
    LOSS,
    OPTIMIZER,
    SEARCH,
    TRANSFORM,
    Fitter,
    Found,
    Momentum,
    Sum,
    Sums,
    Trial,
    clamp_relus,
    climb,
    sparsity,
    unit_rows,
)
from torch import Tensor, nn
from torch.nn import functional as F


def in_place(model: nn.Module) -> nn.Module:
    model.workingpapers_changes = ["A hook was added."]
    model[0].register_forward_hook(lambda *_: None)
    return copy.deepcopy(model)


def sharing(model: nn.Module) -> nn.Module:
    return said(nn.Sequential(*model), "It is a new container.")


def said(model: nn.Module, *sentences: str) -> nn.Module:
    model.workingpapers_changes = list(sentences)
    return model


def silent(model: nn.Module) -> nn.Module:
    return said(clamp_relus(model))


def boasting(model: nn.Module) -> nn.Module:
    return said(copy.deepcopy(model), "Everything is better now.")


def louder(model: nn.Module) -> nn.Module:
    model = clamp_relus(model)
    with torch.no_grad():
        model[3].weight.mul_(1.001)
    return model


def always_training(model: nn.Module) -> nn.Module:
    return clamp_relus(model).train()


def only_once(model: nn.Module) -> nn.Module:
    if not any(isinstance(part, nn.ReLU) for part in model):
        raise ValueError("there is no ReLU to replace")
    return clamp_relus(model)


def noisy(model: nn.Module) -> nn.Module:
    model = clamp_relus(model)
    with torch.no_grad():
        model[3].weight.add_(1e-9 * torch.randn(()).sign() + 1e-3 * torch.rand(()))
    return model


class Remembering(nn.Module):
    """Hold a tensor that depends on the weights and is not saved."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.memory = copy.deepcopy(model), float(model[0].weight.detach().sum())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + self.memory


def remembering(model: nn.Module) -> nn.Module:
    return said(Remembering(model), "The sum of weights is added.")


def holding_a_result(model: nn.Module) -> nn.Module:
    model = clamp_relus(model)
    model.last = model[0].weight * 2  # no leaf, so that it cannot be copied
    return model


def hooked(model: nn.Module) -> nn.Module:
    model = clamp_relus(model)
    model[0].register_forward_hook(lambda module, inputs, output: output)
    return model


class Climb(Momentum):
    def move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        parameter.add_(group["lr"] * parameter.grad)


class Amnesiac(Momentum):
    """Keep the average outside the state that is saved."""

    def __init__(self, params: Any, lr: float = 0.03) -> None:
        super().__init__(params, lr)
        self.averages: dict[Tensor, Tensor] = {}

    def move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        average = self.averages.setdefault(parameter, torch.zeros_like(parameter))
        average.mul_(0.5).add_(parameter.grad)
        parameter.sub_(group["lr"] * average)


class OneRate(Momentum):
    def move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        super().move(parameter, {**group, "lr": self.defaults["lr"]})


class Eager(Momentum):
    """Decay every parameter, whether it has a gradient or not."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - 1e-4 * group["lr"])


class Normalised(Momentum):
    def move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        parameter.sub_(group["lr"] * parameter.grad / parameter.grad.norm())


def log_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean().log()


def rewarding_the_wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1 / (1 + (outputs - targets).square().mean())


class HalfGradient(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) * (outputs - targets).detach()).mean()


def subtracting(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets) + 0 * targets.add_(1).sum()


class Rising(Fitter):
    def fit(self, *arguments: Any, steps: int) -> list[float]:
        return sorted(super().fit(*arguments, steps=steps))


class Loose(Fitter):
    def batch(self, n: int) -> Tensor:
        return torch.randperm(n)[: n // 2]


class Restarting(Fitter):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def doubled_rows(model: nn.Module) -> nn.Module:
    return unit_rows(model, gain=2.0)


def unseeded(model: nn.Module) -> nn.Module:
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    return unit_rows(model)


def returning_nothing(model: nn.Module) -> None:
    unit_rows(model)


def idle(model: nn.Module) -> nn.Module:
    return model


def meddling(model: nn.Module) -> nn.Module:
    return unit_rows(model).eval()


def finding(**changes: Any) -> Callable[[nn.Module, Tensor], Found]:
    def analyse(model: nn.Module, x: Tensor) -> Found:
        return replace(sparsity(model, x), **changes)

    return analyse


def of_the_moment(model: nn.Module, x: Tensor) -> Found:
    return Found({"noise": float(torch.rand(()))}, "It is what it is.")


def in_evaluation(model: nn.Module, x: Tensor) -> Found:
    return sparsity(model.eval(), x)


def of_the_first(model: nn.Module, x: Tensor) -> Found:
    return Found({"first": float(x[0, 0])}, "The first number is what it is.")


FINDINGS = {
    "numbers": finding(numbers={"share": float("nan")}),
    "reading": finding(reading="Some outputs are zero. Others are not."),
    "figure": finding(figure=lambda: "a drawing"),
    "same seed": of_the_moment,
    "arguments untouched": in_evaluation,
    "invariances": of_the_first,
}


def spendthrift(space: Any, objective: Any, budget: int, seed: int = 0, trials: Any = None) -> list[Trial]:
    objective({"x": 5.0, "n": 10, "shape": "flat"})
    return climb(space, objective, budget, seed, trials)


def flattering(space: Any, objective: Any, budget: int, seed: int = 0, trials: Any = None) -> list[Trial]:
    return [Trial(t.point, t.value + 1) for t in climb(space, objective, budget, seed, trials)]


def by_the_world(space: Any, objective: Any, budget: int, seed: int = 0, trials: Any = None) -> list[Trial]:
    return climb(space, objective, budget, random.randrange(10**6), trials)


def at_random(space: Any, objective: Any, budget: int, seed: int = 0, trials: Any = None) -> list[Trial]:
    found = list(trials or [])
    while len(found) < budget:
        found += climb(space, objective, 1, seed=997 * seed + len(found))
    return found


def forgiving(space: Any, objective: Any, budget: int, seed: int = 0, trials: Any = None) -> list[Trial]:
    return [Trial(t.point, max(t.value, -1e9)) for t in climb(space, objective, budget, seed, trials)]


def restarting(space: Any, objective: Any, budget: int, seed: int = 0, trials: Any = None) -> list[Trial]:
    rest = climb(space, objective, budget - len(trials or []), seed)
    return [*(trials or []), *rest]


class ByTheWorld(Sums):
    def items(self, seed: int, n: int) -> list[Sum]:
        return super().items(int(torch.randint(1000, ())), n)


class Constant(Sums):
    def items(self, seed: int, n: int) -> list[Sum]:
        return super().items(0, n)


class Bare(Sums):
    def items(self, seed: int, n: int) -> list[Any]:
        return [SimpleNamespace(question=item.question) for item in super().items(seed, n)]


class Stingy(Sums):
    def score(self, item: Sum, answer: Any) -> float:
        return 0.9 * super().score(item, answer)


class Kind(Sums):
    def score(self, item: Sum, answer: Any) -> float:
        return 1.0


class Harsh(Sums):
    def score(self, item: Sum, answer: Any) -> float:
        return 2 * super().score(item, answer) - 1


class Misspelt:
    branches: ClassVar = {"smooth": ["golu"], "other": ["gollu"]}


class Dead:
    branches: ClassVar = {"smooth": ["golu"], "others": ["mish", "snake"]}


def like(good: Case, **targets: Callable[..., Any]) -> dict[tuple[str, str], Case]:
    """Return the broken components by (kind, check), each declaring what the good one does."""
    names = {check.replace("_", " "): target for check, target in targets.items()}
    return {(good.kind, name): Case(good.kind, target, good.properties) for name, target in names.items()}


BROKEN_FUNCTIONS: dict[tuple[str, str], Case] = {
    **like(
        TRANSFORM,
        input_untouched=in_place,
        another_model=sharing,
        says_what_it_changed=silent,
        function_preserved=louder,
        runs=always_training,
        repeats=only_once,
        determinism=noisy,
        deepcopy=holding_a_result,
        pickle=hooked,
    ),
    ("transform", "state_dict"): Case("transform", remembering, TRANSFORM.properties),
    **like(
        OPTIMIZER,
        lowers_a_convex_loss=Climb,
        resumes=Amnesiac,
        parameter_groups=OneRate,
        missing_gradients=Eager,
        zero_gradients=Normalised,
    ),
    **like(
        LOSS,
        finite_number=log_error,
        rewards_the_right=rewarding_the_wrong,
        gradients=HalfGradient,
        inputs_untouched=subtracting,
    ),
    **like(FIT, lowers_the_loss=Rising, same_seed=Loose, resumes_a_fit=Restarting),
    **like(
        INITIALIZER,
        promise=doubled_rows,
        same_seed=unseeded,
        returns_the_model=returning_nothing,
        changes_weights=idle,
        only_weights=meddling,
    ),
    **{
        (kind, check): Case(kind, t, FINDING)
        for kind in ("analysis", "study")
        for check, t in FINDINGS.items()
    },
    **like(
        SEARCH,
        budget=spendthrift,
        honest_trials=flattering,
        same_seed=by_the_world,
        beats_random_search=at_random,
        survives_failures=forgiving,
        resumes=restarting,
    ),
    **like(
        BENCHMARK,
        items=Bare,
        same_seed=ByTheWorld,
        other_seeds=Constant,
        perfect_answer=Stingy,
        wrong_answer=Kind,
        range=Harsh,
    ),
    ("survey", "known entries"): Case("survey", Misspelt),
    ("survey", "working entries"): Case("survey", Dead),
}
