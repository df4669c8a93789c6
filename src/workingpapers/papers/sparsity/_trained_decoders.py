"""Gated character decoders trained on tinyshakespeare, for claims about what can be left out of them."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from workingpapers.data import text
from workingpapers.papers.sparsity._small_decoders import decoder
from workingpapers.tasks import Budget, LanguageModelling, fit, initialise


def trained_decoder(
    budget: Budget, seed: int, activation: Callable[[], nn.Module]
) -> tuple[nn.Module, Tensor, Tensor]:
    """Train a gated character decoder on tinyshakespeare; return it, and rows of its training and its test text."""
    dim, depth, width, context = budget.pick(quick=(64, 2, 176, 32), full=(128, 4, 352, 256))
    problem = LanguageModelling(text("tinyshakespeare"), context, budget.pick(quick=10_000, full=20_000))
    build = partial(decoder, len(problem.text.vocabulary), context, dim, depth, width, activation, True)
    model = initialise(build, seed)
    fit(model, problem, steps=700, lr=2e-3, batch=16, seed=seed)
    count = budget.pick(quick=10_000, full=20_000) // context
    first, last = (
        part[: count * context].view(count, context) for part in (problem.text.train, problem.text.test)
    )
    return model.eval(), first, last
