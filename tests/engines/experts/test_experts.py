"""Experts: three evaluations and their gradients against a loop over tokens, dense layers as experts."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from workingpapers.engines.experts import EVALUATIONS, Experts, as_experts, feed_forwards, with_layers
from workingpapers.errors import WorkingPapersError
from workingpapers.surgery import changes


def by_hand(experts: Experts, x: Tensor, weights: Tensor) -> Tensor:
    """Sum each token's experts one by one, each a product of vectors."""
    rows = []
    for t in range(len(x)):
        y = torch.zeros_like(x[t])
        for e in range(weights.shape[1]):
            value = experts.up[e] @ x[t]
            value = value if experts.up_bias is None else value + experts.up_bias[e]
            if experts.gate is None:
                hidden = experts.activation(value)
            else:
                gate = experts.gate[e] @ x[t]
                gate = gate if experts.gate_bias is None else gate + experts.gate_bias[e]
                hidden = experts.activation(gate) * value
            out = experts.down[e].T @ hidden
            out = out if experts.down_bias is None else out + experts.down_bias[e]
            y = y + weights[t, e] * out
        rows.append(y)
    return torch.stack(rows)


def sparse_weights(n: int, num: int, share: float) -> Tensor:
    return torch.randn(n, num, dtype=torch.float64) * (torch.rand(n, num) < share)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 9),
    num=st.integers(1, 5),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    gated=st.booleans(),
    bias=st.booleans(),
)
def test_all_evaluations_are_the_sum_by_hand(n: int, num: int, share: float, gated: bool, bias: bool) -> None:
    experts = Experts(num, 3, 4, gated=gated, bias=bias).double()
    x, weights = torch.randn(n, 3, dtype=torch.float64), sparse_weights(n, num, share)
    wanted = by_hand(experts, x, weights)
    for way in EVALUATIONS:
        found = getattr(experts, way)(x, weights)
        assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("way", EVALUATIONS)
def test_gradients_are_those_of_the_sum_by_hand(way: str) -> None:
    experts = Experts(3, 4, 5, gated=True, bias=True, evaluation=way).double()
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    along = torch.randn(6, 4, dtype=torch.float64)
    sources = [x, logits, *experts.parameters()]
    found = torch.autograd.grad((experts(x, logits.relu()) * along).sum(), sources)
    wanted = torch.autograd.grad((by_hand(experts, x, logits.relu()) * along).sum(), sources)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("way", ["grouped", "union"])
def test_experts_of_weight_zero_are_not_computed(way: str) -> None:
    experts = Experts(4, 3, 4, evaluation=way)
    with torch.no_grad():
        experts.up[2] = float("nan")
    weights = torch.rand(5, 4) + 0.1
    weights[:, 2] = 0.0
    assert bool(experts(torch.randn(5, 3), weights).isfinite().all())
    assert bool(experts.dense(torch.randn(5, 3), weights).isnan().all())


def test_grouped_computes_each_pair_once() -> None:
    seen: list[int] = []

    class Count(nn.SiLU):
        def forward(self, input: Tensor) -> Tensor:
            seen.append(len(input))
            return super().forward(input)

    experts = Experts(5, 3, 4, Count)
    weights = (torch.rand(40, 5) < 0.3).float()
    experts(torch.randn(40, 3), weights)
    assert seen == weights.sum(0).int().tolist()


@pytest.mark.parametrize("gated", [True, False])
def test_dense_layers_are_sums_of_their_parts(gated: bool) -> None:
    block = gated_block() if gated else plain_block()
    dense = next(iter(feed_forwards(block).values()))
    x = torch.randn(7, 6)
    wanted = block(x)
    split, copies = as_experts(dense, 4), as_experts(dense, 3, "copy")
    assert torch.allclose(split(x, torch.ones(7, 4)), wanted, atol=1e-5)
    assert torch.allclose(copies(x, torch.full((7, 3), 1 / 3)), wanted, atol=1e-5)
    assert torch.allclose(copies(x, torch.eye(3)[torch.arange(7) % 3]), wanted, atol=1e-5)
    first = split(x, torch.eye(4)[:1].expand(7, 4))
    own = dense.up[:3], dense.down[:3]
    hidden = x @ own[0].T + (0.0 if dense.up_bias is None else dense.up_bias[:3])
    if dense.gate is not None:
        gate_bias = 0.0 if dense.gate_bias is None else dense.gate_bias[:3]
        hidden = nn.functional.silu(x @ dense.gate[:3].T + gate_bias) * hidden
    else:
        hidden = nn.functional.gelu(hidden)
    part = hidden @ own[1] + (0.0 if dense.down_bias is None else dense.down_bias / 4)
    assert torch.allclose(first, part, atol=1e-5)


class Gated(nn.Module):
    """Llama's form."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(6, 12), nn.Linear(6, 12, bias=False)
        self.down_proj, self.act_fn = nn.Linear(12, 6), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Plain(nn.Module):
    """OPT's form."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.activation_fn, self.fc2 = nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))  # type: ignore[no-any-return]


def gated_block() -> nn.Module:
    return nn.Sequential(Gated())


def plain_block() -> nn.Module:
    return nn.Sequential(Plain())


class All(nn.Module):
    """All experts with weight 1: the dense layer again."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return self.experts(rows, torch.ones(len(rows), len(self.experts.up))).reshape(x.shape)  # type: ignore


@pytest.mark.parametrize("block", [gated_block(), plain_block(), Gated(), nn.Sequential(Plain(), Gated())])
def test_layers_are_put_in_place_in_a_copy(block: nn.Module) -> None:
    x, before = torch.randn(2, 3, 6), copy.deepcopy(block.state_dict())
    changed = with_layers(block, lambda dense: All(as_experts(dense, 2)))
    assert torch.allclose(changed(x), block(x), atol=1e-5)
    assert not feed_forwards(changed)
    assert len(changes(changed)) == len(feed_forwards(block))
    assert all(torch.equal(v, before[n]) for n, v in block.state_dict().items())


def test_sentences() -> None:
    with pytest.raises(WorkingPapersError, match="no feed-forward layer of a known form"):
        with_layers(nn.Linear(2, 2), lambda dense: nn.Identity())
    with pytest.raises(WorkingPapersError, match="12 hidden units does not split into 5"):
        as_experts(feed_forwards(plain_block())["0"], 5)
    with pytest.raises(WorkingPapersError, match="the nearest name is 'split'"):
        as_experts(feed_forwards(plain_block())["0"], 4, "splits")
    with pytest.raises(WorkingPapersError, match="the nearest name is 'grouped'"):
        Experts(2, 3, 4, evaluation="groups")
    with pytest.raises(WorkingPapersError, match="at least one"):
        Experts(0, 3, 4)
    with pytest.raises(WorkingPapersError, match="floating inputs"):
        Experts(2, 3, 4)(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 2))
