"""The key file of a pad store: its secret key, its identity and the counters that only go up.

An SQLite database on trusted storage, because its commits are atomic and durable. Every operation
opens its own connection, so a store may be shared between threads and survive a fork, and every
change is one transaction under the write lock, so it may be shared between processes. A process
that dies inside a transaction leaves the old counters.

SQLite notices only some damage to its own file, and a damaged counter would be a pad used twice, so
the row carries a MAC under the store's key.

No file can prevent rollback: an attacker who puts back an old copy of *this* file makes pads be
used twice. Keep it where only its owner takes snapshots.
"""

import contextlib
import hashlib
import hmac
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from cloister.base import files, sqlite
from cloister.base.rng import Csprng
from cloister.errors import InputError, PadReusedError, PadStoreError

FORMAT = 1
APPLICATION_ID = 0x434C5350
"""'CLSP' in the database header: this file is a pad store's key file."""
DIGEST_BYTES = 32
KEY_BYTES = 32
ID_BYTES = 16
BUSY_TIMEOUT_S = 30.0
WHAT = "key file"

MemoryLayout = tuple[tuple[int, tuple[int, ...]], ...]
"""Node index and shape of every array of a pad, by node index; the same for all pads of a store."""

_SCHEMA = """
CREATE TABLE store (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    store_id BLOB NOT NULL,
    store_key BLOB NOT NULL,
    plan_digest BLOB NOT NULL,
    next_make INTEGER NOT NULL CHECK (next_make >= 0),
    next_use INTEGER NOT NULL CHECK (next_use BETWEEN 0 AND next_make),
    used INTEGER NOT NULL CHECK (used BETWEEN 0 AND next_use),
    makers INTEGER NOT NULL CHECK (makers >= 0),
    layout TEXT NOT NULL,
    mac BLOB NOT NULL
)
"""


@dataclass
class PadCounters:
    """The counters of a store.

    Ids below `next_make` have been given to a maker; ids below `next_use` will never be handed out
    again; `used` of those were handed out, the others were lost or skipped. `makers` is how few
    parties ever made pads of this store by workers; 0: the trusted side made them all.
    """

    next_make: int
    next_use: int
    used: int
    makers: int
    layout: MemoryLayout | None


@dataclass(frozen=True)
class PadLedger:
    """An opened key file. Secret: store_key."""

    path: Path
    store_id: bytes
    store_key: bytes
    plan_digest: bytes
    busy_timeout_s: float

    def __repr__(self) -> str:
        return f"PadLedger({str(self.path)!r}, store_id={self.store_id.hex()})"

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        plan_digest: bytes,
        rng: Csprng,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> Self:
        """Make a key file that only its owner can read.

        Raises   PadStoreError when there is one already or it cannot be written
        """
        if len(plan_digest) != DIGEST_BYTES:
            raise PadStoreError(f"a plan digest has {DIGEST_BYTES} bytes, got {len(plan_digest)}")
        path = path.absolute()
        try:
            os.close(files.open_in_place(path, "new", private=True))
        except OSError as error:
            raise PadStoreError(_refused(path, error)) from None
        store_id, store_key = rng.random_bytes(ID_BYTES), rng.random_bytes(KEY_BYTES)
        with _transaction(path, busy_timeout_s) as database:
            sqlite.mark(database, APPLICATION_ID, FORMAT)
            database.execute(_SCHEMA)
            ledger = cls(path, store_id, store_key, plan_digest, busy_timeout_s)
            database.execute(
                "INSERT INTO store VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (store_id, store_key, plan_digest, *ledger._row(PadCounters(0, 0, 0, 0, None))),
            )
        return ledger

    @classmethod
    def open(cls, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Self:
        """Open the key file of an existing store.

        Raises   PadStoreError when it is missing, damaged, readable by others or something else
        """
        path = path.absolute()
        try:
            found = path.stat()
            files.check_private(path, found)
        except OSError as error:
            raise PadStoreError(_refused(path, error)) from None
        except InputError as error:
            raise PadStoreError(f"key file {error}") from None
        if not stat.S_ISREG(found.st_mode):
            raise PadStoreError(f"key file {path}: is not a file")
        with _transaction(path, busy_timeout_s) as database:
            _check_kind(path, database)
            row = database.execute("SELECT store_id, store_key, plan_digest FROM store").fetchone()
            if row is None or not all(isinstance(value, bytes) for value in row):
                raise PadStoreError(_damaged(path))
            store_id, store_key, plan_digest = row
            ledger = cls(path, store_id, store_key, plan_digest, busy_timeout_s)
            ledger._load(database)
        return ledger

    @contextlib.contextmanager
    def update(self) -> Iterator[PadCounters]:
        """Change counters: alone, all or nothing, durable when the block has been left.

        Raises   PadReusedError when a counter would go back, PadStoreError when nothing was changed
        """
        with _transaction(self.path, self.busy_timeout_s) as database:
            before = self._load(database)
            after = replace(before)
            yield after
            if after.next_make < before.next_make or after.next_use < before.next_use:
                raise PadReusedError("a pad store's counters never go back")
            if after != before:
                database.execute(
                    "UPDATE store SET next_make = ?, next_use = ?, used = ?, makers = ?, "
                    "layout = ?, mac = ?",
                    self._row(after),
                )

    def _load(self, database: sqlite3.Connection) -> PadCounters:
        found = database.execute(
            "SELECT store_id, next_make, next_use, used, makers, layout, mac FROM store"
        ).fetchone()
        if found is None or not isinstance(found[-1], bytes):
            raise PadStoreError(_damaged(self.path))
        store_id, *row, mac = found
        if store_id != self.store_id:
            raise PadStoreError(f"key file {self.path}: was replaced by another store's")
        if not hmac.compare_digest(mac, self._mac(*row)):
            raise PadStoreError(_damaged(self.path))
        next_make, next_use, used, makers, layout = row
        return PadCounters(next_make, next_use, used, makers, _parse_layout(layout))

    def _row(self, counters: PadCounters) -> tuple[int, int, int, int, str, bytes]:
        numbers = (counters.next_make, counters.next_use, counters.used, counters.makers)
        layout = json.dumps(counters.layout)
        return (*numbers, layout, self._mac(*numbers, layout))

    def _mac(self, *row: int | str) -> bytes:
        described = json.dumps([self.store_id.hex(), self.plan_digest.hex(), *row]).encode()
        return hmac.digest(self.store_key, described, hashlib.sha256)


def _parse_layout(text: str) -> MemoryLayout | None:
    listed = json.loads(text)
    if listed is None:
        return None
    return tuple((int(index), tuple(int(size) for size in shape)) for index, shape in listed)


def _damaged(path: Path) -> str:
    return f"key file {path}: is damaged; its pads cannot be used any more, delete both"


def _check_kind(path: Path, database: sqlite3.Connection) -> None:
    application, version = sqlite.marks(database)
    if application != APPLICATION_ID:
        # A creation that was interrupted leaves an empty file, and no pad was ever made with it.
        empty = path.stat().st_size == 0
        remedy = "its creation was interrupted; delete it" if empty else "choose another --key"
        raise PadStoreError(f"key file {path}: is not the key file of a pad store; {remedy}")
    if version != FORMAT:
        raise PadStoreError(f"key file {path}: has format {version}, this version reads {FORMAT}")


def _transaction(
    path: Path, busy_timeout_s: float
) -> contextlib.AbstractContextManager[sqlite3.Connection]:
    return sqlite.transaction(path, what=WHAT, timeout_s=busy_timeout_s, kind=PadStoreError)


def _refused(path: Path, error: OSError) -> str:
    if isinstance(error, FileExistsError):
        return f"key file {path}: exists already; open its store, or choose another --key"
    if isinstance(error, FileNotFoundError):
        return f"key file {path}: does not exist"
    return f"key file {path}: {error.strerror}"
