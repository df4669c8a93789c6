"""Products by chosen rows: every form against float64, what is skipped is not read, and who takes which path."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workingpapers.kernels import breakeven, native, rows
from workingpapers.kernels.breakeven import Costs
from workingpapers.kernels.rows import gated_rows, gated_rows_plain, kept, skipped_rows, weighted_rows

ALWAYS = Costs(((1.0, 1.0, 0.0, 0.0), (2.0, 1.0, 0.0, 0.0)))
NEVER = Costs(((1.0, 0.0, 1.0, 1.0), (2.0, 0.0, 1.0, 1.0)))
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def skipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let skipping pay whatever the size."""
    if native.library("rows") is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr(rows, "_costs", lambda dtype, threads: ALWAYS)


def vectors(pattern: str, batch: int, neurons: int, sparsity: float, generator: torch.Generator) -> Tensor:
    """Return gates (batch, neurons): a share of them 0, by chance or one block for all."""
    v = torch.randn(batch, neurons, generator=generator)
    off = torch.rand(batch, neurons, generator=generator) < sparsity
    if pattern == "clustered":
        off = (torch.arange(neurons) < round(sparsity * neurons)).expand(batch, -1)
    return torch.where(off, 0.0, v)


shapes = st.tuples(
    st.integers(1, 8),
    st.integers(1, 70),
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)


@pytest.mark.usefixtures("skipping")
@settings(max_examples=60, deadline=None)
@given(
    shapes,
    st.sampled_from(["random", "clustered"]),
    st.sampled_from(list(TOLERANCE)),
    st.booleans(),
    st.booleans(),
)
def test_kernels_agree_with_double_precision(
    shape: tuple[int, int, int, int, float], pattern: str, dtype: torch.dtype, strided: bool, biased: bool
) -> None:
    batch, neurons, into, out, sparsity = shape
    generator = torch.Generator().manual_seed(neurons * 100 + into)

    def draw(*size: int) -> Tensor:
        value = torch.randn(*size, generator=generator)
        return (value.t().contiguous().t() if strided and value.ndim == 2 else value).to(dtype)

    a = vectors(pattern, batch, neurons, sparsity, generator).to(dtype)
    up, down, x, bias = (
        draw(neurons, into),
        draw(neurons, out),
        draw(batch, into),
        draw(neurons) if biased else None,
    )
    wide = [t if t is None else t.double() for t in (a, up, down, x, bias)]
    exact = gated_rows_plain(*wide[:4], 0.5, wide[4])  # type: ignore[arg-type]
    found = gated_rows(a, up, down, x, 0.5, bias)
    assert found.dtype == dtype
    scale = float(exact.abs().max()) + 1e-30
    assert float((found.double() - exact).abs().max()) <= TOLERANCE[dtype] * scale
    exact = kept(a.double(), 0.5) @ down.double()
    assert float((weighted_rows(a, down, 0.5).double() - exact).abs().max()) <= TOLERANCE[dtype] * (
        float(exact.abs().max()) + 1e-30
    )


@pytest.mark.usefixtures("skipping")
def test_rows_that_are_off_are_not_read() -> None:
    """Their weights are NaN, which any arithmetic would show."""
    a = torch.tensor([[0.3, -2.0, 0.0, 1.5]])
    up, down, x = torch.randn(4, 6), torch.randn(4, 5), torch.randn(1, 6)
    exact = gated_rows_plain(a, up, down, x, 1.0)
    up[[0, 2]] = down[[0, 2]] = float("nan")
    torch.testing.assert_close(gated_rows(a, up, down, x, 1.0), exact)
    torch.testing.assert_close(weighted_rows(a, down, 1.0), -2.0 * down[1:2] + 1.5 * down[3:])


@pytest.mark.usefixtures("skipping")
def test_a_batch_reads_what_any_of_its_vectors_asks_for() -> None:
    v = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]]])
    weight = torch.tensor([[1.0, 1.0], [10.0, 20.0], [float("nan"), 0.0]])
    assert weighted_rows(v, weight, 0.5).tolist() == [[[1.0, 1.0]], [[20.0, 40.0]]]


@pytest.mark.usefixtures("skipping")
def test_nan_and_infinity_come_through() -> None:
    weight = torch.ones(3, 2)
    assert weighted_rows(torch.tensor([[0.0, float("nan"), 1.0]]), weight, 0.5).isnan().all()
    assert weighted_rows(torch.tensor([[0.0, float("inf"), 1.0]]), weight, 0.5).isinf().all()


@pytest.mark.usefixtures("skipping")
def test_the_number_of_threads_changes_the_sum_by_rounding_alone() -> None:
    v, weight = torch.randn(2, 333), torch.randn(333, 50)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = weighted_rows(v, weight, 0.3)
        torch.set_num_threads(3)
        torch.testing.assert_close(weighted_rows(v, weight, 0.3), one)
        assert torch.equal(weighted_rows(v, weight, 0.3), weighted_rows(v, weight, 0.3))
    finally:
        torch.set_num_threads(before)


def test_everything_else_takes_the_plain_form(skipping: None) -> None:
    v, weight = torch.randn(1, 30), torch.randn(30, 8)
    assert skipped_rows(v, weight, 0.1) is not None
    assert skipped_rows(torch.randn(9, 30), weight, 0.1) is None  # too many vectors
    assert skipped_rows(v.double(), weight.double(), 0.1) is None
    assert skipped_rows(v.requires_grad_(), weight, 0.1) is None
    (gradient,) = torch.autograd.grad(weighted_rows(v, weight, 0.5).sum(), v)
    torch.testing.assert_close(gradient, torch.where(v.abs() < 0.5, 0.0, weight.sum(1)))
    x = torch.randn(5, 30)
    torch.testing.assert_close(torch.vmap(lambda r: weighted_rows(r, weight, 0.5))(x), kept(x, 0.5) @ weight)


def test_the_dense_product_is_taken_where_skipping_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_costs", lambda dtype, threads: NEVER)
    assert skipped_rows(torch.randn(1, 30), torch.randn(30, 8), 0.1) is None
    cost = Costs(((100.0, 4.0, 2.0, 5.0), (10_000.0, 40.0, 20.0, 50.0)))
    pays = [
        cost.pays(0.5, 100),
        cost.pays(0.9, 100),
        cost.pays(0.7, 1),
        cost.pays(0.7, 1_000),
        cost.pays(0.8, 1_000),
    ]
    assert pays == [
        True,
        False,
        True,
        True,
        False,
    ]  # 3 < 4, 4.6, 3.8; at 1,000 half-way: 22 against 11 to 27.5
    assert cost.pays(0.7, 10**6)  # 38 < 40, each a hundredfold
    assert not cost.pays(0.8, 10**6)


def test_costs_are_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    breakeven._folder.cache_clear()
    monkeypatch.setattr(breakeven, "seconds_by_turns", lambda runs, repeats: [[run()] for run in runs])
    trials = []

    def trial(shape: tuple[int, int], share: float):  # type: ignore[no-untyped-def]
        trials.append(shape)
        return lambda: share * shape[0] * shape[1]

    try:
        found = breakeven.costs("here", trial, trial)
        assert found.points[0] == (65536.0, 65536.0, 16384.0, 65536.0)
        assert breakeven.costs("here", trial, trial) == found
        assert len(trials) == 12
        breakeven._file("here").write_text("{}")
        assert breakeven.costs("here", trial, trial) == found
        assert len(trials) == 24
    finally:
        breakeven._folder.cache_clear()


def test_without_a_compiler_all_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    native.library.cache_clear()
    v, weight = torch.randn(1, 30), torch.randn(30, 8)
    try:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.warns(UserWarning, match="rows is not compiled here"):
            assert skipped_rows(v, weight, 0.1) is None
        torch.testing.assert_close(weighted_rows(v, weight, 0.5), kept(v, 0.5) @ weight)
        native.library.cache_clear()
        monkeypatch.setenv(native.VARIABLE, "never")
        assert skipped_rows(v, weight, 0.1) is None
    finally:
        native.library.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_triton_agrees_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    program = """
        import torch
        from workingpapers.kernels.rows import gated_rows_plain, weighted_rows_plain
        from workingpapers.kernels.rows_triton import rows

        torch.manual_seed(0)
        for batch, neurons, into, out, t in [(1, 50, 700, 600, 0.7), (3, 33, 20, 515, 0.0), (8, 5, 3, 2, 9.0)]:
            v, up, down = torch.randn(batch, neurons), torch.randn(neurons, into), torch.randn(neurons, out)
            x, bias = torch.randn(batch, into), torch.randn(neurons)
            torch.testing.assert_close(rows(v, down, t), weighted_rows_plain(v, down, t), rtol=1e-4, atol=1e-3)
            found = rows(v, down, t, up, x, bias)
            torch.testing.assert_close(found, gated_rows_plain(v, up, down, x, t, bias), rtol=1e-4, atol=2e-3)
            off = v.abs().amax(0) < t
            scaled, scales = [], []
            for weight in (up, down):
                scale = weight.abs().amax(1) / 127
                scaled.append((weight / scale[:, None]).round().to(torch.int8))
                scales.append(scale)
            wide = [q * s[:, None] for q, s in zip(scaled, scales)]
            found = rows(v, scaled[1], t, scaled[0], x, bias, scales=tuple(scales))
            exact = gated_rows_plain(v, wide[0], wide[1], x, t, bias)
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=2e-3)
            up[off], down[off] = float("nan"), float("nan")
            assert rows(v, down, t, up, x, bias).isfinite().all()
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
