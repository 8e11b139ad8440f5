"""Verifying a ledger of releases: the chain of its entries, and the tables that follow from it."""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.base.reading import parsing
from cloister.broker.ledger_entry import GENESIS, EntryKind, LedgerEntry, read_entry
from cloister.broker.release_ledger import RefusedRequest, reading
from cloister.errors import EncryptionError


@dataclass(frozen=True)
class LedgerContents:
    """A ledger whose chain holds.

    counters   count of each leased counter, by its ticket's digest and its meter
    refusals   how many there were of each kind
    """

    entries: tuple[LedgerEntry, ...]
    counters: Mapping[tuple[str, str], int]
    refusals: Mapping[str, int]
    last_refusals: tuple[RefusedRequest, ...]

    @property
    def head(self) -> LedgerEntry:
        """The last entry, whose digest commits to all of them."""
        return self.entries[-1]


def read_ledger(path: Path) -> LedgerContents:
    """All of a ledger as it is now, verified; also while a broker serves.

    Raises   InputError when there is none, EncryptionError naming what was changed
    """
    with reading(path) as connection, _located(path):
        entries = tuple(_verified(connection))
        counters = connection.execute("SELECT ticket, meter, count FROM meters")
        last = connection.execute("SELECT kind, time, message FROM last_refusals ORDER BY id")
        return LedgerContents(
            entries,
            {(bytes(one).hex(), bytes(meter).hex()): count for one, meter, count in counters},
            dict(connection.execute("SELECT kind, count FROM refusals ORDER BY kind").fetchall()),
            tuple(RefusedRequest(*row) for row in last),
        )


def ledger_ends(path: Path) -> tuple[LedgerEntry, LedgerEntry]:
    """The first and the last entry of a ledger, after all of it was verified.

    Raises   as `read_ledger`
    """
    with reading(path) as connection, _located(path):
        entries = _verified(connection)
        first = last = next(entries)
        for entry in entries:
            last = entry
        return first, last


@contextmanager
def _located(path: Path) -> Iterator[None]:
    """Errors are of this file."""
    try:
        yield
    except EncryptionError as error:
        raise EncryptionError(f"{path}: {error}; restore the folder from a backup") from None


def _verified(connection: sqlite3.Connection) -> Iterator[LedgerEntry]:
    """The entries from the first to the last, each after its digest was compared; then the tables.

    Raises   EncryptionError naming the entry or table, sqlite3.Error
    """
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    expected, before = _Tables(), GENESIS
    rows = connection.execute("SELECT number, text, digest FROM entries ORDER BY number")
    for place, (number, text, digest) in enumerate(rows, 1):
        if number != place:
            raise EncryptionError(f"entry {place}: is missing; entry {number} follows")
        entry = read_entry(text, bytes(digest), number=number, before=before)
        before = entry.digest
        with parsing(f"entry {number}: lacks a field", kind=EncryptionError):
            expected.apply(entry)
        yield entry
    if before == GENESIS:
        raise EncryptionError("has no entry")
    if expected != _stored(connection):
        raise EncryptionError(
            "its tables of licences, chips, meters and bundles are not those that follow from its "
            "entries"
        )


@dataclass
class _Tables:
    """What follows from the entries."""

    licenses: dict[str, tuple[int | None, int, bool]] = field(default_factory=dict)
    chips: set[tuple[str, str]] = field(default_factory=set)
    meters: set[tuple[str, str]] = field(default_factory=set)
    bundles: dict[str, str] = field(default_factory=dict)

    def apply(self, entry: LedgerEntry) -> None:
        fields: Mapping[str, Any] = entry.fields
        match entry.kind:
            case EntryKind.TERMS:
                terms = (fields["chips"], fields["meters"], fields["revoked"])
                self.licenses[fields["license"]] = terms
            case EntryKind.BUNDLE:
                self.bundles[fields["bundle"]] = fields["key_sha256"]
            case EntryKind.RELEASE:
                self.chips.add((fields["license"], fields["chip"]))
                self.meters.add((fields["ticket"], fields["meter"]))


def _stored(connection: sqlite3.Connection) -> _Tables:
    licenses = connection.execute("SELECT license, chips, meters, revoked FROM licenses")
    bundles = connection.execute("SELECT bundle_id, bundle_key FROM bundles")
    meters = connection.execute("SELECT ticket, meter FROM meters")
    return _Tables(
        {name: (chips, meters, bool(revoked)) for name, chips, meters, revoked in licenses},
        set(connection.execute("SELECT license, chip FROM chips")),
        {(bytes(ticket).hex(), bytes(meter).hex()) for ticket, meter in meters},
        {bytes(name).hex(): key_digest(bytes(key)) for name, key in bundles},
    )


def key_digest(key: bytes) -> str:
    """Names a key: it has 256 random bits, so its plain hash cannot be searched."""
    return hashlib.sha256(key).hexdigest()
