"""FTWT: targets by hand, what is masked where, gradients kept apart, costs by counting, the skipping path."""

from functools import partial
from typing import Any

import pytest
import torch
from tests.surgery.real_models import vision
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.data import Split
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._conv_places import conv_places
from workingpapers.papers.sparsity._filter_costs import (
    accuracy,
    cost,
    keep_strongest,
    mask_accuracy,
    multiply_adds,
    shuffled,
)
from workingpapers.papers.sparsity._mask_training import finetune, mask_loss
from workingpapers.papers.sparsity._masked_convs import (
    ConvWithMask,
    Predictor,
    SkippingConv,
    fired_together,
    masked_convs,
    recording,
    responses,
)
from workingpapers.papers.sparsity.ftwt import forecast, ftwt, skipping, vgg
from workingpapers.tasks import residual_cnn


def small() -> Any:
    return vgg((6, 8, 10), 4).eval()


def images_of(count: int = 5, side: int = 12) -> Tensor:
    return torch.randn(count, 3, side, side)


def spread(model: Any) -> Any:
    """Let predictors choose differently from image to image."""
    layer: Any
    for layer in masked_convs(model).values():
        layer.predictor.softmax = False
        nn.init.normal_(layer.predictor.read.weight, std=3.0)
    return model


def test_targets_by_hand() -> None:
    s = torch.tensor([[1.0, 5.0, 3.0, 1.0], [4.0, 4.0, 1.0, 1.0], [10.0, 0.0, 0.0, 0.0]])
    assert fired_together(s, 0.8).tolist() == [
        [False, True, True, False],
        [True, True, False, False],
        [False, False, False, False],  # the first already exceeds what may be kept
    ]
    assert fired_together(s, 1.0).tolist() == [[True] * 4, [True] * 4, [True, False, False, False]]
    assert fired_together(s, 0.5, "uniform").sum(1).tolist() == [2, 2, 1]
    assert fired_together(s, 0.5, "uniform")[0].tolist() == [False, True, True, False]


@pytest.mark.parametrize("mass", [0.3, 0.8, 0.95])
def test_kept_responses_sum_to_at_most_the_mass_and_the_next_exceeds_it(mass: float) -> None:
    s = torch.rand(50, 17) ** 3
    kept = fired_together(s, mass)
    shares = s / s.sum(1, keepdim=True)
    total = (shares * kept).sum(1)
    assert bool((total <= mass + 2e-5).all())
    strongest = shares.masked_fill(kept, -1.0).amax(1)
    assert bool((total + strongest > mass).all())
    assert bool((shares.masked_fill(~kept, 2.0).amin(1) >= strongest).all())


def test_responses_are_largest_absolute_values() -> None:
    out = torch.zeros(1, 2, 3, 3)
    out[0, 0, 1, 2], out[0, 1, 0, 0] = -7.0, 2.0
    assert responses(out).tolist() == [[7.0, 2.0]]


def test_what_is_masked_where() -> None:
    places = conv_places(small(), images_of())
    assert [(p.name, p.norm) for p in places] == [
        ("0", "1"), ("3", "4"), ("7", "8"), ("10", "11"), ("14", "15"), ("17", "18"),
    ]  # fmt: skip
    assert [p.source for p in places] == [None, "0", "3", "7", "10", "14"]
    assert all(isinstance(p.activation, nn.ReLU) for p in places)


def test_residual_blocks_but_not_their_shortcuts() -> None:
    model = vision.resnet18().eval()
    places = {p.name: p for p in conv_places(model, torch.randn(1, 3, 32, 32))}
    assert len(places) == 17
    assert not any("downsample" in name for name in places)
    assert isinstance(places["layer1.0.conv1"].activation, nn.ReLU)
    assert isinstance(places["layer1.0.conv2"].activation, nn.Identity)
    assert places["layer1.0.conv2"].source == "layer1.0.conv1"
    assert places["layer1.1.conv1"].source is None  # it reads a sum
    x = torch.randn(2, 3, 32, 32)
    masked = ftwt(model, x, init="ones")
    torch.testing.assert_close(masked(x), model(x), atol=0.0, rtol=0.0)


class Twice(nn.Module):
    """A convolution whose output is read beside its norm, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = F.relu(self.norm(y)) + y
        y = self.second(F.relu(self.second(y)))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


def test_what_cannot_be_masked_is_left() -> None:
    model = Twice().eval()
    nn.init.normal_(model.norm.bias)
    places = conv_places(model, images_of())
    assert [(p.name, p.norm) for p in places] == [("first", None)]
    x = images_of()
    torch.testing.assert_close(ftwt(model, x, init="ones")(x), model(x))
    with pytest.raises(WorkingPapersError, match="'second' cannot be masked"):
        ftwt(model, x, modules=["second"])
    with pytest.raises(WorkingPapersError, match="no 2d convolution"):
        ftwt(nn.Linear(3, 2), torch.randn(2, 3))
    with pytest.raises(WorkingPapersError, match="share above 0"):
        ftwt(model, x, mass=0.0)
    with pytest.raises(WorkingPapersError, match="nearest name is 'joint'"):
        ftwt(model, x, mode="join")


def test_all_filters_kept_is_the_dense_network() -> None:
    model, x = small(), images_of()
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.constant_(layer.bias, 4.0)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    torch.testing.assert_close(ftwt(model, x, init="ones")(x), model(x), atol=0.0, rtol=0.0)
    full = ftwt(model, x, mass=1.0, init="ones")
    with recording(full) as records:
        full(x)
    assert all(bool(wanted.all()) for pairs in records.values() for _, wanted in pairs)


def test_a_mask_sets_filters_to_zero_behind_the_norm() -> None:
    model, x = small(), images_of()
    nn.init.ones_(model[1].bias)
    masked: Any = ftwt(model, x, init="ones")
    masked[0].predictor.read.bias.data[2] = -1.0
    wanted = model[:2](x)
    wanted[:, 2] = 0
    torch.testing.assert_close(masked[:2](x), wanted)


def test_the_predictor_reads_pooled_inputs() -> None:
    predictor, x = Predictor(3, 5), torch.randn(4, 3, 6, 6)
    wanted = x.mean((2, 3)).softmax(1) @ predictor.read.weight.T + predictor.read.bias
    torch.testing.assert_close(predictor(x), wanted)
    four = Predictor(3, 5, features=12, softmax=False)
    assert four.read.in_features == 12
    quarters = x.unflatten(3, (2, 3)).unflatten(2, (2, 3)).mean((3, 5)).flatten(1)
    torch.testing.assert_close(four(x), F.linear(quarters, four.read.weight, four.read.bias))


@pytest.mark.parametrize("mode", ["decoupled", "joint"])
def test_the_gradient_of_the_masks_reaches_earlier_layers_only_in_joint_mode(mode: str) -> None:
    model = ftwt(small(), images_of(), mode=mode)
    with recording(model) as records:
        model(images_of())
    mask_loss(records).backward()
    reached = [
        p.grad is not None for n, p in model.named_parameters() if "predictor" not in n and ".conv." in n
    ]
    assert all(p.grad is not None for n, p in model.named_parameters() if "predictor" in n)
    assert any(reached) == (mode == "joint")
    model.zero_grad()
    model(images_of()).sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if "predictor" in n)


def test_the_loss_sums_over_filters_and_averages_over_images_and_layers() -> None:
    p, q = torch.randn(3, 4), torch.randn(3, 7)
    kept = [torch.rand(t.shape) > 0.5 for t in (p, q)]
    one = torch.where(kept[0], (1 + (-p).exp()).log(), (1 + p.exp()).log()).sum() / 3
    two = torch.where(kept[1], (1 + (-q).exp()).log(), (1 + q.exp()).log()).sum() / 3
    torch.testing.assert_close(mask_loss({"a": [(p, kept[0])], "b": [(q, kept[1])]}), (one + two) / 2)


def test_costs_by_counting() -> None:
    model, x = small(), images_of()
    assert multiply_adds(model, x[:1])["3"] == 6 * 6 * 9 * 144
    masked = spread(ftwt(model, x))
    found = cost(masked, x)
    assert found.dense == sum(multiply_adds(model, x[:1]).values())
    macs, spent, before = multiply_adds(model, x[:1]), torch.zeros(5), torch.ones(5)
    h: Any = x
    for name, layer in masked.named_children():
        if isinstance(layer, ConvWithMask):
            share = (layer.logits(h) > 0).float().mean(1)
            spent += macs[name] * share * before + layer.predictor.read.weight.numel()
            before = share
        h = layer(h)
    assert found.spent == pytest.approx(float(spent.mean()) + 40, rel=1e-6)
    assert found.cut == pytest.approx(1 - found.spent / found.dense)
    assert cost(ftwt(model, x, init="ones"), x).kept == pytest.approx(dict.fromkeys(found.kept, 1.0))


def test_the_forecast_is_the_cost_of_the_targets_in_the_dense_network() -> None:
    model, x = small(), images_of(8)
    found = forecast(model, x, 0.7)
    h: Any = x
    shares: list[Tensor] = []
    for layer in model:
        h = layer(h)
        if isinstance(layer, nn.ReLU):
            shares.append(fired_together(responses(h), 0.7).float().mean(1))
    assert list(found.kept.values()) == pytest.approx([float(s.mean()) for s in shares])
    macs = [n for name, n in multiply_adds(model, x[:1]).items() if name != "21"]
    spent = sum(n * a * b for n, a, b in zip(macs, shares, [torch.ones(8), *shares], strict=False))
    assert found.spent == pytest.approx(float(spent.mean()) + 40, rel=1e-6)


NETS: dict[str, Any] = {
    "vgg": (small, (7, 3, 12, 12)),
    "residual": (lambda: residual_cnn(1, 3, (4, 6)).eval(), (7, 1, 9, 9)),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, padding_mode="circular", padding=2), nn.ReLU6(),
            nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.SiLU(),
            nn.Conv2d(8, 6, (3, 1), groups=2, dilation=2, padding="same"), nn.GELU(),
            nn.Conv2d(6, 4, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3),
        ).eval(),
        (7, 3, 11, 13),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("case", ["one", "differing", "few", "none"])
@torch.no_grad()
def test_skipping_gives_what_masking_gives(name: str, case: str) -> None:
    build, shape = NETS[name]
    model, x = build(), torch.randn(shape)
    model(x)
    masked = spread(ftwt(model, x))
    if case == "few":
        x = x[[0, 1, 0, 1, 0, 0, 1, 0, 1, 1]]
    layer: Any
    if case == "none":
        for layer in masked_convs(masked).values():
            layer.predictor.read.bias.fill_(-1e4)
    fast = skipping(masked)
    assert all(isinstance(layer, SkippingConv) for layer in masked_convs(fast).values())
    x = x[:1] if case == "one" else x
    torch.testing.assert_close(fast(x), masked(x), atol=1e-5, rtol=1e-4)
    fast.train()
    torch.testing.assert_close(fast(x), masked.train()(x))


def test_skipping_computes_fewer_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), images_of(1)
    masked: Any = ftwt(model, x, init="ones")
    masked[3].predictor.read.bias.data[[0, 2]] = -1.0
    seen, whole = [], F.conv2d
    monkeypatch.setattr(
        F, "conv2d", lambda x, w, *rest: seen.append(tuple(w.shape[:2])) or whole(x, w, *rest)
    )
    with torch.no_grad():
        skipping(masked)(x)
    assert seen[:3] == [(6, 3), (4, 6), (8, 4)]


def test_random_masks_are_as_large_and_static_ones_keep_the_largest_norms() -> None:
    model, x = small(), images_of()
    masked = spread(ftwt(model, x))
    first, random = masked[0].logits(x) > 0, shuffled(masked, 3)[0].logits(x) > 0
    assert torch.equal(first.sum(1), random.sum(1))
    assert not torch.equal(first, random)
    fixed: Any = keep_strongest(masked, x[:1], 0.5)
    assert 0.3 < cost(fixed, x).spent / cost(fixed, x).dense <= 0.5
    kept = fixed[17].logits(torch.zeros(1, 10, 3, 3))[0] > 0
    norms = model[17].weight.detach().abs().sum((1, 2, 3))
    assert float(norms[kept].min()) >= float(norms[~kept].max())


def blobs() -> Split:
    y = torch.arange(24) % 3
    x = torch.randn(24, 3, 6, 6) + 2 * F.one_hot(y, 3)[:, :, None, None]
    return Split(x, y, x, y, 3, "blobs")


def test_finetuning_teaches_predictors_and_then_leaves_them() -> None:
    split = blobs()
    model = ftwt(vgg((6, 4, 4), 3), split.x_train[:2], 0.7, modules=["0"])

    def loss() -> float:
        with recording(model.train()) as records, torch.no_grad():
            model(split.x_train)
        return float(mask_loss(records))

    before = loss()
    finetune(model, split, 20, lr=0.0, cooldown=1.0, batch=24)  # one full batch and targets that stay
    assert loss() < before - 1e-3
    learned = [p.clone() for _, p in predictors_of(model)]
    layers = [p.clone() for p in model.parameters()]
    done = finetune(model, split, 1, cooldown=0.0, batch=12)
    assert all(torch.equal(a, p) for a, (_, p) in zip(learned, predictors_of(model), strict=True))
    assert not all(torch.equal(a, p) for a, p in zip(layers, model.parameters(), strict=True))
    assert done.metrics["accuracy"] == pytest.approx(accuracy(model, split))
    agreed = mask_accuracy(model, split.x_train)["0"]
    with recording(model) as records, torch.no_grad():
        model(split.x_train)
    assert agreed == pytest.approx(float(((records["0"][0][0] > 0) == records["0"][0][1]).double().mean()))
    with pytest.raises(WorkingPapersError, match="no masked convolutions"):
        skipping(vgg((4, 4, 4)))


def predictors_of(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if "predictor" in n]


def test_claims_are_those_of_the_record_and_parts_are_made_by_name() -> None:
    assert {c.says for c in claims("ftwt").values()} == {c["says"] for c in record("ftwt").claims}
    model, x = small(), images_of(2)
    changed = make("ftwt", mass=0.5)(model, x)
    assert all(layer.mass == 0.5 for layer in masked_convs(changed).values())
    assert isinstance(make("ftwt.skipping")(changed), nn.Sequential)
    assert isinstance(partial(ftwt, model)(x), nn.Sequential)
