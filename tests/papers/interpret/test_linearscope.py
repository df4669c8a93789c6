"""LinearScope: exact replay of many networks, rows and columns against Jacobians, kernels and power iteration."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import WorkingPapersError
from workingpapers.papers.interpret import linearscope as scope
from workingpapers.papers.interpret._rcan_mini import RCANMini, halved, patches, photograph
from workingpapers.papers.interpret.linearscope import (
    adjoint_error,
    anisotropy,
    bias_dependence,
    linear_interpreter,
    linearscope,
)
from workingpapers.tasks import residual_cnn, vit


class Functional(nn.Module):
    """Activations, pooling and normalisation as functions and methods, some in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        F.relu_(x)  # the result is thrown away
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = torch.relu(F.group_norm(self.two(x), 3)) + 0.3
        x = torch.where(x > 0.5, 2 * x, x).amax((2, 3))
        return torch.log_softmax(self.out(x.clamp(-1, 1)), 1)


class Attending(nn.Module):
    """torch's own transformer layer on the rows of an image, and a gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 10, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.glu(self.layer(x.transpose(1, 2).flatten(2))[:, 0]))


class Gated(nn.Module):
    """An attention gate, and a bottleneck's sigmoid over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.gate = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) * torch.sigmoid(self.gate(x)) + x.mean((1, 2, 3), keepdim=True)


def block(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), *layers)


NETS = {
    "batch norm": lambda: block(
        nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 3)
    ),
    "slopes": lambda: block(
        nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3), nn.PReLU(8), nn.Conv2d(8, 2, 1), nn.ReLU6()
    ),
    "smooth": lambda: block(
        nn.GELU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Softplus(), nn.Tanh()
    ),
    "instance norm": lambda: block(
        nn.InstanceNorm2d(8, affine=True), nn.ELU(), nn.AvgPool2d(2), nn.Conv2d(8, 3, 1)
    ),
    "layer norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(128, 9), nn.LayerNorm(9), nn.Mish(), nn.RMSNorm(9)
    ),
    "upsampling": lambda: block(
        nn.PixelShuffle(2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.ConvTranspose2d(2, 1, 2)
    ),
    "pools": lambda: block(
        nn.MaxPool2d(3, 1, 1, ceil_mode=True), nn.AdaptiveMaxPool2d(3), nn.AdaptiveAvgPool2d(1)
    ),
    "functional": Functional,
    "gated": Gated,
    "attending": Attending,
    "residual": lambda: residual_cnn(2, 5, (4, 6)),
    "transformer": lambda: vit(2, 8, 4, 3, 8, 1, 2),
}


@pytest.fixture(params=list(NETS))
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(2)
    model = NETS[request.param]().double()
    with torch.no_grad():  # means and biases that matter
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if getattr(module, "bias", None) is not None and isinstance(module.bias, Tensor):
                module.bias.normal_()
    return model.eval()


def test_every_network_is_replayed_exactly(net: nn.Module) -> None:
    x = torch.randn(3, 2, 8, 8).double()
    system = linear_interpreter(net, x)
    torch.testing.assert_close(system.y, net(x))
    torch.testing.assert_close(system.linear_part() + system.r, system.y, atol=1e-10, rtol=1e-10)
    assert adjoint_error(system, 4) < 1e-12
    a, b = torch.randn(2, *x.shape).double()
    torch.testing.assert_close(system.forward(2 * a - b), 2 * system.forward(a) - system.forward(b))
    # each input has its own system
    one = linear_interpreter(net, x[1:2])
    torch.testing.assert_close(one.forward(a[1:2]), system.forward(a)[1:2])
    torch.testing.assert_close(one.forward(a), torch.cat([one.forward(v[None]) for v in a]))


def test_contributions_of_the_layers_add_up_to_the_bias(net: nn.Module) -> None:
    system = linear_interpreter(net, torch.randn(2, 2, 8, 8).double())
    place = tuple(0 for _ in system.y.shape[1:])
    parts = system.contributions(place)
    torch.testing.assert_close(sum(parts.values()), system.r[(slice(None), *place)])


@pytest.mark.parametrize("name", ["batch norm", "residual", "functional"])
def test_of_piecewise_linear_networks_it_is_the_jacobian(name: str) -> None:
    torch.manual_seed(1)
    model = NETS["batch norm"]() if name == "batch norm" else residual_cnn(2, 3, (4, 6))
    if name == "functional":
        model = nn.Sequential(nn.Flatten(), nn.Linear(128, 9), nn.LeakyReLU(), nn.Linear(9, 3), nn.PReLU())
    model, x = model.double().eval(), torch.randn(1, 2, 8, 8).double()
    jacobian = torch.autograd.functional.jacobian(model, x)[0, :, 0]
    system = linear_interpreter(model, x)
    for c in range(3):
        torch.testing.assert_close(system.row(c)[0], jacobian[c])
    torch.testing.assert_close(system.column((1, 5, 2))[0], jacobian[:, 1, 5, 2])
    torch.testing.assert_close(system.votes(2).sum(), system.linear_part()[0, 2])
    torch.testing.assert_close(system.bias_share(1), system.r[:, 1] / model(x)[:, 1])


def test_without_biases_nothing_but_the_input_matters() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(45, 4, bias=False)
    )
    x = torch.randn(2, 1, 8, 8)
    system = linear_interpreter(model, x)
    assert not system.r.any()
    torch.testing.assert_close(system.linear_part(), model(x))
    assert linearscope(model, x).numbers["same_without_bias"] == 1
    assert linearscope(model, x).numbers["bias_share"] == 0


def test_a_layers_contribution_is_what_its_bias_alone_gives() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(1, 3).double()
    on = (model[0](x) > 0).double()[0]
    parts = linear_interpreter(model, x).contributions(1)
    assert set(parts) == {"0", "2", "other"}
    torch.testing.assert_close(parts["0"][0], model[2].weight[1] @ (on * model[0].bias))
    torch.testing.assert_close(parts["2"][0], model[2].bias[1])
    torch.testing.assert_close(parts["other"], torch.zeros(1).double())


def test_constants_of_the_models_own_are_other() -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * x - 0.5

    parts = linear_interpreter(Shifted(), torch.randn(1, 4)).contributions(2)
    assert {name: float(value) for name, value in parts.items()} == {"other": -0.5}


def test_gains_of_smooth_functions_are_quotients_and_at_zero_slopes() -> None:
    x = torch.tensor([[-1.5, 0.0, 2.0]]).double()
    for module, slope in ((nn.GELU(), 0.5), (nn.SiLU(), 0.5), (nn.Tanh(), 1.0), (nn.ELU(), 1.0)):
        system = linear_interpreter(module, x)
        wanted = torch.tensor([float(module(x[0, 0]) / -1.5), slope, float(module(x[0, 2]) / 2)]).double()
        torch.testing.assert_close(system.forward(torch.ones_like(x))[0], wanted)
        assert not system.r.any()
    soft = linear_interpreter(nn.Softplus(), x)
    torch.testing.assert_close(soft.r, torch.full_like(x, np.log(2)))
    assert float(soft.forward(torch.ones_like(x))[0, 1]) == pytest.approx(0.5)


def test_gates_and_statistics_do_not_move() -> None:
    x, v = torch.randn(1, 2, 6, 6).double(), torch.randn(1, 2, 6, 6).double()
    gated = Gated().double()
    found = linear_interpreter(gated, x).forward(v)
    kernel = F.conv2d(v, gated.main.weight, padding=1)
    torch.testing.assert_close(found, kernel * torch.sigmoid(gated.gate(x)) + v.mean())
    norm = nn.InstanceNorm2d(2, eps=1e-3).double()
    scale = 1 / (x.var((2, 3), correction=0, keepdim=True) + 1e-3).sqrt()
    system = linear_interpreter(norm, x)
    torch.testing.assert_close(system.forward(v), v * scale)
    torch.testing.assert_close(system.r, -x.mean((2, 3), keepdim=True) * scale * torch.ones_like(x))


def test_attention_mixes_by_weights_that_do_not_move() -> None:
    attention = nn.MultiheadAttention(6, 2, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_bias.normal_()
        attention.in_proj_weight.mul_(3)
    x, v = torch.randn(1, 4, 6).double(), torch.randn(3, 4, 6).double()
    system = linear_interpreter(scope_of(attention), x)
    torch.testing.assert_close(system.linear_part() + system.r, attention(x, x, x)[0])
    weights = attention(x, x, x, average_attn_weights=False)[1][0]
    values = v @ attention.in_proj_weight[12:].T
    mixed = torch.cat([weights[h] @ values[..., 3 * h : 3 * h + 3] for h in range(2)], -1)
    torch.testing.assert_close(system.forward(v), mixed @ attention.out_proj.weight.T)


def test_pooling_keeps_its_choice() -> None:
    x, v = torch.randn(1, 1, 6, 6), torch.randn(1, 1, 6, 6)
    found = linear_interpreter(nn.MaxPool2d(2), x).forward(v)
    for i in range(3):
        for j in range(3):
            window = x[0, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten()
            other = v[0, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten()
            assert found[0, 0, i, j] == other[window.argmax()]


def cubic(t: float, a: float = -0.75) -> float:
    """Keys' kernel."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def test_a_column_of_bicubic_upsampling_is_the_bicubic_kernel() -> None:
    module = nn.Upsample(scale_factor=2, mode="bicubic", align_corners=False)
    system = linear_interpreter(module, torch.rand(1, 1, 16, 16).double())
    for row, column in ((8, 8), (6, 9)):
        found = system.column((0, row, column))[0, 0]
        weights = [
            torch.tensor([cubic((i + 0.5) / 2 - 0.5 - p) for i in range(32)]).double() for p in (row, column)
        ]
        torch.testing.assert_close(found, weights[0].outer(weights[1]), atol=1e-7, rtol=0)


def test_singular_values_are_those_of_power_iteration() -> None:
    torch.manual_seed(0)
    model, x = block(nn.ReLU(), nn.Conv2d(8, 1, 3, stride=2)), torch.randn(1, 2, 8, 8)
    system = linear_interpreter(model, x)
    left, values, right = system.singular(3)
    v = torch.randn(1, 2, 8, 8)
    for _ in range(100):
        v = system.adjoint(system.forward(v))
        v = v / v.norm()
    assert float(system.forward(v).norm()) == pytest.approx(float(values[0]), rel=1e-4)
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    for u, s, w in zip(left, values, right, strict=True):
        torch.testing.assert_close(system.forward(w[None].float())[0].double(), s * u, atol=1e-4, rtol=1e-3)
        assert float(w.norm()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(system.singular(3)[1], values)


def test_eigenvectors_are_kept_but_for_a_factor() -> None:
    model, x = (
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1)),
        torch.randn(1, 1, 7, 7),
    )
    system = linear_interpreter(model.double(), x.double())
    values, vectors = system.eigen(2)
    assert abs(values[0]) >= abs(values[1])
    for value, vector in zip(values, vectors, strict=True):
        moved = torch.complex(
            system.forward(vector.real[None].contiguous()), system.forward(vector.imag[None].contiguous())
        )
        torch.testing.assert_close(moved[0], value * vector, atol=1e-8, rtol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = NETS["batch norm"]().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    linearscope(model, torch.randn(3, 2, 8, 8))
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_accuracies_come_from_the_two_parts() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.copy_(torch.tensor([3.0, 0.0]))
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 5.0], [0.0, 1.0]])
    found = bias_dependence(model, x, torch.tensor([0, 0, 1, 0]), batch=3)
    assert found == {"both": 1.0, "linear": 0.5, "bias": 0.75}
    with pytest.raises(WorkingPapersError, match="a classifier gives"):
        bias_dependence(nn.Identity(), torch.zeros(1, 1, 2, 2), torch.zeros(1).long())


def test_a_finding_names_the_layers_biases() -> None:
    model, x = NETS["batch norm"](), torch.randn(4, 2, 8, 8)
    found = linearscope(model, x)
    parts = found.details["bias_by_layer"]
    assert {"0", "5"} <= set(parts)
    guess = int(model.eval()(x)[0].argmax())
    assert sum(parts.values()) == pytest.approx(float(found.details["interpreter"].r[0, guess]), rel=1e-4)
    assert found.numbers["replay_error"] < 1e-5
    torch.testing.assert_close(found.details["votes"][0], found.details["interpreter"].votes(guess)[0])


def test_anisotropy_is_the_ratio_of_variances() -> None:
    rows, columns = torch.meshgrid(torch.arange(41.0), torch.arange(41.0), indexing="ij")
    along, across = (rows + columns) / 2**0.5 - 28, (rows - columns) / 2**0.5
    bump = torch.exp(-(along**2) / 18 - across**2 / 8)[None, None]
    assert float(anisotropy(bump)) == pytest.approx(9 / 4, rel=0.01)
    assert float(anisotropy(-3 * bump.roll((2, 3), (2, 3)))) == pytest.approx(9 / 4, rel=0.01)
    round_one = torch.exp(-((rows - 20) ** 2 + (columns - 20) ** 2) / 10)[None, None]
    assert float(anisotropy(round_one)) == pytest.approx(1, abs=1e-6)


def test_edges_and_flats_are_where_they_are() -> None:
    picture = torch.zeros(1, 1, 96, 96)
    picture[..., 40:56] = 1  # four columns are steep at each side, an eighth of those that count
    picture += 0.001 * torch.rand(1, 1, 96, 96)
    edge, flat = scope.edges_and_flats(picture, 20, seed=0)
    assert len(edge) == len(flat) == 20
    assert int(((edge[:, 1] - 47.5).abs() - 8).abs().max()) <= 2
    assert float(((flat[:, 1] - 47.5).abs() - 8).abs().min()) > 2 - 1e-6
    assert int(torch.cat([edge, flat]).min()) >= 16
    assert int(torch.cat([edge, flat]).max()) < 80
    assert torch.equal(scope._crops(picture, edge[:2])[1, :, 16, 16], picture[0, :, edge[1, 0], edge[1, 1]])


def test_the_small_rcan_doubles_patches_and_is_replayed() -> None:
    torch.manual_seed(0)
    model, x = RCANMini(8, 1, 1), patches(6, 16, seed=1)
    assert x.shape == (6, 1, 16, 16)
    assert float(x.min()) >= 0
    assert torch.equal(x, patches(6, 16, seed=1))
    system = linear_interpreter(model, x)
    assert system.y.shape == (6, 1, 32, 32)
    torch.testing.assert_close(system.linear_part() + system.r, model(x), atol=1e-5, rtol=1e-5)
    assert halved(photograph("camera")).shape == (1, 1, 256, 256)
    column = scope.columns_at(model, photograph("camera"), [[50, 60]])
    assert column.shape == (1, 1, 64, 64)
    far = column[0, 0, :8].abs().max()
    assert float(far) <= 1e-6 * float(column.abs().max())  # local: gates do not move


def scope_of(attention: nn.Module) -> nn.Module:
    """Return self-attention as a network of one input."""

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return attention(x, x, x)[0]

    return Own()


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Wavering(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if float(x.sum()) > 0 else x.tanh()


def test_bad_input_is_named() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(WorkingPapersError, match="Square is not affine once its decisions are fixed"):
        linear_interpreter(Square(), x)
    with pytest.raises(WorkingPapersError, match="decides by its values"):
        linear_interpreter(Wavering(), x)
    with pytest.raises(WorkingPapersError, match="needs outputs"):
        linear_interpreter(nn.Sequential(nn.Flatten(0)), x)
    system = linear_interpreter(nn.Linear(3, 2), x)
    with pytest.raises(WorkingPapersError, match=r"an output of shape \(2,\) was expected; got 2"):
        system.row(2)
    with pytest.raises(WorkingPapersError, match=r"probes are 2 of the shape \(3,\); got \(1, 3\)"):
        system.forward(x[:1])
    with pytest.raises(WorkingPapersError, match="single input"):
        system.operator()
    keys = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    with pytest.raises(WorkingPapersError, match="MultiheadAttention of batches"):
        linear_interpreter(scope_of(keys), torch.randn(2, 3, 4))
    one = linear_interpreter(nn.Linear(3, 2), x[:1])
    with pytest.raises(WorkingPapersError, match="1 to 1 singular"):
        one.singular(2)
    with pytest.raises(WorkingPapersError, match="only a square system"):
        one.eigen(1)
