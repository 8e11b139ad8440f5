"""Authenticated encryption: AES-256-GCM with a random nonce in front."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.base.rng import Csprng
from cloister.errors import VerificationError

NONCE_BYTES = 12
TAG_BYTES = 16


def seal(key: bytes, plaintext: bytes, *, aad: bytes, rng: Csprng) -> bytes:
    """nonce || ciphertext || tag.

    Secret   key, plaintext.  Public: aad, which the tag covers
    Source   NIST SP 800-38D; a key may seal 2^32 messages under random nonces
    """
    nonce = rng.random_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, aad)


def open_sealed(key: bytes, sealed: bytes, *, aad: bytes) -> bytes:
    """The plaintext of `seal`.

    Raises   VerificationError when key, text or aad is not the one that was sealed
    """
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise VerificationError("sealed data is too short to be genuine")
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad)
    except InvalidTag:
        raise VerificationError("sealed data was changed, or is sealed under another key") from None
