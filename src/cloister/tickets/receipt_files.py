"""Receipts as files in a folder, and what a folder of them shows of a ticket.

A receipt is written before its outputs are released. Its opening lies beside it, for its owner
alone. A process that dies in between leaves a gap in the folder; the meter's ledger has every
receipt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cloister.base import files
from cloister.errors import InputError, TicketError
from cloister.tickets.receipt import KIND, SUFFIX, Receipt
from cloister.tickets.ticket import Ticket, read_document
from cloister.tickets.ticket_meter import SignedReceipt

OPENING_SUFFIX = ".opening"
_DIGEST_DIGITS = 16


def save_receipt(folder: Path, signed: SignedReceipt, opening: bytes) -> Path:
    """Write a receipt and its opening into a folder, which is made where there is none.

    Raises   InputError
    """
    receipt = signed.receipt
    path = folder / f"{receipt.ticket.hex()[:_DIGEST_DIGITS]}-{receipt.number:010}{SUFFIX}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.replace(path.with_suffix(OPENING_SUFFIX), opening, private=True)
        files.replace(path, signed.data, private=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    return path


@dataclass(frozen=True)
class ReceiptFolder:
    """The receipts of one ticket that lie in a folder, in order; each one was verified.

    signer   the public key that verified all of them
    gaps     serials of receipts that are missing between others, or before the first one
    """

    receipts: Sequence[Receipt]
    signer: bytes
    gaps: Sequence[range]

    @property
    def outputs(self) -> int:
        """How many outputs its receipts are of."""
        return sum(receipt.count for receipt in self.receipts)


def read_receipts(folder: Path, ticket: Ticket, *, signer: bytes | None) -> ReceiptFolder:
    """Verify all receipts in a folder against a ticket.

    signer   the meter's public key; None: that which the first receipt names

    Raises   TicketError for a receipt that is not of this ticket and meter, or contradicts another
             one, InputError
    """
    found: dict[int, tuple[Path, Receipt]] = {}
    for path in _paths(folder):
        data = read_document(path, KIND)
        try:
            signer = signer or Receipt.from_head(KIND.split(data)[0]).signer
            receipt = Receipt.verify(data, signer=Ed25519PublicKey.from_public_bytes(signer))
            receipt.require_ticket(ticket)
        except TicketError as error:
            raise TicketError(f"{path}: {error}") from None
        first, same = found.setdefault(receipt.number, (path, receipt))
        if same != receipt:
            raise TicketError(
                f"{path}: has the number of {first.name} and is another receipt: a copy of the "
                "meter was used"
            )
    if signer is None:
        raise InputError(f"{folder}: has no receipt ({SUFFIX})")
    ordered = [found[number] for number in sorted(found)]
    return ReceiptFolder([r for _, r in ordered], signer, tuple(_gaps(ordered, ticket)))


def _gaps(ordered: Sequence[tuple[Path, Receipt]], ticket: Ticket) -> Iterator[range]:
    """Serials between receipts that do not follow each other directly."""
    if not ordered:
        return
    path, first = ordered[0]
    if first.number > 1:
        yield _gap(path, ticket.first_serial, first, missing=first.number - 1)
    else:
        _require(path, first, None, ticket)
    for (_, last), (path, receipt) in pairwise(ordered):
        if receipt.number > last.number + 1:
            yield _gap(path, last.behind, receipt, missing=receipt.number - last.number - 1)
        else:
            _require(path, receipt, last, ticket)


def _gap(path: Path, begin: int, receipt: Receipt, *, missing: int) -> range:
    gap = range(begin, receipt.first)
    if len(gap) < missing:
        raise TicketError(
            f"{path}: its serials leave no room for the {missing} receipts before it; one of them "
            "was made by a copy of the meter"
        )
    return gap


def _require(path: Path, receipt: Receipt, last: Receipt | None, ticket: Ticket) -> None:
    try:
        receipt.require_predecessor(last, ticket)
    except TicketError as error:
        raise TicketError(f"{path}: {error}") from None


def _paths(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from None
