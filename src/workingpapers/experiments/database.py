"""Opening the store's SQLite file: never a foreign or damaged one, and every trouble in one sentence."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from workingpapers.errors import WorkingPapersError

SCHEMA_VERSION = 1
APPLICATION_ID = 0x57504152  # in the file's header, by which the store knows its own
BUSY_SECONDS = 30.0

SCHEMA = """
CREATE TABLE experiments (
    key TEXT PRIMARY KEY, name TEXT NOT NULL, code TEXT NOT NULL, spec TEXT NOT NULL, created REAL NOT NULL
);
CREATE TABLE runs (
    experiment TEXT NOT NULL REFERENCES experiments (key), variant TEXT NOT NULL, seed INTEGER NOT NULL,
    status TEXT NOT NULL, owner TEXT, heartbeat REAL, started REAL, finished REAL, seconds REAL,
    peak_memory INTEGER, machine TEXT, version TEXT, error TEXT, metrics TEXT, traceback TEXT, output TEXT,
    curve BLOB,
    PRIMARY KEY (experiment, variant, seed)
);
CREATE INDEX experiments_by_name ON experiments (name);
CREATE INDEX running_by_owner ON runs (owner) WHERE status = 'running';
"""

_OTHER = "give another store with --store, or move that file away"


def open_database(path: Path) -> sqlite3.Connection:
    """Open the store at `path` and create it where there is none.

    The file's first bytes are read before SQLite sees it, so a file that is not ours stays as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _recognise(path)
    except OSError as error:
        raise WorkingPapersError(f"cannot use the store {path}: {error.strerror}; {_OTHER}") from None
    with saying(path):
        # Its own transactions, so that none is left open by chance; other threads, under the store's lock.
        database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        with saying(path):
            _prepare(database)
            database.execute("SELECT 1 FROM runs, experiments LIMIT 1").fetchone()
    except BaseException:
        database.close()
        raise
    return database


@contextlib.contextmanager
def saying(path: Path) -> Iterator[None]:
    """Put errors of SQLite on the store at `path` into one sentence with a way out."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            said = (
                f"cannot write to the store {path} ({error}), its disk may be full; "
                "the runs stored before are kept"
            )
        elif code in (
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_PERM,
            sqlite3.SQLITE_AUTH,
        ):
            said = (
                f"cannot write to the store {path} or its folder ({error}); give another store with --store"
            )
        elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            said = f"the store {path} was kept locked by another process for {BUSY_SECONDS:.0f} s; try again"
        else:
            said = f"the store {path} is damaged ({error}); {_OTHER}"
        raise WorkingPapersError(said) from None


@contextlib.contextmanager
def writing(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Hold the file's only write lock; commit at the end, or undo all if something is raised."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield database
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
                database.execute("ROLLBACK")
        raise


def _recognise(path: Path) -> None:
    """Raise one sentence if there is a file at `path` that is not a store of this or an earlier version."""
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return
    with path.open("rb") as file:
        head = file.read(100)
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        raise WorkingPapersError(f"{path} is not a store of runs, or is damaged; {_OTHER}")
    if int.from_bytes(head[68:72], "big") != APPLICATION_ID:
        raise WorkingPapersError(f"{path} is a database of another program; {_OTHER}")
    version = int.from_bytes(head[60:64], "big")
    if version > SCHEMA_VERSION:
        raise WorkingPapersError(
            f"the store {path} was written by a newer version of Working Papers (schema "
            f"{version}, known here: {SCHEMA_VERSION}); upgrade, or give another with --store"
        )


def _prepare(database: sqlite3.Connection) -> None:
    """Create the tables where they are missing, then use a write-ahead log: readers and writers do not wait.

    The tables come first, so that the file's header, which a later opening reads, is in the file itself.
    """
    if _version(database) == 0:
        with writing(database):
            if _version(database) == 0:  # else another process was faster
                for statement in SCHEMA.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    if database.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        _switch_to_log(database)
    database.execute("PRAGMA synchronous = NORMAL")


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _switch_to_log(database: sqlite3.Connection) -> None:
    """Switch the journal; SQLite does not wait for others here, so this does."""
    for attempt in range(100):
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or attempt == 99:
                raise
            time.sleep(0.05)
