"""TMAF against its matrix written out, ReLU and leaky ReLU, continuity; what is trained; conversion of a model."""

import bisect

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.catalog import make
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.activations.tmaf import (
    TMAF,
    ModulusTMAF,
    TrainedKnots,
    TridiagonalTMAF,
    convert,
    oscillation,
    stepped,
)
from workingpapers.surgery import changes

KNOTS = (-1.0, 0.0, 0.5)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return module


def level(levels: torch.Tensor, channel: int, s: float) -> float:
    return float(levels.detach()[bisect.bisect_left(KNOTS, s), channel])  # s_j < s <= s_{j+1}


@pytest.mark.parametrize("shape", [(200, 3), (20, 3, 2, 5), (30, 3, 4), (3,)])
def test_starts_as_relu_or_leaky_relu_at_every_point(shape: tuple[int, ...]) -> None:
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x.view(-1)[:3] = torch.tensor([0.0, -3.0, 2.0])
    for channels in (None, 3):
        assert torch.equal(TMAF(channels)(x), torch.relu(x))
        assert torch.equal(TMAF(channels, continuous=True)(x), torch.relu(x))
        assert torch.equal(TMAF(channels, negative_slope=0.1)(x), F.leaky_relu(x, 0.1))
        assert torch.equal(TridiagonalTMAF(channels)(x), torch.relu(x))


def test_levels_hold_up_to_their_right_end() -> None:
    x = torch.tensor([-2.0, -1.0, -0.99, 0.0, 1e-6, 0.5, 0.51, 9.0])
    levels = [torch.tensor(float(i)) for i in range(4)]
    assert stepped(x, levels, KNOTS).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_equal_levels_are_a_factor() -> None:
    module = TMAF(4, KNOTS)
    nn.init.constant_(module.levels, 0.7)
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(module(x), 0.7 * x)


@pytest.mark.parametrize("shape", [(6, 4), (2, 4, 3)])
def test_is_a_matrix_times_its_input(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    diagonal = filled(TMAF(4, KNOTS)).double()
    full = filled(TridiagonalTMAF(4, KNOTS), seed=5).double()
    vectors = x.reshape(shape[0], 4, -1).transpose(1, 2).reshape(-1, 4)
    found, mixed = (
        m(x).detach().reshape(shape[0], 4, -1).transpose(1, 2).reshape(-1, 4) for m in (diagonal, full)
    )
    for y, one, other in zip(vectors, found, mixed, strict=True):
        own = np.diag([level(diagonal.levels, i, float(y[i])) for i in range(4)])
        matrix = np.zeros((4, 4))
        for i in range(4):
            matrix[i, i] = level(full.levels, i, float(y[i]))
            if i < 3:
                matrix[i, i + 1] = level(full.upper, i, float(y[i + 1]))
            if i > 0:
                matrix[i, i - 1] = level(full.lower, i, float(y[i - 1]))
        np.testing.assert_allclose(one.numpy(), own @ y.numpy(), rtol=1e-12)
        np.testing.assert_allclose(other.numpy(), matrix @ y.numpy(), rtol=1e-12)


def test_shared_levels_serve_any_shape() -> None:
    module = filled(TMAF(knots=KNOTS))
    for shape in ((), (7,), (2, 3, 4, 5), (3, 0)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
        expected = [level(module.levels, 0, v) * v for v in x.flatten().tolist()]
        torch.testing.assert_close(module(x).flatten(), torch.tensor(expected))
    assert filled(TridiagonalTMAF(knots=KNOTS))(torch.tensor(2.0)).shape == ()


def test_slopes_are_the_levels_and_their_inputs() -> None:
    module = filled(TMAF(knots=KNOTS))
    x = torch.tensor([-2.0, -0.5, 0.25, 3.0, -3.0], requires_grad=True)
    by_x, by_levels = torch.autograd.grad(module(x).sum(), (x, module.levels))
    torch.testing.assert_close(by_x, module.levels.detach()[[0, 1, 2, 3, 0], 0])
    assert by_levels[:, 0].tolist() == [-5.0, -0.5, 0.25, 3.0]


def test_continuous_form_has_the_same_slopes_and_no_gaps() -> None:
    module, jumping = (filled(TMAF(3, KNOTS, continuous=c)).double() for c in (True, False))
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)[:, None].expand(-1, 3).clone().requires_grad_()
    y = module(x)
    assert (
        float((y[1:] - y[:-1]).detach().abs().max())
        <= 1e-3 * float(module.levels.detach().abs().max()) * 1.001
    )
    slopes = [torch.autograd.grad(m(x).sum(), x)[0] for m in (module, jumping)]
    assert torch.equal(*slopes)
    assert module(torch.zeros(1, 3, dtype=torch.float64)).tolist() == [[0, 0, 0]]
    area = torch.cumulative_trapezoid(slopes[0], dx=1e-3, dim=0)
    torch.testing.assert_close(y[1:] - y[:1], area, rtol=0, atol=2e-3)


def test_trained_knots_feel_a_ramp_and_leave_all_else_alone() -> None:
    module = filled(TrainedKnots(knots=KNOTS))
    with torch.no_grad():
        module.knots.copy_(torch.tensor(KNOTS))
    fixed = TMAF(knots=KNOTS)
    fixed.levels = module.levels
    x = torch.tensor([-1.1, -0.9, 0.1, 0.6, 2.0], requires_grad=True)
    assert torch.equal(module(x), fixed(x))
    one, other = (torch.autograd.grad(m(x).sum(), (x, m.levels)) for m in (module, fixed))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    (found,) = torch.autograd.grad(module(x).sum(), module.knots)
    t = module.levels.detach()[:, 0]
    # inputs within a quarter of a knot: -1.1 and -0.9, 0.1, 0.6; slope -2 (right level - left level) x
    expected = [-2 * (t[1] - t[0]) * (-1.1 - 0.9), -2 * (t[2] - t[1]) * 0.1, -2 * (t[3] - t[2]) * 0.6]
    torch.testing.assert_close(found, torch.stack(expected))


def test_modulus_of_pairs() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0, 0.3, -0.4]], requires_grad=True)
    module = ModulusTMAF(pairs=3, bias=-1.0)
    with torch.no_grad():
        module.bias[2] = 0.5
    y = module(x)
    torch.testing.assert_close(y.detach(), torch.tensor([[2.4, 3.2, 0, 0, 0.6, -0.8]]), rtol=1e-4, atol=0)
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()
    images = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(images)[:, :, 1, 2], module(images[:, :, 1, 2]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: TMAF(knots=(-1.0, 1.0)),
            r"^TMAF's knots ascend and have zero among them; got \(-1.0, 1.0\)$",
        ),
        (lambda: TMAF(knots=(0.0, -1.0)), "ascend"),
        (
            lambda: ModulusTMAF()(torch.zeros(2, 3)),
            r"an even number of channels \(dimension 1\); got \(2, 3\)$",
        ),
    ],
)
def test_errors_in_one_sentence(build, message: str) -> None:
    with pytest.raises(WorkingPapersError, match=message):
        build()


def test_conversion_keeps_the_function_and_learns_by_channel() -> None:
    torch.manual_seed(0)
    shared = nn.ReLU()
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        shared,
        nn.Conv2d(4, 6, 3),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.Tanh(),
    )
    x = torch.randn(3, 1, 6, 6)
    own = make("tmaf.convert")(model, x)
    torch.testing.assert_close(own(x), model(x))
    assert [tuple(m.levels.shape) for m in own.modules() if isinstance(m, TMAF)] == [(8, 4), (8, 6)]
    assert len(changes(own)) == 2
    assert model[1] is shared
    assert isinstance(convert(nn.Sequential(nn.Tanh()), x)[0], nn.Tanh)


def test_target_oscillates_and_test_points_are_others() -> None:
    split = oscillation(50, seed=3)
    assert torch.equal(split.x_train, oscillation(50, seed=3).x_train)
    expected = torch.sin(4 * torch.pi * split.x_test[:, :1]) + torch.sin(4 * torch.pi * split.x_test[:, 1:])
    torch.testing.assert_close(split.y_test, expected)
    assert not torch.equal(split.x_train, split.x_test)
    assert 0.9 < float(split.x_train.abs().max()) <= 1
