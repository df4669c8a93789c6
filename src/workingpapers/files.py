"""Writing files whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path

from workingpapers.errors import WorkingPapersError


def write_whole(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` in one step: after an interruption the file is the old or the new one.

    Raises:
        WorkingPapersError: one sentence where the folder is missing, not writable, or the disk is full.
    """
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except OSError as error:
        raise WorkingPapersError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
