"""A recurrent controller that picks one choice after another, taught by proximal policy optimisation."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.errors import unknown

CLIP = 0.2
FLOOR = 0.1  # share of the policy that stays uniform, so that it never locks in on one point


class Controller(nn.Module):
    """An LSTM that emits a choice for each of the variables; each choice is its next input.

    Args:
        counts: how many choices each variable has.
        hidden_dim: width of the LSTM and of the embedding of choices.
        lr: learning rate of Adam.
        entropy: weight of the bonus for undecided policies.
        seed: decides the initial weights.
    """

    def __init__(
        self,
        counts: Sequence[int],
        hidden_dim: int = 32,
        lr: float = 0.02,
        entropy: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.counts, self.entropy, self.epochs = list(counts), entropy, 6
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.first = nn.Parameter(torch.randn(hidden_dim) * 0.1)
            self.cell = nn.LSTMCell(hidden_dim, hidden_dim)
            self.embed = nn.ModuleList(nn.Embedding(n, hidden_dim) for n in counts)
            self.heads = nn.ModuleList(nn.Linear(hidden_dim, n) for n in counts)
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)  # so that the first policy is uniform
        self.optimizer = torch.optim.Adam(self.parameters(), lr)
        self.baseline = 0.0
        self.seen = 0

    def forward(
        self, choices: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return choices (B, V), their log-probabilities (B,) and the policy's entropy (B,).

        `choices` None draws one row by `generator`.
        """
        rows = 1 if choices is None else len(choices)
        token, state = self.first.expand(rows, -1), None
        picked, logs, entropy = [], [], []
        for place, (embed, head) in enumerate(zip(self.embed, self.heads, strict=True)):
            state = self.cell(token, state)
            policy = (1 - FLOOR) * head(state[0]).softmax(-1) + FLOOR / self.counts[place]
            log = policy.log()
            if choices is None:
                chosen = torch.multinomial(policy.detach(), 1, generator=generator)[:, 0]
            else:
                chosen = choices[:, place]
            token = embed(chosen)
            picked.append(chosen)
            logs.append(log.gather(1, chosen[:, None])[:, 0])
            entropy.append(-(policy * log).sum(-1))
        return torch.stack(picked, 1), torch.stack(logs).sum(0), torch.stack(entropy).sum(0)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> list[int]:
        """Draw the numbers of one choice per variable."""
        return [int(n) for n in self(None, generator)[0][0]]

    def learn(self, choices: Sequence[Sequence[int]], rewards: Sequence[float]) -> None:
        """Take a few clipped steps towards the choices whose rewards beat the moving average."""
        drawn, reward = torch.tensor(choices), torch.tensor(rewards)
        self.baseline = (
            float(reward.mean()) if self.seen == 0 else 0.8 * self.baseline + 0.2 * float(reward.mean())
        )
        self.seen += 1
        advantage = reward - self.baseline
        advantage = advantage / (float(advantage.square().mean()) ** 0.5 + 1e-8)
        with torch.no_grad():
            before = self(drawn)[1]
        for _ in range(self.epochs):
            _, now, entropy = self(drawn)
            ratio = (now - before).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            self.optimizer.zero_grad()
            (-(gain + self.entropy * entropy).mean()).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()


def proposals(space: Mapping[str, list[Any]], method: str, budget: int, seed: int) -> "_Listed | _Controlled":
    """Return what proposes the numbers of choices: a list where the budget covers the space, or the controller."""
    size = math.prod(len(choices) for choices in space.values())
    chosen = ("enumerate" if size <= budget else "controller") if method == "auto" else method
    if chosen == "enumerate":
        return _Listed(space, seed)
    if chosen == "controller":
        return _Controlled(space, seed)
    raise unknown("search method", method, ("auto", "enumerate", "controller"))


class _Listed:
    """Every point once, in an order drawn by the seed."""

    def __init__(self, space: Mapping[str, list[Any]], seed: int) -> None:
        points = list(itertools.product(*(range(len(choices)) for choices in space.values())))
        order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
        self.rest = iter([points[i] for i in order])

    def propose(self) -> list[int] | None:
        return next((list(p) for p in self.rest), None)

    def tell(self, choices: list[int], value: float) -> None:
        """Learn nothing: the list is fixed."""


class _Controlled:
    """Points drawn by the controller, which learns after every batch of eight."""

    def __init__(self, space: Mapping[str, list[Any]], seed: int) -> None:
        self.controller = Controller([len(choices) for choices in space.values()], seed=seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.batch: list[tuple[list[int], float]] = []
        self.worst = 0.0

    def propose(self) -> list[int] | None:
        return self.controller.draw(self.generator)

    def tell(self, choices: list[int], value: float) -> None:
        if math.isfinite(value):
            self.worst = min(self.worst, value)
        # the paper rewards a diverged child by 0, which is the worst accuracy
        self.batch.append((choices, value if math.isfinite(value) else self.worst))
        if len(self.batch) == 8:
            self.controller.learn(*zip(*self.batch, strict=True))
            self.batch = []
