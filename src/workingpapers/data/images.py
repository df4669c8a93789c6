"""Image classification: digits, mnist, fashion_mnist, cifar10."""

import gzip
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from workingpapers.data.split import Split, balanced, standardise
from workingpapers.data.store import locate
from workingpapers.errors import WorkingPapersError, unknown

IMAGES = ("digits", "mnist", "fashion_mnist", "cifar10")
NUM_CLASSES = 10

Bytes = NDArray[np.uint8]
Arrays = tuple[Bytes, Bytes, Bytes, Bytes]


def images(
    name: str,
    train: int | None = None,
    test: int | None = None,
    size: int | None = None,
    seed: int = 0,
    normalise: bool = True,
) -> Split:
    """Load images as float32 (N, C, H, W) with int64 labels (N,).

    `train` and `test` say how many (default all): a choice by `seed` with the classes in equal numbers, of
    which a smaller one is part of a larger one.  `size` pools by averages down to size x size.  Pixels are
    in [0, 1], and with `normalise` standardised per channel by the training part.  The 1,797 `digits` of
    scikit-learn (8x8) are split 80/20 within each class, by `seed`; the other sets keep their own test part.
    """
    if name not in IMAGES:
        raise unknown("image set", name, IMAGES)
    x_train, y_train, x_test, y_test = _digits(seed) if name == "digits" else _arrays(name)
    x_train, y_train = _choose(name, "training", x_train, y_train, train, seed)
    x_test, y_test = _choose(name, "test", x_test, y_test, test, seed)
    inputs, test_inputs = _floats(x_train, size, name), _floats(x_test, size, name)
    if normalise:
        inputs, test_inputs = standardise(inputs, test_inputs, (0, 2, 3))
    return Split(
        inputs,
        torch.from_numpy(y_train.astype(np.int64)),
        test_inputs,
        torch.from_numpy(y_test.astype(np.int64)),
        NUM_CLASSES,
        name,
    )


def _choose(name: str, part: str, x: Bytes, y: Bytes, count: int | None, seed: int) -> tuple[Bytes, Bytes]:
    if count is None:
        return x, y
    if not 1 <= count <= len(x):
        raise WorkingPapersError(f"{name} has {len(x)} {part} images; asked for {count}")
    chosen = balanced(y, count, seed)
    return x[chosen], y[chosen]


def _floats(x: Bytes, size: int | None, name: str) -> Tensor:
    """Turn (N, H, W) or (N, H, W, C) bytes into (N, C, size, size) floats in [0, 1]."""
    tensor = torch.from_numpy(x.astype(np.float32)).div_(16.0 if name == "digits" else 255.0)
    tensor = tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
    if size is None:
        return tensor
    if not 1 <= size <= tensor.shape[-1]:
        raise WorkingPapersError(
            f"{name} images can be pooled to a size from 1 to {tensor.shape[-1]}; got {size}"
        )
    return F.adaptive_avg_pool2d(tensor, size)


def _digits(seed: int) -> Arrays:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)
    order = balanced(y, len(y), seed)
    in_test = np.zeros(len(y), dtype=bool)
    for label in range(NUM_CLASSES):
        members = order[y[order] == label]
        in_test[members[round(0.8 * len(members)) :]] = True
    return x[~in_test], y[~in_test], x[in_test], y[in_test]


@lru_cache(maxsize=2)
def _arrays(name: str) -> Arrays:
    if name == "cifar10":
        with np.load(locate("cifar10/cifar10_20k_5k.npz")) as z:
            return z["x_train"], z["y_train"].astype(np.uint8), z["x_test"], z["y_test"].astype(np.uint8)
    return (
        _idx(f"{name}/train-images-idx3-ubyte.gz"),
        _idx(f"{name}/train-labels-idx1-ubyte.gz"),
        _idx(f"{name}/t10k-images-idx3-ubyte.gz"),
        _idx(f"{name}/t10k-labels-idx1-ubyte.gz"),
    )


def _idx(file: str) -> Bytes:
    """Read the IDX format: a big-endian header (magic, sizes), then the bytes."""
    with gzip.open(locate(file)) as stream:
        content = stream.read()
    ndim = content[3]
    shape = np.frombuffer(content, ">i4", count=ndim, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)
