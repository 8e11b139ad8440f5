"""The ledger of a meter: every receipt of a ticket, sealed, in an SQLite file.

Its owner has the file and not the key: he reads sizes and the number of rows, and can put back an
old file, which the meter's counter tells (ticket_meter.py). A row's seal covers its number, and its
key is of one ticket; each receipt names the one before. The last row alone says how much was spent,
so a long ledger opens as fast as a short one; `receipts` checks the whole chain.
"""

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.base.aead import NONCE_BYTES, TAG_BYTES, open_sealed, seal
from cloister.base.database_kind import DatabaseKind
from cloister.base.hkdf import derive
from cloister.base.rng import Csprng
from cloister.errors import CloisterError, MeterError, TicketError, VerificationError
from cloister.tickets.receipt import KIND, Receipt, receipt_signer
from cloister.tickets.ticket import Ticket

_FILE = DatabaseKind(
    what="ledger",
    application_id=0x434C5452,  # "CLTR"
    version=1,
    schema="CREATE TABLE receipts (number INTEGER PRIMARY KEY, sealed BLOB NOT NULL) STRICT",
    error=MeterError,
)
_PURPOSE = b"cloister receipt ledger v1"
_MAX_SEALED = NONCE_BYTES + KIND.most_bytes + TAG_BYTES
_ROWS = "SELECT number, CASE WHEN length(sealed) <= ? THEN sealed END FROM receipts ORDER BY number"
"""A row that is too long for any receipt is not read."""


@dataclass(frozen=True)
class ReceiptLedger:
    """The receipts of one ticket in a file.

    Secret   key
    """

    path: Path
    ticket: Ticket
    key: bytes = field(repr=False)
    signer: Ed25519PrivateKey = field(repr=False)
    rng: Csprng

    @classmethod
    def open(cls, path: Path, ticket: Ticket, *, meter_key: bytes, rng: Csprng) -> "ReceiptLedger":
        """The ledger in a file; where there is none, an empty one.

        Raises   MeterError
        """
        _FILE.open_or_create(path)
        key = derive(meter_key, info=_PURPOSE + ticket.digest)
        return cls(path.absolute(), ticket, key, receipt_signer(meter_key, ticket), rng)

    def last(self) -> Receipt | None:
        """The last receipt; None: the ledger is empty.

        Raises   MeterError
        """
        with _FILE.transaction(self.path) as database:
            return self._last(database)

    def append(self, receipt: Receipt) -> bytes:
        """Sign a receipt and add it; on stable storage when this returns. Gives its file's bytes.

        Raises   MeterError when it does not follow the last one; then nothing was added
        """
        data = receipt.signed_by(self.signer)
        with _FILE.transaction(self.path) as database:
            self._require_next(receipt, self._last(database))
            sealed = seal(self.key, data, aad=_aad(receipt.number), rng=self.rng)
            database.execute("INSERT INTO receipts VALUES (?, ?)", (receipt.number, sealed))
        return data

    def receipts(self) -> list[tuple[Receipt, bytes]]:
        """All receipts and their files' bytes, from the first on; the chain is checked.

        Raises   MeterError
        """
        found: list[tuple[Receipt, bytes]] = []
        with _FILE.transaction(self.path) as database:
            for row in database.execute(_ROWS, (_MAX_SEALED,)):
                receipt, data = self._opened(row)
                self._require_next(receipt, found[-1][0] if found else None)
                found.append((receipt, data))
        return found

    def _last(self, database: sqlite3.Connection) -> Receipt | None:
        row = database.execute(_ROWS + " DESC LIMIT 1", (_MAX_SEALED,)).fetchone()
        return None if row is None else self._opened(row)[0]

    def _opened(self, row: tuple[object, object]) -> tuple[Receipt, bytes]:
        number, sealed = row
        try:
            if not isinstance(number, int) or not isinstance(sealed, bytes):
                raise VerificationError("it is no sealed receipt")
            data = open_sealed(self.key, sealed, aad=_aad(number))
            receipt = Receipt.verify(data, signer=self.signer.public_key())
            receipt.require_ticket(self.ticket)
        except CloisterError as error:
            raise MeterError(
                f"ledger {self.path}: row {number} does not open: it was changed, or is of another "
                f"ticket or key ({error}); open the meter with its own ticket and key"
            ) from None
        if receipt.number != number:
            raise MeterError(f"ledger {self.path}: row {number} has another number inside")
        return receipt, data

    def _require_next(self, receipt: Receipt, last: Receipt | None) -> None:
        try:
            receipt.require_predecessor(last, self.ticket)
        except TicketError as error:
            raise MeterError(f"ledger {self.path}: {error}") from None


def _aad(number: int) -> bytes:
    return _PURPOSE + number.to_bytes(8, "big", signed=True)
