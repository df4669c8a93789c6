"""BlockFFN: gates, both losses and both sparsities by loops, the adaptive weight's path, converted layers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workingpapers.catalog import claims, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._expert_layers import moe_decoder
from workingpapers.papers.sparsity._locality import (
    ChunkWeight,
    chunk_loss,
    chunk_sparsity,
    locality_loss,
    shares,
    token_sparsity,
)
from workingpapers.papers.sparsity.blockffn import BlockFFN, Locality, convert, routed_chunk, sparsity


def layer(way: str = "grouped") -> BlockFFN:
    made = BlockFFN(6, 5, 4, evaluation=way).double()
    nn.init.normal_(made.router.weight, std=0.5)
    nn.init.normal_(made.gain)  # also negative ones
    return made


def test_gates_and_outputs_by_loops() -> None:
    own, x = layer(), torch.randn(9, 6, dtype=torch.float64)
    for row, found in zip(x, own(x), strict=True):
        a = np.maximum(own.router.weight.detach().numpy() @ row.numpy(), 0)
        gates = own.gain.detach().numpy() * a / math.sqrt((a**2).mean() + 1e-5)
        wanted = np.zeros(6)
        for e in range(5):
            up, down = own.experts.up[e].detach().numpy(), own.experts.down[e].detach().numpy()
            h = up @ row.numpy()
            wanted += gates[e] * down.T @ (h / (1 + np.exp(-h)))
        assert np.allclose(found.detach().numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("way", ["grouped", "union"])
def test_sparse_and_dense_have_the_same_gradients(way: str) -> None:
    own, x = layer(way), torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    sources = [x, *own.parameters()]
    found = torch.autograd.grad(own(x).square().sum(), sources)
    own.experts.evaluation = "dense"
    wanted = torch.autograd.grad(own(x).square().sum(), sources)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found, wanted, strict=True))


def test_closed_gates_give_zero_and_their_experts_change_nothing() -> None:
    own, x = layer(), torch.randn(20, 6, dtype=torch.float64)
    with torch.no_grad():
        own.router.weight[0] = own.router.weight[1:].sum(0) * 0  # never on
        before = own(x)
        own.experts.up[0].normal_()
        own.gain[0] = 7.0
        assert torch.equal(own(x), before)
        own.router.weight.copy_(torch.ones(5, 6))
        assert torch.equal(own(-x.abs()), torch.zeros(20, 6, dtype=torch.float64))


def test_the_locality_loss_by_a_loop() -> None:
    logits = 0.02 * torch.randn(2, 4, 3, dtype=torch.float64)
    total = 0.0
    sigmoid = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    for b in range(2):
        for t in range(3):
            for e in range(3):
                left, right = sigmoid(100 * float(logits[b, t, e])), sigmoid(100 * float(logits[b, t + 1, e]))
                total -= right * math.log(left) + (1 - right) * math.log(1 - left)
    assert float(locality_loss(logits)) == pytest.approx(total / 18, rel=1e-10)
    assert float(locality_loss(logits[:, :1])) == 0.0
    agreeing = torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(6, 2)
    assert float(locality_loss(agreeing)) < 1e-30
    assert float(locality_loss(torch.tensor([[1.0], [-1.0]]))) == pytest.approx(100.0)


def test_the_target_carries_gradients_unless_detached() -> None:
    logits = (0.01 * torch.randn(5, 3, dtype=torch.float64)).requires_grad_()
    (last,) = torch.autograd.grad(locality_loss(logits), logits)
    assert bool(last[-1].any())
    (last,) = torch.autograd.grad(locality_loss(logits, detach=True), logits)
    assert not bool(last[-1].any())
    assert bool(last[0].any())


def test_the_chunk_loss_by_a_loop_and_its_exact_values() -> None:
    logits = torch.randn(2, 7, 4, dtype=torch.float64)
    p = shares(logits).numpy()
    found = []
    for b in range(2):
        for start in (0, 3, 6):
            found += [1 - np.prod(1 - p[b, start : start + 3, e]) for e in range(4)]
    assert float(chunk_loss(logits, 3)) == pytest.approx(np.mean(found), rel=1e-12)
    assert float(chunk_loss(logits.abs() + 0.1, 1)) == pytest.approx(1 / 4, rel=1e-12)
    same = torch.zeros(8, 5, dtype=torch.float64)
    same[:, 2] = 3.0
    assert float(chunk_loss(same, 8)) == pytest.approx(1 / 5)
    own = torch.eye(5, dtype=torch.float64)
    assert float(chunk_loss(own, 5)) == pytest.approx(1.0)
    assert float(chunk_loss(-own, 5)) == 0.0


def test_the_chunk_loss_has_the_gradient_of_differences() -> None:
    logits = torch.randn(6, 3, dtype=torch.float64)
    logits[2] = torch.tensor([1.0, -1.0, -1.0])  # a share of exactly 1, where logarithms would be infinite
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: chunk_loss(v, 3), (logits,))


def test_sparsities_by_loops() -> None:
    gates = (torch.rand(2, 11, 6) < 0.2).float()
    off = gates.numpy() == 0
    assert token_sparsity(gates) == pytest.approx(off.mean())
    chunks = [off[b, t : t + 4].all(0).mean() for b in range(2) for t in (0, 4)]
    assert chunk_sparsity(gates, 4) == pytest.approx(np.mean(chunks))
    assert chunk_sparsity(gates, 1) == pytest.approx(token_sparsity(gates))
    for m in (2, 3, 11):
        assert token_sparsity(gates[:, : 11 // m * m]) >= chunk_sparsity(gates, m)
    with pytest.raises(WorkingPapersError, match="no chunk of 12 tokens"):
        chunk_sparsity(gates, 12)


def test_the_adaptive_weights_path() -> None:
    weight = ChunkWeight(0.5, stable=6, every=3, most=2.0, least=1.1)
    losses = [1.0, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 4, 4, 4, 1, 1]
    found = [weight.step(v) for v in losses]
    # stretches of means 1, 1 | 0.5 | 4: after step 6 nothing changes (ratio 1), then to half, then to at most twice
    wanted = [0.5] * 9 + [0.5 - 0.25 / 3, 0.5 - 0.5 / 3, 0.25]
    assert found[:12] == pytest.approx(wanted)
    assert found[12:] == pytest.approx([0.25 + 0.75 / 3, 0.25 + 1.5 / 3])
    other = ChunkWeight(0.5, stable=6, every=3, most=2.0, least=1.1)
    for v in losses[:8]:
        other.step(v)
    state = other.state_dict()
    third = ChunkWeight(0.5, stable=6, every=3, most=2.0, least=1.1)
    third.load_state_dict(state)
    assert [third.step(v) for v in losses[8:]] == pytest.approx(found[8:])
    slow = ChunkWeight(1.0, stable=1, every=1, most=9.0, least=1.5)
    assert [slow.step(v) for v in (1.0, 1.01, 1.01)] == pytest.approx([1.0, 1.0, 1.5])


def test_the_losses_of_a_model_are_its_layers() -> None:
    model = moe_decoder(7, 8, 8, 2, lambda: BlockFFN(8, 6, 4))
    tokens = torch.randint(7, (3, 8))
    control = Locality(model, 0.3, 0.7, chunk=4)
    seen: list[Tensor] = []
    handles = [
        b.expand.router.register_forward_hook(lambda m, a, y: seen.append(y))
        for b in model.blocks  # type: ignore
    ]
    model.train()(tokens)
    wanted = sum(0.3 * locality_loss(v) + 0.7 * chunk_loss(v, 4) for v in seen) / 2
    assert float(control.loss().detach()) == pytest.approx(float(torch.as_tensor(wanted).detach()), rel=1e-5)
    assert float(control.loss()) == 0.0
    assert len(seen) == 2
    assert control.last["chunk"] == pytest.approx(
        float(sum(chunk_loss(v, 4) for v in seen).detach()) / 2, rel=1e-5
    )  # type: ignore
    for handle in handles:
        handle.remove()
    control.close()
    assert not any(b.expand.router._forward_hooks for b in model.blocks)  # type: ignore


def test_sparsity_of_a_model() -> None:
    model = moe_decoder(7, 8, 8, 1, lambda: BlockFFN(8, 6, 4))
    tokens = torch.randint(7, (3, 8))
    on = torch.zeros(3, 8, 6)
    on[..., 0] = 1.0
    on[:, ::4, 3] = 1.0
    handle = model.blocks[0].expand.router.register_forward_hook(lambda m, a, y: on - 0.5)  # type: ignore
    found = sparsity(model, tokens).numbers
    handle.remove()
    assert found["tls"] == pytest.approx(1 - (1 + 1 / 4) / 6)
    assert found["cls 2"] == pytest.approx(1 - 1.5 / 6)
    assert found["cls 4"] == found["cls 8"] == pytest.approx(4 / 6)
    assert "cls 16" not in found


def test_drawn_chunks_have_the_sparsity_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    gates = routed_chunk(64, 8, 0.8, 0.7, generator)
    assert token_sparsity(gates) == pytest.approx(0.8, abs=0.01)
    assert chunk_sparsity(gates, 8) == pytest.approx(0.7, abs=0.01)
    with pytest.raises(WorkingPapersError, match="no union of 64"):
        routed_chunk(64, 2, 0.9, 0.0, generator)


@torch.no_grad()
def test_a_converted_layer_with_open_gates_is_the_dense_one() -> None:
    model = nn.Sequential()
    model.fc1, model.activation_fn, model.fc2 = nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)
    x = torch.randn(5, 6)
    moe = convert(model, 3)
    layers = [m for m in moe.modules() if isinstance(m, BlockFFN)]
    assert len(layers) == 1
    layers[0].router.register_forward_hook(lambda m, a, y: y * 0 + 1e3)  # gates of 1 but for eps
    assert torch.allclose(moe(x), model(x), atol=1e-5)


def test_sentences() -> None:
    with pytest.raises(WorkingPapersError, match="no BlockFFN layer"):
        Locality(nn.Linear(2, 2))
    with pytest.raises(WorkingPapersError, match="at least 0; got -1"):
        Locality(nn.Sequential(BlockFFN(4, 2, 2)), -1)
    with pytest.raises(WorkingPapersError, match="at least one token; got 0"):
        chunk_loss(torch.ones(3, 2), 0)
    with pytest.raises(WorkingPapersError, match="largest factor 1"):
        ChunkWeight(0.1, most=0.5)


def test_claims_are_those_of_the_record() -> None:
    assert [c.says for c in claims("blockffn").values()] == [c["says"] for c in record("blockffn").claims]
