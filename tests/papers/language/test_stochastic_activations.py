"""The draw at its ends and on average; switching while training; sparse products; texts by hand."""

import math

import pytest
import torch
from tests.exact import exp, expect_exact
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.data import images
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.language._diversity import distinct, entropy, generate, perplexity, self_bleu
from workingpapers.papers.language._gated import Gated, gated_gpt
from workingpapers.papers.language._sparse import SparseDown, sparse_feed_forward
from workingpapers.papers.language.stochastic_activations import (
    StochasticActivation,
    apply_stochastic,
    evaluating,
    finetune,
    mixed,
    sparsify,
    switching,
    zero_shares,
)
from workingpapers.tasks import char_gpt, fit, initialise, mlp


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_mixture_in_fifty_digits() -> None:
    def slope(x):  # type: ignore[no-untyped-def]
        sigmoid = 1 / (1 + exp(-x)) if x >= 0 else exp(x) / (1 + exp(x))
        return 0.25 * sigmoid * (1 + x * (1 - sigmoid)) + 0.75 * (x > 0)

    def value(x):  # type: ignore[no-untyped-def]
        return 0.25 * (x / (1 + exp(-x)) if x >= 0 else x * exp(x) / (1 + exp(x))) + 0.75 * max(x, 0)

    expect_exact(lambda x: mixed(x, 0.25), value, slope, every=3)


@pytest.mark.parametrize("granularity", ["element", "token", "layer"])
def test_the_ends_are_relu_and_silu(granularity: str) -> None:
    x = normal(4, 5, 6)
    assert torch.equal(StochasticActivation(0.0, granularity)(x), x.relu())
    torch.testing.assert_close(StochasticActivation(1.0, granularity)(x), F.silu(x))


def test_the_mean_of_many_draws_is_the_expected_mixture() -> None:
    torch.manual_seed(0)
    module = StochasticActivation(0.3, evaluation="expected")
    for value in (-2.0, -0.5, 1.0):
        x = torch.full((100_000,), value, dtype=torch.float64)
        drawn = module(x)
        expected = 0.3 * F.silu(x[0]) + 0.7 * x[0].relu()
        assert abs(drawn.mean() - expected) < 3 * drawn.std() / math.sqrt(len(x))
        assert set(drawn.tolist()) == {x[0].relu().item(), F.silu(x[0]).item()}
        module.eval()
        assert module(x)[0].item() == pytest.approx(expected.item())
        module.train()


def test_large_inputs_leave_no_choice() -> None:
    x = torch.linspace(30, 1e4, 1000, dtype=torch.float64)
    torch.manual_seed(0)
    torch.testing.assert_close(StochasticActivation()(x), x, rtol=0, atol=1e-6)


def test_a_draw_is_shared_as_the_granularity_says() -> None:
    x = torch.full((50, 4), -1.0)
    torch.manual_seed(0)
    zero = {g: StochasticActivation(granularity=g)(x) == 0 for g in ("element", "token", "layer")}
    assert 60 < zero["element"].sum() < 140
    assert set(zero["token"].sum(1).tolist()) == {0, 4}
    assert zero["layer"].all() or not zero["layer"].any()
    module = StochasticActivation(granularity="layer")
    assert 60 < sum(bool((module(x[:1]) == 0).all()) for _ in range(200)) < 140  # afresh in every pass


def test_positive_inputs_can_be_left_out_of_the_draw() -> None:
    x = torch.cat([torch.full((200,), -1.0), torch.full((200,), 1.0)])
    torch.manual_seed(0)
    for positive, expected in (("silu", F.silu(torch.tensor(1.0)).item()), ("identity", 1.0)):
        y = StochasticActivation(0.5, positive=positive)(x)
        assert len(set(y[:200].tolist())) == 2
        assert y[200:].tolist() == pytest.approx([expected] * 200)
    assert len(set(StochasticActivation(0.5)(x)[200:].tolist())) == 2


def test_evaluation_modes() -> None:
    x, module = normal(100), StochasticActivation(0.5).eval()
    assert torch.equal(module(x), x.relu())
    with evaluating(module, "silu"):
        torch.testing.assert_close(module(x), F.silu(x))
    with evaluating(module, "stochastic"):
        assert not torch.equal(module(x), module(x))
    assert torch.equal(module(x), x.relu())


class Llama(nn.Module):
    """A feed-forward layer with the attribute names of transformers' Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(6, 16, bias=False), nn.Linear(6, 16, bias=False)
        self.down_proj = nn.Linear(16, 6, bias=False)
        self.act_fn = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is (inputs, outputs)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(normal(inputs, outputs)), nn.Parameter(normal(outputs, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def test_activations_are_found_by_name_and_class() -> None:
    for model in (Llama(), mlp([4, 8, 8, 2], nn.GELU), char_gpt(9, 16, 2, 2, 8, activation=nn.Hardswish)):
        count = {Llama: 1, nn.Sequential: 2}.get(type(model), 2)
        found = [m for m in apply_stochastic(model, 0.2).modules() if isinstance(m, StochasticActivation)]
        assert len(found) == count
        assert {m.p for m in found} == {0.2}
    gate = apply_stochastic(gated_gpt(9, 8, nn.SiLU), evaluation="silu")
    assert isinstance(gate.blocks[0].activation, Gated)  # type: ignore[index, union-attr]


@torch.no_grad()
@pytest.mark.parametrize("most", [0.0, 1.0])
def test_gathering_equals_the_dense_product(most: float) -> None:
    dense = nn.Linear(40, 7)
    layer = SparseDown(dense.weight, dense.bias, most)
    x = normal(3, 5, 40).relu() * (normal(3, 5, 40, seed=1) > 0.5)
    x[0, 1] = 0
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x[0, 1]), dense.bias, rtol=1e-5, atol=1e-5)
    assert layer(x[0, 0]).shape == (7,)


def test_gathering_layers_can_still_be_trained() -> None:
    layer = SparseDown(normal(3, 8), None, most=1.0)
    x = normal(2, 8).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(layer.columns.grad, x.detach().sum(0)[:, None].expand(8, 3))


@torch.no_grad()
def test_models_made_sparse_give_the_same_outputs() -> None:
    llama = apply_stochastic(Llama())
    gpt2 = nn.Module()
    gpt2.mlp = nn.Module()
    gpt2.mlp.c_proj, gpt2.attn = Conv1D(5, 9), nn.Module()  # type: ignore[union-attr]
    gpt2.attn.c_proj = Conv1D(5, 5)  # type: ignore[union-attr]
    found = sparsify(gpt2)
    assert isinstance(found.mlp.c_proj, SparseDown)  # type: ignore[union-attr]
    assert isinstance(found.attn.c_proj, Conv1D)  # type: ignore[union-attr]
    x = normal(4, 9).relu()
    torch.testing.assert_close(found.mlp.c_proj(x), gpt2.mlp.c_proj(x))  # type: ignore[union-attr, operator]
    x = normal(2, 5, 6)
    for model in (llama, mlp([30, 8, 8, 2])):
        model.eval()
        sparse = sparsify(model, most=1.0)
        assert any(isinstance(m, SparseDown) for m in sparse.modules())
        torch.testing.assert_close(sparse(x), model(x), rtol=1e-5, atol=1e-6)
    gate, up, down = llama.gate_proj.weight, llama.up_proj.weight, llama.down_proj.weight  # type: ignore[union-attr]
    found = sparse_feed_forward(x[0], gate, up, down.t())  # type: ignore[arg-type, operator]
    torch.testing.assert_close(found, llama(x[0]), rtol=1e-5, atol=1e-6)


def test_switching_turns_to_relu_in_the_last_share_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), StochasticActivation(0.5, positive="silu"))
    factor = switching(model, 0.25)
    assert factor(0.5) == pytest.approx(0.5)
    assert factor(0.74) == pytest.approx(0.5 * (1 + math.cos(0.74 * math.pi)))
    assert model[1].p == 0.5
    assert factor(0.75) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert (model[1].p, model[1].positive) == (0.0, "drawn")
    kept = nn.Sequential(StochasticActivation(0.5))
    switching(kept, 0.0)(1.0)
    assert kept[0].p == 0.5


def test_a_model_is_finetuned_with_relu() -> None:
    split = images("digits", train=200, test=100)
    model = initialise(lambda: apply_stochastic(mlp([64, 16, 10]), 1.0, evaluation="silu"), 0)
    fit(model, split, epochs=2, schedule=switching(model, 0.5))
    assert model[2].p == 0.0  # type: ignore[index]
    smooth = initialise(lambda: apply_stochastic(mlp([64, 16, 10]), 1.0), 0)
    finetune(smooth, split, 3)
    assert smooth[2].p == 0.0  # type: ignore[index]


def test_zero_shares_are_those_of_the_outputs() -> None:
    model = nn.Sequential(nn.Identity(), StochasticActivation())
    assert zero_shares(model, torch.tensor([[-1.0, 2.0, -3.0, 0.0]])) == {"1": 0.75}
    with pytest.raises(WorkingPapersError, match="apply them first"):
        zero_shares(nn.ReLU(), torch.ones(1))


class Next(nn.Module):
    """A language model of 5 tokens that gives the next number the odds `odds` to 1, drawing nothing."""

    context = 4

    def __init__(self, odds: float) -> None:
        super().__init__()
        self.odds = odds

    def forward(self, tokens: Tensor) -> Tensor:
        assert tokens.shape[1] <= self.context
        return math.log(self.odds) * F.one_hot((tokens + 1) % 5, 5).float()


def test_generation_and_perplexity() -> None:
    prompt = torch.tensor([3, 4])
    greedy = generate(Next(10.0), prompt, 7, samples=2)
    assert greedy.tolist() == [[0, 1, 2, 3, 4, 0, 1]] * 2
    hot = generate(Next(3.0), prompt, 400, samples=5, temperature=2.0, seed=1)
    likely = hot[:, 1:] == (hot[:, :-1] + 1) % 5
    assert likely.float().mean().item() == pytest.approx(math.sqrt(3) / (math.sqrt(3) + 4), abs=0.04)
    assert torch.equal(hot, generate(Next(3.0), prompt, 400, samples=5, temperature=2.0, seed=1))
    # each next token has the chance 10 / 14, whatever the windows
    assert perplexity(Next(10.0), prompt, greedy) == pytest.approx(1.4)
    assert perplexity(Next(10.0), prompt, torch.tensor([[1]])) == pytest.approx(14.0)
    with pytest.raises(WorkingPapersError, match="temperature of at least 0"):
        generate(Next(1.0), prompt, 1, temperature=-1.0)


def test_diversity_by_hand() -> None:
    rows = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 2]])
    assert distinct(rows, 2) == pytest.approx(3 / 6)  # 01, 10, 02
    assert distinct(rows, 3) == pytest.approx(3 / 4)
    assert entropy(rows) == pytest.approx(0.5 * math.log(2) + 3 / 8 * math.log(8 / 3) + math.log(8) / 8)
    # of the first row 3 of 4 tokens and 2 of 3 pairs are in the second, of the second likewise
    assert self_bleu(rows, 2) == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
    assert self_bleu(rows[[0, 0]]) == pytest.approx(1.0)
    assert self_bleu(torch.tensor([[0, 1], [2, 3]]), 1) == 0.0


def test_bad_options_are_refused() -> None:
    with pytest.raises(WorkingPapersError, match="p is a chance, 0 to 1; got 1.5"):
        StochasticActivation(1.5)
    with pytest.raises(UnknownName, match="'token'"):
        StochasticActivation(granularity="tokens")
    with pytest.raises(UnknownName, match="treatment of positive inputs"):
        StochasticActivation(positive="gelu")
    with pytest.raises(UnknownName, match="evaluation"), evaluating(StochasticActivation(), "relus"):
        pass
    with pytest.raises(WorkingPapersError, match="got alpha=2"):
        switching(StochasticActivation(), 2)
