"""Circa: ReLU under secret sharing as a product with a sign test that compares shares, without their last
bits.

    x = s - t mod p,  t uniform        sign~(x) = 1[floor(s / 2^k) >= floor(t / 2^k)],   relu~(x) = x sign~(x)

The test errs where x + t wraps around, with probability |x| / p, and below 2^k by truncation, with (2^k -
|x|) / 2^k: on positive x where equal counts as negative ("poszero": they become 0), on negative x where it
counts as positive ("negpass": they pass).  Simulated are the faults, not the cryptography.

Paper: "Circa: Stochastic ReLUs for Private Deep Learning" (2021), Section 3; the costs are those of
`_costs.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.catalog import claim, paper
from workingpapers.data import Split, images
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.experiments import Evidence, all_of, at_least, at_most
from workingpapers.papers.private._costs import circuit_cost, ratios
from workingpapers.papers.private._learning import accuracy, check_split, cifar
from workingpapers.papers.private._shares import MODES, PRIME, SCALE, fault_probability, share_signs
from workingpapers.papers.private._sites import sites, with_sites
from workingpapers.surgery import note_changes
from workingpapers.surgery.running import call
from workingpapers.tasks import Budget, cnn, fit, initialise, residual_cnn

DRAWS = ("law", "shares")


@paper(
    "circa",
    part="relu",
    kind="activation",
    deterministic=False,
    surrogate_gradient=True,
    zero_at_zero=True,
    options={"k": 16},
    variants=[{"draw": "shares"}, {"mode": "negpass"}],
)
class StochasticReLU(nn.Module):
    """ReLU with Circa's faults on a tensor of any shape, drawn by torch's global generator as dropout's are.

    Values are rounded to multiples of 1 / scale and wrap around the field; the gradient is that of x sign~(x)
    with the sign and the rounding taken as constants.

    Args:
        k: bits that the comparison leaves out.
        mode: "poszero", where small positive values may become 0, or "negpass", where small negative ones may
            pass. p: the prime. scale: field elements for 1. draw: "law" draws each fault by its probability;
            "shares" draws shares and compares them.
    """

    def __init__(
        self, k: int = 12, mode: str = "poszero", p: int = PRIME, scale: float = SCALE, draw: str = "law"
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise unknown("mode of the sign test", mode, MODES)
        if draw not in DRAWS:
            raise unknown("way to draw faults", draw, DRAWS)
        if p < 3 or p >= 2**62 or not 0 <= k < p.bit_length():
            raise WorkingPapersError(
                f"of a field of p elements, 3 to 2^62, at least one bit is compared; got p={p} and k={k}"
            )
        if scale <= 0:
            raise WorkingPapersError(f"the scale is positive; got {scale}")
        self.k, self.mode, self.p, self.scale, self.draw = k, mode, p, float(scale), draw

    def encode(self, x: Tensor) -> Tensor:
        """Return the field elements (int64, in -p/2 to p/2) of `x`; what is too large wraps around."""
        half = self.p // 2
        return (x.double() * self.scale).round().long().add(half).remainder(self.p) - half

    def signs(self, v: Tensor) -> Tensor:
        """Draw the sign test's outcome (bool) for field elements `v`."""
        if self.draw == "shares":
            t = torch.randint(self.p, v.shape, device=v.device)
            return share_signs(v, t, self.k, self.mode, self.p)
        size, block = v.abs().float(), float(1 << self.k)
        side = v > 0 if self.mode == "poszero" else v < 0
        chance = size / self.p + (1 - size / block).clamp_min(0) * side
        return (v > 0) ^ (torch.rand(v.shape, device=v.device) < chance)

    def forward(self, x: Tensor) -> Tensor:
        """Return x sign~(x), rounded."""
        v = self.encode(x.detach())
        rounded = (v.double() / self.scale).to(x.dtype)
        return (x + (rounded - x).detach()) * self.signs(v)

    def extra_repr(self) -> str:
        """Name the options."""
        return f"k={self.k}, mode={self.mode}, p={self.p}, scale={self.scale:g}, draw={self.draw}"


@dataclass(frozen=True)
class Faults:
    """What a site's sign test does on some inputs: mean probability of a fault, largest |x|, share beyond the
    field."""

    rate: float
    largest: float
    overflow: float


@torch.no_grad()
def faults(model: nn.Module, inputs: Any) -> dict[str, Faults]:
    """Return for each stochastic ReLU of a model, by its site's name, what to expect on `inputs`; no draw is
    needed.

    The pass itself draws, so deeper sites see inputs with faults in them.
    """
    found: dict[str, Faults] = {}

    def note(name: str, unit: StochasticReLU, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        beyond = (x.double().abs() * unit.scale > unit.p // 2).double().mean()
        rate = fault_probability(unit.encode(x), unit.k, unit.mode, unit.p).mean()
        found[name] = Faults(float(rate), float(x.abs().max()), float(beyond))

    units = {n: unit for n, (unit, _) in sites(model).items() if isinstance(unit, StochasticReLU)}
    handles = [unit.register_forward_pre_hook(partial(note, name)) for name, unit in units.items()]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            call(model.eval(), inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return found


def _example(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    x = torch.randn(3, 1, 6, 6, generator=generator)
    return initialise(lambda: residual_cnn(1, 3, (4, 6)), 0), x, x


@paper("circa", example=_example, preserves=None)
def circa(
    model: nn.Module,
    inputs: Any,
    k: int = 12,
    mode: str = "poszero",
    p: int = PRIME,
    scale: float = SCALE,
    draw: str = "law",
) -> nn.Module:
    """Return a copy of `model` with a stochastic ReLU for every ReLU; `faults` then tells how often each
    errs.

    Args:
        model: any model with ReLUs, as modules or as calls.
        inputs: examples, on which the ReLUs are found and must fit into the field.
        k, mode, p, scale, draw: as of `StochasticReLU`.

    Raises:
        WorkingPapersError: where there is no ReLU, or an activation overflows the field.
    """
    changed = with_sites(model, inputs, lambda name, shape: StochasticReLU(k, mode, p, scale, draw))
    report = faults(changed, inputs)
    for name, one in report.items():
        if one.overflow:
            raise WorkingPapersError(
                f"the input of {name} reaches {one.largest:.4g}, and a field of {p} with scale {scale:g} holds "
                f"up to {p // 2 / scale:.4g}; take a smaller scale"
            )
    return note_changes(  # type: ignore[no-any-return]
        changed,
        [
            f"{name} is a stochastic ReLU now, wrong in {one.rate:.2%} of cases."
            for name, one in report.items()
        ],
    )


def drops(
    model: nn.Module, split: Split, ks: Sequence[int], mode: str = "poszero", draws: int = 3, seed: int = 0
) -> dict[int, float]:
    """Return the mean loss of test accuracy over draws for each number of dropped bits."""
    clean, found = accuracy(model, split), {}
    for k in ks:
        faulty = circa(model, split.x_test[:64], k, mode)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            found[k] = clean - sum(accuracy(faulty, split) for _ in range(draws)) / draws
    return found


def tune_bits(
    model: nn.Module,
    split: Split,
    max_drop: float = 0.01,
    mode: str = "poszero",
    draws: int = 3,
    seed: int = 0,
) -> int:
    """Return how many bits can be dropped, each number up to it costing at most `max_drop` of test accuracy.

    Raises:
        WorkingPapersError: where not even k = 0 does, or `split` has no classes.
    """
    check_split(split)
    best = -1
    for k in range(PRIME.bit_length()):
        if drops(model, split, [k], mode, draws, seed)[k] > max_drop:
            break
        best = k
    if best < 0:
        raise WorkingPapersError(f"even without dropped bits the accuracy falls by more than {max_drop:g}")
    return best


def trained_nets(budget: Budget, seed: int) -> dict[str, tuple[nn.Module, Split]]:
    """Return a residual network on CIFAR-10 (16x16) and a plain one on MNIST (14x14), trained."""
    count, size = budget.pick(quick=(4000, 14), full=(20_000, 28))
    digits = images("mnist", train=count, test=1000, size=size, seed=seed)
    builds: dict[str, tuple[Callable[[], nn.Module], Split]] = {
        "cifar10": (lambda: residual_cnn(3, 10), cifar(budget, seed)),
        "mnist": (lambda: cnn(1, 10, size=size), digits),
    }
    found = {}
    for name, (build, split) in builds.items():
        model = initialise(build, seed)
        fit(model, split, epochs=budget.pick(quick=5, full=30), lr=2e-3, seed=seed)
        found[name] = (model, split)
    return found


@claim(
    "circa",
    "Casting ReLU as an approximate, truncated sign test saves much cost without hurting accuracy.",
    figure="up to 4.7x storage and 3x runtime; 1.8x more on top of recent optimisations",
    holds=all_of(at_least(8, of="bits"), at_least(0.05, of="drop_beyond")),
)
def tolerated_bits(budget: Budget, seed: int) -> Evidence:
    """Bits that positive-to-zero faults may drop at a loss of at most 1 % of accuracy, the fewer of two
    networks'.

    `drop_beyond` is the largest loss with more bits, the smaller of the two; `stored` how many times less a
    ReLU stores with the tolerated bits dropped.
    """
    ks, draws = budget.pick(quick=((8, 10, 12, 14, 16, 18, 20), 1), full=(tuple(range(23)), 3))
    bits, beyond, negpass = [], [], []
    for model, split in trained_nets(budget, seed).values():
        lost = drops(model, split, ks, "poszero", draws, seed)
        best = max((k for k in ks if all(lost[j] <= 0.01 for j in ks if j <= k)), default=0)
        bits.append(best)
        beyond.append(max((lost[k] for k in ks if k > best), default=0.0))
        negpass.append(drops(model, split, [max(best, ks[0])], "negpass", draws, seed)[max(best, ks[0])])
    return Evidence(
        bits=min(bits),
        drop_beyond=min(beyond),
        stored=ratios(min(bits))["stored"],
        negpass_drop=max(negpass),
    )


@claim(
    "circa",
    "The approximation makes ReLU stochastic with predictable faults, which inference tolerates.",
    holds=at_most(0.005, by="every"),
)
def predictable_faults(budget: Budget, seed: int) -> Evidence:
    """Largest distance of measured fault rates from |x| / p + max(0, 1 - |x| / 2^k), over a million shares
    each."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.randint(PRIME, (1_000_000,), generator=generator)
    gaps = []
    for size in (10, 1000, 30_000):
        for v in (torch.tensor(size), torch.tensor(-size)):
            for k in (12, 16):
                for mode in MODES:
                    rate = (share_signs(v, t, k, mode) != (v > 0)).double().mean()
                    own = bool(v > 0) == (mode == "poszero")
                    law = size / PRIME + own * max(0.0, 1 - size / 2**k)
                    gaps.append(abs(float(rate) - law))
    return Evidence(max(gaps))


@claim(
    "circa",
    "Truncating the sign test significantly lowers the cost per ReLU.",
    holds=at_least(1.8, of="gates", by="every"),
)
def cheaper_circuit(budget: Budget, seed: int) -> Evidence:
    """AND gates of the exact ReLU over those with 12 bits dropped, and the same for bytes stored and sent.

    `by_truncation` is what dropping the bits gives alone; the counts and their sources are in `_costs.py`.
    """
    whole, cut = (circuit_cost("stochastic sign", dropped=k).gates for k in (0, 12))
    return Evidence(**ratios(12), by_truncation=whole / cut)
