"""The registry binds code to records: by path, lazily, each name once, and says clearly what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workingpapers.catalog import available, claims, component, load, make, records, registry
from workingpapers.catalog.references import REFERENCES
from workingpapers.errors import UnknownName, WorkingPapersError
from workingpapers.verbs.new import new

DOUBLE = """
from workingpapers.catalog import claim, paper
from workingpapers.experiments import Evidence, below

@paper("{id}", monotone=True)
class Double:
    def __init__(self, factor=2.0):
        self.factor = factor

@paper("{id}", part="add", kind="transform")
def add(model, amount=1):
    return model + amount

@claim("{id}", "It doubles.", holds=below(1.0), seeds=3)
def doubles(budget, seed):
    return Evidence(0.5)
"""


def test_make_builds_a_class_and_binds_a_function(add_paper) -> None:
    add_paper("double", DOUBLE.format(id="double"))
    assert make("double").factor == 2.0
    assert make("double", factor=3.0).factor == 3.0
    assert make("double", 4.0).factor == 4.0
    assert make("double.add")(10) == 11
    assert make("double.add", amount=5)(10) == 15


def test_a_file_is_imported_only_when_asked_for(add_paper) -> None:
    path = add_paper("loud", "raise RuntimeError('imported')")
    add_paper("double", DOUBLE.format(id="double"))
    assert available() == ["double", "loud"]
    assert registry.path_of("loud") == path
    make("double")
    with pytest.raises(RuntimeError, match="imported"):
        load("loud")


def test_components_and_claims_of_a_file(add_paper) -> None:
    add_paper("double", DOUBLE.format(id="double"))
    assert list(load("double")) == ["double", "double.add"]
    assert component("double.add").kind == "transform"
    assert dict(component("double").properties) == {"monotone": True}
    found = claims("double")["doubles"]
    assert (found.seeds, found.says, found.holds.text) == ((0, 1, 2), "It doubles.", "mean value < 1")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make("doubel"), "no paper or reference is named 'doubel'; the nearest name is 'double'"),
        (
            lambda: make("double.ad"),
            "no component of the paper 'double' is named 'double.ad'; the nearest names are "
            "'double.add', 'double'",
        ),
        (
            lambda: make("double", facto=1),
            "no option of 'double' is named 'facto'; the nearest name is 'factor'",
        ),
        (
            lambda: make("double.add", amont=1),
            "no option of 'double.add' is named 'amont'; the nearest name is 'amount'",
        ),
        (lambda: make(3), "a component is asked for by its name, such as 'golu'; got 3"),
    ],
)
def test_wrong_names_get_the_nearest(add_paper, call, sentence) -> None:
    add_paper("double", DOUBLE.format(id="double"))
    with pytest.raises(WorkingPapersError) as caught:
        call()
    assert str(caught.value) == sentence


def test_a_paper_without_a_file_says_so(add_paper) -> None:
    add_paper("later")
    with pytest.raises(WorkingPapersError, match="'later' is in the catalogue but not written yet"):
        make("later")


def test_a_file_without_a_record_or_in_the_wrong_family_is_an_error(add_paper) -> None:
    path = add_paper("double", DOUBLE.format(id="double"))
    path.rename(path.with_name("other.py"))
    registry._files.cache_clear()
    with pytest.raises(WorkingPapersError, match="does not fit the records, which have nothing for it"):
        available()


def test_a_file_that_registers_nothing_is_an_error(add_paper) -> None:
    add_paper("empty", "x = 1")
    with pytest.raises(WorkingPapersError, match=r"registers no component: @paper\('empty'\) is missing"):
        load("empty")


def test_a_name_taken_twice_is_an_error(add_paper) -> None:
    add_paper("double", DOUBLE.format(id="double") + '\n@paper("double")\nclass Again: pass\n')
    with pytest.raises(WorkingPapersError, match="the name 'double' is taken twice"):
        load("double")


def test_two_claims_of_one_name_are_an_error(add_paper) -> None:
    code = DOUBLE.format(id="double")
    second = (
        code[code.index("@claim") :].replace("def doubles", "def other") + "\nother.__name__ = 'doubles'\n"
    )
    add_paper(
        "double",
        code
        + second.replace(
            '@claim("double"', 'def named(f):\n    f.__name__ = "doubles"\n    return claim("double"', 1
        )
        .split("def other")[0]
        .strip()
        + "(f)\n"
        "\n@named\ndef other(budget, seed):\n    return Evidence(1.0)\n",
    )
    with pytest.raises(WorkingPapersError, match="two claims named 'doubles'"):
        load("double")


def test_an_unknown_property_is_refused(add_paper) -> None:
    add_paper(
        "odd_one",
        """
from workingpapers.catalog import paper
@paper("odd_one", monotonous=True)
class One: pass
""",
    )
    with pytest.raises(UnknownName, match="'monotonous'; the nearest names? (is|are) 'monotone'"):
        load("odd_one")


def test_the_same_id_in_two_collections_is_an_error(add_paper, tmp_path: Path) -> None:
    add_paper("double")
    add_paper("double")
    with pytest.raises(WorkingPapersError, match="recorded twice"):
        records()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("not json", "is not valid JSON"),
        ("[]", "is no record: missing"),
        ('{"id": "x"}', "is no record: missing .*'title'"),
    ],
)
def test_a_broken_record_names_its_line(add_paper, line: str, sentence: str) -> None:
    path = add_paper("double").parents[1] / "papers.jsonl"
    path.write_text(path.read_text() + line + "\n")
    records_module = sys.modules["workingpapers.catalog.records"]
    records_module.forget()
    with pytest.raises(WorkingPapersError, match=rf"papers.jsonl:2 {sentence}"):
        records()


@pytest.mark.parametrize("name", list(REFERENCES))
def test_references_are_torchs_own_or_gates(name: str) -> None:
    home = type(make(name)).__module__
    assert home.startswith("torch.nn") or home == "workingpapers.kernels.gates"


def test_reference_options() -> None:
    assert make("gelu_tanh").approximate == "tanh"
    assert make("leaky_relu", negative_slope=0.3).negative_slope == 0.3
    with pytest.raises(UnknownName, match="'negative_slop'"):
        make("leaky_relu", negative_slop=0.3)


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-m", "workingpapers", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


PLUG_IN_CODE = '''
from torch import nn
from workingpapers.catalog import paper

@paper("my_method", smooth=True, lipschitz=0.5, zero_at_zero=True, monotone=True)
class MyMethod(nn.Module):
    """Halve."""
    def forward(self, x):
        if not x.is_floating_point():
            raise TypeError(f"a floating tensor was expected; got {x.dtype}")
        return x / 2
'''


def test_a_real_installed_plug_in_adds_its_papers(tmp_path: Path) -> None:
    home, site = tmp_path / "my papers", tmp_path / "site"
    for path in new("my_method", family="activations", into=home):
        assert path.exists()
    (home / "src" / "my_papers" / "activations" / "my_method.py").write_text(PLUG_IN_CODE)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--disable-pip-version-check",
            "--target",
            str(site),
            str(home),
        ],
        check=True,
        capture_output=True,
    )
    assert any(row["id"] == "my_method" for row in json.loads(run(site, "list", "--json").stdout))
    assert "my_papers.activations.my_method" in run(site, "show", "my_method").stdout
    checked = run(site, "contract", "my_method")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert run(tmp_path, "show", "my_method").returncode == 2


def test_a_broken_plug_in_warns_and_leaves_the_rest(add_paper, monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name, value = "broken", "no_such_package_anywhere"

    add_paper("double")
    module = sys.modules["workingpapers.catalog.records"]
    monkeypatch.setattr(module, "entry_points", lambda group: [Entry()])
    module.forget()
    with pytest.warns(UserWarning, match="plug-in 'broken' names 'no_such_package_anywhere'"):
        assert list(records()) == ["double"]


def test_the_hash_covers_the_file_and_what_it_shares_with_its_family(add_paper) -> None:
    path = add_paper("double", "from collection.activations._one import x\n")
    one, two, other = (path.with_name(f"_{n}.py") for n in ("one", "two", "other"))
    one.write_text("from collection.activations import (\n    _two,\n)\n")
    two.write_text("from collection.activations._one import x\n")
    other.write_text("z = 1\n")
    hashes = [registry.source_hash("double")]
    for file, changes in ((path, True), (one, True), (two, True), (other, False)):
        file.write_text(file.read_text() + "# changed\n")
        hashes.append(registry.source_hash("double"))
        assert (hashes[-1] != hashes[-2]) is changes
    add_paper("later")
    assert registry.source_hash("later") is None
