"""Where the files of the data sets are: the offline folder first, else a cache that is filled on demand.

Two environment variables steer it.  WORKINGPAPERS_DATA names a folder that holds the files, one subfolder a
set; WORKINGPAPERS_DATA_URL names a mirror of such a folder, asked before the public sources.  Every file is
held against the checksum that ships with this package, once per process.
"""

import gzip
import hashlib
import os
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from platformdirs import user_cache_dir

from workingpapers.data.download import DownloadError, download
from workingpapers.data.sources import public_address
from workingpapers.errors import WorkingPapersError, unknown

FOLDER_VARIABLE = "WORKINGPAPERS_DATA"
MIRROR_VARIABLE = "WORKINGPAPERS_DATA_URL"

_verified: dict[Path, tuple[int, int]] = {}


@lru_cache(maxsize=1)
def checksums() -> dict[str, str]:
    """Return the sha256 of every file by its path inside the data folder.

    A file to which gzip was added by us has a second line, without `.gz`: the checksum of what is inside.
    """
    lines = (Path(__file__).parent / "checksums.txt").read_text("utf-8").splitlines()
    return {file: sha256 for sha256, file in (line.split("  ", 1) for line in lines)}


def files_of(folder: str) -> list[str]:
    """Return the paths of all files below `folder` (such as "uci/yacht"), sorted."""
    known = checksums()
    return sorted(f for f in known if f.startswith(folder + "/") and f + ".gz" not in known)


def locate(file: str) -> Path:
    """Return where `file` (such as "mnist/train-images-idx3-ubyte.gz") lies on this machine, verified.

    Raises:
        WorkingPapersError: where the file is damaged, or is not here and cannot be fetched.
    """
    if file not in checksums():
        raise unknown("data file", file, checksums())
    offline = _offline_folder_of(file)
    if offline is not None:
        local = offline / file
        if not local.is_file():
            raise WorkingPapersError(
                f"{FOLDER_VARIABLE}={offline} has the folder {file.split('/')[0]!r} but no "
                f"file {file!r}; copy it there, or remove the folder to have it downloaded"
            )
        _verify(local, file)
        return local
    local = cache_folder() / file
    try:
        local.parent.mkdir(parents=True, exist_ok=True)
        if not _is_whole(local, file):
            _fetch(local, file)
    except OSError as error:
        reason = error.strerror or error
        raise WorkingPapersError(
            f"cannot write to the data cache {cache_folder()} ({reason}); make it writable, "
            f"or set {FOLDER_VARIABLE} to a folder that holds the data"
        ) from None
    return local


def locate_folder(folder: str) -> Path:
    """Return the folder that holds all files of `folder` (such as "uci/yacht"), each verified."""
    files = files_of(folder)
    if not files:
        raise unknown("data folder", folder, {f.split("/")[0] for f in checksums()})
    levels = len(files[0].split("/")) - len(folder.split("/"))
    found = [locate(file) for file in files]
    return found[0].parents[levels - 1]


def cache_folder() -> Path:
    """Return the folder that downloads are kept in."""
    return Path(user_cache_dir("workingpapers")) / "data"


def _offline_folder_of(file: str) -> Path | None:
    value = os.environ.get(FOLDER_VARIABLE)
    if not value:
        return None
    root = Path(value).expanduser()
    if not root.is_dir():
        raise WorkingPapersError(
            f"{FOLDER_VARIABLE}={value} is no folder; set it to the folder that holds the "
            "data sets, or unset it to have them downloaded"
        )
    return root if (root / file.split("/")[0]).is_dir() else None


def _verify(local: Path, file: str) -> None:
    if not _is_whole(local, file):
        raise WorkingPapersError(
            f"{local} is damaged: its sha256 should be {checksums()[file]} and is "
            f"{_sha256(local)}; copy it again from a good source, or unset {FOLDER_VARIABLE} "
            "to have it downloaded"
        )


def _is_whole(local: Path, file: str) -> bool:
    """Tell whether `local` is there with the right content; hashed once for a given size and time of change."""
    if not local.is_file():
        return False
    state = local.stat()
    if _verified.get(local) == (state.st_size, state.st_mtime_ns):
        return True
    inside = checksums().get(file.removesuffix(".gz")) if file.endswith(".gz") else None
    if _sha256(local) != checksums()[file] and (inside is None or _sha256_inside(local) != inside):
        return False
    _verified[local] = state.st_size, state.st_mtime_ns
    return True


def _sha256(local: Path) -> str:
    with local.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256_inside(local: Path) -> str | None:
    try:
        with gzip.open(local) as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except (OSError, EOFError):
        return None


def _fetch(local: Path, file: str) -> None:
    """Download `file` to `local` from the mirror or its public source, whichever answers first."""
    tried = []
    mirror = os.environ.get(MIRROR_VARIABLE)
    if mirror:
        try:
            return download(f"{mirror.rstrip('/')}/{quote(file)}", local, checksums()[file])
        except DownloadError as error:
            tried.append(str(error))
    plain = file.removesuffix(".gz")
    added_gzip = plain != file and plain in checksums()
    address = public_address(plain if added_gzip else file)
    if address:
        try:
            if added_gzip:
                return _fetch_plain(address, local, plain)
            return download(address, local, checksums()[file])
        except DownloadError as error:
            tried.append(str(error))
    else:
        tried.append("these bytes have no public source")
    raise WorkingPapersError(
        f"the data set {file.split('/')[0]!r} is not here and {file!r} could not be fetched "
        f"({'; '.join(tried)}); set {FOLDER_VARIABLE} to a folder that holds the data sets, "
        f"or {MIRROR_VARIABLE} to the address of a mirror of it"
    )


def _fetch_plain(address: str, local: Path, plain: str) -> None:
    """Download a file that is not compressed at its source, and keep it compressed under our name."""
    loose = local.with_suffix("")
    download(address, loose, checksums()[plain])
    squeezed = local.with_name(local.name + f".{os.getpid()}.tmp")
    squeezed.write_bytes(gzip.compress(loose.read_bytes(), mtime=0))
    squeezed.replace(local)
    loose.unlink(missing_ok=True)
