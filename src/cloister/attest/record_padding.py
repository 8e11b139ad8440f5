"""How a record's length is rounded up, so that it says less about its content."""

import struct
from enum import StrEnum

from cloister.errors import VerificationError

_LENGTH = struct.Struct(">Q")
BLOCK_BYTES = 1 << 16


class Padding(StrEnum):
    """The profile that both sides of a conversation keep.

    NONE     lengths are visible to a byte
    PADME    to their leading bits: at most 12 % longer, and few lengths are possible
    BLOCKS   to multiples of 64 KiB
    """

    NONE = "none"
    PADME = "padme"
    BLOCKS = "blocks"


def padded_bytes(length: int, padding: Padding) -> int:
    """The length to which `length` bytes are filled up.

    Source   Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with
             PURBs", section 4 (Padme)
    """
    match padding:
        case Padding.NONE:
            return length
        case Padding.BLOCKS:
            return -(-length // BLOCK_BYTES) * BLOCK_BYTES
        case Padding.PADME:
            if length < 2:
                return length
            exponent = length.bit_length() - 1
            low_bits = exponent - exponent.bit_length()
            mask = (1 << max(0, low_bits)) - 1
            return (length + mask) & ~mask


def pad(plaintext: bytes | bytearray | memoryview, padding: Padding) -> bytes | memoryview:
    """The plaintext behind its length, filled up with zeros; as it is where nothing is padded."""
    if padding is Padding.NONE:
        return memoryview(plaintext)
    filled = padded_bytes(_LENGTH.size + len(plaintext), padding)
    return b"".join(
        (_LENGTH.pack(len(plaintext)), plaintext, bytes(filled - _LENGTH.size - len(plaintext)))
    )


def unpad(padded: bytes, padding: Padding) -> bytes:
    """The plaintext of `pad`; one plaintext has one padded form.

    Raises   VerificationError
    """
    if padding is Padding.NONE:
        return padded
    if len(padded) < _LENGTH.size:
        raise VerificationError("record: its padding is damaged")
    (length,) = _LENGTH.unpack_from(padded)
    end = _LENGTH.size + length
    if len(padded) != padded_bytes(end, padding) or any(memoryview(padded)[end:]):
        raise VerificationError("record: its padding is damaged")
    return padded[_LENGTH.size : end]
