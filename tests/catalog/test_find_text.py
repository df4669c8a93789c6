"""Words, stems, spelling and synonyms, on which the search stands."""

import itertools

import pytest

from workingpapers.catalog.spelling import corrections, distance, parts
from workingpapers.catalog.synonyms import ABBREVIATIONS, alike, spelled_out
from workingpapers.catalog.text import fold, stem, terms, words

ONE_STEM = [
    "normalisation normalization normalised normalizes normaliser",
    "optimiser optimizer optimization optimal optimise optimum",
    "generalise generalization general generalizes",
    "sparse sparsity sparsify sparsely",
    "classifier classification classify classes",
    "network networks",
    "prune pruning pruned prunes",
    "behaviour behavior behavioural",
    "centre center centred",
    "modelling modeling models modelled",
    "analyse analyze analysis analyses",
    "noise noisy",
    "memories memory",
    "stability stable stabilise",
    "evolution evolve evolving",
    "explanation explain explained",
    "relu relus",
    "bias biases biased",
    "matrices matrix",
]
TWO_STEMS = [
    ("position", "positive"),
    ("transformer", "transformation"),
    ("general", "generate"),
    ("memory", "memorise"),
    ("critic", "critical"),
    ("partial", "part"),
    ("quantity", "quantise"),
    ("objective", "object"),
    ("different", "differentiable"),
    ("neuron", "neural"),
    ("loss", "less"),
]


@pytest.mark.parametrize("group", ONE_STEM)
def test_forms_of_one_word_share_a_stem(group: str) -> None:
    assert len({stem(word) for word in group.split()}) == 1


@pytest.mark.parametrize(("one", "other"), TWO_STEMS)
def test_different_words_keep_different_stems(one: str, other: str) -> None:
    assert stem(one) != stem(other)


def test_a_stem_is_never_empty_and_short_words_and_numbers_stay() -> None:
    assert [stem(word) for word in ("kan", "l1", "2d", "sgd", "resnet50")] == [
        "kan",
        "l1",
        "2d",
        "sgd",
        "resnet50",
    ]
    letters = ["".join(word) for word in itertools.product("aeiys", repeat=5)]
    assert all(len(stem(word)) >= 3 for word in letters)


def test_folding_drops_accents_and_spells_out_greek_letters() -> None:
    assert fold("Fréchet ΠNeSy naïve") == "frechet pinesy naive"
    assert words("α,β-CROWN") == words("alpha beta-crown")
    assert words("日本語 \U0001f600") == []
    assert words("long‑range – dash") == ["long", "range", "long-range", "dash"]


def test_stop_words_single_letters_and_compounds_are_no_terms() -> None:
    assert terms("How do I use the x of a batch-norm?") == ["batch", "norm"]
    assert terms("Hi, I\u2019m looking for papers: it doesn't, isn't and won't norm") == ["norm"]


def test_distance_counts_single_edits_and_swaps() -> None:
    word = "attention"
    for at in range(len(word)):
        assert distance(word, word[:at] + word[at + 1 :]) == 1
        assert distance(word, word[:at] + "#" + word[at:]) == 1
        assert distance(word, word[:at] + "#" + word[at + 1 :]) == 1
    assert distance("atetntion", word) == 1
    assert distance("ca", "abc") == 3  # a swap is not edited again
    assert distance("kitten", "sitting") == 3
    assert distance("", "abc") == 3
    assert distance(word, word) == 0


def test_distance_obeys_the_bounds_and_symmetry_of_a_distance() -> None:
    some = ["".join(word) for length in range(4) for word in itertools.product("ab", repeat=length)]
    for a, b in itertools.product(some, some):
        assert distance(a, b) == distance(b, a)
        assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))
        assert (distance(a, b) == 0) == (a == b)


def test_corrections_are_the_nearest_known_words() -> None:
    known = ["attention", "attenuation", "retention", "network", "networks", "net"]
    assert corrections("atention", known) == ["attention"]
    assert corrections("newtork", known) == ["network"]
    assert corrections("tatention", known) == ["attention"]
    assert corrections("dog", known) == []
    assert corrections("zebrafish", known) == []
    assert corrections("ketwork", known) == []  # another first letter makes another word


def test_words_written_together_are_parted_at_known_words() -> None:
    assert parts("batchnorm", {"batch", "norm", "bat"}) == ("batch", "norm")
    assert parts("batchnorm", {"batch", "form"}) is None
    assert parts("atom", {"at", "om"}) is None


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("kan", "kolmogorov arnold"),
        ("sae", "sparse autoencoder"),
        ("gnn", "graph neural network"),
        ("ntk", "neural tangent kernel"),
        ("moe", "mixture of experts"),
        ("inr", "implicit neural representation"),
        ("nas", "architecture search"),
    ],
)
def test_abbreviations_stand_for_their_words_and_their_words_for_them(short: str, full: str) -> None:
    assert set(terms(full)) <= {stem(word) for word in spelled_out([short])}
    assert short in spelled_out(terms(f"deep {full} papers"))


def test_part_of_a_phrase_does_not_stand_for_its_abbreviation() -> None:
    assert "gnn" not in spelled_out(terms("graph network"))
    assert "gnn" not in spelled_out(terms("neural graph network"))


def test_words_of_one_meaning_bring_each_other() -> None:
    assert "dormant" in alike(terms("dead units"))
    assert "dead" in alike(terms("dormant units"))


def test_no_abbreviation_is_lost_among_the_stop_words() -> None:
    assert all(terms(short) == [stem(short)] for short in ABBREVIATIONS)
