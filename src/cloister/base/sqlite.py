"""The one way to open an SQLite file: a commit is durable, and the file's schema is not trusted.

A committed record survives a crash of the machine: `synchronous = FULL` syncs the log of a file in
WAL mode at every commit; `EXTRA` also syncs the folder after a journal is gone. `fullfsync` empties
the drive's cache where the system offers it.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from cloister.errors import CloisterError


def connect(
    path: Path, *, timeout_s: float, synchronous: Literal["FULL", "EXTRA"]
) -> sqlite3.Connection:
    """A connection to an existing file, which begins transactions only by an explicit BEGIN.

    timeout_s   for another process that holds the file's lock
    Raises      sqlite3.Error
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def mark(connection: sqlite3.Connection, application_id: int, version: int) -> None:
    """Say in the file's header what it is."""
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute(f"PRAGMA application_id = {application_id}")


def marks(connection: sqlite3.Connection) -> tuple[int, int]:
    """The file's application id and version, from its header; zeros in an empty file."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application_id, version


@contextlib.contextmanager
def transaction(
    path: Path, *, what: str, timeout_s: float, kind: type[CloisterError]
) -> Iterator[sqlite3.Connection]:
    """One transaction under the write lock, on the disk when the block is left; if it raises, none.

    what     what the file is, as in "key file"
    kind     of the error for a file that cannot be used; it says why
    Raises   `kind`
    """
    try:
        with contextlib.closing(
            connect(path, timeout_s=timeout_s, synchronous="EXTRA")
        ) as connection:
            connection.execute("BEGIN IMMEDIATE")
            # Closing the connection without a commit rolls back.
            yield connection
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise kind(f"{what} {path}: {_explain(error, what)}") from None
    except UnicodeDecodeError:  # a message of SQLite that quotes the damage
        raise kind(f"{what} {path}: is damaged") from None


def _explain(error: sqlite3.Error, what: str) -> str:
    # Errors that the sqlite3 module raises itself carry no code.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "is locked by another process; try again when that has finished"
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full; free space, nothing was changed"
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return f"is damaged, or no {what}"
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return "cannot be opened for writing; its folder must be writable too"
    return f"cannot be read or written ({error})"
