"""What private inference costs by published figures: gates of garbled circuits, bytes, seconds.

A hybrid protocol (Gazelle, Delphi) computes linear layers on secret shares, prepared by homomorphic
encryption before the input is known, and each ReLU by a garbled circuit.  All figures are arguments with
these defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.private._counts import multiply_adds, relu_count

CIRCUITS = ("relu", "sign", "stochastic sign")
CIPHERTEXTS = 2
"""For an AND gate, XOR gates being free: Zahur, Rosulek and Evans, "Two Halves Make a Whole" (2015)."""
LABEL = 16
"""Bytes of a ciphertext and of a wire's label: the 128 bits of the same paper's AES instantiation."""


def and_gates(circuit: str = "relu", bits: int = 31, dropped: int = 0) -> int:
    """Return the AND gates of one circuit on two shares modulo a prime of `bits` bits.

    "relu" is Delphi's (`crypto-primitives/src/gc.rs` of its authors' code, without its bound of 6): add the
    shares and reduce (3 gates a bit: adder, subtraction of p, choice), compare with p / 2, select, and add
    and reduce again for the new share.  "sign" reduces and compares, and chooses between two shares of the
    bit; the product with x is then Beaver's, outside the circuit.  "stochastic sign" compares the shares as
    they are, without their last `dropped` bits, and chooses (Circa, Section 3).  A comparison, an adder and a
    choice take one AND a bit each: Kolesnikov, Sadeghi and Schneider, "Improved Garbled Circuit Building
    Blocks" (2009).
    """
    if circuit not in CIRCUITS:
        raise unknown("circuit", circuit, CIRCUITS)
    if not 0 <= dropped < bits:
        raise WorkingPapersError(f"of {bits} bits, 0 to {bits - 1} can be dropped; got {dropped}")
    if dropped and circuit != "stochastic sign":
        raise WorkingPapersError(f"bits are dropped in the stochastic sign alone; got {circuit!r}")
    if circuit == "relu":
        return 8 * bits
    return 5 * bits if circuit == "sign" else 2 * bits - dropped


@dataclass(frozen=True)
class CircuitCost:
    """The size of one ReLU: AND gates, bytes that the evaluator stores, bytes sent online."""

    gates: int
    stored: int
    online: int


def circuit_cost(circuit: str = "relu", bits: int = 31, dropped: int = 0) -> CircuitCost:
    """Return the size of one ReLU by garbled circuit, and for the two signs by Beaver's product behind it.

    Stored are the tables and the evaluator's labels; a triple of three field elements more where there is a
    product, which opens two elements of each party online.  Online go the garbler's labels for its own fresh
    input.
    """
    gates = and_gates(circuit, bits, dropped)
    wires, element = bits - dropped, (bits + 7) // 8
    product = circuit != "relu"
    stored = CIPHERTEXTS * LABEL * gates + LABEL * wires + 3 * element * product
    return CircuitCost(gates, stored, LABEL * wires + 4 * element * product)


@dataclass(frozen=True)
class Rates:
    """Unit costs of a protocol.

    The defaults are those of Garimella et al., "Characterizing and Optimizing End-to-End Systems for Private
    Inference" (2023), from its artifact: a garbled ReLU of Delphi is evaluated in 345 microseconds on an
    Intel Atom Z8350 and 54.5 on an AMD EPYC 7502 (one thread, of 100), garbled on the latter in 103.7; its
    evaluator stores 18,248 bytes and its garbler 3,590; the homomorphic products of a ResNet-18 on CIFAR, 556
    million multiply-adds, take 292.4 s on one thread of the EPYC.

    Attributes:
        relu_online: seconds to evaluate a ReLU.
        relu_offline: seconds to garble it.
        relu_bytes: that the evaluator stores for it.
        mac_online: seconds of a multiply-add on shares; 0 takes it for free, as the papers before DeepReShape
            do. mac_offline: seconds of a multiply-add under encryption.
    """

    relu_online: float = 345e-6
    relu_offline: float = 103.7e-6
    relu_bytes: float = 18248.0
    mac_online: float = 0.0
    mac_offline: float = 292.4 / 556e6


@dataclass(frozen=True)
class Cost:
    """What one inference costs: ReLUs, multiply-adds, seconds online and offline, bytes stored."""

    relus: int
    macs: int
    online: float
    offline: float
    stored: float

    @property
    def total(self) -> float:
        """Seconds online and offline."""
        return self.online + self.offline

    @property
    def relu_share(self) -> float:
        """The ReLUs' share of the seconds online."""
        return self._relu_online / self.online if self.online else 0.0

    _relu_online: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.relus:,} ReLUs and {self.macs:,} multiply-adds: {self.online:.3g} s online, "
            f"{self.offline:.3g} s offline, {self.stored / 1e6:.3g} MB stored"
        )


def cost_of(relus: int, macs: int, rates: Rates | None = None) -> Cost:
    """Return what so many ReLUs and multiply-adds cost, one after the other on one thread."""
    r = rates or Rates()
    spent = r.relu_online * relus
    return Cost(
        relus,
        macs,
        spent + r.mac_online * macs,
        r.relu_offline * relus + r.mac_offline * macs,
        r.relu_bytes * relus,
        spent,
    )


def private_cost(model: nn.Module, inputs: Any, rates: Rates | None = None) -> Cost:
    """Return what one private inference of `model` costs by the published unit costs."""
    return cost_of(relu_count(model, inputs), sum(multiply_adds(model, inputs).values()), rates)


def ratios(dropped: int = 12, bits: int = 31) -> Mapping[str, float]:
    """Return how many times less the stochastic sign with dropped bits costs than the exact ReLU."""
    exact, cheap = circuit_cost("relu", bits), circuit_cost("stochastic sign", bits, dropped)
    return {
        "gates": exact.gates / cheap.gates,
        "stored": exact.stored / cheap.stored,
        "online": exact.online / cheap.online,
    }
