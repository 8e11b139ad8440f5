"""How many samples each hidden module has answered: counters in a file, which only go up.

An SQLite database, because its commits are atomic and durable. Queries are charged before a module
runs, in one transaction under the write lock: a process that is killed gives none back, and
several processes together cannot charge more than the limit.

SQLite notices only some damage to its own file, and a lost count would answer more queries than
were agreed. So all counts are one row, which is always there and carries a checksum.

No file can prevent rollback: whoever puts back an old copy of this file, or gives another one, has
the queries again. The limit binds hosts that cannot do so.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cloister.base import files, sqlite
from cloister.errors import BudgetError, InputError

FORMAT = 1
APPLICATION_ID = 0x434C5351
"""'CLSQ' in the database header: this file is a query counter."""
BUSY_TIMEOUT_S = 30.0
WHAT = "query counter"
_SCHEMA = """
CREATE TABLE counter (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    used TEXT NOT NULL,
    checksum TEXT NOT NULL
)
"""


@dataclass(frozen=True)
class QueryCounter:
    """The counters of one file, which sessions and processes may share."""

    path: Path
    busy_timeout_s: float = BUSY_TIMEOUT_S

    @classmethod
    def create(cls, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Self:
        """A new file, for its owner alone, in which no module has answered anything.

        Raises   InputError when there is one already or it cannot be written
        """
        counter = cls(path.absolute(), busy_timeout_s)
        try:
            os.close(files.open_in_place(counter.path, "new", private=True))
        except OSError as error:
            raise InputError(f"{WHAT} {path}: {error.strerror}") from None
        with counter._transaction() as database:
            sqlite.mark(database, APPLICATION_ID, FORMAT)
            database.execute(_SCHEMA)
            _write(database, {})
        return counter

    @classmethod
    def open(cls, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Self:
        """An existing file.

        Raises   InputError when it is missing, damaged, readable by others or something else
        """
        counter = cls(path.absolute(), busy_timeout_s)
        try:
            found = counter.path.stat()
        except OSError as error:
            raise InputError(f"{WHAT} {path}: {error.strerror}") from None
        files.check_private(counter.path, found)
        with counter._transaction() as database:
            marks = sqlite.marks(database)
        if marks != (APPLICATION_ID, FORMAT):
            raise InputError(f"{WHAT} {path}: is none that this version reads; give another file")
        return counter

    def used(self, digest: bytes) -> int:
        """How many samples a module has answered.

        Raises   InputError
        """
        with self._transaction() as database:
            return self._read(database).get(digest.hex(), 0)

    def charge(self, digest: bytes, count: int, *, limit: int) -> int:
        """Count samples that a module is about to answer; how many it may answer after them.

        Raises   BudgetError when that would be more than `limit` in all, InputError; then none is
                 counted
        """
        with self._transaction() as database:
            counts = self._read(database)
            used = counts.get(digest.hex(), 0)
            require(digest, count, used=used, limit=limit)
            _write(database, {**counts, digest.hex(): used + count})
        return limit - used - count

    def _read(self, database: sqlite3.Connection) -> dict[str, int]:
        row = database.execute("SELECT used, checksum FROM counter").fetchone()
        if row is None or row[1] != _checksum(row[0]):
            raise InputError(f"{WHAT} {self.path}: is damaged")
        counts: dict[str, int] = json.loads(row[0])
        return counts

    def _transaction(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return sqlite.transaction(
            self.path, what=WHAT, timeout_s=self.busy_timeout_s, kind=InputError
        )


def require(digest: bytes, count: int, *, used: int, limit: int) -> None:
    """Refuse samples beyond a limit.

    Raises   BudgetError
    """
    if used + count > limit:
        raise BudgetError(
            f"hidden module {digest.hex()[:16]}: {max(limit - used, 0)} of its {limit} queries are "
            f"left, and {count} are asked for; give fewer inputs, or ask its vendor for a plan "
            "with more queries"
        )


def _write(database: sqlite3.Connection, counts: dict[str, int]) -> None:
    text = json.dumps(counts, sort_keys=True)
    database.execute("INSERT OR REPLACE INTO counter VALUES (1, ?, ?)", (text, _checksum(text)))


def _checksum(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()
