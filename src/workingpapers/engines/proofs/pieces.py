"""Exact answers on small boxes: where few ReLUs change sign, the network is one of a few affine maps.

Each pattern of signs gives an affine map on the part of the box where the signs hold.  Whether the property breaks
there is a question of linear inequalities: weights on them that sum to something positive everywhere are a proof
that they have no common point.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workingpapers.engines.bounds.affine import Affine
from workingpapers.engines.bounds.graph import Elementwise, Graph
from workingpapers.engines.bounds.region import Box
from workingpapers.engines.bounds.straight import LeakyReLU
from workingpapers.engines.proofs.certificate import Tree
from workingpapers.engines.proofs.problem import Problem

ROUNDING = 1e-11  # of the sizes of what is summed, in float64


@dataclass(frozen=True)
class Part:
    """Boxes to bound; what is known of nodes over the larger boxes that they came from; what is not excluded.

    `known` are lower and upper bounds (subs, *shape) by node, `alive` the groups (subs, groups) that may be broken.
    `number` counts bounded boxes: those that these were halved from, until they are bounded; -1 for none.
    """

    box: Box
    known: dict[int, tuple[Tensor, Tensor]]
    alive: Tensor
    number: Tensor

    def __getitem__(self, chosen: Tensor | slice) -> "Part":
        """Return some of the boxes."""
        known = {place: (low[chosen], high[chosen]) for place, (low, high) in self.known.items()}
        return Part(self.box[chosen], known, self.alive[chosen], self.number[chosen])


def is_piecewise_linear(graph: Graph) -> bool:
    """Return whether all that is not affine in a graph is ReLU or leaky ReLU."""
    return all(
        node.operation is None
        or isinstance(node.operation, Affine)
        or (isinstance(node.operation, Elementwise) and isinstance(node.operation.function, LeakyReLU))
        for node in graph.nodes
    )


def separated(
    rows: Tensor,
    offsets: Tensor,
    boxes: Box,
    valid: Tensor | None = None,
    steps: int = 64,
    proof: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return where inequalities rows @ x + offsets <= 0 surely share no point of a box, and points nearest to one.

    The weights of the inequalities climb by Polyak's steps towards a positive sum, which is a proof.

    Args:
        rows: (subs, n, inputs).
        offsets: (subs, n).
        boxes: of the inputs.
        valid: which inequalities there are, (subs, n); all by default.
        steps: of the ascent, at most.
        proof: filled with the weights (subs, n) that are a proof, where there is one.
    """
    middle, radius = boxes.middle.flatten(1), boxes.radius.flatten(1)
    valid = torch.ones_like(offsets, dtype=torch.bool) if valid is None else valid
    values = offsets + (rows @ middle[..., None])[..., 0]
    sizes = (rows.abs() * boxes.size().flatten(1)[:, None]).sum(2) + offsets.abs()
    rounding = max(ROUNDING, 4 * (rows.shape[1] + rows.shape[2] + 8) * torch.finfo(rows.dtype).eps)
    # of one size each, so that none outweighs the others
    unit = (1 / sizes.clamp(min=torch.finfo(rows.dtype).tiny)).masked_fill(~valid, 0)
    reach, values = rows * (radius[:, None] * unit[..., None]), values * unit
    proved = _by_pairs(reach, values, rounding, valid, proof)
    average = torch.zeros_like(middle)
    left = (~proved).nonzero().flatten()
    weights = valid[left] / valid[left].sum(1, keepdim=True).to(offsets.dtype)
    for step in range(1, steps + 1):
        toward = -(weights[..., None] * reach[left]).sum(1).sign()
        average[left] += (toward - average[left]) / step
        there = values[left] + (reach[left] @ toward[..., None])[..., 0]
        total = (weights * there).sum(1)
        now = total > rounding * weights.sum(1)
        if bool(now.any()):
            if proof is not None:
                proof[left[now]] = weights[now]
            proved[left[now]] = True
            left, weights, there, total = left[~now], weights[~now], there[~now], total[~now]
        if len(left) == 0:
            break
        weights = _climbed(weights, there, total, valid[left])
    if proof is not None:
        proof *= unit
        proof /= proof.sum(1, keepdim=True).clamp(min=torch.finfo(proof.dtype).tiny)
    return proved, (middle + radius * average).reshape(boxes.lower.shape)


def _climbed(weights: Tensor, there: Tensor, total: Tensor, valid: Tensor) -> Tensor:
    """Return weights (subs, n) of sum 1 after a step that would bring their total to above 0, were it linear."""
    slope = there - there.sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    slope = slope.masked_fill(~valid, 0)
    length = -1.5 * total / slope.square().sum(1).clamp(min=torch.finfo(total.dtype).tiny)
    moved = weights + length.clamp(min=0)[:, None] * slope
    # the nearest point of the simplex: all less one number, not below 0
    falling = moved.masked_fill(~valid, -torch.inf).sort(1, descending=True).values
    excess = (falling.masked_fill(falling.isinf(), 0).cumsum(1) - 1) / torch.arange(1, falling.shape[1] + 1)
    # of NaN nothing is larger
    last = ((falling > excess).sum(1, keepdim=True) - 1).clamp(min=0)
    return (moved - excess.gather(1, last)).clamp(min=0).masked_fill(~valid, 0)


def _by_pairs(
    reach: Tensor, values: Tensor, rounding: float, valid: Tensor, proof: Tensor | None = None
) -> Tensor:
    """Return where two inequalities alone exclude each other: the best weights are at a kink of their sum."""
    n = values.shape[1]
    one, other = torch.triu_indices(n, n, 1, device=values.device)
    a, b = reach[:, one], reach[:, other]
    # where a number of the sum changes sign, (subs, pairs, inputs)
    share = (b / (b - a)).nan_to_num(0).clamp(0, 1)
    joint = share[..., None] * a[:, :, None] + (1 - share[..., None]) * b[:, :, None]
    level = share * values[:, one, None] + (1 - share) * values[:, other, None]
    least = level - joint.abs().sum(3) - rounding
    least = least.masked_fill(~(valid[:, one] & valid[:, other])[..., None], -torch.inf)
    found = (least > 0).flatten(1).any(1)
    if proof is not None and bool(found.any()):
        best = least[found].flatten(1).argmax(1)
        pair, weight = best // reach.shape[2], share[found].flatten(1).gather(1, best[:, None])
        whole = torch.zeros_like(proof[found]).scatter(1, one[pair][:, None], weight)
        proof[found] = whole.scatter(1, other[pair][:, None], 1 - weight)
    return found


def solved(problem: Problem, part: Part, most: int, tree: Tree | None = None) -> tuple[Tensor, Tensor]:
    """Return which boxes are proved piece by piece, and points (n, *shape) at which to look for a violation.

    Args:
        problem: of a piecewise linear graph, in float64.
        part: boxes, with bounds of what each ReLU reads.
        most: boxes with more open ReLUs than this are left alone.
        tree: notes the proofs.
    """
    boxes, known = part.box, part.known
    places = sorted(known)
    read = {node.inputs[0] for node in problem.graph.nodes if isinstance(node.operation, Elementwise)}
    if not places or not read <= set(places):  # affine, or a ReLU of the input or of moved numbers
        return torch.zeros(len(boxes.lower), dtype=torch.bool, device=boxes.lower.device), boxes.lower[:0]
    open_ones = torch.cat([((known[p][0] < 0) & (known[p][1] > 0)).flatten(1) for p in places], 1)
    number = open_ones.sum(1)
    few = (number <= most).nonzero().flatten()
    proved = torch.zeros(len(number), dtype=torch.bool, device=number.device)
    if len(few) == 0:
        return proved, boxes.lower[:0]
    # all patterns of each box's open ReLUs, one after the other
    counts = 2 ** number[few]
    owner = few.repeat_interleave(counts)
    pattern = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts).repeat_interleave(
        counts
    )
    rank = open_ones[owner].cumsum(1) - 1
    active = (pattern[:, None] >> rank.clamp(min=0)) & 1 == 1
    above = torch.cat([(known[p][0] >= 0).flatten(1) for p in places], 1)[owner]
    signs = torch.where(open_ones[owner], active, above)
    # open ones in their order, then others
    chosen = open_ones.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    there = open_ones.gather(1, chosen)
    wide = Box(boxes.lower[owner], boxes.upper[owner])
    rows, offsets, valid = _inequalities(problem, places, signs, chosen[owner], there[owner], wide.size())
    done = torch.ones(len(owner), dtype=torch.bool, device=owner.device)
    points, proofs = [], {}
    for place, (group, alive) in enumerate(zip(problem.groups, part.alive.unbind(1), strict=True)):
        these = torch.cat([group, torch.ones_like(there[0])])
        proof = None if tree is None else torch.zeros_like(offsets[:, these])
        apart, near = separated(rows[:, these], offsets[:, these], wide, valid[:, these], proof=proof)
        if proof is not None:
            proofs[place] = proof
        apart |= ~alive[owner]
        done &= apart
        points.append(near[~apart])
    proved[few] = True
    proved[owner[~done]] = False
    if tree is not None:
        _noted(tree, part, proved, torch.where(there, chosen, -1), owner, pattern, proofs)
    return proved, torch.cat(points)


def _noted(
    tree: Tree,
    part: Part,
    proved: Tensor,
    open_ones: Tensor,
    owner: Tensor,
    pattern: Tensor,
    proofs: dict[int, Tensor],
) -> None:
    """Note the pieces of the boxes that are proved."""
    kept = proved[owner]
    tree.leaves(part.number[proved], open_ones[proved])
    tree.pieces(
        part.number[owner[kept]],
        pattern[kept],
        {group: proof[kept] * part.alive[owner[kept], group, None] for group, proof in proofs.items()},
    )


def _inequalities(
    problem: Problem, places: list[int], signs: Tensor, chosen: Tensor, there: Tensor, reached: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows (n, rows + most, inputs) and offsets of the property and of the signs of the chosen ReLUs.

    Offsets are less what rounding may have added to the maps, for inputs no larger than `reached`.
    """
    graph = problem.graph
    inputs = graph.nodes[0].size
    sizes = [graph.nodes[p].size for p in places]
    by_place = dict(zip(places, signs.split(sizes, 1), strict=True))
    pieces = len(signs)
    # one affine map a piece: what each input does, and last the value at 0
    ways = torch.cat([torch.eye(inputs, dtype=graph.dtype), torch.zeros(1, inputs, dtype=graph.dtype)])
    ways = ways.to(signs.device).expand(pieces, -1, -1).reshape(-1, *graph.nodes[0].shape)
    maps, errors = [ways], [torch.zeros_like(reached)]
    most = torch.cat([reached.flatten(1), reached.new_ones(pieces, 1)], 1)[..., None]
    for node in graph.nodes[1:]:
        ins, wrong = [maps[i] for i in node.inputs], [errors[i] for i in node.inputs]
        if isinstance(node.operation, Affine):
            out = node.operation.forward(*ins).reshape(pieces, inputs + 1, -1)
            out[:, :-1] -= node.operation.offset.flatten()
            # the offset was added to every way and taken off again
            summed = [(m.reshape(pieces, inputs + 1, -1).abs() * most).sum(1) for m in ins]
            held = [t.reshape(w.shape) for t, w in zip(summed, wrong, strict=True)]
            added = node.operation.offset.abs() * most.sum(1).reshape(-1, *[1] * len(node.shape))
            eps = torch.finfo(graph.dtype).eps
            rounded = (node.operation.terms + 4) * eps * (node.operation.radius(*held) + added)
            errors.append(node.operation.radius(*wrong) + rounded)
        else:
            assert isinstance(node.operation, Elementwise)
            function = node.operation.function
            assert isinstance(function, LeakyReLU)
            on = by_place[node.inputs[0]][:, None]
            value = ins[0].reshape(pieces, inputs + 1, -1)
            out = torch.where(on, value, function.slope * value)
            errors.append(wrong[0])
        maps.append(out.reshape(-1, *node.shape))
    before = torch.cat([maps[p].reshape(pieces, inputs + 1, -1) for p in places], 2)
    side = torch.where(signs, -1.0, 1.0).to(graph.dtype)[:, None]  # active: -z <= 0
    ours = (side * before).gather(2, chosen[:, None].expand(-1, inputs + 1, -1))
    error = torch.cat([errors[p].flatten(1) for p in places], 1).gather(1, chosen)
    error = torch.cat([errors[-1].flatten(1), error], 1)
    whole = torch.cat([maps[-1].reshape(pieces, inputs + 1, -1), ours], 2).transpose(1, 2)
    rows_there = torch.ones(pieces, maps[-1].shape[-1], dtype=torch.bool, device=there.device)
    return whole[..., :-1], whole[..., -1] - error, torch.cat([rows_there, there], 1)
