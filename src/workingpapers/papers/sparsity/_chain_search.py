"""Searching chains of layers: the moves, a tree search over them, and random chains to compare with."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.papers.sparsity._layer_chains import Chain

Objective = Callable[[Chain], float]


@dataclass(frozen=True)
class Trial:
    """A chain that was tried, and what the objective gave: -inf where it failed."""

    point: Chain
    value: float


@dataclass(frozen=True)
class ChainSpace:
    """The chains that moves lead to from all layers in their order.

    A move leaves out, or runs again up to so many times, a block of neighbours of the chain.

    Args:
        layers: how many, N.
        cap: longest chain, in units of N.
        sizes: lengths of blocks.
        repeats: how many times more a block is run.
    """

    layers: int
    cap: float = 2.0
    sizes: tuple[int, ...] = (1, 2, 3, 4)
    repeats: tuple[int, ...] = (1, 2, 3, 4)

    @property
    def root(self) -> Chain:
        """All layers in their order."""
        return tuple(range(self.layers))

    @property
    def longest(self) -> int:
        """The longest chain that is allowed."""
        return int(self.cap * self.layers)

    def move(self, chain: Chain, chance: random.Random) -> Chain:
        """Return the chain after a legal move, drawn at random; the two sorts are equally likely."""
        skips = [s for s in self.sizes if s < len(chain)]
        room = self.longest - len(chain)
        again = [(s, r) for s in self.sizes for r in self.repeats if s * r <= room and s <= len(chain)]
        if not skips and not again:
            raise WorkingPapersError(f"no move is legal from the chain {list(chain)}")
        if skips and (not again or chance.random() < 0.5):
            size = chance.choice(skips)
            start = chance.randint(0, len(chain) - size)
            return chain[:start] + chain[start + size :]
        size, times = chance.choice(again)
        start = chance.randint(0, len(chain) - size)
        return chain[:start] + chain[start : start + size] * times + chain[start:]

    def sample(self, seed: int) -> Chain:
        """Return the chain after one to four random moves."""
        chance = random.Random(seed)
        chain = self.root
        for _ in range(chance.randint(1, 4)):
            chain = self.move(chain, chance)
        return chain


@dataclass
class Node:
    """A chain in the tree: visits, of which `ended` stopped here, the sum of rewards, and its own value."""

    chain: Chain
    parent: "Node | None" = None
    children: list["Node"] = field(default_factory=list)
    visits: int = 0
    ended: int = 0
    total: float = 0.0
    value: float = 0.0


def score(node: Node, layers: int, exploration: float, length_weight: float) -> float:
    """Return Q / n + c sqrt(ln N / n) - lambda length / layers, N the visits of the parent."""
    assert node.parent is not None
    explored = math.sqrt(math.log(node.parent.visits) / node.visits)
    return node.total / node.visits + exploration * explored - length_weight * len(node.chain) / layers


def _evaluated(objective: Objective, chain: Chain) -> float:
    try:
        value = float(objective(chain))
    except Exception:  # a chain that cannot be run is a result: the worst there is
        return -math.inf
    return -math.inf if math.isnan(value) else value


class Tree:
    """A search in progress; `root` is the tree, `trials` what was evaluated, in order."""

    def __init__(
        self, space: ChainSpace, objective: Objective, seed: int, exploration: float, length_weight: float
    ) -> None:
        self.space, self.objective = space, objective
        self.exploration, self.length_weight = exploration, length_weight
        self.chance = random.Random(seed)
        self.root = Node(space.root)
        self.known: dict[Chain, float] = {}
        self.trials: list[Trial] = []

    def simulate(self, earlier: Sequence[Trial] = ()) -> None:
        """Go down the tree, add a chain that was not seen, evaluate it, and count it on the way back.

        A node takes a new child while it has fewer than the square root of twice its visits; the first
        simulation evaluates the root.  Values of `earlier` trials are not asked for again.
        """
        node = self.root
        if self.root.visits:
            while node.children and len(node.children) ** 2 >= 2 * node.visits:
                node = max(node.children, key=self._score)
            node = self._child(node)
        if node.chain not in self.known:
            done = len(self.trials)
            same = done < len(earlier) and earlier[done].point == node.chain
            value = earlier[done].value if same else _evaluated(self.objective, node.chain)
            self.known[node.chain] = value
            self.trials.append(Trial(node.chain, value))
        finite = [v for v in self.known.values() if math.isfinite(v)]
        reward = self.known[node.chain]
        reward = reward if math.isfinite(reward) else min(finite, default=0.0)
        node.ended += 1
        back: Node | None = node
        while back is not None:
            back.visits, back.total = back.visits + 1, back.total + reward
            back = back.parent

    def _score(self, node: Node) -> float:
        return score(node, self.space.layers, self.exploration, self.length_weight)

    def _child(self, node: Node) -> Node:
        """Return a new child with a chain that nothing has yet; the node itself where none is found soon."""
        for _ in range(30):
            chain = self.space.move(node.chain, self.chance)
            if chain not in self.known:
                node.children.append(Node(chain, node))
                return node.children[-1]
        return node


def mcts(
    space: ChainSpace,
    objective: Objective,
    budget: int = 100,
    seed: int = 0,
    trials: Sequence[Trial] | None = None,
    exploration: float = 1.8,
    mode: str = "length",
    length_weight: float | None = None,
) -> list[Trial]:
    """Search chains with a large objective by Monte Carlo tree search and return all trials.

    Args:
        space: which chains there are.
        objective: chain -> number, such as 1 where the answer is right and 0 where not.
        budget: evaluations in all, with those in `trials`.
        seed: decides everything that is drawn.
        trials: those of an earlier call, to go on from.
        exploration: c.
        mode: "length" prefers short chains (lambda = 1), "accuracy" does not (lambda = 0).
        length_weight: another lambda.
    """
    if mode not in ("length", "accuracy"):
        raise unknown("mode of the search", mode, ("length", "accuracy"))
    weight = (1.0 if mode == "length" else 0.0) if length_weight is None else length_weight
    tree = Tree(space, objective, seed, exploration, weight)
    for _ in range(4 * budget):
        if len(tree.trials) >= budget:
            break
        tree.simulate(trials or ())
    return tree.trials


def random_chains(space: ChainSpace, objective: Objective, budget: int = 100, seed: int = 0) -> list[Trial]:
    """Try the root and then random chains, none twice, as many as the budget allows."""
    found, chance = {space.root: _evaluated(objective, space.root)}, random.Random(seed)
    for _ in range(20 * budget):
        if len(found) >= budget:
            break
        chain = space.sample(chance.getrandbits(32))
        if chain not in found:
            found[chain] = _evaluated(objective, chain)
    return [Trial(chain, value) for chain, value in found.items()]


def distance(one: Chain, other: Chain) -> int:
    """Return in how many insertions, deletions and exchanges of layers two chains differ."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def near_a_chain() -> tuple[ChainSpace, Objective, float]:
    """Return chains of eight layers with moves of one layer, and how near each is to a short one."""
    target = (1, 4)
    return ChainSpace(8, sizes=(1,), repeats=(1,)), lambda chain: -3.0 * distance(chain, target), 0.0
