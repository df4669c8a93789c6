"""Pointwise activations in equivariant networks: in which coordinates, if in any, is act(rho(g) x) = rho(g) act(x)?

    act            commutes with                              so rho must be, up to coordinates
    linear         every matrix                               anything
    affine         matrices whose rows sum to 1               anything that leaves a vector alone
    odd            signed permutations                        a sum of signed permutations
    homogeneous    positively scaled permutations             a sum of permutations
    other          permutations                               a sum of permutations

A connected compact group moves coordinates continuously, so it cannot permute them: with a pointwise activation
that is not affine, its hidden representations are trivial, and networks equivariant under rotations are invariant.

Paper: "A Characterization Theorem for Equivariant Networks with Point-wise Activations" (2024), arXiv 2401.09235;
the classes are derived here (see `commuting_class`), not copied from its theorem.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claim, paper
from workingpapers.engines.groups import cyclic, dihedral, equivariant_basis, fixed_vectors, symmetric
from workingpapers.errors import WorkingPapersError
from workingpapers.experiments import Evidence, Finding, all_of, at_least, at_most
from workingpapers.papers.geometry._commuting import Activation, Array, values
from workingpapers.papers.geometry._monomial import Generators, decide, hidden_spaces, stacked
from workingpapers.papers.geometry._orbits import collapse
from workingpapers.tasks import Budget

TURN = np.array([[0.0, -1.0], [1.0, 0.0]])


def equivariance_error(
    function: Callable[[Tensor], Tensor], rho_in: Array, rho_out: Array, x: Tensor
) -> float:
    """Return the largest ||f(rho(g) x) - rho'(g) f(x)|| over matrices g and rows of x, beside the largest ||f(x)||.

    Args:
        function: any function or model of rows (n, v) to rows (n, w), in float64.
        rho_in, rho_out: matrices (k, v, v) and (k, w, w) of the same elements.
        x: rows (n, v).
    """
    with torch.no_grad():
        plain = function(x)
        gaps = [
            (function(x @ torch.from_numpy(a).T) - plain @ torch.from_numpy(b).T).norm(dim=1).max()
            for a, b in zip(stacked(rho_in), stacked(rho_out), strict=True)
        ]
    return float(max(gaps)) / max(float(plain.norm(dim=1).max()), 1e-300)


def in_coordinates(act: Activation, basis: Array) -> Callable[[Tensor], Tensor]:
    """Return the function of rows x -> P act(P^-1 x): the activation in coordinates with P's columns as axes."""
    there, back = torch.from_numpy(np.linalg.inv(basis)).T, torch.from_numpy(np.ascontiguousarray(basis)).T
    return lambda x: values(act, x @ there) @ back


def elements(rho: Array, algebra: Array | None) -> Array:
    """Return generators (k, d, d) and, of a Lie algebra (l, d, d), the elements at 0.3 and 1 along each."""
    from scipy.linalg import expm

    if algebra is None:
        return rho
    return np.concatenate([rho, *(expm(t * algebra) for t in (0.3, 1.0))])


def _points(d: int, seed: int, count: int = 1000) -> Tensor:
    return torch.randn(count, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _example(generator: torch.Generator) -> tuple[Any, ...]:
    turned = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))[0]
    rho = torch.from_numpy(symmetric(3))
    return turned @ rho @ turned.T, torch.relu


def _other_order(rho: Tensor, act: Any) -> tuple[Any, ...]:
    return rho.flip(0), act


@paper(
    "equivariant_pointwise",
    example=_example,
    invariances={"order of the generators": _other_order},
)
def equivariant_pointwise(
    rho: Generators, act: Activation, algebra: Generators | None = None, seed: int = 0
) -> Finding:
    """Decide whether a pointwise activation can be equivariant under a representation, and in which coordinates.

    Args:
        rho: matrices (k, d, d) of the generators of a finite group, or by name in a mapping; of a compact group the
            matrices of one element for each component, such as the identity's.
        act: a continuous function of tensors, applied to each coordinate.
        algebra: matrices (l, d, d) of the generators of a compact group's Lie algebra.
        seed: decides points and coordinates.

    The numbers: `admissible` and `here` (in the given coordinates), 0 or 1; the `error` of the activation in the
    given coordinates on 1000 Gaussian points; `weights` and `biases` that an equivariant affine layer from rho to
    itself has.  `details` has the `verdict`, the new `basis`, rho in it, and the `error_there`.
    """
    gens = stacked(rho)
    fields = None if algebra is None else stacked(algebra)
    verdict = decide(gens, act, fields, seed)
    x, moves = _points(gens.shape[1], seed), elements(gens, fields)
    details: dict[str, Any] = {"verdict": verdict, "basis": verdict.basis}
    if verdict.basis is not None:
        details["rho"] = np.linalg.solve(verdict.basis, gens @ verdict.basis)
        details["error_there"] = equivariance_error(in_coordinates(act, verdict.basis), moves, moves, x)
    every = gens if fields is None else np.concatenate([gens - np.eye(gens.shape[1]), fields])
    maps = equivariant_basis(every, every)
    still = fixed_vectors(moves)
    numbers = {
        "admissible": float(verdict.admissible),
        "here": float(verdict.here),
        "error": equivariance_error(lambda rows: values(act, rows), moves, moves, x),
        "weights": float(len(maps)),
        "biases": float(len(still)),
    }
    where = (
        "the given coordinates"
        if verdict.here
        else "other coordinates"
        if verdict.admissible
        else "no coordinates"
    )
    parts = f", as {' and '.join(verdict.blocks)}" if verdict.blocks else ""
    return Finding(
        numbers,
        f"The activation commutes with {verdict.commuting.family} matrices and is equivariant in {where}{parts}.",
        partial(_draw, details["rho"]) if verdict.admissible else None,
        details,
    )


def _draw(rho: Array) -> Any:
    from matplotlib import pyplot

    figure, row = pyplot.subplots(1, len(rho), figsize=(3 * len(rho), 3), squeeze=False, layout="constrained")
    for i, (axes, matrix) in enumerate(zip(row[0], rho, strict=True)):
        shown = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu")
        axes.set(title=f"generator {i}", xlabel="coordinate", ylabel="goes to")
    figure.colorbar(shown, ax=list(row[0]))
    return figure


@paper("equivariant_pointwise", part="spaces", kind="analysis", example=lambda generator: (3,))
def permutation_spaces(n: int) -> Finding:
    """List the hidden spaces R[S_n / H] that a ReLU network equivariant under all orders of `n` things may have.

    The numbers: how many `spaces` there are, one for each class of subgroups H, how many lie `beyond` the tensors
    that invariant graph networks use, and the most linear maps from edges, R^(n x n), to one of each sort.
    `details["spaces"]` has a `HiddenSpace` of each.
    """
    if not 1 <= n <= 5:
        raise WorkingPapersError(f"subgroups are listed of the orders of 1 to 5 things; got {n}")
    spaces = hidden_spaces(n)
    beyond = [s for s in spaces if s.fixing is None]
    numbers = {
        "spaces": float(len(spaces)),
        "beyond": float(len(beyond)),
        "maps of tensors": float(max(s.from_edges for s in spaces if s.fixing is not None)),
        "maps beyond": float(max((s.from_edges for s in beyond), default=0)),
    }
    return Finding(
        numbers,
        f"Of {len(spaces)} spaces on which {n} things are permuted, {len(beyond)} are no tensors over the things.",
        None,
        {"spaces": spaces},
    )


def representations() -> dict[str, tuple[Array, Array | None]]:
    """Return the claim's representations by name: generators, and a Lie algebra where the group is SO(2)."""
    third = 2 * math.pi / 3
    rotation = np.array([[math.cos(third), -math.sin(third)], [math.sin(third), math.cos(third)]])
    mirror = np.diag([1.0, -1.0])
    return {
        "S3 on R^3": (symmetric(3), None),
        "S3, plane": (np.stack([mirror, rotation]), None),
        "C4, regular": (cyclic(4), None),
        "C4, quarter turn": (TURN[None], None),
        "D4, corners": (dihedral(4), None),
        "D4, plane": (np.stack([TURN, mirror]), None),
        "SO(2), frequency 1": (np.eye(2)[None], TURN[None]),
        "SO(2), frequency 0": (np.eye(2)[None], np.zeros((1, 2, 2))),
    }


ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "tanh": torch.tanh,
    "cube": lambda x: x**3,
    "gelu": nn.GELU(),
}


def judged(
    rho: Array, algebra: Array | None, act: Activation, bases: int, seed: int
) -> tuple[list[float], list[float]]:
    """Return the errors where `decide` says yes and where it says no, over coordinates: given, random, and found.

    In each of the coordinates the verdict for those is compared; the coordinates that it finds are a yes.
    """
    draw, d = np.random.default_rng(seed), rho.shape[1]
    x = _points(d, seed)
    yes: list[float] = []
    no: list[float] = []
    for i in range(bases + 1):
        basis = np.eye(d) if i == 0 else draw.standard_normal((d, d))
        inverse = np.linalg.inv(basis)
        moved, fields = inverse @ rho @ basis, None if algebra is None else inverse @ algebra @ basis
        verdict, moves = decide(moved, act, fields, seed), elements(moved, fields)
        (yes if verdict.here else no).append(equivariance_error(partial(values, act), moves, moves, x))
        if verdict.basis is not None:
            yes.append(equivariance_error(in_coordinates(act, verdict.basis), moves, moves, x))
    return yes, no


@claim(
    "equivariant_pointwise",
    "A theorem lists every combination of representation, coordinates and point-wise activation that gives an "
    "exactly equivariant layer; ReLU fails for some symmetries.",
    seeds=3,
    holds=all_of(
        at_most(1e-10, of="error_yes", by="every"),
        at_least(1e-2, of="error_no", by="every"),
        at_least(1, of="relu_fails", by="every"),
    ),
)
def verdicts_against_errors(budget: Budget, seed: int) -> Evidence:
    """Eight representations, five activations, given and random coordinates: errors on 1000 points by verdict.

    `relu_fails` counts the representations for which no coordinates suit ReLU.
    """
    yes: list[float] = []
    no: list[float] = []
    fails = 0
    for rho, algebra in representations().values():
        for name, act in ACTIVATIONS.items():
            right, wrong = judged(rho, algebra, act, budget.pick(quick=20, full=50), seed)
            yes, no = yes + right, no + wrong
            fails += name == "relu" and not decide(rho, act, algebra).admissible
    return Evidence(error_yes=max(yes), error_no=min(no), relu_fails=fails, yes=len(yes), no=len(no))


@claim(
    "equivariant_pointwise",
    "Networks with point-wise activations that are rotation equivariant, or equivariant under any connected "
    "compact group, can only be invariant.",
    seeds=5,
    holds=all_of(
        at_most(1e-3, of="error", by="every"),
        at_most(1e-2, of="orbit_share", by="every"),
        at_least(0.1, of="orbit_share_free", by="every"),
    ),
)
def rotations_collapse(budget: Budget, seed: int) -> Evidence:
    """Two ReLU layers on the plane, trained on vectors that turn with the input, under a growing penalty.

    That is the layers' relative error of equivariance, half of the features to be invariant and half to turn.
    Of the mean square of the features: what varies along orbits, with the largest penalty and without any.
    """
    steps = budget.pick(quick=1000, full=5000)
    found = [collapse(weight, steps, seed) for weight in (0.0, 1.0, 10.0, 100.0, 1000.0)]
    return Evidence(
        error=found[-1]["error"],
        orbit_share=found[-1]["orbit_share"],
        orbit_share_free=found[0]["orbit_share"],
        turning=found[-1]["turning"],
        turning_free=found[0]["turning"],
        loss=found[-1]["loss"],
        loss_free=found[0]["loss"],
    )
