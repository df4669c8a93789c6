"""Meta pruning: graphs that give every weight back, groups whose removal is zeroing, pulls and messages by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workingpapers.catalog import make
from workingpapers.data import images
from workingpapers.errors import WorkingPapersError
from workingpapers.papers.sparsity._channel_groups import (
    Group,
    Member,
    channels_of,
    importance,
    pruned_to,
    weights_of,
    without,
)
from workingpapers.papers.sparsity._meta_training import meta_train, pull, regulariser
from workingpapers.papers.sparsity._metanetwork import MessagePassing, Metanetwork, aggregate
from workingpapers.papers.sparsity._weight_graphs import graph_of, run_with
from workingpapers.papers.sparsity.meta_pruning import accuracy, curve, prune, rewrite, small_cnn, tuned
from workingpapers.tasks import cnn, initialise, residual_cnn


def shaken(model: nn.Module) -> Any:
    """Give norms values of their own: gains, biases, running means and variances."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


def plain() -> Any:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(4, 6, (3, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 7), nn.ReLU(),
        nn.Linear(7, 3))  # fmt: skip


def nets() -> list[Any]:
    built = [plain(), residual_cnn(2, 3, (4, 6), 2), residual_cnn(2, 3, (4, 6), 1, norm=False)]
    return [shaken(model) for model in built]


def test_graphs_give_every_weight_back() -> None:
    x = torch.randn(3, 2, 8, 8)
    for model in nets():
        graph = graph_of(model, 2)
        found = graph.parameters()
        given = dict(model.named_parameters())
        assert found.keys() == given.keys()
        assert all(torch.equal(found[name], value) for name, value in given.items())
        torch.testing.assert_close(run_with(model, found, x), model(x))


def test_what_nodes_and_edges_hold() -> None:
    model = shaken(residual_cnn(2, 3, (4, 6), 1))
    graph = graph_of(model, 2)
    stem, norm, first, second, linear = model[0], model[1], model[3], model[4], model[7]
    sizes = [2, 4, 4, 4, 6, 6, 3]  # inputs, stem, inside and sum of the first block, of the second, classes
    assert len(graph.nodes) == sum(sizes)
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    torch.testing.assert_close(graph.nodes[:2], torch.tensor([[1.0, 0, 0, 1, 1, 0, 0, 1]] * 2))
    rows = graph.nodes[starts[1] : starts[2]]
    for column, name in enumerate(("weight", "bias", "running_mean", "running_var")):
        assert torch.equal(rows[:, column], getattr(norm, name).detach())
    assert torch.equal(rows[:, 4:], torch.tensor([[1.0, 0, 0, 1]] * 4))
    joined = graph.nodes[starts[5] : starts[6]]
    assert torch.equal(joined[:, 0], second.norm2.weight.detach())
    assert torch.equal(joined[:, 7], second.shortcut[1].running_var)
    assert torch.equal(graph.nodes[starts[6] :, 1], linear.bias.detach())
    kernels = {(int(a), int(b)): k for (a, b), k in zip(graph.edges.T, graph.kernels, strict=True)}
    assert torch.equal(kernels[1, starts[1] + 3], stem.weight[3, 1].detach().reshape(9))
    assert torch.equal(kernels[starts[2] + 1, starts[3]], first.conv2.weight[0, 1].detach().reshape(9))
    one = torch.zeros(9)
    one[4] = 1
    assert torch.equal(kernels[starts[1] + 2, starts[3] + 2], one)  # the shortcut without weights
    assert (starts[1] + 2, starts[3] + 1) not in kernels
    assert torch.equal(kernels[starts[3] + 3, starts[5] + 4], one * second.shortcut[0].weight[4, 3].item())
    assert torch.equal(kernels[starts[5] + 5, starts[6] + 1], one * linear.weight[1, 5].item())
    assert len(kernels) == len(graph.kernels) == 8 + 16 + 16 + 4 + 24 + 36 + 24 + 18


def test_networks_without_a_graph_are_told() -> None:
    with pytest.raises(WorkingPapersError, match="at most 9 numbers"):
        graph_of(nn.Sequential(nn.Conv2d(1, 2, 5)), 1)
    with pytest.raises(WorkingPapersError, match="pool before flattening"):
        graph_of(cnn(1, 3, (4,), size=8), 1)
    with pytest.raises(WorkingPapersError, match="no place in a graph"):
        graph_of(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), 4)
    with pytest.raises(WorkingPapersError, match="cannot be followed through"):
        channels_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.PixelShuffle(1)), torch.randn(1, 1, 4, 4))


def test_groups_tie_what_is_added_up() -> None:
    model = residual_cnn(1, 3, (4, 6), 1)
    channels = channels_of(model, torch.randn(1, 1, 8, 8))
    free = [g for g in channels.groups if not g.fixed]
    assert sorted(g.count for g in free) == [4, 4, 6, 6]
    tied = next(g for g in free if Member("0", "out") in g.members)
    assert {(m.name, m.side) for m in tied.members} == {
        ("0", "out"), ("1", "norm"), ("3.conv1", "in"), ("3.conv2", "out"), ("3.norm2", "norm"), ("4.conv1", "in"),
        ("4.shortcut.0", "in")}  # fmt: skip
    macs = 64 * (9 * 4 + 2 * 9 * 16) + 16 * (9 * 24 + 9 * 36 + 24) + 18
    assert channels.macs(model) == macs
    flat = channels_of(cnn(1, 3, (4,), size=8), torch.randn(1, 1, 8, 8))
    assert Member("4", "in", 16) in flat.groups[1].members


def test_removing_channels_is_zeroing_them() -> None:
    x = torch.randn(4, 2, 8, 8)
    for model in [*nets(), shaken(cnn(2, 3, (5, 4), size=8))]:
        channels = channels_of(model, x)
        gone = {n: torch.arange(g.count) % 3 == 1 for n, g in enumerate(channels.groups) if not g.fixed}
        before = model(x)
        smaller = without(model, gone, channels)
        assert torch.equal(model(x), before)
        zeroed = copy.deepcopy(model)
        with torch.no_grad():
            for number, mask in gone.items():
                for member in channels.groups[number].members:
                    layer = zeroed.get_submodule(member.name)
                    if member.side == "in":
                        layer.weight[:, mask.repeat_interleave(member.block)] = 0
                    else:
                        for p in layer.parameters(recurse=False):
                            p[mask] = 0
        assert float((smaller(x) - zeroed(x)).detach().abs().max()) < 1e-5
        assert float((smaller(x) - before).detach().abs().max()) > 1e-4
        again = channels_of(smaller, x)
        assert again.macs(smaller) < channels.macs(model)
        smaller.train()(x).sum().backward()


def test_importance_and_pull_by_hand() -> None:
    weights = {
        "conv": torch.randn(3, 2, 3, 3), "norm": torch.randn(3), "next": torch.randn(4, 3, 1, 1),
        "linear": torch.randn(5, 6)}  # fmt: skip
    members = (Member("conv", "out"), Member("norm", "norm"), Member("next", "in"), Member("linear", "in", 2))
    group = Group(3, members, False)
    by_hand = torch.tensor([
        float(weights["conv"][c].pow(2).sum() + weights["norm"][c] ** 2 + weights["next"][:, c].pow(2).sum()
              + weights["linear"][:, 2 * c : 2 * c + 2].pow(2).sum()) / 4 for c in range(3)])  # fmt: skip
    torch.testing.assert_close(importance(weights, group), by_hand / by_hand.max())
    roots = (by_hand / by_hand.max()).sqrt()
    gamma = pull(weights, group)
    torch.testing.assert_close(gamma, 16 ** ((1 - roots) / (1 - roots.min())))
    assert float(gamma.min()) == pytest.approx(1)
    assert float(gamma.max()) == pytest.approx(16)


def test_the_regulariser_pulls_each_weight_by_its_groups() -> None:
    model = shaken(residual_cnn(1, 3, (4, 6), 1))
    channels = channels_of(model, torch.randn(1, 1, 8, 8))
    weights = weights_of(model, channels)
    total = regulariser(weights, channels, reg=2.5, alpha=4.0)
    total.backward()  # type: ignore[no-untyped-call]
    gammas = {}
    for group in channels.groups:
        for m in group.members:
            if not group.fixed:
                gammas[m.name, m.side] = pull({n: w.detach() for n, w in weights.items()}, group, 4.0)
    conv = model[3].conv1
    both = gammas["3.conv1", "out"][:, None] + gammas["3.conv1", "in"]
    torch.testing.assert_close(conv.weight.grad, 2.5 * both[:, :, None, None] * conv.weight.detach())
    stem = model[0]
    wanted = 2.5 * gammas["0", "out"][:, None, None, None] * stem.weight.detach()  # its inputs are not pulled
    torch.testing.assert_close(stem.weight.grad, wanted)
    torch.testing.assert_close(model[1].weight.grad, 2.5 * gammas["1", "norm"] * model[1].weight.detach())


def test_messages_are_aggregated_four_ways() -> None:
    messages, target = torch.randn(9, 3), torch.tensor([0, 2, 2, 0, 2, 4, 0, 2, 2])
    found = aggregate(messages, target, 5).split(3, 1)
    for node in (0, 2, 4):
        mine = messages[target == node]
        torch.testing.assert_close(found[0][node], mine.mean(0))
        torch.testing.assert_close(found[1][node], mine.std(0, correction=0))
        torch.testing.assert_close(found[2][node], mine.amax(0))
        torch.testing.assert_close(found[3][node], mine.amin(0))
    assert all((part[[1, 3]] == 0).all() for part in found)


def test_a_layer_of_message_passing_by_hand() -> None:
    layer = MessagePassing(4)
    nodes, edges, features = torch.randn(3, 4), torch.tensor([[0, 1, 0], [2, 2, 1]]), torch.randn(3, 4)
    changed, moved = layer(nodes, edges, features)
    into, out = layer.into(nodes), layer.out(nodes)
    messages = torch.stack([out[b] * into[a] * f for a, b, f in zip(*edges, features, strict=True)])
    torch.testing.assert_close(changed, layer.down(aggregate(messages, edges[1], 3)))
    wanted = layer.first(nodes)[0] * layer.second(nodes)[2] * features[0]
    torch.testing.assert_close(moved[0], wanted)


def test_metanetworks_do_not_see_the_order_of_nodes_but_the_direction_of_edges() -> None:
    graph = graph_of(shaken(residual_cnn(1, 3, (4,), 1)), 1)
    net = Metanetwork(2, 8, ratio=1.0)
    nodes, kernels = net(graph.nodes, graph.edges, graph.kernels)
    order = torch.randperm(len(graph.nodes))
    place = order.argsort()
    moved, same = net(graph.nodes[order], place[graph.edges], graph.kernels)
    torch.testing.assert_close(moved, nodes[order], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(same, kernels, atol=1e-4, rtol=1e-3)
    turned, _ = net(graph.nodes, graph.edges.flip(0), graph.kernels)
    assert float((turned - nodes).detach().abs().max()) > 1e-4


def test_rewriting_adds_a_share_of_what_is_decoded() -> None:
    model, x = shaken(small_cnn()), torch.randn(2, 1, 8, 8)
    net = Metanetwork(1, 8)
    changed = make("meta_pruning")(model, x, net)
    graph = graph_of(model, 1)
    nodes, kernels = net(graph.nodes, graph.edges, graph.kernels)
    new = graph.parameters(nodes, kernels)
    for name, value in changed.named_parameters():
        assert torch.equal(value, new[name])
    assert not torch.equal(changed[0].weight, model[0].weight)
    for head in (net.node_decoder, net.edge_decoder):
        for p in head[-1].parameters():  # type: ignore[union-attr]
            nn.init.zeros_(p)
    same = rewrite(model, x, net)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))
    assert torch.equal(same(x), model(x))


def test_pruning_takes_the_weakest_until_it_is_fast_enough() -> None:
    model, x = shaken(small_cnn()), torch.randn(2, 1, 8, 8)
    whole = channels_of(model, x)
    for speed_up in (1.0, 2.0, 3.0):
        smaller: Any = prune(model, x, speed_up)
        work = channels_of(smaller, x).macs(smaller)
        assert whole.macs(model) / work >= speed_up
        assert whole.macs(model) / work < 1.25 * speed_up
    with torch.no_grad():
        model[3].conv1.weight[[2, 5]] *= 1e-3
        model[3].norm1.weight[[2, 5]] *= 1e-3
        model[3].conv2.weight[:, [2, 5]] *= 1e-3
    two: Any = pruned_to(model, whole, whole.macs(model) / (whole.macs(model) - 4 * 64 * 9 * 16 + 1))[0]
    kept = [i for i in range(16) if i not in (2, 5)]
    assert torch.equal(two[3].conv1.weight, model[3].conv1.weight[kept])
    with pytest.raises(WorkingPapersError, match="at least 1; got 0.5"):
        prune(model, x, 0.5)
    with pytest.raises(WorkingPapersError, match="with a channel left in every group the speed-up is"):
        prune(model, x, 1e6)


def test_meta_training_lowers_the_loss_and_leaves_its_models() -> None:
    split = images("digits", train=64, test=32)
    models = [initialise(lambda: residual_cnn(1, 10, (4,)), k) for k in range(2)]
    before = [copy.deepcopy(m.state_dict()) for m in models]
    net = Metanetwork(1, 8, ratio=0.1)

    def loss() -> float:
        values = [
            nn.functional.cross_entropy(rewrite(m, split.x_train, net).eval()(split.x_train), split.y_train)
            for m in models
        ]
        return float(sum(v.detach() for v in values))

    first = loss()
    assert meta_train(models, split, net, steps=12, lr=1e-2, reg=0.0) is net
    assert loss() < first
    for model, held in zip(models, before, strict=True):
        assert all(torch.equal(v, held[n]) for n, v in model.state_dict().items())
    with pytest.raises(WorkingPapersError, match="at least one trained network"):
        meta_train([], split)
    pulled, free = (
        meta_train(models, split, Metanetwork(1, 8, ratio=0.1), steps=8, lr=1e-2, reg=reg) for reg in (300, 0)
    )
    sizes: list[Tensor] = [
        sum((w.square().sum() for w in graph_of(rewrite(models[0], split.x_train, n), 1).parameters().values()),
            torch.zeros(())) for n in (pulled, free)]  # fmt: skip
    assert float(sizes[0]) < float(sizes[1])


def test_curves_measure_pruned_networks() -> None:
    split = images("digits", train=64, test=32)
    model = small_cnn()
    found = curve(model, split, (2.0, 3.0), steps=2)
    smaller = prune(model, split.x_train, 3.0)
    assert found[3.0] == (accuracy(smaller, split), accuracy(tuned(smaller, split, 2), split))
    free, pulled = tuned(model, split, 5), tuned(model, split, 5, reg=1.0)
    sizes = [
        sum(float(p.detach().square().sum()) for p in m.parameters() if p.ndim == 4) for m in (pulled, free)
    ]
    assert sizes[0] < sizes[1]
