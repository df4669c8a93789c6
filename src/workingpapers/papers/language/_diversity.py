"""Sampling text from a small language model, and how diverse and how likely the samples are."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    length: int,
    *,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Continue `prompt` (T,) by `length` tokens, `samples` times: (samples, length).

    Temperature 0 takes the most likely token; whatever else the model draws follows from the seed as well.  A
    model with an attribute `context` sees no more than so many tokens.
    """
    if prompt.ndim != 1 or not len(prompt) or temperature < 0:
        raise WorkingPapersError(
            "generation takes a prompt of at least one token and a temperature of at least 0"
        )
    context: Any = getattr(model, "context", None) or len(prompt) + length
    tokens = prompt.expand(samples, -1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for _ in range(length):
            logits = model(tokens[:, -context:])[:, -1]
            if temperature == 0:
                chosen = logits.argmax(-1, keepdim=True)
            else:
                chosen = torch.multinomial((logits / temperature).softmax(-1), 1)
            tokens = torch.cat([tokens, chosen], 1)
    return tokens[:, len(prompt) :]


def _grams(row: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(row[i : i + n]) for i in range(len(row) - n + 1))


def distinct(samples: Tensor, n: int = 3) -> float:
    """Return the share of different n-grams among all n-grams of the samples (N, T)."""
    counts = sum((_grams(row, n) for row in samples.tolist()), Counter())
    return len(counts) / counts.total()


def entropy(samples: Tensor, n: int = 1) -> float:
    """Return the entropy in nats of the n-grams of the samples (N, T)."""
    counts = sum((_grams(row, n) for row in samples.tolist()), Counter())
    shares = [c / counts.total() for c in counts.values()]
    return -sum(p * math.log(p) for p in shares)


def self_bleu(samples: Tensor, most: int = 4) -> float:
    """Return the mean over samples of the geometric mean, n = 1 to `most`, of the clipped share of a sample's
    n-grams that some other sample has: 1 where all are equal.
    """
    rows = samples.tolist()
    grams = [[_grams(row, n) for n in range(1, most + 1)] for row in rows]
    total = 0.0
    for i, own in enumerate(grams):
        logs = []
        for n in range(most):
            others = Counter[tuple[int, ...]]()
            for j, other in enumerate(grams):
                others |= other[n] if j != i else Counter()
            found = (own[n] & others).total()
            logs.append(math.log(found / own[n].total()) if found else -math.inf)
        total += math.exp(sum(logs) / most)
    return total / len(rows)


@torch.no_grad()
def perplexity(model: nn.Module, prompt: Tensor, samples: Tensor) -> float:
    """Return the perplexity that `model` gives the samples (N, T) behind the prompt, in windows of its context."""
    context: Any = getattr(model, "context", None) or len(prompt) + samples.shape[1]
    tokens, losses = torch.cat([prompt.expand(len(samples), -1), samples], 1), []
    start = len(prompt)  # of what is still to be scored
    while start < tokens.shape[1]:
        begin = max(min(start - 1, start - context // 2), 0)
        end = min(begin + context, tokens.shape[1] - 1)
        logits = model(tokens[:, begin:end])[:, start - 1 - begin :]
        targets = tokens[:, start : end + 1]
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        start = end + 1
    return math.exp(float(torch.stack(losses).sum()) / samples.numel())
