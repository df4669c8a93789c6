"""Chains of layers: for each input the layers of a trained decoder run in another order, some not, some again.

    h = L_{p_K}(... L_{p_1}(embedding)),   p = (p_1, ..., p_K) from 0 ... N - 1
    UCB = Q / n + c sqrt(ln N_parent / n) - lambda K / N

A tree of chains grows from the model as it is: a move leaves a block of neighbouring layers out or runs it again, a
chain's reward is whether the answer is right.  The right answer is used in the search: what is found is an upper
bound of what the layers can do, and no accuracy that can be had in use.

Paper: "Skip a Layer or Loop it? Test-Time Depth Adaptation of Pretrained LLMs" (2025), abstract.  The constants,
the longest chain, when a node takes a new child and the small tasks are ours; no chain is tried twice, as in the
code that the authors published for a later paper.
"""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most
from workingpapers.papers.sparsity._chain_samples import (
    Sample,
    Searched,
    analyse,
    best_static,
    right,
    search_sample,
    transfer,
)
from workingpapers.papers.sparsity._chain_search import ChainSpace, mcts, near_a_chain, random_chains
from workingpapers.papers.sparsity._layer_chains import ChainRunner
from workingpapers.tasks import Budget, char_gpt, initialise
from workingpapers.tasks.training import Training, points

__all__ = [
    "ChainRunner",
    "ChainSpace",
    "Sample",
    "Searched",
    "analyse",
    "best_static",
    "random_chains",
    "right",
    "search",
    "search_sample",
    "transfer",
]

search = paper("cola_layers", example=near_a_chain, budget=200)(mcts)


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    model = initialise(partial(char_gpt, 9, 8, 3, 2, 4), 0)
    tokens = torch.randint(9, (5, 4), generator=generator)
    return model, tokens, torch.arange(5), 6


@paper("cola_layers", part="analysis", kind="analysis", example=_example)
def chain_analysis(
    model: nn.Module,
    questions: Tensor,
    answers: Tensor,
    simulations: int = 100,
    mode: str = "length",
    cap: float = 2.0,
    blocks: str | None = None,
    seed: int = 0,
) -> Finding:
    """Search chains of a model's layers for each question, and tell what they have in common (see `analyse`).

    Args:
        model: a decoder of Hugging Face, or any network with a list of blocks; it stays as it is.
        questions: tokens (N, T).
        answers: the next tokens (N,), or several each (N, A).
        simulations, mode, cap, seed: as for `search_sample`.
        blocks: name of the list of blocks, where several could be meant.
    """
    runner = ChainRunner(model, questions[:1], blocks)
    samples = [Sample(q, int(a) if answers.ndim == 1 else a) for q, a in zip(questions, answers, strict=True)]
    return analyse(
        [search_sample(runner, s, simulations, mode, cap, seed + i) for i, s in enumerate(samples)]
    )


DIGITS, TASKS, PLACES, ASK = (
    10,
    10,
    13,
    17,
)  # tokens: 0 to 9, then three tasks, four places, and the question mark


def questions(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return tokens (N, 7), task, four digits, place, question mark, and the digit that is the answer, (N,).

    The tasks: the sum of the first two digits modulo ten, the digit at the place, and that of the sorted digits.
    """
    generator = torch.Generator().manual_seed(seed)
    digits = torch.randint(DIGITS, (count, 4), generator=generator)
    task, place = (torch.randint(n, (count, 1), generator=generator) for n in (3, 4))
    sums = digits[:, :2].sum(1, keepdim=True) % DIGITS
    answers = torch.cat([sums, digits.gather(1, place), digits.sort(1).values.gather(1, place)], 1)
    asked = torch.full((count, 1), ASK)
    tokens = torch.cat([TASKS + task, digits, PLACES + place, asked], 1)
    return tokens, answers.gather(1, task)[:, 0]


class LastToken(nn.Module):
    """A decoder that answers after its last token: tokens (N, T) -> logits (N, digits)."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.decoder = char_gpt(ASK + 1, dim, depth, 4, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.decoder(tokens)[:, -1, :DIGITS]
        return logits


@cache
def solver(budget: Budget, seed: int, until: float) -> LastToken:
    """Return a decoder of eight layers trained on the three tasks until a test accuracy, or to the end."""
    dim, steps = budget.pick(quick=(32, 700), full=(128, 2000))
    x, y = questions(20_000, seed)
    held = questions(1000, 10_000 + seed)
    split = Split(x, y, *held, DIGITS, "three tasks")
    model = initialise(partial(LastToken, dim, 8), seed)
    for point in points(model, split, Training(steps=steps, lr=2e-3, seed=seed, every=25)):
        if point["accuracy"] >= until:
            break
    return model.eval()


def asked(budget: Budget, seed: int, until: float, correct: bool) -> tuple[ChainRunner, list[Sample]]:
    """Return a solver's layers and fresh questions that it answers right, or wrong, as it is."""
    model = solver(budget, seed, until)
    count = budget.pick(quick=24, full=60)
    x, y = questions(2000, 20_000 + seed)
    with torch.no_grad():
        kept = (model(x).argmax(1) == y) == correct
    samples = [Sample(q, int(a)) for q, a in zip(x[kept][:count], y[kept][:count], strict=True)]
    return ChainRunner(model, x[:1]), samples


def searched(
    budget: Budget, seed: int, until: float, correct: bool, mode: str
) -> tuple[list[Searched], list[Searched]]:
    """Return what tree search and random chains find for some samples, with as many evaluations."""
    runner, samples = asked(budget, seed, until, correct)
    simulations = budget.pick(quick=60, full=100)
    tree, control = (
        [
            search_sample(runner, s, simulations, mode, seed=1000 * seed + i, searcher=how)
            for i, s in enumerate(samples)
        ]
        for how in (mcts, random_chains)
    )
    return tree, control


def _found(results: list[Searched]) -> float:
    return sum(bool(s.chains) for s in results) / max(len(results), 1)


@claim(
    "cola_layers",
    "Most samples that are already right have a shorter correct chain.",
    figure=">75%",
    seeds=5,
    holds=at_least(0.75, of="shorter"),
)
def shorter_chains(budget: Budget, seed: int) -> Evidence:
    """Share of questions that a decoder of eight layers answers right for which a shorter chain does too."""
    tree, control = searched(budget, seed, 0.95, True, "length")
    found, drawn = (analyse(results).numbers for results in (tree, control))
    return Evidence(shorter=found["shorter"], random=drawn["shorter"], length=found["length"])


@claim(
    "cola_layers",
    "Most samples first answered wrongly have some correct chain.",
    figure=">60%",
    seeds=5,
    holds=all_of(at_least(0.05, of="over_random"), at_least(0.4, of="rescued")),
)
def rescued_samples(budget: Budget, seed: int) -> Evidence:
    """Share of questions answered wrongly, training stopped at 70 % accuracy, for which tree search finds a chain.

    `over_random` is the gain over as many random chains; one of the ten answers is right by chance.
    """
    tree, control = searched(budget, seed, 0.7, False, "accuracy")
    return Evidence(rescued=_found(tree), over_random=_found(tree) - _found(control), guess=1 / DIGITS)


@claim(
    "cola_layers",
    "A tree-search protocol finds the best chain for each sample, shorter than random search finds with equally "
    "many evaluations.",
    seeds=5,
    holds=at_most(-0.2, of="length_difference"),
)
def shorter_than_random(budget: Budget, seed: int) -> Evidence:
    """Mean length of the shortest right chain by tree search, less that by random search, where both find one."""
    tree, control = searched(budget, seed, 0.95, True, "length")
    pairs = [(a.shortest, b.shortest) for a, b in zip(tree, control, strict=True)]
    gaps = [a - b for a, b in pairs if a is not None and b is not None]
    return Evidence(
        length_difference=sum(gaps) / len(gaps), random=sum(b or 0 for _, b in pairs) / len(pairs)
    )
