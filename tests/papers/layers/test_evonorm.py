"""EvoNorms against their formulas in numpy, their invariances, the graphs that they are, and the search."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workingpapers.data import images
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.kernels import fusing
from workingpapers.papers.layers._evolution import Trial, evolve, winner
from workingpapers.papers.layers._layer_graphs import (
    OPERATIONS,
    GraphLayer,
    largest_gradient,
    layer_space,
    quality,
    small_networks,
)
from workingpapers.papers.layers.evonorm import VARIANTS, EvoNorm, replace
from workingpapers.surgery import changes
from workingpapers.tasks import residual_cnn

C, EPS = 6, 1e-5


def batch(seed: int = 0, size: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(size, C, 5, 4, generator=generator, dtype=torch.float64) + 0.3


def layer(variant: str, **options: object) -> EvoNorm:
    made = EvoNorm(C, variant=variant, **options).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(7)
    for p in made.parameters():
        p.data += 0.5 * torch.randn(C, generator=generator, dtype=torch.float64)
    return made


def expected(made: EvoNorm, x: torch.Tensor, batch_var: np.ndarray, nonlinear: bool = True) -> np.ndarray:
    a = x.numpy()
    gamma, beta = (p.detach().numpy()[:, None, None] for p in (made.weight, made.bias))
    v = made.v.detach().numpy()[:, None, None] if made.v is not None else np.ones((C, 1, 1))
    left = np.sqrt(batch_var + EPS)[:, None, None]
    var_hw, ms_hw = a.var((2, 3), keepdims=True), (a**2).mean((2, 3), keepdims=True)
    g = math.gcd(made.groups, C)
    grouped = a.reshape(len(a), g, -1)
    var_g = np.repeat(grouped.var(2), C // g, 1)[:, :, None, None]
    ms_g = np.repeat((grouped**2).mean(2), C // g, 1)[:, :, None, None]
    one = 1.0 if nonlinear else 0.0
    gate = {True: lambda z: 1 / (1 + np.exp(-z)), False: lambda z: 1.0}[nonlinear]
    y = {
        "b0": lambda: a / np.maximum(left, one * v * a + np.sqrt(var_hw + EPS)),
        "b1": lambda: a / np.maximum(left, (one * a + 1) * np.sqrt(ms_hw + EPS)),
        "b2": lambda: a / np.maximum(left, np.sqrt(ms_hw + EPS) - one * a),
        "s0": lambda: a * gate(v * a) / np.sqrt(var_g + EPS),
        "s1": lambda: a * gate(a) / np.sqrt(var_g + EPS),
        "s2": lambda: a * gate(a) / np.sqrt(ms_g + EPS),
    }[made.variant]()
    return np.asarray(y * gamma + beta)


@pytest.mark.parametrize("variant", VARIANTS)
def test_formulas(variant: str) -> None:
    x, made = batch(), layer(variant, groups=2)
    biased = x.numpy().var((0, 2, 3))
    np.testing.assert_allclose(made(x).detach().numpy(), expected(made, x, biased), rtol=1e-12)
    made.eval()
    running = np.ones(C) * 0.9 + 0.1 * biased
    if variant[0] == "b":
        assert made.running_var is not None
        np.testing.assert_allclose(made.running_var.numpy(), running, rtol=1e-12)
    np.testing.assert_allclose(made(x).detach().numpy(), expected(made, x, running), rtol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_linear_forms(variant: str) -> None:
    x = batch()
    plain = layer(variant, apply_nonlinearity=False)
    torch.testing.assert_close(plain(x), x * plain.weight.view(-1, 1, 1) + plain.bias.view(-1, 1, 1))
    normal = layer(variant, apply_nonlinearity=False, linear="normalised", groups=2)
    found = normal(x).detach().numpy()
    np.testing.assert_allclose(found, expected(normal, x, x.numpy().var((0, 2, 3)), False), rtol=1e-12)
    assert normal.v is None


def test_s0_at_v_zero_halves_the_normalised_input() -> None:
    x, made = batch(), EvoNorm(C, groups=3).double()
    assert made.v is not None
    nn.init.zeros_(made.v)
    std = x.view(3, 3, -1).var(2, correction=0).add(EPS).sqrt().repeat_interleave(2, 1)[..., None, None]
    torch.testing.assert_close(made(x), 0.5 * x / std)
    linear = EvoNorm(C, groups=3, apply_nonlinearity=False, linear="normalised").double()
    torch.testing.assert_close(linear(x), x / std)


def test_b0_in_evaluation_with_unit_variance_and_v_zero() -> None:
    x, made = batch(), EvoNorm(C, variant="b0").double().eval()
    assert made.v is not None
    nn.init.zeros_(made.v)
    std = x.var((2, 3), correction=0, keepdim=True).add(EPS).sqrt()
    torch.testing.assert_close(made(x), x / std.clamp(min=math.sqrt(1 + EPS)))


@pytest.mark.parametrize("variant", ["s0", "s1", "s2"])
def test_s_variants_see_each_sample_alone_even_in_training(variant: str) -> None:
    made, one, other = layer(variant), batch(0), batch(1)
    mixed = torch.cat([one[:1], other[1:]])
    assert torch.equal(made(one)[0], made(mixed)[0])
    assert not list(made.buffers())


@pytest.mark.parametrize("variant", ["b0", "b1", "b2"])
def test_b_variants_see_the_batch_in_training_only(variant: str) -> None:
    made, one, other = layer(variant), batch(0), batch(1)
    mixed = torch.cat([one[:1], 3 * other[1:]])
    assert not torch.equal(made(one)[0], made(mixed)[0])
    made.eval()
    assert torch.equal(made(one)[0], made(mixed)[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_computed_in_float32(variant: str) -> None:
    x = batch().bfloat16()
    low, high = EvoNorm(C, variant=variant).bfloat16(), EvoNorm(C, variant=variant)
    assert torch.equal(low(x), high(x.float()).bfloat16())


def test_groups_are_a_common_divisor() -> None:
    x = batch()
    torch.testing.assert_close(EvoNorm(C, groups=32).double()(x), EvoNorm(C, groups=2).double()(x))


def test_fused_and_plain_agree() -> None:
    x = batch().float()
    found = []
    for mode in ("always", "never"):
        made, z = EvoNorm(C, variant="b0"), x.clone().requires_grad_()
        with fusing(mode):
            y = made(z)
            slopes = torch.autograd.grad(y.square().sum(), [z, *made.parameters()])
        found.append([y, *slopes])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    """A residual block as torchvision writes it: one ReLU for both places, one functional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.bn2, self.bn3 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return F.silu(self.bn3(self.relu(x + y)))


def test_replacing_finds_activations_in_the_graph() -> None:
    torch.manual_seed(0)
    model = Block()
    nn.init.uniform_(model.bn1.weight)
    changed = replace(model, groups=2).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    parts = dict(changed.named_modules())
    for name, active in (("bn1", True), ("bn2", False), ("bn3", True)):
        part = parts[name]
        assert isinstance(part, EvoNorm)
        assert part.apply_nonlinearity is active
        assert torch.equal(part.weight, dict(model.named_modules())[name].weight.double())  # type: ignore[operator]
    y = parts["bn2"](parts["conv2"](parts["bn1"](parts["conv1"](x))))
    torch.testing.assert_close(changed(x), parts["bn3"](F.relu(x + y)))
    assert len(changes(changed)) == 3
    kept = replace(model, rest="keep")
    assert isinstance(kept.get_submodule("bn2"), nn.BatchNorm2d)
    again = replace(changed)
    torch.testing.assert_close(again(x), changed(x))


def test_replacing_in_the_residual_network() -> None:
    changed = replace(residual_cnn(3, 10, (8, 16)), variant="b0")
    found = [m.apply_nonlinearity for m in changed.modules() if isinstance(m, EvoNorm)]
    assert sorted(found) == [False] * 3 + [True] * 3  # stem, two blocks; one shortcut
    assert not any(isinstance(m, nn.BatchNorm2d) for m in changed.modules())


def graph(*nodes: tuple[str, int, int]) -> dict[str, tuple[str, int, int]]:
    return {f"node{i}": node for i, node in enumerate(nodes)}


def test_known_layers_are_graphs() -> None:
    x = batch()
    bn_relu = graph(
        ("mean_bhw", 0, 0), ("neg", 4, 0), ("add", 0, 5), ("std_bhw", 0, 0), ("div", 6, 7), ("max", 8, 1)
    )
    made, bn = GraphLayer(C, bn_relu).double(), nn.BatchNorm2d(C, momentum=0.1).double()
    torch.testing.assert_close(made(x), F.relu(bn(x)))
    other = batch(1)
    made.eval()
    mean = 0.1 * x.mean((0, 2, 3), keepdim=True)
    std = 0.9 + 0.1 * x.var((0, 2, 3), correction=0, keepdim=True).add(EPS).sqrt()
    torch.testing.assert_close(made(other), F.relu((other - mean) / std))
    s0 = graph(("mul", 0, 3), ("sigmoid", 4, 0), ("mul", 0, 5), ("std_ghw", 0, 0), ("div", 6, 7))
    torch.testing.assert_close(GraphLayer(C, s0).double()(x), EvoNorm(C).double()(x))
    constant = GraphLayer(C, graph(("neg", 0, 0), ("exp", 1, 0))).double()
    torch.testing.assert_close(constant(x), torch.ones_like(x))


def test_space_lists_earlier_parents_only() -> None:
    space = layer_space(3)
    assert [len(choices) for choices in space.values()] == [len(OPERATIONS) * n * n for n in (4, 5, 6)]
    assert max(b for _, _, b in space["node2"]) == 5
    assert len(OPERATIONS) == 5 + 8 + 12


def test_rejection_tells_good_from_bad() -> None:
    split, network = images("digits", train=300, test=100), small_networks(1, 10)[0]

    def made(*nodes: tuple[str, int, int]) -> object:
        return lambda channels: GraphLayer(channels, graph(*nodes))

    good = made(("max", 0, 1), ("std_ghw", 4, 0), ("div", 4, 5))
    assert quality(network, good, split, steps=60) > 0.2  # type: ignore[arg-type]
    for bad in (made(("exp", 1, 0)), made(("div", 0, 1))):
        assert quality(network, bad, split, steps=5) == 0.0  # type: ignore[arg-type]
    tame = made(("tanh", 0, 0))
    wild = made(("square", 0, 0), ("square", 4, 0), ("square", 5, 0))
    assert largest_gradient(network, tame, split, steps=8) < 1e3  # type: ignore[arg-type]
    assert largest_gradient(network, wild, split, steps=8) > 1e8  # type: ignore[arg-type]


def test_winner_is_on_the_frontier() -> None:
    trials = [Trial({}, 0.0, s) for s in ((1.0, 5.0), (5.0, 1.0), (4.0, 1.0), (0.0, 0.0))]
    found = {winner(trials, random.Random(i)).scores for i in range(40)}
    assert found == {(1.0, 5.0), (5.0, 1.0)}


def test_mutations_change_one_node_of_a_tournament_winner() -> None:
    space = {name: list(range(50)) for name in "abcdef"}
    trials = evolve(space, lambda p: [float(p["a"]), 0.0], 60, seed=1, initial=10)
    for i, trial in enumerate(trials[10:], start=10):
        nearest = min(sum(trial.point[n] != t.point[n] for n in space) for t in trials[:i])
        assert nearest <= 1
    assert trials == evolve(space, lambda p: [float(p["a"]), 0.0], 60, seed=1, initial=10, trials=trials[:33])


def test_errors_are_one_sentence() -> None:
    with pytest.raises(UnknownName, match="s0"):
        EvoNorm(4, variant="s3")
    with pytest.raises(UnknownName, match="affine"):
        EvoNorm(4, linear="afine")
    with pytest.raises(WorkingPapersError, match="takes"):
        EvoNorm(4)(torch.zeros(2, 5, 3, 3))
    with pytest.raises(UnknownName, match="keep"):
        replace(Block(), rest="kept")
    with pytest.raises(WorkingPapersError, match="list of choices"):
        evolve({"a": (0, 1)}, lambda p: 0.0, 3)  # type: ignore[dict-item]

    class Shared(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn1(F.relu(self.bn1(x)))  # type: ignore[no-any-return]

    class Branching(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn1(x) if x.sum() > 0 else x

    with pytest.raises(WorkingPapersError, match="in one place"):
        replace(Shared())
    with pytest.raises(WorkingPapersError, match="traced"):
        replace(Branching())
