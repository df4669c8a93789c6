"""Text of two domains in one alphabet, a decoder trained on both, and what continuations lose by fixed neurons."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Text, text
from workingpapers.papers.sparsity._cett import Keep, down_weight, downs_of, keeping
from workingpapers.papers.sparsity._core_sets import sentence_core
from workingpapers.papers.sparsity._small_decoders import decoder
from workingpapers.tasks import Budget, LanguageModelling, fit, initialise

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def sums(length: int, generator: torch.Generator) -> str:
    """Return text of small sums in words, such as "two and three are five; "."""
    parts: list[str] = []
    while sum(map(len, parts)) < length:
        a, b = torch.randint(0, 7, (2,), generator=generator).tolist()
        parts.append(f"{NUMBERS[a]} and {NUMBERS[b]} are {NUMBERS[a + b]}; ")
    return "".join(parts)[:length]


def two_domains(budget: Budget, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Train a gated decoder on tinyshakespeare and sums; return it and new passages of both (count, context)."""
    plays = text("tinyshakespeare")
    place = {c: i for i, c in enumerate(plays.vocabulary)}
    size = budget.pick(quick=200_000, full=len(plays.train))
    written = sums(size, torch.Generator().manual_seed(seed))
    counted = torch.tensor([place[c] for c in written])
    both = torch.cat([plays.train[:size], counted])
    context, count = 128, budget.pick(quick=60, full=200)
    problem = LanguageModelling(Text(both, plays.test, plays.vocabulary, "two domains"), context, 5_000)
    dim, depth, width = budget.pick(quick=(64, 2, 176), full=(128, 4, 352))
    build = partial(decoder, len(plays.vocabulary), context, dim, depth, width, nn.SiLU, True)
    model = initialise(build, seed)
    fit(model, problem, steps=budget.pick(quick=400, full=1500), lr=2e-3, batch=16, seed=seed)
    fresh = sums(count * context, torch.Generator().manual_seed(seed + 1))
    second = torch.tensor([place[c] for c in fresh]).view(count, context)
    return model.eval(), plays.test[: count * context].view(count, context), second


def continuation_rises(model: nn.Module, passages: Tensor, beta: float, seed: int) -> dict[str, float]:
    """Return by how much the second half of passages costs more (nats a token) with a share beta of the neurons.

    The neurons are fixed by the first half ("core", "first token"), once for all ("random", "weights"), or are the
    largest of each token ("oracle").
    """
    downs, half = downs_of(model, passages[:1]), passages.shape[1] // 2
    generator = torch.Generator().manual_seed(seed)
    norms = {n: down_weight(d).norm(dim=0) for n, d in downs.items()}
    fixed = {n: torch.rand(len(norm), generator=generator) for n, norm in norms.items()}

    def keep(way: str) -> Keep:
        def chosen(name: str, h: Tensor) -> Tensor:
            count = int(beta * h.shape[-1])
            if way == "oracle":
                places = h.abs().topk(count, -1).indices
            else:
                places = torch.stack([_places(way, row[:half], count, fixed[name], norms[name]) for row in h])
                places = places[:, None].expand(-1, h.shape[1], -1)
            mask = torch.zeros_like(h, dtype=torch.bool).scatter(-1, places, True)
            mask[:, :half] = True
            return mask

        return chosen

    base = _loss(model, passages, half)
    found = {}
    for way in ("core", "first token", "random", "weights", "oracle"):
        with keeping(downs, keep(way)):
            found[way] = _loss(model, passages, half) - base
    return found


def _places(way: str, prompt: Tensor, count: int, fixed: Tensor, norms: Tensor) -> Tensor:
    if way == "core":
        return sentence_core(prompt, count, 0.4)
    by = {"first token": prompt[0].abs(), "random": fixed, "weights": norms}[way]
    return by.topk(count).indices


@torch.no_grad()
def _loss(model: nn.Module, passages: Tensor, half: int) -> float:
    logits = model(passages[:, :-1])[:, half - 1 :]
    return float(F.cross_entropy(logits.flatten(0, 1), passages[:, half:].flatten()))
