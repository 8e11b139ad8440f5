"""How many samples each hidden module has answered: counters in a file, which only go up.

An SQLite database, because its commits are atomic and durable. Queries are charged before a module
runs, in one transaction under the write lock: a process that is killed gives none back, and
several processes together cannot charge more than the limit.

SQLite notices only some damage to its own file, and a damaged counter would answer more queries
than were agreed, so each row carries a checksum.

No file can prevent rollback: whoever puts back an old copy of this file, or gives another one, has
the queries again. The limit binds hosts that cannot do so.
"""

import contextlib
import hashlib
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
CREATE TABLE module (
    digest BLOB PRIMARY KEY,
    used INTEGER NOT NULL CHECK (used >= 0),
    checksum BLOB NOT NULL
) WITHOUT ROWID
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
            return self._used(database, digest)

    def charge(self, digest: bytes, count: int, *, limit: int) -> int:
        """Count samples that a module is about to answer; how many it may answer after them.

        Raises   BudgetError when that would be more than `limit` in all, InputError; then none is
                 counted
        """
        with self._transaction() as database:
            used = self._used(database, digest)
            require(digest, count, used=used, limit=limit)
            database.execute(
                "INSERT OR REPLACE INTO module VALUES (?, ?, ?)",
                (digest, used + count, _checksum(digest, used + count)),
            )
        return limit - used - count

    def _used(self, database: sqlite3.Connection, digest: bytes) -> int:
        row = database.execute(
            "SELECT used, checksum FROM module WHERE digest = ?", (digest,)
        ).fetchone()
        if row is None:
            return 0
        used, checksum = row
        if not isinstance(used, int) or checksum != _checksum(digest, used):
            raise InputError(f"{WHAT} {self.path}: is damaged")
        return used

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


def _checksum(digest: bytes, used: int) -> bytes:
    return hashlib.sha256(digest + used.to_bytes(8, "little")).digest()
