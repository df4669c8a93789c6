"""Sentence embeddings in place of latent semantic analysis, for those who ask for them.

Set WORKINGPAPERS_EMBEDDINGS to the name of a sentence-transformers model, such as all-MiniLM-L6-v2, and install
`workingpapers[embeddings]`.  Nothing is imported or downloaded otherwise: a search must answer at once.
"""

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from workingpapers.errors import WorkingPapersError

if TYPE_CHECKING:
    import numpy as np

VARIABLE = "WORKINGPAPERS_EMBEDDINGS"


class Encoder(Protocol):
    """What turns texts into vectors, as a sentence-transformers model does."""

    def encode(self, sentences: list[str]) -> "np.ndarray":
        """Return one row a sentence."""


def encoder() -> Encoder | None:
    """Return the model that the environment asks for, or None."""
    name = os.environ.get(VARIABLE)
    return _model(name) if name else None


@lru_cache(maxsize=1)
def _model(name: str) -> Encoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise WorkingPapersError(
            f"{VARIABLE}={name} asks for sentence embeddings, which need sentence-transformers: "
            "pip install 'workingpapers[embeddings]'"
        ) from None
    try:
        model: Encoder = SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise WorkingPapersError(f"{VARIABLE}={name} names no model that could be loaded: {error}") from None
    return model


def cosines(model: Encoder, query: str, documents: Sequence[str]) -> list[float]:
    """Return the cosine of the query's embedding with that of every document."""
    rows = _embedded(model, documents)
    return list(map(float, rows @ _unit(model.encode([query]))[0]))


def _embedded(model: Encoder, documents: Sequence[str]) -> "np.ndarray":
    """Embed the documents once for every model, and keep that in the user's cache folder."""
    import numpy as np

    name = os.environ.get(VARIABLE, "")
    key = hashlib.sha256("\x1f".join([name, *documents]).encode()).hexdigest()[:16]
    path = _folder() / f"{key}.npy"
    if path.exists():
        known: np.ndarray = np.load(path)
        return known
    rows = _unit(model.encode(list(documents)))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rows)
    return rows


def _folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("workingpapers") / "embeddings"


def _unit(rows: "np.ndarray") -> "np.ndarray":
    import numpy as np

    found = np.asarray(rows, dtype=np.float32)
    unit: np.ndarray = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return unit
