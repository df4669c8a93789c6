"""Files that are damaged, foreign, full or not writable: one sentence, and nothing is lost."""

import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workingpapers.errors import WorkingPapersError
from workingpapers.experiments.cells import Cell, Experiment
from workingpapers.experiments.database import SCHEMA_VERSION
from workingpapers.experiments.execution import (
    DONE,
    Outcome,
)
from workingpapers.experiments.leases import new_owner
from workingpapers.experiments.store import Store

CELL = Cell({"lr": 0.1, "name": "größe"}, 7)
OUTCOME = Outcome(DONE, {"loss": 0.25}, [{"loss": 1.0}, {"loss": 0.25}], 1.5, 4096, "here")


def experiment(name: str = "e") -> Experiment:
    return Experiment(name, len, "code", [CELL])


def python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def put(store: Store, cell: Cell = CELL, outcome: Outcome = OUTCOME, name: str = "e") -> None:
    owner = new_owner()
    assert store.claim(experiment(name), cell, owner)
    assert store.finish(experiment(name), cell, owner, outcome)


class TestBadFiles:
    def refused(self, path: Path, said: str) -> None:
        """Check that the store is refused in one sentence with a way out, and the folder is as it was."""
        before = {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
        with pytest.raises(WorkingPapersError, match=said) as caught:
            Store(path).runs()
        message = str(caught.value)
        assert str(path) in message
        assert "--store" in message
        assert "\n" not in message
        assert {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before

    @pytest.mark.parametrize(
        "content", [b"hello", b"x", os.urandom(5000), b"SQLite format 3\0" + b"\1" * 50, b'{"a": 1}\n' * 100]
    )
    def test_a_file_that_is_no_database(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "notes"
        path.write_bytes(content)
        self.refused(path, "not a store of runs")

    def test_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        self.refused(tmp_path / "folder", "Is a directory")

    def test_a_path_through_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(WorkingPapersError, match="cannot use the store"):
            Store(tmp_path / "file" / "runs.sqlite")

    @pytest.mark.parametrize("mode", ["DELETE", "WAL"])
    def test_a_database_of_another_program(self, tmp_path: Path, mode: str) -> None:
        path = tmp_path / "other.db"
        other = sqlite3.connect(path)
        other.execute(f"PRAGMA journal_mode = {mode}")
        other.execute("CREATE TABLE runs (a)")
        other.commit()
        other.close()
        self.refused(path, "database of another program")

    def test_a_store_of_a_newer_version(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.sqlite"
        with Store(path) as store:
            put(store)
        other = sqlite3.connect(path)
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        other.close()
        self.refused(path, f"newer version.*schema {SCHEMA_VERSION + 1}.*upgrade")

    @pytest.mark.parametrize("damage", ["cut", "middle", "zeros"])
    def test_a_damaged_store(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "runs.sqlite"
        with Store(path) as store:
            for seed in range(200):
                put(
                    store,
                    Cell({}, seed),
                    Outcome(DONE, {"a": 1}, [{"a": random.random()} for _ in range(100)]),
                )
        content = path.read_bytes()
        filling = os.urandom(len(content)) if damage == "middle" else bytes(len(content))
        path.write_bytes(content[:5000] if damage == "cut" else content[:100] + filling[100:])
        self.refused(path, "damaged")

    def test_an_empty_file_becomes_a_store(self, tmp_path: Path) -> None:
        (tmp_path / "runs.sqlite").touch()
        with Store(tmp_path / "runs.sqlite") as store:
            put(store)
            assert len(store.runs()) == 1


class TestNoWriting:
    CODE = """
        import os, sys
        from workingpapers.errors import WorkingPapersError
        from workingpapers.experiments.cells import Cell, Experiment
        from workingpapers.experiments.store import Store
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            Store(sys.argv[1]).claim(Experiment("e", len, "c", []), Cell({}, 0), "a|1|1|x")
            print("written")
        except WorkingPapersError as error:
            print(error)
    """

    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        """A folder that other users can reach (pytest's own cannot be), emptied at the end."""
        with tempfile.TemporaryDirectory() as name:
            os.chmod(name, 0o777)
            yield Path(name)
            os.chmod(name, 0o777)

    def test_a_folder_that_cannot_be_written(self, folder: Path) -> None:
        folder.chmod(0o555)
        for path in (folder / "runs.sqlite", folder / "deeper" / "runs.sqlite"):
            said = python(self.CODE, str(path)).stdout
            assert said.startswith(("cannot use the store", "cannot write to the store"))
            assert str(path) in said
            assert said.count("\n") == 1
            assert "--store" in said

    def test_a_file_that_cannot_be_written(self, folder: Path) -> None:
        path = folder / "runs.sqlite"
        with Store(path) as store:
            put(store)
        path.chmod(0o444)
        folder.chmod(0o555)
        said = python(self.CODE, str(path)).stdout
        assert said.startswith("cannot write to the store")
        assert "--store" in said
        path.chmod(0o000)
        assert "Permission denied" in python(self.CODE, str(path)).stdout

    def test_a_full_disk_keeps_what_was_stored(self, tmp_path: Path) -> None:
        code = """
            import resource, sys, random
            from workingpapers.errors import WorkingPapersError
            from workingpapers.experiments.cells import Cell, Experiment
            from workingpapers.experiments.execution import Outcome
            from workingpapers.experiments.store import Store
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
            store, experiment = Store(sys.argv[1]), Experiment("e", len, "c", [])
            try:
                for seed in range(1000):
                    store.claim(experiment, Cell({}, seed), "a|1|1|x")
                    curve = [{"a": random.random()} for _ in range(500)]
                    store.finish(experiment, Cell({}, seed), "a|1|1|x", Outcome("done", {"x": seed}, curve))
                    print(seed)
            except WorkingPapersError as error:
                print(error, file=sys.stderr)
        """
        path = tmp_path / "runs.sqlite"
        ended = python(code, str(path))
        assert ended.returncode == 0
        assert ended.stderr.startswith(f"cannot write to the store {path} (")
        assert "disk may be full" in ended.stderr
        assert ended.stderr.count("\n") == 1
        stored = [int(seed) for seed in ended.stdout.split()]
        assert len(stored) > 10
        with Store(path) as store:
            assert [r.seed for r in store.runs() if r.status == DONE] == stored
            assert all(len(r.curve) == 500 for r in store.runs() if r.status == DONE)
            put(store, Cell({}, 5000))
