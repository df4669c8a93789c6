"""Checks of the properties that an activation declares: what it says is true must be, and what is not must not."""

from collections.abc import Iterator

import torch
from torch import Tensor

from workingpapers.contracts._check import Contract, ContractFailure, declares, expect
from workingpapers.contracts._grid import GRID, PASSES, ActivationSubject, difference, in_every_feature

contract = Contract(ActivationSubject)


def _agree(subject: ActivationSubject, name: str, broken: str | None) -> None:
    """Raise where the property `name` is declared true but is `broken`, or declared false but is not."""
    if subject.properties[name] is False:
        expect(broken is not None, f"{name}=False is declared, but on the whole grid it holds")
    elif broken is not None:
        raise ContractFailure(f"{name} is declared, but {broken}")


@contract.check(
    "smooth", "the derivative has no jump if and only if smooth is declared true", declares("smooth")
)
def _smooth(subject: ActivationSubject) -> None:
    expect(subject.elementwise, "smooth is declared, which is checked for elementwise activations only")
    _agree(subject, "smooth", _jump(subject))


def _jump(subject: ActivationSubject) -> str | None:
    """Halve the intervals in which value or slope change most until they are 1e-7 wide, and look for a jump."""
    shape = subject.points().shape[1:]

    def at(t: Tensor) -> Tensor:
        x = in_every_feature(t, shape)
        return torch.cat([subject.values(x), subject.slopes(x)], dim=1)

    chosen = _suspects(at(GRID))
    low, high = GRID[chosen], GRID[chosen + 1]
    for _ in range(40):  # from at most 2e3 wide down to the spacing of floats
        middle = (low + high) / 2
        left, centre, right = at(low), at(middle), at(high)
        on_left = (centre - left).abs().amax(dim=1) >= (right - centre).abs().amax(dim=1)
        wide = high - low > 1e-7
        low = torch.where(wide & ~on_left, middle, low)
        high = torch.where(wide & on_left, middle, high)
    change = ((at(high) - at(low)).abs().amax(dim=1)) / (1.0 + at(low).abs().amax(dim=1))
    worst = int(change.argmax())
    if float(change[worst]) <= 1e-3:
        return None
    return f"near x = {float(low[worst]):.6g} value or slope jump by {float(change[worst]):.3g} of their size"


def _suspects(found: Tensor) -> Tensor:
    """Return the intervals that change most, and those that change more than their neighbours do."""
    change = (found[1:] - found[:-1]).abs().amax(dim=1)
    beyond = change[1:-1] - (change[:-2] + change[2:]) / 2
    return torch.cat([change.topk(200).indices, 1 + beyond.topk(200).indices])


@contract.check(
    "monotone", "it never decreases if and only if monotone is declared true", declares("monotone")
)
def _monotone(subject: ActivationSubject) -> None:
    expect(subject.elementwise, "monotone is declared, which is checked for elementwise activations only")
    x = subject.points()
    y = subject.values(x)
    highest = y.cummax(dim=0).values
    _agree(subject, "monotone", difference(x, y, highest, "the value"))


@contract.check("odd", "f(-x) = -f(x) if and only if odd is declared true", declares("odd"))
def _odd(subject: ActivationSubject) -> None:
    x = subject.points()
    _agree(subject, "odd", difference(x, subject.values(-x), -subject.values(x), "f(-x)"))


@contract.check("even", "f(-x) = f(x) if and only if even is declared true", declares("even"))
def _even(subject: ActivationSubject) -> None:
    x = subject.points()
    _agree(subject, "even", difference(x, subject.values(-x), subject.values(x), "f(-x)"))


@contract.check(
    "bounded",
    "every output lies within the declared (low, high), and bounded=False means "
    "that outputs keep growing with the input",
    declares("bounded"),
)
def _bounded(subject: ActivationSubject) -> None:
    y = subject.values(subject.points())
    if subject.properties["bounded"] is False:
        near = subject.values(subject.points(scale=1e-2))
        expect(
            bool(y.abs().max() > 1.01 * near.abs().max()),
            f"bounded=False is declared, but no output beyond {float(near.abs().max()):.6g} was found",
        )
        return
    low, high = subject.properties["bounded"]
    found = float(y.min()), float(y.max())
    expect(
        found[0] >= low - PASSES * (1 + abs(low)) and found[1] <= high + PASSES * (1 + abs(high)),
        f"outputs lie between {found[0]:.9g} and {found[1]:.9g}, not within ({low:g}, {high:g})",
    )


@contract.check(
    "lipschitz",
    "the declared lipschitz is the largest slope, and lipschitz=False means that "
    "slopes keep growing with the input",
    declares("lipschitz"),
)
def _lipschitz(subject: ActivationSubject) -> None:
    declared = subject.properties["lipschitz"]
    steepest = max(_steepness(subject, 1.0))
    if declared is False:
        near = max(_steepness(subject, 1e-2))
        expect(
            steepest > 1.01 * near, f"lipschitz=False is declared, but no slope beyond {near:.6g} was found"
        )
        return
    expect(steepest <= declared * (1 + 1e-6), f"there is a slope of {steepest:.9g}, more than {declared:g}")
    if subject.elementwise:
        expect(steepest >= 0.99 * declared, f"the largest slope is {steepest:.6g}, less than {declared:g}")


def _steepness(subject: ActivationSubject, scale: float) -> Iterator[float]:
    """Yield the largest gradients and secants on the grid, or norms of Jacobians where inputs mix."""
    x = subject.points(scale)
    if subject.elementwise:
        yield float(subject.slopes(x).abs().max())
        run = x.reshape(len(x), -1).diff(dim=0)
        wide = run[:, 0] > 1e-6
        yield float((subject.values(x).diff(dim=0)[wide] / run[wide]).abs().max())
    else:
        module = subject.build(dtype=torch.float64).eval()
        for row in x[1::8]:
            jacobian = torch.func.jacrev(module)(row[None])
            yield float(torch.linalg.matrix_norm(jacobian.reshape(row.numel(), row.numel()), ord=2))


@contract.check(
    "positively homogeneous",
    "f(c x) = c f(x) for c > 0 if and only if positively_homogeneous is declared true",
    declares("positively_homogeneous"),
)
def _positively_homogeneous(subject: ActivationSubject) -> None:
    x = subject.points()
    y = subject.values(x)
    broken = [difference(x, subject.values(c * x), c * y, f"f({c:g} x)") for c in (0.25, 3.0, 100.0)]
    _agree(subject, "positively_homogeneous", next(filter(None, broken), None))


@contract.check(
    "zero at zero", "f(0) = 0 if and only if zero_at_zero is declared true", declares("zero_at_zero")
)
def _zero_at_zero(subject: ActivationSubject) -> None:
    zero = torch.zeros_like(subject.points()[:1])
    found = subject.values(zero)
    _agree(subject, "zero_at_zero", difference(zero, found, torch.zeros_like(found), "the value"))


@contract.check(
    "inverse", "the method inverse undoes it if and only if inverse is declared true", declares("inverse")
)
def _inverse(subject: ActivationSubject) -> None:
    module = subject.build(dtype=torch.float64).eval()
    inputs = subject.inputs(64, dtype=torch.float64)[0]
    undo = getattr(module, "inverse", None)
    if undo is None:
        _agree(subject, "inverse", "there is no method inverse")
        return
    with torch.no_grad():
        found = undo(module(inputs))
    _agree(subject, "inverse", difference(inputs, found, inputs, "inverse(f(x))", 1e-5))
