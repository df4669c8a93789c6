"""DeepReDuce: remove the ReLUs that matter least, by stages, then by layers, then by a smaller network.

    C_k = (accuracy with the ReLUs of stage k alone - accuracy with none) / (#ReLUs of stage k)^0.07

Culling drops the ReLUs of the least critical stages, thinning those of alternate layers in the others, and
reshaping halves the channels (half the ReLUs) or the resolution (a quarter).  Each network learns from the
full one by distillation; those that no other beats in ReLUs and in accuracy are the Pareto front.

Paper: "DeepReDuce: ReLU Reduction for Fast Private Inference" (2021), Sections 3 and 4; the exponent and the
constants of the distillation (T = 4, weight 0.9) are as recalled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, all_of, at_least
from workingpapers.papers.private._costs import cost_of
from workingpapers.papers.private._counts import multiply_adds, pareto, relu_count
from workingpapers.papers.private._learning import (
    accuracy,
    check_split,
    fashion,
    frozen,
    teacher,
    train,
)
from workingpapers.papers.private._removal import Stage, active, alternate, criticality, held_out, keeping
from workingpapers.papers.private._resizing import resized, scaled
from workingpapers.surgery import note_changes
from workingpapers.tasks import Budget, initialise, residual_cnn


@dataclass(frozen=True)
class Plan:
    """What a network gives up: so many of the least critical stages, alternate layers, channels,
    resolution."""

    culled: int
    thinned: bool
    alpha: float = 1.0
    rho: float = 1.0

    def __str__(self) -> str:
        parts = [f"{self.culled} stages culled"] if self.culled else []
        parts += ["alternate layers thinned"] if self.thinned else []
        parts += [f"channels scaled by {self.alpha:g}"] if self.alpha != 1 else []
        parts += [f"resolution scaled by {self.rho:g}"] if self.rho != 1 else []
        return ", ".join(parts) or "nothing removed"

    def names(self, order: Sequence[Stage]) -> list[str]:
        """Return the sites that stay ReLUs, where `order` has the least critical stage first."""
        kept = [s.names for s in order[self.culled :]]
        return [name for names in kept for name in (alternate(names) if self.thinned else names)]


@dataclass(frozen=True)
class Candidate:
    """A network of the search: its plan, the model, its ReLUs, multiply-adds and accuracy."""

    plan: Plan
    model: nn.Module
    relus: int
    macs: int
    accuracy: float

    def latency(self, per_relu: float = 345e-6) -> float:
        """Return the seconds that its ReLUs take online, at so many each (the default is that of
        `_costs.Rates`)."""
        return per_relu * self.relus


def plans(stages: int, reshape: bool = True) -> list[Plan]:
    """Return all plans for so many stages; the most critical stage is never culled."""
    shapes = [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.5, 0.5)] if reshape else [(1.0, 1.0)]
    return [
        Plan(culled, thinned, *shape)
        for shape in shapes
        for thinned in (False, True)
        for culled in range(stages)
    ]


def reduced(model: nn.Module, x: Tensor, plan: Plan, order: Sequence[Stage]) -> nn.Module:
    """Return a copy of `model` made by the plan, not trained yet; x: examples (N, channels, H, W)."""
    if plan.rho not in (1.0, 0.5):
        raise WorkingPapersError(f"the resolution stays or is halved (rho 1 or 0.5); got {plan.rho:g}")
    names = {n.name for n in active(model, x)} & set(plan.names(order))
    if plan.alpha != 1:
        model = resized(model, x, scaled(plan.alpha))
    kept = keeping(model, x, names)
    if plan.rho == 1:
        return kept
    smaller = nn.Sequential(nn.AvgPool2d(2), kept).train(kept.training)
    return keeping(smaller, x, names)  # the sites learn their new shapes


def ordered(found: Sequence[Stage]) -> list[Stage]:
    """Return the stages with the least critical one first."""
    return sorted(found, key=lambda stage: stage.criticality)


def _candidate(
    model: nn.Module, split: Split, plan: Plan, order: Sequence[Stage], epochs: int, lr: float, seed: int
) -> Candidate:
    return _trained(model, split, plan, reduced(model, split.x_train, plan, order), epochs, lr, seed)


def _trained(
    model: nn.Module, split: Split, plan: Plan, student: nn.Module, epochs: int, lr: float, seed: int
) -> Candidate:
    train(student, split, frozen(model), epochs, lr=lr, seed=seed)
    x = split.x_train[:1]
    macs = sum(multiply_adds(student, x).values())
    return Candidate(plan, student, relu_count(student, x), macs, accuracy(student, split))


def frontier(
    model: nn.Module,
    split: Split,
    epochs: int = 10,
    order: Sequence[Stage] | None = None,
    chosen: Sequence[Plan] | None = None,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[Candidate]:
    """Return the networks that no other beats in ReLUs and accuracy, the fewest ReLUs first.

    Args:
        model: trained, with stages of falling resolution.
        split: to train on; its test part measures.
        epochs: of each network, and of each one that criticality takes.
        order: the stages with the least critical first; measured where it is not given.
        chosen: which plans to train; all of them by default, which is 8 networks a stage.
        lr, seed: of Adam, and of the order of the data.
    """
    split = check_split(split)
    order = ordered(criticality(model, split, epochs, lr=lr, seed=seed)) if order is None else order
    every = plans(len(order)) if chosen is None else chosen
    found = [_candidate(model, split, plan, order, epochs, lr, seed) for plan in every]
    return [found[i] for i in pareto([(c.relus, c.accuracy) for c in found])]


def within(
    model: nn.Module, x: Tensor, order: Sequence[Stage], budget: int, tries: int = 3
) -> list[tuple[Plan, nn.Module]]:
    """Return up to `tries` plans that keep at most `budget` ReLUs, those that keep most first, with their
    networks."""
    sizes = {n.name: n.kept for n in active(model, x)}

    def expected(plan: Plan) -> float:
        return plan.alpha * plan.rho**2 * sum(sizes.get(name, 0) for name in plan.names(order))

    every = sorted(plans(len(order)), key=lambda p: (-p.alpha * p.rho**2, -expected(p), p.thinned))
    fitting: list[tuple[Plan, nn.Module]] = []
    for plan in every:
        if expected(plan) > 1.5 * budget or len(fitting) == max(tries, 1):
            continue  # widths and resolutions are rounded, so what is a little above may fit
        made = reduced(model, x, plan, order)
        if 0 < relu_count(made, x[:1]) <= budget:
            fitting.append((plan, made))
    return fitting


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor, Split, float, int, list[Stage], int]:
    y = torch.arange(24) % 3
    x = torch.randn(24, 1, 8, 8, generator=generator) + y[:, None, None, None]
    model = initialise(lambda: residual_cnn(1, 3, (4, 6)), 0)
    stages = [
        Stage(("2", "3.activation1", "3.activation2"), 768, 0.4, 0.1),
        Stage(("4.activation2",), 96, 0.5, 0.2),
    ]
    return model, x[:4], Split(x, y, x, y, 3, "example"), 0.5, 1, stages, 1


@paper("deepreduce", example=_example, preserves=None)
def deepreduce(
    model: nn.Module,
    split: Split,
    budget: float = 0.25,
    epochs: int = 10,
    order: Sequence[Stage] | None = None,
    tries: int = 3,
    lr: float = 1e-3,
    seed: int = 0,
) -> nn.Module:
    """Return the best network found that keeps at most a share `budget` of the model's ReLUs, trained.

    Args:
        model: trained, with ReLUs in stages of falling resolution, such as a ResNet or a VGG.
        split: its training part teaches and, by a tenth held out, chooses; its test part is not seen.
        budget: share of the ReLUs that may stay, above 0 to 1; 1 returns a copy.
        epochs: of training for each network.
        order: stages with the least critical first; measured where it is not given.
        tries: of the plans within the budget so many are trained, as `within` gives them.
        lr, seed: of Adam; of the data's order.

    Raises:
        WorkingPapersError: for a model without ReLUs or resolutions, and where no plan fits the budget.
    """
    split = check_split(split)
    if not 0 < budget <= 1:
        raise WorkingPapersError(f"the budget is a share of the ReLUs, above 0 and at most 1; got {budget}")
    whole = sum(n.kept for n in active(model, split.x_train))
    inner = held_out(split, seed=seed)
    if order is None:
        order = ordered(criticality(model, inner, epochs, lr=lr, seed=seed)) if budget < 1 else []
    if budget == 1:
        return note_changes(keeping(model, split.x_train, None), ["All ReLUs stay."])  # type: ignore[no-any-return]
    fitting = within(model, split.x_train, order, int(budget * whole), tries)
    if not fitting:
        raise WorkingPapersError(f"no network of the method keeps at most {int(budget * whole)} ReLUs")
    found = [_trained(model, inner, plan, made, epochs, lr, seed) for plan, made in fitting]
    best = max(found, key=lambda c: c.accuracy)
    seconds = cost_of(best.relus, best.macs).online
    said = f"{best.relus} of {whole} ReLUs stay ({best.plan}), {seconds:.3g} s online."
    return note_changes(best.model, [said])  # type: ignore[no-any-return]


@claim(
    "deepreduce",
    "Dropping the less important ReLUs gives a better accuracy per ReLU than earlier private inference methods.",
    figure="up to 3.5% (iso-ReLU) accuracy gain; 3.5x fewer ReLUs (iso-accuracy)",
    calibrated="reshaping is the last candidate, as the method orders its steps; seed 1000 gave the same figures.",
    holds=all_of(
        at_least(0.01, of="over_scaling_at_4"),
        at_least(0.01, of="over_scaling_at_8"),
        at_least(0.0, of="over_random"),
    ),
)
def accuracy_per_relu(budget: Budget, seed: int) -> Evidence:
    """Test accuracy with 1/4 and 1/8 of the ReLUs over that of narrower networks, and of random layers at
    1/4.

    All learn from the same teacher for as many epochs, from its weights; the narrower ones have no fewer
    ReLUs.
    """
    split, epochs = fashion(budget, seed), budget.pick(quick=3, full=15)
    model, how = teacher(budget, split, seed), {"lr": 1e-3, "seed": seed}
    inner = held_out(split, seed=seed)
    order = ordered(criticality(model, inner, budget.pick(quick=2, full=10), **how))  # type: ignore[arg-type]
    whole, found = active(model, split.x_train), {}
    total = sum(n.kept for n in whole)
    tries = budget.pick(quick=2, full=3)
    for part in (4, 8):
        ours = deepreduce(model, split, 1 / part, epochs, order, tries, **how)  # type: ignore[arg-type]
        narrow = resized(model, split.x_train, scaled(1 / part))
        train(narrow, inner, frozen(model), epochs, **how)  # type: ignore[arg-type]
        found[part] = accuracy(ours, split), accuracy(narrow, split)  # nine tenths of the data for both
    chosen, left = [], total // 4
    for at in torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed)).tolist():
        if whole[at].kept <= left:
            chosen.append(whole[at].name)
            left -= whole[at].kept
    random = keeping(model, split.x_train, chosen)
    train(random, inner, frozen(model), epochs, **how)  # type: ignore[arg-type]
    return Evidence(
        over_scaling_at_4=found[4][0] - found[4][1],
        over_scaling_at_8=found[8][0] - found[8][1],
        over_random=found[4][0] - accuracy(random, split),
        accuracy_at_4=found[4][0],
        full=accuracy(model, split),
    )


@claim(
    "deepreduce",
    "Activations differ in how much accuracy they bring, which is what makes selective removal work.",
    holds=all_of(at_least(2.0, of="ratio"), at_least(0.01, of="gap")),
)
def unequal_stages(budget: Budget, seed: int) -> Evidence:
    """Highest over lowest criticality of the stages, and what culling the most rather than the least critical
    costs.

    A criticality below a hundredth of the highest counts as that.
    """
    split = fashion(budget, seed)
    model, epochs = teacher(budget, split, seed), budget.pick(quick=3, full=15)
    order = ordered(criticality(model, held_out(split, seed=seed), epochs, seed=seed))
    high, low = order[-1].criticality, order[0].criticality
    reached = []
    for stage in (order[0], order[-1]):
        names = [n for other in order if other is not stage for n in other.names]
        student = keeping(model, split.x_train, names)
        train(student, split, frozen(model), epochs, seed=seed)
        reached.append(accuracy(student, split))
    return Evidence(ratio=high / max(low, high / 100), gap=reached[0] - reached[1])
