"""Tables, texts, graphs, series, sequences and the rest: facts of each set, and independent readings."""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from workingpapers import data
from workingpapers.data import store
from workingpapers.errors import UnknownName, WorkingPapersError


def test_uci_splits_are_those_of_the_files(data_folder: Path) -> None:
    folder = data_folder / "uci/yacht"
    raw = np.loadtxt(folder / "data.txt")
    train, test = (np.loadtxt(folder / f"index_{p}_3.txt").astype(int) for p in ("train", "test"))
    split = data.table("yacht", split=3)
    assert len(split.x_train) == 277
    assert len(split.x_test) == 31
    mean, std = raw[train, -1].mean(), raw[train, -1].std()
    assert split.y_mean == pytest.approx(mean)
    assert split.y_std == pytest.approx(std)
    assert np.allclose(split.y_test.numpy()[:, 0] * split.y_std + split.y_mean, raw[test, -1], atol=1e-4)
    features = (raw[:, :6] - raw[train, :6].mean(0)) / raw[train, :6].std(0)
    assert np.allclose(split.x_test.numpy(), features[test], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rows", "features"),
    [
        ("bostonHousing", 506, 13),
        ("concrete", 1030, 8),
        ("energy", 768, 8),
        ("kin8nm", 8192, 8),
        ("power-plant", 9568, 4),
        ("wine-quality-red", 1599, 11),
    ],
)
def test_uci_sets_have_their_sizes(data_folder: Path, name: str, rows: int, features: int) -> None:
    split = data.table(name)
    assert len(split.x_train) + len(split.x_test) == rows
    assert split.x_train.shape[1] == features
    assert split.y_train.shape == (len(split.x_train), 1)
    assert len(split.x_test) / rows == pytest.approx(0.1, abs=0.003)


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "iris"])
def test_bundled_classes_are_split_evenly(name: str) -> None:
    split = data.table(name, split=2)
    train, test = split.y_train.bincount().double(), split.y_test.bincount().double()
    assert torch.all((0.8 * (train + test) - train).abs() <= 0.5)
    assert split.num_classes == len(train)
    assert not torch.equal(split.x_test, data.table(name, split=3).x_test)


def test_diabetes_is_regression() -> None:
    split = data.table("diabetes")
    assert split.num_classes == 0
    assert (len(split.x_train), len(split.x_test)) == (354, 88)
    assert float(split.y_train.mean()) == pytest.approx(0, abs=1e-5)
    assert float(split.y_train.square().mean()) == pytest.approx(1, abs=1e-5)


def test_a_split_out_of_range_is_said_so() -> None:
    with pytest.raises(WorkingPapersError, match="splits 0 to 19; asked for 20"):
        data.table("iris", split=20)


def test_tinyshakespeare_reads_back_to_its_text(data_folder: Path) -> None:
    text = data.text("tinyshakespeare")
    whole = (data_folder / "tinyshakespeare/input.txt").read_text()
    assert len(text.vocabulary) == 65
    assert len(text.train) == int(0.9 * 1_115_394)
    assert text.decode(text.train) + text.decode(text.test) == whole


def test_wikitext_counts_and_unknown_words(data_folder: Path) -> None:
    text = data.text("wikitext2")
    assert (len(text.train), len(text.test)) == (217_646, 245_569)
    words = (data_folder / "wikitext2/test.txt").read_text().replace("\n", " <eos> ").split()
    known = set(text.vocabulary)
    expected = [w if w in known else "<unk>" for w in words[:5000]]
    assert text.decode(text.test[:5000]).split(" ") == expected
    assert set(text.train.unique().tolist()) == set(range(len(text.vocabulary)))


def test_wikitext_keeps_the_most_frequent_words(data_folder: Path) -> None:
    full, small = data.text("wikitext2"), data.text("wikitext2", words=100)
    assert len(small.vocabulary) == 100
    counts = full.train.bincount()
    kept = counts[[full.vocabulary.index(w) for w in small.vocabulary]]
    assert int((counts > kept.min()).sum()) <= 99
    with pytest.raises(WorkingPapersError, match="asked for 1"):
        data.text("wikitext2", words=1)


@pytest.mark.parametrize(
    ("name", "nodes", "features", "classes", "directed", "train"),
    [("cora", 2708, 1433, 7, 2 * 5278, 140), ("citeseer", 3327, 3703, 6, 2 * 4676 - 124, 120)],
)
def test_graphs(
    data_folder: Path, name: str, nodes: int, features: int, classes: int, directed: int, train: int
) -> None:
    graph = data.graph(name)
    assert graph.x.shape == (nodes, features)
    assert graph.edges.shape == (2, directed)
    assert graph.num_classes == classes
    pairs = set(map(tuple, graph.edges.T.tolist()))
    assert len(pairs) == directed
    assert {(b, a) for a, b in pairs} == pairs
    assert graph.y[graph.train].bincount().tolist() == [20] * classes
    assert (len(graph.train), len(graph.val), len(graph.test)) == (train, 500, 1000)
    parts = [set(p.tolist()) for p in (graph.train, graph.val, graph.test)]
    assert len(set.union(*parts)) == train + 1500
    assert set(graph.x.unique().tolist()) == {0.0, 1.0}


def test_citations_join_like_with_like(data_folder: Path) -> None:
    """Cora's edge homophily is known to be about 0.81; features or labels out of order would break it."""
    graph = data.graph("cora")
    same = (graph.y[graph.edges[0]] == graph.y[graph.edges[1]]).double().mean()
    assert float(same) == pytest.approx(0.81, abs=0.005)


def test_etth1_bounds_and_scale(data_folder: Path) -> None:
    series = data.series("etth1")
    assert series.columns == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert (series.train, series.val, series.test) == ((0, 8640), (8640, 11520), (11520, 14400))
    assert torch.allclose(series.values[:8640].mean(0), torch.zeros(7), atol=1e-4)
    assert torch.allclose(series.values[:8640].std(0), torch.ones(7), atol=1e-3)
    own_units = series.values * series.std + series.mean
    assert own_units[0, 0] == pytest.approx(5.827, abs=1e-3)
    assert own_units[1, 6] == pytest.approx(27.787, abs=1e-3)


def test_windows_follow_each_other_and_keep_to_their_part(data_folder: Path) -> None:
    series = data.series("etth1")
    past, future = series.windows("test", 96, 24)
    assert len(past) == 2880 - 24 + 1
    assert torch.equal(past[0], series.values[11520 - 96 : 11520])
    assert torch.equal(future[0], series.values[11520:11544])
    assert torch.equal(future[-1], series.values[14400 - 24 : 14400])
    past, future = series.windows("train", 96, 24)
    assert len(past) == 8640 - 96 - 24 + 1
    assert torch.equal(past[5], series.values[5:101])
    with pytest.raises(WorkingPapersError, match="a window takes 9000 rows; the test part has"):
        series.windows("test", 5000, 4000)


def interpret(command: list[str]) -> list[str]:
    """Carry out a SCAN command by the grammar of the paper's appendix."""
    if "and" in command:
        i = command.index("and")
        return interpret(command[:i]) + interpret(command[i + 1 :])
    if "after" in command:
        i = command.index("after")
        return interpret(command[i + 1 :]) + interpret(command[:i])
    if command[-1] in ("twice", "thrice"):
        return interpret(command[:-1]) * (2 if command[-1] == "twice" else 3)
    act = [] if command[0] == "turn" else [f"I_{command[0].upper()}"]
    if command[-1] not in ("left", "right"):
        return act
    turn = [f"I_TURN_{command[-1].upper()}"]
    if "opposite" in command:
        return turn * 2 + act
    if "around" in command:
        return (turn + act) * 4
    return turn + act


@pytest.mark.parametrize(
    ("split", "train", "test"),
    [
        ("simple", 16_728, 4_182),
        ("length", 16_990, 3_920),
        ("jump", 14_670, 7_706),
        ("turn_left", 21_890, 1_208),
    ],
)
def test_scan_commands_mean_their_actions(data_folder: Path, split: str, train: int, test: int) -> None:
    pairs = data.scan(split)
    assert (len(pairs.train), len(pairs.test)) == (train, test)
    assert all(interpret(command) == actions for command, actions in pairs.test[::7])
    assert all(interpret(command) == actions for command, actions in pairs.train[::97])


def value(tokens: list[str]) -> int:
    """Evaluate a ListOps expression by its operators."""
    stack: list[list[str | int]] = [[]]
    for token in tokens:
        if token.startswith("["):
            stack.append([token])
        elif token == "]":
            operator, *numbers = stack.pop()
            arguments = [int(n) for n in numbers]
            stack[-1].append(
                {
                    "[MAX": max(arguments),
                    "[MIN": min(arguments),
                    "[FIRST": arguments[0],
                    "[LAST": arguments[-1],
                    "[MED": int(np.median(arguments)),
                    "[SM": sum(arguments) % 10,
                }[str(operator)]
            )
        else:
            stack[-1].append(int(token))
    return int(stack[0][0])


@pytest.mark.parametrize(("part", "count"), [("test", 500), ("d8", 10_000), ("d14", 10_000), ("d20", 10_000)])
def test_listops_values_are_right(data_folder: Path, part: str, count: int) -> None:
    expressions = data.listops(part)
    assert len(expressions) == count
    assert all(value(tokens) == target for tokens, target in expressions[::20])


UNARY = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "shift": lambda x: x[1:] + x[:1],
    "echo": lambda x: x + x[-1:],
    "repeat": lambda x: x + x,
    "swap_first_last": lambda x: x[-1:] + x[1:-1] + x[:1] if len(x) > 1 else x,
}
BINARY = {
    "append": lambda x, y: x + y,
    "prepend": lambda x, y: y + x,
    "remove_first": lambda x, y: y,
    "remove_second": lambda x, y: x,
}


def carry_out(tokens: list[str]) -> tuple[list[str], list[str]]:
    """Carry out a PCFG SET expression by the operations of the paper's Table 1; return result and rest."""
    head, rest = tokens[0], tokens[1:]
    if head in UNARY:
        result, rest = carry_out(rest)
        return UNARY[head](result), rest
    if head in BINARY:
        first, rest = carry_out(rest)
        assert rest[0] == ","
        second, rest = carry_out(rest[1:])
        return BINARY[head](first, second), rest
    end = tokens.index(",") if "," in tokens else len(tokens)
    return tokens[:end], tokens[end:]


@pytest.mark.parametrize(
    ("part", "count"),
    [("dev", 4860), ("test", 9721), ("systematicity", 10_175), ("productivity", 11_333)],
)
def test_pcfg_expressions_mean_their_results(data_folder: Path, part: str, count: int) -> None:
    pairs = data.pcfg_set(part)
    assert len(pairs) == count
    for source, target in pairs[::5]:
        result, rest = carry_out(source)
        assert (result, rest) == (target, [])


def test_click_logs_have_their_columns(data_folder: Path) -> None:
    rows = data.clicks("criteo_sample")
    assert len(rows) == 200
    assert list(rows[0]) == ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    assert {row["label"] for row in rows} == {"0", "1"}
    tabs = data.clicks("byterec_sample")
    assert len(tabs) == 200
    assert {row["finish"] for row in tabs} == {"0", "1"}
    assert [len(data.clicks(n)) for n in ("avazu_sample", "amazon_books_sample")] == [100, 100]


def test_movielens_is_read_from_its_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    flags = ["|".join("1" if g == k else "0" for g in range(19)) for k in (3, 18)]
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ml-100k/u.data", "2\t1\t5\t880000000\n1\t2\t3\t880000001\n")
        films = f"1|Caf\xe9 (1995)|01-Jan-1995||url|{flags[0]}\n2|Heat (1995)|||url|{flags[1]}\n"
        archive.writestr("ml-100k/u.item", films.encode("latin-1"))
    file = tmp_path / "ml.zip"
    file.write_bytes(buffer.getvalue())
    monkeypatch.setattr(sys.modules["workingpapers.data.clicks"], "locate", lambda name: file)
    ratings = data.movielens100k()
    assert ratings.user.tolist() == [1, 0]
    assert ratings.item.tolist() == [0, 1]
    assert ratings.rating.tolist() == [5.0, 3.0]
    assert ratings.time.tolist() == [880_000_000, 880_000_001]
    assert ratings.titles == ["Caf\xe9 (1995)", "Heat (1995)"]
    assert ratings.genres.argmax(1).tolist() == [3, 18]
    assert ratings.genres.sum(1).tolist() == [1.0, 1.0]


def test_speech(data_folder: Path) -> None:
    speech = data.fsdd()
    assert sum(len(a) for a in speech.audio) == 4_194_913
    assert speech.rate == 8000
    assert int(speech.is_test.sum()) == 6 * 10 * 5
    cells = torch.stack([speech.digit, speech.speaker, speech.take], 1).unique(dim=0)
    assert len(cells) == 1200
    assert max(float(a.abs().max()) for a in speech.audio) <= 1.0


def test_pictures(data_folder: Path) -> None:
    from PIL import Image

    five, fourteen = data.superres("Set5"), data.superres("Set14")
    assert (len(five), len(fourteen)) == (5, 14)
    file = data_folder / "superres/Set5/img_003_SRF_2_HR.png"
    assert np.array_equal(five[2], np.asarray(Image.open(file)))
    assert fourteen[2].ndim == 2
    retina = data.retina_chase()
    assert retina.x.shape == (14, 3, 480, 499)
    vessels = retina.y.double().mean((1, 2))
    assert float(vessels.min()) > 0.06
    assert float(vessels.max()) < 0.085
    inside = retina.y.bool().unsqueeze(1)
    green = retina.x[:, 1:2]
    assert float(green[inside].mean()) < float(green[~inside & (green > 0.1)].mean())  # vessels are dark


@pytest.mark.parametrize(
    ("name", "connections", "nodes"),
    [
        ("aconnectome_white_1986_whole", 2961, 309),
        ("aconnectome_white_1986_A", 1899, 221),
        ("aconnectome_white_1986_L4", 1769, 215),
        ("herm_full_edgelist", 7379, 448),
    ],
)
def test_connectomes(data_folder: Path, name: str, connections: int, nodes: int) -> None:
    found = data.celegans(name)
    assert len(found) == connections
    assert len({c.source for c in found} | {c.target for c in found}) == nodes
    assert {c.kind for c in found} == {"chemical", "electrical"}
    assert all(c.weight > 0 for c in found)


@pytest.mark.parametrize(
    ("name", "count"),
    [("acasxu", 186), ("mnist_fc", 90), ("lsnc", 40), ("ml4acopf", 57), ("vit", 20), ("cgan", 1)],
)
def test_verification_problems_have_their_files(data_folder: Path, name: str, count: int) -> None:
    instances = data.vnncomp(name)
    assert len(instances) >= count
    assert all(i.network.is_file() and i.specification.is_file() and i.seconds > 0 for i in instances)


def test_every_name_loads_and_has_a_folder(data_folder: Path) -> None:
    bundled = {"digits", "diabetes", "breast_cancer", "wine", "iris"}
    for name in data.names():
        if name in ("movielens100k", "cifar10", "mnist", "fashion_mnist"):
            continue  # fetched from elsewhere; loaded in full by the tests of images
        assert data.load(name) is not None
        if name in bundled:
            with pytest.raises(WorkingPapersError, match="comes with scikit-learn"):
                data.path(name)
        else:
            assert data_folder in data.path(name).parents


def test_every_shipped_file_belongs_to_a_named_set() -> None:
    folders = {folder for _, folder in data._SETS.values() if folder}
    for file in store.checksums():
        assert any(file.startswith(folder + "/") for folder in folders), file


def test_unknown_names_give_the_nearest() -> None:
    for name, near, loader in (
        ("corra", "cora", data.load),
        ("minst", "mnist", data.path),
        ("yatch", "yacht", data.table),
        ("wikitext", "wikitext2", data.text),
        ("citeser", "citeseer", data.graph),
        ("etth", "etth1", data.series),
        ("simpel", "simple", data.scan),
        ("d15", "d14", data.listops),
        ("produktivity", "productivity", data.pcfg_set),
        ("criteo", "criteo_sample", data.clicks),
        ("Set4", "Set14", data.superres),
        ("herm_full", "herm_full_edgelist", data.celegans),
        ("acas", "acasxu", data.vnncomp),
    ):
        with pytest.raises(UnknownName, match=f"'{near}'"):
            loader(name)
