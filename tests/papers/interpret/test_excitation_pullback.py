"""Soft gates: outputs to the bit, both limits of the temperature, every way to call ReLU, and pools by hand."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import make
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.interpret._explanations import METHODS, smooth_gradient
from workingpapers.papers.interpret._soft_gates import guided_relu, soft_gate_max_pool2d, soft_gate_relu
from workingpapers.papers.interpret.excitation_pullback import (
    SoftGateMaxPool2d,
    SoftGateReLU,
    agreement,
    alignment,
    ascent,
    convert,
    explain,
    gate_vectors,
    implied_scores,
    path_kernel,
    pullback,
)
from workingpapers.surgery import changes


class Functional(nn.Module):
    """ReLU and max-pooling in five spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.three, self.out = nn.Linear(80, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        F.relu_(x)
        x = F.max_pool2d(x, 2)
        x = F.relu(self.two(x), inplace=True).flatten(1)
        x = torch.relu(self.three(x)) + 0
        return self.out(x.relu())


def modules() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3),
    )  # fmt: skip


@pytest.fixture(params=[modules, Functional])
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param().double().eval()


def gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)
    return found


X, Y = (
    torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double(),
    torch.tensor([0, 1, 2, 2, 0]),
)


def test_outputs_are_the_same_to_the_bit(net: nn.Module) -> None:
    for temperature in (1e-3, 1.0, 50.0):
        assert torch.equal(convert(net, temperature)(X), net(X))
    huge = X * 1e6
    assert torch.equal(convert(net)(huge), net(huge))


def test_a_cold_gate_is_the_ordinary_gradient(net: nn.Module) -> None:
    torch.testing.assert_close(gradient(convert(net, 1e-9), X, Y), gradient(net, X, Y))
    torch.testing.assert_close(pullback(net, X, Y, 1e-9), gradient(net, X, Y))


def test_a_hot_gate_is_half_the_linear_network_for_every_relu() -> None:
    torch.manual_seed(0)
    model = modules().double().eval()
    linear = nn.Sequential(
        model[0], model[1], nn.Identity(), nn.AvgPool2d(2), model[4], nn.Identity(), model[6], model[7]
    )
    torch.testing.assert_close(
        gradient(convert(model, 1e9), X, Y), gradient(linear, X, Y) / 4, rtol=1e-6, atol=1e-9
    )


def test_gates_are_sigmoids_of_what_came_in(net: nn.Module) -> None:
    z = torch.randn(50).double().requires_grad_()
    (found,) = torch.autograd.grad(soft_gate_relu(z, 0.3).sum(), z)
    torch.testing.assert_close(found, torch.sigmoid(z / 0.3))
    assert torch.equal(soft_gate_relu(z, 0.3), z.relu())
    # the conversion and the mode agree, whatever spelling the network has
    warm = pullback(net, X, Y, 0.7)
    torch.testing.assert_close(gradient(convert(net, 0.7), X, Y), warm)
    assert not torch.allclose(warm, gradient(net, X, Y))
    assert not torch.allclose(warm, pullback(net, X, Y, 1.4))


def test_every_spelling_of_relu_is_gated() -> None:
    weights = torch.tensor([1.0, -1.0])

    def nets() -> list[nn.Module]:
        class By(nn.Module):
            def __init__(self, call: object) -> None:
                super().__init__()
                self.call = call

            def forward(self, x: Tensor) -> Tensor:
                return (self.call(2 * x) * weights)[:, None].sum(2)  # type: ignore[operator]

        calls = [F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, lambda x: F.relu(x, True)]
        calls += [lambda x: F.relu(input=x), lambda x: F.relu(x, inplace=True), lambda x: (F.relu_(x), x)[1]]
        return [By(nn.ReLU()), By(nn.ReLU(inplace=True)), *map(By, calls)]

    x = torch.tensor([[0.4, -0.3]])
    for model in nets():
        found = pullback(model, x, torch.tensor([0]))
        torch.testing.assert_close(found, 2 * weights * torch.sigmoid(2 * x))


def test_pools_weigh_their_window_by_the_softmax() -> None:
    x = torch.randn(2, 3, 4, 4).double().requires_grad_()
    (found,) = torch.autograd.grad(soft_gate_max_pool2d(x, 2, temperature=0.5)[1, 2, 1, 0], x)
    window = x.detach()[1, 2, 2:4, 0:2].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(
        (torch.softmax(window.flatten() / 0.5, 0) * window.flatten()).sum(), window
    )
    torch.testing.assert_close(found[1, 2, 2:4, 0:2], wanted)
    assert int((found != 0).sum()) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": 2, "stride": 3, "dilation": 2},
        {"kernel_size": 5, "stride": 4},
        {"kernel_size": 2, "stride": 2, "ceil_mode": True},
    ],
)
def test_pools_of_all_shapes_are_torchs(options: dict[str, object]) -> None:
    x = (3 * torch.randn(2, 3, 9, 7)).double().requires_grad_()
    pool, wanted = SoftGateMaxPool2d(**options, temperature=1e-9), nn.MaxPool2d(**options)  # type: ignore[arg-type]
    assert torch.equal(pool(x), wanted(x))
    weights = torch.randn_like(wanted(x))
    cold, hard = (torch.autograd.grad((p(x) * weights).sum(), x)[0] for p in (pool, wanted))
    torch.testing.assert_close(cold, hard)
    pool.temperature = 1e9
    (warm,) = torch.autograd.grad((pool(x) * weights).sum(), x)
    assert float(warm.sum()) == pytest.approx(float(weights.sum()))  # a mean over what is no padding
    assert torch.isfinite(warm).all()
    assert torch.equal(pool(x[0]), wanted(x[0]))


def test_indices_come_along() -> None:
    x = torch.randn(1, 2, 6, 6)
    net = nn.Sequential(nn.MaxPool2d(2, return_indices=True))
    found, wanted = convert(net)(x), net(x)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_without_relu_and_pooling_it_is_the_gradient() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 3)
    ).double()
    assert torch.equal(pullback(model, X, Y), gradient(model, X, Y))


def test_a_pullback_against_another_class_is_a_difference(net: nn.Module) -> None:
    other = (Y + 1) % 3
    torch.testing.assert_close(
        pullback(net, X, Y, against=other), pullback(net, X, Y) - pullback(net, X, other)
    )


def test_the_copy_keeps_names_weights_and_gates_through_copies(net: nn.Module) -> None:
    before = type(net)
    found = make("excitation_pullback", temperature=0.5)(net)
    assert type(net) is before
    assert found is not net
    assert isinstance(found, before)
    assert found.state_dict().keys() == net.state_dict().keys()
    assert any("0.5" in sentence for sentence in changes(found))
    wanted = gradient(found, X, Y)
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        torch.testing.assert_close(gradient(other, X, Y), wanted)
    torch.testing.assert_close(gradient(convert(found, 2.0), X, Y), pullback(net, X, Y, 2.0))
    torch.testing.assert_close(gradient(found, X, Y), wanted)  # converting it again left it as it was


def test_the_copy_can_be_exported(net: nn.Module) -> None:
    assert torch.equal(torch.export.export(convert(net, 0.5), (X,)).module()(X), net(X))


def test_soft_gates_can_be_compiled() -> None:
    small, x = nn.Sequential(nn.Linear(3, 4), SoftGateReLU(0.5), nn.Linear(4, 3)).double(), X[0, 0, :5, :3]
    compiled = torch.compile(small, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, x, Y), gradient(small, x, Y))


def test_single_modules_can_be_converted() -> None:
    assert repr(convert(nn.ReLU(), 0.5)) == "SoftGateReLU(temperature=0.5)"
    pool = convert(nn.MaxPool2d(3, 2, 1, ceil_mode=True), 0.5)
    assert repr(pool).startswith(
        "SoftGateMaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=True"
    )
    assert "temperature=0.5" in repr(pool)


def test_explanations_leave_the_model_as_it_was(net: nn.Module) -> None:
    net.train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    for method in METHODS:
        assert explain(net, X, Y, method).shape == X.shape
    assert net.training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_other_methods_are_what_their_papers_say(net: nn.Module) -> None:
    torch.testing.assert_close(explain(net, X, Y, "gradient"), gradient(net, X, Y))
    torch.testing.assert_close(explain(net, X, Y, "gradient_x_input"), X * gradient(net, X, Y))
    torch.testing.assert_close(smooth_gradient(net, X, Y, 3, noise=0.0), gradient(net, X, Y))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    torch.testing.assert_close(smooth_gradient(linear, X, Y, 4), gradient(linear, X, Y))
    many = smooth_gradient(net, X, Y, 4, seed=3)
    assert torch.equal(many, smooth_gradient(net, X, Y, 4, seed=3))
    assert not torch.equal(many, smooth_gradient(net, X, Y, 4, seed=4))
    z = torch.tensor([-1.0, 2.0, 3.0]).requires_grad_()
    (found,) = torch.autograd.grad((guided_relu(z) * torch.tensor([1.0, 1.0, -1.0])).sum(), z)
    assert found.tolist() == [0, 1, 0]


def test_ascent_takes_steps_of_its_length_up() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    weight = model[1].weight[Y].detach().reshape(5, 1, 8, 8)
    unit = weight / weight.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(ascent(model, X, Y, 5, 0.4), X + 2.0 * unit)
    boxed = ascent(model, X.clamp(0, 1), Y, 5, 0.4, bounds=(0.0, 1.0))
    assert 0 <= float(boxed.min()) <= float(boxed.max()) <= 1
    assert torch.equal(ascent(nn.Sequential(nn.Flatten(), nn.ReLU()).double(), X, Y, 0), X)


def test_gate_vectors_and_what_is_made_of_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, 2, bias=False),
    )
    x, y = torch.randn(3, 4), torch.randn(2, 4)
    first, second = gate_vectors(model, x, 0.5)
    z = model[0](x)
    torch.testing.assert_close(first.soft, torch.sigmoid(z / 0.5))
    assert torch.equal(first.hard, (z > 0).float())
    torch.testing.assert_close(second.soft, torch.sigmoid(model[2](z.relu()) / 0.5))
    cosine = (first.hard * first.soft).sum(1) / first.hard.norm(dim=1) / first.soft.norm(dim=1)
    torch.testing.assert_close(first.alignment, cosine)
    torch.testing.assert_close(gate_vectors(model, x, 1e-9)[0].alignment, torch.ones(3))
    other = gate_vectors(model, y, 0.5)
    wanted = (first.soft @ other[0].soft.T / 6) * (second.soft @ other[1].soft.T / 5)
    torch.testing.assert_close(path_kernel(model, x, y, 0.5), wanted)
    # cold and without biases, the implied linear model is the network
    torch.testing.assert_close(implied_scores(model, x, 2, 1e-9), model(x))


def test_figures_of_the_claims() -> None:
    means = torch.eye(3)[:, :, None]
    source, target = torch.tensor([0, 1]), torch.tensor([1, 2])
    pictures = (means[target] - means[source]) * torch.tensor([2.0, -5.0])[:, None, None]
    assert alignment(pictures, means, source, target) == pytest.approx(0.0)
    assert alignment(
        pictures.abs() * 0 + means[target] - means[source], means, source, target
    ) == pytest.approx(1.0)
    pictures = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0], [2.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert agreement(pictures, labels) == pytest.approx((2 * 2**-0.5 / 3 - 1) / 2)


def test_bad_input_is_named() -> None:
    with pytest.raises(WorkingPapersError, match="temperature above 0; got 0"):
        convert(nn.ReLU(), 0)
    with pytest.raises(WorkingPapersError, match="temperature above 0"):
        pullback(nn.ReLU(), X, Y, -1)
    with pytest.raises(WorkingPapersError, match=r"scores \(N, classes\)"):
        pullback(nn.ReLU(), X, Y)
    with pytest.raises(UnknownName, match="way to explain.*'pullback'"):
        explain(nn.Flatten(), X, Y, "pullbck")
