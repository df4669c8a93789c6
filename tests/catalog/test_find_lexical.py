"""BM25F against the formula worked by hand, latent semantic analysis against numpy's own SVD."""

import math

import numpy as np
import pytest

from workingpapers.catalog.lexical import Field, build
from workingpapers.catalog.semantics import fit
from workingpapers.catalog.text import stem

FIELDS = [Field(3.0, 0.5), Field(1.0, 0.75)]
DOCUMENTS = [
    ["relu network", "relu zebra cat"],
    ["softmax", "cat cat cat relu mouse"],
    ["network", "horse"],
    ["zebra mouse", "horse softmax dog network"],
]
HALF = 2e-3  # relative rounding of the float16 numbers that the index holds


def test_scores_equal_the_formula_worked_by_hand() -> None:
    scores = build(DOCUMENTS, FIELDS, saturation=1.2).scores({"relu": 1.0, "cat": 0.5})
    titles, bodies = (2 + 1 + 1 + 2) / 4, (3 + 5 + 1 + 4) / 4
    rarity = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))  # both words stand in two of the four documents

    def saturated(frequency: float) -> float:
        return rarity * frequency * 2.2 / (frequency + 1.2)

    relu_0 = 3 / (0.5 + 0.5 * 2 / titles) + 1 / (0.25 + 0.75 * 3 / bodies)
    cat_0 = 1 / (0.25 + 0.75 * 3 / bodies)
    relu_1 = 1 / (0.25 + 0.75 * 5 / bodies)
    cat_1 = 3 / (0.25 + 0.75 * 5 / bodies)
    expected = [
        saturated(relu_0) + 0.5 * saturated(cat_0),
        saturated(relu_1) + 0.5 * saturated(cat_1),
        0,
        0,
    ]
    assert scores == pytest.approx(expected, rel=HALF)


def test_one_unweighted_field_is_plain_bm25() -> None:
    texts = ["cat dog", "cat cat cat bird fish", "bird"]
    scores = build([[text] for text in texts], [Field(1.0, 0.75)], saturation=1.5).scores({"cat": 1.0})
    average = sum(len(text.split()) for text in texts) / 3
    for text, score in zip(texts, scores, strict=True):
        count = text.split().count("cat")
        spread = 1.5 * (0.25 + 0.75 * len(text.split()) / average)
        expected = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5)) * count * 2.5 / (count + spread)
        assert score == pytest.approx(expected, rel=HALF)


def test_unknown_terms_and_empty_fields_count_nothing() -> None:
    found = build([["cat", ""], ["", "dog"]], FIELDS)
    assert found.scores({"unicorn": 1.0}) == [0.0, 0.0]
    assert found.impact("unicorn") == {}
    assert build([["", ""]], FIELDS).scores({"cat": 1.0}) == [0.0]


def test_a_compound_is_one_word_only_where_it_is_also_written_so() -> None:
    found = build([["batch-norm of ReLU-networks"], ["batchnorm"]], [Field(1.0)])
    assert set(found.impact("batchnorm")) == {0, 1}
    assert "relunetwork" not in found.row
    assert set(found.impact("relu")) == {0}
    plural = build([["pre-activation"], ["preactivations"]], [Field(1.0)])
    assert set(plural.impact(stem("preactivation"))) == {0, 1}


def test_matrix_holds_the_impacts_at_their_places() -> None:
    found = build(DOCUMENTS, FIELDS)
    matrix = found.matrix()
    for term, row in found.row.items():
        assert {n: matrix[row, n] for n in np.flatnonzero(matrix[row])} == found.impact(term)


def test_space_equals_a_truncated_svd_of_the_unit_rows() -> None:
    postings = build(DOCUMENTS, FIELDS)
    rows = postings.matrix().T
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    query = np.zeros(len(postings.terms))
    query[[postings.row["relu"], postings.row["dog"]]] = 1.0, 0.5
    for rank in (1, 2, 3, 4):
        placed_query = right[:rank] @ query
        placed = left[:, :rank] * values[:rank]
        expected = placed @ placed_query
        expected /= np.linalg.norm(placed_query) * np.linalg.norm(placed, axis=1)
        space = fit(postings, rank)
        found = space.cosines(space.place(postings.scores({"relu": 1.0, "dog": 0.5})))
        assert found == pytest.approx(expected, abs=HALF)


def test_words_that_never_meet_are_near_when_they_keep_the_same_company() -> None:
    texts = ["car engine wheel", "automobile engine wheel", "rose tulip garden", "tulip garden"]
    postings = build([[text] for text in texts], [Field(1.0)])
    space = fit(postings, 2)
    near = space.cosines(space.place(postings.scores({"car": 1.0})))
    assert postings.scores({"car": 1.0})[1] == 0
    assert near[1] > 0.9
    assert max(near[2:]) < 0.1


def test_a_query_without_known_words_lies_nowhere() -> None:
    postings = build(DOCUMENTS, FIELDS)
    space = fit(postings)
    assert space.cosines(space.place(postings.scores({"unicorn": 1.0}))) == [0.0] * 4
