"""Flatness on an XOR: traces against autograd, explicit solutions, steps against a loop over examples."""

import math

import pytest
import torch
from torch import Tensor, nn

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.theory._xor_nets import (
    EPS,
    KINDS,
    Net,
    derivatives,
    make_generaliser,
    make_memoriser,
    start,
    train,
    xor_data,
)
from workingpapers.papers.theory.sharpness_not_only import (
    accuracy,
    half_squares,
    least_trace,
    scenario,
    sharpness,
)


def by_torch(kind: str, a: Tensor, w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    h = torch.relu(x @ w.T + b)
    if kind == "norm":
        h = h / h.norm(dim=-1, keepdim=True).clamp(min=EPS)
    return h @ a


def drawn(kind: str, d: int, m: int, seed: int = 0) -> Net:
    generator = torch.Generator().manual_seed(seed)
    a, w, b = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((m,), (m, d), (m,)))
    return Net(kind, a, w, b * (kind != "plain"))


class Module(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.kind = net.kind
        self.a, self.w = nn.Parameter(net.a.clone()), nn.Parameter(net.w.clone())
        self.b = nn.Parameter(net.b.clone(), requires_grad=net.kind != "plain")

    def forward(self, x: Tensor) -> Tensor:
        return by_torch(self.kind, self.a, self.w, self.b, x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trace_is_that_of_the_hessian_where_all_points_are_fitted(kind: str) -> None:
    net = drawn(kind, 4, 3)
    x, _ = xor_data(4, 6, 0)
    x = x.double()
    y = net.outputs(x)
    torch.testing.assert_close(y, by_torch(kind, net.a, net.w, net.b, x))
    model = Module(net)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    blocks = torch.autograd.functional.hessian(
        lambda *v: half_squares(torch.func.functional_call(model, dict(zip(names, v, strict=True)), (x,)), y),
        tuple(model.get_parameter(n) for n in names),
    )
    sizes = [model.get_parameter(n).numel() for n in names]
    wanted = sum(float(blocks[i][i].reshape(s, s).trace()) for i, s in enumerate(sizes))
    assert net.trace(x) == pytest.approx(wanted, rel=1e-9)
    assert sharpness(model, [(x[:2], y[:2]), (x[2:], y[2:])]).value == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_autograds_for_read_outs_of_one_or_of_each(kind: str) -> None:
    z = drawn(kind, 7, 5, seed=1).w.clone().requires_grad_()  # (5, 7)
    for a in (torch.randn(7).double(), torch.randn(5, 7).double()):
        a.requires_grad_()
        h = z.clamp(min=0)
        h = h / h.norm(dim=1, keepdim=True) if kind == "norm" else h
        f = (h * a).sum(1)
        found = derivatives(kind, a.detach(), z.detach())
        torch.testing.assert_close(found[0], f.detach())
        torch.testing.assert_close(found[1], h.detach())
        torch.testing.assert_close(found[2], torch.autograd.grad(f.sum(), z, retain_graph=True)[0])
    silent = derivatives("norm", torch.ones(3), -torch.ones(2, 3))
    assert [float(part.abs().max()) for part in silent] == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimiser", ["sam", "gd"])
def test_steps_are_those_of_a_loop_over_examples(kind: str, optimiser: str) -> None:
    net, (x, y) = drawn(kind, 5, 6), xor_data(5, 7, 1)
    x, y = x.double(), y.double()
    values = [net.a.clone(), net.w.clone(), net.b.clone()]
    for _ in range(3):
        total = [torch.zeros_like(v) for v in values]
        for i in range(7):

            def gradient(at: list[Tensor], i: int = i) -> tuple[Tensor, ...]:
                at = [v.clone().requires_grad_() for v in at]
                loss = (by_torch(kind, *at, x[i]) - y[i]).square() / 2
                found = torch.autograd.grad(loss, at)
                return (*found[:2], found[2] * (kind != "plain"))

            own = gradient(values)
            if optimiser == "sam":
                length = torch.cat([g.flatten() for g in own]).norm()
                own = gradient([v + 0.3 * g / length for v, g in zip(values, own, strict=True)])
            total = [t + g / 7 for t, g in zip(total, own, strict=True)]
        values = [v - 0.02 * g for v, g in zip(values, total, strict=True)]
    found = train(net, x, y, optimiser, 3)
    for one, two in zip((found.a, found.w, found.b), values, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_label_noise_moves_a_fitted_network_and_follows_the_seed() -> None:
    x, y = xor_data(6, 10, 0)
    fitted = make_memoriser("bias", x, y)
    assert torch.allclose(train(fitted, x, y, "gd", 5).w, fitted.w, atol=1e-5)
    one, same, other = (train(fitted, x, y, "label_noise", 5, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.w, same.w)
    assert float((one.w - other.w).norm()) > 1e-3


@pytest.mark.parametrize("d", [4, 9, 30])
def test_explicit_solutions_have_the_least_traces_at_their_scale(d: int) -> None:
    x, y = xor_data(d, 7, 0)
    new, truth = xor_data(d, 8, 1)
    for kind in ("bias", "norm"):
        memory = make_memoriser(kind, x, y)
        torch.testing.assert_close(memory.outputs(x), y, rtol=1e-4, atol=1e-5)
        assert memory.trace(x) == pytest.approx(least_trace(kind, d), rel=1e-4)
    assert least_trace("bias", d) == pytest.approx(2 * math.sqrt(d + 1))
    assert least_trace("plain", d) == pytest.approx(2 * math.sqrt(d))
    for kind in KINDS:
        general = make_generaliser(kind, d)
        torch.testing.assert_close(general.outputs(new), truth, rtol=1e-4, atol=1e-5)
        assert general.trace(new) == pytest.approx(least_trace(kind, d), rel=1e-4)
        assert accuracy(general, new, truth) == 1.0
    best = (d + 1) ** 0.25
    traces = [make_memoriser("bias", x, y, c).trace(x) for c in (0.9 * best, best, 1.1 * best)]
    assert traces[1] == min(traces)
    assert traces[0] == pytest.approx((d + 1) / (0.81 * best**2) + 0.81 * best**2, rel=1e-4)
    plain = [make_generaliser("plain", d, c * d**0.25 / 2).trace(new) for c in (0.9, 1.0, 1.1)]
    assert plain[1] == min(plain)


def test_a_memoriser_is_silent_on_all_other_points() -> None:
    x, y = xor_data(10, 40, 0)
    rest, truth = xor_data(10, 500, 1)
    apart = torch.tensor([not (x == row).all(1).any() for row in rest])
    memory = make_memoriser("bias", x, y)
    assert float(memory.outputs(rest[apart]).abs().max()) < 1e-5
    assert accuracy(Net("plain", torch.zeros(1), torch.zeros(1, 10), torch.zeros(1)), rest, truth) == 0.5


def test_points_are_corners_without_doubles_and_labels_their_xor() -> None:
    x, y = xor_data(5, 16, 3)
    assert len({tuple(row.tolist()) for row in x}) == 16
    assert set(x.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(y, x[:, 0] * x[:, 1])
    assert torch.equal(x, xor_data(5, 16, 3)[0])
    assert not torch.equal(x, xor_data(5, 16, 4)[0])


def test_sam_finds_a_flatter_network_than_gradient_descent() -> None:
    sam, gd = (scenario("bias", 8, 20, how, 40, 1500).numbers for how in ("sam", "gd"))
    assert (sam["train_accuracy"], gd["train_accuracy"]) == (1.0, 1.0)
    assert sam["trace"] < 0.8 * gd["trace"]
    assert sam["trace_before"] == gd["trace_before"]
    assert sam["flat_memoriser"] == pytest.approx(6, rel=1e-4)


def test_errors_are_one_sentence() -> None:
    with pytest.raises(UnknownName, match="architecture"):
        start("biased", 4, 3, 0)
    with pytest.raises(UnknownName, match="optimiser"):
        scenario(optimiser="adam", steps=1)
    with pytest.raises(WorkingPapersError, match="at most half"):
        xor_data(4, 9, 0)
    with pytest.raises(WorkingPapersError, match="memoriser has biases"):
        make_memoriser("plain", torch.ones(1, 2), torch.ones(1))
    with pytest.raises(WorkingPapersError, match="above 0"):
        scenario(lr=0.0)
