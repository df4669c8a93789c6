"""Who is running what: the name of a session, and whether its process still lives."""

import os
import platform
import uuid
from functools import lru_cache
from pathlib import Path

STALE_AFTER = 60.0  # seconds without a heartbeat after which a session counts as gone
BEAT_EVERY = 5.0


def new_owner() -> str:
    """Return a name for a session of this process, from which others can tell whether it still lives."""
    return f"{_host()}|{os.getpid()}|{_birth(os.getpid())}|{uuid.uuid4().hex[:8]}"


def gone(owner: str) -> bool:
    """Tell whether the process of the session `owner` ran on this host and has ended."""
    host, pid, birth, _ = owner.split("|")
    return host == _host() and _birth(int(pid)) != birth


@lru_cache(maxsize=1)
def _host() -> str:
    """Return the name under which process ids are comparable: the host and, on Linux, its pid namespace."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{platform.node()}{space}".replace("|", "_")


def _birth(pid: int) -> str | None:
    """Return when the process began ('?' where that is not known), None if there is none.

    A process id alone would not do: it may belong to another process by now.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    if os.name == "nt":  # there os.kill(pid, 0) would end the process; the heartbeat alone decides
        return "?"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "?"
