"""The page as a whole: it stands alone, is inert, complete and right, at every size, and is written in one go."""

import math
import os
import random
import re
from pathlib import Path

import pytest

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.evidence import above, at_most
from workingpapers.report import write_report

EVIL = "<script>alert('x')</script>"
NAN = math.nan


def noise(count, middle=0.9, spread=0.01, seed=0):
    source = random.Random(f"{seed}{middle}")
    return [source.gauss(middle, spread) for _ in range(count)]


def curve(end, points=6):
    return [{"step": 10.0 * i, "accuracy": end * i / points, "loss": 5.0 / i} for i in range(1, points + 1)]


@pytest.fixture
def page(tmp_path, read):
    def write(**content):
        path = write_report(tmp_path / "report.html", **{"command": "workingpapers compare x", **content})
        return read(path.read_text("utf-8"))

    return write


@pytest.fixture
def many_cases(compared, judged):
    """Comparisons and verdicts at the edges of what can come."""
    ends = [0.8, 0.85, NAN]
    with_curves = {
        "a": [curve(0.8), curve(0.85), [*curve(0.5)[:3], {"step": 40.0, "accuracy": NAN, "loss": math.inf}]],
        "b": [curve(0.9), [], curve(0.7, 1)],
    }
    return {
        "one variant": compared({"relu": noise(4)}),
        "one seed": compared({"relu": [0.9], "golu": [0.91], "gelu": [0.92]}),
        "one variant, one seed": compared({"relu": [0.9]}),
        "two seeds": compared({"relu": [0.9, 0.8], "golu": [0.91, 0.88]}),
        "thirty": compared({f"v{i}": noise(5, 0.9 + i / 1000) for i in range(30)}),
        "all failed": compared({"relu": [None] * 3, "golu": [None] * 3}),
        "all diverged": compared({"relu": [NAN] * 3, "golu": [NAN] * 3}),
        "baseline failed": compared({"relu": [None] * 3, "golu": noise(3)}),
        "variant failed": compared({"relu": noise(3), "golu": [None] * 3}),
        "no runs": compared({"relu": [], "golu": []}),
        "equal": compared({"relu": [0.5] * 3, "golu": [0.5] * 3}),
        "huge": compared({"relu": [1e60, -1e60, 1.0], "golu": [1e-60, 2.0, -3e59]}, goal="min"),
        "outlier": compared({"relu": noise(5), "golu": noise(5, 0.91), "bad": noise(5, -1e9)}),
        "unpaired": compared({"relu": noise(5), "golu": noise(5, 0.93)}, paired=False),
        "curves": compared({"a": ends, "b": [0.9, 0.7, 0.6]}, curves=with_curves),
        "tiny": compared({"relu": [1e-12, 2e-12], "golu": [3e-12, 5e-12]}, metric="loss", goal="min"),
    }


def drawn_numbers(page):
    """Yield every number in the attributes of drawings, with what it belongs to."""
    for svg in page.all("svg"):
        for node in svg.walk():
            for name, value in node.attributes.items():
                if name in "x y x1 x2 y1 y2 cx cy r dx dy width height d viewbox".split():
                    yield node, name, value


def test_every_case_is_drawn_with_finite_positions(page, many_cases, judged):
    verdicts = [
        judged({"gain": [0.1, NAN]}),
        judged({"gain": [NAN]}),
        judged({}),
        judged({"gain": [math.inf]}),
    ]
    found = page(comparisons=list(many_cases.values()), verdicts=verdicts)
    count = 0
    for node, name, value in drawn_numbers(found):
        assert not re.search(r"nan|inf|none", value, re.I), (node.tag, name, value)
        for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", value):
            assert math.isfinite(float(number))
            count += 1
    assert count > 1000
    ids = [n.attributes["id"] for n in found.walk() if "id" in n.attributes]
    assert len(ids) == len(set(ids))
    for node in found.walk():
        wanted = (node.attributes.get("aria-labelledby") or "").split()
        wanted += [node.attributes["href"][1:]] if (node.attributes.get("href") or "").startswith("#") else []
        assert set(wanted) <= set(ids)


@pytest.mark.parametrize(
    "case", ["one variant", "one variant, one seed", "all failed", "no runs", "thirty", "curves"]
)
def test_every_case_has_one_answer_and_all_variants(page, many_cases, case):
    comparison = many_cases[case]
    found = page(comparisons=[comparison])
    assert len(found.one("h2", "answer").text.strip()) > 10
    rows = found.one("table", "ranking").one("tbody").all("tr")
    assert [row.all("th")[0].text for row in rows] == [row.label for row in comparison.rows]


def test_no_number_is_shown_as_nan(page, many_cases, judged):
    text = (
        page(comparisons=list(many_cases.values()), verdicts=[judged({"gain": [NAN, 0.2]})]).one("body").text
    )
    assert not re.search(r"\b([Nn]a[Nn]|inf|None(?! of))\b", text)


def test_it_loads_nothing_and_runs_nothing(page, many_cases, judged):
    found = page(comparisons=list(many_cases.values()), verdicts=[judged({"gain": [0.1, 0.2, 0.3]})])
    assert not {n.tag for n in found.walk()} & set("script link img iframe object embed base form".split())
    for node in found.walk():
        assert not [a for a in node.attributes if a.startswith("on") or a in ("src", "srcset", "xlink:href")]
        assert (node.attributes.get("href") or "#").startswith("#")
    style = found.one("style").text
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [m for m in found.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy.attributes["content"]


def test_what_users_named_is_inert(page, compared, judged, run):
    comparison = compared({"relu": [0.9, 0.8, None], EVIL: [0.95, 0.9, 0.8]}, metric=EVIL, name=EVIL)
    broken = [r for r in comparison.runs if r.status == "failed"]
    object.__setattr__(broken[0], "error", f"ValueError: {EVIL}")
    verdict = judged({EVIL: [0.1, 0.2]}, says=EVIL, figure=EVIL, rule=above(0, of=EVIL), calibrated=EVIL,
                     paper=EVIL, claim=EVIL, errors=[EVIL], machine=EVIL)  # fmt: skip
    content = {"comparisons": [comparison], "verdicts": [verdict], "title": EVIL, "command": EVIL}
    found = page(**content, activations={EVIL: lambda x: x, "relu": lambda x: x / 0 + "a"})
    assert not found.all("script")
    assert found.one("head").one("title").text == EVIL
    assert found.one("article").text.count(EVIL) >= 6
    assert found.one("table", "ranking").text.count(EVIL) == 2
    assert EVIL in found.one("header").text


def test_verdicts_are_all_there(page, judged):
    verdicts = [
        judged({"gain": [0.3, 0.31, 0.29]}, claim="one", says="First."),
        judged({"gain": [-0.3, -0.31, -0.29]}, claim="two", says="Second.", calibrated="limit moved"),
        judged({"gain": [0.3, -0.31]}, claim="three", says="Third.", paper="prelu"),
        judged({}, claim="four", says="Fourth.", paper="prelu", errors=["seed 0: ValueError: broken"]),
    ]
    found = page(verdicts=verdicts)
    cards = found.all("article")
    assert [c.one("h4").text for c in cards] == ["First.", "Second.", "Third.", "Fourth."]
    assert [c.one("span", "badge").text for c in cards] == [
        "holds",
        "does not hold",
        "not shown",
        "not shown",
    ]
    assert ["golu" in c.text for c in cards] == [True, True, False, False]
    assert "limit moved" in cards[1].text
    assert "ValueError: broken" in cards[3].text
    assert "70.76 against 69.74" in cards[0].text
    assert found.one("h2").text == "Of 4 claims, 1 holds, 1 does not hold and 2 are not shown."
    overview = found.one("table", "all")
    assert [a.text for a in overview.all("a")] == ["First.", "Second.", "Third.", "Fourth."]


@pytest.mark.parametrize(
    ("gains", "tally"),
    [
        ([1], "The claim holds."),
        ([-1], "The claim does not hold."),
        ([0], "The claim is not shown."),
        ([1, 1, 1], "All 3 claims hold."),
        ([-1, -1], "None of the 2 claims holds."),
        ([0, 0], "None of the 2 claims is shown."),
        ([1, 1, 0], "Of 3 claims, 2 hold and 1 is not shown."),
    ],
)
def test_claims_are_tallied_in_one_sentence(page, judged, gains, tally):
    found = page(verdicts=[judged({"gain": [g - 0.1, g, g + 0.1]}) for g in gains])
    assert found.one("h2").text == tally
    assert not found.all("nav")


def cells(row):
    return {td.attributes["data-label"]: td.text.strip() for td in row.all("td")}


def agrees(shown, value):
    """Tell whether a shown number is the value to the last digit shown."""
    text = shown.replace("\N{MINUS SIGN}", "-").replace("±", "").strip()
    mantissa, _, exponent = text.lower().partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(text) - value) <= 0.5001 * unit


@pytest.mark.parametrize("case", ["thirty", "unpaired", "tiny", "variant failed", "outlier", "two seeds"])
def test_the_ranking_shows_the_rows_numbers(page, many_cases, case):
    comparison = many_cases[case]
    found = page(comparisons=[comparison]).one("table", "ranking").one("tbody").all("tr")
    compared_numbers = 0
    for line, row in zip(found, comparison.rows, strict=True):
        shown = cells(line)
        assert shown["seeds"].startswith(str(row.seeds))
        assert shown["verdict"] == (row.difference.word if row.difference else "baseline")
        assert not row.failed or f"{row.failed} failed" in shown["seeds"]
        if not row.seeds:
            assert shown[comparison.metric] == "no finite run"
            continue
        assert agrees(shown[comparison.metric], row.mean)
        assert agrees(shown["± spread"], row.spread)
        assert agrees(shown["seconds a run"], row.seconds)
        assert agrees(shown["peak memory, MB"], row.peak_memory / 2**20)
        if row.difference:
            low, high = re.fullmatch(r"\[(\S+),\s(\S+)\]", shown["95 % interval"]).groups()
            interval = row.difference.interval
            assert agrees(shown["difference"], interval.estimate)
            assert agrees(low, interval.low)
            assert agrees(high, interval.high)
            assert shown["seeds to tell"] == str(row.difference.seeds_needed or "")
            compared_numbers += 1
    assert compared_numbers or case == "variant failed"


def test_every_run_is_listed_by_seed(page, compared):
    found = page(comparisons=[compared({"relu": [0.125, NAN], "golu": [0.25, None]})]).one("table", "every")
    assert [[c.text for c in row.all("td")] for row in found.one("tbody").all("tr")] == [
        ["0.25", "failed"],
        ["0.125", "diverged"],
    ]


def test_runs_that_failed_alike_share_a_line(page, compared):
    found = page(comparisons=[compared({"relu": [None] * 5, "golu": [0.5] * 5})])
    assert [li.text for li in found.one("ul", "failures").all("li")] == [
        "relu, seeds 0–4: failed: ValueError: broken"
    ]


def test_it_says_where_it_comes_from(page, compared, judged):
    content = {
        "comparisons": [compared({"relu": noise(3), "golu": noise(3)})],
        "verdicts": [judged({"gain": [0.1]})],
    }
    found = page(**content, command="workingpapers compare x --seeds 3")
    header = found.one("header").text
    for told in ("box, cpu x 2", "Python 3.", "torch 2.", "workingpapers compare x --seeds 3"):
        assert told in header
    method = found.all("section")[-1].text
    for told in ("c0de", "0–2", "golu:gain", "6 runs"):
        assert told in method


def test_claims_without_a_command_say_how_to_measure_them_again(page, judged):
    found = page(verdicts=[judged({"gain": [0.1]}, budget="full")], command="")
    assert found.one("pre").text == "workingpapers check golu --budget full"


def test_the_home_folder_is_not_told(page, compared, judged, tmp_path, monkeypatch):
    home = tmp_path / "people" / "ada"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    comparison = compared({"relu": [None], "golu": [0.3]}, name=f"{home}/code/train.py:run")
    object.__setattr__(comparison.runs[0], "error", f"FileNotFoundError: '{home}/data.csv'")
    verdict = judged({}, errors=[f"seed 0: no file {home}"])
    command = f"workingpapers compare {home}/code/train.py:run --store={home}/runs.sqlite"
    found = page(comparisons=[comparison], verdicts=[verdict], command=command)
    assert str(home) not in found.text
    assert "~/code/train.py:run --store=~/runs.sqlite" in found.text
    assert "'~/data.csv'" in found.text


def test_nothing_to_report_is_a_page_too(page):
    assert "no comparison and no verdict" in page().one("main").text


def test_a_file_that_is_there_is_replaced_as_a_whole(tmp_path, compared, monkeypatch):
    path = tmp_path / "report.html"
    comparison = compared({"relu": noise(2)})
    assert write_report(str(path), comparisons=[comparison]) == path
    before = path.read_bytes()
    assert before.rstrip().endswith(b"</html>")
    assert os.access(path, os.R_OK)
    assert path.stat().st_mode & 0o044

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        WorkingPapersError, match=r"cannot write the report .*report.html: No space left on device$"
    ):
        write_report(path, comparisons=[], title="other")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.parametrize("place", ["missing/report.html", "file/report.html", "."])
def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkingPapersError, match="cannot write the report") as caught:
        write_report(tmp_path / place)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_many_runs_stay_a_small_file(tmp_path, compared):
    curves = {
        f"v{i}": [[{"step": float(s), "accuracy": s / 5e3} for s in range(2000)]] * 2 for i in range(10)
    }
    comparison = compared({f"v{i}": [0.5, 0.6] for i in range(10)}, curves=curves)
    assert write_report(Path(tmp_path) / "r.html", comparisons=[comparison]).stat().st_size < 200_000


def test_limits_of_a_claim_are_drawn(page, judged):
    found = page(
        verdicts=[judged({"ratio": [0.5, 0.6, 0.7], "free": [1.0, 2.0, 3.0]}, rule=at_most(1.0, of="ratio"))]
    )
    first, second = found.all("div", "strip")
    assert len(first.all("line", "limit")) == len(first.all("rect", "allowed")) == 1
    assert not second.all("line", "limit")
