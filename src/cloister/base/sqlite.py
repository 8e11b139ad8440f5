"""The one way to open an SQLite file: a commit is durable, and the file's schema is not trusted.

A committed record survives a crash of the machine: `synchronous = FULL` syncs the log of a file in
WAL mode at every commit; `EXTRA` also syncs the folder after a journal is gone. `fullfsync` empties
the drive's cache where the system offers it.
"""

import sqlite3
from pathlib import Path
from typing import Literal


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
