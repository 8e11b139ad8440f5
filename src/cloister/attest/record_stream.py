"""Sealed records of one direction of a conversation: numbered, and opened in their order alone.

    header      type u8, sequence u64, length u64 of what follows
    ciphertext  AES-256-GCM under the direction's key; nonce: the sequence; AAD: the header

A record that was changed, left out, repeated, moved or made for another direction or conversation
does not open.
"""

import struct
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.errors import ProtocolError, VerificationError

HEADER = struct.Struct(">BQQ")
TAG_BYTES = 16
OVERHEAD_BYTES = HEADER.size + TAG_BYTES
MAX_RECORD_BYTES = 1 << 30
MAX_RECORDS = 1 << 32
MAX_STREAM_BYTES = 1 << 44
"""Under one key: 2^40 blocks leave an attacker on GCM's counter mode an advantage of 2^-49."""


class RecordType(IntEnum):
    """What a record is for."""

    CONFIRMATION = 1
    """The first of each direction: its sender has the keys, and saw the same handshake."""
    DATA = 2
    CLOSE = 3
    """The last of a direction: nothing was cut off behind it."""
    REFUSAL = 4
    """In place of a verifier's confirmation: why it refuses the evidence."""


class RecordStream:
    """One direction of a conversation, at one of its ends.

    Secret   key, which belongs to this stream alone
    """

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._sequence = self._bytes = 0

    def seal(self, kind: RecordType, plaintext: bytes | memoryview) -> bytearray:
        """The next record.

        Secret   plaintext; its length and the type are public
        Source   NIST SP 800-38D, deterministic nonces
        Raises   ProtocolError for one that is too long, or when the key has sealed enough
        """
        length = len(plaintext) + TAG_BYTES
        if length > MAX_RECORD_BYTES:
            raise ProtocolError(
                f"record: has {len(plaintext)} bytes; send at most {MAX_RECORD_BYTES - TAG_BYTES}"
            )
        record = bytearray(HEADER.size + length)
        HEADER.pack_into(record, 0, kind, self._sequence, length)
        nonce = self._advance(length)
        sealed = memoryview(record)[HEADER.size :]
        self._aead.encrypt_into(nonce, plaintext, bytes(record[: HEADER.size]), sealed)
        return record

    def open(self, record: bytes | bytearray | memoryview) -> tuple[RecordType, bytes]:
        """Type and plaintext of the record that is due.

        Raises   VerificationError
        """
        view = memoryview(record)
        if len(view) < OVERHEAD_BYTES:
            raise VerificationError(f"record: has {len(view)} bytes, at least {OVERHEAD_BYTES}")
        header = bytes(view[: HEADER.size])
        kind, sequence, length = HEADER.unpack(header)
        if sequence != self._sequence:
            raise VerificationError(
                f"record: expected number {self._sequence}, found {sequence}; records were lost, "
                "repeated or put in another order"
            )
        if kind not in tuple(RecordType) or length != len(view) - HEADER.size:
            raise VerificationError("record: its type or length is wrong")
        nonce = self._advance(length)
        try:
            return RecordType(kind), self._aead.decrypt(nonce, view[HEADER.size :], header)
        except InvalidTag:
            raise VerificationError(
                "record: was changed, or belongs to another conversation"
            ) from None

    def _advance(self, length: int) -> bytes:
        """The nonce that is due; it is never given out again."""
        if self._sequence >= MAX_RECORDS or self._bytes + length > MAX_STREAM_BYTES:
            raise ProtocolError("record: the conversation's keys are used up; begin a new one")
        nonce = bytes(4) + self._sequence.to_bytes(8, "big")
        self._sequence += 1
        self._bytes += length
        return nonce
