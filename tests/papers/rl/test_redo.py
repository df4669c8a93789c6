"""ReDo: scores by definition, functions that stay, moments that are reset, a check that finds what was planted."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, component, make, record
from workingpapers.data import Split
from workingpapers.engines.activity.case import NotApplicable, case_of
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.rl._dormant import Recycler, dormancy, overlap, recycle, recycled
from workingpapers.papers.rl._moving_targets import METHODS, stream
from workingpapers.papers.rl._value_learning import Agent, offline
from workingpapers.surgery.changes import changes
from workingpapers.surgery.units import units_of
from workingpapers.tasks import cnn, mlp, residual_cnn


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3), nn.ReLU())


def test_scores_are_by_definition() -> None:
    model, x = dense(), torch.randn(70, 5)
    found = dormancy(model, x, batch=32)
    assert list(found.scores) == ["1", "3"]
    h = model[1](model[0](x)).detach().double()
    for name, values in (("1", h), ("3", model[3](model[2](h.float())).detach().double())):
        wanted = values.abs().mean(0) / values.abs().mean()
        torch.testing.assert_close(found.scores[name], wanted, rtol=1e-5, atol=1e-7)
        assert float(found.scores[name].mean()) == pytest.approx(1.0, abs=1e-6)


def test_channels_are_units_and_means_go_over_places() -> None:
    model, x = cnn(1, 3, (6,), size=8), torch.randn(10, 1, 8, 8)
    h = model[1](model[0](x)).detach().double().abs()
    wanted = h.mean((0, 2, 3)) / h.mean()
    torch.testing.assert_close(dormancy(model, x).scores["1"], wanted, rtol=1e-5, atol=1e-7)


def test_limits_of_tau() -> None:
    model, x = dense(), torch.randn(40, 5)
    with torch.no_grad():
        model[0].bias[2] = -1e6
        model[0].bias[7] = -1e6
    found = dormancy(model, x)
    zero = found.dormant(0.0)
    silent = model[1](model[0](x)).amax(0) == 0
    assert torch.equal(zero["1"], silent)
    assert {2, 7} <= set(silent.nonzero().flatten().tolist())
    assert not bool(zero["3"].any())
    assert found.share(torch.inf) == 1.0
    assert found.share(0.0) == pytest.approx(int(silent.sum()) / 21)
    with torch.no_grad():
        model[0].bias.fill_(-1e6)
    assert dormancy(model, x).by_layer(0.0)["1"] == 1.0


def images_net() -> nn.Sequential:
    parts = [
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(54, 4),
    ]
    return nn.Sequential(*parts)


@pytest.mark.parametrize(
    ("build", "shape", "bias"), [(dense, (30, 5), "0.bias"), (images_net, (5, 1, 8, 8), "1.bias")]
)
def test_recycling_silent_units_leaves_the_function(
    build: Callable[[], nn.Sequential], shape: tuple[int, ...], bias: str
) -> None:
    model, x = build().eval(), torch.randn(shape)
    off = torch.tensor([0, 4])
    with torch.no_grad():
        model.get_parameter(bias)[off] = -1e6
    before, weight = model(x).detach(), model[0].weight.detach().clone()
    Recycler(model, None, tau=0.0).recycle(x)
    torch.testing.assert_close(model(x), before, rtol=0.0, atol=1e-6)
    changed = (model[0].weight != weight).flatten(1).any(1)
    assert set(off.tolist()) <= set(changed.nonzero().flatten().tolist())
    assert not bool(changed.all())
    assert bool((model.get_parameter(bias)[off] > -100).all())
    units = units_of(model, x)["0"]
    h = model[:-1](x) if len(units.readers) and units.readers[0].block > 1 else model[1](model[0](x))
    after = model[-1] if units.readers[0].block > 1 else model[2]
    columns = after.weight.unflatten(1, (-1, units.readers[0].block))[:, off]
    assert bool((columns == 0).all())
    assert bool((h.unflatten(1, (-1, units.readers[0].block))[:, off].abs().sum((0, 2)) > 0).any())


def test_optimizer_state_of_what_is_recycled_is_reset_and_no_other() -> None:
    model, x = dense(), torch.randn(30, 5)
    adam = torch.optim.Adam(model.parameters())
    F.mse_loss(model(x), torch.randn(30, 3)).backward()
    adam.step()
    for p in model.parameters():
        adam.state[p]["exp_avg"].fill_(1.0)
    mask = torch.arange(12) == 5
    units = units_of(model, x)
    recycle(units, {"0": mask}, adam)
    moments = [adam.state[p]["exp_avg"] for p in model.parameters()]
    assert torch.equal(moments[0], (~mask).float()[:, None].expand(12, 5))
    assert torch.equal(moments[1], (~mask).float())
    assert torch.equal(moments[2], (~mask).float()[None].expand(9, 12))
    assert all(bool((m == 1).all()) for m in moments[3:])
    adam.state[model[0].weight]["exp_avg"].fill_(1.0)
    recycle(units, {"0": mask}, adam, reset_moments=False, way_out="random")
    assert bool((adam.state[model[0].weight]["exp_avg"] == 1).all())
    assert bool((model[2].weight[:, 5] != 0).all())
    with pytest.raises(WorkingPapersError, match="reach more"):
        recycle(units, {"4": torch.ones(3, dtype=torch.bool)})


def test_fresh_weights_are_the_layers_own_and_seeded() -> None:
    model, x = mlp([400, 50, 50, 3]), torch.randn(8, 400)
    with torch.no_grad():
        model[1].weight.fill_(7.0)
    one, two, three = (recycled(model, x, {"2": torch.ones(50, dtype=torch.bool)}, s) for s in (0, 0, 1))
    weight = one.get_parameter("1.weight").detach()
    assert torch.equal(weight, two.get_parameter("1.weight"))
    assert changes(one) == ["1: 50 of 50 units are recycled."]
    assert not torch.equal(weight, three.get_parameter("1.weight"))
    assert float(weight.abs().max()) <= 1 / 20  # uniform up to 1 / sqrt(fan-in)
    assert float(weight.std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.02)
    assert bool((model[1].weight == 7).all())


def test_blind_recycling_takes_as_many() -> None:
    model, x = dense(), torch.randn(40, 5)
    with torch.no_grad():
        model[0].bias[:4] = -1e6
    count = int(dormancy(model, x).dormant(0.0)["1"].sum())
    before = model[0].weight.detach().clone()
    Recycler(model, None, tau=0.0, choose="random", seed=3).recycle(x)
    changed = (model[0].weight != before).any(1)
    assert int(changed.sum()) == count
    assert changed[:4].tolist() != [True] * 4


def test_recycler_counts_and_refuses() -> None:
    model, x = dense(), torch.randn(20, 5)
    recycler = Recycler(model, None, every=3)
    assert [recycler.step(x) is not None for _ in range(7)] == [False, False, True, False, False, True, False]
    with pytest.raises(WorkingPapersError, match="tau >= 0"):
        make("redo", tau=-1.0)
    with pytest.raises(WorkingPapersError, match="dormant"):
        make("redo", choose="dormnt")
    with pytest.raises(WorkingPapersError, match="no activation between"):
        dormancy(nn.Linear(5, 2), x)


def test_overlap_is_over_the_smaller_set() -> None:
    bits = {"a": torch.tensor([True, True, True, False]), "b": torch.tensor([False, True])}
    other = {"a": torch.tensor([True, False, False, True]), "b": torch.tensor([False, False])}
    assert overlap(bits, other) == 0.5
    assert overlap(bits, {name: torch.zeros_like(mask) for name, mask in bits.items()}) == 0.0


def test_streams_run_by_every_method_and_move_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 4, generator=generator) + 4 * F.one_hot(y, 4)
    split = Split(x, y, x, y, 3, "example")
    runs = {m: stream(split, m, periods=2, period=8, lr=1e-2) for m in METHODS}
    assert all(len(run.accuracy) == len(run.dormant) == 2 for run in runs.values())
    assert len({tuple(run.accuracy) for run in runs.values()}) > 2
    fixed = stream(split, "plain", False, periods=3, period=20, lr=1e-2).accuracy[-1]
    assert fixed > 0.9
    assert stream(split, "plain", True, periods=3, period=20, lr=1e-2).accuracy[-1] < fixed


def test_agents_update_at_their_ratio_and_learn_offline() -> None:
    agent = Agent(ratio=0.25, width=16, redo=3)
    agent.play(120, warmup=101)
    assert agent.updates == 5
    assert agent.recycler.updates == 5
    assert len(agent.memory) == 120
    assert sum(agent.returns) <= 120
    twice = Agent(ratio=2.0, width=16)
    twice.play(60, warmup=51)
    assert twice.updates == 20
    fresh = offline(agent, 10, checks=2)
    assert fresh.updates == 10
    assert len(fresh.dormant) == 2
    assert fresh.memory is agent.memory
    assert all(0 <= share <= 1 for share in fresh.dormant)


def planted(share: float) -> tuple[nn.Sequential, Tensor]:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=generator) * (2 / p.shape[-1]) ** 0.5 if p.ndim > 1 else p * 0
            )
        model[2].bias[: round(40 * share)] = -50.0
    return model, torch.randn(128, 6, generator=generator)


def test_the_check_names_the_layer_and_its_cure_wakes_it() -> None:
    model, x = planted(0.4)
    check = component("redo.dormant").target
    found = check(case_of(model, x))
    (symptom,) = found.symptoms
    assert (symptom.where, symptom.severity) == ("3", "warning")
    mask = found.details["dormant"]["3"]
    assert bool(mask[:16].all())
    assert int(mask.sum()) <= 18  # one or two are silent by chance
    assert f"{int(mask.sum())} of 40" in symptom.says
    assert found.numbers["dormant in 3"] == pytest.approx(int(mask.sum()) / 40)
    before = model(x).detach()
    assert check(case_of(symptom.cure(model), x)).numbers["dormant in 3"] < 0.1
    (silent,) = check(case_of(model, x), tau=0.0).symptoms
    torch.testing.assert_close(silent.cure(model)(x), before, rtol=0.0, atol=1e-6)
    assert torch.equal(model(x), before)
    assert check(case_of(planted(0.6)[0], x)).symptoms[0].severity == "serious"
    assert check(case_of(planted(0.0)[0], x)).symptoms == ()


def test_the_check_leaves_out_outputs_and_says_what_it_cannot_cure() -> None:
    check = component("redo.dormant").target
    with pytest.raises(NotApplicable, match="between two layers"):
        check(case_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(9, 4)))
    net = residual_cnn(1, 3, (8,))
    with torch.no_grad():
        net[1].bias[:4] = -50.0
    x = torch.randn(6, 1, 8, 8)
    first = next(s for s in check(case_of(net, x)).symptoms if s.where == "2")
    with pytest.raises(WorkingPapersError, match="reach more"):
        first.cure(net)


def test_claims_are_the_records() -> None:
    assert {c.says for c in claims("redo").values()} == {c["says"] for c in _record_claims("redo")}


def _record_claims(id: str) -> list[dict[str, str]]:
    return [{"says": getattr(c, "says", None) or c["says"]} for c in record(id).claims]
