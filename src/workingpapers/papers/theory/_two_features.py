"""Data of two latent features, one predictive and one easily available, and kernels and classifiers for it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.surgery.collect import collect


def strength(predictivity: float) -> float:
    """Return mu such that sign(z) of z ~ N(mu y, 1) is right with the given probability: its normal quantile."""
    from scipy.special import ndtri

    if not 0.5 <= predictivity < 1:
        raise WorkingPapersError(f"a feature is right with a probability in [0.5, 1); got {predictivity}")
    return float(ndtri(predictivity))


@dataclass(frozen=True)
class World:
    """Two features of a label y in {-1, 1}, (z_s, z_c) | y ~ N(y mu, [[1, r], [r, 1]]), and how they show in x.

        x = a_s f_s(z_s) w_s + a_c f_c(z_c) w_c

    `rho` are the predictivities (shortcut, core), `amplitudes` (a_s, a_c), `nesting` the depths of the fixed random
    ReLU networks f that hide a feature (0: itself), `correlation` r; w are orthogonal unit vectors of R^dim by
    `seed`.
    """

    rho: tuple[float, float] = (0.8, 0.9)
    amplitudes: tuple[float, float] = (1.0, 1.0)
    nesting: tuple[int, int] = (0, 0)
    correlation: float = 0.0
    dim: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no world."""
        if min(self.amplitudes) <= 0 or min(self.nesting) < 0 or self.dim < 2 or abs(self.correlation) >= 1:
            raise WorkingPapersError(
                "a world of two features needs amplitudes above 0, depths of at least 0, at least 2 dimensions and "
                f"a correlation between -1 and 1; got {self}"
            )

    @property
    def mu(self) -> tuple[float, float]:
        """The means of the features where y = 1."""
        return strength(self.rho[0]), strength(self.rho[1])

    def latents(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return latents (count, 2) and labels (count,) in {-1, 1}, the labels in equal numbers."""
        generator = torch.Generator().manual_seed(seed)
        y = 1.0 - 2.0 * (torch.randperm(count, generator=generator) % 2)
        noise = torch.randn(count, 2, generator=generator)
        second = self.correlation * noise[:, 0] + math.sqrt(1 - self.correlation**2) * noise[:, 1]
        return torch.stack([noise[:, 0], second], 1) + y[:, None] * torch.tensor(self.mu), y

    def directions(self) -> Tensor:
        """Return w_s and w_c, (2, dim), orthogonal and of length 1."""
        generator = torch.Generator().manual_seed(self.seed)
        basis: Tensor = torch.linalg.qr(torch.randn(self.dim, 2, generator=generator))[0].T
        return basis

    def embed(self, z: Tensor) -> Tensor:
        """Return the inputs (N, dim) of latents (N, 2)."""
        shown = [_nested(z[:, i], self.nesting[i], self.seed + 1 + i) for i in (0, 1)]
        return torch.stack(shown, 1) * torch.tensor(self.amplitudes) @ self.directions()


def _nested(z: Tensor, depth: int, seed: int) -> Tensor:
    """Pass values (N,) through a random ReLU network of `depth` hidden layers of 32; mean 0, variance of N(0, 1)'s
    1.

    The output keeps the sign of its slope over all: it rises with z where a line is fitted to it.
    """
    if depth == 0:
        return z
    generator = torch.Generator().manual_seed(seed)
    reference = torch.linspace(-4, 4, 2001)
    weight = torch.exp(-(reference**2) / 2)
    h, r = z[:, None], reference[:, None]
    for layer in range(depth):
        fan = h.shape[1]
        w = torch.randn(fan, 32, generator=generator) * math.sqrt(2 / fan)
        b = torch.randn(32, generator=generator) * (1.0 if layer == 0 else 0.1)
        h, r = (h @ w + b).relu(), (r @ w + b).relu()
    out = torch.randn(32, generator=generator)
    h, r = h @ out, r @ out
    share = weight / weight.sum()
    mean = (share * r).sum()
    std = (share * (r - mean).square()).sum().sqrt()
    sign = torch.sign((share * r * reference).sum())
    shown: Tensor = sign * (h - mean) / std
    return shown


def probes(side: int = 30, reach: float = 3.0, seed: int | None = None) -> Tensor:
    """Return a grid of latents (side^2, 2) over [-reach, reach]^2: the middles of its cells, or places in them by
    seed.

    No point of an even side lies on an axis.
    """
    axis = reach * ((2 * torch.arange(side) + 1) / side - 1)
    grid = torch.cartesian_prod(axis, axis)
    if seed is None:
        return grid
    moved = torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed))
    return grid + (2 * moved - 1) * reach / side


def reliance(said: Tensor, z: Tensor) -> float:
    """Return how much decisions rely on the first latent: agreement with its sign less that with the second's.

    `said` (N,) are decisions, by their sign, on latents `z` (N, 2); only conflicting ones count.  1 is the first
    alone, -1 the second alone.  A decision of exactly 0 agrees with neither.
    """
    signs = z.sign()
    conflict = signs[:, 0] * signs[:, 1] < 0
    if not bool(conflict.any()):
        raise WorkingPapersError("reliance needs probes at which the two features disagree; there are none")
    decided = said.sign()[conflict].to(z)
    agree = [(decided == signs[conflict, i]).double().mean() for i in (0, 1)]
    return float(agree[0] - agree[1])


def optimal(world: World, z: Tensor) -> Tensor:
    """Return the best decision's value (N,) on latents (N, 2): the log odds, 2 mu' S^-1 z."""
    r = world.correlation
    covariance = torch.tensor([[1.0, r], [r, 1.0]])
    weights: Tensor = 2 * torch.linalg.solve(covariance, torch.tensor(world.mu))
    return z @ weights


def relu_kernel(one: Tensor, other: Tensor) -> Tensor:
    """Return the neural tangent kernel (N, M) of one hidden ReLU layer without biases, infinitely wide.

        |x||x'| / (2 pi) ( 2 (pi - t) cos t + sin t ),   t the angle between x and x'

    NTK parametrisation with first weights N(0, 1) and outputs scaled by 1 / sqrt(width); both layers are trained.
    """
    sizes = one.norm(dim=1)[:, None] * other.norm(dim=1)[None]
    cosine = (one @ other.T / sizes.clamp_min(1e-30)).clamp(-1, 1)
    angle = cosine.acos()
    value: Tensor = (
        sizes / (2 * math.pi) * (2 * (math.pi - angle) * cosine + (1 - cosine.square()).clamp_min(0).sqrt())
    )
    return value


def kernel_regression(x: Tensor, y: Tensor, at: Tensor, ridge: float = 1e-6) -> Tensor:
    """Return the values (M,) at inputs (M, D) of regression by `relu_kernel` on x (N, D), y (N,), computed in
    float64.

    The limit of a very wide network trained on squared error; `ridge` counts in units of the kernel's mean
    diagonal.
    """
    x, at, y = x.double(), at.double(), y.double()
    gram = relu_kernel(x, x)
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    solved: Tensor = torch.linalg.solve(gram, y)
    return relu_kernel(at, x) @ solved


def two_patches(
    split: Split, rho: tuple[float, float] = (0.8, 0.9), contrast: float = 1.0, side: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (N, 1, S, 2 S) of a shape beside a texture, the signs (N, 2) of both features, and labels (N,).

    Shapes (the core, left) are the first two classes of `split`'s training part, S x S; the texture (the shortcut)
    is a square of `side` pixels of rows or columns of +-`contrast` times the images' deviation: both set its
    availability. A feature's sign is the label, in {-1, 1}, with its predictivity; a shape is of the class that its
    sign says.
    """
    x, labels = split.x_train.mean(1, keepdim=True), split.y_train
    shapes = [x[labels == c] for c in (0, 1)]
    size = x.shape[-1]
    if not 1 <= side <= size or min(map(len, shapes)) == 0:
        raise WorkingPapersError(
            f"two patches need two classes of images and a texture of 1 to {size} pixels; got {side}"
        )
    generator, count = torch.Generator().manual_seed(seed), 2 * min(map(len, shapes))
    y = 1.0 - 2.0 * (torch.randperm(count, generator=generator) % 2)
    kept = torch.rand(count, 2, generator=generator) < torch.tensor(rho)
    signs = torch.where(kept, y[:, None], -y[:, None])
    picked = [torch.randint(len(s), (count,), generator=generator) for s in shapes]
    left = torch.where(signs[:, 1, None, None, None] > 0, shapes[1][picked[1]], shapes[0][picked[0]])
    stripes = (1.0 - 2.0 * (torch.arange(side) % 2)).expand(side, side)  # columns
    texture = torch.where(signs[:, 0, None, None] > 0, stripes, stripes.T) * contrast * float(x.std())
    right = torch.full_like(left, float(x.min()))
    start = (size - side) // 2
    right[:, 0, start : start + side, start : start + side] = texture
    return torch.cat([left, right], 3), signs, y


def decisions(model: nn.Module, x: Tensor) -> Tensor:
    """Return the values (N,) by whose sign a model decides: its one output, or the second's lead of two logits."""
    out = collect(model, x, [""])[""]
    if out.ndim == 1 or out.shape[1] == 1:
        return out.flatten()
    if out.shape[1] == 2:
        return out[:, 1] - out[:, 0]
    raise WorkingPapersError(
        f"a model decides between two classes by 1 or 2 outputs; it gives {out.shape[1]}"
    )
