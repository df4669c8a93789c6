"""Where files are found: offline folder, cache, mirror, public source; and the sentences when they are not."""

import gzip
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest

from workingpapers.data import store
from workingpapers.data.sources import public_address
from workingpapers.errors import UnknownName, WorkingPapersError

CONTENT = b"one two three\n" * 100
FILES = {"toy/a.txt": CONTENT, "toy/sub/b.txt": CONTENT[:50]}
INSIDE = b"IN: jump OUT: I_JUMP\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Put a toy collection in place of ours, with an empty cache and no offline folder."""
    known = {file: sha256(content) for file, content in FILES.items()}
    known |= {"toy2/c.txt.gz": sha256(gzip.compress(INSIDE, 9)), "toy2/c.txt": sha256(INSIDE)}
    monkeypatch.setattr(store, "checksums", lambda: known)
    monkeypatch.setattr(store, "public_address", lambda file: None)
    monkeypatch.setattr(store, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.delenv("WORKINGPAPERS_DATA", raising=False)
    monkeypatch.delenv("WORKINGPAPERS_DATA_URL", raising=False)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Write the toy files into an offline folder and name it."""
    root = tmp_path / "offline"
    for file, content in FILES.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
    monkeypatch.setenv("WORKINGPAPERS_DATA", str(root))
    return root


def test_the_offline_folder_comes_first(offline: Path) -> None:
    assert store.locate("toy/a.txt") == offline / "toy/a.txt"
    assert store.locate_folder("toy") == offline / "toy"
    assert store.locate_folder("toy/sub") == offline / "toy/sub"


def test_a_damaged_file_is_named_with_both_checksums(offline: Path) -> None:
    (offline / "toy/a.txt").write_bytes(b"damaged")
    with pytest.raises(WorkingPapersError) as caught:
        store.locate("toy/a.txt")
    message = str(caught.value)
    assert str(offline / "toy/a.txt") in message
    assert f"should be {sha256(CONTENT)} and is {sha256(b'damaged')}" in message
    assert "copy it again" in message


def test_a_file_is_hashed_once_until_it_changes(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    real = store._sha256
    monkeypatch.setattr(store, "_sha256", lambda local: hashed.append(local) or real(local))
    for _ in range(3):
        store.locate("toy/a.txt")
    assert len(hashed) == 1
    later = (offline / "toy/a.txt").stat().st_mtime + 10
    os.utime(offline / "toy/a.txt", (later, later))
    store.locate("toy/a.txt")
    assert len(hashed) == 2


def test_a_file_changed_after_its_check_is_noticed(offline: Path) -> None:
    store.locate("toy/a.txt")
    (offline / "toy/a.txt").write_bytes(CONTENT[:-1] + b"!")
    later = (offline / "toy/a.txt").stat().st_mtime + 10
    os.utime(offline / "toy/a.txt", (later, later))
    with pytest.raises(WorkingPapersError, match="is damaged"):
        store.locate("toy/a.txt")


def test_an_incomplete_offline_set_is_said_so(offline: Path) -> None:
    (offline / "toy/a.txt").unlink()
    with pytest.raises(WorkingPapersError, match=r"has the folder 'toy' but no file 'toy/a.txt'"):
        store.locate("toy/a.txt")


def test_an_offline_folder_that_is_none_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKINGPAPERS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(WorkingPapersError, match="nowhere is no folder"):
        store.locate("toy/a.txt")


def test_what_the_offline_folder_lacks_comes_from_the_mirror(
    server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("WORKINGPAPERS_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("WORKINGPAPERS_DATA_URL", server.url + "/data/")
    server.files = {f"/data/{file}": content for file, content in FILES.items()}
    folder = store.locate_folder("toy")
    assert {f: (folder.parent / f).read_bytes() for f in FILES} == FILES
    store.locate_folder("toy")
    assert len(server.log) == len(FILES)


def test_a_damaged_file_in_the_cache_is_fetched_again(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKINGPAPERS_DATA_URL", server.url)
    server.files["/toy/a.txt"] = CONTENT
    local = store.cache_folder() / "toy/a.txt"
    local.parent.mkdir(parents=True)
    local.write_bytes(b"damaged")
    assert store.locate("toy/a.txt").read_bytes() == CONTENT


def test_the_public_source_follows_a_failing_mirror(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKINGPAPERS_DATA_URL", server.url + "/mirror")
    monkeypatch.setattr(store, "public_address", lambda file: f"{server.url}/public/{file}")
    server.files["/public/toy/a.txt"] = CONTENT
    assert store.locate("toy/a.txt").read_bytes() == CONTENT
    assert [path for path, _ in server.log] == ["/mirror/toy/a.txt", "/public/toy/a.txt"]


def test_a_file_that_we_compressed_is_checked_by_what_is_inside(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "public_address", lambda file: f"{server.url}/{file}")
    server.files["/toy2/c.txt"] = INSIDE
    local = store.locate("toy2/c.txt.gz")
    assert gzip.decompress(local.read_bytes()) == INSIDE
    store._verified.clear()
    assert store.locate("toy2/c.txt.gz") == local
    assert len(server.log) == 1
    assert sorted(p.name for p in local.parent.iterdir() if p.suffix != ".lock") == ["c.txt.gz"]


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"other"), gzip.compress(INSIDE)[:-9], b"no gzip"],
    ids=[
        "other",
        "cut short",
        "no gzip",
    ],  # gzip writes the time of day: the bytes differ between two workers
)
def test_damage_inside_a_compressed_file_is_noticed(offline: Path, content: bytes) -> None:
    (offline / "toy2").mkdir()
    (offline / "toy2/c.txt.gz").write_bytes(content)
    with pytest.raises(WorkingPapersError, match="is damaged"):
        store.locate("toy2/c.txt.gz")


def test_without_any_source_both_ways_out_are_named(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKINGPAPERS_DATA_URL", server.url)
    with pytest.raises(WorkingPapersError) as caught:
        store.locate("toy/a.txt")
    message = str(caught.value)
    for part in (
        "'toy'",
        f"{server.url}/toy/a.txt: the server answered 404",
        "no public source",
        "set WORKINGPAPERS_DATA to a folder",
        "WORKINGPAPERS_DATA_URL to the address",
    ):
        assert part in message


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(
        WorkingPapersError, match=r"cannot write to the data cache .*cache.*WORKINGPAPERS_DATA"
    ):
        store.locate("toy/a.txt")


def test_unknown_files_and_folders_give_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'toy/a\.txt'"):
        store.locate("toy/a.tx")
    with pytest.raises(UnknownName, match="'toy'"):
        store.locate_folder("toyy")


class TestShippedLists:
    """The checksums and addresses that ship with the package."""

    @pytest.fixture(autouse=True)
    def toy(self) -> None:
        """Leave ours in place."""

    def test_the_checksums_are_those_of_the_data_folder(self, data_folder: Path) -> None:
        lines = (data_folder / "checksums.txt").read_text().splitlines()
        theirs = {file: digest for digest, file in (line.split(maxsplit=1) for line in lines)}
        del theirs["README.md"]
        ours = store.checksums()
        assert theirs.items() <= ours.items()
        added = {f for f in ours if f not in theirs}
        assert {f for f in added if f + ".gz" not in theirs} == {"movielens100k/ml-100k.zip"}

    def test_the_checksums_inside_are_right(self, data_folder: Path) -> None:
        ours = store.checksums()
        compressed = [f for f in ours if f.endswith(".gz") and f.removesuffix(".gz") in ours]
        assert {f.split("/")[0] for f in compressed} == {"scan", "listops", "pcfg_set"}
        for file in compressed:
            inside = gzip.decompress((data_folder / file).read_bytes())
            assert sha256(inside) == ours[file.removesuffix(".gz")]

    def test_public_addresses_are_pinned(self) -> None:
        pinned = re.compile(r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}/[\w/.+-]+")
        without = set()
        for file in store.checksums():
            address = public_address(file)
            if address is None:
                without.add(file)
            elif not file.startswith("movielens100k/"):
                assert pinned.fullmatch(address), address
        assert without == {
            "cifar10/cifar10_20k_5k.npz",
            "fsdd/fsdd_1200.npz",
            "planetoid/citeseer.npz",
            "planetoid/cora.npz",
            "retina_chase/chase_db1_14_half.npz",
            "vnncomp/cgan/instances.csv",
            "vnncomp/ml4acopf/instances.csv",
            "vnncomp/vit/instances.csv",
        }

    def test_two_files_never_share_an_address(self) -> None:
        files = [f for f in store.checksums() if f + ".gz" not in store.checksums()]
        addresses = [public_address(f) for f in files]
        known = [a for a in addresses if a]
        assert len(set(known)) == len(known)
