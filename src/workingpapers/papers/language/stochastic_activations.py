"""Stochastic activations: feed-forward layers that draw between SiLU and ReLU, and end their training with ReLU.

    act(x) = w silu(x) + (1 - w) relu(x),  w drawn afresh from Bernoulli(p) in every forward pass

The draw lets gradients pass where ReLU is flat (x < 0).  The last share alpha of the steps trains with w = 0, with
optimizer and learning-rate schedule going on; then ReLU makes most hidden features zero at inference.  Kept on at
generation, the draw gives different texts without a temperature.

Paper: "Stochastic activations" (2025), Section 3.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from timeit import timeit
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, text
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, above, all_of, at_least, at_most
from workingpapers.kernels import pointwise
from workingpapers.papers.language._diversity import distinct, generate, perplexity
from workingpapers.papers.language._gated import gated_gpt
from workingpapers.papers.language._sparse import SparseDown, down_projections, sparse_down
from workingpapers.surgery import replace_modules
from workingpapers.surgery.choose import Modules
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, LanguageModelling, Result, fit, initialise, mlp
from workingpapers.tasks.problems import Problem
from workingpapers.tasks.training import SCHEDULES
from workingpapers.tasks.transformers import CharGPT

GRANULARITIES = ("element", "token", "layer")
POSITIVE = {"drawn": None, "silu": 1.0, "identity": 0.0}
EVALUATIONS = ("relu", "silu", "expected", "stochastic")


@pointwise
def mixed(x: Tensor, w: float | Tensor, positive: float | None = None) -> Tensor:
    """Return w silu(x) + (1 - w) relu(x); where x > 0 the weight is `positive` instead, unless that is None."""
    if positive is not None:
        w = torch.where(x > 0, positive, w)
    return w * F.silu(x) + (1 - w) * x.relu()


@paper(
    "stochastic_activations",
    part="activation",
    kind="activation",
    zero_at_zero=True,
    deterministic=False,
    variants=[
        {"granularity": "token"},
        {"granularity": "layer", "evaluation": "expected", "positive": "silu"},
    ],
)
class StochasticActivation(nn.Module):
    """Apply `mixed` to a tensor (..., features) with weights drawn by torch's global generator, as dropout's are.

    Args:
        p: chance of SiLU; 0 is ReLU, 1 is SiLU.
        granularity: one draw for each "element", "token" (all features at once) or "layer" (the whole tensor).
        positive: what positive inputs get: "drawn" as the others, "silu", or the "identity".
        evaluation: in evaluation mode "relu", "silu", their "expected" mixture, or "stochastic" as in training.
    """

    def __init__(
        self, p: float = 0.5, granularity: str = "element", positive: str = "drawn", evaluation: str = "relu"
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise WorkingPapersError(f"p is a chance, 0 to 1; got {p}")
        for what, name, valid in (
            ("granularity", granularity, GRANULARITIES),
            ("treatment of positive inputs", positive, POSITIVE),
            ("evaluation", evaluation, EVALUATIONS),
        ):
            if name not in valid:
                raise unknown(what, name, valid)
        self.p, self.granularity, self.positive, self.evaluation = float(p), granularity, positive, evaluation

    def draw(self, x: Tensor) -> Tensor:
        """Return weights 0 and 1 that broadcast against `x`."""
        shape = {"element": x.shape, "token": (*x.shape[:-1], 1), "layer": (1,) * x.ndim}[self.granularity]
        return (torch.rand(shape, device=x.device) < self.p).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        if self.training or self.evaluation == "stochastic":
            return mixed(x, self.draw(x), POSITIVE[self.positive])
        if self.evaluation == "expected":
            return mixed(x, self.p, POSITIVE[self.positive])
        return x.relu() if self.evaluation == "relu" else F.silu(x)

    def extra_repr(self) -> str:
        """Name the options."""
        return f"p={self.p:g}, {self.granularity}, positive={self.positive}, evaluation={self.evaluation}"


NAMES = {"act_fn", "act", "activation", "activation_fn"}  # Llama and Mistral, GPT-2, ours, OPT


def is_feed_forward_activation(name: str, module: nn.Module) -> bool:
    """Tell whether a module without parameters is the activation of a feed-forward layer, by its class or name."""
    known = isinstance(module, nn.ReLU | nn.SiLU | nn.GELU | StochasticActivation)
    return known or (name.rpartition(".")[2] in NAMES and not [*module.parameters(), *module.children()])


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    return mlp([6, 16, 16, 3]), torch.randn(4, 6, generator=generator)


@paper("stochastic_activations", example=_example, preserves=None)
def apply_stochastic(
    model: nn.Module,
    p: float = 0.5,
    granularity: str = "element",
    positive: str = "drawn",
    evaluation: str = "relu",
    modules: Modules = is_feed_forward_activation,
) -> nn.Module:
    """Return a copy of `model` with a `StochasticActivation` in place of each activation of feed-forward layers.

    `modules` chooses them, by default ReLU, SiLU, GELU and whatever has their name in Llama, Mistral, GPT-2 or
    OPT; the other options are those of `StochasticActivation`.
    """
    return replace_modules(
        model, modules, lambda old: StochasticActivation(p, granularity, positive, evaluation)
    )


@paper("stochastic_activations", part="sparsify", kind="transform", example=_example, preserves=1e-5)
def sparsify(model: nn.Module, most: float = 0.3, modules: Modules | None = None) -> nn.Module:
    """Return a copy of `model` whose down projections read only the columns that the non-zero features meet.

    `modules` chooses them, by default linear layers named as in Llama, Mistral, GPT-2 or OPT, or that follow an
    activation in an nn.Sequential; `most` is the share of non-zeros beyond which a dense product is faster.
    """
    is_down = down_projections(model, is_feed_forward_activation)
    if modules is None and not any(is_down(name, m) for name, m in model.named_modules()):
        return copy.deepcopy(model)
    return replace_modules(model, modules or is_down, lambda old: sparse_down(old, most))


def _stochastic(model: nn.Module) -> list[StochasticActivation]:
    found = [m for m in model.modules() if isinstance(m, StochasticActivation)]
    if not found:
        raise WorkingPapersError(f"{type(model).__name__} has no stochastic activation; apply them first")
    return found


@contextmanager
def evaluating(model: nn.Module, evaluation: str) -> Iterator[None]:
    """Set the `evaluation` of all stochastic activations of `model` for the code inside."""
    if evaluation not in EVALUATIONS:
        raise unknown("evaluation", evaluation, EVALUATIONS)
    before = [(m, m.evaluation) for m in _stochastic(model)]
    try:
        for m, _ in before:
            m.evaluation = evaluation
        yield
    finally:
        for m, value in before:
            m.evaluation = value


def switching(model: nn.Module, alpha: float = 0.1, schedule: str = "cosine") -> Callable[[float], float]:
    """Return a schedule for `fit` that also turns the activations of `model` to ReLU for the last share `alpha`.

    Learning rate, optimizer state and data go on as they would (Swi+FT); alpha is 0.05 to 0.1 in the paper.
    """
    if not 0 <= alpha <= 1:
        raise WorkingPapersError(f"the last share of the steps is 0 to 1; got alpha={alpha}")
    activations = _stochastic(model)

    def factor(done: float) -> float:
        if done >= 1 - alpha - 1e-9 and alpha > 0:
            for activation in activations:
                activation.p, activation.positive = 0.0, "drawn"
        return SCHEDULES[schedule](done)

    return factor


def finetune(model: nn.Module, data: Split | Problem, steps: int, **options: Any) -> Result:
    """Turn the activations of `model` to ReLU in place and train it for `steps`; `options` are those of `fit`."""
    return fit(model, data, steps=steps, schedule=switching(model, 1.0), **options)


def zero_shares(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Return the share of zeros that each stochastic activation puts out in evaluation mode."""
    _stochastic(model)
    found = collect(model, inputs, StochasticActivation, keep=lambda m, y: (y == 0).double())
    return {name: float(zeros.mean()) for name, zeros in found.items()}


def trained(p: float, evaluation: str, alpha: float, budget: Budget, seed: int) -> tuple[CharGPT, float]:
    """Train the claims' model on tinyshakespeare; return it and its validation loss (nan if it diverged)."""
    corpus, steps = text("tinyshakespeare"), budget.pick(quick=400, full=5000)
    activation = partial(StochasticActivation, p, evaluation=evaluation)
    model = initialise(partial(gated_gpt, len(corpus.vocabulary), 64, activation), seed)
    problem, rate = LanguageModelling(corpus, 64, test_tokens=20_000), switching(model, alpha)
    batch = budget.pick(quick=8, full=16)
    run = fit(model, problem, steps=steps, batch=batch, lr=3e-3, schedule=rate, seed=seed, every=steps)
    return model, run.metrics["loss"]


@claim(
    "stochastic_activations",
    "Pretraining with randomly drawn activations, then fine-tuning with ReLU, does far better than ReLU from "
    "scratch and leaves sparse latents.",
    figure="about 90% zeros (recalled)",
    seeds=5,
    holds=all_of(
        at_most(0.02, of="over_relu"),
        at_most(0.08, of="over_silu"),
        at_least(0.5, of="zeros"),
        at_least(0.02, of="gain_of_switching"),
    ),
)
def switched_to_relu(budget: Budget, seed: int) -> Evidence:
    """Validation loss with the last tenth of training under ReLU, over ReLU's and SiLU's throughout.

    `gain_of_switching` is how much more a SiLU model loses that meets ReLU only in evaluation.
    """
    corpus = text("tinyshakespeare")
    drawn, loss = trained(0.5, "relu", 0.1, budget, seed)
    smooth, silu = trained(1.0, "silu", 0.0, budget, seed)
    relu, switched = (trained(p, "relu", alpha, budget, seed)[1] for p, alpha in ((0.0, 0.0), (1.0, 0.1)))
    with evaluating(smooth, "relu"), torch.no_grad():
        unswitched = LanguageModelling(corpus, 64, test_tokens=20_000).evaluate(smooth)["loss"]
    zeros = zero_shares(drawn, corpus.test[:6400].view(100, 64))
    return Evidence(
        over_relu=loss - relu,
        over_silu=loss - silu,
        zeros=sum(zeros.values()) / len(zeros),
        gain_of_switching=unswitched - switched,
    )


@claim(
    "stochastic_activations",
    "The resulting sparsity cuts inference FLOPs and speeds up the CPU significantly.",
    figure="up to about 1.65x (recalled)",
    seeds=5,
    holds=at_most(0.6, of="time_ratio"),
)
def sparse_products(budget: Budget, seed: int) -> Evidence:
    """Median time of a down projection, 4096 to 1024 features with 90 % zeros, over torch's dense one."""
    generator = torch.Generator().manual_seed(seed)
    dense = initialise(lambda: nn.Linear(4096, 1024), seed)
    gathering = SparseDown(dense.weight, dense.bias)
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    with torch.inference_mode():
        # in turns, so that a busy machine is fair to both; with new inputs, whose columns are in no cache yet
        for _ in range(budget.pick(quick=200, full=1000)):
            x = torch.randn(1, 4096, generator=generator) * (torch.rand(1, 4096, generator=generator) < 0.1)
            for name, layer in (("dense", dense), ("sparse", gathering)):
                times[name].append(timeit(partial(layer, x), number=1))
        if not torch.allclose(dense(x), gathering(x), atol=1e-4):
            raise WorkingPapersError("the gathering product differs from the dense one")
    return Evidence(time_ratio=median(times["sparse"]) / median(times["dense"]))


@claim(
    "stochastic_activations",
    "Keeping the randomness at generation controls text diversity at little loss.",
    figure="slightly below SiLU with temperature scaling (no number in the abstract)",
    seeds=5,
    holds=all_of(above(3.0, of="distinct_ratio"), at_most(1.2, of="perplexity_ratio")),
)
def diverse_texts(budget: Budget, seed: int) -> Evidence:
    """Different 3-grams of greedy texts under the draw over those of SiLU's; perplexity over that at temperature 1.

    The perplexity is that of a third model, trained with SiLU from other weights.
    """
    smooth, drawn, judge = (
        trained(p, evaluation, 0.0, budget, s)[0]
        for p, evaluation, s in ((1.0, "silu", seed), (0.5, "stochastic", seed), (1.0, "silu", seed + 10**6))
    )
    prompt, (samples, length) = text("tinyshakespeare").test[:64], budget.pick(quick=(30, 60), full=(50, 100))
    sample = partial(generate, prompt=prompt, length=length, samples=samples, seed=seed)
    greedy, random, hot = sample(smooth), sample(drawn), sample(smooth, temperature=1.0)
    return Evidence(
        distinct_ratio=distinct(random) / distinct(greedy),
        distinct=distinct(random),
        distinct_at_temperature_1=distinct(hot),
        perplexity_ratio=perplexity(judge, prompt, random) / perplexity(judge, prompt, hot),
    )
