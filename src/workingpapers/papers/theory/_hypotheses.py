"""Hypotheses that fit a training set: functions of a Gaussian process, and trained networks; their test errors."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.theory import _noncentral
from workingpapers.surgery.collect import collect
from workingpapers.tasks import fit, initialise

Losses = NDArray[np.float64]
JITTER = 1e-6


class KernelHypotheses:
    """Functions through the training points, drawn from a Gaussian process with an RBF kernel and no noise.

    Args:
        x: training inputs (N, ...).
        y: targets (N,) or (N, outputs); outputs are independent given the inputs.
        sigma: of the kernel exp(-|x - x'|^2 / (2 sigma^2)); default half the square root of the input's size.
    """

    def __init__(self, x: Tensor, y: Tensor, sigma: float | None = None) -> None:
        self.x = x.flatten(1).double()
        self.y = y.double().reshape(len(y), -1)
        self.sigma = 0.5 * math.sqrt(self.x.shape[1]) if sigma is None else sigma
        if not self.sigma > 0:
            raise WorkingPapersError(f"a kernel's width is above 0; got {self.sigma}")
        gram = self.kernel(self.x, self.x)
        self._factor = torch.linalg.cholesky(gram + JITTER * torch.eye(len(gram), dtype=gram.dtype))

    def kernel(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the kernel (N, M) of inputs (N, D) and (M, D)."""
        return (-torch.cdist(one, other).square() / (2 * self.sigma**2)).exp()

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean (M, outputs) at inputs (M, ...) and the covariance (M, M), which outputs share."""
        x = x.flatten(1).double()
        cross = torch.linalg.solve_triangular(self._factor, self.kernel(self.x, x), upper=False)  # (N, M)
        half = torch.linalg.solve_triangular(self._factor, self.y, upper=False)
        return cross.T @ half, self.kernel(x, x) - cross.T @ cross

    def draw(self, x: Tensor, count: int, seed: int = 0) -> Tensor:
        """Return the values (count, M, outputs) of so many functions at inputs (M, ...), float64."""
        mean, covariance = self.posterior(x)
        values, vectors = torch.linalg.eigh(covariance)
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(count, *mean.shape, generator=generator, dtype=mean.dtype)
        drawn: Tensor = mean + torch.einsum("mi,i,cio->cmo", vectors, values.clamp_min(0).sqrt(), z)
        return drawn

    def losses(self, x: Tensor, y: Tensor, count: int = 10_000, seed: int = 0) -> Losses:
        """Return the mean squared errors (count,) of so many functions at test inputs and targets.

        In the eigenvectors of the covariance they are sums of squares, so no function is written out.
        """
        mean, covariance = self.posterior(x)
        values, vectors = torch.linalg.eigh(covariance)
        roots, offset = values.clamp_min(0).sqrt(), vectors.T @ (mean - y.double().reshape(len(y), -1))
        generator, total = torch.Generator().manual_seed(seed), torch.zeros(count, dtype=mean.dtype)
        for column in offset.T:  # one output at a time
            z = torch.randn(count, len(roots), generator=generator, dtype=mean.dtype)
            total += z.mul_(roots).add_(column).square_().sum(1)
        return np.asarray(total.numpy() / offset.numel())

    def exact_bits(self, x: Tensor, y: Tensor, eps: float) -> float:
        """Return the bits of this class itself, with no sample and no fit, by a saddlepoint."""
        mean, covariance = self.posterior(x)
        values, vectors = torch.linalg.eigh(covariance)
        offset = (vectors.T @ (mean - y.double().reshape(len(y), -1))).numpy()  # (M, outputs)
        spread = np.broadcast_to(values.clamp_min(0).numpy()[:, None], offset.shape)
        return -_noncentral.log_square_sum(spread, offset, eps * offset.size) / math.log(2) + 0.0


class NetworkHypotheses:
    """Networks trained from random starts to a near-zero squared error on one-hot targets.

    Args:
        build: makes a network with random weights, (N, ...) -> (N, classes).
        split: the data; labels become one-hot targets.
        steps: of Adam on batches of `batch` (default all examples), lr falling to 0 by a cosine.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        split: Split,
        steps: int = 500,
        lr: float = 1e-3,
        batch: int | None = None,
    ) -> None:
        if not split.num_classes:
            raise WorkingPapersError("network hypotheses are fitted to classes; the split has none")
        self.build, self.split, self.steps, self.lr = build, split, steps, lr
        self.batch = batch or len(split.x_train)

    def _onehot(self, y: Tensor) -> Tensor:
        return F.one_hot(y, self.split.num_classes).float()

    def errors(self, seed: int) -> tuple[float, float]:
        """Return one network's mean squared errors on the training and on the test part."""
        model = initialise(self.build, seed)
        fit(
            model, self.split, steps=self.steps, lr=self.lr, batch=self.batch, seed=seed, schedule="cosine",
            loss=lambda outputs, y: F.mse_loss(outputs, self._onehot(y)), every=10**9,
        )  # fmt: skip
        parts = ((self.split.x_train, self.split.y_train), (self.split.x_test, self.split.y_test))
        train, test = (float(F.mse_loss(collect(model, x, [""])[""], self._onehot(y))) for x, y in parts)
        return train, test

    def losses(self, count: int, seed: int = 0, fits: float = 1e-2) -> Losses:
        """Return the test errors of so many networks, less those whose training error is above `fits`."""
        found = [self.errors(1000 * seed + number) for number in range(count)]
        return np.array([test for train, test in found if train <= fits])


def cosines(dim: int, seed: int, train: int = 100, test: int = 100) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, y, x_test, y_test of y = prod_j cos(pi x_j), x uniform on [-1, 1]^dim, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(train + test, dim, generator=generator, dtype=torch.float64) - 1
    y = (math.pi * x).cos().prod(1)
    return x[:train], y[:train], x[train:], y[train:]
