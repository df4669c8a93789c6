"""Questions whose answers a decoder gives, and what chains of its layers do for each of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Finding
from workingpapers.papers.sparsity._chain_search import ChainSpace, Trial, mcts
from workingpapers.papers.sparsity._layer_chains import Chain, ChainRunner


@dataclass(frozen=True)
class Sample:
    """A question and its answer.

    Attributes:
        tokens: of the question, (T,).
        answer: the token, or the tokens (A,) one after the other, that are right.
        options: the tokens that a single answer is chosen from; None is all.
    """

    tokens: Tensor
    answer: int | Tensor
    options: tuple[int, ...] | None = None


def logits_of(output: Any) -> Tensor:
    """Return the logits of the next token, (B, K), from what a decoder or classifier gives."""
    found: Tensor = getattr(output, "logits", output)
    return found[:, -1] if found.ndim == 3 else found


def right(runner: ChainRunner, sample: Sample, chain: Chain) -> bool:
    """Say whether a chain answers right: the best option, or greedy tokens that match one by one."""
    if isinstance(sample.answer, Tensor):
        text = sample.tokens
        for wanted in sample.answer:
            if int(logits_of(runner(text[None], chain))[0].argmax()) != int(wanted):
                return False
            text = torch.cat([text, wanted.reshape(1).to(text)])
        return True
    logits = logits_of(runner(sample.tokens[None], chain))[0]
    if sample.options is None:
        return int(logits.argmax()) == sample.answer
    return sample.options[int(logits[list(sample.options)].argmax())] == sample.answer


def log_chance(runner: ChainRunner, sample: Sample, chain: Chain) -> float:
    """Return the logarithm of the probability that a chain gives to the answer, a reward softer than `right`."""
    if isinstance(sample.answer, int):
        logits = logits_of(runner(sample.tokens[None], chain))[0]
        if sample.options is not None:
            kept = logits[list(sample.options)].log_softmax(0)
            return float(kept[sample.options.index(sample.answer)])
        return float(logits.log_softmax(0)[sample.answer])
    text, total = sample.tokens, 0.0
    for wanted in sample.answer:
        total += float(logits_of(runner(text[None], chain))[0].log_softmax(0)[int(wanted)])
        text = torch.cat([text, wanted.reshape(1).to(text)])
    return total


@dataclass(frozen=True)
class Searched:
    """What was found for a sample: whether the model as it is answers right, and all chains tried.

    Attributes:
        layers: N of the model.
        correct: whether the original chain is right.
        trials: chains with 1 where right, 0 where wrong, in the order they were tried.
    """

    layers: int
    correct: bool
    trials: list[Trial] = field(repr=False)

    @property
    def chains(self) -> list[Chain]:
        """The chains that are right, the shortest first."""
        return sorted((t.point for t in self.trials if t.value == 1), key=lambda c: (len(c), c))

    @property
    def shortest(self) -> int | None:
        """The length of the shortest chain that is right."""
        return len(self.chains[0]) if self.chains else None

    @property
    def pareto(self) -> list[tuple[bool, int, Chain]]:
        """The chains that no other is both as right and shorter than: (right, length, chain)."""
        best: dict[bool, Chain] = {}
        for trial in self.trials:
            key = trial.value == 1
            if key not in best or len(trial.point) < len(best[key]):
                best[key] = trial.point
        if True in best and (False not in best or len(best[False]) >= len(best[True])):
            best.pop(False, None)
        return [(key, len(chain), chain) for key, chain in sorted(best.items(), reverse=True)]


def search_sample(
    runner: ChainRunner,
    sample: Sample,
    simulations: int = 100,
    mode: str = "length",
    cap: float = 2.0,
    seed: int = 0,
    searcher: Callable[..., list[Trial]] = mcts,
    soft: bool = False,
) -> Searched:
    """Search the chains that answer a sample right; its answer is used, so what is found is an upper bound.

    Args:
        runner: the model's layers.
        sample: the question.
        simulations: chains to try, 100 to 200 in the paper.
        mode: "length" prefers short chains, "accuracy" does not.
        cap: longest chain, in units of the model's depth.
        seed: of the search.
        searcher: `mcts`, or `random_chains` as a control.
        soft: let the search climb the log-probability of the answer instead.
    """
    space = ChainSpace(len(runner.layers), cap)
    options = {"mode": mode} if searcher is mcts else {}
    verdicts: dict[Chain, bool] = {}

    def reward(chain: Chain) -> float:
        verdicts[chain] = right(runner, sample, chain)
        return log_chance(runner, sample, chain) if soft else float(verdicts[chain])

    trials = searcher(space, reward, simulations, seed, **options)
    judged = [Trial(t.point, float(verdicts.get(t.point, False))) for t in trials]
    return Searched(len(runner.layers), verdicts[space.root], judged)


def transfer(runner: ChainRunner, chain: Chain, samples: Sequence[Sample]) -> float:
    """Return the share of samples that one chain answers right."""
    return sum(right(runner, sample, chain) for sample in samples) / len(samples)


def best_static(
    runner: ChainRunner, chains: Sequence[Chain], samples: Sequence[Sample]
) -> tuple[Chain, float]:
    """Return which one of some chains answers most samples right, the shorter of equals, and that share."""
    shares = {chain: transfer(runner, chain, samples) for chain in set(chains)}
    best = min(shares, key=lambda c: (-shares[c], len(c), c))
    return best, shares[best]


def analyse(found: Sequence[Searched], longest: int = 3) -> Finding:
    """Return what the chains found for many samples have in common.

    Each sample counts with its shortest right chain.  The numbers: `correct`, the share that the model answers as
    it is; `shorter`, of these the share with a right chain that is shorter; `rescued`, of the others the share with
    a right chain; `length`, mean length of the shortest right chains; `skipped i` and `repeated i` for each layer,
    shares of chains without it, or with it more than once.  `details["common"]` counts by chains the sequences of
    two to `longest` neighbours that the model as it is does not have.
    """
    if not found:
        raise WorkingPapersError("there is nothing to analyse: no sample was searched")
    solved = [s for s in found if s.correct]
    wrong = [s for s in found if not s.correct]
    chains = [s.chains[0] for s in found if s.chains]
    layers = found[0].layers
    numbers = {
        "correct": len(solved) / len(found),
        "shorter": _share([s.shortest is not None and s.shortest < layers for s in solved]),
        "rescued": _share([bool(s.chains) for s in wrong]),
        "length": sum(map(len, chains)) / len(chains) if chains else float("nan"),
    }
    for i in range(layers):
        numbers[f"skipped {i}"] = _share([i not in c for c in chains])
        numbers[f"repeated {i}"] = _share([c.count(i) > 1 for c in chains])
    common: Counter[Chain] = Counter()
    for chain in chains:
        parts = {chain[i : i + n] for n in range(2, longest + 1) for i in range(len(chain) - n + 1)}
        common.update(p for p in parts if any(b != a + 1 for a, b in pairwise(p)))
    return Finding(
        numbers,
        f"Of {len(solved)} samples that are right {numbers['shorter']:.0%} have a shorter right chain, of "
        f"{len(wrong)} that are wrong {numbers['rescued']:.0%} have a right one.",
        partial(_draw, numbers, layers),
        {"common": common.most_common(20)},
    )


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else float("nan")


def _draw(numbers: dict[str, float], layers: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    for what in ("skipped", "repeated"):
        axis.plot([numbers[f"{what} {i}"] for i in range(layers)], "o-", label=what)
    axis.set(xlabel="layer", ylabel="share of chains", title="Layers of the shortest right chains")
    axis.legend()
    return figure
