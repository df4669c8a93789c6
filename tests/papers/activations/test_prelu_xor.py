"""PReLU and XOR: the exact solutions, the loss in closed form, its flow, and the training against torch's own."""

import math

import numpy as np
import pytest
import torch

from workingpapers.catalog import make
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.activations._xor import (
    flow,
    loss_in_sums,
    parity_accuracy,
    points,
    prelu,
    strip,
    trajectory,
)
from workingpapers.papers.activations.prelu_xor import MODELS, SingleLayer, TwoLayer, sweep, train


def unit(w: tuple[float, float], a: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([w]).double(), "a": torch.tensor([[a]]).double()}


@pytest.mark.parametrize(("coding", "w"), [("bits", (1.0, -1.0)), ("signed", (0.5, -0.5))])
def test_the_solution_is_exact(coding: str, w: tuple[float, float]) -> None:
    x, y = points(coding)
    assert y.tolist() == [0, 1, 1, 0]
    assert SingleLayer().outputs(unit(w, -1.0), x).tolist() == [[0, 1, 1, 0]]


def test_the_parameters_are_three_and_nine() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {
        name: sum(v[0].numel() for v in net.start(4, generator).values()) for name, net in MODELS.items()
    }
    assert (sizes["prelu"], sizes["gcu"], sizes["mlp"], sizes["linear"]) == (3, 3, 9, 2)


def test_the_loss_in_sums_is_the_squared_error() -> None:
    w, a = torch.randn(50, 2, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    x, y = points()
    direct = (SingleLayer().outputs({"w": w, "a": a}, x) - y).square().mean(1)
    torch.testing.assert_close(loss_in_sums(w[:, 0] + w[:, 1], w[:, 0] - w[:, 1], a[:, 0]), direct)


def test_the_only_minima_are_two_units_with_the_slope_minus_one() -> None:
    grid = torch.linspace(-2, 2, 41, dtype=torch.float64)
    u, v, a = torch.meshgrid(grid, grid, grid, indexing="ij")
    loss = loss_in_sums(u, v, a)
    least = (loss < 1e-12).nonzero()
    found = np.array(sorted([float(grid[i]) for i in row] for row in least))
    np.testing.assert_allclose(found, [[0, -1, -1], [0, 1, -1]], atol=1e-9)


def test_the_flow_is_the_gradient_in_the_weights() -> None:
    p = {k: v.requires_grad_() for k, v in unit((0.7, -1.9), 0.4).items()}
    x, y = points()
    dw, da = torch.autograd.grad((SingleLayer().outputs(p, x) - y).square().mean(), [p["w"], p["a"]])
    u, v, a = p["w"].sum(), p["w"][0, 0] - p["w"][0, 1], p["a"][0, 0]
    found = torch.stack(flow(u, v, a)).detach()
    torch.testing.assert_close(found, -torch.stack([dw.sum(), dw[0, 0] - dw[0, 1], da[0, 0]]))


def test_the_trajectory_is_gradient_descent() -> None:
    path = trajectory((0.9, 0.2), a=0.25, lr=0.05, steps=30)
    run = train(SingleLayer(), unit((0.9, 0.2), 0.25), torch.tensor([0.05]), epochs=30, optimizer="sgd")
    torch.testing.assert_close(path[-1], torch.cat([run.end["w"][0], run.end["a"][0]]))
    assert path[0].tolist() == pytest.approx([0.9, 0.2, 0.25])
    end = trajectory((0.9, 0.2), lr=0.1, steps=3000)[-1]
    torch.testing.assert_close(end, torch.tensor([0.5, -0.5, -1.0]).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("net", [SingleLayer(), SingleLayer("gcu", bias=True), TwoLayer()])
def test_each_copy_trains_as_torch_adam_would(net: SingleLayer | TwoLayer) -> None:
    start = net.start(3, torch.Generator().manual_seed(1))
    rates = torch.tensor([0.001, 0.1, 1.0])
    found = train(net, start, rates, epochs=25)
    x, y = points()
    for copy, rate in enumerate(rates.tolist()):
        own = {k: v[copy : copy + 1].clone().requires_grad_() for k, v in start.items()}
        optimizer = torch.optim.Adam(own.values(), lr=rate)
        for _ in range(25):
            optimizer.zero_grad()
            (net.outputs(own, x) - y).square().mean().backward()
            optimizer.step()
        for k, v in own.items():
            torch.testing.assert_close(found.end[k][copy], v.detach()[0], rtol=1e-5, atol=1e-7)


def test_slopes_of_zero_or_more_leave_the_unit_monotone() -> None:
    x, y = points()
    grid = torch.linspace(-3, 3, 25, dtype=torch.float64)
    w = torch.cartesian_prod(grid, grid)
    for a in (0.0, 0.25, 1.0, 4.0):
        outputs = SingleLayer().outputs({"w": w, "a": torch.full((len(w), 1), a).double()}, x)
        right = ((outputs > 0.5) == (y > 0.5)).sum(1)
        assert int(right.max()) == 3


def test_a_clamped_slope_stays_at_zero_or_above() -> None:
    net = MODELS["prelu_clamped"]
    start = net.start(20, torch.Generator().manual_seed(0))
    free = train(MODELS["prelu"], start, torch.full((20,), 0.1), epochs=300)
    clamped = train(net, start, torch.full((20,), 0.1), epochs=300)
    assert bool(free.success.all())
    assert bool((free.end["a"] < 0).all())
    assert not clamped.success.any()
    assert bool((clamped.end["a"] >= 0).all())


def test_same_signs_are_trapped_with_bits() -> None:
    trapped = train(SingleLayer(), unit((1.0, 0.6), 0.25), torch.tensor([0.05]), epochs=2000, coding="bits")
    torch.testing.assert_close(trapped.end["w"], torch.full((1, 2), 1 / 3).double(), atol=1e-3, rtol=0)
    assert not trapped.success.any()


@pytest.mark.parametrize("a", [-1.0, -0.3, 0.0, 0.5])
def test_the_unit_says_zero_in_the_strip(a: float) -> None:
    z = torch.linspace(-5, 5, 997, dtype=torch.float64)
    low, high = strip(a)
    assert torch.equal(prelu(z, a) <= 0.5, (z >= low) & (z <= high))


def test_parity_of_three_bits_is_beyond_one_unit() -> None:
    assert parity_accuracy(1) == 1.0
    assert parity_accuracy(2, draws=10) == 1.0
    assert parity_accuracy(3) == 7 / 8
    assert parity_accuracy(4, draws=300) < 1.0


def test_parity_search_agrees_with_trying_all_intervals() -> None:
    x, y = (t.numpy() for t in points("signed", 3))
    best, values = 0, np.array([-1.0, 0.0, 1.0])
    for w in np.stack(np.meshgrid(values, values, values), -1).reshape(-1, 3):
        z = x @ w
        for low in [-np.inf, -2.5, -1.5, -0.5]:
            for high in [0.5, 1.5, 2.5, np.inf]:
                best = max(best, int((((z < low) | (z > high)) == (y > 0.5)).sum()))
    assert parity_accuracy(3, draws=0) == best / 8


def test_a_diverged_run_is_no_success() -> None:
    p = unit((0.7, -1.9), 0.4)
    run = train(SingleLayer(), p, torch.tensor([1e6]), epochs=200, optimizer="sgd")
    assert not bool(torch.isfinite(run.outputs).all())
    assert not run.success.any()


def test_shares_do_not_depend_on_company() -> None:
    alone = sweep(("prelu",), (0.1,), runs=20, epochs=150)
    together = sweep(("relu", "prelu"), (1e-4, 0.1), runs=20, epochs=150)
    assert alone.details["shares"]["prelu"] == together.details["shares"]["prelu"][1:]
    assert alone.numbers["prelu: best share"] == 1.0
    assert math.isclose(together.numbers["relu: best share"], 0.0)


def test_bad_input_is_named() -> None:
    with pytest.raises(UnknownName, match="'prelu'"):
        make("prelu_xor", models=("perlu",))()
    with pytest.raises(UnknownName, match="coding"):
        sweep(("prelu",), (0.1,), 2, 2, "sined")
    with pytest.raises(UnknownName, match="optimizer"):
        sweep(("prelu",), (0.1,), 2, 2, "signed", "adamm")
    with pytest.raises(UnknownName, match="activation"):
        SingleLayer("tnah")
    with pytest.raises(WorkingPapersError, match="1 to 8 bits; got 9"):
        parity_accuracy(9)
