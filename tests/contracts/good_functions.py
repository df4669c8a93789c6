"""Small transforms, trainers, initializers, findings, searches, benchmarks and surveys that keep promises."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from cases import Case
from torch import Tensor, nn
from torch.nn import functional as F


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU())


def a_model(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    return network(), torch.randn(5, 4, generator=generator)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_min(0)


def clamp_relus(model: nn.Module) -> nn.Module:
    """Put `Clamp` in the place of every ReLU of a copy."""
    model = copy.deepcopy(model)
    said = getattr(model, "workingpapers_changes", [])
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.ReLU):
            model.set_submodule(name, Clamp().train(part.training))
            said = [*said, f"Clamp replaces the ReLU {name}."]
    model.workingpapers_changes = said
    return model


def scale_weights(model: nn.Module, data: Tensor, factor: float = 0.5) -> nn.Module:
    """Scale every weight of a copy, which changes the function."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor * (1 + 0 * data.mean()))
    model.workingpapers_changes = [f"Every parameter is {factor} of what it was."]
    return model


def model_and_data(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    return *a_model(generator), torch.randn(9, generator=generator)


class Momentum(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 0.03, beta: float = 0.5) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, group)

    def move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
        average.mul_(group["beta"]).add_(parameter.grad)
        parameter.sub_(group["lr"] * average)


def no_rate(params: Any) -> torch.optim.Optimizer:
    """Give an optimizer that takes no learning rate."""
    return torch.optim.Rprop(params)


def outputs_and_targets(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    outputs, targets = (torch.randn(6, 3, generator=generator) for _ in range(2))
    return outputs, targets, targets.clone()


def logits_and_labels(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.randint(3, (6,), generator=generator)
    return torch.randn(6, 3, generator=generator), labels, 9.0 * F.one_hot(labels, 3)


class Fitter:
    """Gradient descent on batches that its own generator draws."""

    def __init__(self, lr: float = 0.1, seed: int = 0) -> None:
        self.lr, self.generator = lr, torch.Generator().manual_seed(seed)

    def fit(self, model: nn.Module, x: Tensor, y: Tensor, steps: int) -> list[float]:
        return [self.step(model, x, y, self.batch(len(x))) for _ in range(steps)]

    def batch(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator)[: n // 2]

    def step(self, model: nn.Module, x: Tensor, y: Tensor, chosen: Tensor) -> float:
        loss = F.mse_loss(model(x[chosen]), y[chosen])
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(self.lr * parameter.grad)
        return float(F.mse_loss(model(x), y))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def a_fit(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    x = torch.randn(32, 4, generator=generator)
    return nn.Linear(4, 1), x, x.sum(1, keepdim=True)


def unit_rows(model: nn.Module, gain: float = 1.0) -> nn.Module:
    """Draw every weight matrix with rows of length `gain`."""
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight)
            with torch.no_grad():
                part.weight.mul_(gain / part.weight.norm(dim=1, keepdim=True))
    return model


def row_lengths(model: nn.Module) -> dict[str, tuple[float, float, float]]:
    lengths = [p.norm(dim=1) for n, p in model.named_parameters() if p.ndim == 2]
    return {f"length {i}": (float(norms.mean()), 1 - 1e-5, 1 + 1e-5) for i, norms in enumerate(lengths)}


@dataclass(frozen=True)
class Found:
    numbers: dict[str, float]
    reading: str
    figure: Callable[[], Any] | None = None


def draw() -> Any:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([0, 1])
    return figure


def sparsity(model: nn.Module, x: Tensor) -> Found:
    """Count zeros in the model's outputs."""
    mode = model.training
    with torch.no_grad():
        share = float((model.eval()(x) == 0).float().mean())
    model.train(mode)
    return Found({"share": share}, f"A share of {share:.2f} of the outputs is zero.", draw)


def reordered(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return model, x.flip(0)


class Simulation:
    """A study with an option, whose randomness follows a seed argument."""

    def __init__(self, draws: int = 50) -> None:
        self.draws = draws

    def __call__(self, seed: int) -> Found:
        mean = float(torch.randn(self.draws, generator=torch.Generator().manual_seed(seed)).mean())
        return Found({"mean": mean}, f"The mean of {self.draws} draws is {mean:.2f}.")


def a_seed(generator: torch.Generator) -> tuple[int]:
    return (3,)


@dataclass(frozen=True)
class Trial:
    point: dict[str, Any]
    value: float


SPACE: dict[str, Any] = {"x": (0.0, 10.0), "n": (0, 20), "shape": ["round", "square", "flat"]}


def hill(point: dict[str, Any]) -> float:
    """Peak of value 0 at x = 7, n = 3, round."""
    return -((point["x"] - 7.0) ** 2) - (point["n"] - 3) ** 2 - 5.0 * (point["shape"] != "round")


def a_hill() -> tuple[dict[str, Any], Callable[[Any], float], float]:
    return SPACE, hill, 0.0


def drawn(generator: random.Random, values: Any) -> Any:
    if isinstance(values, list):
        return generator.choice(values)
    return generator.randint(*values) if isinstance(values[0], int) else generator.uniform(*values)


def climb(space: Any, objective: Any, budget: int, seed: int = 0, trials: Any = None) -> list[Trial]:
    """Change one coordinate of the best point so far; every trial has a generator of its own."""
    found = list(trials or [])
    while len(found) < budget:
        generator = random.Random(1000 * seed + len(found))
        best = max(found, key=lambda t: t.value, default=None)
        point = {name: drawn(generator, values) for name, values in space.items()}
        if best is not None and len(found) >= 5:
            name = generator.choice(list(space))
            point = {**best.point, name: point[name]}
        try:
            value = float(objective(point))
        except Exception:
            value = float("nan")
        found.append(Trial(point, value if value == value else float("-inf")))
    return found


class Line:
    """A space of another sort: it samples itself."""

    def sample(self, seed: int) -> float:
        return random.Random(seed).random()


def a_line() -> tuple[Line, Callable[[float], float], float]:
    return Line(), lambda x: -abs(x - 0.5), 0.0


def halve(space: Line, objective: Any, budget: int, seed: int = 0, trials: Any = None) -> list[Trial]:
    """Narrow the interval around the best point."""
    found = list(trials or [])
    while len(found) < budget:
        draw = random.Random(1000 * seed + len(found)).random()
        best = max(found, key=lambda t: t.value, default=Trial(0.5 * draw, 0.0)).point
        point = min(1.0, max(0.0, best + (draw - 0.5) * 0.9 ** len(found)))
        try:
            value = float(objective(point))
        except Exception:
            value = float("nan")
        found.append(Trial(point, value if value == value else float("-inf")))
    return found


@dataclass(frozen=True)
class Sum:
    question: tuple[int, int]
    answer: int


@dataclass
class Sums:
    largest: int = 99
    made: list[Sum] = field(default_factory=list)

    def items(self, seed: int, n: int) -> list[Sum]:
        generator = random.Random(seed)
        pairs = [(generator.randint(0, self.largest), generator.randint(0, self.largest)) for _ in range(n)]
        return [Sum(pair, sum(pair)) for pair in pairs]

    def score(self, item: Sum, answer: Any) -> float:
        return float(answer == item.answer)


class Map:
    branches: ClassVar = {"smooth": ["golu"], "parts": ["golu.part", "golu"]}


def a_map() -> SimpleNamespace:
    return SimpleNamespace(branches=Map.branches)


TRANSFORM = Case("transform", clamp_relus, {"example": a_model, "preserves": 0.0})
OPTIMIZER = Case("trainer", Momentum, {"trains": "optimizer"})
LOSS = Case("trainer", nn.MSELoss, {"trains": "loss", "example": outputs_and_targets})
FIT = Case("trainer", Fitter, {"trains": "fit", "example": a_fit})
INITIALIZER = Case(
    "initializer", unit_rows, {"example": lambda generator: (network(),), "promise": row_lengths}
)
FINDING = {"example": a_model, "invariances": {"the order of examples": reordered}}
SEARCH = Case("search", climb, {"example": a_hill})
BENCHMARK = Case("benchmark", Sums)
SURVEY = Case("survey", Map)

GOOD_FUNCTIONS = [
    TRANSFORM,
    Case("transform", scale_weights, {"example": model_and_data, "options": {"factor": 0.3}}),
    OPTIMIZER,
    Case("trainer", torch.optim.Adam, {"trains": "optimizer", "options": {"weight_decay": 1e-5}}),
    Case("trainer", no_rate, {"trains": "optimizer"}),
    LOSS,
    Case("trainer", F.cross_entropy, {"trains": "loss", "example": logits_and_labels}),
    FIT,
    INITIALIZER,
    Case("analysis", sparsity, FINDING),
    Case("study", sparsity, FINDING),
    Case("study", Simulation, {"example": a_seed, "options": {"draws": 20}}),
    SEARCH,
    Case("search", halve, {"example": a_line, "budget": 20}),
    BENCHMARK,
    Case("benchmark", Sums, {"options": {"largest": 9}}),
    SURVEY,
    Case("survey", a_map),
]
