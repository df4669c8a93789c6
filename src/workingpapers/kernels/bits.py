"""Products of small integers and of signs by bit operations: 64 of them to a machine word.

    sum_i x_i w_i = sum_{m,k} 2^(m+k) popcount(b_m(x) AND b_k(w)),  b_m the m-th bits of all x_i
    sum_i s_i t_i = n - 2 popcount(bits(s) XOR bits(t)),            a bit is 1 where the sign is +1

Packed tensors are int64 and have the bits along their last axis; what is missing to 64 is zero.  Both
products are exact.  Beside each stands the plain one, by multiplication, that it must equal.
"""

import numpy as np
import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError

WORD = 64
_AT_ONCE = 1 << 20  # words of an intermediate result: 8 MiB


def words_of(length: int) -> int:
    """Return how many words hold `length` bits."""
    return -(-length // WORD)


def pack(codes: Tensor, bits: int = 1) -> Tensor:
    """Pack integers (..., n) from 0 to 2^bits - 1, of any dtype, into planes (bits, ..., words), lowest bit first.

    Raises:
        WorkingPapersError: for other than 1 to 16 bits.
    """
    if not 1 <= bits <= 16:
        raise WorkingPapersError(f"codes of 1 to 16 bits can be packed; got bits={bits}")
    length = codes.shape[-1]
    padded = torch.nn.functional.pad(codes.long(), (0, words_of(length) * WORD - length))
    grouped = padded.unflatten(-1, (words_of(length), WORD))
    place = torch.arange(WORD, device=codes.device)
    planes = [((grouped >> bit & 1) << place).sum(-1) for bit in range(bits)]
    return torch.stack(planes)


def unpack(planes: Tensor, length: int) -> Tensor:
    """Undo `pack`: planes (bits, ..., words) -> int64 codes (..., length)."""
    place = torch.arange(WORD, device=planes.device)
    each = (planes.unsqueeze(-1) >> place & 1).flatten(-2)[..., :length]
    power = torch.arange(len(planes), device=planes.device).view(-1, *[1] * (each.ndim - 1))
    return (each << power).sum(0)


def popcount(words: Tensor) -> Tensor:
    """Return how many bits are 1 in each int64 word."""
    numpys = words.device.type == "cpu" and hasattr(np, "bitwise_count")  # numpy 2 has it, and is faster
    if numpys and not torch.compiler.is_compiling():
        return torch.from_numpy(np.bitwise_count(words.numpy().view(np.uint64)))
    return _popcount_by_sums(words)


def _popcount_by_sums(words: Tensor) -> Tensor:
    """Count by adding neighbouring bits, pairs, nibbles and bytes; the masks drop what a signed shift copies."""
    pairs = words - (words >> 1 & 0x5555555555555555)
    nibbles = (pairs & 0x3333333333333333) + (pairs >> 2 & 0x3333333333333333)
    octets = nibbles + (nibbles >> 4) & 0x0F0F0F0F0F0F0F0F
    return (octets * 0x0101010101010101 >> 56 & 0xFF).to(torch.uint8)


def _counted(x: Tensor, w: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return popcount(x AND w), or popcount((x XOR w) AND mask) with a mask: (N, V), (M, V) -> (N, M) int64."""
    rows = max(1, _AT_ONCE // max(1, w.numel()))
    found = torch.empty(len(x), len(w), dtype=torch.int64, device=x.device)
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        block = x[part, None]
        both = block & w if mask is None else (block ^ w) & mask[part, None]
        found[part] = popcount(both).sum(-1)
    return found


def code_products(x: Tensor, w: Tensor) -> Tensor:
    """Return the products of packed codes: planes (a, N, words) and (b, M, words) -> (N, M) int64.

    Raises:
        WorkingPapersError: where the two are not equally long.
    """
    _check(x, w)
    total = torch.zeros(x.shape[1], w.shape[1], dtype=torch.int64, device=x.device)
    for m, left in enumerate(x):
        for k, right in enumerate(w):
            total += _counted(left, right) << (m + k)
    return total


def code_products_plain(x: Tensor, w: Tensor) -> Tensor:
    """Return the products of integer codes (N, n) and (M, n) by multiplication, (N, M) int64."""
    return x.long() @ w.long().T


def sign_products(x: Tensor, w: Tensor, mask: Tensor) -> Tensor:
    """Return the products of packed signs: (N, words), (M, words), mask (N, words) -> (N, M) int64.

    The mask has a 1 wherever an element of x counts, and nowhere beyond its length; padded zeros do not count.

    Raises:
        WorkingPapersError: where the two are not equally long.
    """
    _check(x, w)
    return popcount(mask).sum(-1, keepdim=True) - 2 * _counted(x, w, mask)


def sign_products_plain(x: Tensor, w: Tensor) -> Tensor:
    """Return the products of values -1, 0 and +1, (N, n) and (M, n), by multiplication, (N, M) int64."""
    return x.long() @ w.long().T


def _check(x: Tensor, w: Tensor) -> None:
    if x.shape[-1] != w.shape[-1]:
        raise WorkingPapersError(
            f"packed rows are multiplied with equally long ones; got {x.shape[-1]} and {w.shape[-1]} words"
        )
