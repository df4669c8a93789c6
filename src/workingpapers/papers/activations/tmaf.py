"""TMAF: an activation y -> D(y) y whose matrix D has trainable entries, piecewise constant in y.

    diagonal       out_i = a_i(y_i) y_i
    tri-diagonal   out_i = a_i(y_i) y_i + b_i(y_{i+1}) y_{i+1} + c_i(y_{i-1}) y_{i-1}
    a_i(s) = t_{i,j} for s_j < s <= s_{j+1}

The levels t are trained, the knots s fixed.  Levels 0 left and 1 right of zero are ReLU, where training starts.
Off zero a(y) y jumps where levels differ; `continuous` adds to each interval the offset that closes the gaps.

Paper: "Neural networks with trainable matrix activation functions" (2021), Section 2.  Recalled, not verified:
which knots the experiments have (here the seven integers from -3 to 3) and that an entry of D depends on the
variable of its column.  Continuous and complex forms, and knots that are trained, are additions of ours.
"""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, above, all_of, any_of, at_least, at_most, below
from workingpapers.papers.activations._fashion import Factory, fashion, fitted
from workingpapers.surgery import replace_modules
from workingpapers.surgery.choose import choose
from workingpapers.surgery.collect import collect
from workingpapers.tasks import Budget, fit, initialise, mlp

INTEGERS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
WIDTH = 0.5  # of the ramp by which a knot that is trained sees its inputs


def stepped(x: Tensor, levels: Sequence[Tensor], knots: Sequence[float] | Tensor) -> Tensor:
    """Return levels[j] where knots[j - 1] < x <= knots[j]; each level broadcasts against `x`.

    No gradient goes to `x`.  One goes to `knots` where they are a tensor that asks for it: that of a ramp of
    width 1/2 around each, in place of the step's, which is zero.
    """
    found = levels[0].expand_as(x)
    for level, knot in zip(levels[1:], knots, strict=True):
        step = torch.where(x > knot, level, found)
        if isinstance(knot, Tensor) and knot.requires_grad:
            ramp = ((x.detach() - knot) / WIDTH + 0.5).clamp(0, 1)
            step = step + (level - found) * (ramp - ramp.detach())
        found = step
    return found


def offsets(levels: Sequence[Tensor], knots: Sequence[float] | Tensor) -> list[Tensor]:
    """Return what to add in each interval so that levels[j] x + offset is continuous, and 0 at 0."""
    found = [torch.zeros_like(levels[0])]
    for j, knot in enumerate(knots):
        found.append(found[-1] + (levels[j] - levels[j + 1]) * knot)
    at_zero = sum(knot < 0 for knot in knots)
    return [offset - found[at_zero] for offset in found]


@paper(
    "tmaf",
    smooth=False,
    zero_at_zero=True,
    variants=[
        {"channels": 7, "noise": 0.3},
        {"continuous": True, "noise": 0.3, "knots": (-1.0, 0.0, 2.0)},
        {"negative_slope": 0.1},
    ],
)
class TMAF(nn.Module):
    """Multiply every element by the level of the interval that it lies in: the diagonal form.

    Args:
        channels: levels of its own for each channel (dimension 1); None shares them.
        knots: where levels change, ascending; zero has to be among them.
        negative_slope: level left of zero, at first: 0 is ReLU, 0.1 a leaky one; right of zero it is 1.
        noise: standard deviation of what is added to the levels at first.
        continuous: add the offsets that make the function continuous (ours, not the paper's).
    """

    def __init__(
        self,
        channels: int | None = None,
        knots: Sequence[float] = INTEGERS,
        negative_slope: float = 0.0,
        noise: float = 0.0,
        continuous: bool = False,
    ) -> None:
        super().__init__()
        places = tuple(float(knot) for knot in knots)
        if list(places) != sorted(set(places)) or 0.0 not in places:
            raise WorkingPapersError(f"TMAF's knots ascend and have zero among them; got {places}")
        self.channels, self.continuous = channels, continuous
        self.negative_slope, self.noise = float(negative_slope), float(noise)
        self.knots: Sequence[float] | Tensor = places
        first = torch.tensor([self.negative_slope if k <= 0 else 1.0 for k in (*places, torch.inf)])
        shape = (len(first), 1 if channels is None else channels)
        start = first[:, None].expand(shape).clone()
        self.levels = nn.Parameter(start + noise * torch.randn(shape) if noise else start)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        levels = _spread(self.levels, x)
        y = stepped(x, levels, self.knots) * x
        return y + stepped(x, offsets(levels, self.knots), self.knots) if self.continuous else y

    def extra_repr(self) -> str:
        """Name what differs between instances."""
        knots = self.knots if isinstance(self.knots, tuple) else f"{len(self.knots)} trained"
        return (
            f"channels={self.channels}, knots={knots}, negative_slope={self.negative_slope:g}, "
            f"noise={self.noise:g}, continuous={self.continuous}"
        )


def _spread(levels: Tensor, x: Tensor) -> list[Tensor]:
    """Return the rows of `levels` (K, C) or (K, 1), shaped to broadcast against the channels of `x`."""
    return [row.view(-1, *[1] * (x.ndim - 2)) if len(row) > 1 else row.view(()) for row in levels.unbind(0)]


@paper(
    "tmaf",
    part="knots",
    kind="activation",
    surrogate_gradient=True,
    options={"noise": 0.3},
    known_failures={
        "double backward": "the slope that a knot is given is not the derivative of the step it moves"
    },
)
class TrainedKnots(TMAF):
    """Train the knots of `TMAF` as well, by the gradient of a ramp around each (ours, not the paper's)."""

    def __init__(
        self,
        channels: int | None = None,
        knots: Sequence[float] = INTEGERS,
        negative_slope: float = 0.0,
        noise: float = 0.0,
        continuous: bool = False,
    ) -> None:
        super().__init__(channels, knots, negative_slope, noise, continuous)
        places = self.knots
        del self.knots
        self.knots = nn.Parameter(torch.tensor(places))


@paper("tmaf", part="tridiagonal", kind="activation", elementwise=False, zero_at_zero=True)
class TridiagonalTMAF(TMAF):
    """Add to `TMAF` the two neighbours in dimension 1, each times the level of the interval that it lies in.

    The levels for neighbours are zero at first.  Arguments are those of `TMAF`, whose function it starts as.
    """

    def __init__(
        self,
        channels: int | None = None,
        knots: Sequence[float] = INTEGERS,
        negative_slope: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        super().__init__(channels, knots, negative_slope, noise)
        self.upper = nn.Parameter(torch.zeros_like(self.levels))  # for y_{i+1}
        self.lower = nn.Parameter(torch.zeros_like(self.levels))  # for y_{i-1}

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape."""
        y, dim = super().forward(x), min(1, x.ndim - 1)
        if dim < 0:
            return y
        none, rest = torch.zeros_like(x.narrow(dim, 0, 1)), x.shape[dim] - 1
        after = torch.cat([x.narrow(dim, 1, rest), none], dim)
        before = torch.cat([none, x.narrow(dim, 0, rest)], dim)
        for neighbour, levels in ((after, self.upper), (before, self.lower)):
            y = y + stepped(neighbour, _spread(levels, x), self.knots) * neighbour
        return y


@paper("tmaf", part="modulus", kind="activation", elementwise=False, zero_at_zero=True, odd=True)
class ModulusTMAF(nn.Module):
    """Take channels in pairs z = (u, v) and scale each by relu(|z| + b) / (|z| + 1e-5), a complex ReLU.

    Args:
        pairs: train a b for each pair of neighbouring channels (dimension 1); None shares one.
        bias: b at first.
    """

    def __init__(self, pairs: int | None = None, bias: float = -0.1) -> None:
        super().__init__()
        self.pairs = pairs
        self.bias = nn.Parameter(torch.full((1 if pairs is None else pairs,), float(bias)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x` (B, 2 pairs, ...), same shape."""
        if x.ndim < 2 or x.shape[1] % 2:
            raise WorkingPapersError(
                f"pairs need an even number of channels (dimension 1); got {tuple(x.shape)}"
            )
        z = x.unflatten(1, (-1, 2))
        u, v = z.unbind(2)
        zero = (u == 0) & (v == 0)  # where the modulus has no slope
        modulus = torch.where(zero, 0, torch.hypot(torch.where(zero, 1, u), v))
        gain = torch.relu(modulus + self.bias.view(-1, *[1] * (x.ndim - 2))) / (modulus + 1e-5)
        return torch.flatten(z * gain.unsqueeze(2), 1, 2)

    def extra_repr(self) -> str:
        """Name the biases."""
        return f"pairs={self.pairs}, bias={self.bias.detach()[0].item():g}"


def _net(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    model = initialise(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.LeakyReLU(0.1)), 0
    )
    return model, torch.randn(20, 4, generator=generator), torch.randn(20, 4, generator=generator)


@paper("tmaf", part="convert", kind="transform", example=_net, preserves=1e-6)
def convert(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy of `model` with a `TMAF` for each ReLU and LeakyReLU, levels for each channel, same function.

    `x` are inputs of the model, which tell how many channels there are.  A model with none of the two is copied.
    """
    kinds = (nn.ReLU, nn.LeakyReLU)
    if not any(isinstance(module, kinds) for module in model.modules()):
        return copy.deepcopy(model)
    sizes = {name: y.shape[min(1, y.ndim - 1)] for name, y in collect(model, x[:1], kinds).items()}
    names = iter([name for name, _ in choose(model, kinds)])  # the order in which `build` is called

    def build(old: nn.Module) -> nn.Module | None:
        size = sizes.get(next(names))
        return None if size is None else TMAF(size, negative_slope=getattr(old, "negative_slope", 0.0))

    return replace_modules(model, kinds, build)


def oscillation(size: int, seed: int) -> Split:
    """Return `size` points of [-1, 1]^2 to train and as many to test, with y = sin(4 pi x_1) + sin(4 pi x_2)."""
    x = torch.rand(2, size, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    y = torch.sin(4 * torch.pi * x).sum(-1, keepdim=True)
    return Split(x[0], y[0], x[1], y[1], 0, "oscillation")


@claim(
    "tmaf",
    "Activations with trainable piecewise-constant matrix entries approximate functions and classify images "
    "robustly compared with fixed ones.",
    seeds=5,
    holds=any_of(
        *(
            all_of(at_most(0.7, of=f"{form}_over_relu"), at_most(1.0, of=f"{form}_over_prelu"))
            for form in ("diagonal", "tridiagonal")
        )
    ),
)
def approximation(budget: Budget, seed: int) -> Evidence:
    """Test errors of perceptrons 2-64-64-1 fitted to `oscillation`, over those of ReLU and PReLU."""
    split, steps = oscillation(2000, seed), budget.pick(quick=2000, full=20000)
    activations: dict[str, Factory] = {
        "relu": nn.ReLU,
        "prelu": partial(nn.PReLU, 64),
        "diagonal": partial(TMAF, 64),
        "tridiagonal": partial(TridiagonalTMAF, 64),
    }
    error = {}
    for name, activation in activations.items():
        model = initialise(partial(mlp, [2, 64, 64, 1], activation), seed)
        error[name] = fit(model, split, steps=steps, every=steps, lr=1e-3, seed=seed).metrics["mse"]
    pairs = [(form, other) for form in ("diagonal", "tridiagonal") for other in ("relu", "prelu")]
    return Evidence(relu=error["relu"], **{f"{a}_over_{b}": error[a] / error[b] for a, b in pairs})


@claim(
    "tmaf",
    "They need only scalar products and comparisons, so networks stay simple and efficient.",
    seeds=3,
    holds=all_of(
        at_least(-0.01, of="accuracy_over_relu"),
        at_least(0.80, of="accuracy"),
        below(0.02, of="extra_parameters", by="every"),
        above(0.01, of="level_moved", by="every"),
    ),
)
def classification(budget: Budget, seed: int) -> Evidence:
    """Accuracy of a CNN on Fashion-MNIST with one set of levels a layer, and what these add to its parameters."""
    split, epochs = fashion(budget, seed), budget.pick(quick=4, full=30)
    (plain, relu), (own, tmaf) = (
        fitted(activation, split, epochs=epochs, seed=seed, norm=True) for activation in (nn.ReLU, TMAF)
    )
    sizes = [sum(p.numel() for p in model.parameters()) for model in (plain, own)]
    start = TMAF().levels.detach()
    moved = max(float((m.levels.detach() - start).abs().max()) for m in own.modules() if isinstance(m, TMAF))
    return Evidence(
        accuracy=tmaf.metrics["accuracy"],
        accuracy_over_relu=tmaf.metrics["accuracy"] - relu.metrics["accuracy"],
        extra_parameters=sizes[1] / sizes[0] - 1,
        level_moved=moved,
    )
