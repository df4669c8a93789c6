"""Fused formulas give what the formula gives, in every layout and dtype, and keep nothing but their inputs."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.kernels import compiles, fusing, per_channel, pointwise, rowwise
from workingpapers.kernels.layout import ROW, layout

pytestmark = pytest.mark.skipif(not compiles("cpu"), reason="torch does not compile from a path with a blank")


@pointwise
def gompertz(x: Tensor, alpha: Any = 1.0, beta: Any = 1.0) -> Tensor:
    return alpha * x * torch.exp(-beta * torch.exp((-x).clamp(max=80)))


@pointwise
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


@rowwise
def rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def results(function: Callable[..., Tensor], tensors: list[Tensor], mode: str) -> list[Tensor]:
    """Return value and gradients of all tensors, the incoming gradient being uneven."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    with fusing(mode):
        y = function(*leaves)
        weights = torch.linspace(0.1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
        return [y.detach(), *torch.autograd.grad(y, leaves, weights)]


def expect_same(function: Callable[..., Tensor], tensors: list[Tensor], tolerance: float) -> None:
    own, plain = (results(function, tensors, mode) for mode in ("always", "never"))
    assert own[0].stride() == plain[0].stride()
    for one, other in zip(own, plain, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


X = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
LAYERWISE = [torch.tensor(1.1), torch.tensor([0.9])]
CHANNELWISE = [torch.linspace(0.5, 1.5, 6).view(6, 1, 1), torch.tensor(0.9)]


@pytest.mark.parametrize(
    ("x", "parameters"),
    [
        (X, LAYERWISE),
        (X.to(memory_format=torch.channels_last), LAYERWISE),
        (X[:, :, ::2], LAYERWISE),
        (torch.randn(3, 5, 7), LAYERWISE),
        (X, CHANNELWISE),
        (X.to(memory_format=torch.channels_last), CHANNELWISE),
        (torch.randn(9, 6), [torch.linspace(0.5, 1.5, 6), torch.rand(1, 6)]),
        (X, [torch.rand(6, 1, 1), torch.rand(8)]),  # two different axes: no kernel fits, and the formula serves
        (torch.randn(3, ROW), LAYERWISE),
    ],
    ids=[
        "contiguous", "channels last", "strided", "odd size", "channels", "channels in channels last",
        "features", "two axes", "rows",
    ],
)  # fmt: skip
def test_fused_equals_the_formula_in_every_layout(x: Tensor, parameters: list[Tensor]) -> None:
    expect_same(gompertz, [x, *parameters], 2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.bfloat16, 2**-8)])
def test_fused_equals_the_formula_in_every_dtype(dtype: torch.dtype, tolerance: float) -> None:
    expect_same(gompertz, [X.to(dtype), torch.tensor(1.1), torch.tensor(0.9)], tolerance)


def test_gates_are_fused_as_well() -> None:
    both = torch.randn(4, 10, 64)
    expect_same(swiglu, [both[..., :32], both[..., 32:]], 2e-6)


def test_rows_are_fused_as_well() -> None:
    expect_same(rms, [torch.randn(4, 10, 32), torch.rand(32)], 2e-6)


def test_half_precision_is_rounded_once_by_kernels_too() -> None:
    x = X.bfloat16()
    with fusing("always"):
        found = gompertz(x)
    assert torch.equal(found, gompertz(x.float()).bfloat16())


def test_only_the_input_is_kept_for_backward() -> None:
    kept: list[Tensor] = []
    x = X.clone().requires_grad_()
    with (
        fusing("always"),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        gompertz(x)
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]


def test_second_derivatives_are_those_of_the_formula() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    with fusing("always"):
        assert torch.autograd.gradcheck(lambda x, beta: gompertz(x, beta=beta), (x, beta))
        assert torch.autograd.gradgradcheck(lambda x, beta: gompertz(x, beta=beta), (x, beta))


def test_a_gradient_that_nobody_needs_is_not_given() -> None:
    alpha = torch.tensor(1.2, requires_grad=True)
    with fusing("always"):
        gompertz(X, alpha).sum().backward()
    assert alpha.grad is not None
    assert float((alpha.grad - gompertz(X).sum()).abs()) < 1e-2


def test_sums_over_millions_keep_their_digits() -> None:
    alpha = torch.tensor(1.0, requires_grad=True)
    x = torch.full((2**21,), 0.1)
    with fusing("always"):
        gompertz(x, alpha).sum().backward()
    true = 2**21 * float(gompertz(x[:1].double()))
    assert abs(float(alpha.grad) - true) < 5e-6 * true  # type: ignore[arg-type]


def test_transforms_see_the_formula() -> None:
    with fusing("always"):
        torch.testing.assert_close(torch.func.vmap(gompertz)(X), gompertz(X))
        _, slope = torch.func.jvp(gompertz, (X,), (torch.ones_like(X),))
        leaf = X.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(gompertz(leaf).sum(), leaf)
        torch.testing.assert_close(slope, gradient)


class Layer(nn.Module):
    """A linear layer with the formula and a parameter for each feature."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 6)
        self.beta = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        return gompertz(self.linear(x), beta=per_channel(self.beta, x))


class Scaled(nn.Module):
    """The formula with a number, which torch.fx can trace."""

    def forward(self, x: Tensor) -> Tensor:
        return gompertz(x, beta=2.0)


def test_compile_and_export_have_no_graph_breaks() -> None:
    layer, x = Layer(), torch.randn(3, 8)
    with fusing("always"):
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_tracing_finds_the_formula_as_one_node_or_as_it_is() -> None:
    layer, x = Layer(), torch.randn(3, 8)
    traced = torch.fx.symbolic_trace(Scaled())
    assert [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"] == ["gompertz"]
    torch.testing.assert_close(traced(x), gompertz(x, beta=2.0))
    with fusing("always"):
        torch.testing.assert_close(torch.jit.trace(layer, (x,))(x), layer(x))


def test_small_tensors_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("workingpapers.kernels.pointwise"), "fused", None)
    assert gompertz(X).shape == X.shape


def test_what_cannot_be_compiled_is_computed_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    @pointwise
    def stubborn(x: Tensor) -> Tensor:
        return x * float(x.sum() > 0)  # looks at values, which no kernel can

    x = torch.ones(3, requires_grad=True)
    with fusing("always"):
        gompertz(X)  # torch imports its compiler here, which warns of its own past
        with pytest.warns(UserWarning, match="stubborn is not fused on cpu, but computed as it is"):
            y = stubborn(x)
        assert torch.equal(stubborn(x), y)
        y.sum().backward()
    assert torch.equal(x.grad, torch.ones(3))  # type: ignore[arg-type]


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="fusing is one of auto, always, never; got 'on'"), fusing("on"):
        pass


def test_layouts_put_channels_where_they_lie() -> None:
    channels = torch.rand(6, 1, 1)
    assert layout([X, channels], True).packed == (4, 6, 64)  # type: ignore[union-attr]
    assert layout([X.to(memory_format=torch.channels_last), channels], True).packed == (256, 6)  # type: ignore[union-attr]
    assert layout([torch.randn(2**13)], True).packed == (2**13 // ROW, ROW)  # type: ignore[union-attr]
