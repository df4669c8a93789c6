"""Every registered component keeps its contract: one test per component and check."""

import ast

import pytest
from tests.untraced import untraced

from workingpapers.catalog import available, load, record
from workingpapers.catalog.references import REFERENCES
from workingpapers.catalog.registry import files_of, path_of
from workingpapers.contracts import check_contract, checks


def registered(id: str) -> dict[str, str]:
    """Return the kinds of the paper's components by name, read from its files without importing them."""
    found = {}
    nodes = [node for file in files_of(path_of(id)) for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "paper":
            if node.args[0].value != id:
                continue
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            name = f"{id}.{given['part']}" if given.get("part") else id
            found[name] = given.get("kind") or record(id).kind
    return found


COMPONENTS = {name: reference.kind for name, reference in REFERENCES.items()}
for paper in available():
    COMPONENTS.update(registered(paper))
# What a component cannot keep yet, with the reason.  Strict: a promise that is kept must leave this list.
NOT_YET: dict[tuple[str, str], str] = {}
PAIRS = [(name, check.name) for name, kind in COMPONENTS.items() for check in checks(kind)]


@pytest.mark.parametrize(("name", "check"), PAIRS, ids=[f"{name}-{check}" for name, check in PAIRS])
def test_a_registered_component_keeps_its_contract(name: str, check: str) -> None:
    with untraced():  # each paper's own tests cover its lines
        report = check_contract(name, only=check)
    if not report.results:
        pytest.skip("not promised by what the component declares")
    if (name, check) in NOT_YET:
        assert not report.passed, "it is kept now; take it off the list"
        pytest.xfail(NOT_YET[name, check])
    report.raise_for_failure()
    if report.results[check].outcome == "known failure":
        pytest.xfail(report.results[check].says)


@pytest.mark.parametrize("id", available())
def test_no_component_is_overlooked(id: str) -> None:
    assert set(load(id)) == set(registered(id))
