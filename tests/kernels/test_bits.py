"""Bit products: exactly what multiplication gives, at every width and at lengths around a word."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.errors import WorkingPapersError
from workingpapers.kernels import bits

LENGTHS = (1, 63, 64, 65, 128, 1000)


def codes(rows: int, length: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**width, (rows, length), generator=generator)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("width", [1, 2, 3, 8, 16])
def test_unpack_undoes_pack(length: int, width: int) -> None:
    x = codes(3, length, width)
    planes = bits.pack(x, width)
    assert planes.shape == (width, 3, -(-length // 64))
    assert planes.dtype == torch.int64
    assert torch.equal(bits.unpack(planes, length), x)
    assert torch.equal(bits.pack(x.float(), width), planes)


def test_bits_stand_where_they_belong() -> None:
    x = torch.zeros(1, 66)
    x[0, [0, 5, 63, 64]] = 1
    words = bits.pack(x)[0, 0].numpy().view(np.uint64)
    assert [int(w) for w in words] == [1 + 2**5 + 2**63, 1]


def test_dot_of_the_paper() -> None:
    x, w = bits.pack(torch.tensor([[3, 1]]), 2), bits.pack(torch.tensor([[2, 3]]), 2)
    assert bits.code_products(x, w).tolist() == [[9]]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 2), (3, 2), (4, 4), (8, 5)])
def test_code_products_are_exact(length: int, a: int, b: int) -> None:
    x, w = codes(7, length, a), codes(5, length, b, seed=1)
    found = bits.code_products(bits.pack(x, a), bits.pack(w, b))
    assert torch.equal(found, bits.code_products_plain(x, w))
    np.testing.assert_array_equal(found.numpy(), x.double().numpy() @ w.double().numpy().T)


@pytest.mark.parametrize("length", LENGTHS)
def test_sign_products_are_exact_with_and_without_zeros(length: int) -> None:
    x, w = 2 * codes(7, length, 1) - 1, 2 * codes(5, length, 1, seed=1) - 1
    zeros = codes(7, length, 1, seed=2)
    for signs in (x, x * zeros):
        found = bits.sign_products(bits.pack(signs > 0)[0], bits.pack(w > 0)[0], bits.pack(signs != 0)[0])
        assert torch.equal(found, bits.sign_products_plain(signs, w))
        np.testing.assert_array_equal(found.numpy(), signs.double().numpy() @ w.double().numpy().T)


def test_large_products_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = codes(11, 130, 2), codes(6, 130, 3, seed=1)
    monkeypatch.setattr(bits, "_AT_ONCE", 40)
    assert torch.equal(bits.code_products(bits.pack(x, 2), bits.pack(w, 3)), bits.code_products_plain(x, w))


def test_nothing_times_something_is_nothing() -> None:
    empty = bits.pack(torch.zeros(0, 70), 2)
    assert bits.code_products(empty, bits.pack(codes(4, 70, 1))).shape == (0, 4)
    assert bits.code_products(bits.pack(codes(4, 70, 1)), empty).shape == (4, 0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8))
def test_both_counts_are_those_of_python(words: list[int]) -> None:
    expected = [bin(w % 2**64).count("1") for w in words]
    assert bits.popcount(torch.tensor(words)).tolist() == expected
    assert bits._popcount_by_sums(torch.tensor(words)).tolist() == expected


def test_wrong_sizes_are_told() -> None:
    with pytest.raises(WorkingPapersError, match="codes of 1 to 16 bits can be packed; got bits=17"):
        bits.pack(torch.zeros(1, 3), 17)
    with pytest.raises(WorkingPapersError, match="got 1 and 2 words"):
        bits.code_products(torch.zeros(1, 2, 1).long(), torch.zeros(1, 2, 2).long())
    with pytest.raises(WorkingPapersError, match="got 1 and 2 words"):
        bits.sign_products(*(torch.zeros(2, n).long() for n in (1, 2, 1)))
