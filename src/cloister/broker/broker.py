"""The key broker: it records a release, waits until the record is on the disk, and gives the keys.

A release is counted: each has an entry of its own. It is repeatable too, because it gives the same
keys every time; in one session a repeated request gets the first answer, without another entry.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cloister.attest.appraisal import Appraisal
from cloister.attest.appraiser import Appraiser
from cloister.attest.channel import AttestedChannel
from cloister.attest.clock import Clock
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.broker.broker_folder import BrokerFolder
from cloister.broker.ledger_entry import EntryKind, LedgerEntry
from cloister.broker.ledger_verification import ledger_ends
from cloister.broker.licensed_sessions import LicensedSessions
from cloister.broker.refusal_log import RefusalLog
from cloister.broker.release_ledger import LeasedCounter, LedgerChange, ReleaseLedger
from cloister.broker.release_rules import (
    HOUR_S,
    Machine,
    RefusalKind,
    ReleaseRequest,
    Standing,
    refusal,
)
from cloister.bundle.bundle_keys import BundleKey
from cloister.errors import (
    AttestationError,
    CloisterError,
    CounterError,
    EncryptionError,
    InputError,
    ReleaseError,
)
from cloister.tickets.receipt import receipt_signer
from cloister.tickets.ticket import CounterKind, Ticket, utc

_T = TypeVar("_T")

METER_BYTES, ADVANCE_BYTES = 16, 16
SESSION_LABEL = "cloister broker session"
UNLICENSED_CALLS = 8
"""A session in which so many were refused, and no key was released, ends."""


@dataclass(frozen=True, repr=False)
class RecordedRelease:
    """What a runtime is given.

    entry    of the ledger, which is on the disk

    Secret   bundle_key, meter_key
    """

    bundle_key: BundleKey
    meter_key: bytes
    entry: LedgerEntry


class Broker:
    """A vendor's broker; threads share it."""

    def __init__(self, folder: Path, *, clock: Clock) -> None:
        """Open a folder and verify its ledger.

        Raises   InputError, EncryptionError, AttestationError for damaged collateral
        """
        self.folder, self._clock = BrokerFolder.open(folder), clock
        first, last = ledger_ends(self.folder.ledger)
        if self._clock.now().timestamp() < last.time:
            raise InputError(
                f"{self.folder.ledger}: its last entry is of {utc(last.time)}, and the clock reads "
                f"{self._clock.now().isoformat()}; set the clock right: expired tickets would count"
            )
        if first.fields.get("certificate") != self.folder.certificate.hex():
            raise EncryptionError(
                f"{self.folder.ledger}: belongs to another certificate than that of its folder; "
                "restore the folder from a backup"
            )
        self.appraiser = Appraiser(self.folder.policy, self.folder.collateral, clock)
        self._ledger = ReleaseLedger(self.folder.ledger)
        self._refusals = RefusalLog(self._ledger)
        self.sessions = LicensedSessions()

    def close(self) -> None:
        """Write the refusals that were counted, and close the ledger."""
        self._refusals.write()
        self._ledger.close()

    def now(self) -> datetime:
        """The time, which never runs backwards."""
        return self._clock.now()

    def refuse(self, kind: RefusalKind, error: CloisterError) -> CloisterError:
        """Count a refusal; gives the error, to be raised."""
        self._refusals.add(kind, str(error), time=int(self.now().timestamp()))
        return error

    def read_ticket(self, data: bytes) -> Ticket:
        """A ticket of the vendor.

        Raises   TicketError, counted
        """
        try:
            return Ticket.verify(data, vendor=self.folder.vendor)
        except CloisterError as error:
            raise self.refuse(RefusalKind.TICKET, error) from None

    def release(
        self, ticket: Ticket, meter: bytes, appraisal: Appraisal, *, manifest: bytes, session: bytes
    ) -> RecordedRelease:
        """Record that a runtime gets the keys of a ticket; they leave once this returns.

        Secret   result
        Raises   ReleaseError, TicketError, counted; EncryptionError when the ledger cannot be
                 written
        """
        try:
            machine = Machine.of(appraisal)
        except ReleaseError as error:
            raise self.refuse(RefusalKind.EVIDENCE, error) from None
        try:
            started = RuntimeManifest.from_bytes(manifest)
        except AttestationError as error:
            raise self.refuse(RefusalKind.RUNTIME, error) from None
        meter_key = self.folder.meter_key(ticket.license, ticket.bundle_id, meter)
        now = self.now()
        time = int(now.timestamp())
        with self._ledger.changing() as change:
            request = ReleaseRequest(
                ticket, machine, started, appraisal.evidence.relayable, meter,
                self.folder.certificate, now, _standing(change, ticket, machine, meter, time),
            )  # fmt: skip
            refused = refusal(request)
            if refused is None:
                key = _held(change.bundle_key(ticket.bundle_id))
                fields = _fields(request, appraisal, session)
                fields["policy"] = self.appraiser.policy_digest.hex()
                signer = receipt_signer(meter_key, ticket).public_key()
                fields["receipt_key"] = signer.public_bytes_raw().hex()
                entry = change.append(EntryKind.RELEASE, fields, time=time)
                change.put_chip(ticket.license, machine.chip)
                change.open_counter(ticket.digest, meter, start=ticket.counter.start)
                change.note_release(ticket.license, time=time)
        # The transaction is on the disk: only now may a key be read by anyone.
        if refused is not None:
            raise self.refuse(*refused)
        return RecordedRelease(BundleKey(ticket.bundle_id, key), meter_key, entry)

    def require_usable(self, ticket: Ticket) -> None:
        """Refuse a licence that the vendor has revoked since its release, and an expired ticket.

        Raises   ReleaseError, TicketError, counted; EncryptionError
        """
        with self._ledger.changing() as change:
            refused = self._licence_refusal(change, ticket)
        if refused is not None:
            raise self.refuse(*refused)

    def read_counter(self, ticket: Ticket, meter: bytes) -> int:
        """The count of a leased counter.

        Raises   ReleaseError, TicketError, counted; EncryptionError
        """
        with self._ledger.changing() as change:
            refused = self._counter_refusal(change, ticket, meter)
            counter = change.counter(ticket.digest, meter)
        if refused is not None:
            raise self.refuse(*refused)
        return _held(counter).count

    def advance_counter(
        self, ticket: Ticket, meter: bytes, *, before: int, to: int, name: bytes
    ) -> None:
        """Advance a leased counter; it is on the disk once this returns.

        name     drawn by the caller for this call: the same call again does no more
        Raises   CounterError for a counter that is elsewhere, ReleaseError, TicketError, counted;
                 EncryptionError
        """
        with self._ledger.changing() as change:
            refused = self._counter_refusal(change, ticket, meter)
            if refused is None:
                counter = _held(change.counter(ticket.digest, meter))
                if counter == LeasedCounter(to, name):
                    return
                refused = self._advance_refusal(change, ticket, counter, before, to)
                if refused is None:
                    change.set_counter(ticket.digest, meter, LeasedCounter(to, name))
        if refused is not None:
            raise self.refuse(*refused)

    def _counter_refusal(
        self, change: LedgerChange, ticket: Ticket, meter: bytes
    ) -> tuple[RefusalKind, CloisterError] | None:
        """Why a licence may not use a leased counter now."""
        if change.counter(ticket.digest, meter) is None:
            name = f"licence {ticket.license}"
            return RefusalKind.COUNTER, ReleaseError(f"{name}: its meter has no counter here")
        return self._licence_refusal(change, ticket)

    def _licence_refusal(
        self, change: LedgerChange, ticket: Ticket
    ) -> tuple[RefusalKind, CloisterError] | None:
        """Why a licence that had its release may not be used now."""
        name = f"licence {ticket.license}"
        if change.terms(ticket.license).revoked:
            return RefusalKind.REVOKED, ReleaseError(f"{name}: the vendor has revoked it")
        try:
            ticket.require_time(self.now())
        except CloisterError as error:
            return RefusalKind.TIME, error
        return None

    def _advance_refusal(
        self, change: LedgerChange, ticket: Ticket, counter: LeasedCounter, before: int, to: int
    ) -> tuple[RefusalKind, CloisterError] | None:
        """Why a leased counter may not be advanced."""
        name, rule = f"licence {ticket.license}", ticket.counter
        # Each counter of the ticket began at the rule's start.
        begun = rule.start * change.meters(ticket.digest)
        spent = change.total(ticket.digest) - begun + to - counter.count
        if rule.kind is not CounterKind.LEASE:
            reason = f"counter: its ticket is metered by one of kind {rule.kind}; use that one"
        elif counter.count != before or to <= before:
            reason = (
                f"counter: expected {before}, found {counter.count}: another copy of the meter "
                "advanced it, or it was put back; use the newest folder"
            )
        elif spent > ticket.quota:
            reason = (
                f"counter: expected at most {ticket.quota} outputs of all its meters, found "
                f"{spent}; ask the vendor for another ticket"
            )
        else:
            return None
        return RefusalKind.COUNTER, CounterError(f"{name}: {reason}")


class BrokerSession:
    """One runtime that was appraised: its release and its counter. Its calls come one by one."""

    def __init__(self, broker: Broker, channel: AttestedChannel) -> None:
        self._broker, self._channel = broker, channel
        self._granted: tuple[Ticket, bytes, RecordedRelease] | None = None
        self._calls = 0

    def release(self, ticket: bytes, meter: bytes) -> RecordedRelease:
        """See Broker.release; again for the same ticket and meter, the first answer.

        Secret   result
        Raises   as `Broker.release`, and again once the licence may not be used any more
        """
        broker, channel = self._broker, self._channel
        self._require_license()
        asked = broker.read_ticket(ticket)
        if self._granted is None:
            session = channel.exporter(SESSION_LABEL)
            found = broker.release(
                asked, meter, channel.appraisal, manifest=channel.manifest, session=session
            )
            self._granted = asked, meter, found
            broker.sessions.add(asked.license, channel)
            return found
        granted, granted_meter, found = self._granted
        if granted != asked or granted_meter != meter:
            reason = (
                f"session: expected the ticket and the meter of its release, of licence "
                f"{granted.license}, found licence {asked.license}; open a session for each"
            )
            raise broker.refuse(RefusalKind.TICKET, ReleaseError(reason))
        broker.require_usable(asked)
        return found

    def read_counter(self) -> int:
        """See Broker."""
        return self._broker.read_counter(*self._licensed())

    def advance_counter(self, *, before: int, to: int, name: bytes) -> None:
        """See Broker."""
        self._broker.advance_counter(*self._licensed(), before=before, to=to, name=name)

    def _require_license(self) -> None:
        """End a session that keeps its place without a licence."""
        self._calls += 1
        if self._granted is None and self._calls > UNLICENSED_CALLS:
            self._channel.end(f"no licence was shown in {UNLICENSED_CALLS} calls")

    def _licensed(self) -> tuple[Ticket, bytes]:
        self._require_license()
        if self._granted is None:
            error = ReleaseError("session: a counter is of a licence; ask for its release first")
            raise self._broker.refuse(RefusalKind.COUNTER, error)
        return self._granted[:2]


def _standing(
    change: LedgerChange, ticket: Ticket, machine: Machine, meter: bytes, time: int
) -> Standing:
    name = ticket.license
    return Standing(
        change.terms(name),
        has_bundle=change.bundle_key(ticket.bundle_id) is not None,
        chips=change.chips(name),
        has_chip=change.has_chip(name, machine.chip),
        meters=change.meters(ticket.digest),
        has_meter=change.counter(ticket.digest, meter) is not None,
        releases=change.releases_since(name, time - HOUR_S),
    )


def _fields(request: ReleaseRequest, appraisal: Appraisal, session: bytes) -> dict[str, object]:
    """A release in the ledger."""
    ticket, machine = request.ticket, request.machine
    return {
        "license": ticket.license,
        "bundle": ticket.bundle_id.hex(),
        "ticket": ticket.digest.hex(),
        "meter": request.meter.hex(),
        "format": machine.format,
        "measurement": machine.measurement,
        "chip": machine.chip,
        "hardware_rooted": appraisal.hardware_rooted,
        "weakened": list(appraisal.weakened),
        "manifest": request.manifest.digest.hex(),
        "session": session.hex(),
    }


def _held(found: _T | None) -> _T:
    """What a rule has found already."""
    if found is None:
        raise EncryptionError("the ledger's tables are damaged; restore the folder from a backup")
    return found
