"""ReMoE: gates and penalty by hand, the controller's law, dynamic and even routing, converted decoders."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workingpapers.catalog import claims, make, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._expert_layers import (
    Watch,
    dead_experts,
    gates_of,
    load_entropy,
    moe_decoder,
)
from workingpapers.papers.sparsity._routing import flip_rate, routing
from workingpapers.papers.sparsity._topk_moe import Balance, TopKMoE, balance_loss
from workingpapers.papers.sparsity.remoe import ReMoE, ReMoEController, convert, regulariser


def layer(num: int = 5, k: int = 2, **options: object) -> ReMoE:
    made = ReMoE(6, num, k, 8, **options).double()  # type: ignore[arg-type]
    nn.init.normal_(made.router.weight, std=0.5)
    return made


@pytest.mark.parametrize("way", ["grouped", "union"])
def test_sparse_and_dense_agree_in_values_and_gradients(way: str) -> None:
    own = layer(evaluation=way)
    dense = copy.deepcopy(own)
    dense.experts.evaluation = "dense"
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    found = []
    for made in (own, dense):
        y = made(x)
        slopes = torch.autograd.grad(y.square().sum(), [x, *made.parameters()])
        found.append([y, *slopes])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_a_token_without_positive_gates_gets_zero_and_gates_are_relus() -> None:
    own = layer()
    x = torch.randn(7, 6, dtype=torch.float64)
    with torch.no_grad():
        own.router.weight.copy_(torch.ones(5, 6))
    x[0] = -x[0].abs()
    out = own(x)
    assert torch.equal(out[0], torch.zeros(6, dtype=torch.float64))
    by_hand = sum(
        max(float(x[1].sum()), 0.0) * own.experts.dense(x[1:2], torch.eye(5).double()[e : e + 1])
        for e in range(5)
    )
    assert torch.allclose(out[1:2], torch.as_tensor(by_hand), atol=1e-12)


def test_the_output_is_continuous_where_a_gate_opens_and_topk_jumps() -> None:
    own, other = layer(2, 1), TopKMoE(6, 2, 1, 8).double()
    weight = torch.zeros(2, 6, dtype=torch.float64)
    weight[0, 0], weight[1, 0] = 1.0, -1.0
    x = torch.randn(6, dtype=torch.float64)
    steps = []
    for made in (own, other):
        made.router.weight.data.copy_(weight)
        sides = []
        for side in (-1e-9, 1e-9):
            at = x.clone()
            at[0] = side
            sides.append(made(at[None]))
        steps.append(float((sides[1] - sides[0]).detach().norm()))
    assert steps[0] < 1e-7
    assert steps[1] > 1e-3


def test_the_penalty_by_hand() -> None:
    gates = torch.randn(11, 4, dtype=torch.float64).relu()
    k, n, num = 2, 11, 4
    wanted = 0.0
    array = gates.numpy()
    for e in range(num):
        f = num / (k * n) * np.count_nonzero(array[:, e])
        wanted += f * array[:, e].sum() / n
    assert float(regulariser(gates, k)) == pytest.approx(wanted, rel=1e-12)
    assert float(regulariser(gates.view(1, 11, 4), k, balanced=False)) == pytest.approx(array.sum() / n)


def test_even_loads_make_it_plain_and_the_load_has_no_gradient() -> None:
    even = (torch.rand(8, 4, dtype=torch.float64) + 0.1) * torch.eye(4, dtype=torch.float64).repeat(2, 1)
    assert float(regulariser(even, 1)) == pytest.approx(
        float(regulariser(even, 1, balanced=False)), rel=1e-12
    )
    logits = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(regulariser(logits.relu(), 1), logits)
    share = (logits > 0).double().mean(0)
    assert torch.allclose(slope, (logits > 0) * 4 * share / 9)


def test_the_controllers_law() -> None:
    model = moe_decoder(7, 6, 8, 2, lambda: ReMoE(8, 4, 1, 4))
    control, tokens = ReMoEController(model), torch.randint(7, (5, 6))
    assert control.target == 0.75
    model.train()
    for bias, factor in ((-1.0, 1 / 1.2), (1.0, 1.2)):
        before = control.coefficient
        for _ in range(2):  # as with accumulated gradients
            with Watch(model) as watch:
                watch.clear()
            handles = [
                m.router.register_forward_hook(lambda m, a, y, b=bias: y * 0 + b)
                for m in control.watch.layers.values()
            ]
            for m in control.watch.layers.values():  # ours comes after the one that fixes the logits
                m.router._forward_hooks.move_to_end(next(iter(m.router._forward_hooks)))
            model(tokens)
            loss = control.loss()
            for handle in handles:
                handle.remove()
        gate = max(bias, 0.0)
        assert float(loss.detach()) == pytest.approx(
            before * 4 * 4 * gate
        )  # f = E / k = 4 for all of the 4 experts
        assert control.step() == float(bias < 0)
        assert control.coefficient == pytest.approx(before * factor, rel=1e-12)
    other = ReMoEController(model)
    other.load_state_dict(control.state_dict())
    assert other.coefficient == control.coefficient
    model.eval()(tokens)
    assert float(control.loss()) == 0.0
    with pytest.raises(WorkingPapersError, match="after a forward pass"):
        control.step()
    control.close()
    other.close()
    assert not any(m.router._forward_hooks for m in control.watch.layers.values())


def test_training_reaches_the_target() -> None:
    made = nn.Sequential(ReMoE(6, 8, 2, 4))
    control, x = ReMoEController(made, start=1e-3), torch.randn(64, 6)
    x[:, 0] = 2.0  # without a mean, a gate without bias is open for half of the tokens whatever its weights
    adam = torch.optim.Adam(made.parameters(), 1e-2)
    shares = []
    for _ in range(150):
        adam.zero_grad()
        loss = (made(x) - x).square().mean() + control.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        shares.append(control.step())
    assert sum(shares[-50:]) / 50 == pytest.approx(0.75, abs=0.08)
    assert shares[0] < 0.65


def test_topk_and_its_balance() -> None:
    logits = torch.randn(10, 5, dtype=torch.float64)
    gates = TopKMoE(6, 5, 2, 4).gates(logits)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    best = np.sort(p, 1)[:, -2:]
    assert np.allclose(np.sort(gates.numpy(), 1)[:, -2:], best)
    assert int((gates != 0).sum()) == 20
    assert torch.allclose(TopKMoE(6, 5, 2, 4, normalise=True).gates(logits).sum(1), torch.ones(10).double())
    share = (gates != 0).numpy().mean(0)
    assert float(balance_loss(logits, 2)) == pytest.approx(5 / 2 * float(share @ p.mean(0)))
    even = torch.eye(5, dtype=torch.float64) * 1e-9
    assert float(balance_loss(even, 1)) == pytest.approx(1.0, abs=1e-6)
    model = nn.Sequential(TopKMoE(6, 5, 2, 4), TopKMoE(6, 5, 2, 4))
    balance, x = Balance(model, 0.5), torch.randn(9, 6)
    model(x)
    first = model[0].router(x)
    second = model[1].router(model[0](x))
    wanted = 0.5 * (balance_loss(first, 2) + balance_loss(second, 2))
    balance.watch.clear()
    model(x)
    assert float(balance.loss().detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_measures_of_routing() -> None:
    even = torch.eye(4).repeat(25, 1)
    assert load_entropy(even) == pytest.approx(1.0)
    assert load_entropy(torch.eye(4)[:1].expand(9, 4)) == pytest.approx(0.0, abs=1e-6)
    some = even.clone()
    some[:, 3] = 0
    some[0, 3] = 1.0  # serves 1 % of the tokens, below 0.2 / 4
    assert dead_experts(some) == 0.25
    assert flip_rate({"a": even}, {"a": even.roll(1, 1)}) == 0.5


def test_routing_finds_frequency_and_domains() -> None:
    model = moe_decoder(6, 8, 8, 1, lambda: ReMoE(8, 3, 1, 4))

    def logits(module: nn.Module, inputs: object, out: Tensor) -> Tensor:
        return torch.stack(
            [
                out[..., 0] * 0 + 1,
                (tokens == 0) * 2.0 - 1,
                (domains[:, None] == 1) * 2.0 - 1 + out[..., 0] * 0,
            ],
            -1,
        )

    tokens = torch.randint(1, 6, (12, 8))
    tokens[:, ::2] = 0  # half of all: the frequent one
    domains = torch.arange(12) % 2
    handle = model.blocks[0].expand.router.register_forward_hook(logits)
    found = routing(model, tokens, domains)
    handle.remove()
    on = 1 + (tokens == 0).double() + (domains == 1).double()[:, None]
    assert found.numbers["active"] == pytest.approx(float(on.mean()))
    assert found.numbers["spread"] == pytest.approx(float(on.std(correction=0)))
    frequency = torch.bincount(tokens.flatten())[tokens].double().log()
    assert found.numbers["frequency"] == pytest.approx(
        float(np.corrcoef(on.flatten(), frequency.flatten())[0, 1])
    )
    shares = [torch.tensor([1, 0.5, d]) / (1.5 + d) for d in (0.0, 1.0)]
    assert found.numbers["distance"] == pytest.approx(
        float((shares[0] - shares[1]).abs().sum()) / 2, rel=1e-5
    )
    assert found.figure is not None
    assert len(found.figure().axes) == 1


class Gated(nn.Module):
    """Llama's form of a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.act_fn = nn.Linear(6, 12), nn.Linear(6, 12), nn.SiLU()
        self.down_proj = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["copy", "split"])
@torch.no_grad()
def test_a_converted_layer_is_the_dense_one_where_gates_are_even(way: str) -> None:
    model, x = nn.Sequential(Gated(), Gated()), torch.randn(2, 5, 6)
    moe = make("remoe.convert", num_experts=3, way=way)(model)
    same = convert(model, 3, way=way)
    assert all(torch.equal(v, moe.state_dict()[n]) for n, v in same.state_dict().items())
    even = 1.0 if way == "split" else 1 / 3
    layers = [m for m in moe.modules() if isinstance(m, ReMoE)]
    for m in layers:
        m.router.register_forward_hook(lambda m, a, y: y * 0 + even)
    assert torch.allclose(moe(x), model(x), atol=1e-5)
    assert len(layers) == 2
    assert ReMoEController(moe).target == pytest.approx(2 / 3)


def test_granularity_and_repr() -> None:
    own = ReMoE(6, 4, 1, 8, granularity=2)
    assert own.experts.up.shape == (8, 4, 6)
    assert own.k == 2
    assert own.gates(torch.randn(3, 8)).shape == (3, 8)
    model = moe_decoder(7, 6, 8, 1, lambda: ReMoE(8, 4, 2, 8, granularity=2))
    assert ReMoEController(model).target == 0.5
    assert next(iter(gates_of(model, torch.randint(7, (20, 6))).values())).shape == (20, 6, 8)
    assert model.training


def test_sentences() -> None:
    for bad in ({"k": 5}, {"granularity": 3}):
        with pytest.raises(WorkingPapersError):
            ReMoE(6, 4, **{"k": 1, "width": 8, **bad})
    with pytest.raises(WorkingPapersError, match="1 to 4 of 4 experts; got k=0"):
        TopKMoE(6, 4, 0)
    with pytest.raises(WorkingPapersError, match="no ReMoE layer"):
        ReMoEController(nn.Linear(2, 2))
    with pytest.raises(WorkingPapersError, match="factor is above 1"):
        ReMoEController(nn.Sequential(ReMoE(6)), alpha=0.9)
    with pytest.raises(WorkingPapersError, match=r"shape \(rows, T\)"):
        routing(nn.Sequential(ReMoE(6)), torch.ones(3, dtype=torch.long))


def test_claims_are_those_of_the_record() -> None:
    assert [c.says for c in claims("remoe").values()] == [c["says"] for c in record("remoe").claims]
