"""LAMB and LARS against loops in numpy, AdamW and their invariances."""

import importlib
import math

import numpy as np
import pytest
import torch
from torch import nn

from workingpapers.catalog import make
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.training.lamb import Lamb, Lars, layer_groups, trust_ratio

SHAPES = ((4, 3), (5,), (2, 3, 2))


def parameters(scale: float = 1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(scale * torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]


def gradients(steps: int, scale: float = 1.0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [scale * torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
        for _ in range(steps)
    ]


def run(optimizer: torch.optim.Optimizer, grads: list[list[torch.Tensor]]) -> list[list[np.ndarray]]:
    """Take a step with each of the gradients and return the parameters after each."""
    history = []
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
        history.append([p.detach().numpy().copy() for p in params])
    return history


def ratio(x: np.ndarray, u: np.ndarray, bounds: tuple[float, float] | None) -> float:
    size, length = math.sqrt((x**2).sum()), math.sqrt((u**2).sum())
    if size == 0 or length == 0:
        return 1.0
    return (min(max(size, bounds[0]), bounds[1]) if bounds else size) / length


@pytest.mark.parametrize("bounds", [None, (2.0, 2.5)])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_lamb_is_the_loop_of_algorithm_2(bounds: tuple[float, float] | None, bias_correction: bool) -> None:
    lr, b1, b2, eps, wd = 0.05, 0.8, 0.95, 1e-3, 0.1
    grads = gradients(8)
    xs = [p.detach().numpy().copy() for p in parameters()]
    ms, vs = [np.zeros_like(x) for x in xs], [np.zeros_like(x) for x in xs]
    expected = []
    for t, step in enumerate(grads, 1):
        for i, g in enumerate(step):
            g = g.numpy()
            ms[i] = b1 * ms[i] + (1 - b1) * g
            vs[i] = b2 * vs[i] + (1 - b2) * g**2
            m, v = (ms[i] / (1 - b1**t), vs[i] / (1 - b2**t)) if bias_correction else (ms[i], vs[i])
            u = m / (np.sqrt(v) + eps) + wd * xs[i]
            xs[i] = xs[i] - lr * ratio(xs[i], u, bounds) * u
        expected.append([x.copy() for x in xs])
    optimizer = Lamb(
        parameters(), lr, (b1, b2), eps, weight_decay=wd, bounds=bounds, bias_correction=bias_correction
    )
    for found, wanted in zip(run(optimizer, grads), expected, strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("bounds", [None, (2.0, 2.5)])
def test_lars_is_the_loop_of_algorithm_1(bounds: tuple[float, float] | None) -> None:
    lr, beta, wd = 0.05, 0.7, 0.2
    grads = gradients(6)
    xs = [p.detach().numpy().copy() for p in parameters()]
    ms = [np.zeros_like(x) for x in xs]
    for step in grads:
        for i, g in enumerate(step):
            ms[i] = beta * ms[i] + (1 - beta) * (g.numpy() + wd * xs[i])
            xs[i] = xs[i] - lr * ratio(xs[i], ms[i], bounds) * ms[i]
    found = run(make("lamb.lars", parameters(), lr=lr, momentum=beta, weight_decay=wd, bounds=bounds), grads)[
        -1
    ]
    for a, b in zip(found, xs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_every_tensor_moves_by_the_share_lr_of_its_norm(kind: type) -> None:
    before = [p.detach().numpy().copy() for p in parameters()]
    for after in run(kind(parameters(), lr=0.03), gradients(5)):
        for a, b in zip(after, before, strict=True):
            assert np.linalg.norm(a - b) / np.linalg.norm(b) == pytest.approx(0.03, rel=1e-10)
        before = after


def test_the_size_of_gradients_does_not_matter() -> None:
    one, other = (
        run(Lamb(parameters(), lr=0.1, eps=0.0), gradients(5, scale))[-1] for scale in (1.0, 1000.0)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    one, other = (
        run(Lars(parameters(), lr=0.1, weight_decay=0.0), gradients(5, scale))[-1] for scale in (1.0, 1e3)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_the_first_step_goes_along_the_signs() -> None:
    start, grads = parameters(), gradients(1)
    after = run(Lamb(parameters(), lr=0.1, eps=0.0, weight_decay=0.0), grads)[0]
    for x, g, found in zip(start, grads[0], after, strict=True):
        x = x.detach().numpy()
        direction = np.sign(g.numpy()) / math.sqrt(g.numel())
        np.testing.assert_allclose(found, x - 0.1 * np.linalg.norm(x) * direction, rtol=1e-12)


def test_without_adaptation_it_is_adamw() -> None:
    grads = gradients(20)
    ours = run(Lamb(parameters(), lr=0.02, eps=1e-8, weight_decay=0.3, adapt=False), grads)
    torchs = run(torch.optim.AdamW(parameters(), lr=0.02, eps=1e-8, weight_decay=0.3), grads)
    for found, wanted in zip(ours, torchs, strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


def test_norms_of_zero_give_the_ratio_one() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert trust_ratio(zero, one) == trust_ratio(one, zero) == trust_ratio(zero, zero, (1.0, 2.0)) == 1
    assert trust_ratio(2 * one, one).item() == pytest.approx(2.0)
    assert trust_ratio(20 * one, one, (0.0, 10.0)).item() == pytest.approx(10 / math.sqrt(3))
    assert trust_ratio(0.1 * one, one, (1.0, 10.0)).item() == pytest.approx(1 / math.sqrt(3))
    start = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2))]
    optimizer = Lamb(start, lr=0.5, weight_decay=0.0)
    start[0].grad, start[1].grad = torch.full((2, 2), 3.0), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(start[0].detach(), torch.full((2, 2), -0.5))
    assert start[1].tolist() == [1, 1]


def test_clipping_looks_at_all_gradients_together() -> None:
    grads = gradients(3, scale=10.0)
    options = {"lr": 0.1, "eps": 1.0}  # with a large eps the size of gradients matters
    found = run(Lamb(parameters(), max_grad_norm=1.0, **options), grads)
    norms = [math.sqrt(sum(float(g.square().sum()) for g in step)) for step in grads]
    scaled = [[g / norm for g in step] for step, norm in zip(grads, norms, strict=True)]
    for a, b in zip(found[-1], run(Lamb(parameters(), **options), scaled)[-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    kept = run(Lamb(parameters(), max_grad_norm=1e6, **options), grads)
    for a, b in zip(kept[-1], run(Lamb(parameters(), **options), grads)[-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_gradients_are_left_as_they_are() -> None:
    params, grads = parameters(), gradients(1)
    run(Lamb(params, max_grad_norm=0.1), grads)
    for p, g in zip(params, grads[0], strict=True):
        assert torch.equal(p.grad, g)


def test_a_late_parameter_counts_its_own_steps() -> None:
    early, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Lamb([early, late], lr=0.1, eps=0.0, weight_decay=0.0)
    early.grad = torch.tensor([1.0, -1.0])
    for _ in range(3):
        optimizer.step()
    assert late.tolist() == [1, 1]
    late.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.tensor([0.9, 1.1]))


def test_precisions_may_be_mixed() -> None:
    params = [nn.Parameter(torch.ones(4, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.float64)]
    for p in params:
        p.grad = torch.ones_like(p)
    Lamb(params, lr=0.5, weight_decay=0.0).step()
    assert [p.dtype for p in params] == [torch.float32, torch.bfloat16, torch.float64]
    assert [p.tolist() for p in params] == [pytest.approx([0.5] * 4, rel=1e-5)] * 3


def test_groups_set_biases_and_norms_apart() -> None:
    model = nn.ModuleDict(
        {"linear": nn.Linear(3, 4), "norm": nn.BatchNorm1d(4), "odd_norm": nn.Linear(2, 2, bias=False)}
    )
    weights, apart = layer_groups(model, 0.2)
    assert [p.shape for p in weights["params"]] == [(4, 3)]
    assert len(apart["params"]) == 4
    assert (weights["weight_decay"], apart["weight_decay"], apart["adapt"]) == (0.2, 0.0, False)
    before = model["linear"].bias.detach().clone()
    optimizer = Lamb([weights, apart], lr=0.1, eps=0.0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    torch.testing.assert_close(model["linear"].bias.detach(), before - 0.1)
    assert len(layer_groups(model, exclude="^$")[0]["params"]) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": -0.1}, "lr is at least 0; got -0.1"),
        ({"eps": -1.0}, "eps is at least 0; got -1.0"),
        ({"weight_decay": math.nan}, "weight_decay is at least 0; got nan"),
        ({"betas": (0.9, 1.0)}, r"a decay rate of moments lies in \[0, 1\); got 1.0"),
        ({"bounds": (2.0, 1.0)}, r"bounds are \(low, high\) with 0 <= low <= high; got \(2.0, 1.0\)"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is above 0, or None; got 0.0"),
    ],
)
def test_options_out_of_range(options: dict[str, float], says: str) -> None:
    with pytest.raises(WorkingPapersError, match=says):
        Lamb(parameters(), **options)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(WorkingPapersError, match="Lars takes dense gradients; got a sparse one"):
        Lars(embedding.parameters(), lr=0.1).step()


def test_it_steps_as_timm_does() -> None:
    importlib.import_module("tests.surgery.real_models")  # lets timm be imported beside any torch
    optim = importlib.import_module("timm.optim")
    grads = gradients(10)
    ours = run(Lamb(parameters(), lr=0.01, max_grad_norm=1.0), grads)
    theirs = run(optim.Lamb(parameters(), lr=0.01, weight_decay=0.01, max_grad_norm=1.0), grads)
    for a, b in zip(ours[-1], theirs[-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
