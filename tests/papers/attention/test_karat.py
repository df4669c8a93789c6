"""KArAt: attention by hand, its rank, padding, sharing, projections onto ball and simplex, spectra."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.attention.karat import (
    BASES,
    KArAt,
    ScoreOperator,
    SoftmaxAttention,
    onto_l1_ball,
    onto_simplex,
    spectrum,
    universal,
)


def test_a_row_of_attention_by_hand():
    mixer = KArAt(6, 2, tokens=4, rank=3, size=2).double()
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    q, k, _ = mixer.qkv(x)[0].detach().view(4, 3, 2, 3).permute(1, 2, 0, 3).numpy()  # (heads, tokens, d)
    c, w = mixer.phi.coefficients.detach().numpy(), mixer.phi.up.detach().numpy()
    head, row = 1, 2
    a = q[head, row] @ k[head].T / math.sqrt(3)
    s = np.zeros(3)
    for p in range(4):
        for m in (1, 2):
            s += c[head, p, m - 1] * math.cos(m * a[p]) + c[head, p, 1 + m] * math.sin(m * a[p])
    found = mixer.attention(x)[0, head, row].detach().numpy()
    assert found == pytest.approx(w[head] @ s)


def test_the_output_is_attention_times_values():
    mixer, x = KArAt(8, 2, tokens=5), torch.randn(3, 5, 8)
    v = mixer.qkv(x)[..., 16:].unflatten(-1, (2, 4)).transpose(1, 2)
    wanted = mixer.out((mixer.attention(x) @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(mixer(x), wanted, atol=1e-5)


def test_the_rank_is_at_most_r_and_full_without():
    x = torch.randn(2, 20, 8, dtype=torch.float64)
    low, full = (KArAt(8, 2, tokens=20, rank=r).double().attention(x) for r in (4, None))
    assert (torch.linalg.matrix_rank(low) <= 4).all()
    assert (torch.linalg.matrix_rank(full) > 12).all()


def test_without_coefficients_nothing_is_mixed():
    mixer, x = KArAt(8, 2, tokens=5), torch.randn(3, 5, 8)
    mixer.phi.coefficients.data.zero_()
    assert torch.equal(mixer(x), mixer.out.bias.expand(3, 5, 8))


def test_parameters_of_a_head_are_those_of_the_paper():
    operator = ScoreOperator(3, 65, 12, 3, "fourier", "none")
    assert sum(p.numel() for p in operator.parameters()) == 3 * (2 * 3 * 65 * 12 + 65 * 12)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("base", ["none", "silu"])
def test_padding_adds_nothing_to_the_functions(basis, base):
    operator = ScoreOperator(2, 6, 3, 4, basis, base).double()
    scores = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    real = torch.tensor([[True] * 4 + [False] * 2, [False, True, True, True, True, False]])
    found = operator(scores, real)
    phi = operator.basis(scores.reshape(-1, 6)).reshape(2, 2, 5, 6, -1)
    s = torch.einsum("bhipg,bp,hpgr->bhir", phi, real.double(), operator.coefficients)
    if base == "silu":
        s = s + (torch.nn.functional.silu(scores) * real[:, None, None]) @ operator.base_weight
    assert torch.allclose(found, s @ operator.up.mT, atol=1e-10)


@pytest.mark.parametrize("project", ["none", "l1", "simplex", "softmax"])
def test_fewer_tokens_are_padding_and_padding_gets_no_weight(project):
    mixer = KArAt(8, 2, tokens=9, project=project).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    mask = torch.arange(9) < 6
    short = mixer.attention(x[:, :6])
    masked = mixer.attention(x, mask.expand(2, 9))
    assert torch.allclose(masked[:, :, :6, :6], short, atol=1e-10)
    assert not masked[..., 6:].any()
    sums = short.sum(-1) if project != "l1" else short.abs().sum(-1)
    if project in ("simplex", "softmax"):
        assert torch.allclose(sums, torch.ones_like(sums))
        assert short.min() >= 0
    elif project == "l1":
        assert sums.max() <= 1 + 1e-9


def test_projections_are_the_nearest_points():
    x = torch.tensor([[0.9, -0.4, 0.3, 1.2], [0.1, 0.2, -0.1, 0.0]], dtype=torch.float64)
    for row, simplex, ball in zip(x, onto_simplex(x), onto_l1_ball(x), strict=True):
        target = row.numpy()
        found = minimize(
            lambda p, t=target: ((p - t) ** 2).sum(),
            np.full(4, 0.25),
            bounds=[(0, None)] * 4,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        ).x
        assert simplex.numpy() == pytest.approx(found, abs=1e-5)
        halves = minimize(  # p = up - down, both not negative, keeps the absolute value smooth
            lambda p, t=target: ((p[:4] - p[4:] - t) ** 2).sum(),
            np.full(8, 0.05),
            bounds=[(0, None)] * 8,
            constraints={"type": "ineq", "fun": lambda p: 1 - p.sum()},
        ).x
        assert ball.numpy() == pytest.approx(halves[:4] - halves[4:], abs=1e-4)


def test_universal_layers_share_their_functions():
    operator = ScoreOperator(2, 5, 3, 2, "fourier", "none")
    one, two = universal(operator)(8, 2), universal(operator)(8, 2)
    assert one.phi is two.phi
    assert one.qkv is not two.qkv
    assert KArAt(8, 2, tokens=5).phi is not KArAt(8, 2, tokens=5).phi


def test_the_spectrum_counts_singular_values():
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.1, 0.0]))  # squares 9, 1, 0.01
    found = spectrum(torch.stack([matrix, torch.eye(4)])[:, None], energy=0.9)
    assert found.numbers["effective_rank"] == (2 + 4) / 2
    assert found.numbers["largest"] == 4
    assert spectrum(matrix[None, None], energy=0.85).numbers["largest"] == 1
    assert spectrum(torch.ones(1, 1, 4, 4)).numbers["largest"] == 1


def test_the_softmax_it_is_compared_with_is_torchs():
    mixer, x = SoftmaxAttention(8, 2), torch.randn(3, 5, 8)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in mixer.qkv(x).chunk(3, -1))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert torch.allclose(mixer(x), mixer.out(wanted), atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(WorkingPapersError, match="made for 4 tokens at most; got 5"):
        KArAt(8, 2, tokens=4)(torch.randn(1, 5, 8))
    with pytest.raises(WorkingPapersError, match="10 is no multiple of 4"):
        KArAt(10)
    with pytest.raises(WorkingPapersError, match="at least 1; got 65, 0 and 3"):
        KArAt(8, rank=0)
    with pytest.raises(UnknownName, match="nearest name is 'fourier'"):
        KArAt(8, basis="furier")
