"""Gradient flow of a two-layer ReLU network in small steps, and where its neurons point on the way.

    f(x) = sum_j v_j relu(w_j . x),   loss = sum_i exp(-y_i f(x_i))  or  2 log(1 + exp(-y_i f(x_i))),   y = +-1

Both losses have the slope -y at 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.tasks.randomness import stream

Floats = NDArray[np.float64]
LOSSES = ("exponential", "logistic")


def signs(y: Tensor) -> Tensor:
    """Return labels (n,) of two values as -1 and +1 in float64, the larger one +1."""
    values = y.unique()
    if y.ndim != 1 or len(values) != 2:
        raise WorkingPapersError(f"labels are (n,) of two values; got {tuple(y.shape)} of {len(values)}")
    return torch.where(y == values[1], 1.0, -1.0).double()


def separated(count: int, mu: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `count` unit vectors (count, count + 1) in float64 and labels +-1, half of each.

    Any two of the same label have the cosine `mu`, any two of different labels -`mu`.
    """
    if not 0 <= mu <= 1 or count < 2:
        raise WorkingPapersError(f"separated data are at least 2, of mu from 0 to 1; got {count} and {mu}")
    basis = torch.linalg.qr(torch.randn(count + 1, count + 1, generator=generator, dtype=torch.float64))[0]
    y = 1.0 - 2.0 * (torch.arange(count) % 2).double()
    return y[:, None] * (mu**0.5 * basis[:1] + (1 - mu) ** 0.5 * basis[1:]), y


def separation(x: Tensor, y: Tensor) -> float:
    """Return the largest mu with which all pairs are separated: the least y_i y_j cos(x_i, x_j), i not j."""
    unit = torch.nn.functional.normalize(x.double().flatten(1), dim=1) * signs(y)[:, None]
    rows, columns = torch.triu_indices(len(x), len(x), 1)
    return float((unit @ unit.T)[rows, columns].min())


def separated_part(x: Tensor, y: Tensor, mu: float) -> Tensor:
    """Return which points (n,) bool are left when those in most pairs below `mu` go, one by one, until none is."""
    unit = torch.nn.functional.normalize(x.double().flatten(1), dim=1) * signs(y)[:, None]
    close = (unit @ unit.T).fill_diagonal_(1.0) < mu
    left = torch.ones(len(x), dtype=torch.bool, device=x.device)
    while bool((bad := (close & left).sum(1) * left).any()):
        left[bad.argmax()] = False
    return left


def start(hidden: int, dim: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return balanced weights: w (hidden, dim), Gaussian times `scale`, and v (hidden,) = +-|w|, half of each."""
    w = scale * torch.randn(hidden, dim, generator=generator, dtype=torch.float64)
    return w, w.norm(dim=1) * (1.0 - 2.0 * (torch.arange(hidden) % 2).double())


def phases(pre: Tensor, y: Tensor, v: Tensor, tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return which neurons are aligned and which are dead, (hidden,) each, from preactivations (n, hidden).

    Aligned: on for all points whose label is the sign of v and off for all others, but for a share `tolerance` of
    the points.  Dead: off for all but such a share.
    """
    on = pre > 0
    right = (on == (y[:, None] * v.sign() > 0)).double().mean(0)
    dead = on.double().mean(0) <= tolerance
    return (right >= 1 - tolerance) & ~dead, dead


def velocity(w: Tensor, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return d/dt of w / |w| (hidden, dim) in the early phase: sign(v) times the sum of y_i x_i over active points.

    Of that sum the part orthogonal to w.
    """
    on = (x @ w.T > 0).to(x.dtype)
    push = v.sign()[:, None] * ((on * y[:, None]).T @ x)
    unit = w / w.norm(dim=1, keepdim=True)
    turn: Tensor = push - (push * unit).sum(1, keepdim=True) * unit
    return turn


@dataclass(frozen=True)
class Flow:
    """A run: by step the `time`, `loss` and shares of neurons `aligned` and `dead`; the last weights and outputs.

    `kept` are (time, w, v) at about a hundred steps, evenly spread, and `imbalance` the largest change of
    |w|^2 - v^2 of a neuron over its last |w|^2.  `sign_changes` counts neurons whose v changed its sign.
    """

    time: Floats
    loss: Floats
    aligned: Floats
    dead: Floats
    w: Tensor
    v: Tensor
    kept: list[tuple[float, Tensor, Tensor]]
    imbalance: float
    sign_changes: int

    def alignment_time(self) -> float:
        """Return when all neurons are aligned or dead and stay so; infinite where they are not at the end."""
        apart = np.nonzero(self.aligned + self.dead < 1 - 1e-9)[0]
        last = int(apart[-1]) + 1 if len(apart) else 0
        return float(self.time[last]) if last < len(self.time) else float("inf")

    def when_loss_fell(self, share: float) -> int:
        """Return the first step at which the loss has fallen by `share` of its start; the last if it never did."""
        below = np.nonzero(self.loss <= (1 - share) * self.loss[0])[0]
        return int(below[0]) if len(below) else len(self.loss) - 1

    def decay(self) -> float:
        """Return the slope of log loss over log time in the last tenfold fall of the loss."""
        tail = (self.loss <= 10 * self.loss[-1]) & (self.time > 0)
        if int(tail.sum()) < 3:
            return 0.0
        return float(np.polyfit(np.log(self.time[tail]), np.log(self.loss[tail]), 1)[0])


def flow(
    x: Tensor,
    y: Tensor,
    w: Tensor,
    v: Tensor,
    loss: str = "exponential",
    until: float = 1e-3,
    step: float = 0.05,
    most: int = 20_000,
    stop: Callable[[float, float], bool] | None = None,
    tolerance: float = 0.0,
) -> Flow:
    """Follow gradient flow from `w` (hidden, dim) and `v` (hidden,) by gradient descent in small steps.

    Args:
        x, y: points (n, dim) and labels of two values.
        loss: "exponential" or "logistic", added up over the points.
        until: end when the loss is below this.
        step: relative change of the slope from step to step that is aimed at; the steps' lengths follow.
        most: largest number of steps.
        stop: function of loss over its start and share of neurons aligned or dead; ends the run where it is true.
        tolerance: as for `phases`.
    """
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    x, y = x.double().flatten(1), signs(y)
    w, v = w.double().clone(), v.double().clone()
    first, largest = (w.clone(), v.clone()), float(x.norm(dim=1).max())
    rows: list[tuple[float, float, float, float]] = []
    kept: list[tuple[float, Tensor, Tensor]] = []
    time, gap, dt = 0.0, 1, 0.0
    last: Tensor | None = None
    for count in range(most + 1):
        pre = x @ w.T
        hidden = pre.relu()
        margin = y * (hidden @ v)
        push = torch.exp(-margin) if loss == "exponential" else 2 * torch.sigmoid(-margin)
        value = float((push if loss == "exponential" else 2 * torch.nn.functional.softplus(-margin)).sum())
        aligned, dead = (float(share.double().mean()) for share in phases(pre, y, v, tolerance))
        rows.append((time, value, aligned, dead))
        if count % gap == 0:
            kept.append((time, w.clone(), v.clone()))
            if len(kept) == 200:
                kept, gap = kept[::2], 2 * gap
        if value < until or count == most or (stop is not None and stop(value / rows[0][1], aligned + dead)):
            break
        pull = push * y
        slope = torch.cat([(((pre > 0) * v) * pull[:, None]).T @ x, (hidden.T @ pull)[:, None]], 1)
        # what the largest curvature allows; longer where the slope itself turns by less than that
        safe = step / (float(push.sum()) * largest * (1 + 2 * largest * float(w.square().sum())))
        if last is not None:
            turn = float((slope - last).norm() / last.norm().clamp_min(1e-300))
            dt *= min(1.5, max(0.3, step / max(turn, 1e-12)))
        dt = max(dt, safe)
        w, v, last = w + dt * slope[:, :-1], v + dt * slope[:, -1], slope
        time += dt
    change = (w.square().sum(1) - v.square()) - (first[0].square().sum(1) - first[1].square())
    imbalance = float((change.abs() / w.square().sum(1)).max())
    turned = int((v.sign() != first[1].sign()).sum())
    times, losses, alive, gone = np.array(rows).T
    return Flow(times, losses, alive, gone, w, v, kept, imbalance, turned)


def alignment_times(counts: Sequence[int], mus: Sequence[float], seed: int) -> Floats:
    """Return when 50 neurons are aligned or dead on `separated` data, (counts, mus); infinite where not all are.

    Weights start at a scale of 1e-60, as the bound is for starts that are small enough.
    """
    times = np.empty((len(counts), len(mus)))
    for i, count in enumerate(counts):
        for j, mu in enumerate(mus):
            generator = torch.Generator().manual_seed(stream(seed, f"{count} {mu}"))
            x, y = separated(count, mu, generator)
            w, v = start(50, count + 1, 1e-60, generator)
            run = flow(x, y, w, v, step=0.02, most=5000, stop=lambda loss, share: share >= 1 or loss < 0.5)
            times[i, j] = run.alignment_time()
    return times
