"""Citation graphs with the public split: cora and citeseer."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workingpapers.data.store import locate
from workingpapers.errors import unknown

GRAPHS = ("cora", "citeseer")


@dataclass(frozen=True)
class Graph:
    """A graph whose nodes have features and labels.

    x: float32 (N, F), words present in the paper (0 or 1).  edges: int64 (2, E), source over target, every
    undirected edge in both directions, self loops once.  y: int64 (N,), -1 where there is no label.
    train, val, test: int64 indices of nodes.
    """

    x: Tensor
    edges: Tensor
    y: Tensor
    train: Tensor
    val: Tensor
    test: Tensor
    num_classes: int
    name: str


def graph(name: str) -> Graph:
    """Load the citation graph `name` with the split of Yang et al. (2016): 20 training nodes a class."""
    if name not in GRAPHS:
        raise unknown("graph", name, GRAPHS)
    with np.load(locate(f"planetoid/{name}.npz")) as z:
        x = np.zeros((int(z["n"]), int(z["n_features"])), np.float32)
        x[np.repeat(np.arange(len(x)), np.diff(z["indptr"])), z["indices"]] = z["data"]
        pairs = torch.from_numpy(z["edges"].astype(np.int64)).T
        y, train, val, test = (torch.from_numpy(z[k].astype(np.int64)) for k in ("y", "train", "val", "test"))
    loops = pairs[0] == pairs[1]
    edges = torch.cat([pairs, pairs[:, ~loops].flip(0)], dim=1)
    return Graph(torch.from_numpy(x), edges, y, train, val, test, int(y.max()) + 1, name)
