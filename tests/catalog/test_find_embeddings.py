"""Sentence embeddings in the search: with a stand-in model, and off unless they are asked for."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from workingpapers.catalog import embeddings
from workingpapers.catalog.find import find
from workingpapers.catalog.index import build
from workingpapers.catalog.records import record
from workingpapers.errors import WorkingPapersError

module = import_module("workingpapers.catalog.find")


def first(query: str) -> str:
    return find(query, limit=1)[0].record.id


class Colours:
    """A stand-in for an embedding model: it knows that crimson is near scarlet."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, sentences: list[str]) -> np.ndarray:
        self.calls += 1
        return np.array(
            [["crimson" in s or "scarlet" in s, "teal" in s, 0.1] for s in sentences], dtype=float
        )


def test_embeddings_take_part_when_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = replace(record("mish"), claims=(), topics=(), asks=(), formula=None, title="")
    teal = replace(one, id="teal_net", summary="teal network")
    scarlet = replace(one, id="scarlet_net", summary="scarlet network")
    built = build([teal, scarlet, replace(one, id="plain_net", summary="network")])
    monkeypatch.setattr(module, "index", lambda: built)
    model = Colours()
    monkeypatch.setattr(embeddings, "encoder", lambda: model)
    monkeypatch.setattr(embeddings, "_folder", lambda: tmp_path)
    assert first("crimson") == "scarlet_net"
    assert first("network crimson") == "scarlet_net"
    assert first("teal network") == "teal_net"
    assert model.calls == 4  # the papers once, then each query


def test_embeddings_are_off_unless_the_environment_names_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(embeddings.VARIABLE, raising=False)
    assert embeddings.encoder() is None
    monkeypatch.setenv(embeddings.VARIABLE, "some-model")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    embeddings._model.cache_clear()
    with pytest.raises(WorkingPapersError, match=r"pip install 'workingpapers\[embeddings\]'"):
        find("softmax")
