"""Networks along lines: every breakpoint of a piecewise-linear network between two inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workingpapers.engines.regions.intervals import Intervals
from workingpapers.engines.regions.program import Program, program
from workingpapers.engines.regions.walk import Walk
from workingpapers.errors import WorkingPapersError


@dataclass(frozen=True)
class Breakpoints:
    """A network along a path of straight lines through `points` (P, ...): point i is at t = i.

    `t` (n + 1) has the ends of the n pieces on each of which the network is affine, in ascending order, so
    t[0] = 0 and t[-1] = P - 1; `values` (n + 1, outputs) there; `slopes` (n, outputs) over t.
    """

    points: Tensor
    t: Tensor
    values: Tensor
    slopes: Tensor

    def __len__(self) -> int:
        return len(self.slopes)

    def bends(self, relative: float = 1e-9) -> Tensor:
        """Return the t at which the output's slope itself changes, by more than a share of the largest slope.

        At the others a neuron bends that the output does not depend on there; where the path turns is left out.
        """
        change = self.slopes.diff(dim=0).abs().amax(1)
        inner = self.t[1:-1]
        return inner[(change > relative * self.slopes.abs().max()) & (inner != inner.round())]

    def inputs(self, t: Tensor) -> Tensor:
        """Return the inputs (N, ...) at places t (N) of the path."""
        start = t.floor().long().clamp(0, len(self.points) - 2)
        share = (t - start).reshape(-1, *[1] * (self.points.ndim - 1))
        return torch.lerp(self.points[start], self.points[start + 1], share)


def along_line(model: nn.Module | Program, a: Tensor, b: Tensor) -> Breakpoints:
    """Return where a piecewise-linear network bends between inputs `a` and `b`, each without a batch dimension."""
    return along_path(model, torch.stack([a, b]))


def along_path(model: nn.Module | Program, points: Tensor) -> Breakpoints:
    """Return where a piecewise-linear network bends along lines from each of `points` (P, ...) to the next.

    All is computed in double precision.  Breakpoints closer than 1e-12 of a line's length are one.

    Raises:
        WorkingPapersError: where there are fewer than two points, or the model is not piecewise linear.
    """
    if len(points) < 2:
        raise WorkingPapersError(f"a path goes through at least two points; got {len(points)}")
    network = program(model, points[:1])
    exact = points.to(torch.float64)
    flat = exact.flatten(1)
    lines = len(flat) - 1
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(lines, 1)
    cells = Intervals(ends, torch.arange(lines))
    found = list(Walk[Intervals](network, 1.0).run(cells, torch.stack([flat.diff(dim=0), flat[:-1]])))
    pieces = torch.cat([c.ends for c, _ in found])
    line = torch.cat([c.line for c, _ in found])
    slopes, start = torch.cat([f for _, f in found], 1)
    values = torch.addcmul(start, slopes, pieces[:, :1])
    last = torch.addcmul(start[-1:], slopes[-1:], pieces[-1:, 1:])
    t = torch.cat([pieces[:, 0] + line, torch.tensor([float(lines)], dtype=torch.float64)])
    return Breakpoints(exact, t, torch.cat([values, last]), slopes)
