"""new: the record, the file and the test file of a paper, ready to be filled in."""

import json
import keyword
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from workingpapers.catalog.kinds import kind_named
from workingpapers.catalog.records import families, forget, parse_record, records
from workingpapers.errors import WorkingPapersError, unknown
from workingpapers.verbs import _templates


@dataclass(frozen=True)
class Place:
    """Where papers of a collection live: its records, its papers' folder, its tests, its package."""

    records_file: Path
    papers: Path
    tests: Path
    package: str


def new(
    id: str, *, family: str | None = None, kind: str | None = None, into: str | Path | None = None
) -> list[Path]:
    """Write the record, the file and the test file of the paper `id`; return their paths.

    `into` is a checkout of this repository, a plug-in of ours, or an empty or missing folder, where a plug-in
    is laid out (default: the current folder).  A paper that has a record keeps it, with its family and kind;
    a new one needs `family`, and is an activation unless `kind` says otherwise.

    Raises:
        WorkingPapersError: for an id that is no Python name or has a file already, an unknown family or kind,
            or a folder that holds something else.  Nothing is written then.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", id) or keyword.iskeyword(id):
        raise WorkingPapersError(f"an id is a lower-case Python name such as 'my_method'; got {id!r}")
    place = _place(Path(into or "."))
    known = _own_records(place)
    record = known.get(id) or _new_record(id, family, kind, plugin=place.package != "workingpapers.papers")
    if id not in known and id in records():
        raise WorkingPapersError(f"the paper {id!r} is recorded already; choose another id")
    for asked, has, what in ((family, record["family"], "family"), (kind, record["kind"], "kind")):
        if asked is not None and asked != has:
            raise WorkingPapersError(f"the record says that {id!r} is of the {what} {has!r}, not {asked!r}")
    code = place.papers / record["family"] / f"{id}.py"
    test = place.tests / record["family"] / f"test_{id}.py"
    for path in (code, test):
        if path.exists():
            raise WorkingPapersError(f"{path} exists already; it is left as it is")
    try:
        return _write(place, record, code, test, add_record=id not in known)
    except OSError as error:
        raise WorkingPapersError(f"cannot write {error.filename}: {error.strerror}") from None


def _write(place: Place, record: dict[str, Any], code: Path, test: Path, add_record: bool) -> list[Path]:
    if not place.records_file.exists():
        _lay_out(place)
    values = {
        "id": record["id"],
        "name": "".join(w.title() for w in record["id"].split("_")),
        "family": record["family"],
        "kind": record["kind"],
        "title": record["title"],
        "year": record["year"],
    }
    package = code.parent / "__init__.py"
    code.parent.mkdir(parents=True, exist_ok=True)
    if not package.exists():
        package.write_text(f'"""Papers of the family {record["family"]}, one file each."""\n', "utf-8")
    test.parent.mkdir(parents=True, exist_ok=True)
    code.write_text(_templates.code(values), "utf-8")
    test.write_text(_templates.test(values), "utf-8")
    written = [code, test]
    if add_record:
        with place.records_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        written.insert(0, place.records_file)
    forget()
    return written


def _place(folder: Path) -> Place:
    source = folder / "src" / "workingpapers"
    if (source / "catalog" / "papers.jsonl").exists():
        return Place(
            source / "catalog" / "papers.jsonl",
            source / "papers",
            folder / "tests" / "papers",
            "workingpapers.papers",
        )
    plugins = list(folder.glob("src/*/papers.jsonl"))
    if len(plugins) == 1:
        home = plugins[0].parent
        return Place(plugins[0], home, folder / "tests", home.name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WorkingPapersError(
            f"{folder.resolve()} is neither a checkout of workingpapers nor a plug-in; name an "
            "empty or new folder with --into, and a plug-in is laid out there"
        )
    name = re.sub(r"\W+", "_", folder.resolve().name).strip("_").lower() or "my_papers"
    home = folder / "src" / name
    return Place(home / "papers.jsonl", home, folder / "tests", name)


def _lay_out(place: Place) -> None:
    place.papers.mkdir(parents=True)
    place.records_file.write_text("", "utf-8")
    (place.papers / "__init__.py").write_text(f'"""Papers of the plug-in {place.package}."""\n', "utf-8")
    root = place.tests.parent
    (root / "pyproject.toml").write_text(_templates.PLUGIN.replace("{package}", place.package), "utf-8")


def _own_records(place: Place) -> dict[str, dict[str, Any]]:
    if not place.records_file.exists():
        return {}
    found = {}
    for number, line in enumerate(place.records_file.read_text("utf-8").splitlines(), 1):
        parse_record(line, f"{place.records_file}:{number}")
        raw = json.loads(line)
        found[raw["id"]] = raw
    return found


def _new_record(id: str, family: str | None, kind: str | None, plugin: bool) -> dict[str, Any]:
    if family is None:
        raise WorkingPapersError(
            f"{id!r} has no record yet, so it needs --family; there are {', '.join(families())}"
        )
    if not plugin and family not in families():
        raise unknown("family", family, families())
    if not re.fullmatch(r"[a-z][a-z0-9_]*", family) or keyword.iskeyword(family):
        raise WorkingPapersError(
            f"a family is a lower-case Python name such as 'activations'; got {family!r}"
        )
    return {
        "id": id,
        "title": f"{id.replace('_', ' ')}: the title of the paper",
        "year": date.today().year,
        "arxiv": None,
        "code": None,
        "family": family,
        "kind": kind_named(kind or "activation").name,
        "summary": f"One sentence that says what {id} is and does.",
        "formula": None,
        "claims": [],
        "topics": [],
        "asks": [],
        "fidelity": "reconstructed",
        "fidelity_note": "Not compared with the paper yet.",
        "uses": [],
    }
