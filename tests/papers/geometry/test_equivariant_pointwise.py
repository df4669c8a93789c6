"""Pointwise activations: classes of matrices against direct trial, coordinates found, spaces counted, orbits."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, record
from workingpapers.engines.groups import cyclic, dihedral, symmetric
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.geometry._commuting import Commuting, commutes, commuting_class
from workingpapers.papers.geometry._monomial import decide, hidden_spaces, layer_sizes
from workingpapers.papers.geometry._orbits import PAIRS, STILL, moved, orbit_share, relative_error, rotated
from workingpapers.papers.geometry.equivariant_pointwise import (
    ACTIVATIONS,
    TURN,
    elements,
    equivariance_error,
    equivariant_pointwise,
    in_coordinates,
    judged,
    permutation_spaces,
    representations,
)

ACTS: dict[str, tuple[Any, Commuting]] = {
    "identity": (lambda x: x, Commuting("all", True)),
    "halving": (lambda x: -0.5 * x, Commuting("all", True)),
    "affine": (lambda x: 2 * x - 1, Commuting("row sums one", False)),
    "constant": (lambda x: 0 * x + 3, Commuting("row sums one", False)),
    "relu": (torch.relu, Commuting("scaled permutation", True)),
    "leaky": (nn.LeakyReLU(0.2), Commuting("scaled permutation", True)),
    "absolute": (torch.abs, Commuting("scaled permutation", True)),
    "tanh": (torch.tanh, Commuting("signed permutation", True)),
    "sine": (torch.sin, Commuting("signed permutation", True)),
    "cube": (lambda x: x**3, Commuting("signed permutation", True)),
    "square": (torch.square, Commuting("permutation", True)),
    "gelu": (F.gelu, Commuting("permutation", True)),
    "sigmoid": (torch.sigmoid, Commuting("permutation", False)),
    "shifted tanh": (lambda x: torch.tanh(x) + 1, Commuting("permutation", False)),
    "cosine": (torch.cos, Commuting("permutation", False)),
}

MATRICES = {
    "permutation": [[0, 1], [1, 0]],
    "signs": [[0, -1], [1, 0]],
    "scales": [[2, 0], [0, 3]],
    "negative": [[-1, 0], [0, -1]],
    "twice": [[2, 0], [0, 2]],
    "row of zeros": [[0, 1], [0, 0]],
    "mean": [[0.5, 0.5], [1, 0]],
    "any": [[1, 2], [-3, 0.7]],
    "wide": [[0, 0, 1], [1, 0, 0]],
    "copied": [[1, 0], [1, 0]],
}


@pytest.mark.parametrize("name", ACTS)
def test_classes_hold_exactly_what_commutes(name: str) -> None:
    act, wanted = ACTS[name]
    found = commuting_class(act)
    assert found == wanted
    for what, m in MATRICES.items():
        assert found.contains(np.array(m, float)) == commutes(act, np.array(m, float)), what


def test_facts_of_the_paper() -> None:
    assert commutes(torch.tanh, np.array([[0.0, -1], [1, 0]]))
    assert not commutes(torch.tanh, 2 * np.eye(2))
    assert commutes(torch.relu, np.diag([2.0, 3.0]))
    assert not commutes(torch.relu, -np.eye(2))
    x = torch.randn(200, 2).double()
    quarter = TURN[None]
    assert equivariance_error(torch.relu, quarter, quarter, x) > 0.5
    assert equivariance_error(torch.tanh, quarter, quarter, x) < 1e-15


def test_error_is_the_largest_gap_beside_the_largest_output() -> None:
    x = torch.tensor([[3.0, -4.0]]).double()
    minus = -np.eye(2)[None]
    # relu(-x) + relu(x) = |x|, of length 5, and relu(x) = (3, 0)
    assert equivariance_error(torch.relu, minus, minus, x) == pytest.approx(5 / 3)
    assert equivariance_error(torch.abs, minus, -minus, x) == 0  # another representation behind it
    assert equivariance_error(lambda rows: rows.sum(1, keepdim=True), TURN[None], np.ones((1, 1, 1)), x) > 0.5


def admissible(name: str, act: str) -> bool:
    rho, algebra = representations()[name]
    return decide(rho, ACTIVATIONS[act], algebra).admissible


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_verdicts(act: str) -> None:
    odd = act in ("tanh", "cube")
    for name in ("S3 on R^3", "C4, regular", "D4, corners", "SO(2), frequency 0"):
        assert admissible(name, act)
    for name in ("C4, quarter turn", "D4, plane"):
        assert admissible(name, act) == odd
    for name in ("S3, plane", "SO(2), frequency 1"):
        assert not admissible(name, act)


def test_affine_activations_need_a_vector_that_stays() -> None:
    turns = dihedral(5)
    affine, linear = ACTS["affine"][0], ACTS["identity"][0]
    verdict = decide(turns, affine)
    assert verdict.here  # permutations leave (1, ..., 1) alone
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    other = q @ turns @ q.T
    verdict = decide(other, affine)
    assert verdict.admissible
    assert not verdict.here
    assert verdict.basis is not None
    moves = elements(other, None)
    assert (
        equivariance_error(in_coordinates(affine, verdict.basis), moves, moves, torch.randn(50, 5).double())
        < 1e-12
    )
    assert not decide(TURN[None], affine).admissible
    assert decide(TURN[None], linear).here
    # around an axis of space, a field of rotations leaves the axis
    field = np.zeros((1, 3, 3))
    field[0, :2, :2] = TURN
    found = decide(np.eye(3)[None], affine, field)
    assert found.admissible
    assert not found.here
    assert found.basis is not None
    moves = elements(np.eye(3)[None], field)
    assert (
        equivariance_error(in_coordinates(affine, found.basis), moves, moves, torch.randn(50, 3).double())
        < 1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_hidden_coordinates_are_found(seed: int) -> None:
    """Sums of permutation representations in random coordinates."""
    draw = np.random.default_rng(seed)
    one, two = symmetric(3), np.stack([np.array([[0.0, 1], [1, 0]]), np.eye(2)])  # S3 and its sign, as a swap
    rho = np.zeros((2, 6, 6))
    rho[:, :3, :3], rho[:, 3:5, 3:5], rho[:, 5, 5] = one, two, 1
    basis = draw.standard_normal((6, 6))
    moved_rho = basis @ rho @ np.linalg.inv(basis)
    verdict = decide(moved_rho, torch.relu, seed=seed)
    assert verdict.admissible
    assert not verdict.here
    assert verdict.basis is not None
    inside = np.linalg.solve(verdict.basis, moved_rho @ verdict.basis)
    assert np.allclose(inside, inside.round(), atol=1e-8)
    assert verdict.commuting.contains(inside.round())
    assert sum(int(b.split()[2].rstrip(",")) for b in verdict.blocks) == 6


def test_signs_need_odd_activations_and_their_subgroups() -> None:
    """The plane with the mirror's sign: -1 is a signed permutation of one thing and no permutation."""
    sign = np.array([[[-1.0]]])
    assert decide(sign, torch.tanh).blocks == ("signed permutation of 1, stabiliser of order 2",)
    assert not decide(sign, torch.relu).admissible
    regular = np.diag([1.0, -1.0])[None]  # the exchange of two things, in other coordinates
    assert decide(regular, torch.relu).blocks == ("permutation of 2, stabiliser of order 1",)
    assert decide(regular, torch.tanh).here


def test_scaled_permutations_are_right_where_they_are() -> None:
    rho = np.array([[[0.0, 4.0], [0.25, 0.0]]])
    assert decide(rho, torch.relu).here
    assert not decide(rho, F.gelu).here
    assert decide(rho, F.gelu).admissible


def test_errors_agree_with_verdicts_in_random_coordinates() -> None:
    for name in ("S3, plane", "D4, plane", "SO(2), frequency 1"):
        for act in ("relu", "tanh"):
            yes, no = judged(*representations()[name], ACTIVATIONS[act], bases=3, seed=5)
            assert max(yes, default=0) < 1e-10
            assert min(no) > 1e-2


def test_elements_of_a_lie_algebra() -> None:
    found = elements(np.eye(2)[None], TURN[None])
    assert np.allclose(found[2], [[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
    assert np.allclose(found[1], expm(0.3 * TURN))
    assert found.shape == (3, 2, 2)


def test_hidden_spaces_of_permutations() -> None:
    found = {(s.order, s.size): s for s in hidden_spaces(4)}
    assert len(hidden_spaces(4)) == 11
    nodes, edges, regular = found[6, 4], found[2, 12], found[1, 24]
    assert (nodes.from_nodes, nodes.from_edges, nodes.from_itself) == (
        2,
        5,
        2,
    )  # 5 of Maron et al. for 2 -> 1
    assert nodes.fixing == 1
    assert (regular.from_nodes, regular.from_edges, regular.from_itself) == (4, 16, 24)
    assert regular.fixing == 3
    assert found[24, 1].fixing == 0
    assert edges.from_itself in (7, 8)
    beyond = [s for s in hidden_spaces(4) if s.fixing is None]
    assert len(beyond) == 7
    exchange = next(s for s in hidden_spaces(4) if s.fixing == 2)
    # edges are off-diagonal pairs (S_2) and nodes (S_3): 15 maps are 7 + 3 + 3 + 2
    assert exchange.from_itself == 7
    assert exchange.from_nodes == 3
    assert exchange.from_edges + nodes.from_edges == 15


def test_spaces_of_three_things() -> None:
    """S_3 has four classes of subgroups; only the one of turns is no stabiliser of things."""
    found = permutation_spaces(3)
    assert found.numbers == {"spaces": 4, "beyond": 1, "maps of tensors": 9, "maps beyond": 3}
    assert [s.size for s in found.details["spaces"]] == [6, 3, 2, 1]
    with pytest.raises(WorkingPapersError, match="1 to 5"):
        permutation_spaces(6)


def test_layers() -> None:
    assert layer_sizes(symmetric(4), symmetric(4)) == (2, 1)
    assert layer_sizes({"shift": cyclic(5)[0]}, {"shift": np.eye(1)}) == (1, 1)
    assert layer_sizes(cyclic(5), cyclic(5)) == (5, 1)


def test_finding() -> None:
    rho = symmetric(3)
    found = equivariant_pointwise({"swap": rho[0], "shift": rho[1]}, torch.relu)
    assert found.numbers == {"admissible": 1, "here": 1, "error": 0, "weights": 2, "biases": 1}
    assert "permutation of 3" in found.reading
    spins = equivariant_pointwise(np.eye(2)[None], torch.relu, TURN[None])
    assert (spins.numbers["admissible"], spins.numbers["weights"], spins.numbers["biases"]) == (0, 2, 0)
    assert spins.figure is None
    assert "no coordinates" in spins.reading
    turned = equivariant_pointwise(TURN[None], torch.tanh)
    assert turned.details["error_there"] < 1e-12


def test_rotations_of_features() -> None:
    x, angles = torch.randn(7, 2), torch.rand(7)
    assert torch.allclose(
        rotated(x, torch.tensor(math.pi / 2)), torch.stack([-x[:, 1], x[:, 0]], 1), atol=1e-6
    )
    h = torch.randn(7, STILL + 2 * PAIRS)
    once = moved(moved(h, angles), -angles)
    assert torch.allclose(once, h, atol=1e-6)
    assert torch.equal(moved(h, angles)[:, :STILL], h[:, :STILL])
    pair = moved(h, angles)[:, STILL : STILL + 2]
    assert torch.allclose(pair, rotated(h[:, STILL : STILL + 2], angles), atol=1e-6)


def test_orbit_share_and_error_of_known_layers() -> None:
    x, angles = torch.randn(50, 2), 6 * torch.rand(50)

    def turning(x: Tensor) -> Tensor:
        return torch.cat([torch.zeros(len(x), STILL), x.repeat(1, PAIRS)], 1)

    def still(x: Tensor) -> Tensor:
        return torch.cat([x.norm(dim=1, keepdim=True).expand(-1, STILL), torch.zeros(len(x), 2 * PAIRS)], 1)

    assert float(relative_error(turning, x, angles)) < 1e-10
    assert float(relative_error(still, x, angles)) < 1e-10
    assert orbit_share(turning, x) == pytest.approx(1, abs=1e-5)
    assert orbit_share(still, x) < 1e-10
    both = orbit_share(lambda x: turning(x) + still(x), x)
    assert both == pytest.approx(PAIRS / (STILL + PAIRS), abs=1e-5)
    wrong = relative_error(lambda x: turning(x).roll(STILL, 1), x, angles)
    assert float(wrong) > 0.1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: decide(np.eye(2), torch.relu), "one square matrix or more"),
        (lambda: decide(np.array([[[2.0]]]), torch.relu), "infinitely many"),
        (lambda: commuting_class(torch.log), "not finite"),
    ],
)
def test_refusals(call: Any, words: str) -> None:
    with pytest.raises(WorkingPapersError) as caught:
        call()
    assert words in str(caught.value)


def test_the_claims_are_the_records() -> None:
    own = claims("equivariant_pointwise").values()
    assert [c.says for c in own] == [c["says"] for c in record("equivariant_pointwise").claims]
