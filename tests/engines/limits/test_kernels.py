"""Kernels of infinite width: closed forms, recursions written out, wide networks; tangent kernels; criticality."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.engines.limits import (
    conv_limit,
    criticality,
    dense_limit,
    empirical_ntk,
    expectations,
    layer_criticality,
    linearise,
    second_moment,
    sketched_ntk,
    susceptibilities,
    variance_flow,
)
from workingpapers.engines.limits.kernels import PADDINGS
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.tasks import mlp


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_relu_keeps_the_size_and_adds_one_share_a_layer() -> None:
    x = drawn(6, 5)
    first = 2 / 5 * x.square().sum(1)
    for depth in (1, 2, 7):
        found = dense_limit(x, None, "relu", depth)
        torch.testing.assert_close(found.nngp.diag(), first, rtol=1e-9, atol=0)
        torch.testing.assert_close(found.ntk.diag(), depth * first, rtol=1e-6, atol=0)


def test_two_layers_of_relu_are_the_arc_cosine_kernels() -> None:
    x, y = drawn(5, 4), drawn(3, 4, seed=1)
    sizes, inner = (x.norm(dim=1)[:, None] * y.norm(dim=1)), x @ y.T
    theta = torch.acos(inner / sizes)
    one = sizes / math.pi * (theta.sin() + (math.pi - theta) * theta.cos()) / 4  # sigma_w^2 = 2, 4 inputs
    found = dense_limit(x, y, nn.ReLU(), 2)
    torch.testing.assert_close(found.nngp, 2 * one, rtol=1e-9, atol=1e-9)
    zero = 1 - theta / math.pi
    torch.testing.assert_close(found.ntk, 2 * one + inner / 2 * zero, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("activation", ["erf", nn.Tanh(), nn.Hardswish()])
def test_the_recursion_written_out_pair_by_pair(activation: str | nn.Module) -> None:
    x, y, w, b = drawn(3, 4), drawn(2, 4, seed=1), 1.3, 0.4
    found = dense_limit(x, y, activation, 3, sigma_w=w, sigma_b=b)
    for i in range(3):
        for j in range(2):
            s = [w * w / 4 * p @ q + b * b for p, q in ((x[i], x[i]), (y[j], y[j]), (x[i], y[j]))]
            t = s[2]
            for _ in range(2):
                k = [
                    expectations(activation, p, q, c)
                    for p, q, c in ((s[0], s[0], s[0]), (s[1], s[1], s[1]), s)
                ]
                s = [w * w * v[0] + b * b for v in k]
                t = t * w * w * k[2][1] + s[2]
            assert float(found.nngp[i, j]) == pytest.approx(float(s[2]), rel=1e-7)
            assert float(found.ntk[i, j]) == pytest.approx(float(t), rel=1e-7)


def test_blocks_do_not_show_and_kernels_are_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn(40, 6)
    whole = dense_limit(x, None, nn.SELU(), 3, sigma_b=0.2)
    images = drawn(5, 2, 4, 4)
    pooled = conv_limit(images, None, "erf", 2, readout="pool")
    monkeypatch.setattr("workingpapers.engines.limits.kernels.BLOCK", 64)
    torch.testing.assert_close(dense_limit(x, None, nn.SELU(), 3, sigma_b=0.2).ntk, whole.ntk)
    torch.testing.assert_close(conv_limit(images, None, "erf", 2, readout="pool").ntk, pooled.ntk)
    for kernel in (whole.nngp, whole.ntk, pooled.nngp, pooled.ntk):
        torch.testing.assert_close(kernel, kernel.T)
        assert float(torch.linalg.eigvalsh(kernel)[0]) > 0


class Wide(nn.Module):
    """A network in the parametrisation of the limits, dense or convolutional, with three outputs."""

    def __init__(
        self, shape: tuple[int, ...], depth: int, width: int, phi: nn.Module, w: float, b: float, **how
    ):
        super().__init__()
        self.phi, self.w, self.b, self.how, self.depth = phi, w, b, how, depth
        sizes = [shape[0], *[width] * (depth - (not how))]
        self.weights = nn.ParameterList(
            torch.randn(o, i, *[3] * (2 * bool(how))).double() for i, o in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.randn(o).double() for o in sizes[1:])
        places = 1
        if how:
            side = shape[1] - (2 * depth if how["padding"] == "valid" else 0)
            places = side * side if how["readout"] == "flatten" else 1
        self.read = nn.Parameter(torch.randn(3, width * places).double())
        self.last = nn.Parameter(torch.randn(3).double())

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            scale = self.w / math.sqrt(weight[0].numel())
            if not self.how:
                x = F.linear(x, scale * weight, self.b * bias)
            else:
                mode = self.how["padding"]
                x = F.pad(x, [1] * 4, mode="circular") if mode == "circular" else x
                x = F.conv2d(x, scale * weight, self.b * bias, padding=int(mode == "same"))
            x = self.phi(x)
        if self.how:
            x = x.flatten(1) if self.how["readout"] == "flatten" else x.mean((2, 3))
        return self.w / math.sqrt(x.shape[1]) * x @ self.read.T + self.b * self.last


@pytest.mark.parametrize("phi", [nn.ReLU(), nn.Tanh()])
def test_wide_dense_networks_have_the_kernels(phi: nn.Module) -> None:
    torch.manual_seed(0)
    x, nets = drawn(4, 5), 12
    found = dense_limit(x, None, phi, 3, sigma_w=1.4, sigma_b=0.3)
    mean = torch.stack([empirical_ntk(Wide((5,), 3, 300, phi, 1.4, 0.3), x) for _ in range(nets)]).mean(0)
    assert float((mean - found.ntk).norm() / found.ntk.norm()) < 0.03
    outputs = torch.cat([Wide((5,), 3, 300, phi, 1.4, 0.3)(x).detach().T for _ in range(400)])
    assert float((outputs.T @ outputs / len(outputs) - found.nngp).norm() / found.nngp.norm()) < 0.13


@pytest.mark.parametrize("readout", ["flatten", "pool"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_wide_convolutional_networks_have_the_kernels(readout: str, padding: str) -> None:
    torch.manual_seed(1)
    x = drawn(3, 2, 6, 6)
    how = {"readout": readout, "padding": padding}
    found = conv_limit(x, None, "relu", 2, sigma_w=1.4, sigma_b=0.3, **how)
    nets = [Wide((2, 6), 2, 96, nn.ReLU(), 1.4, 0.3, **how) for _ in range(10)]
    mean = torch.stack([empirical_ntk(net, x) for net in nets]).mean(0)
    assert float((mean - found.ntk).norm() / found.ntk.norm()) < 0.06
    outputs = torch.cat([Wide((2, 6), 2, 64, nn.ReLU(), 1.4, 0.3, **how)(x).detach().T for _ in range(300)])
    assert float((outputs.T @ outputs / len(outputs) - found.nngp).norm() / found.nngp.norm()) < 0.12


def test_a_kernel_of_one_place_is_dense() -> None:
    x = drawn(4, 3, 1, 1)
    wanted = dense_limit(x, None, nn.GELU(), 3, 1.2, 0.1)
    for readout in ("flatten", "pool"):
        found = conv_limit(x, None, nn.GELU(), 2, 1, 1.2, 0.1, readout)
        torch.testing.assert_close(found.ntk, wanted.ntk)
        torch.testing.assert_close(found.nngp, wanted.nngp)


def test_pooled_circular_kernels_do_not_see_shifts_and_flat_ones_do() -> None:
    x = drawn(2, 2, 5, 5)
    moved = x.roll((1, 2), (2, 3))
    pool, flat = (
        [conv_limit(x, y, "relu", 2, readout=r, padding="circular").ntk for y in (x, moved)]
        for r in ("pool", "flatten")
    )
    torch.testing.assert_close(*pool)
    assert float((flat[0] - flat[1]).norm() / flat[0].norm()) > 0.1


def net() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 7), nn.Tanh(), nn.Dropout(0.5), nn.BatchNorm1d(7), nn.Linear(7, 3)
    )


def test_tangent_kernels_are_products_of_gradients_whatever_the_chunks() -> None:
    model, x, y = net().train(), torch.randn(5, 2, 3), torch.randn(4, 2, 3)

    def gradients(inputs: Tensor) -> Tensor:
        out = model.eval()(inputs)
        rows = [torch.autograd.grad(o, list(model.parameters()), retain_graph=True) for o in out.flatten()]
        model.train()
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).view(len(inputs), 3, -1)

    a, b = gradients(x), gradients(y)
    full = torch.einsum("nap,mbp->nmab", a, b)
    for chunk in (2, 32):
        torch.testing.assert_close(empirical_ntk(model, x, y, "full", chunk=chunk), full)
        torch.testing.assert_close(empirical_ntk(model, x, y, chunk=chunk), full.diagonal(0, 2, 3).mean(2))
        own = torch.einsum("nap,mbp->nmab", a, a)
        torch.testing.assert_close(empirical_ntk(model, x, mode="full", chunk=chunk), own)
        torch.testing.assert_close(empirical_ntk(model, x, chunk=chunk), own.diagonal(0, 2, 3).mean(2))
    part = empirical_ntk(model, x, y, "full", names=["5.bias"])
    torch.testing.assert_close(part, torch.eye(3).expand(5, 4, 3, 3))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert empirical_ntk(model, x, dtype=torch.float64).dtype == torch.float64


def test_sketches_are_unbiased_and_their_error_falls_with_the_root() -> None:
    model, x, y = net(), torch.randn(6, 6), torch.randn(3, 6)
    full = empirical_ntk(model, x, y, "full")
    errors = []
    for directions in (20, 320):
        parts = [sketched_ntk(model, x, y, "full", directions=directions, seed=s) for s in range(4)]
        errors.append(float(torch.stack([(p - full).norm() for p in parts]).square().mean().sqrt()))
    assert 2.5 < errors[0] / errors[1] < 6.5
    trace = sketched_ntk(model, x, y, directions=20, seed=0)
    torch.testing.assert_close(
        trace, sketched_ntk(model, x, y, "full", directions=20).diagonal(0, 2, 3).mean(2)
    )


def test_attention_has_a_tangent_kernel_too() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model, x = nn.Sequential(block, nn.Flatten(), nn.Linear(12, 2)).eval(), torch.randn(5, 3, 4)
    rows = [torch.autograd.grad(o, list(model.parameters()), retain_graph=True) for o in model(x).sum(1)]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    full = empirical_ntk(model, x, mode="full")
    torch.testing.assert_close(full.sum((2, 3)), flat @ flat.T, rtol=1e-4, atol=1e-4)
    sketch = sketched_ntk(model, x, mode="full", directions=200)
    assert float((sketch - full).norm() / full.norm()) < 0.3
    torch.testing.assert_close(linearise(model)({}, x), model(x))


def test_the_linearised_model_is_the_tangent() -> None:
    model, x = net().double().eval(), torch.randn(4, 6).double()
    function = linearise(model)
    torch.testing.assert_close(function({}, x), model(x))
    change = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    outputs = []
    for sign in (1, -1):
        for n, p in model.named_parameters():
            p.data.add_(change[n], alpha=sign * 1e-6 * (1 if sign > 0 else 2))
        outputs.append(model(x).detach())
    for n, p in model.named_parameters():
        p.data.add_(change[n], alpha=1e-6)
    torch.testing.assert_close(
        function(change, x) - function({}, x), (outputs[0] - outputs[1]) / 2e-6, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(UnknownName, match="parameter"):
        function({"nothing": x}, x)


def test_known_activations_are_critical_where_the_book_says() -> None:
    relu, tanh = criticality("relu"), criticality("tanh")
    assert (relu.kind, relu.weight_var, relu.bias_var) == ("scale-invariant", pytest.approx(2), 0)
    assert (tanh.kind, tanh.weight_var, tanh.bias_var) == ("zero", pytest.approx(1), 0)
    for v in (0.1, 1.0, 30.0):
        assert susceptibilities("relu", v, 2.0) == pytest.approx((1, 1))
    gelu, silu = criticality("gelu"), criticality("silu")
    # The Principles of Deep Learning Theory, Section 5.3.4
    assert (gelu.weight_var, gelu.bias_var) == (
        pytest.approx(1.98305, abs=2e-5),
        pytest.approx(0.17292, abs=2e-5),
    )
    assert (silu.weight_var, silu.bias_var) == (
        pytest.approx(1.98800, abs=2e-5),
        pytest.approx(0.55514, abs=2e-5),
    )
    assert silu.fixed_point == pytest.approx(14.32017, abs=1e-4)
    for name in ("sigmoid", "exp", nn.Softplus()):
        assert criticality(name).kind == "none"
    assert criticality(nn.LeakyReLU(0.5)).weight_var == pytest.approx(2 / 1.25)
    assert criticality(torch.sinh).kind == "unstable"


@pytest.mark.parametrize("activation", ["gelu", "silu", nn.Mish(), nn.Hardswish()])
def test_half_stable_points_are_fixed_and_flat(activation: str | nn.Module) -> None:
    found = criticality(activation)
    k = found.fixed_point
    after = found.bias_var + found.weight_var * second_moment(activation, k)
    assert after == pytest.approx(k)
    h = 1e-4 * k
    slope = found.weight_var * (second_moment(activation, k + h) - second_moment(activation, k - h)) / (2 * h)
    assert slope == pytest.approx(1, abs=1e-5)
    assert found.chi_par == pytest.approx(slope, abs=1e-5)
    assert found.chi_perp == pytest.approx(1)


def test_one_over_the_variance_grows_linearly_for_tanh() -> None:
    # g(K) = K - 2 K^2 + ..., so 1/K grows by 2 a layer
    flow = variance_flow("tanh", 400, 1.0, start=0.5)
    assert 1 / flow[399] - 1 / flow[299] == pytest.approx(200, rel=0.02)
    assert variance_flow("relu", 30, 2.0, start=0.7) == pytest.approx([0.7] * 30)


def test_layers_of_a_model_are_read_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 40, 3), nn.BatchNorm2d(40), nn.ReLU(inplace=True), nn.Conv2d(40, 30, 3), nn.Tanh(),
        nn.Flatten(), nn.Linear(480, 300), nn.ReLU(), nn.Linear(300, 200),
    )  # fmt: skip
    x = torch.randn(60, 2, 8, 8)
    with torch.no_grad():
        model[8].weight.normal_(0, math.sqrt(3 / 300))
        model[8].bias.fill_(0.5)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    conv, first, last = layer_criticality(model, x)
    assert [(layer.name, layer.activation) for layer in (conv, first, last)] == [
        ("3", "2"),
        ("6", "4"),
        ("8", "7"),
    ]
    assert (conv.normalised, first.normalised, last.normalised) == (True, False, False)
    assert (last.weight_var, last.bias_var) == (pytest.approx(3, rel=0.02), pytest.approx(0.25))
    assert (last.chi_perp, last.chi_par) == (pytest.approx(1.5, rel=0.1), pytest.approx(1.5, rel=0.02))
    z = model.eval()[:4](x).detach()
    assert first.variance == pytest.approx(float(z.square().mean()), rel=1e-5)
    slopes = (1 - z.tanh().square()).square().mean()
    assert first.chi_perp == pytest.approx(float(first.weight_var * slopes), rel=1e-5)
    assert conv.weight_var == pytest.approx(float(360 * model[3].weight.detach().square().mean()), rel=1e-5)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    with pytest.raises(WorkingPapersError, match="behind an activation"):
        layer_criticality(nn.Sequential(nn.Linear(3, 3)), torch.ones(2, 3))


def test_errors_are_one_sentence() -> None:
    x = drawn(3, 4)
    with pytest.raises(WorkingPapersError, match="one shape"):
        dense_limit(x, drawn(3, 5))
    with pytest.raises(WorkingPapersError, match="depth >= 1"):
        dense_limit(x, depth=0)
    with pytest.raises(WorkingPapersError, match="images"):
        conv_limit(x)
    with pytest.raises(UnknownName, match="read-out"):
        conv_limit(drawn(2, 1, 4, 4), readout="pol")
    with pytest.raises(WorkingPapersError, match="leaves nothing"):
        conv_limit(drawn(2, 1, 2, 2), padding="valid")
    with pytest.raises(UnknownName, match="mode of a tangent kernel"):
        empirical_ntk(mlp([4, 2]), x, mode="all")
    with pytest.raises(UnknownName, match="parameter"):
        empirical_ntk(mlp([4, 2]), x, names=["weight"])
    with pytest.raises(WorkingPapersError, match="at least one direction"):
        sketched_ntk(mlp([4, 2]), x, directions=0)
    with pytest.raises(WorkingPapersError, match="variance above 0"):
        susceptibilities("tanh", 0.0)
