"""AP: dead rates by counting, masks by an independent sort, counts that add up, and a cure that wakes units."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, component, make, record
from workingpapers.data import Split
from workingpapers.engines.activity.case import NotApplicable, case_of
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._activating import next_masks
from workingpapers.papers.sparsity._silent import cut_off, dnr
from workingpapers.tasks import cnn, fit, initialise, mlp


class Called(nn.Module):
    """A convolution whose ReLU is called, and a linear layer under a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5)
        self.dense, self.head = nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv(x)))
        return self.head(F.gelu(self.dense(h.mean((2, 3)))))  # type: ignore[no-any-return]


def test_rates_are_counts_of_zeros() -> None:
    model, x = Called(), torch.randn(30, 1, 20, 20)
    with torch.no_grad():
        model.norm.bias.copy_(torch.tensor([-9.0, 9.0, 0.0, 0.0, -9.0]))
        model.conv.weight[4] = 0.0
    model.train()
    found = dnr(model, x, batch=7)
    h = F.relu(model.eval().norm(model.conv(x)))
    assert list(found.layers) == [":relu"]
    assert found.total == pytest.approx(float((h == 0).double().mean()))
    assert found.static == pytest.approx(1 / 5)
    assert found.dynamic == pytest.approx(found.total - 1 / 5)
    assert found.layers[":relu"].dynamic == pytest.approx(found.dynamic)


@pytest.mark.parametrize(("bias", "rate"), [(-1e6, 1.0), (1e6, 0.0)])
def test_far_biases(bias: float, rate: float) -> None:
    model = mlp([4, 9, 6, 2])
    nn.init.constant_(model[1].bias, bias)
    found = dnr(model, torch.randn(20, 4))
    assert found.layers["2"].total == rate
    assert found.static == 0.0
    with pytest.raises(WorkingPapersError, match="no ReLU"):
        dnr(mlp([4, 9, 2], nn.GELU), torch.randn(3, 4))


def test_layers_are_weighed_by_their_outputs() -> None:
    model, x = cnn(1, 3, (4, 6), size=8), torch.randn(9, 1, 8, 8)
    found = dnr(model, x)
    outputs = {"1": 4 * 64, "4": 6 * 16}
    wanted = sum(found.layers[n].total * k for n, k in outputs.items()) / sum(outputs.values())
    assert found.total == pytest.approx(wanted)


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {"a": torch.randn(20, 15, generator=generator), "b": torch.randn(10, 20, generator=generator)}


@pytest.mark.parametrize(
    ("choose", "sign", "order"),
    [("negative slow", -1, 1), ("negative fast", -1, -1), ("positive slow", 1, 1)],
)
def test_masks_are_those_of_an_independent_sort(choose: str, sign: int, order: int) -> None:
    w, before = weights(), {n: v + 0.1 * torch.randn(v.shape) for n, v in weights().items()}
    old = {n: torch.rand(v.shape) < 0.8 for n, v in w.items()}
    got = next_masks(w, before, old, {n: v.abs() for n, v in w.items()}, (20, 5), choose)
    flat, was = (np.concatenate([d[n].numpy().ravel() for n in w]) for d in (w, before))
    left = [i for i in range(len(flat)) if np.concatenate([old[n].numpy().ravel() for n in w])[i]]
    total, by_ap = round(0.2 * len(left)), round(0.05 * len(left))
    base = sorted(left, key=lambda i: abs(flat[i]))[: total - by_ap]
    rest = [i for i in left if i not in set(base) and np.sign(flat[i]) == sign]
    taken = sorted(rest, key=lambda i: order * abs(flat[i] - was[i]))[:by_ap]
    wanted = np.isin(np.arange(len(flat)), list(set(left) - set(base) - set(taken)))
    assert np.array_equal(np.concatenate([got[n].numpy().ravel() for n in w]), wanted)


def test_too_few_negative_weights_are_made_up_for_and_layers_share() -> None:
    w = {n: v.abs() for n, v in weights().items()}
    full = {n: torch.ones_like(v, dtype=torch.bool) for n, v in w.items()}
    got = next_masks(w, w, full, w, (20, 10))
    assert sum(int(m.sum()) for m in got.values()) == 400
    base = next_masks(w, w, full, w, (20, 0))
    assert all(torch.equal(got[n], base[n]) for n in w)
    uneven = {"a": w["a"], "b": 100 * w["b"]}
    share = next_masks(uneven, w, full, uneven, (20, 0), by_layer=True)
    assert [int(m.sum()) for m in share.values()] == [240, 160]


def data() -> Split:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(90, 6, generator=generator) + 3 * F.one_hot(y, 6)
    return Split(x, y, x, y, 3, "example")


def test_rounds_remove_what_they_say_and_rewind() -> None:
    split = data()
    build = partial(initialise, partial(mlp, [6, 30, 20, 3]), 1)
    seen: list[dict[str, Tensor]] = []

    def train(model: nn.Module) -> None:
        seen.append({n: v.clone() for n, v in model.state_dict().items()})
        fit(model, split, steps=10, every=10, lr=1e-2)

    rounds = make("ap_prune", p=20, q=4).run(build, train, 4, split)
    total, left = 6 * 30 + 30 * 20 + 60, 840
    for found in rounds:
        assert found.sparsity == pytest.approx(1 - left / total)
        left -= round(0.2 * left)
    fresh = build().state_dict()
    for state, found in zip(seen, rounds, strict=True):
        for name, mask in found.masks.items():
            assert torch.equal(state[f"{name}.weight"], fresh[f"{name}.weight"] * mask)
            assert torch.equal(state[f"{name}.bias"], fresh[f"{name}.bias"])
    for one, after in pairwise(rounds):
        assert all(bool((one.masks[n] | ~after.masks[n]).all()) for n in one.masks)
    assert rounds[0].accuracy > 0.8


def test_without_ap_it_is_global_magnitude_alone() -> None:
    split = data()
    model = initialise(partial(mlp, [6, 30, 3]), 1)
    ap = make("ap_prune", q=0, rewind=False)
    ap.begin(model)
    fit(model, split, steps=10, every=10, lr=1e-2)
    w = torch.cat([model[1].weight.detach().flatten(), model[3].weight.detach().flatten()])
    limit = w.abs().sort().values[round(0.2 * len(w)) - 1]
    ap.prune(model, split.x_train, split.y_train)
    got = torch.cat([model[1].weight.detach().flatten(), model[3].weight.detach().flatten()])
    assert torch.equal(got, w * (w.abs() > limit))


def test_bases_score_as_they_say() -> None:
    split, model = data(), mlp([6, 5, 3])
    generator = torch.Generator()
    found = make("ap_prune", base="global_gradient").scores(model, split.x_train, split.y_train, generator)
    F.cross_entropy(model(split.x_train), split.y_train).backward()
    weight = model[1].weight
    torch.testing.assert_close(found["1"], (weight * weight.grad).abs().detach())
    own = make("ap_prune", base=lambda m, x, y: {"1": x})
    assert own.scores(model, split.x_train, split.y_train, generator)["1"] is split.x_train


def test_fit_holds_pruned_weights_and_refuses_nonsense() -> None:
    split, model = data(), mlp([6, 30, 3])
    ap = make("ap_prune", every=5, lr=1e-2)
    ap.fit(model, split.x_train, split.y_train, steps=12)
    assert ap.rounds == 2
    zero = int((model[1].weight == 0).sum() + (model[3].weight == 0).sum())
    assert zero == 270 - 216 + round(0.2 * 216)
    with pytest.raises(WorkingPapersError, match="0 <= q <= p"):
        make("ap_prune", p=5, q=6)
    with pytest.raises(WorkingPapersError, match="negative slow"):
        make("ap_prune", choose="negative slw")
    with pytest.raises(WorkingPapersError, match="global_magnitude"):
        make("ap_prune", base="magnitude")


def planted(share: float) -> tuple[nn.Sequential, Tensor]:
    """Units of the second layer that negative weights hold down."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=generator) * (2 / p.shape[-1]) ** 0.5 if p.ndim > 1 else p * 0
            )
        model[2].weight[: round(50 * share)] -= 0.3
    return model, torch.randn(200, 6, generator=generator)


def test_the_check_names_what_never_fires_and_its_cure_wakes_it() -> None:
    model, x = planted(0.3)
    check = component("ap_prune.dead").target
    found = check(case_of(model, x))
    (symptom,) = found.symptoms
    h = model[:2](x).relu()
    after = model[3](model[2](h))
    never = after.amax(0) == 0
    assert symptom.where == "3"
    assert f"{int(never.sum())} of 50 units are 0 for all 200 examples" in symptom.says
    assert bool(never[:15].all())
    zeros = torch.cat([h.flatten(), after.flatten()]) == 0
    assert found.numbers["total"] == pytest.approx(float(zeros.double().mean()))
    assert found.numbers["dead rate of 3"] == pytest.approx(float((after == 0).double().mean()))
    assert found.numbers["static"] == 0.0
    cured = symptom.cure(model)
    assert check(case_of(cured, x)).symptoms == ()
    weight = model[2].weight.detach()
    mask = never[:, None] & (weight < 0)
    assert torch.equal(cured[2].weight.detach(), weight.masked_fill(mask, 0))
    assert check(case_of(planted(0.0)[0], x)).symptoms == ()


def test_units_without_weights_are_static() -> None:
    model, x = planted(0.0)
    with torch.no_grad():
        model[2].weight[:10] = 0.0
    assert int(cut_off(model[2]).sum()) == 10
    found = component("ap_prune.dead").target(case_of(model, x))
    assert found.numbers["static"] == pytest.approx(10 / 90)
    assert "10 of them without" in found.symptoms[0].says
    smooth = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 2))
    with pytest.raises(NotApplicable, match="ReLUs"):
        component("ap_prune.dead").target(case_of(smooth, x))


def test_claims_are_the_records() -> None:
    assert {c.says for c in claims("ap_prune").values()} == {c["says"] for c in record("ap_prune").claims}
