"""Downloads against a real server that cuts connections, forgets ranges, fails, or sends something else."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workingpapers.data.download import ATTEMPTS, DownloadError, download

CONTENT = np.random.default_rng(0).bytes(300_001)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def get(server: Any, tmp_path: Path) -> Any:
    """Return a function that downloads CONTENT and returns the target's path."""
    server.files["/f"] = CONTENT

    def run(sha256: str = SHA256) -> Path:
        download(f"{server.url}/f", tmp_path / "f", sha256)
        return tmp_path / "f"

    return run


def ranges(server: Any) -> list[str | None]:
    return [asked for _, asked in server.log]


def test_a_download_arrives_whole_and_leaves_no_part(get: Any) -> None:
    target = get()
    assert target.read_bytes() == CONTENT
    assert not target.with_name("f.part").exists()


def test_a_cut_connection_is_taken_up_where_it_ended(get: Any, server: Any, behave: Any) -> None:
    server.script = [behave["cut"], behave["cut"]]
    assert get().read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert ranges(server) == [None, f"bytes={half}-", f"bytes={half + (len(CONTENT) - half) // 2}-"]


def test_more_cuts_than_attempts_are_borne_while_bytes_come(get: Any, server: Any, behave: Any) -> None:
    server.script = [behave["cut"]] * (2 * ATTEMPTS)
    assert get().read_bytes() == CONTENT


def test_a_part_of_an_earlier_process_is_gone_on_with(get: Any, server: Any, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT[:1000])
    assert get().read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000-"]


def test_a_whole_part_needs_no_further_byte(get: Any, server: Any, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert get().read_bytes() == CONTENT
    assert ranges(server) == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
def test_a_part_of_something_else_is_thrown_away(get: Any, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "f.part").write_bytes(part)
    assert get().read_bytes() == CONTENT


@pytest.mark.parametrize("way", ["without_range", "another_range"])
def test_a_server_without_ranges_sends_it_all_again(get: Any, server: Any, behave: Any, way: str) -> None:
    server.script = [behave["cut"], behave[way]]
    assert get().read_bytes() == CONTENT
    assert len(server.log) == (2 if way == "without_range" else 3)


def test_passing_server_errors_are_tried_again(get: Any, server: Any, behave: Any) -> None:
    server.script = [behave["status"](503), behave["status"](429)]
    assert get().read_bytes() == CONTENT


def test_lasting_server_errors_end_after_the_attempts(
    get: Any, server: Any, behave: Any, tmp_path: Path
) -> None:
    server.script = [behave["status"](500)] * 50
    with pytest.raises(DownloadError, match=r"/f: the server answered 500"):
        get()
    assert len(server.log) == ATTEMPTS
    assert not (tmp_path / "f").exists()


def test_a_missing_file_is_asked_for_once(server: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="the server answered 404"):
        download(f"{server.url}/nothing", tmp_path / "f", SHA256)
    assert len(server.log) == 1


def test_wrong_bytes_never_take_their_place(get: Any, tmp_path: Path) -> None:
    expected = "0" * 64
    with pytest.raises(DownloadError, match=f"has the sha256 {SHA256}, expected is {expected}"):
        get(expected)
    assert not (tmp_path / "f").exists()
    assert not (tmp_path / "f.part").exists()


def test_no_connection_is_said_so(server: Any, tmp_path: Path) -> None:
    port = server.server_address[1]
    server.server_close()
    with pytest.raises(DownloadError, match=rf"127\.0\.0\.1:{port}/f: no connection"):
        download(f"http://127.0.0.1:{port}/f", tmp_path / "f", SHA256)


def test_two_at_once_download_once(get: Any, server: Any) -> None:
    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert get().read_bytes() == CONTENT
    assert len(server.log) == 1


def test_the_disk_s_errors_are_not_the_server_s(get: Any, tmp_path: Path) -> None:
    (tmp_path / "f.part").mkdir()
    with pytest.raises(IsADirectoryError):
        get()
