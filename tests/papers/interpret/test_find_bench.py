"""The benchmark: truths that pass, wrong answers that do not, questions that are counted, code that is confined."""

import random
import sys
from itertools import pairwise

import numpy as np
import pytest

from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.papers.interpret import _atoms
from workingpapers.papers.interpret._interpreters import (
    BlackBox,
    Constant,
    Explanation,
    Interpolator,
    LanguageModel,
    OutOfQuestions,
    SparseRegression,
    StringSearch,
    words,
)
from workingpapers.papers.interpret._items import default_encoder
from workingpapers.papers.interpret.find_bench import FIND, GROUPS, errors


def letters(sentences: object) -> np.ndarray:
    """Encode by counts of letter pairs: deterministic, and equal for equal sentences."""
    rows = []
    for sentence in sentences:  # type: ignore[attr-defined]
        row = np.zeros(26 * 26)
        low = [ord(c) - 97 for c in sentence.lower() if "a" <= c <= "z"]
        for a, b in pairwise(low):
            row[26 * a + b] += 1
        rows.append(row)
    return np.stack(rows)


def test_the_truth_of_every_item_passes() -> None:
    bench = FIND(("numeric", "string", "module"), encode=letters)
    items = bench.items(7, 90)
    assert {i.group for i in items if i.family == "numeric"} == set(GROUPS)
    assert [bench.score(i, i.answer) for i in items] == [1.0] * 90
    assert [bench.score(i, Explanation("0*x", "no idea")) for i in items[:2]] == [0.0, 0.0]


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, other = (FIND().items(3, 40) for _ in range(2))
    assert repr(one) == repr(other)
    assert FIND().items(3, 10) == one[:10]
    assert all(np.array_equal(a.held_out(), b.held_out()) for a, b in zip(one, other, strict=True))
    assert repr(FIND().items(4, 40)) != repr(one)


def test_a_question_too_many_raises() -> None:
    box = FIND().items(0, 1)[0].black_box(3)
    for x in (0.0, 1.0, 2.0):
        box(x)
    with pytest.raises(OutOfQuestions, match="asked 3 times"):
        box(3.0)


@pytest.mark.parametrize("interpreter", [Constant(), Interpolator(), SparseRegression()])
@pytest.mark.parametrize("budget", [1, 2, 7, 60])
def test_interpreters_keep_to_their_budget(interpreter: Constant, budget: int) -> None:
    box = BlackBox(_atoms.numeric("3*abs(x - 5)"), budget)
    explained = interpreter.explain(box, budget)
    assert box.asked <= budget
    assert np.isfinite(_atoms.numeric(explained.code)(np.linspace(-128, 128, 50))).all()


def test_a_corrupted_item_differs_inside_alone() -> None:
    for item in FIND(("numeric",), ("corrupted",)).items(1, 20):
        base = item.answer.code.rpartition("), ")[0]
        assert item.interval is not None
        low, high = item.interval
        assert 0.05 * 256 - 0.02 <= high - low <= 0.2 * 256 + 0.02
        assert f"(x > {low}) & (x < {high})" in base + item.answer.code
        clean = _clean(item.answer.code)
        found = errors(item, clean)
        assert found["outside"] == 0.0
        assert found["inside"] > 0.0


def _clean(code: str) -> str:
    """Return the last argument of where(...)."""
    depth, start = 0, 0
    for place, c in enumerate(code[6:-1], 6):
        depth += c in "("
        depth -= c in ")"
        if c == "," and depth == 0:
            start = place + 1
    return code[start:-1].strip()


def test_noise_is_in_the_answers_and_not_in_the_truth() -> None:
    item = FIND(("numeric",), ("noisy",)).items(0, 1)[0]
    x = np.linspace(-128, 128, 4000)
    gap = item.function()(x) - _atoms.numeric(item.answer.code)(x)
    assert item.noise > 0
    assert gap.std() == pytest.approx(item.noise, rel=0.06)
    assert abs(gap.mean()) < 4 * item.noise / 4000**0.5


def test_errors_are_relative_to_the_variance() -> None:
    item = FIND(("numeric",), ("atomic",)).items(5, 1)[0]
    truth = _atoms.numeric(item.answer.code)(item.held_out())
    found = errors(item, f"({item.answer.code}) + {0.3 * float(truth.std())!r}")
    assert found["all"] == pytest.approx(0.09)
    assert errors(item, f"{float(truth.mean())!r}")["all"] == pytest.approx(1.0)
    bench = FIND()
    assert bench.score(item, f"({item.answer.code}) + {0.31 * float(truth.std())!r}") == 1.0
    assert bench.score(item, f"({item.answer.code}) + {0.32 * float(truth.std())!r}") == 0.0


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os')",
        "x.__class__",
        "(lambda: x)()",
        "9**9**9",
        "2**(1000000)",
        "[y for y in [1]]",
        "import os",
    ],
)
def test_explanations_run_confined(code: str) -> None:
    with pytest.raises(WorkingPapersError, match="one expression of x"):
        _atoms.numeric(code)
    item = FIND().items(0, 1)[0]
    assert errors(item, code)["all"] == np.inf
    assert FIND().score(item, code) == 0.0


@pytest.mark.parametrize(
    ("code", "given", "wanted"),
    [
        ("reverse(x)", "abc", "cba"),
        ("rotate(x, 2)", "abcde", "cdeab"),
        ("shift(x, 3)", "xyZ-a", "abC-d"),
        ("replace(duplicate(x), 'a', 'o')", "cat", "cotcot"),
        ("insert(x, 'q', 2)", "abcd", "abqcd"),
        ("drop(swapcase(x), 0)", "aBc", "bC"),
    ],
)
def test_edits_do_what_their_names_say(code: str, given: str, wanted: str) -> None:
    assert _atoms.text(code)(given) == wanted


def test_string_search_solves_every_pair_of_edits() -> None:
    bench = FIND(("string",))
    for item in bench.items(2, 12):
        if item.answer.code.count("(") <= 2:
            assert bench.score(item, StringSearch().explain(item.black_box(10), 10)) == 1.0


@pytest.mark.parametrize("code", ["2.5*x + 3", "4*abs(x)", "3*x**2 + 2*log(abs(x) + 1)", "1.5*(x > 17)"])
def test_sparse_regression_recovers_what_is_in_its_library(code: str) -> None:
    told = SparseRegression().explain(BlackBox(_atoms.numeric(code), 60), 60)
    x = np.random.default_rng(3).uniform(-128, 128, 400)
    truth = _atoms.numeric(code)(x)
    assert np.mean((_atoms.numeric(told.code)(x) - truth) ** 2) < 0.01 * np.var(truth)


def test_interpolation_is_numpys() -> None:
    f = _atoms.numeric("3*sin(0.05*x)")
    told = Interpolator().explain(BlackBox(f, 20), 20)
    x, grid = np.linspace(-127, 127, 301), np.linspace(-128, 128, 20)
    np.testing.assert_allclose(_atoms.numeric(told.code)(x), np.interp(x, grid, f(grid)), atol=1e-9)


def test_a_language_model_asks_and_then_commits_itself() -> None:
    prompts: list[str] = []

    def generate(prompt: str) -> str:
        prompts.append(prompt)
        return "ASK: 4\nASK: four" if len(prompts) == 1 else "TEXT: a line\nCODE: 2*x"

    told = LanguageModel(generate).explain(BlackBox(lambda x: 2 * x, 5), 5)
    assert told == Explanation("2*x", "a line")
    assert "f(4) = 8.0" in prompts[1]
    assert "that is no number" in prompts[1]


def test_modules_answer_by_similarity_to_the_concept() -> None:
    bench = FIND(("module",), encode=letters)
    item = bench.items(0, 1)[0]
    f = item.function(letters)
    member = _atoms.CONCEPTS[item.answer.code][0]
    assert 0.5 <= f("zzqzzq") < f(member) <= 1
    other = next(i for i in bench.items(0, 30) if i.answer != item.answer)
    assert bench.score(item, other.answer) == 0.0
    assert bench.compare(item, item.answer)["similarity"] == pytest.approx(1.0)


def test_without_an_encoder_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    default_encoder.cache_clear()
    with pytest.raises(WorkingPapersError, match=r"workingpapers\[embeddings\]"):
        default_encoder()


def test_bad_input_is_named() -> None:
    with pytest.raises(UnknownName, match="family of functions"):
        FIND(("nummeric",))
    with pytest.raises(UnknownName, match="group of functions"):
        FIND(groups=("atomc",))
    assert len({len(w) for w in words(random.Random(0), 50)}) > 3
