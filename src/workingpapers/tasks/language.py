"""Language modelling as a problem: windows of a token stream."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Text
from workingpapers.errors import WorkingPapersError
from workingpapers.tasks.problems import Problem, full_batches, together

_EVALUATION_BATCH = 64


class LanguageModelling(Problem):
    """Predict each token from those before: windows of `context` tokens from random places of the stream.

    An epoch is as many windows as fit into the training part side by side.  Measured on the first
    `test_tokens` tokens of the test part in windows side by side: loss in nats a token, and perplexity.
    """

    metrics = ("loss", "perplexity")

    def __init__(self, text: Text, context: int, test_tokens: int = 50_000) -> None:
        for part, stream in (("training", text.train), ("test", text.test)):
            if not 1 <= context < len(stream):
                raise WorkingPapersError(
                    f"a context has 1 to {len(stream) - 1} tokens of the {part} part of {text.name}; got {context}"
                )
        self.text, self.context, self.test_tokens = text, context, test_tokens

    def to(self, device: torch.device) -> Self:
        """Return the problem with its streams on `device`."""
        text = replace(self.text, train=self.text.train.to(device), test=self.text.test.to(device))
        return type(self)(text, self.context, self.test_tokens)

    def steps_per_epoch(self, batch: int) -> int:
        """Return how many batches of windows fit into the training part side by side."""
        return full_batches((len(self.text.train) - 1) // self.context, batch)

    def batches(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Give windows (B, T) and the same windows one token later."""
        offsets = torch.arange(self.context + 1)
        for _ in range(self.steps_per_epoch(batch)):
            starts = torch.randint(len(self.text.train) - self.context, (batch, 1), generator=generator)
            windows = self.text.train[(starts + offsets).to(self.text.train.device)]
            yield windows[:, :-1], windows[:, 1:]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross-entropy of the logits (B, T, V) a token."""
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the mean loss a token and its exponential over the test windows."""
        count = max(min(self.test_tokens, len(self.text.test) - 1) // self.context, 1)
        inputs = self.text.test[: count * self.context].view(count, self.context)
        targets = self.text.test[1 : count * self.context + 1].view(count, self.context)
        parts = together(inputs, targets, _EVALUATION_BATCH)
        loss = sum(float(self.loss(model, part)) * len(part[0]) for part in parts) / count
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
