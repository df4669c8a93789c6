"""Schemes of pruning by sorting, curvature against the full Hessian, unit graphs against networkx, the search."""

import random
from itertools import product

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.catalog import claims, make, record
from workingpapers.data import Split
from workingpapers.engines.masks import masks_of, weights_of
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._compressing import (
    hessian_diagonal,
    masks_by,
    prune,
    run_pruning,
    saliencies,
)
from workingpapers.papers.sparsity._genomes import CellNet, CellSpace, Genome, genetic_search, hidden_cell
from workingpapers.papers.sparsity._structures import Structure, random_graph
from workingpapers.papers.sparsity._unit_graphs import GraphNet, structure
from workingpapers.papers.sparsity.hidden_structure_sparse import hidden_structure_sparse, reached
from workingpapers.tasks import mlp


def network() -> nn.Sequential:
    model = mlp([6, 20, 10, 3], nn.Tanh)
    with torch.no_grad():
        model[3].weight.mul_(5.0)
    return model


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([w.flatten() for w in weights.values()])


def test_blind_has_one_threshold_and_uniform_one_share() -> None:
    model = network()
    weights = weights_of(model)
    blind = masks_by(model, 70, "class-blind")
    kept, sizes = flat(blind) != 0, flat(weights).abs()
    assert int(kept.sum()) == round(0.3 * len(sizes))
    assert float(sizes[~kept].max()) <= float(sizes[kept].min())
    uniform = masks_by(model, 70, "class-uniform")
    for name, mask in uniform.items():
        assert int(mask.sum()) == round(0.3 * mask.numel())
        own = weights[name].abs()
        assert float(own[mask == 0].max()) <= float(own[mask != 0].min())
    assert any(int(blind[n].sum()) != int(uniform[n].sum()) for n in blind)


def test_distribution_has_one_multiple_of_deviations_and_random_is_seeded() -> None:
    model = network()
    weights = weights_of(model)
    kept = flat(masks_by(model, 60, "class-distribution")) != 0
    ratio = torch.cat([(w.abs() / w.std()).flatten() for w in weights.values()])
    assert int(kept.sum()) == round(0.4 * len(ratio))
    assert float(ratio[~kept].max()) <= float(ratio[kept].min())
    one, other, third = (flat(masks_by(model, 50, "random", seed=s)) for s in (1, 1, 2))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert float(one.sum()) == round(len(one) / 2)


def test_saliency_is_half_the_diagonal_times_the_square() -> None:
    weights = {n: torch.randn(3, 4) for n in "ab"}
    ones = {n: torch.ones(3, 4) for n in "ab"}
    found = saliencies(weights, ones)
    assert torch.equal(flat(found).argsort(), flat(weights).abs().argsort())
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.arange(7) % 2
    estimate = hessian_diagonal(model, x, y, draws=1000, seed=1)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(x, first, model[0].bias))
        return F.cross_entropy(F.linear(hidden, second, model[2].bias), y)

    with torch.no_grad():
        full = torch.autograd.functional.hessian(loss, (model[0].weight, model[2].weight))
    for i, name in enumerate(("0", "2")):
        block = full[i][i].flatten(2).flatten(0, 1)
        scale = float(torch.stack([part.flatten(2).flatten(0, 1).norm() for part in full[i]]).norm())
        assert float((estimate[name].flatten() - block.diagonal()).abs().max()) < 0.15 * scale


def test_pruned_copies() -> None:
    model, x = network(), torch.randn(5, 6)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    found = prune(model, 80)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    once = found(x)
    assert torch.allclose(prune(found, 80)(x), once)
    assert int(flat(weights_of(found)).count_nonzero()) == round(0.2 * len(flat(weights_of(model))))
    assert torch.equal(prune(model, 0)(x), model(x))
    batch = (torch.randn(20, 6), torch.arange(20) % 3)
    assert int(flat(masks_of(prune(model, 50, "obd", batch))).sum()) == round(
        0.5 * len(flat(weights_of(model)))
    )


def data() -> Split:
    y = torch.arange(90) % 3
    x = 0.3 * torch.randn(90, 6) + F.one_hot(y, 6)
    return Split(x, y, x, y, 3, "example")


def test_rounds_of_pruning_and_the_study() -> None:
    split, model = data(), network()
    (one,) = run_pruning(model, split, (75,), rounds=2, epochs=1, lr=1e-2)
    total = len(flat(weights_of(model)))
    assert int(flat(weights_of(one.model)).count_nonzero()) == round(0.25 * total)
    found = hidden_structure_sparse(model, split, (0.0, 90.0), ("class-blind", "random"), epochs=2, lr=1e-2)
    assert found.numbers["class-blind 0 before"] == found.numbers["dense"]
    for scheme in ("class-blind", "random"):
        assert found.numbers[f"{scheme} 90"] == found.details["compressed"][scheme][1].after


def test_growth_ends_at_its_density_and_never_drops() -> None:
    trainer, model, split = make("hidden_structure_sparse.grow", density=0.4, total=40), network(), data()
    trainer.fit(model, split.x_train, split.y_train, steps=1)
    first = {n: m.clone() for n, m in trainer.masks.items()}
    trainer.fit(model, split.x_train, split.y_train, steps=39)
    total = len(flat(first))
    assert float(flat(first).sum()) == pytest.approx(0.1 * total, abs=3)
    assert float(flat(trainer.masks).sum()) == pytest.approx(0.4 * total, abs=3)
    assert all(bool((trainer.masks[n] >= m).all()) for n, m in first.items())
    assert all(bool((w[trainer.masks[n] == 0] == 0).all()) for n, w in weights_of(model).items())


def test_a_unit_graph_against_networkx() -> None:
    model = prune(network(), 85)
    found = structure(model)
    graph, starts = nx.DiGraph(), [0, 6, 26, 36]
    graph.add_nodes_from(range(39))
    for number, w in enumerate(weights_of(model).values()):
        for i, j in w.nonzero().tolist():
            graph.add_edge(starts[number] + j, starts[number + 1] + i)
    flat_graph = graph.to_undirected()
    part = flat_graph.subgraph(max(nx.connected_components(flat_graph), key=len))
    ways = {n: float(n < 6) for n in range(39)}
    for n in range(6, 39):
        ways[n] = sum(ways[m] for m in graph.predecessors(n))
    total = sum(ways[n] for n in range(36, 39))
    useful = set()
    for a, b in product(range(6), range(36, 39)):
        if nx.has_path(graph, a, b):
            useful |= (nx.descendants(graph, a) & nx.ancestors(graph, b)) - {a, b}
    degrees = [d for n, d in flat_graph.degree if 6 <= n < 36]
    wanted = {
        "nodes": 39,
        "edges": graph.number_of_edges(),
        "layers": 4,
        "degree": np.mean(degrees),
        "variance": np.var(degrees),
        "largest": max(degrees),
        "idle": 1 - len(useful) / 30,
        "paths": np.log10(total) if total else 0.0,
        "diameter": nx.diameter(part),
        "distance": nx.average_shortest_path_length(part),
    }
    for name, value in wanted.items():
        assert found.numbers[name] == pytest.approx(value), name


def test_convolutions_count_by_channels() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[2].weight[:, 4:8] = 0.0
    found = structure(model).numbers
    assert (found["nodes"], found["edges"]) == (9, 4 + 8)
    assert found["idle"] == pytest.approx(1 / 3)
    with pytest.raises(WorkingPapersError, match="do not follow"):
        structure(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)))


def test_a_graph_net_node_by_node() -> None:
    graph = random_graph("watts_strogatz", 10, 5)
    net, wiring, x = (
        GraphNet(graph, 4, 2).double(),
        Structure.of(graph),
        torch.randn(3, 4, dtype=torch.float64),
    )
    values: dict[int, Tensor] = {}
    for node, row, bias in zip(wiring.layers[0], net.first.weight, net.first.bias, strict=True):
        values[node] = (x @ row + bias).relu()
    for level, layer in enumerate(net.layers, start=1):
        before = [n for earlier in wiring.layers[:level] for n in earlier]
        for i, node in enumerate(wiring.layers[level]):
            z = layer.bias[i].expand(3)
            for j, other in enumerate(before):
                z = z + (layer.weight[i, j] * values[other] if (other, node) in wiring.edges else 0.0)
            values[node] = z.relu()
    sinks = torch.stack([values[n] for n in wiring.sinks], 1)
    assert torch.allclose(net(x), sinks @ net.out.weight.T + net.out.bias)


def test_graphs_have_their_edges() -> None:
    for n in (12, 25, 40):
        m = max(1, n // 10)
        assert random_graph("barabasi_albert", n, 1).number_of_edges() == m * (n - m)
        assert random_graph("watts_strogatz", n, 1).number_of_edges() == n * (max(2, n // 5) // 2)


def test_genomes() -> None:
    space, chance = CellSpace(5), random.Random(0)
    one, other = space.sample(1), space.sample(2)
    for _ in range(50):
        child = space.mutate(one, chance)
        edges = len({*child.edges} ^ {*one.edges})
        kinds = sum(a != b for a, b in zip(child.kinds, one.kinds, strict=True))
        assert edges + kinds == 1
        mixed = space.cross(one, other, chance)
        for b in range(5):
            own = [e for e in mixed.edges if e[1] == b]
            parents = [p for p in (one, other) if p.kinds[b] == mixed.kinds[b]]
            assert any(own == [e for e in p.edges if e[1] == b] for p in parents)
    full = Genome(("skip",) * 4, tuple((a, b) for a in range(4) for b in range(a + 1, 4)))
    assert CellSpace(4).features(full)["paths"] == 4.0
    assert CellSpace(4).features(full)["skip"] == 4.0


def test_a_cell_is_what_its_graph_says() -> None:
    genome = Genome(("skip", "skip", "conv1", "skip"), ((0, 1), (0, 2), (1, 2)))
    net, x = CellNet(genome).eval(), torch.randn(2, 1, 6, 6)
    stem = net.stem(x)
    wanted = net.nodes[2](2 * stem) + stem  # node 3 has no edges: it reads the stem and is a sink
    assert torch.allclose(net(x), net.out(wanted.mean((2, 3))), atol=1e-5)


def test_the_predictor_chooses_within_the_brood() -> None:
    space, objective, _ = hidden_cell()
    asked = genetic_search(space, objective, 12, predictor="linear")
    assert [t.point for t in asked[:8]] == [
        t.point for t in genetic_search(space, objective, 8, predictor=None)
    ]
    best = genetic_search(space, lambda g: -len(g.edges), 20, predictor="linear", pool=10)
    plain = genetic_search(space, lambda g: -len(g.edges), 20, predictor=None, pool=10)
    late = [sum(t.value for t in trials[8:]) for trials in (best, plain)]
    assert (
        late[0] > late[1]
    )  # the number of edges is a measure, so the predictor knows which child has the fewest
    assert reached([0.1, 0.5, 0.4], 0.5) == 2
    assert reached([0.1], 0.5) == 2


def test_sentences() -> None:
    model = network()
    with pytest.raises(WorkingPapersError, match="the nearest names are 'class-blind', 'class-uniform'"):
        prune(model, 50, "class-blinded")
    with pytest.raises(WorkingPapersError, match="not all; got 100"):
        prune(model, 100)
    with pytest.raises(WorkingPapersError, match="give a batch"):
        prune(model, 50, "obd")
    with pytest.raises(WorkingPapersError, match="at least one round; got 0"):
        run_pruning(model, data(), (50,), rounds=0)
    with pytest.raises(WorkingPapersError, match="at least one scheme"):
        hidden_structure_sparse(model, data(), ())
    with pytest.raises(WorkingPapersError, match="population has at least 2"):
        genetic_search(CellSpace(3), lambda g: 0.0, 5, population=1)


def test_claims_are_those_of_the_record() -> None:
    own = record("hidden_structure_sparse").claims
    assert [c.says for c in claims("hidden_structure_sparse").values()] == [c["says"] for c in own]
