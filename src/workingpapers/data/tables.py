"""Tables of numbers: seven regression sets of the UCI collection with their 20 splits, and scikit-learn's own."""

import numpy as np
import torch
from numpy.typing import NDArray

from workingpapers.data.split import Split, balanced, standardise
from workingpapers.data.store import locate
from workingpapers.errors import WorkingPapersError, unknown

UCI = ("bostonHousing", "concrete", "energy", "kin8nm", "power-plant", "wine-quality-red", "yacht")
BUNDLED = ("diabetes", "breast_cancer", "wine", "iris")
NUM_SPLITS = 20


def table(name: str, split: int = 0) -> Split:
    """Load a table: float32 features (N, F), standardised by the training part.

    Regression (the UCI sets and `diabetes`): targets float32 (N, 1), standardised; `Split.y_std` keeps the
    scale.  Classification (`breast_cancer`, `wine`, `iris`): int64 labels.  `split` from 0 to 19 picks one of
    the 90/10 splits that come with a UCI set (Hernandez-Lobato and Adams, 2015), or seeds an 80/20 split of
    a set of scikit-learn, within each class where there are classes.
    """
    if name not in UCI + BUNDLED:
        raise unknown("table", name, UCI + BUNDLED)
    if not 0 <= split < NUM_SPLITS:
        raise WorkingPapersError(f"a table has the splits 0 to {NUM_SPLITS - 1}; asked for {split}")
    x, y, train, test = _uci(name, split) if name in UCI else _bundled(name, split)
    num_classes = 0 if y.dtype == np.float64 else int(y.max()) + 1
    features = torch.from_numpy(x)
    x_train, x_test = (part.float() for part in standardise(features[train], features[test], (0,)))
    if num_classes:
        labels = torch.from_numpy(y)
        return Split(x_train, labels[train], x_test, labels[test], num_classes, name)
    mean, std = float(y[train].mean()), float(y[train].std())
    targets = torch.from_numpy((y - mean) / std).float().unsqueeze(1)
    return Split(x_train, targets[train], x_test, targets[test], 0, name, mean, std)


Raw = tuple[NDArray[np.float64], NDArray, NDArray[np.int64], NDArray[np.int64]]


def _uci(name: str, split: int) -> Raw:
    folder = f"uci/{name}/"
    values = np.loadtxt(locate(folder + "data.txt"))
    features = np.loadtxt(locate(folder + "index_features.txt")).astype(np.int64)
    target = int(np.loadtxt(locate(folder + "index_target.txt")))
    train, test = (
        np.loadtxt(locate(f"{folder}index_{part}_{split}.txt")).astype(np.int64) for part in ("train", "test")
    )
    return values[:, features], values[:, target], train, test


def _bundled(name: str, split: int) -> Raw:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    x, y = np.asarray(bunch.data, np.float64), np.asarray(bunch.target)
    if name == "diabetes":
        order = balanced(np.zeros(len(y), np.int64), len(y), split)
        cut = round(0.8 * len(y))
        return x, y.astype(np.float64), order[:cut], order[cut:]
    y = y.astype(np.int64)
    order = balanced(y, len(y), split)
    members = [order[y[order] == label] for label in np.unique(y)]
    cuts = [round(0.8 * len(m)) for m in members]
    train = np.concatenate([m[:cut] for m, cut in zip(members, cuts, strict=True)])
    test = np.concatenate([m[cut:] for m, cut in zip(members, cuts, strict=True)])
    return x, y, train, test
