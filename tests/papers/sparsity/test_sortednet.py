"""SortedNet: slices by hand, prefixes that do not see the rest, plain networks cut out, steps by hand."""

import copy
from typing import Any

import pytest
import torch
from tests.surgery.real_models import TINY, hf
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity import _many_in_one as rivals
from workingpapers.papers.sparsity._cutting import recalibrate
from workingpapers.papers.sparsity._slices import part_of
from workingpapers.papers.sparsity.sortednet import Size, SortedNet, at, extract, grid, sliceable, task_loss
from workingpapers.tasks import mlp, residual_cnn


def plain_classes(model: nn.Module) -> bool:
    return all("Sliced" not in type(m).__name__ for m in model.modules())


def perceptron() -> Any:
    return mlp([5, 8, 6, 3]).eval()


class Separable(nn.Module):
    """Depthwise convolutions, a shortcut, a flattened read-out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, padding_mode="reflect")
        self.depthwise = nn.Conv2d(6, 12, 3, 2, padding=1, groups=6, bias=False)
        self.norm, self.point = nn.BatchNorm2d(12), nn.Conv2d(12, 6, 1)
        self.short, self.head = nn.Conv2d(6, 6, 1, 2), nn.Linear(6 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = self.short(h) + self.point(F.relu6(self.norm(self.depthwise(h))))
        return self.head(h.flatten(1))  # type: ignore[no-any-return]


def llama() -> Any:
    shape: Any = {**TINY, "num_hidden_layers": 3}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**shape, num_key_value_heads=2)).eval()


def tokens() -> Tensor:
    return torch.randint(0, 50, (2, 7))


NETS: dict[str, Any] = {
    "mlp": (lambda: mlp([5, 8, 6, 3], norm=nn.BatchNorm1d), lambda: torch.randn(4, 5), {}),
    "residual": (lambda: residual_cnn(1, 3, (4, 6), 3), lambda: torch.randn(2, 1, 8, 8), {"blocks": None}),
    "separable": (Separable, lambda: torch.randn(3, 2, 6, 6), {}),
    "blocks": (lambda: rivals.block_net(4), lambda: torch.randn(2, 3, 8, 8), {"blocks": "2"}),
    "llama": (llama, tokens, {"blocks": "model.layers", "heads": True}),
}


def logits(outputs: Any) -> Tensor:
    found: Tensor = getattr(outputs, "logits", outputs)
    return found


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_every_size_is_cut_out_as_a_plain_smaller_network(name: str) -> None:
    build, draw, options = NETS[name]
    model, x = build(), draw()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.normal_(module.bias)
    model.eval()
    net = sliceable(model, x, **options)
    assert torch.equal(logits(net(x)), logits(model(x)))
    full = extract(net, x)
    assert plain_classes(full)
    assert torch.equal(logits(full(x)), logits(model(x)))
    assert full.state_dict().keys() == model.state_dict().keys()
    depths = (None, 2) if options.get("blocks") else (None,)
    counts = []
    for size in grid((0.3, 0.5, 1.0), depths):
        small = extract(net, x, size.width, size.depth)
        assert plain_classes(small)
        with at(net, size):
            torch.testing.assert_close(logits(small(x)), logits(net(x)), atol=1e-5, rtol=1e-4)
        counts.append(sum(p.numel() for p in small.parameters()))
    assert counts[-1] == sum(p.numel() for p in full.parameters())
    assert min(counts) < 0.75 * counts[-1]


def test_slices_by_hand() -> None:
    model = perceptron()
    net: Any = sliceable(model, torch.randn(2, 5))
    x = torch.randn(7, 5)
    with at(net, Size(0.5)):
        found = net(x)
    h = (x @ model[1].weight[:4].T + model[1].bias[:4]).relu()
    h = (h @ model[3].weight[:3, :4].T + model[3].bias[:3]).relu()
    torch.testing.assert_close(found, h @ model[5].weight[:, :3].T + model[5].bias)
    assert [part_of(8, w) for w in (1e-6, 0.25, 0.26, 1.0)] == [1, 2, 3, 8]
    assert [part_of(12, w, 4) for w in (0.1, 0.4, 0.9)] == [4, 8, 12]


@pytest.mark.parametrize("width", [0.25, 0.5])
def test_a_sub_model_depends_on_its_prefix_alone(width: float) -> None:
    x = torch.randn(3, 2, 6, 6)
    net: Any = sliceable(Separable().eval(), x)
    with at(net, Size(width)):
        before = net(x)
        before.sum().backward()
        outputs = net.stem.active, net.point.active
    assert outputs == (part_of(6, width), part_of(6, width))
    changed = 0
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.grad is None:
                continue
            outside = torch.ones_like(p, dtype=torch.bool)
            rows = {"depthwise": 2 * outputs[0], "norm": 2 * outputs[0], "head": 4}.get(
                name.split(".")[0], outputs[0]
            )
            outside[:rows] = False
            assert float(p.grad[outside].abs().sum()) == 0.0
            p[outside] = float("nan")
            changed += int(outside.sum())
    assert changed > 0
    with at(net, Size(width)):
        torch.testing.assert_close(net(x), before, atol=0.0, rtol=0.0)


def test_shallower_networks_run_the_first_blocks() -> None:
    x = torch.randn(2, 3, 8, 8)
    model: Any = rivals.block_net(4).eval()
    net: Any = sliceable(model, x, "2")
    with at(net, Size(1.0, 3)):
        found = net(x)
        assert len(net[2]) == 3
    assert len(net[2]) == 8
    h = model[2][:3](model[:2](x))
    torch.testing.assert_close(found, model[3:](h))


@torch.no_grad()
def test_a_decoder_is_cut_and_generates_with_its_cache() -> None:
    model, x = llama(), tokens()
    net = sliceable(model, x, "model.layers", heads=True)
    small: Any = extract(net, x, 0.5, 2)
    assert small.config.num_hidden_layers == len(small.model.layers) == 2
    layer = small.model.layers[1]
    assert layer.mlp.gate_proj.weight.shape == (12, 16)
    assert layer.self_attn.q_proj.weight.shape == (8, 16)
    assert torch.equal(layer.self_attn.o_proj.weight, model.model.layers[1].self_attn.o_proj.weight[:, :8])
    small.generation_config.eos_token_id = None
    made = small.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=4, do_sample=False)
    assert torch.equal(made[:, 7:], small(made[:, :-1]).logits.argmax(-1)[:, 6:])
    with at(net, Size(0.5, 2)):
        torch.testing.assert_close(net(made).logits, small(made).logits)


def data() -> tuple[Tensor, Tensor]:
    y = torch.arange(30) % 3
    return torch.randn(30, 5) + 2 * y[:, None], y


def test_full_size_alone_is_ordinary_training() -> None:
    x, y = data()
    model = perceptron()
    net, plain = sliceable(model, x), copy.deepcopy(model)
    trainer = SortedNet([Size()], g_acc=1, lr=0.01, batch=10)
    losses = trainer.fit(net, x, y, 7)
    adam = torch.optim.Adam(plain.parameters(), 0.01)
    seen = []
    for step in range(7):
        chosen = trainer.batches(30, step)
        seen += chosen.tolist()
        loss = F.cross_entropy(plain(x[chosen]), y[chosen])
        assert losses[step] == float(loss.detach())
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert sorted(seen[:30]) == list(range(30))  # an epoch has every example once
    assert seen[:30] != seen[30:60]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))


def test_a_step_is_the_mean_gradient_of_the_drawn_sizes() -> None:
    x, y = data()
    sizes = grid((0.5, 1.0))
    net = sliceable(perceptron(), x)
    plain = copy.deepcopy(net)
    trainer = SortedNet(sizes, g_acc=3, lr=0.1, batch=10, optimizer=torch.optim.SGD, seed=4)
    (loss,) = trainer.fit(net, x, y, 1)
    generator, total = torch.Generator().manual_seed(4 * 1_000_003), torch.zeros(())
    for j in range(3):
        with at(plain, trainer.draw(generator)):
            chosen = trainer.batches(30, j)
            total = total + task_loss(plain(x[chosen]), y[chosen]) / 3
    total.backward()
    assert loss == pytest.approx(float(total.detach()))
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q if q.grad is None else q - 0.1 * q.grad)


def test_samplers() -> None:
    sizes = grid((0.2, 0.4, 0.6, 1.0))
    generator = torch.Generator().manual_seed(0)
    for sampler, share in (("uniform", 0.25), ("skewed", 0.625)):
        trainer = SortedNet(sizes, sampler=sampler)
        drawn = [trainer.draw(generator) for _ in range(2000)]
        assert sum(s == sizes[-1] for s in drawn) / 2000 == pytest.approx(share, abs=0.06)
        assert set(drawn) == set(sizes)


def test_norms_of_their_own_and_statistics_anew() -> None:
    x = torch.randn(16, 5)
    model = mlp([5, 8, 3], norm=nn.BatchNorm1d)
    net: Any = sliceable(model, x, switchable=(0.5, 1.0))
    with at(net.train(), Size(0.5)):
        net(x)
    norm = net[2]
    assert float(norm.running_mean.abs().sum()) == 0.0
    mean = (x @ model[1].weight[:4].T + model[1].bias[:4]).mean(0)
    torch.testing.assert_close(norm.own["4"].running_mean, 0.1 * mean)
    shared: Any = sliceable(model, x)
    with at(shared.train(), Size(0.5)):
        shared(x)
    torch.testing.assert_close(shared[2].running_mean[:4], 0.1 * mean)
    assert float(shared[2].running_mean[4:].abs().sum()) == 0.0
    small: Any = extract(shared, x, 0.5, calibration=x)
    torch.testing.assert_close(small[2].running_mean, mean)
    assert small[2].momentum == 0.1
    recalibrate(small.eval(), x + 1)
    assert not small.training
    assert not torch.equal(small[2].running_mean, mean)


def test_errors() -> None:
    x = torch.randn(2, 5)
    net = sliceable(perceptron(), x)
    with pytest.raises(WorkingPapersError, match=r"above 0 and up to 1; got 1.5"), at(net, Size(1.5)):
        pass
    with pytest.raises(WorkingPapersError, match="no blocks were named"), at(net, Size(1.0, 2)):
        pass
    with pytest.raises(WorkingPapersError, match="one size only"), at(perceptron(), Size()):
        pass
    with pytest.raises(WorkingPapersError, match="cannot be narrowed"):
        sliceable(nn.Linear(3, 2), torch.randn(2, 3))
    with pytest.raises(WorkingPapersError, match="neither"):
        sliceable(perceptron(), x, "1")
    with pytest.raises(WorkingPapersError, match="at least one sub-model"):
        SortedNet(g_acc=0)
    with pytest.raises(WorkingPapersError, match="nearest name is 'skewed'"):
        SortedNet(sampler="skew")
    blocks: Any = sliceable(rivals.block_net(2), torch.randn(1, 3, 8, 8), "2")
    with pytest.raises(WorkingPapersError, match="there are 8 blocks"), at(blocks, Size(1.0, 9)):
        pass
    assert len(blocks[2]) == 8


def test_the_rivals() -> None:
    x, y = data()
    sizes = grid((0.5, 1.0))
    net = sliceable(perceptron(), x)
    before = task_loss(net(x), y)
    rivals.sandwich(net, x, y, sizes, 60, lr=0.01, batch=30)
    with torch.no_grad():
        assert float(task_loss(net(x), y)) < float(before.detach()) - 0.05
    split = Split(x, y, x, y, 3, "blobs")
    table = rivals.accuracies(net, split, sizes)
    assert table[sizes[1]] == float((net(x).argmax(1) == y).double().mean())
    assert rivals.mean({Size(0.5): 0.5, Size(1.0): 0.75}) == 0.625
    costs = {Size(0.25): 1.0, Size(0.5): 2.0, Size(1.0): 4.0}
    assert rivals.area({Size(0.25): 0.5, Size(0.5): 0.25, Size(1.0): 1.0}, costs) == pytest.approx(0.375)


def test_claims_are_those_of_the_record_and_parts_are_made_by_name() -> None:
    assert {c.says for c in claims("sortednet").values()} == {c["says"] for c in record("sortednet").claims}
    x = torch.randn(2, 5)
    net = make("sortednet.sliceable")(perceptron(), x)
    assert make("sortednet.extract", width=0.5)(net, x)[1].weight.shape == (4, 5)
    assert make("sortednet", g_acc=2).g_acc == 2
