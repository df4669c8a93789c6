"""The sweep against the same numbers computed at once from whatever torch itself gives."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workingpapers.engines.activity.batches import batches_of
from workingpapers.engines.activity.observe import POSITIONS, View, observe
from workingpapers.engines.activity.streams import Kept, Reservoir, Stream
from workingpapers.errors import WorkingPapersError


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, 3))


class Calls(nn.Module):
    """Activations called as functions and methods, in place and not, and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x)).relu_()
        h = functional.gelu(self.conv(h))
        return self.head(h.mean((2, 3)))  # type: ignore[no-any-return]


def expect(view: View | None, values: Tensor) -> None:
    """Assert that a view's moments are those of values (rows, units)."""
    assert view is not None
    found, rows = view.moments, values.detach().double()
    assert found.count == len(rows)
    for got, wanted in (
        (found.mean, rows.mean(0)),
        (found.var, rows.var(0, correction=0)),
        (found.absolute, rows.abs().mean(0)),
        (found.positive, (rows > 0).double().mean(0)),
        (found.largest, rows.abs().amax(0)),
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


def test_moments_of_layers_and_activations() -> None:
    model, x = dense(), torch.randn(150, 5)
    found = observe(model, x, batch=64)
    model.eval()
    z = model[0](x)
    assert [(p.name, p.kind) for p in found.places.values()] == [
        ("0", "layer"),
        ("1", "activation"),
        ("2", "norm"),
        ("3", "layer"),
    ]
    expect(found.places["0"].output, z)
    expect(found.places["1"].input, z)
    expect(found.places["1"].output, z.relu())
    expect(found.places["3"].output, model(x))
    assert found.places["1"].activation == "relu"
    assert found.examples == 150
    assert found.places["0"].output.gradients is None


@pytest.mark.parametrize("size", [4, 20])
def test_called_activations_and_maps(size: int) -> None:
    model, x = Calls(), torch.randn(30, 4, size, size)
    found = observe(model, x, batch=30)
    model.eval()
    z = model.norm(model.conv(x))
    second = model.conv(z.relu())
    assert list(found.places) == ["conv", "norm", ":relu", "conv#2", ":gelu", "head"]

    def rows(values: Tensor) -> Tensor:
        flat = values.flatten(2).transpose(1, 2)
        step = -(-flat.shape[1] // POSITIONS)
        return flat[:, 1 % step :: step].flatten(0, 1)

    expect(found.places[":relu"].input, rows(z))
    expect(found.places[":relu"].output, rows(z.relu()))
    expect(found.places[":gelu"].input, rows(second))
    if size == 4:
        means = found.places[":gelu"].output.examples
        torch.testing.assert_close(means, functional.gelu(second).mean((2, 3)).detach())


def test_in_place_modules_show_what_they_read() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(0.5, inplace=True), nn.Linear(8, 2))
    x = torch.randn(40, 5)
    found = observe(model, x)
    z = model[0](x)
    expect(found.places["1"].input, z)
    expect(found.places["1"].output, functional.leaky_relu(z, 0.5))


class Skips(nn.Module):
    """Adds its input to what a layer gave, in place, before the activation reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.act = nn.Linear(5, 5), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.dense(x)
        h += x
        return self.act(h)  # type: ignore[no-any-return]


def test_what_is_changed_in_place_between_two_places_is_seen() -> None:
    model, x = Skips(), torch.randn(40, 5)
    found = observe(model, x)
    expect(found.places["dense"].output, model.dense(x))
    expect(found.places["act"].input, model.dense(x) + x)


def test_gradients_are_those_of_autograd() -> None:
    model, x, y = dense(), torch.randn(64, 5), torch.randint(3, (64,))
    weight = model.get_parameter("0.weight")
    weight.grad = torch.ones_like(weight)
    found = observe(model, (x, y), loss=functional.cross_entropy, batch=64)
    assert bool((weight.grad == 1).all())
    model.eval()
    h = model[1](model[0](x)).detach().requires_grad_()
    loss = functional.cross_entropy(model[3](model[2](h)), y)
    (slope,) = torch.autograd.grad(loss, h)
    assert found.loss == pytest.approx(float(loss.detach()))
    slopes = found.places["1"].output.gradients
    assert slopes is not None
    torch.testing.assert_close(slopes.absolute, slope.double().abs().mean(0), rtol=1e-5, atol=1e-9)
    loss = functional.cross_entropy(model(x), y)
    (slope,) = torch.autograd.grad(loss, [model.get_parameter("3.weight")])
    assert found.slopes["3.weight"] == pytest.approx(float(slope.norm()), rel=1e-5)


def test_samples_are_of_the_same_examples_everywhere() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Identity(), nn.Linear(1, 4))
    x = torch.arange(500.0)[:, None]
    found = observe(model, (x, torch.arange(500)), batch=37, rows=60)
    targets, first = found.targets, found.places["0"].output.examples
    assert targets is not None
    assert len(targets) == len(set(targets.tolist())) == 60
    torch.testing.assert_close(first, model[0](x[targets]).detach())
    torch.testing.assert_close(found.places["2"].output.rows, model(x[targets]).detach())
    assert found.outputs is not None
    torch.testing.assert_close(found.outputs, model(x[targets]).detach())


def test_rows_are_of_the_same_positions_everywhere() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    found = observe(model, torch.randn(40, 9, 3), batch=16, rows=30)
    hidden, out = (found.places[name].output.rows for name in ("1", "2"))
    torch.testing.assert_close(model[2](hidden).detach(), out)
    assert len(out.unique(dim=0)) > 20  # units that are all off make equal rows


def test_a_reservoir_is_uniform() -> None:
    """Each of 40 things has a chance of 1/4 to be among the 10 kept, however batches are cut."""
    count = torch.zeros(40)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2000):
        reservoir, kept = Reservoir(10, generator), Kept(10)
        for part in torch.arange(40).split(7):
            chosen, slots = reservoir.draw(len(part))
            kept.put(part[chosen], slots) if len(chosen) else None
        count[kept.found()] += 1
    assert count.sum() == 20000
    assert bool(((count - 500).abs() < 5 * (2000 * 0.25 * 0.75) ** 0.5).all())


def test_streams_join_parts_and_leave_out_what_is_not_finite() -> None:
    values = torch.randn(90, 3) * torch.tensor([1.0, 1e-3, 50.0]) + torch.tensor([0.0, 100.0, -3.0])
    values[7, 1] = torch.nan
    values[50, 0] = torch.inf
    stream = Stream()
    for part in values.split(20):
        stream.add(part)
    found, rows = stream.moments(), values[values.isfinite().all(1)].double()
    assert (found.count, found.nonfinite) == (88, 2)
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.var, rows.var(0, correction=0), rtol=2e-3, atol=0.0)


def test_padding_does_not_count() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.dense = nn.Embedding(9, 4), nn.Linear(4, 6)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.dense(self.embed(input_ids)).relu()  # type: ignore[no-any-return]

    model, ids = Tokens(), torch.randint(9, (11, 5))
    mask = (torch.arange(5) < torch.randint(1, 6, (11, 1))).long()
    found = observe(model, {"input_ids": ids, "attention_mask": mask})
    values = model(ids, mask)
    expect(found.places[":relu"].output, values[mask.bool()])
    weights = mask / mask.sum(1, keepdim=True)
    means = (weights[..., None] * values).sum(1).detach()
    torch.testing.assert_close(found.places[":relu"].output.examples, means)


def test_the_model_stays_as_it_was() -> None:
    model = dense().train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    observe(
        model,
        (torch.randn(8, 5, generator=torch.Generator()), torch.zeros(8).long()),
        loss=functional.cross_entropy,
    )
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in model] == [True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def loader() -> Iterator[Any]:
    for _ in range(3):
        yield torch.randn(4, 5), torch.zeros(4).long()


def test_data_of_every_form() -> None:
    x, y = torch.randn(10, 5), torch.zeros(10).long()
    assert [b.size for b in batches_of(x, 4)] == [4, 4, 2]
    assert [(b.size, len(b.targets)) for b in batches_of((x, y), 8)] == [(8, 8), (2, 2)]
    (named,) = batches_of({"input_ids": x, "labels": y})
    assert set(named.named) == {"input_ids"}
    assert torch.equal(named.targets, y)
    assert [b.size for b in batches_of(loader())] == [4, 4, 4]
    assert observe(dense(), loader(), loss=functional.cross_entropy).examples == 12


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (3, "got int"),
        ("cifar10", "got str"),
        ([], "no batch"),
        (torch.zeros(0, 5), "no example"),
        ({"scale": 1.0}, "no tensor"),
        (torch.randn(4, 7), "does not run on these inputs"),
    ],
)
def test_bad_data_are_one_sentence(data: Any, says: str) -> None:
    with pytest.raises(WorkingPapersError, match=says):
        observe(dense(), data)


def test_a_loss_needs_targets() -> None:
    with pytest.raises(WorkingPapersError, match="targets"):
        observe(dense(), torch.randn(4, 5), loss=functional.cross_entropy)
