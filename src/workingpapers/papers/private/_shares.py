"""Sign tests on additive shares modulo a prime, and how often they err."""

import torch
from torch import Tensor

PRIME = 2138816513  # of 31 bits, as in Delphi's experiments
SCALE = 2.0**15
MODES = ("poszero", "negpass")


def share_signs(v: Tensor, t: Tensor, k: int = 0, mode: str = "negpass", p: int = PRIME) -> Tensor:
    """Return the sign test's outcome (bool) for field elements `v` (int64, |v| < p / 2) and client shares
    `t`.

    The server's share is s = v + t mod p.  With k = 0 and "negpass" this is s >= t.
    """
    s = (v + t).remainder(p) >> k
    return s > (t >> k) if mode == "poszero" else s >= (t >> k)


def fault_probability(v: Tensor, k: int = 0, mode: str = "negpass", p: int = PRIME) -> Tensor:
    """Return the probability (float64) over uniform t that the test errs on v (int64), counted exactly.

    Up to the few shares at the end of the field it is |v| / p + max(0, 1 - |v| / 2^k) on the mode's own side;
    0 is never wrong, since its product is 0 whatever the sign.
    """
    size, block = v.abs(), 1 << k
    short = (block - size).clamp_min(0)  # of each block of 2^k shares so many do not see the difference
    if mode == "poszero":  # shares t < p - v with (t mod 2^k) < 2^k - v
        room = p - size
        missed = (room // block) * short + torch.minimum(room % block, short)
    else:  # shares t with (t mod 2^k) >= |v|; those below |v| in the field are not among them
        missed = (p // block) * short + (p % block - size).clamp_min(0) * (size < block)
    side = v > 0 if mode == "poszero" else v < 0
    return (size + missed * side).double() / p * (v != 0)
