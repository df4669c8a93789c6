"""Planes in input space, and polygons in planes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workingpapers.errors import WorkingPapersError


@dataclass(frozen=True)
class Plane:
    """The inputs origin + u[0] * directions[0] + u[1] * directions[1]: `origin` (...), `directions` (2, ...)."""

    origin: Tensor
    directions: Tensor

    def __post_init__(self) -> None:
        if self.directions.shape != (2, *self.origin.shape):
            raise WorkingPapersError(
                "a plane has two directions of the shape of its origin, "
                f"(2, {', '.join(map(str, self.origin.shape))}); got {tuple(self.directions.shape)}"
            )

    def __call__(self, u: Tensor) -> Tensor:
        """Return the inputs (N, ...) at coordinates (N, 2), in double precision."""
        flat = u.to(torch.float64) @ self.directions.to(torch.float64).flatten(1)
        found: Tensor = flat + self.origin.to(torch.float64).flatten()
        return found.reshape(len(u), *self.origin.shape)

    @property
    def frames(self) -> Tensor:
        """The inputs as frames (3, 1, size): slopes along the two coordinates, and the origin."""
        return torch.cat([self.directions, self.origin[None]]).to(torch.float64).flatten(1)[:, None]

    @classmethod
    def through(cls, points: Tensor, orthonormal: bool = False) -> "Plane":
        """Return the plane through three inputs (3, ...).

        They lie at u = (0, 0), (1, 0) and (0, 1); with `orthonormal` distances in u are those between inputs, the
        first lies at (0, 0) and the second at (|second - first|, 0).

        Raises:
            WorkingPapersError: where they lie on one line.
        """
        if len(points) != 3:
            raise WorkingPapersError(f"a plane goes through three points; got {len(points)}")
        spans = points[1:].to(torch.float64) - points[:1].to(torch.float64)
        flat = spans.flatten(1)
        one = flat[0] / flat[0].norm()
        rest = flat[1] - (flat[1] @ one) * one
        if not bool(rest.norm() > 1e-12 * flat[1].norm()):
            raise WorkingPapersError("the three points lie on one line, so no plane is given by them")
        if orthonormal:
            spans = torch.stack([one, rest / rest.norm()]).reshape(spans.shape)
        return cls(points[0].to(torch.float64), spans)

    @classmethod
    def whole(cls) -> "Plane":
        """Return the plane of networks with two inputs."""
        return cls(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))

    def coordinates(self, x: Tensor) -> Tensor:
        """Return the coordinates (N, 2) of the points of the plane that are nearest to inputs (N, ...)."""
        basis = self.directions.to(torch.float64).flatten(1)
        away = (x.to(torch.float64) - self.origin.to(torch.float64)).flatten(1)
        found: Tensor = torch.linalg.solve(basis @ basis.T, basis @ away.T)
        return found.T


def box(low: float | Sequence[float], high: float | Sequence[float]) -> Tensor:
    """Return the corners (4, 2) of a rectangle, counter-clockwise; one number counts for both coordinates."""
    x0, y0 = (low, low) if isinstance(low, int | float) else low
    x1, y1 = (high, high) if isinstance(high, int | float) else high
    return torch.tensor([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=torch.float64)


def convex(domain: Tensor) -> Tensor:
    """Return a polygon's corners (n, 2) counter-clockwise and in double precision.

    Raises:
        WorkingPapersError: where it is no convex polygon with an inside.
    """
    corners = torch.as_tensor(domain).to(torch.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not bool(corners.isfinite().all()):
        raise WorkingPapersError(
            f"a domain is a polygon of finite corners (n, 2), n at least 3; got {tuple(corners.shape)}"
        )
    edges = corners.roll(-1, 0) - corners
    after = edges.roll(-1, 0)
    turns = edges[:, 0] * after[:, 1] - edges[:, 1] * after[:, 0]
    angles = torch.atan2(turns, (edges * after).sum(1))
    sign = 1 if float(angles.sum()) > 0 else -1
    if not bool((sign * turns >= 0).all()) or not bool((turns != 0).any()) or abs(float(angles.sum())) > 7:
        raise WorkingPapersError("a domain is a convex polygon; this one turns both ways, or has no inside")
    return corners if sign > 0 else corners.flip(0)
