"""Perceptrons as chains of matrices with ReLU between, and the classical bounds on what they generalise.

A bias is a column for a constant input of 1, which a row (0, ..., 0, 1) of each hidden layer hands on; so every
formula for nets without biases holds for nets with them.  Everything is float64.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from workingpapers.errors import WorkingPapersError

Chain = list[Tensor]


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of a sequence of linear layers with one ReLU between any two.

    Flatten, Dropout and Identity may stand anywhere.

    Raises:
        WorkingPapersError: for any other model.
    """
    parts = [m for m in model.modules() if not list(m.children())]
    parts = [m for m in parts if not isinstance(m, nn.Flatten | nn.Dropout | nn.Identity)]
    fits = isinstance(model, nn.Sequential) and len(parts) % 2 == 1
    for i, part in enumerate(parts):
        fits = fits and isinstance(part, nn.ReLU if i % 2 else nn.Linear)
    if not fits:
        raise WorkingPapersError(
            "the bound reads an nn.Sequential of Linear layers with one ReLU between any two; "
            f"got {type(model).__name__} of {', '.join(type(p).__name__ for p in parts) or 'nothing'}"
        )
    return [part for part in parts if isinstance(part, nn.Linear)]


@torch.no_grad()
def chain_of(model: nn.Module) -> Chain:
    """Return the matrices of a perceptron, (out, in) each, biases as their last column."""
    layers = linear_layers(model)
    biased = any(layer.bias is not None for layer in layers)
    chain = []
    for number, layer in enumerate(layers):
        weight = layer.weight.detach().double() * getattr(layer, "mask", 1)
        if biased:
            bias = torch.zeros(len(weight)).to(weight) if layer.bias is None else layer.bias.detach().double()
            weight = torch.cat([weight, bias[:, None]], 1)
            if number + 1 < len(layers):
                last = torch.zeros(1, weight.shape[1]).to(weight)
                last[0, -1] = 1
                weight = torch.cat([weight, last])
        chain.append(weight)
    return chain


def inputs_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return inputs (N, ...) as rows for the chain's first matrix, with the constant 1 where there are biases."""
    layers = linear_layers(model)
    rows = x.detach().flatten(1).double()
    if rows.shape[1] != layers[0].in_features:
        raise WorkingPapersError(f"the first layer takes {layers[0].in_features} inputs; got {rows.shape[1]}")
    if any(layer.bias is not None for layer in layers):
        rows = torch.cat([rows, torch.ones(len(rows), 1).to(rows)], 1)
    return rows


def run(chain: Chain, rows: Tensor) -> list[Tensor]:
    """Return what each layer gives for the rows, before its ReLU; the last is the output."""
    found, h = [], rows
    for weight in chain:
        found.append(h @ weight.T)
        h = found[-1].relu()
    return found


def spectral(matrix: Tensor) -> float:
    """Return the largest singular value."""
    return float(torch.linalg.matrix_norm(matrix, 2)) if matrix.numel() else 0.0


def gaps(deltas: Sequence[float], lengths: Sequence[Tensor], norms: Sequence[float]) -> Tensor:
    """Bound for each example how far outputs move when layer l moves by at most deltas[l] in operator norm.

    e_l = norms[l] e_{l-1} + deltas[l] lengths[l],   e_0 = 0

    lengths[l]: (N,) length of layer l's input in the original, or a bound on it; norms[l]: of the moved layer.
    """
    gap = torch.zeros_like(lengths[0])
    for delta, length, norm in zip(deltas, lengths, norms, strict=True):
        gap = norm * gap + delta * length
    return gap


def reach(chain: Chain, rows: Tensor) -> list[Tensor]:
    """Return bounds (N,) on the lengths of the layers' inputs: |x| times the norms of the layers before."""
    found = [rows.norm(dim=1)]
    for weight in chain[:-1]:
        found.append(found[-1] * spectral(weight))
    return found


def lengths(chain: Chain, rows: Tensor) -> list[Tensor]:
    """Return the lengths (N,) of the layers' inputs as they are."""
    return [rows.norm(dim=1), *(z.relu().norm(dim=1) for z in run(chain, rows)[:-1])]


def margins(outputs: Tensor, y: Tensor) -> Tensor:
    """Return by how much the right class is above the best other one, (N,)."""
    right = outputs.gather(1, y[:, None])[:, 0]
    return right - outputs.scatter(1, y[:, None], -math.inf).amax(1)


def golowich(chain: Chain, rows: Tensor, margin: float) -> float:
    """Product of Frobenius norms: B sqrt(d) prod |W|_F / (margin sqrt(n)) (Golowich, Rakhlin & Shamir, 2018)."""
    product = math.prod(float(w.norm()) for w in chain)
    return float(rows.norm(dim=1).max()) * math.sqrt(len(chain)) * product / (margin * math.sqrt(len(rows)))


def bartlett(chain: Chain, rows: Tensor, margin: float) -> float:
    """Spectral margin: |X|_F ln(h) prod |W|_2 (sum (|W^T|_21 / |W|_2)^2/3)^3/2 / (margin n).

    Bartlett, Foster & Telgarsky, 2017.  The reference matrices are 0; |W^T|_21 sums the lengths of the
    rows; h is the largest width.
    """
    norms = [spectral(w) for w in chain]
    ratios = [float(w.norm(dim=1).sum()) / norm for w, norm in zip(chain, norms, strict=True)]
    whole = math.prod(norms) * math.pow(sum(r ** (2 / 3) for r in ratios), 1.5)
    width = max(max(w.shape) for w in chain)
    return float(rows.norm()) * math.log(width) * whole / (margin * len(rows))


def neyshabur(chain: Chain, rows: Tensor, margin: float) -> float:
    """PAC-Bayes: sqrt(B^2 d^2 h ln(d h) prod |W|_2^2 sum |W|_F^2 / |W|_2^2 / (margin^2 n)), B the longest input.

    Neyshabur, Bhojanapalli & Srebro, 2017.
    """
    norms, depth, width = [spectral(w) for w in chain], len(chain), max(max(w.shape) for w in chain)
    ratios = sum((float(w.norm()) / norm) ** 2 for w, norm in zip(chain, norms, strict=True))
    most = float(rows.norm(dim=1).max()) * math.prod(norms)
    return depth * most * math.sqrt(width * math.log(depth * width) * ratios / len(rows)) / margin


def arora(chain: Chain, rows: Tensor, margin: float, examples: int = 64) -> float:
    """Compression: c d max |f(x)| sqrt(sum 1 / (mu_l mu_l->)^2 / n) / margin (Arora et al., 2018, Theorem 4.1).

    mu_l = |W h| / (|W|_F |h|) is the layer cushion, mu_l-> the smallest interlayer cushion |J z| / (|J|_F |z|) of
    the maps J from what layer l gives to what a later one does (1 / sqrt(width) for l itself), c the largest ratio
    |z| / |relu(z)| = the activation contraction; each the worst of the first `examples` rows.
    """
    few = rows[:examples]
    before = run(chain, few)
    after = [few, *(z.relu() for z in before)]
    contraction, total = 1.0, 0.0
    for number, weight in enumerate(chain):
        cushion = float((before[number].norm(dim=1) / (weight.norm() * after[number].norm(dim=1))).min())
        later = 1 / math.sqrt(len(weight))
        jacobian: Tensor | None = None
        for k in range(number + 1, len(chain)):
            gate = (before[k - 1] > 0).double()  # (N, width)
            gated = chain[k] * gate[:, None]
            jacobian = gated if jacobian is None else gated @ jacobian
            moved = torch.einsum("noi,ni->no", jacobian, before[number])
            size = jacobian.flatten(1).norm(dim=1) * before[number].norm(dim=1)
            later = min(later, float((moved.norm(dim=1) / size).min()))
        if number + 1 < len(chain):
            contraction = max(
                contraction, float((before[number].norm(dim=1) / after[number + 1].norm(dim=1)).max())
            )
        total += (cushion * later) ** -2 if cushion * later > 0 else math.inf
    largest = float(run(chain, rows)[-1].norm(dim=1).max())
    return contraction * len(chain) * largest * math.sqrt(total / len(rows)) / margin


RIVALS: dict[str, Callable[[Chain, Tensor, float], float]] = {
    "Golowich": golowich,
    "Bartlett": bartlett,
    "Neyshabur": neyshabur,
    "Arora": arora,
}
