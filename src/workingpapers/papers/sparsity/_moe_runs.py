"""Training runs of small character decoders with layers of experts, for the claims about them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from workingpapers.data import text
from workingpapers.papers.sparsity._expert_layers import WithPenalty, moe_decoder
from workingpapers.papers.sparsity._small_decoders import decoder
from workingpapers.tasks import fit, initialise

Layer = Callable[[], nn.Module]
Attach = Callable[[nn.Module], Callable[[], Tensor]]


@dataclass(frozen=True)
class Size:
    """The sizes of a run; `width` is that of the dense layers, `test_tokens` are measured at the end."""

    dim: int
    width: int
    context: int
    batch: int
    steps: int
    test_tokens: int = 20_000


def trained(
    size: Size, seed: int, layer: Layer | None = None, attach: Attach | None = None
) -> tuple[nn.Module, float]:
    """Train a decoder of two blocks on tinyshakespeare; return it and its test loss.

    Args:
        size: sizes of the model and of the run.
        seed: of initialisation and data.
        layer: builds each feed-forward layer; by default gated dense ones with SiLU.
        attach: given the model, returns what gives the penalty after each forward pass of training.
    """
    corpus = text("tinyshakespeare")
    vocab = len(corpus.vocabulary)
    dense = partial(decoder, vocab, size.context, size.dim, 2, size.width, nn.SiLU, True)
    build = dense if layer is None else partial(moe_decoder, vocab, size.context, size.dim, 2, layer)
    model = initialise(build, seed)
    problem = WithPenalty(corpus, size.context, size.test_tokens)
    problem.penalty = (lambda: torch.zeros(())) if attach is None else attach(model)
    run = fit(model, problem, steps=size.steps, batch=size.batch, lr=2e-3, seed=seed, every=size.steps)
    return model, run.metrics["loss"]


def held_out(size: Size, count: int = 128) -> Tensor:
    """Return so many test windows (count, context)."""
    return text("tinyshakespeare").test[: count * size.context].view(count, size.context)
