"""Elementwise formulas: half precision is computed in float32 and rounded once."""

import pytest
import torch
from torch import Tensor

from workingpapers.kernels import pointwise


@pointwise
def steep(x: Tensor, slope: float = 1.0) -> Tensor:
    return (x * slope + 3.0) - 3.0


@pointwise
def twice(x: Tensor, slope: Tensor) -> Tensor:
    return 3 * slope * slope * x - 3 * slope * x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x = (torch.arange(-255, 256) / 128).to(dtype)  # exact in bfloat16, and so are the sums in float32
    assert torch.equal(steep(x), x)
    if dtype is torch.bfloat16:
        assert not torch.equal((x + 3.0) - 3.0, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_dtypes_are_computed_as_they_are(dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 101, dtype=dtype)
    assert torch.equal(steep(x, slope=2.0), (x * 2 + 3.0) - 3.0)
    assert steep(x).dtype == dtype


@pytest.mark.parametrize(
    ("x", "came"),
    [(torch.ones(2, dtype=torch.int64), "a tensor of torch.int64"), ([1.0], "a list"), (1.0, "a float")],
)
def test_what_is_no_floating_tensor_is_refused(x: object, came: str) -> None:
    with pytest.raises(TypeError, match=f"steep takes a floating-point tensor; got {came}"):
        steep(x)


def test_parameters_in_half_precision_are_raised_as_well() -> None:
    x, slope = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0078125], dtype=torch.bfloat16)
    leaf = slope.clone().requires_grad_()
    twice(x, leaf).backward()
    # 3 * slope^2 - 3 * slope in float32; in bfloat16 the two gradients would be rounded before they cancel
    assert leaf.grad is not None
    assert float(leaf.grad) == float((6 * slope.float() - 3).bfloat16())
