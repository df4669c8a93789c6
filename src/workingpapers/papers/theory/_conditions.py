"""Tasks over binary latents, and the geometry of what a network makes of their conditions."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.theory._probes import halves, linear_accuracy

TARGETS = ("single", "xor", "all", "random")


def latents(bits: int) -> Tensor:
    """Return the conditions (2^bits, bits) as all patterns of +-1, the first latent changing slowest."""
    places = torch.arange(bits - 1, -1, -1)
    return 2.0 * (torch.arange(2**bits)[:, None] >> places & 1) - 1


def input_means(bits: int, delta: float, dim: int, generator: torch.Generator) -> Tensor:
    """Return mean inputs (2^bits, dim) of norm 1, from factorised (delta 0) to unstructured (delta 1).

    X = (1 - delta) F + delta R with rows of norm 1: in F each latent moves along a direction of its own,
    orthogonal to the others', so that the conditions are the corners of a hypercube; R has independent directions.
    """
    if not 0 <= delta <= 1 or dim < bits:
        raise WorkingPapersError(
            f"inputs need 0 <= delta <= 1 and a dimension of at least {bits}; got {delta}, {dim}"
        )
    directions = torch.linalg.qr(torch.randn(dim, bits, generator=generator))[0].T
    factorised = F.normalize(latents(bits) @ directions, dim=1)
    loose = F.normalize(torch.randn(2**bits, dim, generator=generator), dim=1)
    return F.normalize((1 - delta) * factorised + delta * loose, dim=1)


def targets(name: str, bits: int, generator: torch.Generator, count: int = 1) -> Tensor:
    """Return target values (2^bits, outputs) of +-1 by condition.

    "single", the first latent; "xor", the product of all; "all", every latent; "random", `count` different
    balanced dichotomies.
    """
    code = latents(bits)
    if name == "random":
        every = list(dichotomies(2**bits))
        if not 1 <= count <= len(every):
            raise WorkingPapersError(f"{2**bits} conditions have {len(every)} dichotomies; asked for {count}")
        chosen = torch.randperm(len(every), generator=generator)[:count].tolist()
        return torch.stack([every[i] for i in chosen], 1)
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return {"single": code[:, :1], "xor": code.prod(1, keepdim=True), "all": code}[name]


def dichotomies(conditions: int) -> Iterator[Tensor]:
    """Give every balanced dichotomy of an even number of conditions as +-1 (conditions,), +1 for the first one."""
    for rest in combinations(range(1, conditions), conditions // 2 - 1):
        side = -torch.ones(conditions)
        side[[0, *rest]] = 1
        yield side


@dataclass(frozen=True)
class Trials:
    """Examples of a task: inputs (n, dim), conditions (n,), target values (n, outputs), and both by condition."""

    x: Tensor
    condition: Tensor
    y: Tensor
    means: Tensor
    values: Tensor


def trials(
    bits: int,
    delta: float,
    target: str,
    each: int,
    generator: torch.Generator,
    dim: int = 100,
    noise: float = 0.3,
) -> Trials:
    """Draw `each` examples of every condition: its mean and Gaussian noise of deviation `noise` in each input."""
    means = input_means(bits, delta, dim, generator)
    values = targets(target, bits, generator)
    condition = torch.arange(2**bits).repeat(each)
    x = means[condition] + noise * torch.randn(len(condition), dim, generator=generator)
    return Trials(x, condition, values[condition], means, values)


def condition_means(rows: Tensor, condition: Tensor) -> Tensor:
    """Return the mean rows (conditions, units) of `rows` (n, units) by `condition` (n,), in ascending order."""
    return torch.stack([rows[condition == c].double().mean(0) for c in condition.unique()])


def parallelism(means: Tensor, side: Tensor) -> float:
    """Return the parallelism score of a dichotomy `side` (conditions,) of +-1 of mean rows (conditions, units).

    Conditions of the two sides are paired; the score is the mean cosine between the differences of the pairs, for
    the pairing in which that is largest (Bernardi et al. 2020).  1 where one vector leads across everywhere.
    """
    ones, others = means[side > 0].double(), means[side < 0].double()
    if len(ones) != len(others) or len(ones) < 2:
        raise WorkingPapersError(
            f"parallelism needs two sides of equally many conditions, at least 2; got {len(ones)} and {len(others)}"
        )
    best = -1.0
    for order in permutations(range(len(others))):
        unit = F.normalize(ones - others[list(order)], dim=1)
        cosine = unit @ unit.T
        upper, right = torch.triu_indices(len(unit), len(unit), 1)
        best = max(best, float(cosine[upper, right].mean()))
    return best


def separability(rows: Tensor, condition: Tensor, side: Tensor, seed: int = 0) -> float:
    """Return the accuracy of a linear classifier of a dichotomy, trained on half of the rows, on the other half."""
    one, other = halves(len(rows), seed)
    label = (side[condition] > 0).long()
    return linear_accuracy(rows[one], label[one], rows[other], label[other])


def cross_condition(rows: Tensor, condition: Tensor, side: Tensor, most: int = 20, seed: int = 0) -> float:
    """Return cross-condition generalisation: the accuracy on conditions that the linear classifier has not seen.

    Of each side half of the conditions are trained on and the others tested; the mean over all such choices, or
    over `most` of them drawn by `seed`.  Some of the choices differ in more than the dichotomy, so that even a
    square of equal sides has about 3/4, and a long box 1.  `condition` (n,) counts from 0, `side` (conditions,)
    is +-1.
    """
    choices = [
        list(combinations(torch.nonzero(side == s)[:, 0].tolist(), int((side == s).sum()) // 2))
        for s in (1, -1)
    ]
    if not all(choices) or not all(c[0] for c in choices):
        raise WorkingPapersError("cross-condition generalisation needs at least 2 conditions on each side")
    every = [(*one, *other) for one in choices[0] for other in choices[1]]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:most]
    label = (side[condition] > 0).long()
    found = []
    for i in order.tolist():
        seen = torch.isin(condition, torch.tensor(every[i]))
        found.append(linear_accuracy(rows[seen], label[seen], rows[~seen], label[~seen]))
    return sum(found) / len(found)


def conditions_per_unit(means: Tensor, readout: Tensor) -> float:
    """Return how many conditions a hidden unit stands for, from mean activity (conditions, units).

    A unit's activity above its least, a, counts (sum a)^2 / sum a^2 conditions: 1 for one that answers to a single
    condition, as specialised ReLUs do, half of all for one that tells two equal sides apart.  The mean over units,
    by what they give to the outputs: the square of range times norm of `readout` (outputs, units).
    """
    a = means.double() - means.double().amin(0)
    weight = (a.amax(0) * readout.double().norm(dim=0)).square()
    count = a.sum(0).square() / a.square().sum(0).clamp_min(1e-300)
    return float((weight * count).sum() / weight.sum()) if weight.sum() > 0 else 0.0


def readout_angles(inputs: Tensor, weights: Tensor, readout: Tensor) -> Tensor:
    """Return cosines (units, conditions) of each unit's input weights, signed by its readout, and the mean inputs.

    `inputs` (conditions, dim) are centred; `weights` (units, dim); the sign is that of the first row of `readout`.
    """
    centre = F.normalize(inputs.double() - inputs.double().mean(0), dim=1)
    return F.normalize(weights.double(), dim=1) * readout.double()[0].sign()[:, None] @ centre.T
