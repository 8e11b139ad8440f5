"""The ledger of releases: one SQLite file, whose entries form a hash chain.

A change is one transaction. It is on stable storage when `changing` is left, and nothing that it
records may be released earlier. Several processes may change the file at once: each waits for the
lock. Beside the entries stand tables that follow from them, so that a rule reads one row and not
the whole ledger, and the leased counters. `ledger_verification` compares them with the entries.

Refusals are counted beside the chain: strangers cause them, so their room is bounded.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cloister.base import files, service_ledger, sqlite
from cloister.base.database_kind import has_schema
from cloister.base.service_ledger import BUSY_TIMEOUT_S
from cloister.broker.ledger_entry import GENESIS, EntryKind, LedgerEntry, next_entry
from cloister.errors import EncryptionError, InputError

FILE = "releases.sqlite"
FORMAT = 1
APPLICATION_ID = 0x434C4252
"""'CLBR' in the database header: this file is a broker's ledger."""
_THEN = "; nothing is released until then"

faults = partial(service_ledger.faults, then=_THEN)

_SCHEMA = """
CREATE TABLE entries (number INTEGER PRIMARY KEY, text TEXT NOT NULL, digest BLOB NOT NULL) STRICT;
CREATE TABLE bundles (bundle_id BLOB PRIMARY KEY, bundle_key BLOB NOT NULL) STRICT;
CREATE TABLE licenses (
    license TEXT PRIMARY KEY, chips INTEGER, meters INTEGER NOT NULL, revoked INTEGER NOT NULL
) STRICT;
CREATE TABLE chips (license TEXT NOT NULL, chip TEXT NOT NULL, PRIMARY KEY (license, chip))
    WITHOUT ROWID, STRICT;
CREATE TABLE meters (
    ticket BLOB NOT NULL, meter BLOB NOT NULL, count INTEGER NOT NULL, last_advance BLOB NOT NULL,
    PRIMARY KEY (ticket, meter)
) WITHOUT ROWID, STRICT;
CREATE TABLE recent (license TEXT NOT NULL, time INTEGER NOT NULL) STRICT;
CREATE INDEX recent_of ON recent (license, time);
CREATE TABLE refusals (kind TEXT PRIMARY KEY, count INTEGER NOT NULL) STRICT;
CREATE TABLE last_refusals (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, time INTEGER NOT NULL, message TEXT NOT NULL
) STRICT;
"""
KEPT_REFUSALS = 50
"""Of each kind, with their reasons; older ones are only counted."""


@dataclass(frozen=True)
class LicenseTerms:
    """The vendor's limits for one licence.

    chips    how many processors may be given the key; None: any number
    meters   how many meters may share the quota of one ticket, each with a leased counter
    """

    chips: int | None = None
    meters: int = 1
    revoked: bool = False


@dataclass(frozen=True)
class LeasedCounter:
    """A counter that the broker keeps.

    last_advance   names the call that advanced it last, so that the same call may be repeated
    """

    count: int
    last_advance: bytes


@dataclass(frozen=True)
class RefusedRequest:
    """One request that was refused."""

    kind: str
    time: int
    message: str


class LedgerChange:
    """One transaction: reads see what it wrote; an error in it leaves the file as it was.

    Methods raise sqlite3.Error, for `changing`.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def append(self, kind: EntryKind, fields: Mapping[str, object], *, time: int) -> LedgerEntry:
        """A new entry at the end of the chain."""
        row = self._one("SELECT number, digest FROM entries ORDER BY number DESC LIMIT 1")
        number, before = (0, GENESIS) if row is None else row
        entry = next_entry(kind, fields, time=time, number=number + 1, before=before)
        self._run("INSERT INTO entries VALUES (?, ?, ?)", entry.number, entry.text, entry.digest)
        return entry

    def put_bundle(self, bundle_id: bytes, bundle_key: bytes) -> None:
        """Keep the key of a bundle."""
        self._run("INSERT OR REPLACE INTO bundles VALUES (?, ?)", bundle_id, bundle_key)

    def bundle_key(self, bundle_id: bytes) -> bytes | None:
        """The key of a bundle; None: the broker has no such bundle.

        Secret   result
        """
        row = self._one("SELECT bundle_key FROM bundles WHERE bundle_id = ?", bundle_id)
        return None if row is None else bytes(row[0])

    def put_terms(self, license_id: str, terms: LicenseTerms) -> None:
        """Set the limits of a licence; those of "" hold for every licence without its own."""
        self._run(
            "INSERT OR REPLACE INTO licenses VALUES (?, ?, ?, ?)",
            license_id, terms.chips, terms.meters, int(terms.revoked),
        )  # fmt: skip

    def terms(self, license_id: str) -> LicenseTerms:
        """The limits of a licence, or those of every licence."""
        for name in (license_id, ""):
            row = self._one("SELECT chips, meters, revoked FROM licenses WHERE license = ?", name)
            if row is not None:
                return LicenseTerms(row[0], row[1], bool(row[2]))
        raise EncryptionError("its default limits are missing; restore the folder from a backup")

    def put_chip(self, license_id: str, chip: str) -> None:
        """A processor that was given the key."""
        self._run("INSERT OR IGNORE INTO chips VALUES (?, ?)", license_id, chip)

    def chips(self, license_id: str) -> int:
        """How many processors were given the key."""
        return self._count("SELECT count(*) FROM chips WHERE license = ?", license_id)

    def has_chip(self, license_id: str, chip: str) -> bool:
        """Whether a processor was given the key."""
        asked = "SELECT count(*) FROM chips WHERE license = ? AND chip = ?"
        return self._count(asked, license_id, chip) > 0

    def open_counter(self, ticket: bytes, meter: bytes, *, start: int) -> None:
        """A counter of a meter, named by its ticket's digest; nothing if it is there."""
        self._run("INSERT OR IGNORE INTO meters VALUES (?, ?, ?, ?)", ticket, meter, start, b"")

    def meters(self, ticket: bytes) -> int:
        """How many meters a ticket has."""
        return self._count("SELECT count(*) FROM meters WHERE ticket = ?", ticket)

    def counter(self, ticket: bytes, meter: bytes) -> LeasedCounter | None:
        """A counter; None: there is none of this meter."""
        row = self._one(
            "SELECT count, last_advance FROM meters WHERE ticket = ? AND meter = ?", ticket, meter
        )
        return None if row is None else LeasedCounter(row[0], bytes(row[1]))

    def total(self, ticket: bytes) -> int:
        """The sum of all counters of a ticket."""
        return self._count("SELECT sum(count) FROM meters WHERE ticket = ?", ticket)

    def set_counter(self, ticket: bytes, meter: bytes, counter: LeasedCounter) -> None:
        """Store a counter."""
        self._run(
            "UPDATE meters SET count = ?, last_advance = ? WHERE ticket = ? AND meter = ?",
            counter.count, counter.last_advance, ticket, meter,
        )  # fmt: skip

    def note_release(self, license_id: str, *, time: int) -> None:
        """Remember when a key was released, for the limit of an hour."""
        self._run("INSERT INTO recent VALUES (?, ?)", license_id, time)

    def releases_since(self, license_id: str, time: int) -> int:
        """How often the key was released after a time; what is older is forgotten."""
        self._run("DELETE FROM recent WHERE license = ? AND time <= ?", license_id, time)
        return self._count("SELECT count(*) FROM recent WHERE license = ?", license_id)

    def count_refusals(self, counts: Mapping[str, int], last: list[RefusedRequest]) -> None:
        """Add refusals, and keep the last ones of each kind with their reasons."""
        for kind, count in counts.items():
            self._run(
                "INSERT INTO refusals VALUES (?, ?) "
                "ON CONFLICT (kind) DO UPDATE SET count = count + excluded.count",
                kind, count,
            )  # fmt: skip
        for one in last:
            self._run(
                "INSERT INTO last_refusals (kind, time, message) VALUES (?, ?, ?)",
                one.kind, one.time, one.message,
            )  # fmt: skip
        for kind in counts:
            self._run(
                "DELETE FROM last_refusals WHERE kind = ? AND id NOT IN ("
                "SELECT id FROM last_refusals WHERE kind = ? ORDER BY id DESC LIMIT ?)",
                kind, kind, KEPT_REFUSALS,
            )  # fmt: skip

    def _run(self, statement: str, *values: object) -> None:
        self._connection.execute(statement, values)

    def _count(self, statement: str, *values: object) -> int:
        row = self._one(statement, *values)
        return 0 if row is None or row[0] is None else int(row[0])

    def _one(self, statement: str, *values: object) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._connection.execute(statement, values).fetchone()
        return row

    def _all(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, values).fetchall()


class ReleaseLedger:
    """An open ledger; threads share it."""

    def __init__(self, path: Path) -> None:
        """Open an existing file, which `ledger_verification` verifies.

        Raises   InputError when there is none, EncryptionError when it is none of this version
        """
        self._path, self._lock = path, threading.Lock()
        self._connection = _connect(path)

    @contextlib.contextmanager
    def changing(self) -> Iterator[LedgerChange]:
        """One transaction, on stable storage when the block is left; if it raises, none.

        Raises   EncryptionError when the file cannot be written: nothing may be released then
        """
        with self._lock, faults(self._path), _transaction(self._connection) as change:
            yield change

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


@contextlib.contextmanager
def changing(path: Path) -> Iterator[LedgerChange]:
    """One transaction of a process that serves nobody; see `ReleaseLedger.changing`.

    Raises   InputError when there is no ledger, EncryptionError
    """
    with (
        contextlib.closing(_connect(path)) as connection,
        faults(path),
        _transaction(connection) as change,
    ):
        yield change


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[LedgerChange]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield LedgerChange(connection)
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def create(path: Path, fields: Mapping[str, object], *, terms: LicenseTerms, time: int) -> None:
    """Make the file with its first entry, readable by its owner alone.

    terms    the limits of every licence without its own
    Raises   InputError when there is one already, EncryptionError when it cannot be written
    """
    with (
        service_ledger.create(
            path, _SCHEMA, application_id=APPLICATION_ID, version=FORMAT, then=_THEN
        ) as connection,
        _transaction(connection) as change,
    ):
        change.append(EntryKind.CREATED, fields, time=time)
        record_terms(change, "", terms, time=time)


def record_terms(
    change: LedgerChange, license_id: str, terms: LicenseTerms, *, time: int
) -> LedgerEntry:
    """Set the limits of a licence, and say so in the chain; "" stands for every licence."""
    change.put_terms(license_id, terms)
    return change.append(EntryKind.TERMS, {"license": license_id, **asdict(terms)}, time=time)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees the file as it is now, also while a broker serves.

    Raises   InputError when there is none, EncryptionError when it is damaged
    """
    with contextlib.closing(_connect(path)) as connection, faults(path):
        connection.execute("BEGIN")
        yield connection


def _connect(path: Path) -> sqlite3.Connection:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; run `cloister broker init`") from None
    files.check_private(path, found)
    with faults(path), contextlib.ExitStack() as stack:
        connection = sqlite.connect(path, timeout_s=BUSY_TIMEOUT_S, synchronous="FULL")
        stack.callback(connection.close)
        if sqlite.marks(connection) != (APPLICATION_ID, FORMAT):
            raise EncryptionError(f"{path}: is not the ledger of a broker of this version")
        if not has_schema(connection, _SCHEMA):
            raise EncryptionError(f"{path}: has other tables than a ledger; restore the folder")
        connection.execute("PRAGMA journal_mode = WAL")
        stack.pop_all()
    return connection
