"""Neural codes: numbers of regions, invariances, affinity within a code, and the measures against brute force."""

from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
import torch
from torch import nn

from workingpapers.data import Split
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.geometry import _codes
from workingpapers.papers.geometry.neural_hash import activation_hash_phase, neural_codes, neural_hash
from workingpapers.tasks import mlp


def distinct(model: nn.Module, x: torch.Tensor) -> int:
    return len({bytes(row) for row in neural_codes(model, x).packed})


@pytest.mark.parametrize("seed", range(4))
def test_units_on_a_line_cut_it_into_one_piece_more(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 9), nn.ReLU()).double()
    cuts = sorted((-model[0].bias / model[0].weight[:, 0]).tolist())
    places = [cuts[0] - 1, *[(a + b) / 2 for a, b in pairwise(cuts)], cuts[-1] + 1]
    assert distinct(model, torch.tensor(places).double()[:, None]) == 10
    assert distinct(model, torch.linspace(-50, 50, 3000).double()[:, None]) <= 10


def test_units_in_the_plane_make_no_more_codes_than_lines_make_regions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU())
    found = distinct(model, 4 * torch.randn(200_000, 2))
    assert sum(comb(6, i) for i in range(2)) < found <= sum(comb(6, i) for i in range(3))


def test_codes_are_the_signs_of_both_layers() -> None:
    model, x = mlp([3, 5, 4, 2]), torch.randn(11, 3)
    first = model[1](x)
    wanted = torch.cat([first > 0, model[3](first.relu()) > 0], 1).numpy()
    codes = neural_codes(model, x)
    assert codes.packed.shape == (11, 2)
    assert np.array_equal(codes.bits, wanted)
    assert np.array_equal(neural_codes(model, x, layers="last").bits, wanted[:, 5:])


def test_rescaling_units_keeps_their_codes() -> None:
    model, x = mlp([3, 5, 2]), torch.randn(50, 3)
    before = neural_codes(model, x).bits
    scale = torch.rand(5) + 0.1
    with torch.no_grad():
        model[1].weight.mul_(scale[:, None])
        model[1].bias.mul_(scale)
    assert np.array_equal(neural_codes(model, x).bits, before)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh])
def test_the_network_is_affine_where_the_code_is_one(activation: type[nn.Module]) -> None:
    torch.manual_seed(3)
    model = mlp([2, 8, 8, 3], activation=activation).double()
    x = torch.randn(400, 2).double()
    middles = (x[:200] + x[200:]) / 2
    a, b, m = (neural_codes(model, t).bits for t in (x[:200], x[200:], middles))
    same = torch.from_numpy((a == b).all(1) & (a == m).all(1))
    assert int(same.sum()) >= 3
    with torch.no_grad():
        mean, found = (model(x[:200]) + model(x[200:])) / 2, model(middles)
    torch.testing.assert_close(found[same], mean[same], atol=1e-9, rtol=0)
    assert float((found - mean)[~same].abs().max()) > 1e-3


def test_modules_with_a_threshold_of_their_own_are_read() -> None:
    z = torch.tensor([[-2.0], [0.3], [0.7], [5.0], [7.0]])
    assert neural_codes(nn.Sequential(nn.Threshold(0.5, 0.0)), z).bits.tolist() == [[0], [0], [1], [1], [1]]
    assert neural_codes(nn.Sequential(nn.ReLU6()), z).bits.tolist() == [
        [0, 0],
        [1, 0],
        [1, 0],
        [1, 0],
        [1, 1],
    ]


def test_pooled_codes_of_maps_tell_whether_any_place_is_on() -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), torch.randn(6, 1, 5, 5) - 0.7
    full = neural_codes(model, x).bits.reshape(6, 3, 9)
    assert np.array_equal(neural_codes(model, x, pool=True).bits, full.max(2))


def test_measures_agree_with_looking_at_every_pair() -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2, (40, 5)).astype(np.uint8)
    labels = generator.integers(0, 3, 40)
    pairs = [((bits[i] != bits[j]).mean(), labels[i] == labels[j]) for i, j in combinations(range(40), 2)]
    wanted = [np.mean([d for d, same in pairs if same == inside]) for inside in (True, False)]
    np.testing.assert_allclose(_codes.hamming(bits, labels), wanted)
    packed = np.packbits(bits, axis=1)
    assert _codes.redundancy(packed) == 1 - len({tuple(r) for r in bits}) / 40
    other, others = bits[:20], generator.integers(0, 3, 20)
    wanted_share = np.mean(
        [
            any((bits[i] == row).all() and labels[i] != k for i in range(40))
            for row, k in zip(other, others, strict=True)
        ]
    )
    assert _codes.collisions(packed, labels, packed[:20], others) == wanted_share


def test_codes_of_one_word_per_class_classify_perfectly() -> None:
    words = np.eye(3, 9, dtype=np.uint8)
    labels = np.repeat([4, 7, 8], 20)
    bits = words[np.repeat([0, 1, 2], 20)]
    found = _codes.categorise(bits, labels, bits, labels)
    assert found == {"kmeans": 1.0, "knn1": 1.0, "knn5": 1.0, "logistic": 1.0}
    wrong = _codes.categorise(bits, labels, bits, np.roll(labels, 20))
    assert set(wrong.values()) == {0.0}


def test_five_neighbours_vote_by_hamming_distance() -> None:
    generator = np.random.default_rng(1)
    bits, other = (generator.integers(0, 2, (n, 40)).astype(np.uint8) for n in (60, 15))
    labels, others = generator.integers(0, 2, 60), generator.integers(0, 2, 15)
    distance = (other[:, None] != bits[None]).sum(2)
    nearest = labels[distance.argmin(1)]
    unique = [np.sum(d == d.min()) == 1 for d in distance]
    found = _codes.categorise(bits, labels, other[unique], others[unique])["knn1"]
    assert found == (nearest == others)[unique].mean()


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ((0.51, 0.9, 0.9), "under"),
        ((0.5, 0.9, 0.9), "critically"),
        ((0.0, 0.87, 0.9), "critically"),
        ((0.01, 0.881, 0.9), "sufficiently"),
    ],
)
def test_regimes_by_redundancy_and_accuracy(numbers: tuple[float, float, float], name: str) -> None:
    assert _codes.regime(*numbers) == name


def test_the_phase_chart_has_every_cell_and_random_labels_hurt() -> None:
    x = torch.randn(120, 2)
    y = (x[:, 0] > 0).long()
    split = Split(x[:80], y[:80], x[80:], y[80:], 2, "halves")

    def cells(noise: float) -> dict[tuple[int, int, int], dict[str, float]]:
        return activation_hash_phase(
            lambda w: mlp([2, w, 2]), split, (2, 60), (20,), (40, 80), label_noise=noise
        ).details["cells"]

    clean, random = cells(0.0), cells(1.0)
    assert set(clean) == {(w, 20, n) for w in (2, 60) for n in (40, 80)}
    assert clean[2, 20, 80]["redundancy_train"] >= 1 - 4 / 80  # two units have four codes at most
    assert clean[2, 20, 80]["regime"] == "under"
    assert clean[60, 20, 80]["redundancy_train"] < clean[2, 20, 80]["redundancy_train"]
    assert clean[60, 20, 80]["logistic"] > 0.85 > random[60, 20, 80]["logistic"]


def test_bad_input_is_named() -> None:
    with pytest.raises(WorkingPapersError, match="Linear has no rectifier as a module"):
        neural_codes(nn.Linear(2, 2), torch.randn(3, 2))
    with pytest.raises(UnknownName, match="choice of layers"):
        neural_codes(mlp([2, 3, 2]), torch.randn(3, 2), layers="lats")


def test_the_network_number_is_its_test_accuracy() -> None:
    model, x, y = mlp([2, 6, 3]), torch.randn(60, 2), torch.arange(60) % 3
    found = neural_hash(model, x, y, x, y).numbers
    assert found["network"] == pytest.approx(float((model(x).argmax(1) == y).float().mean()))
    assert found["width"] == 6
