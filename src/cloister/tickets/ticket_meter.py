"""The meter of a ticket: it spends serials before outputs are released, and never one twice.

    receipts.ledger   every receipt, sealed (receipt_ledger.py)
    counter           monotonic, outside of the folder (monotonic_counter.py): its value less the
                      ticket's start is the number of outputs that were ever released

A spend writes the receipt into the ledger, then advances the counter by its number of outputs, then
returns; both are on stable storage. The counter decides, so with C outputs by the counter, S by the
ledger and c in the last receipt:

    C = S            nothing happened in between
    S - c <= C < S   a process died before the counter had moved all the way: the meter moves it.
                     The receipt was not given out, and its outputs stay spent
    C > S            the ledger is an old one, or a copy of it was used: refused
    C < S - c        the counter is an old one, or another one: refused

Copies of a folder that are used at once read one C. The counter lets one of them move it from C;
the others fail before they release anything. So all copies together release at most the quota, and
each serial once. A meter is new where the ledger is empty and the counter is at its start.

One process at a time is within a spend; the lock on the folder goes with its process.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cloister.attest.clock import Clock
from cloister.base import files
from cloister.base.rng import Csprng
from cloister.bundle.bundle_header import BundleHeader
from cloister.errors import (
    BudgetError,
    CounterError,
    ForkError,
    InputError,
    MeterError,
    RollbackError,
)
from cloister.tickets.monotonic_counter import MonotonicCounter
from cloister.tickets.receipt import Receipt
from cloister.tickets.receipt_ledger import ReceiptLedger
from cloister.tickets.ticket import Ticket, utc

LEDGER = "receipts.ledger"
KEY_BYTES = 32
LOCK_TIMEOUT_S = 60.0
_LOCK_POLL_S = 0.005


@dataclass(frozen=True)
class SignedReceipt:
    """A receipt, and the bytes of its file."""

    receipt: Receipt
    data: bytes


class TicketMeter:
    """What is left of a ticket; several threads and processes may use one folder."""

    def __init__(
        self, folder: Path, ledger: ReceiptLedger, counter: MonotonicCounter, clock: Clock
    ) -> None:
        self.ticket = ledger.ticket
        self._folder, self._ledger, self._counter, self._clock = folder, ledger, counter, clock

    @classmethod
    def open(
        cls,
        folder: Path,
        ticket: Ticket,
        *,
        bundle: BundleHeader,
        key: bytes,
        counter: MonotonicCounter,
        clock: Clock,
        rng: Csprng,
    ) -> "TicketMeter":
        """The meter in a folder; a new one where the folder is empty or not there.

        bundle   whose outputs are metered
        counter  the ticket's

        Secret   key
        Raises   TicketError for another bundle or counter and outside of the ticket's period,
                 MeterError, InputError for a folder that cannot be used
        """
        if len(key) != KEY_BYTES:
            raise InputError(f"a meter's key has {KEY_BYTES} bytes, not {len(key)}")
        ticket.require_bundle(bundle.bundle_id, vendor=bundle.vendor)
        ticket.require_counter(counter)
        ticket.require_time(clock.now())
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.sync_folder(folder.parent)
        except OSError as error:
            raise InputError(f"meter {folder}: {error.strerror or error}") from None
        with _locked(folder):
            ledger = ReceiptLedger.open(folder / LEDGER, ticket, meter_key=key, rng=rng)
            meter = cls(folder, ledger, counter, clock)
            meter._settled()
        return meter

    @property
    def receipt_key(self) -> bytes:
        """The public key that verifies its receipts."""
        return self._ledger.signer.public_key().public_bytes_raw()

    def left(self) -> int:
        """Outputs that may still be released.

        Raises   MeterError
        """
        with _locked(self._folder):
            return self.ticket.quota - self._spent(self._settled())

    def require(self, count: int) -> None:
        """Refuse a request whose outputs may not be released, before anything is computed.

        Raises   BudgetError, TicketError, MeterError
        """
        with _locked(self._folder):
            self._permitted(count)

    def spend(self, count: int, commitment: bytes) -> SignedReceipt:
        """Spend outputs, all or none; they may be released once this has returned.

        commitment   to the outputs, for the receipt
        Raises       BudgetError, TicketError, MeterError; then nothing may be released
        """
        with _locked(self._folder):
            last, now = self._permitted(count)
            spent = self._spent(last)
            receipt = Receipt(
                license=self.ticket.license,
                bundle_id=self.ticket.bundle_id,
                ticket=self.ticket.digest,
                signer=self.receipt_key,
                number=1 if last is None else last.number + 1,
                first=self.ticket.first_serial + spent,
                count=count,
                outputs=self.ticket.outputs,
                top=self.ticket.top,
                commitment=commitment,
                time=int(now.timestamp()),
                previous=self.ticket.digest if last is None else last.digest,
            )
            data = self._ledger.append(receipt)
            self._advance(spent, spent + count)
        return SignedReceipt(receipt, data)

    def receipts(self) -> list[SignedReceipt]:
        """All receipts, from the first on.

        Raises   MeterError
        """
        return [SignedReceipt(*pair) for pair in self._ledger.receipts()]

    def _permitted(self, count: int) -> tuple[Receipt | None, datetime]:
        """The last receipt and the time, if so many outputs may be released now."""
        if count < 1:
            raise InputError("a ticket buys outputs, and there is none to release; give an input")
        last, now = self._settled(), self._clock.now()
        if last is not None and int(now.timestamp()) < last.time:
            raise MeterError(
                f"meter {self._folder}: the clock reads {utc(int(now.timestamp()))}, and the last "
                f"output was released at {utc(last.time)}; set the clock right"
            )
        self.ticket.require_time(now)
        left = self.ticket.quota - self._spent(last)
        if count > left:
            raise BudgetError(
                f"ticket {self.ticket.license}: {left} of its {self.ticket.quota} outputs are "
                f"left, and {count} are asked for; nothing was released or spent; give fewer "
                "inputs, or ask the vendor for another ticket"
            )
        return last, now

    def _settled(self) -> Receipt | None:
        """The last receipt, once ledger and counter agree; the caller holds the lock."""
        last = self._ledger.last()
        spent, value = self._spent(last), self._counter.read() - self.ticket.counter.start
        pending = 0 if last is None else last.count
        if value > spent:
            raise RollbackError(
                f"meter {self._folder}: its ledger has {spent} outputs, and {value} were released "
                "by its counter: an old ledger was put back, the folder was emptied, or a copy of "
                "it was used; use the folder that was used last"
            )
        if value < spent - pending:
            raise RollbackError(
                f"meter {self._folder}: its ledger has {spent} outputs, and its counter "
                f"{value}: an old counter was put back, or it is not the counter of this meter; "
                "use the counter that was used last"
            )
        if value < spent:
            self._advance(value, spent)
        return last

    def _advance(self, before: int, to: int) -> None:
        start = self.ticket.counter.start
        try:
            self._counter.advance(start + before, start + to)
        except CounterError:
            found = self._counter.read() - start
            if found == before:
                raise
            raise ForkError(
                f"meter {self._folder}: its counter is at {found} outputs, and was at {before} "
                "before; nothing was released; another copy of this folder is in use"
            ) from None

    def _spent(self, last: Receipt | None) -> int:
        return 0 if last is None else last.behind - self.ticket.first_serial


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The turn of this thread among those of all processes.

    Raises   MeterError when another one does not end its turn
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MeterError(f"meter {folder}: {error.strerror or error}") from None
    try:
        ends = time.monotonic() + LOCK_TIMEOUT_S
        while not _lock(descriptor):
            if time.monotonic() > ends:
                raise MeterError(f"meter {folder}: another process uses it; try again later")
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
