"""The Reber automaton, pruned matrices, networks wired by graphs against loops, measures and predictions."""

import itertools
import random

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

from workingpapers.catalog import claims, record
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._reber import SYMBOLS, accepts, edited, generated, reber, strings
from workingpapers.papers.sparsity._recurrent import (
    CELLS,
    MaskedRecurrent,
    RecurrentClassifier,
    SparseRecurrent,
    at_the_end,
    prune_rnn,
)
from workingpapers.papers.sparsity._structures import (
    KINDS,
    Structure,
    correlations,
    measures,
    predict_performance,
    random_graph,
)
from workingpapers.papers.sparsity.sparse_rnn_study import pruning, random_graphs, sparse_rnn_study
from workingpapers.tasks import fit


def test_the_automaton() -> None:
    for string in ("BTXSE", "BPVVE", "BTSXSE", "BTXXVVE", "BPTVPXTTVVE", "BTXXTTVPSE"):
        assert accepts(string)
    for string in ("BTPE", "", "BTXS", "TXSE", "BTXSEE", "BTSXE", "BTTVPXTVPSE", "BPSXXTTTVPSE", "BAE"):
        assert not accepts(string)


def test_it_accepts_just_what_walks_generate() -> None:
    chance = random.Random(0)
    drawn = {generated(chance) for _ in range(3000)}
    short = {s for s in drawn if len(s) <= 7}
    every = ("".join(t) for n in range(3, 6) for t in itertools.product(SYMBOLS, repeat=n))
    inner = {f"B{s}E" for s in every}
    assert {s for s in inner if accepts(s)} == short
    assert all(not accepts(edited(s, chance)) for s in drawn)


def test_the_data_are_the_strings() -> None:
    split = reber(30, 10, seed=4, longest=20)
    found, labels = strings(40, 4, longest=20)
    x = torch.cat([split.x_train, split.x_test])
    assert ["".join(SYMBOLS[i - 1] for i in row if i) for row in x.tolist()] == found
    assert torch.cat([split.y_train, split.y_test]).tolist() == labels == [int(accepts(s)) for s in found]
    assert sum(labels) == 20
    outputs = torch.randn(40, 20, 3)
    wanted = torch.stack([outputs[i, len(s) - 1] for i, s in enumerate(found)])
    assert torch.equal(at_the_end(outputs, x), wanted)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("which", ["input", "hidden", "both"])
def test_pruning_takes_the_smallest_of_each_matrix_and_they_stay_away(cell: str, which: str) -> None:
    model = RecurrentClassifier(cell, 6, 2)
    before = {n: p.detach().clone() for n, p in model.recurrent.named_parameters()}
    found = prune_rnn(model, 35, which)
    fit(found, reber(40, 10, longest=9), steps=3, lr=0.05, batch=20)
    for name, old in before.items():
        chosen = name.startswith({"input": "weight_ih", "hidden": "weight_hh", "both": "weight"}[which])
        new = getattr(found.recurrent, name).detach()
        zeros = new == 0
        assert int(zeros.sum()) == (round(0.35 * old.numel()) if chosen else 0)
        if chosen:
            assert float(old[zeros].abs().max()) <= float(old[~zeros].abs().min())
            assert bool((new != old)[~zeros].any())
    assert all(torch.equal(p, before[n]) for n, p in model.recurrent.named_parameters())


def test_structures() -> None:
    full = Structure.of(nx.complete_graph(6))
    assert [len(layer) for layer in full.layers] == [1] * 6
    assert full.sinks == [5]
    assert bool((full.mask(4) == 1).all())
    path = nx.Graph([("a", "b"), ("b", "d"), ("a", "d"), ("c", "d")])
    structure = Structure.of(path)
    assert structure.layers == ((0, 2), (1,), (3,))
    assert structure.order == [0, 2, 1, 3]
    assert structure.mask(2).tolist() == [[1.0, 1.0, 1.0]]
    assert structure.mask(1).tolist() == [[1.0, 0.0]]
    graph = random_graph("erdos_renyi", 15, 3)
    found, digraph = Structure.of(graph), nx.DiGraph()
    digraph.add_nodes_from(graph.nodes)
    digraph.add_edges_from((min(e), max(e)) for e in graph.edges)
    assert len(found.layers) == nx.dag_longest_path_length(digraph) + 1
    for level, layer in enumerate(found.layers):
        for node in layer:
            ways = [nx.dag_longest_path_length(digraph.subgraph(nx.ancestors(digraph, node) | {node}))]
            assert level == ways[0]
    assert set(found.sinks) == {n for n in digraph if digraph.out_degree(n) == 0}


@pytest.mark.parametrize("diagonal", [True, False])
def test_a_wired_network_node_by_node(diagonal: bool) -> None:
    graph = random_graph("barabasi_albert", 12, 1)
    model, structure = SparseRecurrent(graph, "tanh", diagonal).double(), Structure.of(graph)
    tokens = reber(6, 2, longest=10).x_train
    embedded = model.embedding(tokens)
    state = {n: torch.zeros(6, dtype=torch.float64) for n in structure.order}
    history = []
    for t in range(10):
        new: dict[int, torch.Tensor] = {}
        for level, (layer, nodes) in enumerate(zip(model.layers, structure.layers, strict=True)):
            cell = layer.cell
            before = [n for earlier in structure.layers[:level] for n in earlier]
            for i, node in enumerate(nodes):
                z = cell.bias_ih_l0[i] + cell.bias_hh_l0[i]
                if level == 0:
                    z = z + embedded[:, t] @ cell.weight_ih_l0[i]
                for j, other in enumerate(before):
                    if (other, node) in structure.edges:
                        z = z + cell.weight_ih_l0[i, j] * new[other]
                for j, other in enumerate(nodes):
                    if i == j or not diagonal:
                        z = z + cell.weight_hh_l0[i, j] * state[other]
                new[node] = torch.tanh(z)
        state = new
        history.append(torch.stack([new[n] for n in structure.sinks], -1))
    ends = at_the_end(torch.stack(history, 1), tokens)
    assert torch.allclose(model(tokens), ends @ model.out.weight.T + model.out.bias, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_masks_hold_for_all_gates_and_dense_masks_are_torchs_layer(cell: str) -> None:
    x = torch.randn(3, 5, 4)
    dense = MaskedRecurrent(cell, torch.ones(6, 4), torch.ones(6, 6))
    assert torch.allclose(dense(x), dense.cell(x)[0], atol=1e-6)
    reads = (torch.arange(24).view(6, 4) % 3 == 0).float()
    layer = MaskedRecurrent(cell, reads, torch.eye(6))
    x = x.requires_grad_()
    for unit in range(6):
        (slope,) = torch.autograd.grad(layer(x)[..., unit].sum(), x)
        assert torch.equal(slope.abs().sum((0, 1)) > 0, (reads[unit] > 0) & (slope.abs().sum((0, 1)) > 0))
        assert bool((slope.abs().sum((0, 1))[reads[unit] == 0] == 0).all())
    parameters = dict(layer.cell.named_parameters())
    (slope,) = torch.autograd.grad(layer(x).sum(), parameters["weight_hh_l0"])
    assert bool((slope[layer.recurs == 0] == 0).all())
    assert bool(slope[layer.recurs == 1].any())


def test_measures_of_a_star_and_a_path() -> None:
    found = measures(nx.star_graph(4))
    assert (found["nodes"], found["edges"], found["layers"], found["sources"], found["sinks"]) == (
        5,
        4,
        2,
        1,
        4,
    )
    assert found["diameter"] == 2
    assert found["density"] == pytest.approx(4 / 20)
    assert found["path length"] == pytest.approx((4 * 1 + 6 * 2) / 10)
    assert found["betweenness mean"] == pytest.approx(1 / 5)
    assert found["degree mean"] == pytest.approx((1 + 4 * 0.25) / 5)
    assert found["eccentricity variance"] == pytest.approx(np.var([1, 2, 2, 2, 2]))
    path = measures(nx.path_graph(5))
    assert (path["layers"], path["diameter"], path["path length"]) == (5, 4, 2)
    apart = nx.Graph([(0, 1), (1, 2)])
    apart.add_node(3)
    assert measures(apart)["diameter"] == 2
    for kind in KINDS:
        assert all(np.isfinite(v) for v in measures(random_graph(kind, 9, 2)).values())


def test_predictions_find_what_is_there_and_nothing_in_noise() -> None:
    chance = random.Random(1)
    table = [{"a": chance.random(), "b": chance.random()} for _ in range(50)]
    for how in ("linear", "forest"):
        own, control = predict_performance(table, [row["a"] for row in table], how, folds=3, repeats=1)
        assert own > 0.8
        assert control < 0.4
    noise, _ = predict_performance(table, [chance.random() for _ in table], "linear", repeats=1)
    assert noise < 0.4
    assert predict_performance(table, [1.0] * 50, "linear", repeats=1) == (0.0, 0.0)
    related = correlations([{**row, "c": 1.0} for row in table], [-row["a"] for row in table])
    assert related["a"] == pytest.approx(-1.0)
    assert related["c"] == 0.0


def test_the_studies() -> None:
    split = reber(60, 30, longest=10)
    found = pruning(split, "tanh", (0, 100), "both", 1, 1, 8).numbers
    assert found["pruned 0"] == found["dense"]
    assert found["epochs 0"] == 0
    assert found["epochs 100"] in (0.0, 1.0, 2.0)
    graphs = random_graphs(5, (5, 9), 3)
    assert all(5 <= len(g) <= 9 for g in graphs)
    study = sparse_rnn_study(split, graphs, epochs=1, regressors=("linear",), folds=2, repeats=1)
    assert study.numbers["accuracy"] == pytest.approx(np.mean(study.details["accuracies"]))
    assert study.details["table"][1]["nodes"] == len(graphs[1])


def test_sentences() -> None:
    model = RecurrentClassifier("gru", 4)
    for bad, words in (
        ({"percent": 120}, "0 to 100 percent"),
        ({"percent": 5, "which": "inputs"}, "'input'"),
    ):
        with pytest.raises(WorkingPapersError, match=words):
            prune_rnn(model, **bad)  # type: ignore[arg-type]
    with pytest.raises(WorkingPapersError, match="pruned already"):
        prune_rnn(prune_rnn(model, 10), 20)
    with pytest.raises(WorkingPapersError, match="no recurrent layer"):
        prune_rnn(nn.Linear(2, 2), 10)
    with pytest.raises(WorkingPapersError, match="the nearest name is 'lstm'"):
        RecurrentClassifier("lstms")
    with pytest.raises(WorkingPapersError, match="at least 3 nodes; got 2"):
        random_graph("barabasi_albert", 2)
    with pytest.raises(WorkingPapersError, match="5 folds need as many graphs; got 0"):
        sparse_rnn_study(reber(10, 5), [])
    with pytest.raises(WorkingPapersError, match="regressor"):
        predict_performance([{"a": 1.0}] * 6, [1.0] * 6, "trees")


def test_claims_are_those_of_the_record() -> None:
    own = record("sparse_rnn_study").claims
    assert [c.says for c in claims("sparse_rnn_study").values()] == [c["says"] for c in own]
