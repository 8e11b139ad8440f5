"""A ticket: the right to a number of outputs of one bundle, signed by the bundle's vendor.

It is a signed document (bundle/signed_document.py), in a file of its own. A licence may have
several tickets; their ranges of serials must not overlap. Every output that a runtime releases has
one serial, from `first_serial` on.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.base.reading import open_regular, parsing
from cloister.bundle.bundle_header import DIGEST_BYTES, ID_BYTES
from cloister.bundle.signed_document import PUBLIC_KEY_BYTES, DocumentKind, hexadecimal
from cloister.errors import InputError, TicketError
from cloister.graph.canonical import Writer, text, whole
from cloister.graph.graph_file import read_fields
from cloister.tickets.monotonic_counter import MonotonicCounter

SUFFIX = ".lic"
"""Of a ticket's file."""
MAX_SERIAL = 2**53 - 1
"""The largest whole number that every reader of JSON reads exactly."""
MAX_QUOTA = 2**32
"""A meter seals at most one entry for each output, under random nonces (base/aead.py)."""
MAX_TOP = 2**16
MAX_TIME = 253402300799
"""The last second of the year 9999."""
KIND = DocumentKind(
    what="ticket",
    part="document",
    signer="vendor",
    magic=b"CLOT",
    format=1,
    context=b"cloister ticket\0",
    most=2048,
    error=TicketError,
)
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIELDS = (
    "license", "bundle_id", "vendor", "first_serial", "last_serial", "quota", "not_before",
    "not_after", "outputs", "top", "broker", "counter",
)  # fmt: skip


class OutputMode(StrEnum):
    """How much of an output is released.

    LABEL           the likeliest class
    TOP_K           the likeliest classes, the best first
    PROBABILITIES   the probability of every class
    """

    LABEL = "label"
    TOP_K = "top-k"
    PROBABILITIES = "probabilities"


class CounterKind(StrEnum):
    """What keeps a monotonic counter.

    LEASE           the vendor's key broker
    TPM             a TPM 2.0 of the machine
    INSECURE_FILE   a file, which anyone who can write it can put back
    """

    LEASE = "lease"
    TPM = "tpm"
    INSECURE_FILE = "insecure-file"


@dataclass(frozen=True)
class CounterRule:
    """The monotonic counter that meters a ticket.

    identity   which counter it is, 32 bytes; empty: the only one of its kind
    start      its value when no output of the ticket was released

    Raises   TicketError
    """

    kind: CounterKind
    identity: bytes = b""
    start: int = 0

    def __post_init__(self) -> None:
        if len(self.identity) not in (0, DIGEST_BYTES):
            raise TicketError(f"counter {self.kind}: its identity has {DIGEST_BYTES} B, or none")
        if self.kind is CounterKind.TPM and not self.identity:
            # Another TPM could be brought to the same value, and the ticket be spent again.
            raise TicketError("counter tpm: a ticket names the one counter; give its identity")
        if not 0 <= self.start <= MAX_SERIAL:
            raise TicketError(f"counter {self.kind}: start {self.start} is out of bounds")


@dataclass(frozen=True)
class Ticket:
    """What the vendor signs.

    license        name of the licence: letters, digits and ._- , at most 64
    bundle_id      of the bundle whose outputs it buys
    vendor         the public key that verifies the signature, as in the bundle
    first_serial   of the range of serials, `last_serial` included
    quota          outputs that may be released in all, at most as many as there are serials
    not_before     first second at which outputs may be released, `not_after` the last one: UTC,
                   counted from 1970
    outputs        how much of each is released; `top` is the number of classes of TOP_K, else None
    broker         SHA-256 of the certificate of the vendor's key broker; None: there is none
    counter        what meters it: one, since with each of two the whole quota could be spent

    Raises   TicketError
    """

    license: str
    bundle_id: bytes
    vendor: bytes
    first_serial: int
    last_serial: int
    quota: int
    not_before: int
    not_after: int
    outputs: OutputMode
    top: int | None
    broker: bytes | None
    counter: CounterRule

    def __post_init__(self) -> None:
        if not _LICENSE.fullmatch(self.license):
            raise TicketError(
                "license: give 1 to 64 letters, digits, points, hyphens or underscores, the first "
                "of them a letter or digit"
            )
        if not 0 <= self.first_serial <= self.last_serial <= MAX_SERIAL:
            raise TicketError(
                f"serials {self.first_serial} to {self.last_serial}: no range between 0 and "
                f"{MAX_SERIAL}"
            )
        serials = self.last_serial - self.first_serial + 1
        if not 1 <= self.quota <= min(serials, MAX_QUOTA):
            raise TicketError(
                f"quota {self.quota}: give 1 to {min(serials, MAX_QUOTA)}; the range has {serials} "
                "serials, one for each output"
            )
        for name, time in (("not_before", self.not_before), ("not_after", self.not_after)):
            if not 0 <= time <= MAX_TIME:
                raise TicketError(f"{name}: expected 0 to {MAX_TIME}, the year 9999; found {time}")
        if self.not_after <= self.not_before:
            raise TicketError(
                f"not_after: expected a time behind not_before, {utc(self.not_before)}, found "
                f"{utc(self.not_after)}; give a later one"
            )
        if self.outputs is OutputMode.TOP_K and self.top is None:
            raise TicketError(f"outputs {OutputMode.TOP_K}: give top, the number of classes")
        if self.outputs is not OutputMode.TOP_K and self.top is not None:
            raise TicketError(f"top: goes with outputs {OutputMode.TOP_K} alone; leave it out")
        if self.counter.start + self.quota > MAX_SERIAL:
            raise TicketError(
                f"counter {self.counter.kind}: start {self.counter.start} leaves no room for "
                f"{self.quota} outputs below {MAX_SERIAL}"
            )
        if self.top is not None and not 1 <= self.top <= MAX_TOP:
            raise TicketError(f"top {self.top}: give 1 to {MAX_TOP}")

    @cached_property
    def head(self) -> bytes:
        """Prelude and document, which the vendor signs."""
        return self._written().to_bytes()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the head: it tells this ticket from all others."""
        return hashlib.sha256(self.head).digest()

    def _written(self) -> Writer:
        return KIND.write(
            {
                "license": self.license,
                "bundle_id": self.bundle_id.hex(),
                "vendor": self.vendor.hex(),
                "first_serial": self.first_serial,
                "last_serial": self.last_serial,
                "quota": self.quota,
                "not_before": self.not_before,
                "not_after": self.not_after,
                "outputs": str(self.outputs),
                "top": self.top,
                "broker": None if self.broker is None else self.broker.hex(),
                "counter": {
                    "kind": str(self.counter.kind),
                    "identity": self.counter.identity.hex(),
                    "start": self.counter.start,
                },
            }
        )

    def signed_by(self, signer: Ed25519PrivateKey) -> bytes:
        """The bytes of the ticket's file.

        Raises   TicketError for another signer than the ticket's vendor
        """
        if signer.public_key().public_bytes_raw() != self.vendor:
            raise TicketError("the private key is not that of the ticket's vendor")
        return KIND.sign(self.head, signer)

    @classmethod
    def verify(cls, data: bytes, *, vendor: Ed25519PublicKey) -> "Ticket":
        """The ticket in a file's bytes, which are parsed once the signature was verified.

        Raises   TicketError
        """
        # (1) The document is bounded, and (2) parsed once its signature was verified.
        head, signature = KIND.split(data)
        KIND.authenticate(head, signature, vendor)
        ticket = cls.from_head(head)
        # (3) The vendor's key is the one that the ticket names.
        if ticket.vendor != vendor.public_bytes_raw():
            raise TicketError("names another vendor than the one who signed it")
        return ticket

    @classmethod
    def read(cls, path: Path, *, vendor: Ed25519PublicKey) -> "Ticket":
        """The ticket in a file.

        Raises   as `verify`, InputError for a file that cannot be read
        """
        try:
            return cls.verify(read_document(path, KIND), vendor=vendor)
        except TicketError as error:
            raise TicketError(f"{path}: {error}") from None

    @classmethod
    def from_head(cls, head: bytes) -> "Ticket":
        """Inverse of `head`; whoever wrote it may have made it up.

        Raises   TicketError
        """
        with parsing("its document cannot be read", kind=TicketError):
            reader = KIND.reader(head)
            (license_name, bundle_id, vendor, first, last, quota, begins, ends, outputs, top,
             broker, counter) = read_fields(reader.document, *_FIELDS)  # fmt: skip
            ticket = cls(
                license=text(license_name),
                bundle_id=hexadecimal(bundle_id, ID_BYTES),
                vendor=hexadecimal(vendor, PUBLIC_KEY_BYTES),
                first_serial=whole(first),
                last_serial=whole(last),
                quota=whole(quota),
                not_before=whole(begins),
                not_after=whole(ends),
                outputs=OutputMode(text(outputs)),
                top=None if top is None else whole(top),
                broker=None if broker is None else hexadecimal(broker, DIGEST_BYTES),
                counter=_rule(counter),
            )
            reader.finish(ticket._written())
            return ticket

    def left_after(self, serial: int) -> int:
        """Outputs that may still be released when `serial` is the next one."""
        return self.quota - (serial - self.first_serial)

    def require_bundle(self, bundle_id: bytes, *, vendor: bytes) -> None:
        """Refuse a bundle whose outputs the ticket does not buy.

        Raises   TicketError
        """
        if self.bundle_id != bundle_id or self.vendor != vendor:
            raise TicketError(
                f"ticket {self.license}: buys outputs of bundle {self.bundle_id.hex()} of vendor "
                f"{self.vendor.hex()[:16]}, and the bundle is {bundle_id.hex()} of vendor "
                f"{vendor.hex()[:16]}; ask the vendor for a ticket of this bundle"
            )

    def require_time(self, now: datetime) -> None:
        """Refuse a time at which no output may be released.

        Raises   TicketError
        """
        at = int(now.timestamp())
        if at < self.not_before:
            raise TicketError(
                f"ticket {self.license}: is not valid before {utc(self.not_before)}, and the clock "
                f"reads {utc(at)}; wait, or set the clock right"
            )
        if at > self.not_after:
            raise TicketError(
                f"ticket {self.license}: expired; it was valid until {utc(self.not_after)}, and "
                f"the clock reads {utc(at)}; ask the vendor for a new one"
            )

    def require_counter(self, counter: MonotonicCounter) -> None:
        """Refuse any counter but the one that meters the ticket.

        Raises   TicketError
        """
        wanted, found = self.counter, counter.identity
        if counter.kind != wanted.kind:
            raise TicketError(
                f"ticket {self.license}: is metered by a counter of kind {wanted.kind}, not "
                f"{counter.kind}; use that one, or ask the vendor for a ticket with this kind"
            )
        if wanted.identity not in (b"", found):
            raise TicketError(
                f"ticket {self.license}: is metered by counter {wanted.identity.hex()[:16]}, and "
                f"this is {found.hex()[:16]}; run on the machine that the ticket was issued for"
            )


def read_document(path: Path, kind: DocumentKind) -> bytes:
    """The bytes of a file that is one signed document; more than it may have are not read.

    Raises   InputError
    """
    try:
        with open_regular(path) as file:
            return file.read(kind.most_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def utc(seconds: int) -> str:
    """A time in messages."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _bounded(seconds: int) -> str:
    """A time in messages, which may be out of bounds."""
    return utc(seconds) if 0 <= seconds <= MAX_TIME else str(seconds)


def _rule(found: object) -> CounterRule:
    kind, identity, start = read_fields(found, "kind", "identity", "start")
    return CounterRule(CounterKind(text(kind)), bytes.fromhex(text(identity)), whole(start))
