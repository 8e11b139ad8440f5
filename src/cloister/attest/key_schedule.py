"""Keys of an attested conversation: from two shared secrets and the whole transcript.

    early = SHA-512(label || direction || offer || clear part of the answer)
    th    = SHA-512(label || direction || offer || clear part of the answer || SHA-512(manifest))
    key   = HKDF-SHA-512(X25519 secret || ML-KEM secret, salt, label || direction || purpose)

The handshake key's salt is `early`: the manifest is sealed under it. All others have `th`, which is
also what the evidence binds.
"""

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from cloister.attest.handshake_messages import Direction, code_of

LABEL = b"cloister attested session v1\0"
EXPORTER_LABEL = b"cloister exporter\0"
REATTEST_LABEL = b"reattest"
KEY_BYTES = 32


@dataclass(frozen=True, repr=False)
class ConversationKeys:
    """The keys of one conversation.

    Secret   all but `transcript`, which is what the evidence binds
    """

    transcript: bytes
    verifier: bytes
    prover: bytes
    exporter: bytes


def handshake_key(secret: bytes, direction: Direction, offer: bytes, clear: bytes) -> bytes:
    """The key under which evidence and manifest are sealed: it serves once."""
    early = hashlib.sha512(LABEL + code_of(direction) + offer + clear).digest()
    return _derive(secret, early, direction, b"handshake", KEY_BYTES)


def transcript_hash(direction: Direction, offer: bytes, clear: bytes, manifest: bytes) -> bytes:
    """What the evidence has to bind: everything that was said, and the runtime's manifest."""
    whole = LABEL + code_of(direction) + offer + clear + hashlib.sha512(manifest).digest()
    return hashlib.sha512(whole).digest()


def conversation_keys(secret: bytes, direction: Direction, transcript: bytes) -> ConversationKeys:
    """The keys of both streams, and the secret from which others are exported.

    Secret   secret, result
    Source   RFC 5869; X25519 and ML-KEM are combined as in draft-ietf-tls-hybrid-design, both
             public keys and the ciphertext being in the salt
    """

    def derive(purpose: bytes) -> bytes:
        return _derive(secret, transcript, direction, purpose, KEY_BYTES)

    return ConversationKeys(transcript, derive(b"verifier"), derive(b"prover"), derive(b"exporter"))


def exported(exporter: bytes, label: str) -> bytes:
    """A value that only the two ends of a conversation know, for one purpose."""
    return HKDFExpand(SHA512(), KEY_BYTES, EXPORTER_LABEL + label.encode()).derive(exporter)


def reattestation_data(exporter: bytes, nonce: bytes) -> bytes:
    """What fresh evidence of the same conversation has to bind."""
    return hashlib.sha512(REATTEST_LABEL + exported(exporter, "reattest") + nonce).digest()


def _derive(secret: bytes, salt: bytes, direction: Direction, purpose: bytes, length: int) -> bytes:
    return HKDF(SHA512(), length, salt, LABEL + code_of(direction) + purpose).derive(secret)
