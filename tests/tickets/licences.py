"""Tickets, meters and clocks of tests."""

import dataclasses
import hashlib
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.attest.clock import Clock
from cloister.base.rng import SystemRandom
from cloister.bundle.bundle_header import BundleHeader
from cloister.tickets.insecure_file_counter import InsecureFileCounter
from cloister.tickets.ticket import CounterKind, CounterRule, OutputMode, Ticket
from cloister.tickets.ticket_meter import TicketMeter

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
FOREIGN_SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
VENDOR = SIGNER.public_key()
KEY, FOREIGN_KEY = hashlib.sha256(b"meter").digest(), bytes([1]) * 32
NOW = 1_800_000_000
DIGEST = bytes(range(32))
TICKET = Ticket(
    license="acme-7",
    bundle_id=bytes(16),
    vendor=VENDOR.public_bytes_raw(),
    first_serial=100,
    last_serial=199,
    quota=10,
    not_before=NOW - 1000,
    not_after=NOW + 1000,
    outputs=OutputMode.LABEL,
    top=None,
    broker=None,
    counter=CounterRule(CounterKind.INSECURE_FILE),
)
BUNDLE = BundleHeader(
    bundle_id=bytes(16), version=1, vendor=TICKET.vendor, plan_digest=bytes(32), plan_bytes=1,
    module_digest=bytes(32), hidden_bytes=1, chunk_bytes=64, sealed_digest=bytes(32),
)  # fmt: skip


def ticket(**changes: object) -> Ticket:
    return dataclasses.replace(TICKET, **changes)


class Hands:
    """A clock's time, which tests set."""

    def __init__(self, at: float = NOW) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)


class MemoryCounter:
    """A monotonic counter that nobody puts back."""

    kind = CounterKind.INSECURE_FILE
    identity = bytes(32)

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.moves: list[tuple[int, int]] = []

    def read(self) -> int:
        return self.value

    def advance(self, before: int, to: int) -> None:
        from cloister.errors import CounterError

        if self.value != before:
            raise CounterError(f"is at {self.value}")
        self.value = to
        self.moves.append((before, to))


def meter(folder: Path, given: Ticket = TICKET, *, at: float = NOW, **chosen: object):
    """The meter in a folder; its counter is a file beside it."""
    options = {
        "bundle": BUNDLE,
        "key": KEY,
        "clock": Clock(Hands(at)),
        "rng": SystemRandom(),
    } | chosen
    if "counter" not in options:
        options["counter"] = InsecureFileCounter.open(folder.parent / "counter")
    return TicketMeter.open(folder, given, **options)
