"""Text as token streams: tinyshakespeare by characters, wikitext2 by words."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from workingpapers.data.store import locate
from workingpapers.errors import WorkingPapersError, unknown

TEXTS = ("tinyshakespeare", "wikitext2")
UNKNOWN_WORD = "<unk>"


@dataclass(frozen=True)
class Text:
    """Two streams of token numbers (int64, 1-D); number i stands for `vocabulary[i]`."""

    train: Tensor
    test: Tensor
    vocabulary: list[str]
    name: str

    def decode(self, tokens: Tensor) -> str:
        """Return the text of a 1-D tensor of token numbers."""
        between = " " if self.name == "wikitext2" else ""
        return between.join(self.vocabulary[i] for i in tokens.tolist())


def text(name: str, words: int | None = None) -> Text:
    """Load a text: `tinyshakespeare` by its 65 characters (first 90 % to train), `wikitext2` by words.

    wikitext2 trains on its validation file and tests on its test file (its training file is not here); words
    that the training part lacks are `<unk>`, and with `words` all but that many most frequent ones.
    """
    if name not in TEXTS:
        raise unknown("text", name, TEXTS)
    if name == "tinyshakespeare":
        if words is not None:
            raise WorkingPapersError("tinyshakespeare is read by characters; `words` is for wikitext2")
        return _characters()
    return _words(words)


@lru_cache(maxsize=1)
def _characters() -> Text:
    content = locate("tinyshakespeare/input.txt").read_text("utf-8")
    vocabulary = sorted(set(content))
    number = {c: i for i, c in enumerate(vocabulary)}
    stream = torch.tensor([number[c] for c in content])
    cut = int(0.9 * len(stream))
    return Text(stream[:cut], stream[cut:], vocabulary, "tinyshakespeare")


@lru_cache(maxsize=2)
def _words(count: int | None) -> Text:
    train, test = (
        locate(f"wikitext2/{part}.txt").read_text("utf-8").replace("\n", " <eos> ").split()
        for part in ("valid", "test")
    )
    frequent = [word for word, _ in Counter(train).most_common()]
    if count is not None and not 2 <= count <= len(frequent):
        raise WorkingPapersError(
            f"the training part of wikitext2 has {len(frequent)} different words; asked for {count}"
        )
    kept = frequent[:count]
    vocabulary = sorted(kept if UNKNOWN_WORD in kept else [*kept[:-1], UNKNOWN_WORD])
    number = {word: i for i, word in enumerate(vocabulary)}
    other = number[UNKNOWN_WORD]
    streams = [torch.tensor([number.get(word, other) for word in part]) for part in (train, test)]
    return Text(streams[0], streams[1], vocabulary, "wikitext2")
