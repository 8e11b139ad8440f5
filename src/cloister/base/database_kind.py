"""SQLite files of a kind: made where there is none, told by their header from those of others."""

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from cloister.base import files, sqlite
from cloister.errors import CloisterError

BUSY_TIMEOUT_S = 30.0
"""For another process that holds a file's lock."""


@dataclass(frozen=True)
class DatabaseKind:
    """What tells the files of one kind from all others.

    what             names the file in messages
    application_id   in the database header, with the version
    schema           one statement
    error            of a file that cannot be used
    """

    what: str
    application_id: int
    version: int
    schema: str
    error: type[CloisterError]

    def open_or_create(self, path: Path) -> None:
        """Make sure that a file is of this kind, for its owner alone; an empty one becomes one.

        A process that is killed meanwhile leaves an empty file.

        Raises   `error`
        """
        try:
            os.close(files.open_in_place(path, "any", private=True))
        except OSError as error:
            raise self.error(f"{self.what} {path}: {error.strerror}") from None
        with self.transaction(path) as database:
            found = sqlite.marks(database)
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if (found, tables) == ((0, 0), 0):
                sqlite.mark(database, self.application_id, self.version)
                database.execute(self.schema)
            elif found != (self.application_id, self.version) or not has_schema(
                database, self.schema
            ):
                raise self.error(
                    f"{self.what} {path}: is none that this version reads; give another file"
                )

    def transaction(self, path: Path) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """See `sqlite.transaction`.

        Raises   `error`
        """
        return sqlite.transaction(path, what=self.what, timeout_s=BUSY_TIMEOUT_S, kind=self.error)


def has_schema(connection: sqlite3.Connection, schema: str) -> bool:
    """Whether a file has the tables of a schema and nothing else.

    A view in a table's place can have rows without an end, and a trigger can undo a change.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as wanted:
        wanted.executescript(schema)
        return _described(connection) == _described(wanted)


def _described(connection: sqlite3.Connection) -> set[tuple[object, ...]]:
    return set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))
