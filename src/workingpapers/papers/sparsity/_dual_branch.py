"""Dynamic Perceiver's network for any backbone of four stages."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._early_exits import State, all_exits
from workingpapers.papers.sparsity._latent_branch import (
    Narrowing,
    Reading,
    Shortcut,
    Writing,
    halvings,
    widths_for,
)

HEADS = (1, 2, 4, 8)


class DualBranch(nn.Module):
    """A backbone of four stages with a branch of latent tokens, and four exits.

    Args:
        stem, stages: the backbone's modules.
        widths: channels behind the stem and behind each stage.
        classes: number of outputs.
        num_latents: tokens at first, halved between stages.
        dim: their width at first; default that of the features behind the stem.
        depths: self-attention blocks of each stage.
        heads: of these.
        pool: side to which maps are pooled for the tokens to read.
    """

    exits = 4

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        widths: Sequence[int],
        classes: int,
        num_latents: int = 128,
        dim: int | None = None,
        depths: Sequence[int] = (3, 3, 9, 3),
        heads: Sequence[int] = HEADS,
        pool: int = 7,
    ) -> None:
        super().__init__()
        if len(stages) != 4 or len(widths) != 5:
            raise WorkingPapersError(f"the backbone has a stem and four stages; got {len(stages)} stages")
        self.stem, self.stages = stem, nn.ModuleList(stages)
        tokens, dims = halvings(num_latents, 4), widths_for(widths[:4], dim)
        self.latents = nn.Parameter(torch.empty(num_latents, dims[0]))
        nn.init.trunc_normal_(self.latents, std=0.02)
        self.reading = nn.ModuleList(
            Reading(d, c, n, h, pool) for d, c, n, h in zip(dims, widths, depths, heads, strict=False)
        )
        self.narrowing = nn.ModuleList(
            Narrowing((tokens[i], tokens[i + 1]), (dims[i], dims[i + 1])) for i in range(3)
        )
        self.writing = nn.ModuleList(Writing(widths[i], dims[min(i, 3)]) for i in range(1, 5))
        last = dims[3]
        self.shortcuts = nn.ModuleList(Shortcut(classes, last) for _ in range(2))
        merged = widths[4] + 2 * last
        self.heads = nn.ModuleList(
            [nn.Linear(dims[2], classes), nn.Linear(2 * last, classes), nn.Linear(widths[4], classes)]
        )
        self.heads.append(nn.Sequential(nn.BatchNorm1d(merged), nn.Linear(merged, classes)))

    def start(self, x: Tensor) -> State:
        """Return features and tokens behind the first exchange: the state before the first exit."""
        x = self.stem(x)
        z = self.reading[0](self.latents.expand(len(x), -1, -1), x)
        return self._stage(1, *self._stage(0, x, z))

    def _stage(self, i: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Run stage i of the features, and let tokens and features read each other behind it."""
        x, z = self.stages[i](x), self.narrowing[i](z)
        x = self.writing[i](x, z)
        return x, self.reading[i + 1](z, x)

    def advance(self, number: int, state: State) -> tuple[Tensor, State]:
        """Return the logits (B, K) of exit 0, 1, 2 or 3 and the state there, given that of the exit before."""
        x, z, *cues = state
        if number == 0:
            logits = self.heads[0](z.mean(1))
            return logits, (x, z, logits)
        if number == 1:
            x, z = self._stage(2, x, z)
            logits = self.heads[1](torch.cat([z.mean(1), self.shortcuts[0](cues[0])], 1))
            return logits, (x, z, logits)
        if number == 2:
            x = self.stages[3](x)
            return self.heads[2](x.mean((2, 3))), (x, z, *cues)
        x = self.writing[3](x, z)
        seen = torch.cat([x.mean((2, 3)), z.mean(1), self.shortcuts[1](cues[0])], 1)
        return self.heads[3](seen), (x, z, *cues)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of all exits, (B, K) each, the last one the best informed."""
        return all_exits(self, x)
