"""find: a user's own words find the paper; spelling, filters, order and errors."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from workingpapers.catalog import ledger
from workingpapers.catalog.find import Match, find, similar
from workingpapers.catalog.index import Index, build
from workingpapers.catalog.query import parse
from workingpapers.catalog.records import Record, record, records
from workingpapers.catalog.semantics import fit
from workingpapers.catalog.text import stem
from workingpapers.errors import UnknownName, WorkingPapersError

module = import_module("workingpapers.catalog.find")
QUERIES = json.loads(Path(__file__).with_name("queries.json").read_text("utf-8"))

# Chosen by hand by their subject, ReLU networks: their geometry, expressivity, training and certification.
ABOUT_RELU_NETWORKS = """
    benign_overfitting_lazy compose_fixed_relu convex_admm_relu early_alignment edim_oscillation gmp
    hidden_symmetries max_initial_lr mdl_networks meanfield_knots min_width_compact min_width_leaky
    minimal_width_rnn neural_hash ntk_permutation optimal_memorization path_norm_toolkit prescriptive_relu
    random_feature_amplification region_counting_complexity relax_expressivity relu_ood_limits
    relu_optimal_sets robust_convex_relu splinecam univariate_interpolation xor_benign_grokking xor_sgd_phases
""".split()


def ids(found: list[Match]) -> list[str]:
    return [match.record.id for match in found]


def hits(queries: list[tuple[str, str]], among: int = 5) -> float:
    return sum(id in ids(find(query, limit=among)) for query, id in queries) / len(queries)


@pytest.fixture
def search_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Index]:
    """Make find search the given records instead of the catalogue."""

    def use(*chosen: Record) -> Index:
        built = build(chosen)
        monkeypatch.setattr(module, "index", lambda: built)
        return built

    return use


def test_the_queries_ask_for_sixty_papers_of_all_families() -> None:
    assert len({query["id"] for query in QUERIES}) == len(QUERIES) == 60
    assert {record(query["id"]).family for query in QUERIES} == {r.family for r in records().values()}


def test_a_users_own_words_find_the_paper_among_the_first_five() -> None:
    assert hits([(query["query"], query["id"]) for query in QUERIES]) >= 0.9


def test_asks_that_are_not_indexed_find_their_paper(search_in: Callable[..., Index]) -> None:
    """The weights must serve queries that nobody indexed: half the asks are indexed, others are asked."""
    chance = random.Random(0)
    kept, asked = [], []
    for one in records().values():
        mixed = chance.sample(one.asks, len(one.asks))
        kept.append(replace(one, asks=tuple(mixed[:4])))
        asked.append((mixed[4], one.id))
    search_in(*kept)
    assert hits(asked) >= 0.85


def test_one_mistyped_word_costs_little() -> None:
    chance = random.Random(0)

    def mistyped(query: str) -> str:
        words = query.split()
        at = chance.choice([n for n, word in enumerate(words) if len(word) >= 6] or [0])
        word, cut = words[at], chance.randrange(1, len(words[at]) - 1)
        words[at] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
        return " ".join(words)

    assert hits([(mistyped(query["query"]), query["id"]) for query in QUERIES]) >= 0.9


def test_relu_networks_brings_papers_about_relu_networks() -> None:
    assert len(set(ids(find("ReLU networks", limit=20))) & set(ABOUT_RELU_NETWORKS)) >= 14


def test_replacing_softmax_finds_the_paper_that_does() -> None:
    assert "relu_attention_vit" in ids(find("replace softmax in attention", limit=5))


@pytest.mark.parametrize(
    ("query", "id"),
    [
        ("kolmogorov arnlod network", "s_kan"),
        ("sparse autoencodr error", "sae_dark_matter"),
        ("mixture of expers relu router", "remoe"),
        ("travelling salesmen pointer", "ptr_net"),
        ("hypernetwroks", "hypernetworks"),
        ("over smoothing", "dagnn"),
        ("over-smoothing", "dagnn"),
        ("preactivation", "preact_resnet"),
        ("timm", "rsb"),
    ],
)
def test_misspelt_words_are_understood(query: str, id: str) -> None:
    assert id in ids(find(query, limit=5))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("batch normalisation in residual networks", "batch normalization in residual network"),
        ("optimiser for large batches", "optimizers for large batch"),
        ("neural behaviour modelling", "neural behavior modeling"),
        ("pre-trained low-rank adapters", "pre trained low rank adapter"),
        ("Fréchet covariance", "frechet covariance"),
        ("RELU   Networks!?", "relu networks"),
        ("over-smoothing graphs", "over smoothing graph"),
        ("Hi, I'm looking for recent papers about spiking networks, thanks!", "spiking networks"),
        ("it doesn't train", "it does not train"),
    ],
)
def test_spellings_of_one_query_give_one_answer(one: str, other: str) -> None:
    assert [(m.record.id, m.score) for m in find(one)] == [(m.record.id, m.score) for m in find(other)]


@pytest.mark.parametrize(
    ("query", "id"),
    [
        ("KAN", "s_kan"),
        ("SAE", "sae_dark_matter"),
        ("GNN oversmoothing", "dagnn"),
        ("NTK", "ntk"),
        ("MoE", "remoe"),
        ("INR", "sl2a_inr"),
        ("NAS with RL", "nas_rl"),
        ("batchnorm-free resnet", "nf_resnet"),
        ("VAD", "marblenet"),
    ],
)
def test_abbreviations_are_understood(query: str, id: str) -> None:
    assert id in ids(find(query, limit=5))


@pytest.mark.parametrize("of", ["id", "title", "arxiv", "url"])
def test_a_papers_names_bring_it_first(of: str) -> None:
    for one in list(records().values())[::7]:
        if name := getattr(one, of):
            best = find(name, limit=1)[0]
            assert best.record == one
            assert best.score == 1.0
    assert ids(find("HL-Gauss", limit=1)) == ["hl_gauss"]


def test_filters_keep_what_they_name_in_the_same_order() -> None:
    everything = find("sparse activations of a language model", limit=len(records()))
    for name in ("family", "kind"):
        for value in sorted({getattr(r, name) for r in records().values()}):
            kept = find("sparse activations of a language model", limit=len(records()), **{name: value})
            assert kept == [match for match in everything if getattr(match.record, name) == value]
    both = find("sparse activations of a language model", family="sparsity", kind="transform", limit=3)
    assert {(m.record.family, m.record.kind) for m in both} == {("sparsity", "transform")}
    assert len(both) == 3


def test_working_keeps_papers_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "works", lambda id: id in ("mish", "gla"))
    assert ids(find("smooth activation function", working=True)) == ["mish", "gla"]
    assert len(find("smooth activation function", working=False)) == 10


def test_limit_cuts_the_ranking_and_does_not_change_it() -> None:
    long = find("attention without softmax", limit=50)
    assert find("attention without softmax", limit=7) == long[:7]
    assert [match.score for match in long] == sorted((match.score for match in long), reverse=True)
    assert all(0 < match.score <= 1 for match in long)


def test_equal_papers_stand_in_the_order_of_the_records(search_in: Callable[..., Index]) -> None:
    one = replace(record("mish"), title="Quokka", summary="", claims=(), topics=(), asks=(), formula=None)
    search_in(*(replace(one, id=id) for id in ("zebra", "aardvark", "mouse")), record("gla"))
    found = find("quokka", limit=3)
    assert ids(found) == ["zebra", "aardvark", "mouse"]
    assert len({match.score for match in found}) == 1


def test_meaning_finds_papers_that_have_none_of_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(record("mish"), claims=(), topics=(), asks=(), formula=None, title="", family="", kind="")
    summaries = {
        "car": "car engine wheel",
        "rose": "rose tulip garden",
        "automobile": "automobile engine wheel",
        "tulip": "tulip garden",
    }
    built = build([replace(one, id=f"{id}_net", summary=text) for id, text in summaries.items()])
    two_themes = replace(built, space=fit(built.postings, 2))
    monkeypatch.setattr(module, "index", lambda: two_themes)
    assert ids(find("car"))[:2] == ["car_net", "automobile_net"]


def test_neighbouring_words_count_more_than_scattered_ones(search_in: Callable[..., Index]) -> None:
    one = replace(record("mish"), claims=(), topics=(), asks=(), formula=None, title="")
    scattered = replace(one, id="scattered", summary="quokka near wallaby zebra")
    together = replace(one, id="together", summary="wallaby near quokka zebra")
    search_in(scattered, together, record("gla"))
    assert ids(find("quokka zebra", limit=2)) == ["together", "scattered"]


def test_highlights_are_the_querys_words_in_the_paper() -> None:
    first = find("periodic signals extrapolaton zebra", limit=1)[0]
    assert first.record.id == "snake"
    assert set(first.highlights) == {"periodic", "signals", "extrapolation"}


@pytest.mark.parametrize("query", ["", "   ", "\n\t", None, 3])
def test_an_empty_query_is_an_error(query: object) -> None:
    with pytest.raises(WorkingPapersError, match="needs some words"):
        find(query)  # type: ignore[arg-type]


def test_unknown_filters_and_bad_limits_are_errors_that_help() -> None:
    with pytest.raises(UnknownName, match="no family is named 'atention'; the nearest name.* 'attention'"):
        find("softmax", family="atention")
    with pytest.raises(UnknownName, match="no kind is named 'layers'; the nearest name.* 'layer'"):
        find("softmax", kind="layers")
    for limit in (0, -1, 2.5):
        with pytest.raises(WorkingPapersError, match="1 or more"):
            find("softmax", limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("query", ["zzzz qqqq", "how to", "日本語", "\U0001f600", "?!", "x" * 10_000])
def test_words_that_nobody_wrote_find_nothing(query: str) -> None:
    assert find(query) == []


def test_a_whole_page_is_a_query_too() -> None:
    page = " ".join([*(r.summary for r in records().values()), *(f"unknown{n}word" for n in range(500))])
    assert len(find(page)) == 10
    assert ids(find("periodic functions " * 2000, limit=1)) == ids(find("periodic functions", limit=1))


def test_words_count_by_how_surely_they_were_meant() -> None:
    words = module.index().postings
    typed = parse("softmax", words)
    assert typed.weights["softmax"] == 1.0
    corrected = parse("sofmtax", words)
    assert 0 < corrected.weights["softmax"] < 1
    assert corrected.shown["softmax"] == "softmax"
    both = parse("dead dormant", words)
    assert both.weights["dead"] == both.weights["dormant"] == 1.0
    assert parse("dead", words).weights["dormant"] < 0.5


def test_neighbours_are_also_looked_for_as_one_word_unless_that_turns_the_meaning() -> None:
    words = module.index().postings
    for written in ("over-smoothing", "over smoothing", "batch norm"):
        assert stem(written.replace("-", "").replace(" ", "")) in parse(written, words).weights
    assert stem("asymmetric") in words.row
    assert stem("asymmetric") not in parse("a symmetric function", words).weights


def test_similar_papers_share_the_subject() -> None:
    for id, others in {
        "autorep": {"deepreduce", "deepreshape"},
        "s_kan": {"af_kan"},
        "g_sae": {"mc_fc_sae", "sae_dark_matter"},
        "dagnn": {"dgmlp"},
    }.items():
        found = similar(id, limit=5)
        assert others <= set(ids(found))
        assert id not in ids(similar(id, limit=len(records())))
    assert "private" in similar("autorep", limit=1)[0].highlights
    with pytest.raises(UnknownName, match="'mish'"):
        similar("mishh")


def test_similar_is_mutual() -> None:
    scores = {match.record.id: match.score for match in similar("mish", limit=len(records()))}
    back = {match.record.id: match.score for match in similar("golu", limit=len(records()))}
    assert scores["golu"] == pytest.approx(back["mish"])


def test_a_search_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from workingpapers.catalog.find import find; assert find('sparse attentoin');"
        "print([m for m in ('torch', 'numpy', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
