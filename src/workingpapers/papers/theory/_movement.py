"""How far training moves the weights of a small convolutional net, and what its features tell without training."""

from collections.abc import Callable

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F


def small_cnn(
    activation: Callable[[], nn.Module], classes: int, bias: bool = True, size: int = 16
) -> nn.Sequential:
    """Build three 3x3 convolutions with an activation behind each, and a linear layer over all that comes out."""
    layers: list[nn.Module] = []
    for c_in, c_out, stride in ((1, 8, 1), (8, 16, 2), (16, 16, 2)):
        layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=bias), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * (-(-size // 4)) ** 2, classes))


@torch.no_grad()
def weight_movement(model: nn.Module, start: nn.Module) -> tuple[float, float]:
    """Return |W - W_0| / |W_0| and the cosine of W and W_0 over all weights of more than one dimension."""
    now, then = (
        torch.cat([p.detach().flatten() for p in m.parameters() if p.ndim > 1]) for m in (model, start)
    )
    return float((now - then).norm() / then.norm()), float(F.cosine_similarity(now, then, 0))


def probe_accuracy(features: Tensor, y: Tensor, test_features: Tensor, y_test: Tensor) -> float:
    """Return the test accuracy of logistic regression on standardised features (N, D)."""
    mean, std = features.mean(0), features.std(0).clamp(min=1e-12)
    found = LogisticRegression(max_iter=2000).fit(((features - mean) / std).numpy(), y.numpy())
    return float(found.score(((test_features - mean) / std).numpy(), y_test.numpy()))


def train_until(model: nn.Module, x: Tensor, y: Tensor, accuracy: float, seed: int, most: int = 600) -> float:
    """Train by Adam at 1e-3 in batches of 64 until `accuracy` on the training data, and return what was reached."""
    optimizer, order = torch.optim.Adam(model.parameters(), lr=1e-3), torch.Generator().manual_seed(seed)
    reached = 0.0
    for step in range(most):
        batch = torch.randint(len(x), (64,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 10 == 9:
            with torch.no_grad():
                reached = float((model(x).argmax(1) == y).float().mean())
            if reached >= accuracy:
                break
    return reached
