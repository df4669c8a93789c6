"""Downloads that go on where they were cut off, checked by sha256 before they take their place."""

import http.client
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pooch
from rich.console import Console
from rich.progress import Progress

from workingpapers.errors import WorkingPapersError

ATTEMPTS = 4  # in a row without a new byte
PAUSE = 0.5  # seconds before the second attempt, doubled before each further one
TIMEOUT = 30.0
_CHUNK = 1 << 16
_WORTH_RETRYING = frozenset({408, 425, 429, 500, 502, 503, 504})
_NETWORK = (
    urllib.error.URLError,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    EOFError,
    http.client.HTTPException,
)


class DownloadError(WorkingPapersError):
    """A download that did not succeed; the message names the address and the reason."""


def download(url: str, target: Path, sha256: str) -> None:
    """Download `url` to `target`, whose content must have the given `sha256`.

    What has come so far is kept in `<target>.part`, and the next attempt, in this process or a later one,
    asks the server for the rest alone.  `target` appears whole or not at all.

    Raises:
        DownloadError: when the server gives up, or the bytes are not those expected.
    """
    pooch.get_logger().setLevel("WARNING")
    part = target.with_name(target.name + ".part")
    with _one_at_a_time(target):
        if target.exists() and pooch.file_hash(str(target)) == sha256:
            return  # another process was quicker
        resumed = part.exists()
        fetcher = _Resuming(part)
        for again in (resumed, False):
            try:
                pooch.retrieve(
                    url, f"sha256:{sha256}", fname=target.name, path=target.parent, downloader=fetcher
                )
                return
            except ValueError:  # pooch's word for a wrong hash; an old part may be why, so begin anew
                if not again:
                    raise DownloadError(
                        f"{url} has the sha256 {fetcher.found}, expected is {sha256}"
                    ) from None


class _Resuming:
    """A downloader for pooch: fills a part file across attempts, then moves it where pooch wants it."""

    def __init__(self, part: Path) -> None:
        self.part = part
        self.found = ""

    def __call__(self, url: str, output_file: str, _: Any = None) -> None:
        failures = 0
        while True:
            before = _size(self.part)
            try:
                _continue(url, self.part)
                break
            except (OSError, EOFError, http.client.HTTPException) as error:
                if not isinstance(error, _NETWORK):
                    raise  # our own disk
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                failures = 0 if _size(self.part) > before else failures + 1
                if _final(error) or failures >= ATTEMPTS:
                    raise DownloadError(f"{url}: {_reason(error)}") from None
                time.sleep(PAUSE * 2 ** max(failures - 1, 0))
        self.found = pooch.file_hash(str(self.part))
        self.part.replace(output_file)


def _continue(url: str, part: Path) -> None:
    """Ask for what `part` lacks and append it; EOFError if the connection ends too early."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "workingpapers"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing follows: the part is whole, or longer than the file
            error.close()
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            raise EOFError("the part kept from before does not fit the file") from None
        raise
    with response:
        start = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
        resumes = response.status == 206 and start == str(have)
        if response.status == 206 and not resumes:
            part.unlink()
            raise EOFError("the server answered with another range than the one asked for")
        length = response.headers.get("Content-Length")
        _append(response, part, have if resumes else 0, int(length) if length else None)


def _append(response: Any, part: Path, have: int, length: int | None) -> None:
    total = None if length is None else have + length
    silent = not sys.stderr.isatty()
    with (
        part.open("ab" if have else "wb") as file,
        Progress(console=Console(stderr=True), transient=True, disable=silent) as progress,
    ):
        bar = progress.add_task(part.name.removesuffix(".part"), total=total, completed=have)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            progress.advance(bar, len(chunk))
    if total is not None and _size(part) != total:
        raise EOFError(f"the connection ended after {_size(part)} of {total} bytes")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _final(error: Exception) -> bool:
    """Tell whether the server's answer will be the same next time."""
    return isinstance(error, urllib.error.HTTPError) and error.code not in _WORTH_RETRYING


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    return str(error) or type(error).__name__


@contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """Keep other processes from downloading the same file meanwhile, where the system has file locks."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    lock = target.with_name(target.name + ".lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
