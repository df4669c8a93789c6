"""LAuReL: each sum by hand, counted parameters, and conversion that changes nothing until it is trained."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.layers._laurel_blocks import LaurelBlock
from workingpapers.papers.layers.laurel import LaurelResidual, convert
from workingpapers.surgery import changes
from workingpapers.tasks import char_gpt, residual_cnn, vit


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shaken(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    module.double()
    for p in module.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return module


@pytest.mark.parametrize(
    ("variant", "r", "expected"),
    [
        ("rw", 4, 2),
        ("lr", 4, 2 * 4 * 10),
        ("pa", 4, 2 * 4 * 10 + 3),
        ("pa", 0, 3),
        ("lr+pa", 4, 2 * 4 * 3 * 10 + 3),
        ("rw+lr", 4, 2 + 2 * 4 * 10),
        ("rw+lr+pa", 4, 2 + 2 * 4 * 3 * 10 + 3),
    ],
)
def test_parameters_are_those_of_table_4_and_the_start_is_the_plain_sum(
    variant: str, r: int, expected: int
) -> None:
    residual = LaurelResidual(10, variant, r, 3)
    assert count(residual) == expected
    x, fx, history = normal(2, 3, 10).float(), normal(2, 3, 10, seed=1).float(), [normal(2, 3, 10).float()]
    torch.testing.assert_close(residual(x, fx, history), x + fx, atol=1e-6, rtol=0)


def test_the_full_sum_follows_equation_6() -> None:
    residual = shaken(LaurelResidual(5, "rw+lr+pa", 2, 3))
    x, fx, earlier = normal(4, 5), normal(4, 5, seed=1), [normal(4, 5, seed=s) for s in (2, 3, 4)]
    e = residual.mix.exp().squeeze(1)
    alpha, beta = 2 * e[0] / e.sum(), 2 * e[1] / e.sum()
    g = x + sum(
        residual.gamma[j] * (z @ residual.a[j].T) @ residual.b[j].T for j, z in enumerate([x, *earlier[:2]])
    )
    torch.testing.assert_close(residual(x, fx, earlier), alpha * fx + beta * g)
    short = x + residual.gamma[0] * (x @ residual.a[0].T) @ residual.b[0].T
    torch.testing.assert_close(residual(x, fx), alpha * fx + beta * short)


def test_previous_activations_share_one_product_or_none() -> None:
    shared, plain = shaken(LaurelResidual(5, "pa", 2, 2)), shaken(LaurelResidual(5, "pa", 0, 2))
    x, fx, before = normal(4, 5), normal(4, 5, seed=1), normal(4, 5, seed=2)
    mixed = shared.gamma[0] * x + shared.gamma[1] * before
    torch.testing.assert_close(shared(x, fx, [before]), fx + x + mixed @ (shared.b[0] @ shared.a[0]).T)
    mixed = plain.gamma[0] * x + plain.gamma[1] * before
    torch.testing.assert_close(plain(x, fx, [before]), fx + x + mixed)


def test_a_full_rank_reaches_every_linear_map() -> None:
    residual, wanted = LaurelResidual(5, "lr", 5).double(), normal(5, 5)
    residual.a.data[0] = torch.eye(5)
    residual.b.data[0] = wanted - torch.eye(5, dtype=torch.float64)
    x, fx = normal(3, 5), normal(3, 5, seed=1)
    torch.testing.assert_close(residual(x, fx), fx + x @ wanted.T)


@pytest.mark.parametrize("per_channel", [False, True])
def test_images_go_through_pointwise_convolutions(per_channel: bool) -> None:
    residual = shaken(LaurelResidual(4, "rw+lr", 2, per_channel=per_channel, channels_first=True))
    last = LaurelResidual(4, "rw+lr", 2, per_channel=per_channel).double()
    last.load_state_dict(residual.state_dict())
    x, fx = normal(2, 4, 3, 5), normal(2, 4, 3, 5, seed=1)
    expected = last(x.movedim(1, -1), fx.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(residual(x, fx), expected)
    assert count(residual) == 2 * (4 if per_channel else 1) + 16


@pytest.mark.parametrize(
    ("weights", "values", "expected"),
    [
        ("softmax", [0.0, math.log(3.0)], (0.5, 1.5)),
        ("sigmoid", [0.0, math.log(3.0)], (1.0, 1.5)),
        ("one", [math.log(3.0)], (1.5, 0.5)),
        ("free", [-4.0, 7.0], (-4.0, 7.0)),
    ],
)
def test_the_weights_are_bounded_as_asked(
    weights: str, values: list[float], expected: tuple[float, float]
) -> None:
    residual = LaurelResidual(3, "rw", weights=weights)
    assert [float(w.detach()) for w in residual.alpha_beta()] == [1.0, 1.0]
    residual.mix.data = torch.tensor(values).unsqueeze(1)
    assert [float(w.detach()) for w in residual.alpha_beta()] == pytest.approx(expected)


def test_the_orthogonal_start_has_the_columns_of_the_papers_footnote() -> None:
    a = LaurelResidual(12, "lr", 3, init="orthogonal").a[0].detach().double()
    torch.testing.assert_close(a @ a.T, torch.eye(3, dtype=torch.float64) * 12 / 3 / (3 * 12))
    assert float(a[1, 4]) == pytest.approx(1 / 6)
    assert float(a[1, 5]) == 0.0


@pytest.mark.parametrize("variant", ["rw", "lr", "pa", "rw+lr", "rw+lr+pa"])
def test_every_parameter_gets_a_gradient_after_one_step(variant: str) -> None:
    torch.manual_seed(0)
    residual = LaurelResidual(5, variant, 2)
    x, fx, target = torch.randn(3, 64, 5)
    optimizer = torch.optim.SGD(residual.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (residual(x, fx, [fx, x]) - target).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in residual.parameters())


class BasicBlock(nn.Module):
    """The form of torchvision's block, whose one relu serves twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.downsample = nn.ReLU(inplace=True), nn.Conv2d(4, 8, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 3, 1, 1), nn.BatchNorm2d(2)
        self.conv3, self.bn3 = nn.Conv2d(2, 8, 1), nn.BatchNorm2d(8)
        self.relu, self.downsample = nn.ReLU(), None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu(x + self.bn3(self.conv3(out)))


class LlamaDecoderLayer(nn.Module):
    """A block that, as in Hugging Face's library, gives a tuple, takes options and is looked into."""

    attention_type = "full"

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.mlp = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, str]:
        return x + scale * self.mlp(self.input_layernorm(x)), "cache"


CASES = {
    "gpt": (lambda: char_gpt(11, 16, 3, 2, 8), lambda: torch.arange(8)[None], 3),
    "vit": (lambda: vit(1, 8, 4, 3, 16, 2, 2), lambda: torch.randn(2, 1, 8, 8), 2),
    "resnet": (lambda: residual_cnn(1, 3, (4, 8), 2), lambda: torch.randn(2, 1, 8, 8), 4),
    "torchvision": (lambda: nn.Sequential(BasicBlock(), Bottleneck()), lambda: torch.randn(2, 4, 5, 5), 2),
    "encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True),
            2,
            enable_nested_tensor=False,
        ),
        lambda: torch.randn(2, 5, 8),
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_conversion_keeps_the_function_and_training_uses_every_block(name: str) -> None:
    torch.manual_seed(0)
    build, example, blocks = CASES[name]
    model, x = build().eval(), example()
    converted = convert(model, "rw+lr+pa", 2, 2)
    assert len(changes(converted)) == blocks
    torch.testing.assert_close(converted(x), model(x), atol=2e-5, rtol=1e-4)
    added = [m.residual for m in converted.modules() if isinstance(m, LaurelBlock)]
    assert count(converted) - count(model) == sum(map(count, added))
    converted.train()(x).square().sum().backward()
    assert all(r.mix.grad is not None and bool(r.b.grad.abs().sum() > 0) for r in added)


def test_what_a_block_gives_beside_and_is_asked_for_stays() -> None:
    torch.manual_seed(0)
    (block,), x = [LlamaDecoderLayer()], torch.randn(3, 6)
    converted: nn.Module = convert(nn.Sequential(block))[0]
    found, cache = converted(x, scale=0.5)
    torch.testing.assert_close(found, block(x, 0.5)[0])
    assert (cache, converted.attention_type) == ("cache", "full")
    with pytest.raises(AttributeError, match="attention_kind"):
        _ = converted.attention_kind


def test_blocks_read_the_activations_before_them() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])

    class Block(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x).tanh()

    model = convert(nn.Sequential(*map(Block, blocks)), "rw+pa", 0, 3, Block).double()
    for block in model:
        block.residual.gamma.data = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
        block.residual.mix.data = torch.tensor([[0.0], [0.7]], dtype=torch.float64)
    alpha, beta = (float(w.detach()) for w in model[0].residual.alpha_beta())
    x0 = normal(5, 4)
    f = [block.branch.inner for block in model]
    x1 = alpha * f[0](x0).tanh() + beta * 1.1 * x0
    x2 = alpha * f[1](x1).tanh() + beta * (1.1 * x1 + 0.2 * x0)
    x3 = alpha * f[2](x2).tanh() + beta * (1.1 * x2 + 0.2 * x1 + 0.4 * x0)
    torch.testing.assert_close(model(x0), x3)
    torch.testing.assert_close(model(x0), x3)  # nothing is left over from the first pass
    assert model[0].stream.values == []
    for copied in (copy.deepcopy(model), copy.deepcopy(model.eval())):
        assert copied[0].stream is copied[2].stream is not model[0].stream
        torch.testing.assert_close(copied(x0), x3)


def test_wrong_words_are_answered() -> None:
    for options, sentence in (
        ({"variant": "rw+rl"}, "no part of LAuReL is named 'rl'"),
        ({"weights": "softmx"}, "no bound on LAuReL's weights is named 'softmx'"),
        ({"init": "he"}, "no initialisation of LAuReL's A is named 'he'"),
        ({"r": 0}, "the rank is at least 1"),
        ({"k": 0}, "k at least 1; got r=16, k=0"),
    ):
        with pytest.raises(WorkingPapersError, match=sentence):
            LaurelResidual(4, **options)
    with pytest.raises(WorkingPapersError, match="has no module of the chosen sort"):
        convert(nn.Linear(3, 3))
    with pytest.raises(
        WorkingPapersError, match="has no norm, linear layer or convolution that tells its width"
    ):
        convert(nn.Sequential(nn.Tanh()), blocks=nn.Tanh)


def test_the_claims_are_those_of_the_record() -> None:
    assert {c.says for c in claims("laurel").values()} == {c["says"] for c in record("laurel").claims}
    assert isinstance(make("laurel.residual", 8), LaurelResidual)
