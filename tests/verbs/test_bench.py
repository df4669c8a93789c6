"""bench: every contender at every size and pass, as ratios; show's drawings."""

import json
import math
from pathlib import Path

import pytest
import torch

from workingpapers import bench
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.verbs._draw import chart
from workingpapers.verbs.bench import _contender, elements
from workingpapers.verbs.gallery import portrait, portraits
from workingpapers.verbs.show import show


def test_bench_times_all_contenders_at_all_sizes() -> None:
    found = bench("golu", ("gelu", "eager"), sizes=(64, 128), rounds=3)
    assert {(t.contender, t.what, t.size) for t in found.timings} == {
        (n, w, s)
        for n in ("golu", "gelu", "eager")
        for w in ("forward", "forward+backward")
        for s in (64, 128)
    }
    own = [t for t in found.timings if t.contender == "golu"]
    assert all(t.ratio == t.low == t.high == 1 for t in own)
    assert all(t.seconds > 0 and 0 < t.bandwidth < 100 and t.low <= t.ratio <= t.high for t in found.timings)
    gelu = next(t for t in found.timings if t.contender == "gelu")
    assert gelu.kept == 1  # torch's own keeps its input and nothing else
    assert found.copy_bandwidth.keys() == {64, 128}
    json.dumps(found.as_dict())
    assert len(found.figure().axes) == 2


def test_every_form_of_a_trained_activation_has_its_parameters_gradients() -> None:
    assert {
        len([*_contender(form, "crrelu", "cpu", "float32").parameters()]) for form in ("crrelu", "eager")
    } == {1}


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (("golo",), {}, "golu"),
        (("golu", ("gelo",)), {}, "gelu"),
        (("golu",), {"dtype": "float8"}, "dtype"),
        (("golu",), {"device": "cpuu"}, "device"),
        (("lamb",), {}, "'lamb' is a trainer"),
    ],
)
def test_bad_input_gets_one_sentence(arguments: tuple, options: dict, sentence: str) -> None:
    with pytest.raises((UnknownName, WorkingPapersError), match=sentence):
        bench(*arguments, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it says where there is no GPU")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(WorkingPapersError, match="needs a GPU"):
        bench("golu", device="cuda")


def test_sizes_are_numbers_or_powers() -> None:
    assert (elements("1024"), elements(" 2^22 ")) == (1024, 2**22)
    for wrong in ("2**3", "x", "", "0", "-4"):
        with pytest.raises(WorkingPapersError, match="number of elements"):
            elements(wrong)


def test_show_draws_an_activation(tmp_path: Path) -> None:
    sheet = show("golu")
    assert sheet.as_dict()["curves"]["golu"]["minimum"][1] == pytest.approx(-0.09726, abs=1e-5)
    assert "Gain       1.7688" in str(sheet)
    sheet.draw(str(tmp_path / "golu.svg"))
    assert (tmp_path / "golu.svg").stat().st_size > 1000
    with pytest.raises(WorkingPapersError, match="cannot write the figure"):
        sheet.draw(str(tmp_path / "no" / "golu.svg"))
    with pytest.raises(WorkingPapersError, match="lamb has no elementwise activation to draw"):
        show("lamb").draw(str(tmp_path / "lamb.svg"))


def test_a_portrait_shows_what_parameters_do() -> None:
    drawn = portrait("golu")
    assert drawn.variants.keys() == {"alpha", "beta", "gamma"}
    x, doubled = drawn.variants["alpha"]["2"]
    assert doubled == pytest.approx([2 * y for y in drawn.function[1]])
    assert x == drawn.function[0]
    assert len(drawn.figure().axes) == 4
    assert [p.name for p in portraits("mish")] == ["mish", "mish.hard"]


def test_a_chart_puts_dots_where_the_line_runs() -> None:
    lines = chart({"line": ([0.0, 1.0], [0.0, 1.0])}, width=4, height=2)
    assert lines[0].strip() == "line"
    dots = [line[11:].ljust(4, chr(0x2800)) for line in lines[1:3]]
    raised = {
        (2 * column + right, 4 * row + down)
        for row, line in enumerate(dots)
        for column, character in enumerate(line)
        for down, bits in enumerate(((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80)))
        for right, bit in enumerate(bits)
        if (0 if character == " " else ord(character) - 0x2800) & bit
    }
    assert raised >= {(i, 7 - i) for i in range(8)}  # the diagonal, from the lower left
    assert all(abs(x + y - 7) <= 1 for x, y in raised)
    assert lines[1].split()[0] == "1"
    assert lines[2].split()[0] == "0"
    assert lines[3].split() == ["0", "1"]


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    assert len(chart({"a": ([1.0, 2.0, 3.0], [1.0, math.nan, 100.0])}, height=3, log=True)) == 5
