"""Images: sizes, class balance, standardisation, pooling, and pixels against an independent reading."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from workingpapers.data import images
from workingpapers.data.split import balanced, standardise
from workingpapers.errors import UnknownName, WorkingPapersError


@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [
        ("mnist", 60_000, 10_000, (1, 28, 28)),
        ("fashion_mnist", 60_000, 10_000, (1, 28, 28)),
        ("cifar10", 20_000, 5_000, (3, 32, 32)),
    ],
)
def test_the_sets_have_their_sizes(
    data_folder: Path, name: str, train: int, test: int, shape: tuple[int, ...]
) -> None:
    split = images(name, normalise=False)
    assert split.x_train.shape == (train, *shape)
    assert split.x_test.shape == (test, *shape)
    assert split.y_train.shape == (train,)
    assert split.y_train.dtype == torch.int64
    assert split.x_train.dtype == torch.float32
    assert 0 <= float(split.x_train.min()) < float(split.x_train.max()) == 1.0
    if name != "mnist":
        assert split.y_train.bincount().tolist() == [train // 10] * 10
        assert split.y_test.bincount().tolist() == [test // 10] * 10


def test_idx_pixels_are_where_they_belong(data_folder: Path) -> None:
    raw = gzip.decompress((data_folder / "mnist/t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    expected = torch.tensor(list(raw[784 * 7 : 784 * 8])).view(28, 28) / 255
    assert torch.equal(images("mnist", normalise=False).x_test[7, 0], expected)
    labels = gzip.decompress((data_folder / "mnist/t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    assert images("mnist").y_test[:20].tolist() == list(labels[:20])


def test_cifar_channels_come_first(data_folder: Path) -> None:
    with np.load(data_folder / "cifar10/cifar10_20k_5k.npz") as z:
        pixel = z["x_test"][3, 5, 9]
    found = images("cifar10", normalise=False).x_test[3, :, 5, 9]
    assert torch.equal((found * 255).round().int(), torch.tensor(pixel).int())


def test_digits_are_split_80_to_20_within_each_class() -> None:
    split = images("digits", normalise=False)
    train, test = split.y_train.bincount(), split.y_test.bincount()
    assert int((train + test).sum()) == 1797
    assert torch.all((0.8 * (train + test) - train).abs() <= 0.5)
    assert float(split.x_train.max()) == 1.0


def test_digits_parts_are_disjoint_and_whole() -> None:
    from sklearn.datasets import load_digits

    split = images("digits", normalise=False)
    both = torch.cat([split.x_train, split.x_test]).flatten(1) * 16
    ours = sorted(map(tuple, both.int().tolist()))
    assert ours == sorted(map(tuple, load_digits().data.astype(int).tolist()))


def test_the_seed_decides_the_digits_split() -> None:
    first, again, other = (images("digits", seed=s) for s in (1, 1, 2))
    assert torch.equal(first.x_test, again.x_test)
    assert not torch.equal(first.x_test, other.x_test)


def test_a_choice_is_balanced_and_nested(data_folder: Path) -> None:
    small, large = (images("mnist", train=n, test=103, normalise=False) for n in (500, 1000))
    assert small.y_train.bincount().tolist() == [50] * 10
    assert set(small.y_test.bincount().tolist()) == {10, 11}
    assert torch.equal(small.x_train, large.x_train[:500])
    other = images("mnist", train=500, test=103, seed=1, normalise=False)
    assert not torch.equal(small.x_train, other.x_train)


def test_balance_gives_way_only_where_a_class_runs_out() -> None:
    labels = np.array([0] * 3 + [1] * 10 + [2] * 10)
    chosen = balanced(labels, 15, seed=0)
    assert len(set(chosen.tolist())) == 15
    assert np.bincount(labels[chosen]).tolist() == [3, 6, 6]


def test_channels_are_standardised_by_the_training_part(data_folder: Path) -> None:
    split, raw = images("cifar10", 1000, 500), images("cifar10", 1000, 500, normalise=False)
    assert torch.allclose(split.x_train.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(split.x_train.std((0, 2, 3)), torch.ones(3), atol=1e-4)
    mean, std = raw.x_train.mean((0, 2, 3)), raw.x_train.std((0, 2, 3), correction=0)
    expected = (raw.x_test - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert torch.allclose(split.x_test, expected, atol=1e-4)
    assert float(split.x_test.mean().abs()) > 1e-4  # not standardised by itself


def test_constant_columns_are_only_shifted() -> None:
    train = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    ours, test = standardise(train, torch.tensor([[2.0, 6.0]]), (0,))
    assert ours.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert test.tolist() == [[0.0, 1.0]]


def test_pooling_takes_means_of_blocks(data_folder: Path) -> None:
    full = images("cifar10", 20, 10, normalise=False).x_test
    pooled = images("cifar10", 20, 10, size=16, normalise=False).x_test
    blocks = (
        full[:, :, ::2, ::2] + full[:, :, 1::2, ::2] + full[:, :, ::2, 1::2] + full[:, :, 1::2, 1::2]
    ) / 4
    assert torch.allclose(pooled, blocks, atol=1e-6)


def test_loading_twice_gives_separate_tensors() -> None:
    images("digits").x_train.zero_()
    assert float(images("digits").x_train.abs().sum()) > 0


def test_errors_say_what_is_valid() -> None:
    with pytest.raises(UnknownName, match="'digits'"):
        images("digit")
    with pytest.raises(WorkingPapersError, match="digits has 1438 training images; asked for 2000"):
        images("digits", train=2000)
    with pytest.raises(WorkingPapersError, match="from 1 to 8; got 9"):
        images("digits", size=9)
