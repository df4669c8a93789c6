"""Data sets by name: from an offline folder, or downloaded once, checked and kept.

>>> from workingpapers.data import images, load, names
>>> images("digits").x_train.shape
torch.Size([1438, 1, 8, 8])

Set WORKINGPAPERS_DATA to a folder that holds the sets to work without a network.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from workingpapers.data.clicks import CLICKS, Ratings, clicks, movielens100k
from workingpapers.data.graphs import GRAPHS, Graph, graph
from workingpapers.data.images import IMAGES, images
from workingpapers.data.others import (
    VNNCOMP,
    Connection,
    Instance,
    Retina,
    Speech,
    celegans,
    fsdd,
    retina_chase,
    superres,
    vnncomp,
)
from workingpapers.data.sequences import Pairs, listops, pcfg_set, scan
from workingpapers.data.series import SERIES, Series, series
from workingpapers.data.split import Split
from workingpapers.data.store import locate_folder
from workingpapers.data.tables import BUNDLED, UCI, table
from workingpapers.data.text import TEXTS, Text, text
from workingpapers.errors import WorkingPapersError, unknown

__all__ = [
    "Connection",
    "Graph",
    "Instance",
    "Pairs",
    "Ratings",
    "Retina",
    "Series",
    "Speech",
    "Split",
    "Text",
    "celegans",
    "clicks",
    "fsdd",
    "graph",
    "images",
    "listops",
    "load",
    "movielens100k",
    "names",
    "path",
    "pcfg_set",
    "retina_chase",
    "scan",
    "series",
    "superres",
    "table",
    "text",
    "vnncomp",
]

# name -> (loader, folder of its files; None for what comes with scikit-learn)
_SETS: dict[str, tuple[Callable[..., Any], str | None]] = {
    **{name: (partial(images, name), None if name == "digits" else name) for name in IMAGES},
    **{name: (partial(table, name), f"uci/{name}") for name in UCI},
    **{name: (partial(table, name), None) for name in BUNDLED},
    **{name: (partial(text, name), name) for name in TEXTS},
    **{name: (partial(graph, name), "planetoid") for name in GRAPHS},
    **{name: (partial(series, name), name) for name in SERIES},
    **{name: (partial(clicks, name), "ctr_samples") for name in CLICKS},
    **{f"vnncomp/{name}": (partial(vnncomp, name), f"vnncomp/{name}") for name in VNNCOMP},
    **{
        loader.__name__: (loader, loader.__name__)
        for loader in (scan, listops, pcfg_set, movielens100k, fsdd, superres, retina_chase, celegans)
    },
}


def names() -> list[str]:
    """Return the names of all data sets, sorted."""
    return sorted(_SETS)


def load(name: str, **options: Any) -> Any:
    """Load the data set `name` by its loader (`images`, `table`, `text`, ...), which takes the `options`."""
    return _lookup(name)[0](**options)


def path(name: str) -> Path:
    """Return the folder that holds the files of the set `name`, downloaded and verified where need be."""
    folder = _lookup(name)[1]
    if folder is None:
        raise WorkingPapersError(f"{name!r} comes with scikit-learn and has no folder; use load({name!r})")
    return locate_folder(folder)


def _lookup(name: str) -> tuple[Callable[..., Any], str | None]:
    if name not in _SETS:
        raise unknown("data set", name, _SETS)
    return _SETS[name]
