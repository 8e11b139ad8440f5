"""Hostile tickets, receipts, and folders of meters.

What the vendor did not sign is never accepted. What it did sign may be nonsense: then it is refused
within bounds. Whatever the owner of a meter's folder writes into it, the meter never says that more
is left than its counter leaves.
"""

import itertools
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cloister.graph.canonical import PRELUDE
from cloister.tickets import receipt, ticket
from cloister.tickets.receipt import Receipt
from cloister.tickets.ticket import CounterKind, CounterRule, OutputMode, Ticket
from fuzz.bounds import FindingError
from fuzz.case import Case, Maker
from fuzz.mutate import DEEP, mutated_bytes, mutated_document, mutated_json
from fuzz.structures import pick, spliced
from tickets.licences import (
    DIGEST,
    FOREIGN_SIGNER,
    NOW,
    SIGNER,
    TICKET,
    VENDOR,
    MemoryCounter,
    meter,
)
from tickets.licences import ticket as changed

Made = tuple[bytes, Callable[[], object]]
SPENT = 4


@contextmanager
def tickets(folder: Path) -> Iterator[Maker]:
    """Cases; each has a meter's folder of its own."""
    good = _spent(folder / "good")
    numbers = itertools.count()
    kinds = (_ticket, _signed_ticket, _fields, _receipt, _signed_receipt, _ledger, _ledger, _rows)

    def case(rng: np.random.Generator) -> Case:
        kind = pick(rng, kinds)
        if kind in (_ledger, _rows):
            place = folder / f"{next(numbers)}"
            data, run = kind(rng, good, place)
        else:
            data, run = kind(rng)
        return Case(kind.__name__.strip("_"), data, run)

    yield case


def _spent(folder: Path) -> Path:
    """A meter of which some outputs are spent."""
    found = meter(folder, counter=MemoryCounter())
    for count in (1, SPENT - 1):
        found.spend(count, DIGEST)
    return folder


# ---- what is signed


def _ticket(rng) -> Made:
    one, other = TICKET.signed_by(SIGNER), changed(quota=3, license="x").signed_by(SIGNER)
    foreign = changed(vendor=FOREIGN_SIGNER.public_key().public_bytes_raw())
    data = pick(rng, (
        lambda: mutated_bytes(one, rng), lambda: spliced(one, other, rng),
        lambda: mutated_document(one, rng), lambda: foreign.signed_by(FOREIGN_SIGNER),
        lambda: one[:-64] + other[-64:],
    ))()  # fmt: skip
    return data, lambda: _refused(data not in (one, other), lambda: _read(data))


def _read(data: bytes) -> Ticket:
    found = Ticket.verify(data, vendor=VENDOR)
    assert found.signed_by(SIGNER) == data, "it is read otherwise than it stands there"
    return found


def _signed_ticket(rng) -> Made:
    """As the vendor could sign: what is accepted stands there as it was read."""
    data = resigned(TICKET.signed_by(SIGNER), ticket.KIND, rng)
    return data, lambda: _read(data)


def _fields(rng) -> Made:
    """Fields at their bounds; what is made can be read again."""
    big = (0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**53 - 1, 2**53, 253402300799, 253402300800)
    names = ("first_serial", "last_serial", "quota", "not_before", "not_after", "top")
    changes = {
        pick(rng, names): int(pick(rng, big)),
        "license": pick(rng, ("a", "A-1", "x" * 64, "x" * 65, "", "a\n", "\ud800", "a b")),
        "outputs": pick(rng, (OutputMode.LABEL, *OutputMode)),
    }
    identity = rng.bytes(int(pick(rng, (0, 31, 32))))
    rule = (pick(rng, list(CounterKind)), identity, int(pick(rng, big)))

    def run() -> None:
        made = changed(**changes, counter=CounterRule(*rule))
        if Ticket.verify(made.signed_by(SIGNER), vendor=VENDOR) != made:
            raise FindingError("read otherwise", str(changes))

    return str(changes).encode(errors="replace"), run


def _receipts() -> tuple[Receipt, bytes, bytes]:
    made = [
        Receipt(TICKET.license, TICKET.bundle_id, TICKET.digest, TICKET.vendor, number, 100, count,
                OutputMode.LABEL, None, DIGEST, NOW, previous)
        for number, count, previous in ((1, 2, TICKET.digest), (2, 1, DIGEST))
    ]  # fmt: skip
    return made[0], *(one.signed_by(SIGNER) for one in made)


def _receipt(rng) -> Made:
    _, one, other = _receipts()
    data = pick(rng, (
        lambda: mutated_bytes(one, rng), lambda: spliced(one, other, rng),
        lambda: mutated_document(one, rng),
    ))()  # fmt: skip
    good = (one, other)
    return data, lambda: _refused(data not in good, lambda: Receipt.verify(data, signer=VENDOR))


def _signed_receipt(rng) -> Made:
    made, one, _ = _receipts()
    data = resigned(one, receipt.KIND, rng)

    def run() -> None:
        found = Receipt.verify(data, signer=VENDOR)
        found.require_ticket(TICKET)
        found.require_predecessor(pick(rng, (None, made)), TICKET)

    return data, run


def resigned(data: bytes, kind, rng) -> bytes:
    """A document with one part changed, in its canonical form, and signed."""
    magic, version, length = PRELUDE.unpack_from(data)
    text = mutated_json(data[PRELUDE.size : PRELUDE.size + length], rng)
    if text is not DEEP:
        text = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()
    return kind.sign(PRELUDE.pack(magic, version, len(text)) + text, SIGNER)


# ---- a meter's folder


def _ledger(rng, good: Path, place: Path) -> Made:
    """The bytes of a file are changed, as the folder's owner can."""
    path = pick(rng, [one for one in sorted(good.iterdir()) if one.is_file()])
    data = mutated_bytes(path.read_bytes(), rng)
    if rng.integers(0, 3) == 0:
        size = len(data)
        data = data[:100] + mutated_bytes(data[100:], rng)[: max(0, size - 100)]

    def write() -> None:
        (place / path.name).write_bytes(data)

    return data, lambda: _used(good, place, write)


def _rows(rng, good: Path, place: Path) -> Made:
    """Rows of the database are changed, and the file is sound."""
    statement = pick(rng, (
        "DELETE FROM receipts WHERE number = 2", "DELETE FROM receipts",
        "UPDATE receipts SET number = number + 1 WHERE number = 2",
        "UPDATE receipts SET number = -number",
        "INSERT INTO receipts VALUES (3, zeroblob(1000000))",
        "INSERT INTO receipts SELECT 3, sealed FROM receipts WHERE number = 2",
        "UPDATE receipts SET sealed = (SELECT sealed FROM receipts WHERE number = 1)",
        "INSERT INTO receipts VALUES (9223372036854775807, x'00')",
        "DROP TABLE receipts",
        "CREATE TABLE more (a)", "PRAGMA user_version = 7", "PRAGMA application_id = 7",
        "ALTER TABLE receipts ADD COLUMN a TEXT", "UPDATE receipts SET sealed = x''",
        "CREATE TRIGGER t BEFORE INSERT ON receipts BEGIN SELECT raise(IGNORE); END",
        "CREATE VIEW v AS SELECT 1",
    ))  # fmt: skip

    def write() -> None:
        with sqlite3.connect(place / "receipts.ledger") as database:
            database.execute(statement)
        database.close()

    return statement.encode(), lambda: _used(good, place, write)


def _used(good: Path, place: Path, write: Callable[[], None]) -> None:
    """Open a meter and use it up: together with before, no more than the quota."""
    shutil.copytree(good, place)
    try:
        write()
        counter = MemoryCounter(SPENT)
        found = meter(place, counter=counter)
        released = 0
        for count in (1, found.left() - 1):
            if count > 0:
                found.spend(count, DIGEST)
                released += count
        if SPENT + released > TICKET.quota or counter.value != SPENT + released:
            raise FindingError("more than the quota", f"{SPENT} and {released}")
        found.receipts()
    finally:
        shutil.rmtree(place)


def _refused(must: bool, run: Callable[[], object]) -> None:
    run()
    if must:
        raise FindingError("accepted", "what nobody signed")
