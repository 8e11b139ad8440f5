"""A receipt: a meter's signed word that outputs of a ticket were spent.

It is a signed document (bundle/signed_document.py). Each receipt names its predecessor by digest,
and the first one names the ticket, so the receipts of a ticket are one chain. A receipt holds a
commitment to the released outputs and nothing that tells of them without its opening, which the
customer alone gets (output_release.py).

The meter's key determines the key that signs. A runtime tells the public key in its attested
conversation.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.base.hkdf import derive
from cloister.base.reading import parsing
from cloister.bundle.bundle_header import DIGEST_BYTES, ID_BYTES
from cloister.bundle.signed_document import PUBLIC_KEY_BYTES, DocumentKind, hexadecimal
from cloister.errors import TicketError
from cloister.graph.canonical import Writer, text, whole
from cloister.graph.graph_file import read_fields
from cloister.tickets.ticket import MAX_QUOTA, MAX_SERIAL, MAX_TIME, OutputMode, Ticket, utc

SUFFIX = ".receipt"
"""Of a receipt's file."""
KIND = DocumentKind(
    what="receipt",
    part="document",
    signer="meter",
    magic=b"CLOR",
    format=1,
    context=b"cloister receipt\0",
    most=2048,
    error=TicketError,
)
_PURPOSE = b"cloister receipt signer v1"
_FIELDS = (
    "license", "bundle_id", "ticket", "signer", "number", "first", "count", "outputs", "top",
    "commitment", "time", "previous",
)  # fmt: skip


def receipt_signer(meter_key: bytes, ticket: Ticket) -> Ed25519PrivateKey:
    """The key that signs the receipts of a ticket.

    Secret   meter_key, the result
    """
    seed = derive(meter_key, info=_PURPOSE + ticket.digest)
    return Ed25519PrivateKey.from_private_bytes(seed)


@dataclass(frozen=True)
class Receipt:
    """What the meter signs.

    ticket       digest of the ticket; license, bundle_id, outputs and top are the ticket's
    signer       the public key that verifies the signature
    number       1 for the first receipt of a ticket
    first        serial of the first output; the others follow without gaps
    count        outputs
    commitment   to the outputs as they were released
    time         seconds in UTC from 1970 on
    previous     digest of the receipt before, or of the ticket
    """

    license: str
    bundle_id: bytes
    ticket: bytes
    signer: bytes
    number: int
    first: int
    count: int
    outputs: OutputMode
    top: int | None
    commitment: bytes
    time: int
    previous: bytes

    @property
    def behind(self) -> int:
        """The serial behind the last one."""
        return self.first + self.count

    @property
    def serials(self) -> range:
        """Of its outputs."""
        return range(self.first, self.behind)

    @cached_property
    def head(self) -> bytes:
        """Prelude and document, which the meter signs."""
        return self._written().to_bytes()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the head."""
        return hashlib.sha256(self.head).digest()

    def _written(self) -> Writer:
        fields = {name: getattr(self, name) for name in _FIELDS}
        return KIND.write(
            {name: v.hex() if isinstance(v, bytes) else v for name, v in fields.items()}
        )

    def signed_by(self, signer: Ed25519PrivateKey) -> bytes:
        """The bytes of the receipt's file."""
        return KIND.sign(self.head, signer)

    @classmethod
    def verify(cls, data: bytes, *, signer: Ed25519PublicKey) -> "Receipt":
        """The receipt in a file's bytes, which are parsed once the signature was verified.

        Raises   TicketError
        """
        head, signature = KIND.split(data)
        KIND.authenticate(head, signature, signer)
        receipt = cls.from_head(head)
        if receipt.signer != signer.public_bytes_raw():
            raise TicketError("names another meter than the one that signed it")
        return receipt

    @classmethod
    def from_head(cls, head: bytes) -> "Receipt":
        """Inverse of `head`; whoever wrote it may have made it up.

        Raises   TicketError
        """
        with parsing("its document cannot be read", kind=TicketError):
            reader = KIND.reader(head)
            (license_name, bundle_id, ticket, signer, number, first, count, outputs, top,
             commitment, time, previous) = read_fields(reader.document, *_FIELDS)  # fmt: skip
            receipt = cls(
                license=text(license_name),
                bundle_id=hexadecimal(bundle_id, ID_BYTES),
                ticket=hexadecimal(ticket, DIGEST_BYTES),
                signer=hexadecimal(signer, PUBLIC_KEY_BYTES),
                number=whole(number, least=1, most=MAX_QUOTA),
                first=whole(first, least=0, most=MAX_SERIAL),
                count=whole(count, least=1, most=MAX_QUOTA),
                outputs=OutputMode(text(outputs)),
                top=None if top is None else whole(top),
                commitment=hexadecimal(commitment, DIGEST_BYTES),
                time=whole(time, least=0, most=MAX_TIME),
                previous=hexadecimal(previous, DIGEST_BYTES),
            )
            reader.finish(receipt._written())
            return receipt

    def require_ticket(self, ticket: Ticket) -> None:
        """Refuse a receipt that is not of a ticket, or of what the ticket does not allow.

        Raises   TicketError
        """
        if self.ticket != ticket.digest:
            raise TicketError(f"receipt {self.number}: is of another ticket")
        own = (self.license, self.bundle_id, self.outputs, self.top)
        if own != (ticket.license, ticket.bundle_id, ticket.outputs, ticket.top):
            raise TicketError(f"receipt {self.number}: contradicts its ticket")
        if self.first < ticket.first_serial or self.behind > ticket.first_serial + ticket.quota:
            raise TicketError(
                f"receipt {self.number}: has serials {self.first} to {self.behind - 1}, beyond the "
                "quota of its ticket"
            )
        if not ticket.not_before <= self.time <= ticket.not_after:
            raise TicketError(
                f"receipt {self.number}: is of {utc(self.time)}, when its ticket was not valid"
            )

    def require_predecessor(self, last: "Receipt | None", ticket: Ticket) -> None:
        """Refuse a receipt of a ticket that does not follow another one; None: it is the first.

        Raises   TicketError
        """
        self.require_ticket(ticket)
        wanted = (1, ticket.first_serial, ticket.digest)
        if last is not None:
            wanted = (last.number + 1, last.behind, last.digest)
        if (self.number, self.first, self.previous) != wanted:
            raise TicketError(
                f"receipt {self.number}: does not follow receipt {wanted[0] - 1} of its ticket; "
                "one of the two was changed, or a copy of the meter was used"
            )
        if last is not None and self.time < last.time:
            raise TicketError(f"receipt {self.number}: is older than the one before it")
