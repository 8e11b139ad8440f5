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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from cloister.base import files, sqlite
from cloister.base.reading import parsing
from cloister.base.rng import Csprng
from cloister.errors import InputError, PadReusedError, PadStoreError
from cloister.trusted.pads.pad_layout import PadLayout

FORMAT = 2
APPLICATION_ID = 0x434C5350
"""'CLSP' in the database header: this file is a pad store's key file."""
DIGEST_BYTES = 32
KEY_BYTES = 32
ID_BYTES = 16
BUSY_TIMEOUT_S = 30.0
WHAT = "key file"

_SCHEMA = """
CREATE TABLE store (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    store_id BLOB NOT NULL,
    store_key BLOB NOT NULL,
    plan_digest BLOB NOT NULL,
    sealed INTEGER NOT NULL CHECK (sealed IN (0, 1)),
    layout TEXT NOT NULL,
    next_make INTEGER NOT NULL CHECK (next_make >= 0),
    next_use INTEGER NOT NULL CHECK (next_use BETWEEN 0 AND next_make),
    rows_reserved INTEGER NOT NULL CHECK (rows_reserved >= next_make),
    rows_opened INTEGER NOT NULL CHECK (rows_opened BETWEEN 0 AND rows_reserved),
    makers INTEGER NOT NULL CHECK (makers >= 0),
    given_back TEXT NOT NULL,
    mac BLOB NOT NULL
)
"""


@dataclass
class PadCounters:
    """The counters of a store.

    Blocks below `next_make` have been given to a maker, with `rows_reserved` rows in all. Blocks
    below `next_use` will never be opened from their beginning again. `given_back` has those of them
    that were opened and closed again, with the first row that was not handed out; no others are
    opened a second time. `rows_opened` counts the rows of opened blocks that were not given back.
    `makers` is how few parties ever made pads of this store by workers; 0: the trusted side made
    them all.
    """

    next_make: int = 0
    next_use: int = 0
    rows_reserved: int = 0
    rows_opened: int = 0
    makers: int = 0
    given_back: dict[int, int] = field(default_factory=dict)

    def may_open(self, block: int) -> bool:
        """Whether a block that has a file may be opened."""
        return self.next_use <= block < self.next_make or block in self.given_back

    def to_open(self) -> Iterator[int]:
        """The blocks that may be opened, in their order."""
        yield from sorted(self.given_back)
        yield from range(self.next_use, self.next_make)

    def open(self, block: int, rows: int) -> int:
        """Count a block as opened; the first of its rows that was never handed out."""
        first = self.given_back.pop(block, 0)
        self.next_use = max(self.next_use, block + 1)
        self.rows_opened += rows - first
        return first

    def give_back(self, block: int, rows: int, *, first: int) -> None:
        """Let a block be opened again, from a row that was not handed out."""
        self.given_back[block] = first
        self.rows_opened -= rows - first

    def check_after(self, before: "PadCounters") -> None:
        """Refuse a change that could hand out a row twice.

        Raises   PadReusedError
        """
        back = any(row < before.given_back.get(block, 0) for block, row in self.given_back.items())
        later = any(block >= self.next_use for block in self.given_back)
        if self.next_make < before.next_make or self.next_use < before.next_use or back or later:
            raise PadReusedError("a pad store's counters never go back")


@dataclass(frozen=True)
class PadLedger:
    """An opened key file.

    sealed   whether the rows have tags: for a plan that does not check all answers it unblinds
    layout   of every row

    Secret   store_key
    """

    path: Path
    store_id: bytes
    store_key: bytes
    plan_digest: bytes
    sealed: bool
    layout: PadLayout
    busy_timeout_s: float

    def __repr__(self) -> str:
        return f"PadLedger({str(self.path)!r}, store_id={self.store_id.hex()})"

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        plan_digest: bytes,
        layout: PadLayout,
        sealed: bool,
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
            ledger = cls(path, store_id, store_key, plan_digest, sealed, layout, busy_timeout_s)
            database.execute(
                "INSERT INTO store VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    store_id, store_key, plan_digest, sealed, _text(layout),
                    *ledger._row(PadCounters()),
                ),
            )  # fmt: skip
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
            row = database.execute(
                "SELECT store_id, store_key, plan_digest, sealed, layout FROM store"
            ).fetchone()
            if row is None or not all(isinstance(value, bytes) for value in row[:3]):
                raise PadStoreError(_damaged(path))
            with parsing(_damaged(path), kind=PadStoreError, quoted=False):
                store_id, store_key, plan_digest, sealed, layout = row
                ledger = cls(
                    path, store_id, store_key, plan_digest, bool(sealed), _layout(layout),
                    busy_timeout_s,
                )  # fmt: skip
            ledger._load(database)
        return ledger

    @contextlib.contextmanager
    def update(self) -> Iterator[PadCounters]:
        """Change counters: alone, all or nothing, durable when the block has been left.

        Raises   PadReusedError when a counter would go back, PadStoreError when nothing was changed
        """
        with _transaction(self.path, self.busy_timeout_s) as database:
            before = self._load(database)
            after = replace(before, given_back=dict(before.given_back))
            yield after
            after.check_after(before)
            if after != before:
                database.execute(
                    "UPDATE store SET next_make = ?, next_use = ?, rows_reserved = ?, "
                    "rows_opened = ?, makers = ?, given_back = ?, mac = ?",
                    self._row(after),
                )

    def _load(self, database: sqlite3.Connection) -> PadCounters:
        found = database.execute(
            "SELECT store_id, next_make, next_use, rows_reserved, rows_opened, makers, given_back, "
            "mac FROM store"
        ).fetchone()
        if found is None or not isinstance(found[-1], bytes):
            raise PadStoreError(_damaged(self.path))
        store_id, *row, mac = found
        if store_id != self.store_id:
            raise PadStoreError(f"key file {self.path}: was replaced by another store's")
        if not hmac.compare_digest(mac, self._mac(*row)):
            raise PadStoreError(_damaged(self.path))
        next_make, next_use, rows_reserved, rows_opened, makers, given_back = row
        return PadCounters(
            next_make, next_use, rows_reserved, rows_opened, makers, dict(json.loads(given_back))
        )

    def _row(self, counters: PadCounters) -> tuple[int | str | bytes, ...]:
        row = (
            counters.next_make,
            counters.next_use,
            counters.rows_reserved,
            counters.rows_opened,
            counters.makers,
            json.dumps(sorted(counters.given_back.items())),
        )
        return (*row, self._mac(*row))

    def _mac(self, *row: int | str) -> bytes:
        fixed = [self.store_id.hex(), self.plan_digest.hex(), self.sealed, _text(self.layout)]
        return hmac.digest(self.store_key, json.dumps([*fixed, *row]).encode(), hashlib.sha256)


def _text(layout: PadLayout) -> str:
    return json.dumps(list(layout.shapes.items()))


def _layout(text: str) -> PadLayout:
    return PadLayout.of_shapes({index: tuple(shape) for index, shape in json.loads(text)})


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
        raise PadStoreError(
            f"key file {path}: has format {version}, this version reads {FORMAT}; delete it with "
            "its folder and make new pads"
        )


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
