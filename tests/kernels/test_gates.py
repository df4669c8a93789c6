"""Gates: which half gates which, and the squared ReLU."""

import pytest
import torch
from tests.exact import expect_exact
from torch import nn
from torch.nn import functional as F

from workingpapers import make
from workingpapers.kernels.gates import relu2

X = torch.randn(3, 5, 8)


def test_glu_has_the_order_of_torch() -> None:
    torch.testing.assert_close(make("glu")(X), nn.GLU()(X))
    torch.testing.assert_close(make("glu", dim=0)(X[:2]), nn.GLU(0)(X[:2]))


@pytest.mark.parametrize(("name", "gate"), [("reglu", F.relu), ("geglu", F.gelu), ("swiglu", F.silu)])
def test_the_first_half_gates_the_second(name: str, gate) -> None:
    torch.testing.assert_close(make(name)(X), gate(X[..., :4]) * X[..., 4:])


def test_an_odd_size_is_refused() -> None:
    with pytest.raises(ValueError, match="SwiGLU halves dimension -1, which has the odd size 5"):
        make("swiglu")(torch.ones(2, 5))


def test_relu2_is_exact() -> None:
    expect_exact(relu2, lambda x: max(x, 0) ** 2, lambda x: 2 * max(x, 0))
