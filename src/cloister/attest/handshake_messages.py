"""The two messages of a handshake, as bytes.

    offer        magic "CLOA", version u8, direction u8, padding u8, suites u8, u16 * suites,
                 nonce 32, X25519 key 32, ML-KEM-768 key 1184, policy digest 32,
                 length of the context u16, context
    answer       magic "CLOB", version u8, suite u16, nonce 32, X25519 key 32,
                 ML-KEM ciphertext 1088, sealed part, record of confirmation
    sealed part  length u32 of the evidence, evidence (CMW), manifest; under the handshake key

Numbers are big-endian. Every message has one encoding.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum

from cloister.attest.record_padding import Padding
from cloister.attest.record_stream import OVERHEAD_BYTES
from cloister.errors import AttestationError

OFFER_MAGIC, ANSWER_MAGIC = b"CLOA", b"CLOB"
VERSION = 1
X25519_MLKEM768 = 0x0001
"""X25519 with ML-KEM-768, HKDF-SHA-512, AES-256-GCM."""
SUITES = (X25519_MLKEM768,)
"""Those that this version knows, the best first."""
NONCE_BYTES = X25519_BYTES = DIGEST_BYTES = 32
MLKEM_PUBLIC_BYTES, MLKEM_CIPHERTEXT_BYTES = 1184, 1088
HASH_BYTES = 64
MAX_CONTEXT_BYTES = 1024
MAX_SUITES = 16
MAX_MESSAGE_BYTES = 1 << 16
CONFIRMATION_BYTES = OVERHEAD_BYTES + HASH_BYTES
TAG_BYTES = 16
_FRONT = struct.Struct(">4sBBBB")
_KEYS = struct.Struct(f">{NONCE_BYTES}s{X25519_BYTES}s{MLKEM_PUBLIC_BYTES}s{DIGEST_BYTES}sH")
_CLEAR = struct.Struct(f">4sBH{NONCE_BYTES}s{X25519_BYTES}s{MLKEM_CIPHERTEXT_BYTES}s")
_LENGTH = struct.Struct(">I")


class Direction(StrEnum):
    """Who proves itself: the one that was called, or the one that calls."""

    CALLEE = "callee-attests"
    CALLER = "caller-attests"


_DIRECTIONS = {1: Direction.CALLEE, 2: Direction.CALLER}
_PADDINGS = {0: Padding.NONE, 1: Padding.PADME, 2: Padding.BLOCKS}


def code_of(direction: Direction) -> bytes:
    """A direction as one byte."""
    return bytes([next(code for code, one in _DIRECTIONS.items() if one is direction)])


@dataclass(frozen=True)
class Offer:
    """What a verifier asks for.

    context         what the conversation is about, such as a bundle's id
    policy_digest   of the policy by which the evidence will be judged
    """

    direction: Direction
    padding: Padding
    suites: tuple[int, ...]
    nonce: bytes
    x25519: bytes
    mlkem: bytes
    policy_digest: bytes
    context: bytes

    def encode(self) -> bytes:
        """The message."""
        padding = next(code for code, one in _PADDINGS.items() if one is self.padding)
        direction = code_of(self.direction)[0]
        front = _FRONT.pack(OFFER_MAGIC, VERSION, direction, padding, len(self.suites))
        suites = b"".join(suite.to_bytes(2, "big") for suite in self.suites)
        keys = _KEYS.pack(
            self.nonce, self.x25519, self.mlkem, self.policy_digest, len(self.context)
        )
        return front + suites + keys + self.context

    @classmethod
    def decode(cls, data: bytes) -> "Offer":
        """Read a message.

        Raises   AttestationError
        """
        if not _FRONT.size <= len(data) <= MAX_MESSAGE_BYTES:
            raise AttestationError(f"offer: has {len(data)} bytes, which no offer has")
        magic, version, direction, padding, count = _FRONT.unpack_from(data)
        if magic != OFFER_MAGIC:
            raise AttestationError("offer: its first bytes are those of no offer")
        if version != VERSION:
            raise _of_version("offer", version)
        if direction not in _DIRECTIONS or padding not in _PADDINGS or count > MAX_SUITES:
            raise AttestationError("offer: direction, padding or number of suites is not known")
        at = _FRONT.size + 2 * count
        if len(data) < at + _KEYS.size:
            raise AttestationError(f"offer: has {len(data)} bytes, at least {at + _KEYS.size}")
        suites = struct.unpack_from(f">{count}H", data, _FRONT.size)
        nonce, x25519, mlkem, policy_digest, length = _KEYS.unpack_from(data, at)
        context = data[at + _KEYS.size :]
        if length > MAX_CONTEXT_BYTES or len(context) != length:
            raise AttestationError("offer: the length of its context is wrong")
        return cls(
            _DIRECTIONS[direction], _PADDINGS[padding], suites, nonce, x25519, mlkem,
            policy_digest, context,
        )  # fmt: skip


@dataclass(frozen=True)
class ClearAnswer:
    """The part of an answer that is not sealed."""

    suite: int
    nonce: bytes
    x25519: bytes
    mlkem: bytes

    def encode(self) -> bytes:
        """The beginning of the message."""
        return _CLEAR.pack(ANSWER_MAGIC, VERSION, self.suite, self.nonce, self.x25519, self.mlkem)


@dataclass(frozen=True)
class ReceivedAnswer:
    """An answer, of which only the form is known to be right."""

    clear: ClearAnswer
    sealed: bytes
    confirmation: bytes

    @classmethod
    def decode(cls, data: bytes) -> "ReceivedAnswer":
        """Read a message.

        Raises   AttestationError
        """
        least = _CLEAR.size + _LENGTH.size + TAG_BYTES + CONFIRMATION_BYTES
        if not least <= len(data) <= MAX_MESSAGE_BYTES:
            raise AttestationError(f"answer: has {len(data)} bytes, of {least} or more")
        magic, version, suite, nonce, x25519, mlkem = _CLEAR.unpack_from(data)
        if magic != ANSWER_MAGIC:
            raise AttestationError("answer: its first bytes are those of no answer")
        if version != VERSION:
            raise _of_version("answer", version)
        return cls(
            ClearAnswer(suite, nonce, x25519, mlkem),
            data[_CLEAR.size : -CONFIRMATION_BYTES],
            data[-CONFIRMATION_BYTES:],
        )


def encode_proof(evidence: bytes, manifest: bytes) -> bytes:
    """What an answer seals."""
    return _LENGTH.pack(len(evidence)) + evidence + manifest


def decode_proof(data: bytes) -> tuple[bytes, bytes]:
    """Evidence and manifest.

    Raises   AttestationError
    """
    (length,) = _LENGTH.unpack_from(data)
    if length > len(data) - _LENGTH.size:
        raise AttestationError("answer: the length of its evidence is wrong")
    end = _LENGTH.size + length
    return data[_LENGTH.size : end], data[end:]


def _of_version(what: str, found: int) -> AttestationError:
    return AttestationError(
        f"{what}: expected version {VERSION}, found {found}; use the same version of Cloister on "
        "both sides"
    )
